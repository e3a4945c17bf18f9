"""Stage outputs and files in object storage. The stores are real ones of obstore: in memory and in a folder."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from schemas.config import PROJECT_ROOT, as_address, remote_address
from schemas.errors import DataContractError, ExtraNotInstalled, RemoteUnavailable, StoredArtifactError, WrongUsage
from schemas.layout import RECORD_NAME
from schemas.references import CsvFile, CsvSplit, ParquetPart, ParquetSplit, StageRecord, ValidatedSplit
from tasks.runtime.materialize import file_here, materialize, send_csv
from tasks.runtime.remote import SECONDS_UNUSED, Remote, configured_remote, file_name, remote_at
from tasks.runtime.stage_cache import record_name, run_stage
from tasks.runtime.stages import INGEST, PREPARE, VALIDATE
from tests.remote.outputs import never


@pytest.fixture
def remote() -> Remote:
    return Remote("memory", MemoryStore())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that is the object storage of every machine of a test."""
    monkeypatch.setenv("FASHION_ANN_REMOTE", f"file://{tmp_path}/remote")
    return tmp_path / "remote"


def built(text: str = "made") -> Any:
    def build(output: Path) -> dict[str, Any]:
        (output / "part").mkdir()
        (output / "part" / "output.txt").write_text(text)
        return {"length": len(text)}

    return build


def content(path: Path) -> str:
    return (path / "part" / "output.txt").read_text()


# --- objects ---------------------------------------------------------------------------------------------------------


def test_an_object_is_created_once(remote: Remote) -> None:
    assert remote.create("line", b"first")
    assert not remote.create("line", b"second")
    assert remote.create("line", b"first")  # a repeated request whose answer was lost
    assert remote.read("line") == b"first"
    assert remote.read("missing") is None


def test_one_of_sixteen_racers_creates_an_object(tmp_path: Path) -> None:
    remote = Remote("folder", LocalStore(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda racer: remote.create("line", str(racer).encode()), range(16)))
    assert sum(won) == 1
    assert remote.read("line") == str(won.index(True)).encode()


@pytest.mark.parametrize("size", [0, 5, 100, 501])
def test_a_file_is_fetched_in_pieces(
    remote: Remote, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.runtime.remote.PIECE", 100)
    (tmp_path / "a").write_bytes(os.urandom(size))
    sha256 = hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    remote.push_file(tmp_path / "a", sha256)
    remote.fetch_file(sha256, size, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_file_is_stored_once_and_a_damaged_one_again(tmp_path: Path) -> None:
    store = MemoryStore()
    remote = Remote("memory", store)
    path, sha256 = tmp_path / "a", hashlib.sha256(b"abc").hexdigest()
    path.write_bytes(b"abc")
    remote.push_file(path, sha256)
    first = remote.stat(file_name(sha256))
    remote.push_file(path, sha256)
    assert remote.stat(file_name(sha256)) == first
    for damaged, fault in ((b"ab", "expected an object of 3 bytes, received one of 2"), (b"abd", "expected content")):
        obstore.put(store, file_name(sha256), damaged)
        with pytest.raises(StoredArtifactError, match=fault):
            remote.fetch_file(sha256, 3, tmp_path / "b")
        remote.push_file(path, sha256)
        assert remote.read(file_name(sha256)) == b"abc"


def test_an_object_larger_than_expected_is_not_read(remote: Remote) -> None:
    remote.write("record", b"x" * 11)
    with pytest.raises(StoredArtifactError, match="expected at most 10 bytes, received 11"):
        remote.read("record", largest=10)


def test_a_folder_that_cannot_be_created_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_REMOTE", "file:///proc/remote")  # also root creates nothing there
    with pytest.raises(RemoteUnavailable, match="cannot be created"):
        configured_remote()


def test_an_address_that_does_not_answer_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.runtime.remote.RETRY_SECONDS", 0.3)
    for name, value in (("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_SECRET_ACCESS_KEY", "a-secret")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    remote = remote_at.__wrapped__("s3://bucket/prefix")
    with pytest.raises(RemoteUnavailable, match=r"cannot read a .*Connection refused") as raised:
        remote.read("a")
    assert "a-secret" not in str(raised.value)
    assert raised.value.__suppress_context__  # the text of its cause contains the signed request


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("gs://bucket", "gs://bucket"),
        ("az://container/a", "az://container/a"),
        ("file:///folder/a", "file:///folder/a"),
        (Path("file:///folder/a"), "file:///folder/a"),
        ("/folder/s3", None),
        ("s3", None),
    ],
)
def test_addresses_are_recognized(place: str | Path, address: str | None) -> None:
    assert as_address(place) == address


@pytest.mark.parametrize("address", ["s3://key:secret@bucket/a", "az://container/a?sig=secret"])
def test_credentials_in_an_address_are_rejected_and_not_shown(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_REMOTE", address)
    with pytest.raises(WrongUsage, match="credentials") as raised:
        remote_address()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("address", ["ftp://host/a", "bucket", "/folder", "s3:/bucket", "s3:///a", "s3://", "file://a"])
def test_another_address_is_wrong_usage(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_REMOTE", address)
    with pytest.raises(WrongUsage, match="expected s3://BUCKET/PREFIX"):
        configured_remote()


@pytest.mark.parametrize("place", ["s3:///a", "file://host/a"])
def test_an_address_without_a_bucket_is_no_path(place: str) -> None:
    with pytest.raises(WrongUsage, match="Expected s3://BUCKET/PREFIX"):
        as_address(place)


@pytest.mark.parametrize("address", ["ftp://key:secret@host/a", "ftp://host/a?secret"])
def test_credentials_in_a_wrong_address_are_not_shown(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_REMOTE", address)
    with pytest.raises(WrongUsage) as raised:
        remote_address()
    assert "secret" not in str(raised.value)


def test_a_file_in_place_of_the_folder_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/folder"):
        monkeypatch.setenv("FASHION_ANN_REMOTE", f"file://{tmp_path}/{place}")
        with pytest.raises(WrongUsage, match="expected a folder"):
            configured_remote()


def test_without_the_extra_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ExtraNotInstalled, match=r"requirements/remote\.lock"):
        remote_at.__wrapped__("s3://bucket/a")


def test_without_the_variable_obstore_is_not_imported(tmp_path: Path) -> None:
    program = (
        "import sys; import cli.main, tasks.runtime.materialize\n"
        "from pathlib import Path; from tasks.registry.store import ModelStore\n"
        f"ModelStore.of(Path({str(tmp_path)!r}), 'fashion-mnist').refresh().summaries()\n"
        "assert 'obstore' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- stage outputs ---------------------------------------------------------------------------------------------------


def test_another_machine_fetches_an_output(folder: Path, tmp_path: Path) -> None:
    first, facts = run_stage(tmp_path / "a", PREPARE, {"data": "abc"}, built())
    second, again = run_stage(tmp_path / "b", PREPARE, {"data": "abc"}, never)
    assert (second.reused, second.digest, again) == (True, first.digest, facts)
    assert content(second.path) == "made"


def test_an_output_that_the_remote_lacks_is_stored_by_the_next_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.delenv("FASHION_ANN_REMOTE")
        run_stage(tmp_path / "a", PREPARE, {}, built())
    run_stage(tmp_path / "a", PREPARE, {}, never)
    run_stage(tmp_path / "b", PREPARE, {}, never)


def test_an_output_is_kept_if_the_remote_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remote").mkdir()
    monkeypatch.setenv("FASHION_ANN_REMOTE", f"file://{tmp_path}/remote")

    def build(output: Path) -> dict[str, Any]:
        (tmp_path / "remote" / "files").write_text("no folder")  # as a full disk: nothing can be stored
        return dict(built()(output))

    with pytest.raises(RemoteUnavailable, match=r"cannot (write|look up) files/"):
        run_stage(tmp_path / "a", PREPARE, {}, build)
    assert not list((tmp_path / "remote").rglob("stage.json"))  # nothing is half visible
    (tmp_path / "remote" / "files").unlink()
    assert run_stage(tmp_path / "a", PREPARE, {}, never)[0].reused
    assert run_stage(tmp_path / "b", PREPARE, {}, never)[0].reused


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "record"])
def test_a_damaged_output_in_the_remote_is_built_and_stored_again(folder: Path, tmp_path: Path, damage: str) -> None:
    run_stage(tmp_path / "a", PREPARE, {}, built())
    (stored,) = (path for path in (folder / "files").rglob("*") if path.is_file())
    if damage == "missing":
        stored.unlink()
    elif damage == "record":
        (path,) = folder.rglob("stage.json")
        path.write_text(path.read_text().replace('"length": 4', '"length": 5'))
    else:
        stored.write_text("mad" if damage == "truncated" else "mude")
    again, _ = run_stage(tmp_path / "b", PREPARE, {}, built())
    assert not again.reused
    third, facts = run_stage(tmp_path / "c", PREPARE, {}, never)
    assert (content(third.path), facts) == ("made", {"length": 4})


def test_a_record_that_leads_out_of_the_output_is_not_followed(folder: Path, tmp_path: Path) -> None:
    run_stage(tmp_path / "a", PREPARE, {}, built())
    (path,) = folder.rglob("stage.json")
    path.write_text(path.read_text().replace("part/output.txt", "../../outside"))
    again, _ = run_stage(tmp_path / "b", PREPARE, {}, built())
    assert not again.reused
    assert not list(tmp_path.rglob("outside"))


def test_an_old_record_is_written_again_when_it_is_used(folder: Path, tmp_path: Path) -> None:
    run_stage(tmp_path / "a", PREPARE, {}, built())
    (path,) = folder.rglob("stage.json")
    for age, written in ((60, False), (SECONDS_UNUSED / 2, True)):
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        before = path.stat().st_mtime
        run_stage(tmp_path / "b", PREPARE, {}, never)
        assert (path.stat().st_mtime > before) == written


# --- references ------------------------------------------------------------------------------------------------------


def _validated(artifacts: Path) -> ValidatedSplit:
    data, _ = run_stage(INGEST.outputs(artifacts), INGEST, {"csv": "c", "split": "train"}, built("data"))
    record, _ = run_stage(data.path / "validation", VALIDATE, {"data": "d", "split": "train"}, built("result"))
    source = CsvSplit.model_validate(
        {"split": "train", "origin": "supplied", "files": [{"path": "/data/train.csv", "sha256": "0" * 64}]}
    )
    part = ParquetPart(source="train.csv", path=data.path / "part" / "output.txt", sha256="0" * 64, rows=1)
    parquet = ParquetSplit(
        record=data,
        split="train",
        path=data.path / "part",
        content="0" * 64,
        parts=(part,),
        rows=1,
        quarantined=0,
        origin="supplied",
        source=source,
    )
    return ValidatedSplit(
        record=record,
        data=parquet,
        result=record.path / "part" / "output.txt",
        expectations=1,
        checks=(),
        warnings=(),
        duplicates=None,
    )


def test_a_reference_is_brought_to_another_machine(folder: Path, tmp_path: Path) -> None:
    there = _validated(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "gone")
    here = materialize(there, tmp_path / "b")
    assert here.data.files[0].read_text() == "data"
    assert here.data.path == here.data.files[0].parent
    assert here.result.read_text() == "result"
    assert here.record.path == tmp_path / "b" / there.record.path.relative_to(tmp_path / "a")
    assert here.data.source == there.data.source
    assert materialize(here, tmp_path / "b") == here


def test_a_reference_is_returned_as_it_is_without_a_remote(tmp_path: Path) -> None:
    reference = StageRecord(stage="prepare", key="0", digest="0", path=Path("/gone"), reused=False, seconds=1)
    assert materialize(reference, tmp_path) is reference
    assert materialize(None, tmp_path) is None


def test_each_of_two_outputs_for_one_key_is_found_by_its_digest(folder: Path, tmp_path: Path) -> None:
    # A GPU need not give the same weights twice, and two machines may train at once.
    first, _ = run_stage(PREPARE.outputs(tmp_path / "a"), PREPARE, {}, built("one"))
    (path,) = folder.rglob("stage.json")
    hidden = path.rename(path.with_name("hidden"))
    second, _ = run_stage(PREPARE.outputs(tmp_path / "b"), PREPARE, {}, built("two"))
    path.unlink()
    hidden.rename(path)
    run_stage(PREPARE.outputs(tmp_path / "b"), PREPARE, {}, never)  # finds the other one, and stores its own
    assert content(materialize(first, tmp_path / "b").path) == "one"
    (tmp_path / "a").rename(tmp_path / "gone")
    (tmp_path / "b").rename(tmp_path / "gone too")
    assert content(materialize(second, tmp_path / "c").path) == "two"


def test_a_damaged_output_is_stored_again_by_the_machine_that_has_it(folder: Path, tmp_path: Path) -> None:
    record, _ = run_stage(PREPARE.outputs(tmp_path / "a"), PREPARE, {}, built())
    (stored,) = (path for path in (folder / "files").rglob("*") if path.is_file())
    stored.write_text("mad")
    elsewhere = record.model_copy(update={"path": tmp_path / "gone" / record.path.relative_to(tmp_path / "a")})
    with pytest.raises(StoredArtifactError, match=rf"nor intact in .*{stored.name}: expected .* Run again"):
        materialize(elsewhere, tmp_path / "b")
    assert run_stage(PREPARE.outputs(tmp_path / "a"), PREPARE, {}, never)[0].reused
    assert content(materialize(elsewhere, tmp_path / "b").path) == "made"


def test_a_reference_that_no_machine_has_is_an_error(folder: Path, tmp_path: Path) -> None:
    record, _ = run_stage(PREPARE.outputs(tmp_path / "a"), PREPARE, {}, built())
    (tmp_path / "a").rename(tmp_path / "gone")
    (folder / record_name("prepare", record.key)).unlink()
    with pytest.raises(StoredArtifactError, match="neither on this machine nor intact in file://"):
        materialize(record, tmp_path / "b")


@pytest.mark.parametrize("path", ["/etc", "/a/prepared/../../etc", "/a/trained/0123456789abcdef"])
def test_a_path_of_another_output_is_not_followed(folder: Path, tmp_path: Path, path: str) -> None:
    record = StageRecord(stage="prepare", key="f" * 64, digest="0", path=Path(path), reused=False, seconds=1)
    with pytest.raises(StoredArtifactError, match="expected a path of an output of prepare"):
        materialize(record, tmp_path)


def test_a_record_in_the_remote_is_that_of_the_folder(folder: Path, tmp_path: Path) -> None:
    record, _ = run_stage(tmp_path / "a", PREPARE, {}, built())
    stored = folder / record_name("prepare", record.key)
    assert stored.read_bytes() == (record.path / RECORD_NAME).read_bytes()
    assert set(json.loads(stored.read_bytes())["files"]) == {"part/output.txt"}


# --- files of tasks per shard ----------------------------------------------------------------------------------------


@pytest.fixture
def csv(tmp_path: Path) -> CsvFile:
    path = tmp_path / "images.csv"
    path.write_text("label\n1\n")
    return CsvFile(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_file_that_another_machine_sent_is_here_for_a_block(folder: Path, tmp_path: Path, csv: CsvFile) -> None:
    send_csv(csv)
    with file_here(csv, tmp_path, None) as here:
        assert here == csv
    csv.path.write_text("label\n2\n")  # an older copy on this machine, of the same size
    (tmp_path / "here").mkdir()
    with file_here(csv, tmp_path / "here", tmp_path / "artifacts of the run") as here:
        assert here == csv  # is not hashed on the disk of the run
    with file_here(csv, tmp_path / "here", None) as here:
        assert here.path == tmp_path / "here" / "images.csv"
        assert here.path.read_text() == "label\n1\n"
    assert not here.path.exists()


def test_a_changed_csv_is_not_sent(folder: Path, csv: CsvFile) -> None:
    csv.path.write_text("label\n2\n")
    with pytest.raises(DataContractError, match=r"images\.csv changed since it was hashed"):
        send_csv(csv)
    assert not list(folder.rglob(csv.sha256))


def test_a_file_that_is_nowhere_is_an_error(folder: Path, tmp_path: Path, csv: CsvFile) -> None:
    csv.path.unlink()
    with (
        pytest.raises(StoredArtifactError, match="neither on this machine nor in file://"),
        file_here(csv, tmp_path, None),
    ):
        pass
