"""The folder of predictions of several CSVs: its names, its replacement, and what is rejected."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import DataContractError, WrongUsage
from schemas.references import CheckResult, FilePredictions
from tasks.registry.prediction_folder import csvs_by_part, is_several, new_prediction_folder, predicted_files


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def write_predictions(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"row": [0]}).replace_schema_metadata({"fashion_ann.version": "1"}), path)
    return path


def test_several_paths_or_a_folder_are_several_csvs(tmp_path: Path) -> None:
    assert [is_several(images) for images in ([tmp_path / "a.csv"], [tmp_path], [tmp_path / "a.csv"] * 2)] == [
        False,
        True,
        True,
    ]


def test_parts_are_named_by_their_csvs_and_ordered(tmp_path: Path) -> None:
    b, a = touch(tmp_path / "one", "b.csv", "a-1.csv.gz")
    touch(tmp_path / "two", ".c.csv", "notes.txt", "a.csv", "D.CSV")
    parts = csvs_by_part([b, a, tmp_path / "two"])
    assert list(parts.items()) == [
        ("D.parquet", tmp_path / "two" / "D.CSV"),
        ("a-1.parquet", a),
        ("a.parquet", tmp_path / "two" / "a.csv"),
        ("b.parquet", b),
    ]


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["a.csv", "a.csv.gz"], WrongUsage, r"a\.csv and .*a\.csv\.gz would both be written to a\.parquet"),
        (["_a.csv", "b.csv"], WrongUsage, "begin with '_'"),
        (["a.txt"], DataContractError, "contains no CSV"),
    ],
)
def test_unusable_names_are_rejected(tmp_path: Path, names: list[str], error: type[Exception], words: str) -> None:
    touch(tmp_path / "images", *names)
    with pytest.raises(error, match=words):
        csvs_by_part([tmp_path / "images"])


@pytest.mark.parametrize("link", [False, True])
def test_the_folder_replaces_earlier_predictions_whole(tmp_path: Path, link: bool) -> None:
    output = tmp_path / "out"
    write_predictions((tmp_path / "real" if link else output) / "old.parquet")
    if link:
        output.symlink_to("real")
    with new_prediction_folder(output) as folder:
        write_predictions(folder / "new.parquet")
        assert [path.name for path in output.iterdir()] == ["old.parquet"]
    assert [path.name for path in output.iterdir()] == ["new.parquet"]
    assert output.is_symlink() == link
    assert {path.name for path in tmp_path.iterdir()} == ({"out", "real"} if link else {"out"})


@pytest.mark.parametrize("earlier", [False, True])
def test_after_an_error_the_output_is_as_before(tmp_path: Path, earlier: bool) -> None:
    old = write_predictions(tmp_path / "out" / "old.parquet") if earlier else None

    def fail(folder: Path) -> None:
        write_predictions(folder / "new.parquet")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), new_prediction_folder(tmp_path / "out") as folder:
        fail(folder)
    assert [*tmp_path.rglob("*")] == ([] if old is None else [tmp_path / "out", old])


def test_an_interrupt_ends_while_tasks_still_write(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        with suppress(FileNotFoundError):
            for number in range(20_000):
                (folder / f"{number}").touch()

    def interrupt(folder: Path) -> None:
        running.append(pool.submit(write, folder))
        while not (folder / "2000").exists():  # so many that their removal is interrupted by the other thread
            pass
        raise KeyboardInterrupt

    running: list[Future[None]] = []
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt), new_prediction_folder(tmp_path / "out") as folder:
            interrupt(folder)
        running[0].result(timeout=60)
    assert [*tmp_path.iterdir()] == []


def test_a_failed_rename_brings_the_earlier_predictions_back(tmp_path: Path) -> None:
    old = write_predictions(tmp_path / "out" / "old.parquet")
    with pytest.raises(FileNotFoundError), new_prediction_folder(tmp_path / "out") as folder:
        folder.rmdir()
    assert [*tmp_path.rglob("*")] == [tmp_path / "out", old]


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    touch(tmp_path / f".out.{'0' * 32}.tmp", "a.parquet")
    with new_prediction_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("out.csv", r"does not end in \.csv"),
        ("none/out", "must be in an existing folder"),
        ("file", "must be a folder; it is a file"),
        ("foreign", r"notes\.txt, which is no file of predictions"),
        ("tables", r"other\.parquet, which is no file of predictions"),
        ("nested", r"deep, which is no file of predictions"),
    ],
)
def test_another_output_is_rejected(tmp_path: Path, output: str, words: str) -> None:
    touch(tmp_path, "file")
    touch(tmp_path / "foreign", "notes.txt")
    touch(tmp_path / "nested")
    touch(tmp_path / "nested" / "deep")
    pq.write_table(
        pa.table({"row": [0]}), write_predictions(tmp_path / "tables" / "a.parquet").with_name("other.parquet")
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(WrongUsage, match=words), new_prediction_folder(tmp_path / output):
        raise AssertionError("work started")
    assert sorted(tmp_path.rglob("*")) == before


def file(name: str, rows: int, accuracy: float | None) -> FilePredictions:
    check = CheckResult(check="blank", figure=0, bound="<= 0.1", severity="warning", result="met", says=name)
    return FilePredictions(
        version=3,
        rows=rows,
        accuracy=accuracy,
        checks=(check,),
        warnings=(f"{name}: warned",),
        output=Path("elsewhere"),
        sha256="0" * 64,
        profile=Path("elsewhere.json"),
        shadow=None,
        images=Path(f"/{name}.csv"),
    )


def test_totals_are_those_of_all_files() -> None:
    predicted = predicted_files(Path("/out"), {"a.parquet": file("a", 3, 2 / 3), "b.parquet": file("b", 7, 1 / 7)})
    assert (predicted.version, predicted.rows, predicted.accuracy) == (3, 10, 0.3)
    assert predicted.warnings == ("a: warned", "b: warned")
    assert [check.says for check in predicted.checks] == ["a", "b"]
    assert [entry.output for entry in predicted.files] == [Path("/out/a.parquet"), Path("/out/b.parquet")]
    bare = predicted_files(Path("/out"), {"a.parquet": file("a", 3, None)})
    assert bare.accuracy is None


def test_csvs_with_and_without_labels_are_rejected() -> None:
    files = {"a.parquet": file("a", 3, None), "b.parquet": file("b", 7, 0.5)}
    with pytest.raises(DataContractError, match=r"1 have labels, such as b\.csv, and 1 have none, such as a\.csv"):
        predicted_files(Path("/out"), files)
