"""Files of a version that someone replaced, with matching digests: status 5 that names the file, and nothing else."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.main import main
from tasks.registry.store import ModelStore
from tests.resealed import reseal, three_versions
from tests.sample import SAMPLE

pytestmark = pytest.mark.usefixtures("in_this_process")

Run = Callable[..., tuple[int, str]]

CSV = str(SAMPLE / "fashion-mnist_test.csv.gz")
COMMANDS = {
    "versions": ["versions"],
    "show": ["show", "3"],
    "why": ["why", "3"],
    "report": ["report", "3"],
    "compare": ["compare", "2", "3"],
    "verify": ["verify", "3"],
    "verify --all": ["verify", "--all"],
    "predict": ["predict", CSV, "--output", "predictions.csv", "--version", "3"],
    "promote": ["promote", "3", "--reason", "a test", "--force"],
    "alias": ["alias", "3", "staging", "--reason", "a test"],
    "rollback": ["rollback", "--reason", "a test"],
    "gc": ["gc", "--dry-run"],
}
# The commands that use a file, not only its digest.
USED_BY = {
    "golden.json": ["verify", "alias"],
    "metrics.json": ["show", "predict"],
    "model.weights.h5": ["verify", "alias", "predict"],
    "profile.json": ["predict"],
    "test_predictions.parquet": ["compare"],
    "topology.json": ["verify", "alias", "predict"],
    "verdict.json": ["why"],
}


@pytest.fixture(scope="module")
def intact(sample_version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifacts = tmp_path_factory.mktemp("resealed")
    three_versions(sample_version, artifacts)
    return artifacts


@pytest.fixture
def store(intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """A copy of a store in which version 3 is champion, for the commands of `run`."""
    artifacts = Path(shutil.copytree(intact, tmp_path / "artifacts"))
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(artifacts))
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(SAMPLE))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)
    return ModelStore.of(artifacts, "fashion-mnist")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of `COMMANDS` in this process; return its status and stderr."""

    def run(name: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as exited:
            main(COMMANDS[name])
        return int(exited.value.code or 0), capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_an_intact_store_is_used(store: ModelStore, run: Run, name: str) -> None:
    if name == "promote":
        assert run("rollback")[0] == 0
    assert run(name)[0] == 0


# Others are cases of tests/tasks/registry/test_fuzz_store.py, for each reader.
CONTENTS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "an object": b"{}",
    "deep": b"[" * 100_000,
    "too large": b" " * 5_000_000,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_another_content_is_rejected(store: ModelStore, run: Run, content: bytes) -> None:
    folder = store.folder(3)
    for name, commands in USED_BY.items():
        path = folder / name
        before = path.read_bytes()
        path.write_bytes(content)
        reseal(folder)
        for command in commands:
            status, err = run(command)
            assert (status, name in err) == (5, True), (name, command, err)
        path.write_bytes(before)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    # In its folder, because a path of a socket has at most 107 bytes.
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(path.parent):
        opened.bind(path.name)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


KINDS: dict[str, Callable[[Path], object]] = {
    "a pipe": _fifo,
    "a socket": _socket,
    "a folder": Path.mkdir,
    "a link": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a terabyte": _sparse,
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_no_file_is_rejected(store: ModelStore, run: Run, make: Callable[[Path], object]) -> None:
    folder = store.folder(3)
    for name, commands in {
        **USED_BY,
        "report.html": ["report"],
        "manifest.json": [*COMMANDS.keys() - {"promote"}],
    }.items():
        path = folder / name
        aside = path.rename(path.parents[2] / "aside")
        make(path)
        for command in {"show", *commands} - {"rollback", "gc"}:
            status, err = run(command)
            assert (status, name in err) == (5, True), (name, command, err)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        aside.replace(path)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_log_that_is_no_file_is_rejected(store: ModelStore, run: Run, make: Callable[[Path], object]) -> None:
    store.aliases.path.unlink()
    make(store.aliases.path)
    for command in COMMANDS.keys() - {"compare", "verify", "predict", "report"}:  # these need no alias for a number
        status, err = run(command)
        assert (status, "aliases.jsonl" in err) == (5, True), (command, err)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_record_of_the_log_that_is_no_file(store: ModelStore, run: Run, make: Callable[[Path], object]) -> None:
    store.aliases.state_path.unlink()
    make(store.aliases.state_path)
    for command in ("versions", "gc", "rollback", "alias"):
        assert run(command)[0] == 0, command


def test_linked_versions_are_rejected(store: ModelStore, run: Run, tmp_path: Path) -> None:
    versions = store.folder(1).parent
    versions.rename(tmp_path / "elsewhere")
    versions.symlink_to(tmp_path / "elsewhere")
    for command in COMMANDS:
        status, err = run(command)
        assert (status, str(versions) in err) == (5, True), (command, err)


@pytest.mark.parametrize("kind", ["a socket", "a folder", "a link"])
def test_a_lock_that_is_no_file_is_rejected(store: ModelStore, run: Run, kind: str) -> None:
    path = store.root / ".lock"
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    for command in ("promote", "alias", "rollback"):
        status, err = run(command)
        assert (status, f"{path}: expected a lock file" in err) == (5, True), (command, err)


@pytest.mark.parametrize("parent", [0, 1], ids=["models", "models/fashion-mnist"])
@pytest.mark.parametrize("make", [KINDS[kind] for kind in ("a pipe", "a link to itself", "a terabyte")])
def test_a_store_that_is_no_folder_is_rejected(
    store: ModelStore, run: Run, make: Callable[[Path], object], parent: int
) -> None:
    place = [store.root.parent, store.root][parent]
    shutil.rmtree(place)
    make(place)
    for command in COMMANDS:
        status, err = run(command)
        assert (status, f"{place}: expected a folder" in err) == (5, True), (command, err)


def _set(*place: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in place[:-1]:
            content = content[key]
        content[place[-1]] = to

    return change


MANIFESTS = {
    "units of a billion": _set("configuration", "batch_size", to=10**9),
    "text for epochs": _set("configuration", "epochs", to="5"),
    "another dataset": _set("dataset", to="digits"),
    "an unknown dataset": _set("dataset", to="../../x"),
    "no time": _set("created", to="yesterday"),
    "a time without zone": _set("created", to="2026-01-01T00:00:00"),
    "no split rows": _set("data", "split_rows", to={}),
    "a path as a CSV": _set("data", "test", "csv_files", to=[{"file": "../../secret.csv", "sha256": "0" * 64}]),
    "a huge version": _set("parent", to=10**30),
    "a huge accuracy": _set("test_accuracy", to=1e308),
    "an accuracy as text": _set("test_accuracy", to="0.9"),
    "a file outside": lambda manifest: manifest["files"].update(
        {"../0002/metrics.json": manifest["files"]["golden.json"]}
    ),
    "a file with a long name": lambda manifest: manifest["files"].update({"a" * 300: manifest["files"]["golden.json"]}),
    "deep": _set("more", to=json.loads("[" * 200 + "]" * 200)),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_beyond_its_bounds_is_rejected(
    store: ModelStore, run: Run, change: Callable[[dict[str, Any]], None]
) -> None:
    reseal(store.folder(3), change)
    for command in ("show", "why", "verify", "predict", "compare", "alias"):
        status, err = run(command)
        assert (status, "0003" in err) == (5, True), (command, err)


@pytest.mark.parametrize(("key", "value"), [("dropout", 0.5), ("activation", "tanh"), ("hidden_units", [128, 64])])
def test_another_network_than_the_manifest_defines(store: ModelStore, run: Run, key: str, value: object) -> None:
    reseal(store.folder(3), _set("configuration", key, to=value))
    for command in ("verify", "alias", "predict"):
        status, err = run(command)
        assert (status, "topology.json: expected Network" in err) == (5, True), (command, err)


def _edit(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def _table(**columns: Any) -> Callable[[Path], None]:
    """Return a function that replaces columns of the predictions; None removes one."""

    def edit(folder: Path) -> None:
        path = folder / "test_predictions.parquet"
        table = pq.read_table(path)
        for name, values in columns.items():
            place = table.schema.get_field_index(name)
            table = table.remove_column(place)
            if values is not None:
                table = table.add_column(place, name, pa.array(values(table.num_rows)))
        pq.write_table(table, path)

    return edit


def _bomb(folder: Path) -> None:
    """Write six million equal rows in a file of few bytes."""
    path = folder / "test_predictions.parquet"
    schema = pq.read_schema(path)
    rows = 2_000_000
    columns = [pa.repeat(pa.scalar(b"0" * 16 if field.name == "image" else 0, field.type), rows) for field in schema]
    table = pa.table(columns, schema=schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(3):
            writer.write_table(table)


EDITS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "golden of other images": ("golden.json", "verify", _edit("golden.json", _set("images", to=[[0.5] * 3]))),
    "golden of ragged images": ("golden.json", "verify", _edit("golden.json", _set("images", 0, to=[0.5]))),
    "golden of text": ("golden.json", "verify", _edit("golden.json", _set("images", 0, 0, to="0.5"))),
    "golden without a row": ("golden.json", "verify", _edit("golden.json", lambda golden: golden.update(images=[]))),
    "metrics without classes": ("metrics.json", "predict", _edit("metrics.json", _set("per_class", to=[]))),
    "metrics of one class": ("metrics.json", "predict", _edit("metrics.json", lambda all: all["per_class"].pop())),
    "a recall of 2": ("metrics.json", "predict", _edit("metrics.json", _set("per_class", 0, "recall", to=2))),
    "a recall of text": ("metrics.json", "show", _edit("metrics.json", _set("per_class", 0, "recall", to="1"))),
    "a class without a name": ("metrics.json", "show", _edit("metrics.json", _set("per_class", 0, "name", to=None))),
    "verdict without rules": ("verdict.json", "why", _edit("verdict.json", _set("rules", to=None))),
    "verdict of another outcome": ("verdict.json", "why", _edit("verdict.json", _set("outcome", to="best"))),
    "profile of few pixels": ("profile.json", "predict", _edit("profile.json", _set("varying", to=[0.5]))),
    "profile of another class": ("profile.json", "predict", _edit("profile.json", _set("class_fits", to={"11": 1}))),
    "profile of huge pixels": ("profile.json", "predict", _edit("profile.json", _set("mean_images", "0", 0, to=1e308))),
    "predictions without images": ("predictions", "compare", _table(image=None)),
    "predictions of text": ("predictions", "compare", _table(p0=lambda rows: ["x"] * rows)),
    "predictions that are no number": (
        "predictions",
        "compare",
        _table(p0=lambda rows: np.full(rows, np.nan, np.float32)),
    ),
    "labels of no class": ("predictions", "compare", _table(true_label=lambda rows: np.full(rows, 10, np.int32))),
    "negative labels": ("predictions", "compare", _table(true_label=lambda rows: np.full(rows, -1, np.int32))),
    "a bomb of predictions": ("predictions", "compare", _bomb),
}


@pytest.mark.parametrize(("name", "command", "edit"), EDITS.values(), ids=EDITS)
def test_another_shape_is_rejected(
    store: ModelStore, run: Run, name: str, command: str, edit: Callable[[Path], None]
) -> None:
    edit(store.folder(3))
    reseal(store.folder(3))
    status, err = run(command)
    assert (status, name in err, "Traceback" in err) == (5, True, False), err


def test_stored_text_controls_no_terminal(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x9b\u202e\nversion 3: 7 files intact"
    _edit("verdict.json", _set("reason", to=hostile))(store.folder(3))
    reseal(store.folder(3), _set("device", "name", to=hostile))
    for command in (["why", "3"], ["show", "3"], ["compare", "2", "3"], ["show", "3", "--json"]):
        with pytest.raises(SystemExit):
            main(command)
        out = capsys.readouterr().out
        assert not set(out) & set("\x1b\x9b\u202e")
        assert not any(line.startswith("version 3: 7 files") for line in out.splitlines())
