import dataclasses
import gzip
import re
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from schemas.config import install_command
from schemas.contract import FASHION_MNIST, SPLITS, DatasetContract, Split, contract_of
from schemas.errors import DataContractError
from tasks.data.download import DEFAULT_LIMITS, Limits, SourceError
from tasks.data.sources import Source, debian_package, default_sources, extract, rows_digest, write_csv
from tests.processes.kill import wait_until_gone
from tests.tasks.data.conftest import WebServer
from tests.tasks.data.published import (
    CONTRACT,
    GOOD,
    KAGGLE_ROWS,
    OTHER,
    TEST,
    TEST_LABELS,
    TRAIN,
    TRAIN_IMAGES,
    Rows,
    as_csv,
    as_zip,
    kaggle_members,
    write_idx,
)

DIGITS = contract_of("digits")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the empty folder that a source writes to."""
    folder = tmp_path / "working"
    folder.mkdir()
    return folder


def assert_published(csvs: Mapping[Split, Path], rows: Mapping[Split, Rows] = GOOD.rows) -> None:
    assert {split: csvs[split].read_bytes() for split in SPLITS} == {split: as_csv(rows[split]) for split in SPLITS}


def failure(source: Source, folder: Path, contract: DatasetContract = CONTRACT, limits: Limits = DEFAULT_LIMITS) -> str:
    with pytest.raises((SourceError, DataContractError)) as caught:
        source.fetch(contract, folder, limits)
    return str(caught.value)


def flipped(content: bytes, position: int, bits: int = 0xFF) -> bytes:
    changed = bytearray(content)
    changed[position] ^= bits
    return bytes(changed)


# --- rows ---


def test_write_csv_equals_the_standard_library(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5_000, 31), dtype=np.uint8)  # more than one block
    rows[:256, -1] = rows[:256, 0] = np.arange(256)
    write_csv(rows, CONTRACT.columns, tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == as_csv(rows)


def test_rows_digest_depends_on_content_but_not_on_order() -> None:
    rows = GOOD.rows["train"]
    expected = CONTRACT.published["train"].rows_sha256
    assert rows_digest(rows) == rows_digest(rows[::-1]) == rows_digest(np.asfortranarray(rows)) == expected
    changed = rows.copy()
    changed[17, 3] ^= 1
    swapped_labels = rows.copy()
    swapped_labels[[0, 1], 0] = (rows[0, 0] + 1, rows[1, 0])
    for other in (changed, swapped_labels, np.vstack([rows, rows[:1]])):
        assert rows_digest(other) != expected


# --- IDX files on disk ---


def test_idx_files_may_have_any_compression(tmp_path: Path, folder: Path) -> None:
    files = {name: gzip.compress(gzip.decompress(content), 1) for name, content in GOOD.files.items()}
    files[TRAIN_IMAGES] = gzip.decompress(GOOD.files[TRAIN_IMAGES])
    assert files[TEST_LABELS] != GOOD.files[TEST_LABELS]
    assert_published(write_idx(tmp_path / "idx", files).fetch(CONTRACT, folder, DEFAULT_LIMITS))


@pytest.mark.parametrize("name", GOOD.files)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda name: OTHER.files[name], "contains other data", id="other data"),
        pytest.param(lambda name: flipped(GOOD.files[name], 40), "damaged|other data", id="flipped start"),
        pytest.param(lambda name: flipped(GOOD.files[name], -5), "damaged", id="flipped end"),
        pytest.param(lambda name: gzip.compress(bytes(50_000)), "contains other data", id="longer content"),
        pytest.param(lambda name: None, "does not exist", id="missing"),
    ],
)
def test_rejects_a_faulty_idx_file(
    tmp_path: Path, folder: Path, name: str, change: Callable[[str], bytes | None], reason: str
) -> None:
    files = {**GOOD.files, name: change(name)}
    source = write_idx(tmp_path / "idx", {name: content for name, content in files.items() if content is not None})
    assert re.search(f"{name} .*({reason})", failure(source, folder))


def test_checks_the_rows_besides_the_files(tmp_path: Path, folder: Path) -> None:
    test = dataclasses.replace(CONTRACT.published["test"], rows_sha256="0" * 64)
    contract = dataclasses.replace(CONTRACT, published={**CONTRACT.published, "test": test})
    assert "test: not the published rows: expected 100 with digest 0000" in failure(
        write_idx(tmp_path / "idx"), folder, contract
    )


# --- mirrors ---


def test_fetches_from_a_mirror_that_decompresses_a_file(folder: Path, web: WebServer) -> None:
    mirror = web.mirror({**GOOD.files, TRAIN_IMAGES: gzip.decompress(GOOD.files[TRAIN_IMAGES])})
    assert_published(mirror.fetch(CONTRACT, folder, DEFAULT_LIMITS))


def test_rejects_a_mirror_of_plain_mnist_by_its_labels(folder: Path, web: WebServer) -> None:
    message = failure(web.mirror(OTHER.files), folder)
    assert "plain MNIST" in message
    expected, received = (data.published["train"].labels for data in (CONTRACT, OTHER.contract))
    assert f"expected content with sha256 {expected.content_sha256}, received {received.content_sha256}" in message
    assert web.requests == [f"/{expected.name}"]


# --- Kaggle ---


def test_kaggle_keeps_its_row_order(folder: Path, web: WebServer) -> None:
    csvs = web.kaggle(as_zip(kaggle_members())).fetch(CONTRACT, folder, DEFAULT_LIMITS)
    assert_published(csvs, KAGGLE_ROWS)
    assert {path.name for path in folder.iterdir()} == {TRAIN, TEST}


def zip_with(**changes: bytes) -> bytes:
    return as_zip({**kaggle_members(), **{CONTRACT.csv_name(split): csv for split, csv in changes.items()}})


def encrypted() -> bytes:
    content = as_zip(kaggle_members())
    return flipped(flipped(content, 6, 1), content.index(b"PK\x01\x02") + 8, 1)  # flags of both headers


TEST_CSV = as_csv(GOOD.rows["test"])
BAD_ZIPS = {
    "a web page": (b"<html>Log in</html>", "not a readable zip .BadZipFile"),
    "cut off": (as_zip(kaggle_members())[:-100], "BadZipFile"),
    "only its end": (as_zip(kaggle_members())[-1_000:], "not a readable zip"),
    "a wrong checksum": (flipped(as_zip(kaggle_members(), zipfile.ZIP_STORED), len(TRAIN) + 500), "Bad CRC-32"),
    "damaged LZMA": (flipped(as_zip(kaggle_members(), zipfile.ZIP_LZMA), len(TRAIN) + 500), "not a readable zip"),
    "damaged bzip2": (flipped(as_zip(kaggle_members(), zipfile.ZIP_BZIP2), len(TRAIN) + 500), "not a readable zip"),
    "encrypted": (encrypted(), "RuntimeError.*encrypted"),
    "one split missing": (as_zip({TRAIN: kaggle_members()[TRAIN]}), f"expected one {TEST} in the zip, received 0"),
    "one name twice": (as_zip({**kaggle_members(), f"old/{TRAIN}": b"x"}), f"expected one {TRAIN}.*received 2"),
    "a zip bomb": (zip_with(train=bytes(10_000_000)), "expected at most .* bytes .*, the zip lists 10000000"),
    "other images": (zip_with(train=as_csv(OTHER.rows["train"])), "train: not the published rows"),
    "a row too few": (zip_with(test=as_csv(GOOD.rows["test"][1:])), "expected 100 with digest .* received 99 "),
    "an empty cell": (
        zip_with(test=TEST_CSV.replace(b",0,", b",,", 1)),
        f"{TEST} line 2, column pixel1: expected an integer",
    ),
    "another header": (zip_with(test=TEST_CSV.replace(b"l1,pixel2", b"l2,pixel1", 1)), "test: not the published rows"),
    "empty": (zip_with(test=b""), f"{TEST} line 1, .*the file is empty"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_ZIPS.values(), ids=BAD_ZIPS)
def test_rejects_a_bad_zip(folder: Path, web: WebServer, content: bytes, reason: str) -> None:
    assert re.search(reason, failure(web.kaggle(content), folder))


@pytest.mark.parametrize("prefix", ["../../", "{outside}/", "..\\..\\", "C:\\"])
def test_zip_cannot_write_outside_its_folder(folder: Path, web: WebServer, prefix: str) -> None:
    prefix = prefix.format(outside=folder.parent)
    members = {f"{prefix}{name}": content for name, content in {"evil.csv": b"", **kaggle_members()}.items()}
    assert_published(web.kaggle(as_zip(members)).fetch(CONTRACT, folder, DEFAULT_LIMITS), KAGGLE_ROWS)
    assert set(folder.parent.rglob("*.csv")) == {folder / TRAIN, folder / TEST}


def test_zip_bomb_with_a_false_size_is_read_no_further(tmp_path: Path) -> None:
    content = bytearray(as_zip({TRAIN: bytes(10_000_000)}))
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 1_000)
    (tmp_path / "bomb.zip").write_bytes(content)
    with pytest.raises(SourceError, match="CRC"):
        extract(tmp_path / "bomb.zip", tmp_path / TRAIN, 2_000)
    assert (tmp_path / TRAIN).stat().st_size <= 2_000


# --- Debian ---

PACKAGE = debian_package("some-package", "/usr/share/data")


def test_unpacks_a_debian_package(folder: Path, install_apt: Callable[[str], Path]) -> None:
    calls = install_apt("touch some-package_1_all.deb")
    assert_published(PACKAGE.fetch(CONTRACT, folder, DEFAULT_LIMITS))
    (call,) = calls.read_text().splitlines()
    assert call.endswith("download some-package")


def test_missing_package_lists_are_downloaded_to_the_folder(folder: Path, install_apt: Callable[[str], Path]) -> None:
    calls = install_apt("""
    for last; do :; done
    case "$*" in
        *Dir::State::Lists=*update) ;;
        *Dir::State::Lists=*download*) touch some-package_1_all.deb ;;
        *) echo "E: Unable to locate package $last"; exit 100 ;;
    esac
    """)
    assert_published(PACKAGE.fetch(CONTRACT, folder, DEFAULT_LIMITS))
    first, update, second = calls.read_text().splitlines()
    for call, command in ((first, "download some-package"), (update, "update"), (second, "download some-package")):
        assert call.endswith(command)
        assert f"Dir::Cache={folder}" in call  # not a folder of the machine
    assert f"Dir::State::Lists={folder}" in update


@pytest.mark.parametrize(
    ("apt_get", "reason"),
    [
        ("echo 'E: no network'; exit 100", "apt-get exited with status 100: E: no network"),
        ("echo 'E: Unable to locate package x'; exit 100", "Unable to locate package x"),
        ("exit 0", "expected one package from apt-get, received 0"),
    ],
)
def test_rejects_a_failed_apt_get(folder: Path, install_apt: Callable[[str], Path], apt_get: str, reason: str) -> None:
    install_apt(apt_get)
    assert reason in failure(PACKAGE, folder)


def test_slow_apt_get_is_killed_with_its_children(
    tmp_path: Path, folder: Path, install_apt: Callable[[str], Path]
) -> None:
    install_apt(f"sleep 60 & echo $! > {tmp_path}/sleep; wait")
    started = time.monotonic()
    assert "apt-get did not finish within 0.5 s" in failure(PACKAGE, folder, limits=Limits(command_seconds=0.5))
    wait_until_gone(int((tmp_path / "sleep").read_text()))
    assert time.monotonic() - started < 20


def test_machine_without_apt_is_no_source(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert failure(PACKAGE, folder) == "apt-get and dpkg are not installed"


# --- scikit-learn ---


def test_missing_scikit_learn_is_reported_with_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    (source,) = default_sources(DIGITS)
    assert f"install it with `{install_command('datasets')}`" in failure(source, folder, DIGITS)


def test_order_of_the_default_sources() -> None:
    assert [source.name for source in default_sources(FASHION_MNIST)] == [
        f"IDX files in {FASHION_MNIST.sources.debian_folder}",
        "https://www.kaggle.com/api/v1/datasets/download/zalando-research/fashionmnist",
        *FASHION_MNIST.sources.mirrors,
        f"Debian package {FASHION_MNIST.sources.debian_package}",
    ]
