"""The result of a gpu worker is read as JSON of one class. Nothing that its file names is imported or run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import CompressedSerializer, JSONSerializer, PickleSerializer, Serializer

from schemas.errors import StoredArtifactError
from schemas.references import TrainedModel
from tasks.train_on_worker import read_result

Record = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Callable[[object, Serializer], Path]:
    """Return a function that stores a result as Prefect does, and returns its file."""

    def write(result: object, serializer: Serializer) -> Path:
        ResultStore(result_storage=LocalFileSystem(basepath=str(tmp_path)), serializer=serializer).write(
            result, key="stored"
        )
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
            "device": {**device, "dtype_policy": "float32", "mixed_precision": False},
            "trained_by": {"flow_run_id": None, "worker": None, "host": "a host"},
        }
    )


def test_reads_the_result_that_prefect_stored(
    store: Callable[[object, Serializer], Path], trained_reference: TrainedModel
) -> None:
    assert read_result(store(trained_reference, JSONSerializer())) == trained_reference


class Trap:
    """An object whose pickle creates the file ``mark`` when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "serializer",
    [PickleSerializer(), CompressedSerializer(serializer=PickleSerializer()), PickleSerializer(picklelib="pickle")],
    ids=["pickle", "compressed/pickle", "another pickle library"],
)
def test_refuses_a_pickled_result(
    store: Callable[[object, Serializer], Path], tmp_path: Path, serializer: Serializer
) -> None:
    mark = tmp_path / "mark"
    path = store(Trap(mark), serializer)
    with pytest.raises(StoredArtifactError, match=r"metadata\.serializer\.type '") as refused:
        read_result(path)
    assert refused.value.exit_status == 5
    assert str(path) in str(refused.value)
    assert not mark.exists()


def _set(*keys: str, value: object) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


def _of_class(name: str) -> Callable[[Record], None]:
    return _set("result", value=json.dumps({"__class__": name, "data": {"args": ["touch", "mark"]}}))


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (_set("metadata", "serializer", "type", value="subprocess.Popen"), "metadata.serializer.type"),
        (_set("metadata", "serializer", "jsonlib", value="a.module"), "metadata.serializer.jsonlib"),
        (_set("metadata", "serializer", "object_decoder", value="os.system"), "metadata.serializer.object_decoder"),
        (_set("metadata", "serializer", value=None), "metadata.serializer"),
        (_set("metadata", value=[]), "metadata"),
        (_set("metadata", "serializer", value={}), "metadata.serializer.type"),
        (_of_class("subprocess.Popen"), "__class__"),
        (_of_class("schemas.references.TrainedModel"), "result.data"),
        (_set("result", value="not JSON"), "result"),
        (_set("result", value={"__class__": "schemas.references.TrainedModel"}), "result"),
        (_set("result", value=cloudpickle.dumps(1).hex()), "result"),
        (lambda record: record.clear(), "metadata"),
    ],
)
def test_refuses_any_other_record(
    store: Callable[[object, Serializer], Path],
    trained_reference: TrainedModel,
    change: Callable[[Record], None],
    received: str,
) -> None:
    path = store(trained_reference, JSONSerializer())
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(StoredArtifactError, match=f"received .*{received}"):
        read_result(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"[" * 100_000, b"{}" * 10_000_000, None])
def test_refuses_any_other_content(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "stored"
    path.write_bytes(content) if content is not None else path.mkdir()
    with pytest.raises(StoredArtifactError, match="Remove the file"):
        read_result(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StoredArtifactError, match="no such file"):
        read_result(tmp_path / "link")
