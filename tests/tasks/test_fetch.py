import csv
import dataclasses
import gzip
import hashlib
import io
import json
import logging
import os
import re
import signal
import socket
import stat
import struct
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from schemas.contract import DIGITS, FASHION_MNIST, SPLITS, DatasetContract, IdxFile, PublishedSplit, Split
from schemas.errors import DataContractError, DataUnavailable
from tasks.data.download import Limits, SourceError, download
from tasks.data.published_data import fetch_data
from tasks.data.sources import (
    DebianPackage,
    IdxFolder,
    IdxMirror,
    KaggleZip,
    Source,
    default_sources,
    extract,
    read_idx,
    rows_digest,
    write_csv,
)
from tasks.fetch import fetch
from tests.processes.kill import wait_until_gone

Rows = npt.NDArray[np.uint8]
QUICK = Limits(connect_seconds=0.5, silence_seconds=0.5, floor=20_000, command_seconds=1)
TRAIN, TEST = "fashion-mnist_train.csv", "fashion-mnist_test.csv"
RECORD = "fashion-mnist.source.json"


# --- a dataset of 200 + 100 images of 6 x 5 pixels, published as Fashion-MNIST is ---


@dataclasses.dataclass(frozen=True)
class Published:
    contract: DatasetContract
    rows: Mapping[Split, Rows]
    files: Mapping[str, bytes]  # name of a .gz -> its bytes


def idx(array: Rows) -> bytes:
    magic = {1: 2049, 3: 2051}[array.ndim]
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def publish(seed: int) -> Published:
    random = np.random.default_rng(seed)
    rows: dict[Split, Rows] = {}
    files: dict[str, bytes] = {}
    published: dict[Split, PublishedSplit] = {}
    for split, count in (("train", 200), ("test", 100)):
        images = random.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        images[:, 0, 0] = 0  # numbers of one digit, too
        labels = random.integers(0, 10, count, dtype=np.uint8)
        names = FASHION_MNIST.published[split]
        described = {}
        for kind, array in (("images", images), ("labels", labels)):
            name = getattr(names, kind).name
            files[name] = gzip.compress(idx(array), mtime=0)
            described[kind] = IdxFile(name, len(files[name]), sha256(files[name]), sha256(idx(array)))
        rows[split] = np.array([[label, *image.ravel()] for label, image in zip(labels, images, strict=True)], np.uint8)
        digests = sorted(hashlib.sha256(bytes(row.tolist())).digest() for row in rows[split])
        published[split] = PublishedSplit(rows=count, **described, rows_sha256=sha256(b"".join(digests)))
    contract = dataclasses.replace(FASHION_MNIST, height=6, width=5, published=published)
    return Published(contract, rows, files)


GOOD = publish(0)
OTHER = publish(1)  # same names, same shapes, other images: what plain MNIST is to Fashion-MNIST
CONTRACT = GOOD.contract
TRAIN_IMAGES = CONTRACT.published["train"].images.name
TEST_LABELS = CONTRACT.published["test"].labels.name


def as_csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CONTRACT.columns)
    writer.writerows(rows.tolist())
    return text.getvalue().encode()


def as_zip(members: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def kaggle_members() -> dict[str, bytes]:
    """Kaggle's rows come in another order, and IDX files lie beside them."""
    csvs = {CONTRACT.csv_name(split): as_csv(GOOD.rows[split][::-1]) for split in SPLITS}
    return {**csvs, "train-images-idx3-ubyte": gzip.decompress(GOOD.files[TRAIN_IMAGES])}


def idx_folder(folder: Path, files: Mapping[str, bytes]) -> IdxFolder:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return IdxFolder(folder)


# --- a real server ---

Answer = bytes | Callable[[BaseHTTPRequestHandler], None]


@dataclasses.dataclass
class Server:
    address: str
    answers: dict[str, Answer]
    asked: list[str]

    def mirror(self, files: Mapping[str, Answer], folder: str = "") -> IdxMirror:
        self.answers.update({f"{folder}/{name}": answer for name, answer in files.items()})
        return IdxMirror(self.address + folder)

    def kaggle(self, answer: Answer) -> KaggleZip:
        self.answers["/download"] = answer
        return KaggleZip(f"{self.address}/download")


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(self.path)
            answer = here.answers.get(self.path)
            if answer is None:
                self.send_error(404)
            elif callable(answer):
                # Who was given up on is hung up on.
                try:
                    answer(self)
                except OSError:
                    self.close_connection = True
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...

    with Quiet(("127.0.0.1", 0), Handler) as running:
        here = Server(f"http://127.0.0.1:{running.server_port}", {}, [])
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield here
        running.shutdown()
        thread.join()


def truncated(content: bytes, *, declared: bool) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if declared:
            handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])

    return answer


def dribbled(content: bytes, seconds: float) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for byte in content:
            handler.wfile.write(bytes([byte]))
            time.sleep(seconds)

    return answer


def stalled(content: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:10])
        time.sleep(1)

    return answer


def header_byte_by_byte(handler: BaseHTTPRequestHandler) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Long: " + b"x" * 40:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def unpacked_on_the_way(content: bytes) -> Answer:
    return gzip.decompress(content)


def redirected(location: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


# --- what is asked of every outcome ---


def assert_published(data_dir: Path, rows: Mapping[Split, Rows] = GOOD.rows) -> None:
    """Both CSVs hold the published rows, the record says so, and nothing else is left but the lock."""
    assert {path.name for path in data_dir.iterdir()} == {TRAIN, TEST, RECORD, ".fashion-mnist.lock"}
    record = json.loads((data_dir / RECORD).read_bytes())
    for split in SPLITS:
        content = (data_dir / CONTRACT.csv_name(split)).read_bytes()
        assert content == as_csv(rows[split])
        assert record["files"][split] == {"rows": len(rows[split]), "sha256": sha256(content)}


def refusal(data_dir: Path, *sources: Source) -> str:
    """Why nothing was fetched; the data folder is left without a trace."""
    with pytest.raises(DataUnavailable) as caught:
        fetch_data(CONTRACT, data_dir, sources)
    assert [path.name for path in data_dir.iterdir()] == [".fashion-mnist.lock"]
    return str(caught.value)


class Never:
    name = "a source that nobody should ask"

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        raise AssertionError("asked")


# --- supplied files ---


def supply(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize("names", [(TRAIN, TEST), (f"{TRAIN}.gz", f"{TEST}.gz"), (TRAIN, f"{TEST}.gz")])
def test_supplied_files_are_used_as_they_lie_there(tmp_path: Path, names: tuple[str, str]) -> None:
    supply(tmp_path, *names)
    files = fetch_data(CONTRACT, tmp_path, [Never()])
    for split, name in zip(SPLITS, names, strict=True):
        assert files[split].model_dump() == {
            "split": split,
            "files": ({"path": tmp_path / name, "sha256": sha256(name.encode())},),
            "origin": "supplied",
        }
        assert files[split].sha256 == sha256(name.encode())


def test_nothing_is_written_beside_supplied_files(tmp_path: Path) -> None:
    supply(tmp_path, TRAIN, TEST)
    fetch_data(CONTRACT, tmp_path, [Never()])
    assert {path.name for path in tmp_path.iterdir()} == {TRAIN, TEST}


def test_a_relative_folder_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supply(tmp_path / "here", TRAIN, TEST)
    monkeypatch.chdir(tmp_path)
    assert fetch_data(CONTRACT, Path("here"))["train"].files[0].path == tmp_path / "here" / TRAIN


@pytest.mark.parametrize(("there", "missing"), [(TRAIN, TEST), (TEST, TRAIN), (f"{TRAIN}.gz", TEST)])
def test_one_supplied_split_alone_is_refused_and_the_missing_one_named(
    tmp_path: Path, there: str, missing: str
) -> None:
    supply(tmp_path, there)
    with pytest.raises(DataUnavailable, match=f"holds {there} but not {missing}"):
        fetch_data(CONTRACT, tmp_path, [Never()])
    assert (tmp_path / there).read_bytes() == there.encode()


def test_a_split_both_plain_and_packed_is_refused(tmp_path: Path) -> None:
    supply(tmp_path, TRAIN, f"{TRAIN}.gz", TEST)
    with pytest.raises(DataContractError, match="remove the one"):
        fetch_data(CONTRACT, tmp_path, [Never()])


SHARDS = ("fashion-mnist_train-10.csv", "fashion-mnist_train-2.csv.gz", "fashion-mnist_train-b a.csv")


def test_shards_are_found_packed_or_not_in_the_order_of_their_names(tmp_path: Path) -> None:
    # Names that only look like shards: still being written, hidden, of another suffix, of another split.
    others = ("fashion-mnist_train-1.csv.part", ".fashion-mnist_train-1.csv", "fashion-mnist_train-1.txt")
    supply(tmp_path, *reversed(SHARDS), *others, "fashion-mnist_training-1.csv", TEST)
    files = fetch_data(CONTRACT, tmp_path, [Never()])
    assert [file.path for file in files["train"].files] == [tmp_path / name for name in SHARDS]
    assert [file.sha256 for file in files["train"].files] == [sha256(name.encode()) for name in SHARDS]
    assert (files["train"].origin, len(files["test"].files)) == ("supplied", 1)


def test_one_shard_is_a_split(tmp_path: Path) -> None:
    supply(tmp_path, SHARDS[0], TEST)
    assert fetch_data(CONTRACT, tmp_path, [Never()])["train"].sha256 == sha256(SHARDS[0].encode())


@pytest.mark.parametrize("whole", [TRAIN, f"{TRAIN}.gz"])
def test_a_file_beside_shards_of_it_is_refused(tmp_path: Path, whole: str) -> None:
    supply(tmp_path, whole, *SHARDS, TEST)
    with pytest.raises(DataContractError, match=f"holds {whole} and shards of it, {SHARDS[0]} the first of 3"):
        fetch_data(CONTRACT, tmp_path, [Never()])


@pytest.mark.parametrize("name", [b"fashion-mnist_train-\xff.csv", b"fashion-mnist_train-a\nb.csv"])
def test_a_shard_whose_name_cannot_be_printed_is_refused_and_not_left_out(tmp_path: Path, name: bytes) -> None:
    supply(tmp_path, *SHARDS, TEST)
    (tmp_path / os.fsdecode(name)).write_bytes(b"")
    with pytest.raises(DataContractError, match=r"a shard of the name 'fashion-mnist_train-.*\.csv': expected"):
        fetch_data(CONTRACT, tmp_path, [Never()])


def test_a_shard_both_plain_and_packed_is_refused(tmp_path: Path) -> None:
    supply(tmp_path, *SHARDS, f"{SHARDS[0]}.gz", TEST)
    with pytest.raises(DataContractError, match=f"holds both {SHARDS[0]} and {SHARDS[0]}.gz"):
        fetch_data(CONTRACT, tmp_path, [Never()])


def test_shards_of_one_split_alone_are_refused_and_the_missing_one_named(tmp_path: Path) -> None:
    supply(tmp_path, *SHARDS)
    with pytest.raises(DataUnavailable, match=f"holds {SHARDS[0]} but not {TEST}"):
        fetch_data(CONTRACT, tmp_path, [Never()])


@pytest.mark.parametrize("name", [TRAIN, f"{TEST}.gz", "fashion-mnist_train-1.csv"])
def test_a_folder_named_like_a_csv_breaks_the_contract(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataContractError, match="received a folder") as caught:
        fetch_data(CONTRACT, tmp_path, [Never()])
    assert caught.value.exit_status == 3


def test_what_has_to_be_there_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"holds no CSV of fashion-mnist.*and fetches none"):
        fetch.fn("fashion-mnist", tmp_path, present_alone=True)
    assert not list(tmp_path.glob("*.csv"))


def test_a_link_to_nothing_and_a_pipe_break_the_contract(tmp_path: Path) -> None:
    (tmp_path / TRAIN).symlink_to(tmp_path / "gone")
    with pytest.raises(DataContractError, match="link to nothing"):
        fetch_data(CONTRACT, tmp_path, [Never()])
    (tmp_path / TRAIN).unlink()
    os.mkfifo(tmp_path / TRAIN)
    with pytest.raises(DataContractError, match="a pipe"):
        fetch_data(CONTRACT, tmp_path, [Never()])


def test_a_file_that_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supply(tmp_path, TRAIN, TEST)

    # Tests may run as root, who may read everything.
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tasks.data.data_folder.sha256_file", refuse)
    with pytest.raises(DataContractError, match=rf"{tmp_path / TRAIN} cannot be read \(Permission denied\)"):
        fetch_data(CONTRACT, tmp_path, [Never()])


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"files": 3}',
        b'{"files": {"train": "x"}}',
        b'{"files": {"train": {}}}',
    ],
)
def test_a_broken_record_counts_as_none(tmp_path: Path, record: bytes, caplog: pytest.LogCaptureFixture) -> None:
    supply(tmp_path, TRAIN, TEST)
    (tmp_path / RECORD).write_bytes(record)
    assert {file.origin for file in fetch_data(CONTRACT, tmp_path, [Never()]).values()} == {"supplied"}
    assert "is ignored" in caplog.text


@pytest.mark.parametrize("unusable", ["a file", "under a file", "in proc"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, unusable: str) -> None:
    file = tmp_path / "file"
    file.touch()
    data_dir = {"a file": file, "under a file": file / "data", "in proc": Path("/proc/data")}[unusable]
    with pytest.raises(DataUnavailable, match=f"data folder {data_dir} cannot be used .* --data-dir"):
        fetch_data(CONTRACT, data_dir, [Never()])


# --- IDX ---


def test_idx_on_disk_becomes_the_same_csvs(tmp_path: Path) -> None:
    source = idx_folder(tmp_path / "idx", GOOD.files)
    data_dir = tmp_path / "not" / "there" / "yet"
    files = fetch_data(CONTRACT, data_dir, [source, Never()])
    assert_published(data_dir)
    assert {file.origin for file in files.values()} == {"fetched"}
    assert stat.S_IMODE((data_dir / TRAIN).stat().st_mode) == 0o666 & ~_umask()
    # and is found again, as what it is
    assert fetch_data(CONTRACT, data_dir, [Never()]) == files


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_fetched_file_that_was_edited_counts_as_supplied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fetch_data(CONTRACT, tmp_path / "data", [idx_folder(tmp_path / "idx", GOOD.files)])
    with (tmp_path / "data" / TRAIN).open("ab") as file:
        file.write(b"\n")
    files = fetch_data(CONTRACT, tmp_path / "data", [Never()])
    assert (files["train"].origin, files["test"].origin) == ("supplied", "fetched")
    assert "mixes" in caplog.text


def test_files_packed_anew_or_not_at_all_are_the_same_data(tmp_path: Path) -> None:
    files = {name: gzip.compress(gzip.decompress(content), 1) for name, content in GOOD.files.items()}
    files[TRAIN_IMAGES] = gzip.decompress(GOOD.files[TRAIN_IMAGES])
    assert files[TEST_LABELS] != GOOD.files[TEST_LABELS]
    fetch_data(CONTRACT, tmp_path / "data", [idx_folder(tmp_path / "idx", files)])
    assert_published(tmp_path / "data")


def test_mnist_in_its_place_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "data", idx_folder(tmp_path / "idx", OTHER.files))
    assert CONTRACT.published["train"].labels.content_sha256 in message
    assert OTHER.contract.published["train"].labels.content_sha256 in message
    assert "plain MNIST" in message


@pytest.mark.parametrize("name", GOOD.files)
def test_any_one_file_of_other_data_is_refused(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path / "data", idx_folder(tmp_path / "idx", {**GOOD.files, name: OTHER.files[name]}))
    assert f"{name} holds other data" in message


@pytest.mark.parametrize("name", GOOD.files)
@pytest.mark.parametrize("position", ["middle", "end"])
def test_a_flipped_byte_is_refused(tmp_path: Path, name: str, position: str) -> None:
    content = bytearray(GOOD.files[name])
    content[len(content) // 2 if position == "middle" else -5] ^= 0xFF
    assert name in refusal(tmp_path / "data", idx_folder(tmp_path / "idx", {**GOOD.files, name: bytes(content)}))


def test_a_missing_file_or_folder_is_refused(tmp_path: Path) -> None:
    files = {name: content for name, content in GOOD.files.items() if name != TEST_LABELS}
    assert f"{TEST_LABELS} is not there" in refusal(tmp_path / "data", idx_folder(tmp_path / "idx", files))
    assert "no such folder" in refusal(tmp_path / "data", IdxFolder(tmp_path / "gone"))


def test_content_with_the_right_digest_but_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    contract = dataclasses.replace(CONTRACT, height=5, width=6)
    with pytest.raises(DataUnavailable, match=r"expected images \(200, 5, 6\).*received images \(200, 6, 5\)"):
        fetch_data(contract, tmp_path / "data", [idx_folder(tmp_path / "idx", GOOD.files)])


def test_rows_are_checked_beside_the_files(tmp_path: Path) -> None:
    published = {**CONTRACT.published, "test": dataclasses.replace(CONTRACT.published["test"], rows_sha256="0" * 64)}
    contract = dataclasses.replace(CONTRACT, published=published)
    with pytest.raises(DataUnavailable, match="not the published rows: expected digest 0000"):
        fetch_data(contract, tmp_path / "data", [idx_folder(tmp_path / "idx", GOOD.files)])


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert f"{TEST_LABELS} holds other data" in refusal(
        tmp_path / "data", idx_folder(tmp_path / "idx", {**GOOD.files, TEST_LABELS: bomb})
    )


def test_read_idx_gives_images_and_labels() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(read_idx(idx(images)), images)
    labels = read_idx(idx(np.array([3, 1, 2], np.uint8)))
    assert labels.dtype == np.uint8
    assert labels.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x08",
        b"\x00\x00\x08\x01",
        struct.pack(">II", 2049, 3) + b"ab",
        struct.pack(">II", 2049, 3) + b"abcd",
        struct.pack(">IIII", 2051, 1, 2, 2) + b"abc",
        struct.pack(">II", 2050, 3) + b"abc",
        struct.pack("<II", 2049, 3) + b"abc",
        struct.pack(">IIII", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        b"<html>not found</html>",
    ],
)
def test_malformed_idx_is_refused(content: bytes) -> None:
    with pytest.raises(DataContractError, match=r"expected|begins|takes"):
        read_idx(content)


# --- CSV and digest ---


def test_every_number_is_written_as_the_standard_library_writes_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5_000, 31), dtype=np.uint8)  # more than one block
    rows[:256, -1] = rows[:256, 0] = np.arange(256)
    write_csv(rows, CONTRACT.columns, tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == as_csv(rows)


def test_the_digest_of_rows_knows_content_but_not_order() -> None:
    rows = GOOD.rows["train"]
    expected = CONTRACT.published["train"].rows_sha256
    assert rows_digest(rows) == rows_digest(rows[::-1]) == rows_digest(np.asfortranarray(rows)) == expected
    changed = rows.copy()
    changed[17, 3] ^= 1
    assert rows_digest(changed) != expected
    assert rows_digest(np.vstack([rows, rows[:1]])) != expected
    swapped = rows.copy()
    swapped[[0, 1], 1:] = swapped[[1, 0], 1:]  # two images with each other's label
    swapped[0, 0], swapped[1, 0] = 3, 4
    assert rows_digest(swapped) != expected


# --- servers ---


def test_a_mirror_is_fetched_from(tmp_path: Path, server: Server) -> None:
    fetch_data(CONTRACT, tmp_path, [server.mirror(GOOD.files)])
    assert_published(tmp_path)
    assert json.loads((tmp_path / RECORD).read_bytes())["source"] == server.address


def test_a_file_that_is_unpacked_on_the_way_does(tmp_path: Path, server: Server) -> None:
    fetch_data(
        CONTRACT, tmp_path, [server.mirror({**GOOD.files, TRAIN_IMAGES: unpacked_on_the_way(GOOD.files[TRAIN_IMAGES])})]
    )
    assert_published(tmp_path)


def test_redirects_are_followed(tmp_path: Path, server: Server) -> None:
    mirror = server.mirror({**GOOD.files, TEST_LABELS: redirected("/elsewhere"), "elsewhere": GOOD.files[TEST_LABELS]})
    fetch_data(CONTRACT, tmp_path, [mirror])
    assert_published(tmp_path)


def test_a_redirect_in_a_circle_is_refused(tmp_path: Path, server: Server) -> None:
    assert "TooManyRedirects" in refusal(
        tmp_path, server.mirror({**GOOD.files, TEST_LABELS: redirected(f"/{TEST_LABELS}")})
    )


def test_other_data_on_a_server_is_found_out_before_the_large_files(tmp_path: Path, server: Server) -> None:
    assert "holds other data" in refusal(tmp_path, server.mirror(OTHER.files))
    assert server.asked == [f"/{CONTRACT.published['train'].labels.name}"]


FAULTS: dict[str, tuple[Callable[[bytes], Answer | None], str]] = {
    "absent": (lambda content: None, "HTTP status 404"),
    "a page instead": (lambda content: b"<html>Log in</html>", "holds other data"),
    "a flipped byte": (lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:], "damaged|other data"),
    "cut, length declared": (lambda content: truncated(content, declared=True), "RemoteProtocolError"),
    "cut, no length declared": (lambda content: truncated(content, declared=False), "damaged"),
    "far too large": (lambda content: content + bytes(len(content) + 1), "at most .* bytes were expected"),
    "hung up": (lambda content: lambda handler: None, "RemoteProtocolError"),
    "not HTTP": (lambda content: lambda handler: _say(handler, b"220 ftp ready\r\n"), "RemoteProtocolError"),
}


def _say(handler: BaseHTTPRequestHandler, what: bytes) -> None:
    handler.wfile.write(what)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_at_fault_is_given_up_on_and_the_next_source_tried(
    tmp_path: Path, server: Server, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = FAULTS[fault]
    answer = make(GOOD.files[TRAIN_IMAGES])
    files: dict[str, Answer] = {**GOOD.files}
    del files[TRAIN_IMAGES]
    if answer is not None:
        files[TRAIN_IMAGES] = answer
    caplog.set_level(logging.INFO, "tasks.data")
    fetch_data(CONTRACT, tmp_path / "data", [server.mirror(files), idx_folder(tmp_path / "idx", GOOD.files)])
    assert_published(tmp_path / "data")
    assert any(re.search(f"does not do: {TRAIN_IMAGES}.*({reason})", message) for message in caplog.messages), (
        caplog.text
    )


def test_sources_that_keep_one_waiting_are_given_up_on_and_the_next_one_tried(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All at once: until a limit is over takes each of them its time."""
    over = threading.Event()
    look_up = socket.getaddrinfo

    def looked_up(host: str, *args: Any, **options: Any) -> Any:
        return over.wait(5) and [] if host == "slow.invalid" else look_up(host, *args, **options)

    monkeypatch.setattr("socket.getaddrinfo", looked_up)
    programs(tmp_path, monkeypatch, apt_get=f"sleep 60 & echo $! > {tmp_path}/sleeps; wait")
    content = GOOD.files[TRAIN_IMAGES]
    slow: dict[str, tuple[Answer, str]] = {
        "/dribbled": (dribbled(content, 0.02), rf"{TRAIN_IMAGES}.* too slow: \d+ bytes in 1.0 s"),
        "/stalled": (stalled(content), f"{TRAIN_IMAGES}.*(too slow|ReadTimeout)"),
        "/header": (header_byte_by_byte, f"{TRAIN_IMAGES}.* too slow: 0 bytes in 1.0 s"),
    }
    sources: dict[Source, str] = {
        **{server.mirror({**GOOD.files, TRAIN_IMAGES: answer}, at): reason for at, (answer, reason) in slow.items()},
        IdxMirror("http://slow.invalid"): "too slow: 0 bytes in 1.0 s",
        PACKAGE: "apt-get was not done within 1 s",
    }
    folders = [tmp_path / f"data {number}" for number in range(len(sources))]
    caplog.set_level(logging.INFO, "tasks.data")
    good = idx_folder(tmp_path / "idx", GOOD.files)
    server.answers["/small"] = b"x"
    download(f"{server.address}/small", tmp_path / "small", 1)  # loads the certificates before the time-outs count
    started = time.monotonic()
    try:
        with ThreadPoolExecutor(len(sources)) as at_once:
            done = at_once.map(
                lambda source, folder: fetch_data(CONTRACT, folder, [source, good], QUICK), sources, folders
            )
            assert len([*done]) == len(sources)
    finally:
        over.set()
    assert time.monotonic() - started < 20  # apt-get alone would have taken 60
    wait_until_gone(int((tmp_path / "sleeps").read_text()))  # what apt-get started, long before it would end by itself
    for folder in folders:
        assert_published(folder)
    for source, reason in sources.items():
        told = f"{re.escape(source.name)} does not do: .*{reason}"
        assert any(re.search(told, message) for message in caplog.messages), caplog.text


def test_a_server_that_nobody_runs_is_given_up_on(tmp_path: Path) -> None:
    message = refusal(tmp_path, IdxMirror("http://127.0.0.1:1"), IdxMirror("gopher://127.0.0.1"))
    assert "(1) http://127.0.0.1:1: train-labels-idx1-ubyte.gz: ConnectError" in message
    assert "(2) gopher://127.0.0.1: train-labels-idx1-ubyte.gz: UnsupportedProtocol" in message


def test_progress_is_logged(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks.data")

    def in_two_halves(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "300000")
        handler.end_headers()
        handler.wfile.write(bytes(100_000))
        deadline = time.monotonic() + 10
        while "big: 0.1 of 0.3 MB" not in caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        handler.wfile.write(bytes(200_000))

    server.answers["/big"] = in_two_halves
    download(f"{server.address}/big", tmp_path / "big", 300_000, Limits(progress_seconds=0.05))
    assert (tmp_path / "big").read_bytes() == bytes(300_000)
    assert re.fullmatch(r"big: 0\.3 MB in \d\.\d s", caplog.messages[-1])


def test_a_disk_that_is_full_is_no_fault_of_the_server(server: Server) -> None:
    server.answers["/big"] = bytes(300_000)
    with pytest.raises(OSError, match="No space left"):
        download(f"{server.address}/big", Path("/dev/full"), 300_000)


# --- Kaggle ---


def test_kaggles_csvs_in_another_row_order_are_kept_as_they_are(tmp_path: Path, server: Server) -> None:
    files = fetch_data(CONTRACT, tmp_path, [server.kaggle(as_zip(kaggle_members())), Never()])
    assert_published(tmp_path, {split: GOOD.rows[split][::-1] for split in SPLITS})
    assert files["test"].origin == "fetched"


def _with(**changes: bytes | None) -> bytes:
    members = {**kaggle_members(), **{{"train": TRAIN, "test": TEST}[split]: new for split, new in changes.items()}}
    return as_zip({name: content for name, content in members.items() if content is not None})


def _crc_broken() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in kaggle_members().items():
            archive.writestr(name, content)
    content = bytearray(packed.getvalue())
    content[len(TRAIN) + 500] ^= 1
    return bytes(content)


def _encrypted() -> bytes:
    content = bytearray(as_zip(kaggle_members()))
    content[6] |= 1  # local header
    at = content.index(b"PK\x01\x02")
    content[at + 8] |= 1  # central directory
    return bytes(content)


def _edited(old: bytes, new: bytes) -> bytes:
    content = as_csv(GOOD.rows["test"])
    assert old in content
    return content.replace(old, new, 1)


BAD_ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a page instead": (lambda: b"<html>Log in</html>", "BadZipFile"),
    "cut": (lambda: as_zip(kaggle_members())[:-100], "BadZipFile"),
    "a broken checksum": (_crc_broken, "BadZipFile: Bad CRC-32"),
    "encrypted": (_encrypted, "RuntimeError.*encrypted"),
    "one split missing": (lambda: _with(test=None), f"expected one {TEST} in the zip, received 0"),
    "two of one name": (
        lambda: as_zip({**kaggle_members(), f"old/{TRAIN}": b"x"}),
        f"expected one {TRAIN}.*received 2",
    ),
    "other images": (lambda: _with(train=as_csv(OTHER.rows["train"])), "train: these are not the published rows"),
    "a row too few": (lambda: _with(test=as_csv(GOOD.rows["test"][1:])), "expected 100 rows"),
    "a row twice": (lambda: _with(test=as_csv(GOOD.rows["test"][[0, *range(99)]])), "test: these are not"),
    "256": (lambda: _with(test=_edited(b",0,", b",256,")), "no CSV of numbers"),
    "an empty cell": (lambda: _with(test=_edited(b",0,", b",,")), "no CSV of numbers"),
    "a ragged row": (lambda: _with(test=_edited(b",0,", b",")), "no CSV of numbers"),
    "another header": (lambda: _with(test=_edited(b"pixel1,pixel2", b"pixel2,pixel1")), "expected the header"),
    "no header": (lambda: _with(test=as_csv(GOOD.rows["test"]).partition(b"\n")[2]), "no CSV|expected the header"),
    "empty": (lambda: _with(test=b""), "no CSV"),
}


@pytest.mark.parametrize("fault", BAD_ZIPS)
def test_a_bad_zip_is_refused(tmp_path: Path, server: Server, fault: str) -> None:
    make, reason = BAD_ZIPS[fault]
    assert re.search(reason, refusal(tmp_path, server.kaggle(make())))


@pytest.mark.parametrize("where", ["../../", "{outside}/", "..\\..\\", "C:\\"])
def test_a_zip_cannot_write_outside_its_folder(tmp_path: Path, server: Server, where: str) -> None:
    where = where.format(outside=tmp_path)
    members = {f"{where}evil.csv": b"evil", **{f"{where}{name}": content for name, content in kaggle_members().items()}}
    data_dir = tmp_path / "one" / "two" / "data"
    fetch_data(CONTRACT, data_dir, [server.kaggle(as_zip(members))])
    assert_published(data_dir, {split: GOOD.rows[split][::-1] for split in SPLITS})
    assert set(tmp_path.rglob("*.csv")) == {data_dir / TRAIN, data_dir / TEST}


def test_a_zip_bomb_is_refused_unopened(tmp_path: Path, server: Server) -> None:
    message = refusal(tmp_path, server.kaggle(_with(train=bytes(10_000_000))))
    assert "says it has 10000000 bytes" in message


def test_a_zip_bomb_that_lies_about_its_size_is_read_no_further(tmp_path: Path) -> None:
    content = bytearray(as_zip({TRAIN: bytes(10_000_000)}))
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 1_000)
    (tmp_path / "bomb.zip").write_bytes(content)
    with pytest.raises(SourceError, match="CRC"):
        extract(tmp_path / "bomb.zip", tmp_path / TRAIN, 2_000)
    assert (tmp_path / TRAIN).stat().st_size <= 2_000


# --- Debian ---


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, *, apt_get: str) -> Path:
    """Stand-ins for apt-get and dpkg; returns the file that apt-get's arguments are written to, a call a line."""
    idx_folder(folder / "package", GOOD.files)
    scripts = {
        "apt-get": f'echo "$@" >> {folder}/calls\n{apt_get}',
        "dpkg": f'[ "$1" = -x ] && mkdir -p $3/usr/share/data && cp {folder}/package/* $3/usr/share/data',
    }
    binaries = folder / "bin"
    binaries.mkdir()
    for name, script in scripts.items():
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    return folder / "calls"


PACKAGE = DebianPackage("some-package", "/usr/share/data")


def test_a_debian_package_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = programs(tmp_path, monkeypatch, apt_get="touch some-package_1_all.deb")
    fetch_data(CONTRACT, tmp_path / "data", [PACKAGE])
    assert_published(tmp_path / "data")
    assert calls.read_text().count("\n") == 1
    assert calls.read_text().endswith("download some-package\n")


def test_package_lists_that_lack_it_are_fetched_to_a_folder_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt_get = """
    for last; do :; done
    case "$*" in
        *Dir::State::Lists=*update) ;;
        *Dir::State::Lists=*download*) touch some-package_1_all.deb ;;
        *) echo "E: Unable to locate package $last"; exit 100 ;;
    esac
    """
    calls = programs(tmp_path, monkeypatch, apt_get=apt_get)
    fetch_data(CONTRACT, tmp_path / "data", [PACKAGE])
    assert_published(tmp_path / "data")
    first, update, second = calls.read_text().splitlines()
    assert (first.split()[-2:], update.split()[-1], second.split()[-2:]) == (
        ["download", "some-package"],
        "update",
        ["download", "some-package"],
    )
    # Every call, updates above all, leaves the machine's own folders alone.
    working = tmp_path / "data" / ".fashion-mnist.fetching"
    assert all(f"Dir::Cache={working}" in call for call in (first, update, second))
    assert f"Dir::State::Lists={working}" in update


@pytest.mark.parametrize(
    ("apt_get", "reason"),
    [
        ("echo 'E: no network'; exit 100", "apt-get ended with status 100: E: no network"),
        ("echo 'E: Unable to locate package x'; exit 100", "Unable to locate package x"),
        ("exit 0", "one package, 0 are there"),
    ],
)
def test_apt_at_fault_is_given_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt_get: str, reason: str
) -> None:
    programs(tmp_path, monkeypatch, apt_get=apt_get)
    assert reason in refusal(tmp_path / "data", PACKAGE)


def test_a_machine_without_apt_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get and dpkg are not on this machine" in refusal(tmp_path / "data", PACKAGE)


# --- all sources ---


def test_sources_are_tried_in_the_order_of_the_design() -> None:
    sources = default_sources(FASHION_MNIST)
    assert [type(source) for source in sources] == [IdxFolder, KaggleZip, IdxMirror, IdxMirror, DebianPackage]
    assert sources[1] == KaggleZip("https://www.kaggle.com/api/v1/datasets/download/zalando-research/fashionmnist")


def test_when_all_fail_each_is_named_with_its_reason_and_the_way_by_hand(tmp_path: Path, server: Server) -> None:
    missing = IdxFolder(tmp_path / "gone")
    message = refusal(tmp_path / "data", missing, server.kaggle(b"no zip"), IdxMirror(server.address))
    assert f"(1) IDX files in {tmp_path}/gone: there is no such folder" in message
    assert f"(2) {server.address}/download: the zip is damaged or is none" in message
    assert f"(3) {server.address}: train-labels-idx1-ubyte.gz: HTTP status 404" in message
    assert f"put {TRAIN} and {TEST} (or both as .csv.gz) into {tmp_path}/data" in message
    assert "--data-dir or FASHION_ANN_DATA_DIR" in message
    assert "\n" not in message


def test_a_full_disk_is_no_fault_of_a_source(tmp_path: Path) -> None:
    class Full:
        name = "full"

        def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
            raise OSError(28, "No space left on device", str(folder / "x"))

    with pytest.raises(DataUnavailable, match=f"data folder {tmp_path} cannot be used.*No space left on device"):
        fetch_data(CONTRACT, tmp_path, [Full(), Never()])
    assert [path.name for path in tmp_path.iterdir()] == [".fashion-mnist.lock"]


def test_files_that_someone_puts_there_meanwhile_are_not_replaced(tmp_path: Path) -> None:
    class Meanwhile:
        name = "meanwhile"

        def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
            supply(tmp_path / "data", TRAIN, TEST)
            return idx_folder(tmp_path / "idx", GOOD.files).fetch(contract, folder, limits)

    with pytest.raises(DataUnavailable, match="Run again"):
        fetch_data(CONTRACT, tmp_path / "data", [Meanwhile()])
    files = fetch_data(CONTRACT, tmp_path / "data", [Never()])
    assert files["train"].sha256 == sha256(TRAIN.encode())


# --- killed, and two at once ---


def killed_at(step: int, data_dir: Path, source: Source) -> None:
    """Fetch in a child that kills itself where a file would be renamed or removed for the ``step``-th time."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == signal.SIGKILL
        return
    signal.alarm(30)  # rather than hang
    left = step
    for name in ("replace", "unlink"):
        original = getattr(Path, name)

        def counted(self: Path, *rest: object, original: Callable[..., object] = original, **named: object) -> object:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return original(self, *rest, **named)

        setattr(Path, name, counted)
    try:
        fetch_data(CONTRACT, data_dir, [source])
    finally:
        os._exit(1)


@pytest.mark.parametrize("step", [0, 1, 2])  # the record, train, test
@pytest.mark.parametrize("then", ["the same source", "a source with other bytes"])
def test_a_run_after_a_kill_ends_with_whole_fetched_data(tmp_path: Path, server: Server, step: int, then: str) -> None:
    source = idx_folder(tmp_path / "idx", GOOD.files)
    killed_at(step, tmp_path / "data", source)
    assert (tmp_path / "data" / RECORD).exists() == (step > 0)
    assert (tmp_path / "data" / TRAIN).exists() == (step > 1)
    assert not (tmp_path / "data" / TEST).exists()
    if then == "the same source":
        files = fetch_data(CONTRACT, tmp_path / "data", [source])
        assert_published(tmp_path / "data")
    else:
        files = fetch_data(CONTRACT, tmp_path / "data", [server.kaggle(as_zip(kaggle_members()))])
        assert_published(tmp_path / "data", {split: GOOD.rows[split][::-1] for split in SPLITS})
    assert {file.origin for file in files.values()} == {"fetched"}


@pytest.mark.parametrize("step", range(5))  # the zip, train that was left, the record, train, test
def test_a_run_killed_again_after_a_kill_still_leaves_no_riddle(tmp_path: Path, server: Server, step: int) -> None:
    source = idx_folder(tmp_path / "idx", GOOD.files)
    killed_at(2, tmp_path / "data", source)
    killed_at(step, tmp_path / "data", server.kaggle(as_zip(kaggle_members())))
    files = fetch_data(CONTRACT, tmp_path / "data", [source])
    assert_published(tmp_path / "data")
    assert {file.origin for file in files.values()} == {"fetched"}


def test_a_left_over_working_folder_is_swept_once_both_files_are_there(tmp_path: Path) -> None:
    source = idx_folder(tmp_path / "idx", GOOD.files)
    fetch_data(CONTRACT, tmp_path / "data", [source])
    left = tmp_path / "data" / ".fashion-mnist.fetching"
    (left / "4").mkdir(parents=True)
    (left / "4" / "archive.zip").write_bytes(b"large")
    fetch_data(CONTRACT, tmp_path / "data", [Never()])
    assert_published(tmp_path / "data")


def test_a_supplied_half_is_refused_even_beside_a_record_of_other_files(tmp_path: Path) -> None:
    fetch_data(CONTRACT, tmp_path / "data", [idx_folder(tmp_path / "idx", GOOD.files)])
    (tmp_path / "data" / TEST).unlink()
    supply(tmp_path / "data", TRAIN)
    with pytest.raises(DataUnavailable, match=f"holds {TRAIN} but not {TEST}"):
        fetch_data(CONTRACT, tmp_path / "data", [Never()])
    assert (tmp_path / "data" / TRAIN).read_bytes() == TRAIN.encode()


def test_of_two_at_once_one_fetches_and_the_other_finds(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks.data")

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        deadline = time.monotonic() + 10
        while "waiting for it" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(GOOD.files[TEST_LABELS])

    source = server.mirror({**GOOD.files, TEST_LABELS: slowly})
    results: list[object] = []
    runs = [threading.Thread(target=lambda: results.append(fetch_data(CONTRACT, tmp_path, [source]))) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(server.asked) == 4
    assert results[0] == results[1]
    assert_published(tmp_path)
    assert "waiting for it" in caplog.text


# --- the task ---


def test_the_task_finds_the_dataset_by_its_name_and_never_retries(tmp_path: Path) -> None:
    supply(tmp_path, TRAIN, TEST)
    assert fetch.fn("fashion-mnist", tmp_path) == fetch_data(FASHION_MNIST, tmp_path)
    assert (fetch.name, fetch.retries) == ("fetch", 0)


def test_the_digits_come_from_scikit_learn_and_are_the_published_rows(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    csvs = fetch_data(DIGITS, tmp_path)
    assert {csv.origin for csv in csvs.values()} == {"fetched"}
    rows = np.concatenate(
        [np.loadtxt(csvs[split].files[0].path, np.uint8, delimiter=",", skiprows=1) for split in SPLITS]
    )
    loaded = load_digits()
    expected = np.column_stack([loaded.target, loaded.data]).astype(np.uint8)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, expected))
    assert csvs["train"].files[0].path.read_text().splitlines()[0] == ",".join(DIGITS.columns)


def test_without_scikit_learn_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataUnavailable, match="-m pip install scikit-learn"):
        fetch_data(DIGITS, tmp_path)
