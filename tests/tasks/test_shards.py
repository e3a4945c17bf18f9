"""A split in shards: the same result as one file, and a changed shard costs that shard alone."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest

from schemas.contract import SPLITS, Split
from schemas.errors import DataContractError
from schemas.references import CsvSplit, PreparedData, ValidatedSplit
from tasks.data.data_folder import csv_split
from tasks.data.splits import open_split
from tasks.ingest import ingest
from tasks.prepare import prepare
from tasks.registry.gc import collect, plan
from tasks.registry.store import ModelStore
from tasks.runtime.stage_cache import read_record
from tasks.validate import validate
from tests.sample import SAMPLE, shards_of
from tests.stored import add_promoted
from tests.tasks.checks.rows import Change, inverted, mirrored, on_images, on_labels, transposed

NAME = "fashion-mnist"


def lines_of(split: Split) -> list[bytes]:
    """Return the rows of the sample's split as they are in the CSV."""
    return gzip.decompress((SAMPLE / f"{NAME}_{split}.csv.gz").read_bytes()).splitlines(keepends=True)[1:]


def changed(path: Path, change: Change) -> None:
    """Change images and labels of a CSV in place."""
    header, *rows = path.read_bytes().splitlines(keepends=True)
    values = np.loadtxt(rows, np.int64, delimiter=",")
    images, labels = change((values[:, 1:].astype(np.uint8), values[:, 0].astype(np.uint8)))
    lines = (",".join(map(str, row)) for row in np.column_stack([labels, images]).tolist())
    path.write_bytes(header + "".join(f"{line}\n" for line in lines).encode())


def run(csvs: dict[Split, CsvSplit], artifacts: Path) -> tuple[dict[Split, ValidatedSplit], PreparedData]:
    train = validate.fn(ingest.fn(csvs["train"], NAME, artifacts), NAME, artifacts)
    test = validate.fn(ingest.fn(csvs["test"], NAME, artifacts), NAME, artifacts, train)
    return {"train": train, "test": test}, prepare.fn(train, test, NAME, 100, 7, artifacts)


def bytes_used(folder: Path) -> int:
    """Return the bytes of all files, those with several hard links once."""
    found = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return sum({(status.st_dev, status.st_ino): status.st_size for status in found}.values())


def outputs(artifacts: Path) -> dict[str, set[Path]]:
    return {folder: set((artifacts / folder).glob("[0-9a-f]*")) for folder in ("data", "scans", "prepared")}


@pytest.fixture
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.validate.write_data_docs", lambda artifacts_dir, *_: artifacts_dir / "index.html")


pytestmark = pytest.mark.usefixtures("_without_pages")


def test_eight_shards_are_one_file(
    tmp_path: Path, sample_data: dict[Split, ValidatedSplit], sample_prepared: PreparedData
) -> None:
    data, prepared = run({split: shards_of(tmp_path / "csv", split, 8) for split in SPLITS}, tmp_path / "artifacts")
    for split, validated in data.items():
        one = sample_data[split]
        assert (len(validated.data.parts), len(one.data.parts)) == (8, 1)
        assert validated.data.content == one.data.content
        assert (validated.checks, validated.warnings, validated.duplicates) == (
            one.checks,
            one.warnings,
            one.duplicates,
        )
        for name in ("profile.json", "sketches.npz"):
            assert (validated.record.path / name).read_bytes() == (one.record.path / name).read_bytes()
    assert prepared.sha256 == sample_prepared.sha256
    for split in ("train", "validation", "test"):
        opened, one_file = (open_split(each.record.path, split) for each in (prepared, sample_prepared))
        np.testing.assert_array_equal(opened.images[:], one_file.images[:])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(inverted, "the images look inverted", id="inverted"),
        pytest.param(transposed, "the images look transposed", id="transposed"),
        pytest.param(mirrored, "the images look mirrored left to right", id="mirrored"),
        pytest.param(on_labels(np.random.default_rng(0).permutation), "the labels look shuffled", id="labels"),
        pytest.param(on_images(lambda images: images[:, ::-1].cumsum(axis=1)), "another dataset", id="other images"),
    ],
)
def test_a_faulty_shard_is_named(tmp_path: Path, change: Change, fault: str) -> None:
    csv = shards_of(tmp_path / "csv", "train", 4)
    changed(csv.files[2].path, change)
    csv = csv_split("train", [file.path for file in csv.files])
    with pytest.raises(DataContractError) as error:
        validate.fn(ingest.fn(csv, NAME, tmp_path / "artifacts"), NAME, tmp_path / "artifacts")
    (line,) = (line for line in str(error.value).splitlines() if "faulty_chunks" in line)
    assert f"rows 1 to 250 of {NAME}_train-002.csv: " in line
    assert fault in line
    assert not any(f"{NAME}_train-{other:03}.csv:" in line for other in (0, 1, 3))


def test_shards_with_repeated_and_leaked_rows_are_named(tmp_path: Path) -> None:
    csv = shards_of(tmp_path / "csv", "train", 10)
    first = csv.files[0].path
    first.with_name(f"{NAME}_train-copy.csv").write_bytes(first.read_bytes())
    header = first.read_bytes().splitlines(keepends=True)[0]
    first.with_name(f"{NAME}_train-leak.csv").write_bytes(header + b"".join(lines_of("test")[:15]))
    train_csv = csv_split("train", sorted(first.parent.glob("*.csv")))
    train = validate.fn(ingest.fn(train_csv, NAME, tmp_path / "artifacts"), NAME, tmp_path / "artifacts")
    (repeated,) = (line for line in train.warnings if line.startswith("repeated_images"))
    assert f"100 in {NAME}_train-copy.csv; the earlier rows: 100 in {NAME}_train-000.csv" in repeated
    test_csv = shards_of(tmp_path / "csv", "test", 2)
    test = validate.fn(ingest.fn(test_csv, NAME, tmp_path / "artifacts"), NAME, tmp_path / "artifacts", train)
    (leak,) = (line for line in test.warnings if line.startswith("test_images_in_train"))
    assert f"15 in {NAME}_test-000.csv; in train, 15 in {NAME}_train-leak.csv" in leak


def test_other_libraries_read_the_folder_of_a_split(tmp_path: Path) -> None:
    split = ingest.fn(shards_of(tmp_path / "csv", "test", 3), NAME, tmp_path / "artifacts")
    assert [part.source for part in split.parts] == [f"{NAME}_test-00{place}.csv" for place in range(3)]
    table = ds.dataset(split.path, format="parquet").to_table()
    assert (table.num_rows, table.num_columns) == (200, 785)
    assert pd.read_parquet(split.path).equals(table.to_pandas())


def test_a_corrected_and_an_added_shard_cost_themselves_alone(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    csvs = {split: shards_of(tmp_path / "csv", split, 4) for split in SPLITS}
    run(csvs, artifacts)
    before = outputs(artifacts)
    second, last = (csvs["train"].files[place].path for place in (1, 3))
    header, first, *rows = second.read_bytes().splitlines(keepends=True)
    second.write_bytes(header + b"".join(rows))
    added = last.with_name(f"{NAME}_train-004.csv")
    added.write_bytes(header + first)
    paths = [*(file.path for file in csvs["train"].files), added]
    data, _ = run({**csvs, "train": csv_split("train", paths)}, artifacts)
    assert data["train"].data.rows == 1_000
    new = {folder: len(paths - before[folder]) for folder, paths in outputs(artifacts).items()}
    # Two shards each, and the folder of the split, which links to the others.
    assert new == {"data": 3, "scans": 2, "prepared": 3}


def test_a_renamed_shard_is_the_same_shard(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    csv = shards_of(tmp_path / "csv", "test", 2)
    before = ingest.fn(csv, NAME, artifacts)
    paths = [file.path.rename(file.path.with_name(f"{NAME}_test-z{place}.csv")) for place, file in enumerate(csv.files)]
    after = ingest.fn(csv_split("test", paths), NAME, artifacts)
    assert (after.content, [part.source for part in after.parts]) == (before.content, [path.name for path in paths])
    shards = [read_record(split.record.path)["facts"]["shards"] for split in (before, after)]
    assert shards[0] == shards[1]
    assert len(list((artifacts / "data").glob("[0-9a-f]*"))) == 4  # two shards and two splits


def test_removing_a_split_leaves_its_shards(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    split = ingest.fn(shards_of(tmp_path / "csv", "test", 2), NAME, artifacts)
    (shard, *_) = (artifacts / "data").glob("*/part.parquet")
    assert shard.stat().st_nlink == 2
    for part in split.parts:
        part.path.unlink()
    assert ds.dataset(shard, format="parquet").count_rows() == 100


def test_garbage_collection_keeps_the_shards_of_a_kept_version(tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    csvs = {split: shards_of(tmp_path / "csv", split, 3) for split in SPLITS}
    data, prepared = run(csvs, artifacts)
    records = [prepared.record, *(record for split in data.values() for record in (split.data.record, split.record))]
    lineage = [record.model_dump(mode="json", exclude={"path"}) for record in records]
    add_promoted(ModelStore.of(artifacts, NAME).root, lineage=lineage)
    kept = outputs(artifacts)
    first = csvs["train"].files[0].path
    content = first.read_bytes()
    first.write_bytes(content + content.splitlines(keepends=True)[1])
    run({**csvs, "train": csv_split("train", [file.path for file in csvs["train"].files])}, artifacts)
    assert outputs(artifacts) != kept
    used = bytes_used(artifacts)
    planned = plan(artifacts, NAME)
    removed = collect(artifacts, NAME)
    assert outputs(artifacts) == kept
    # The records of a split are its own. Its rows are those of the shards: only the changed one is freed.
    assert removed.bytes == planned.bytes == used - bytes_used(artifacts)
