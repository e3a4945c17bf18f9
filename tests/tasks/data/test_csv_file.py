"""A CSV that cannot be read, has no end, or changes while it is read is rejected."""

import hashlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataContractError
from schemas.references import CsvSplit
from tasks.data import csv_reader, csv_to_parquet
from tasks.data.csv_reader import CsvRows, open_csv
from tasks.data.data_folder import folder_digest
from tasks.data.parquet_split import ingest_csv
from tasks.ingest import ingest
from tests.faulty_files import unstable_inodes
from tests.field_faults import field_fault
from tests.registered import register
from tests.tasks.data.csv_cases import BODY, GOOD, GZIP, HEADER, REGISTERED, TINY
from tests.tasks.data.csv_oracle import QUARANTINE, TARGET, ingest_again, supplied
from tests.tasks.data.published import CONTRACT, TEST, TRAIN, supply


def overwrite(source: Path) -> None:
    """Change a byte that was read already. The size stays."""
    with source.open("r+b") as file:
        file.seek(len(HEADER))
        file.write(b"8")


def rename_over(source: Path) -> None:
    other = source.with_name("other")
    other.write_bytes(source.read_bytes().replace(b"9,0,", b"8,0,"))
    other.rename(source)


CHANGES = [overwrite, rename_over, Path.unlink]


def change_after(monkeypatch: pytest.MonkeyPatch, read: Path, change: Callable[[Path], Any], changed: Path) -> None:
    """Change the file ``changed`` once `ingest_csv` has all rows of the file ``read``."""

    @contextmanager
    def open_and_change(source: Path, *args: Any, **options: Any) -> Iterator[CsvRows]:
        with open_csv(source, *args, **options) as rows:
            yield rows
            if source == read:
                change(changed)

    monkeypatch.setattr(csv_to_parquet, "open_csv", open_and_change)


def two_shards(folder: Path) -> CsvSplit:
    for name in ("tiny-1.csv", "tiny-2.csv"):
        (folder / name).write_bytes(GOOD)
    return supplied(folder / "tiny-1.csv", folder / "tiny-2.csv")


@pytest.mark.parametrize(
    "content", [GOOD, GOOD.replace(b"200", b"x"), GZIP, b"other"], ids=["good", "bad row", "gzip", "no CSV"]
)
def test_rejects_a_file_that_changed_since_it_was_hashed(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "tiny.csv"
    source.write_bytes(b"before")
    csv = supplied(source)
    source.write_bytes(content)
    with pytest.raises(DataContractError, match=r"changed.*expected sha256 \w+, received") as caught:
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY, "100%")
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.csv"]


@pytest.mark.parametrize("content", [GOOD * 9, GOOD * 9 + b"x\n"], ids=["good", "bad"])
def test_rejects_a_file_that_grows_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 50)
    source = tmp_path / "images.csv"
    source.write_bytes(content)
    with (
        pytest.raises(DataContractError, match=r"images\.csv changed while it was read"),
        open_csv(source, TINY) as rows,
    ):
        next(iter(rows))
        with source.open("ab") as file:
            file.write(BODY)
        list(rows)


@pytest.mark.parametrize("change", CHANGES)
def test_rejects_a_file_that_changes_after_its_last_row(tmp_path: Path, change: Callable[[Path], None]) -> None:
    source = tmp_path / "images.csv"
    source.write_bytes(GOOD)
    for digest in (None, hashlib.sha256(GOOD).hexdigest()):
        source.write_bytes(GOOD)
        with (
            pytest.raises(DataContractError, match="changed while it was read"),
            open_csv(source, TINY, expected_sha256=digest) as rows,
        ):
            list(rows)
            change(source)


@pytest.mark.parametrize("bad_rows", ["0", "100%"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_has_no_output_and_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], bad_rows: str
) -> None:
    source = tmp_path / "tiny.csv"
    source.write_bytes(GOOD + b"x\n")
    csv = supplied(source)
    change_after(monkeypatch, source, change, source)
    with pytest.raises(DataContractError, match=r"tiny\.csv changed while it was read"):
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY, bad_rows)
    assert not (tmp_path / TARGET).exists()
    assert not (tmp_path / QUARANTINE).exists()


@pytest.mark.parametrize("change", CHANGES)
def test_rejects_a_shard_that_changes_while_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    csv = two_shards(tmp_path)
    change_after(monkeypatch, csv.files[1].path, change, csv.files[0].path)
    with pytest.raises(DataContractError, match=r"tiny-1\.csv changed while it was read"):
        ingest_csv(csv, tmp_path / TARGET, tmp_path / QUARANTINE, TINY)
    assert not (tmp_path / TARGET).exists()


def test_rejects_a_reused_shard_that_changes_while_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, tmp_path / "datasets", REGISTERED)
    artifacts = tmp_path / "artifacts"
    first, second = (file.path for file in two_shards(tmp_path).files)
    second.write_bytes(GOOD + BODY)
    csv = supplied(first, second)
    assert ingest.fn(supplied(first), "tiny", artifacts).rows == 3
    change_after(monkeypatch, second, overwrite, first)
    with pytest.raises(DataContractError, match=r"tiny-1\.csv changed while it was read"):
        ingest.fn(csv, "tiny", artifacts)


def test_accepts_a_file_that_is_rewritten_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv = two_shards(tmp_path)
    for file in csv.files:
        change_after(monkeypatch, csv.files[1].path, lambda path: path.write_bytes(GOOD), file.path)
        assert ingest_again(csv, tmp_path, TINY).rows == 6


def test_an_error_in_the_header_is_not_taken_for_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK_BYTES", 40)
    (tmp_path / "tiny.csv").write_bytes(b"x" + GOOD)
    with pytest.raises(DataContractError, match="line 1, column label"):
        ingest_csv(supplied(tmp_path / "tiny.csv"), tmp_path / TARGET, tmp_path / QUARANTINE, TINY)


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("create", "kind"),
    [(os.mkfifo, "a pipe"), (lambda path: path.symlink_to("/dev/zero"), "a device"), (bind_socket, "a socket")],
    ids=["pipe", "device", "socket"],
)
def test_rejects_a_stream_before_it_is_opened(tmp_path: Path, create: Callable[[Path], None], kind: str) -> None:
    create(tmp_path / "images.csv")
    with (
        pytest.raises(DataContractError, match=rf"images\.csv is not a file\. Expected a CSV, received {kind}"),
        open_csv(tmp_path / "images.csv", TINY),
    ):
        pass


def test_rejects_a_file_without_read_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        source = Path(folder) / "tiny.csv"
        source.write_bytes(GOOD)
        csv = supplied(source)
        source.chmod(0)
        root = os.geteuid() == 0
        if root:  # root may read every file
            os.seteuid(65534)
        try:
            with pytest.raises(DataContractError, match=r"tiny\.csv cannot be read \(Permission denied\)"):
                ingest_csv(csv, Path(folder) / TARGET, Path(folder) / QUARANTINE, TINY)
        finally:
            if root:
                os.seteuid(0)
        assert [path.name for path in Path(folder).iterdir()] == ["tiny.csv"]


@field_fault(
    "identity by something that changes",
    "A file system gives a file another inode number at each call",
    "The CSV is read, its folder has a digest, and its output is not taken for its input",
)
def test_unstable_inodes_are_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "tiny.csv"
    source.write_bytes(GOOD)
    with unstable_inodes(monkeypatch):
        with open_csv(source, TINY) as rows:
            assert sum(map(len, rows)) == 3
        assert ingest_csv(supplied(source), tmp_path / TARGET, tmp_path / QUARANTINE, TINY).rows == 3
        supply(tmp_path / "data", TRAIN, TEST)
        assert folder_digest(CONTRACT, tmp_path / "data") is not None


@pytest.mark.parametrize(
    ("content", "accepted"),
    [(GOOD, True), (GOOD.replace(b"9,0,", b"8,0,"), False), (GOOD + BODY, False)],
    ids=["the same", "another", "longer"],
)
@field_fault(
    "identity by something that changes",
    "A CSV is replaced by a copy with the same size and time while it is read",
    "The same content is accepted, and other content is rejected by its digest",
)
def test_a_copy_with_the_time_of_the_original_is_compared(tmp_path: Path, content: bytes, accepted: bool) -> None:
    source, copy = tmp_path / "tiny.csv", tmp_path / "copy"
    source.write_bytes(GOOD)
    copy.write_bytes(content)
    for path in (source, copy):
        os.utime(path, (1, 1))
    expected = nullcontext() if accepted else pytest.raises(DataContractError, match="changed while it was read")
    with expected, open_csv(source, TINY) as rows:
        copy.rename(source)
        list(rows)
