"""The result of a gpu worker is read as JSON of one class. Nothing that its file names is imported or run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import CompressedSerializer, JSONSerializer, PickleSerializer, Serializer

from schemas.errors import StoredArtifactError
from schemas.references import TrainedModel
from tasks.train_on_worker import read_result

Result = dict[str, Any]
Change = Callable[[Result], object]
Write = Callable[[object, Serializer], Path]


@pytest.fixture
def store(tmp_path: Path) -> Write:
    """Return a function that stores a result as Prefect does for a flow, and returns its file."""

    def write(result: object, serializer: Serializer) -> Path:
        (tmp_path / "stored").write_bytes(serializer.dumps(result))
        return tmp_path / "stored"

    return write


@pytest.fixture
def trained_reference() -> TrainedModel:
    digest = "0" * 64
    record = {"stage": "train", "key": digest, "digest": digest, "path": "/trained", "reused": False, "seconds": 1.0}
    device = {"backend": "jax", "kind": "cpu", "name": "a CPU", "count": 1}
    return TrainedModel.model_validate(
        {
            **dict.fromkeys(("topology_sha256", "weights_sha256", "code_sha256", "lock_sha256"), digest),
            **{"record": record, "epochs_run": 1, "seconds": 1.0, "environment": {}, "packages": {}},
            "memory_budget": 1,
            "device": {**device, "dtype_policy": "float32", "mixed_precision": False},
            "trained_by": {"flow_run_id": None, "worker": None, "host": "a host"},
        }
    )


def test_reads_the_result_that_prefect_stored(store: Write, trained_reference: TrainedModel) -> None:
    assert read_result(store(trained_reference, JSONSerializer())) == trained_reference


class Trap:
    """An object whose pickle creates the file ``mark`` when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("named", [False, True], ids=["result", "record that names the serializer"])
@pytest.mark.parametrize(
    "serializer",
    [PickleSerializer(), CompressedSerializer(serializer=PickleSerializer()), PickleSerializer(picklelib="pickle")],
    ids=["pickle", "compressed/pickle", "another pickle library"],
)
def test_refuses_a_pickled_result(store: Write, tmp_path: Path, serializer: Serializer, named: bool) -> None:
    mark = tmp_path / "mark"
    path = store(Trap(mark), serializer)
    if named:  # as Prefect stores the result of a task
        folder = LocalFileSystem(basepath=str(tmp_path))
        ResultStore(result_storage=folder, serializer=serializer).write(Trap(mark), key=path.name)
    with pytest.raises(StoredArtifactError, match="expected the JSON of a TrainedModel") as refused:
        read_result(path)
    assert refused.value.exit_status == 5
    assert str(path) in str(refused.value)
    assert not mark.exists()


def _set(*keys: str, value: object) -> Change:
    def change(result: Result) -> None:
        for key in keys[:-1]:
            result = result[key]
        result[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (_set("__class__", value="subprocess.Popen"), "__class__ 'subprocess.Popen'"),
        (_set("__class__", value=["schemas.references.TrainedModel"]), "__class__"),
        (_set("data", value={"args": ["touch", "mark"]}), "data.record"),
        (_set("data", "record", "path", value={"__class__": "subprocess.Popen", "data": ["true"]}), "data.record.path"),
        (_set("data", "packages", "x", value={"__exc_type__": "SystemExit", "message": "0"}), "data.packages.x"),
        (_set("data", "more", value=1), "data.more"),
        (_set("serializer", value={"type": "pickle"}), "serializer"),
        (lambda result: result.pop("__class__"), "__class__"),
        (lambda result: result.clear(), "__class__"),
    ],
)
def test_refuses_any_other_result(
    store: Write,
    trained_reference: TrainedModel,
    change: Change,
    received: str,
) -> None:
    path = store(trained_reference, JSONSerializer())
    result = json.loads(path.read_bytes())
    change(result)
    path.write_text(json.dumps(result))
    with pytest.raises(StoredArtifactError, match=f"received .*{received}"):
        read_result(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"[" * 100_000, b"{}" * 10_000_000, None])
def test_refuses_any_other_content(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "stored"
    path.write_bytes(content) if content is not None else path.mkdir()
    with pytest.raises(StoredArtifactError, match=f"^{re.escape(str(path))}: expected "):
        read_result(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StoredArtifactError, match="received a link"):
        read_result(tmp_path / "link")
