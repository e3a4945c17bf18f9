"""The command line in this process: usage, answers and exit status. Training through it is in tests/flows/."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.contract_page import PAGE
from cli.main import main
from schemas.config import TrainingConfig
from tasks.registry.store import ModelStore
from tests.stored import add_stored, event


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path))
    return ModelStore.of(tmp_path, "fashion-mnist").root


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--epochs", "three"], "--epochs"),
        (["train", "--dropout", "1"], "--dropout"),
        (["train", "--learning-rate", "nan"], "--learning-rate"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--epoch-count", "3"], "--epoch-count"),
        (["train", "--device", "tpu"], "--device"),
        *((["train", "--bad-rows", wrong], "--bad-rows") for wrong in ("few", "-1", "1.5", "101%", "%", "5 %", "")),
        (["train", "--data-dir", ""], "FASHION_ANN_DATA_DIR"),
        (["train", "--dataset", "mnist"], "--dataset"),
        (["trian"], "trian"),
        ([], "COMMAND"),
        (["show"], "V"),
        (["gc", "--keep", "0"], "--keep"),
        (["gc", "--keep", "few"], "--keep"),
        (["doctor", "--data-dir", ""], "FASHION_ANN_DATA_DIR"),
    ],
)
def test_wrong_usage_is_named_and_ends_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    status, out, err = _run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert named in err
    assert "Traceback" not in err


def test_an_abbreviated_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, "train", "--epoch", "3")[0] == 2


def test_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = _run(capsys, "train", "--help")
    assert status == 0
    for flag in ("--data-dir", "--artifacts-dir", "--epochs", "--batch-size", "--learning-rate", "--dropout", "--seed"):
        assert flag in out
    assert f"(default: {TrainingConfig().epochs})" in out


def test_versions_of_an_empty_store(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    assert _run(capsys, "versions", "--json")[:2] == (0, "[]\n")
    status, out, _ = _run(capsys, "versions")
    assert status == 0
    assert "fashion-ann train" in out


def test_versions_and_show_speak_json(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    add_stored(store, 0.9)
    ModelStore(store).aliases.append(event(1))
    status, out, _ = _run(capsys, "versions", "--json")
    (row,) = json.loads(out)
    assert status == 0
    assert (row["version"], row["aliases"], row["test_accuracy"]) == (1, ["champion"], 0.9)
    status, out, _ = _run(capsys, "show", "champion", "--json")
    assert status == 0
    assert json.loads(out)["metrics"] == {"test_accuracy": 0.9}


def test_the_flag_wins_over_the_variable(capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path) -> None:
    add_stored(store)
    assert json.loads(_run(capsys, "versions", "--json", "--artifacts-dir", str(tmp_path / "other"))[1]) == []


def test_a_version_that_is_not_there_ends_with_1(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    status, out, err = _run(capsys, "show", "7")
    assert (status, out) == (1, "")
    assert "no version or alias '7'" in err


def test_a_damaged_version_ends_with_5(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    add_stored(store)
    (store / "versions" / "0001" / "metrics.json").write_text("{}")
    status, out, err = _run(capsys, "show", "1")
    assert (status, out) == (5, "")
    assert "metrics.json: expected sha256" in err


def test_a_folder_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder belongs")
    status, out, err = _run(capsys, "show", "1", "--artifacts-dir", str(tmp_path))
    assert (status, out) == (1, "")
    assert str(tmp_path / "models") in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    assert "Traceback" in _run(capsys, "show", "7", "--debug")[2]


def test_gc_says_what_it_would_remove_and_then_removes_it(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    for _ in range(3):
        add_stored(store)
    ModelStore(store).aliases.append(event(1))
    size = sum(path.stat().st_size for path in (store / "versions" / "0002").iterdir())
    told = {"removed": [{"kind": "version", "path": str(store / "versions" / "0002"), "bytes": size}]}
    told |= {"kept_versions": [1, 3], "bytes": size}
    for dry_run in (True, False):
        status, out, _ = _run(capsys, "gc", "--keep", "1", "--json", *(["--dry-run"] if dry_run else []))
        answer = json.loads(out)
        assert status == 0
        assert {key: answer[key] for key in told} == told
        assert answer["dry_run"] is dry_run
        assert isinstance(answer["notes"], list)
        assert (store / "versions" / "0002").exists() is dry_run
    status, out, _ = _run(capsys, "gc", "--keep", "1")
    assert status == 0
    assert "removed 0 things, 0 bytes; versions that stay: 1, 3" in out


def test_gc_on_a_read_only_store_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        add_stored(store)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    status, out, err = _run(capsys, "gc", "--keep", "1")
    assert (status, out) == (1, "")
    assert err == f"fashion-ann gc: {store / 'versions' / '0001'}: Read-only file system.\n"
    assert _run(capsys, "gc", "--keep", "1", "--dry-run")[0] == 0


def test_gc_of_an_alias_log_that_cannot_be_read_ends_with_5(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    add_stored(store)
    (store / "aliases.jsonl").write_text("nobody knows\n")
    status, out, err = _run(capsys, "gc")
    assert (status, out) == (5, "")
    assert "aliases.jsonl line 1" in err


def test_listing_versions_imports_neither_prefect_nor_a_backend(store: Path) -> None:
    program = (
        "import sys; from cli.main import main\n"
        "try: main(['versions'])\n"
        "except SystemExit: pass\n"
        "slow = {'prefect', 'tensorflow', 'keras', 'great_expectations', 'pandas', 'pyarrow'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_each_dataset_has_a_store_of_its_own(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    add_stored(store)
    assert [row["version"] for row in json.loads(_run(capsys, "versions", "--json")[1])] == [1]
    assert json.loads(_run(capsys, "versions", "--dataset", "digits", "--json")[1]) == []
    assert "digits" in _run(capsys, "show", "1", "--dataset", "digits")[2]


@pytest.mark.parametrize(("dataset", "says"), [("fashion-mnist", "9 Ankle boot"), ("digits", "integers 0..16")])
def test_a_contract_is_printed_as_docs_have_it(capsys: pytest.CaptureFixture[str], dataset: str, says: str) -> None:
    status, out, _ = _run(capsys, "contract", "--dataset", dataset)
    assert status == 0
    assert says in out
    assert out.strip() in PAGE.read_text(encoding="utf-8")
    facts = json.loads(_run(capsys, "contract", "--dataset", dataset, "--json")[1])
    assert (facts["name"], len(facts["columns"])) == (dataset, 1 + facts["height"] * facts["width"])
    assert facts["files"] == {split: f"{dataset}_{split}.csv" for split in ("train", "test")}
    assert facts["label_range"] == [0, 9]
    assert {"name", "says", "found", "warn", "fail", "low_is_bad"} == set(facts["checks"][0])
