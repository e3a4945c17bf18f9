"""Run an exported model by its own runtime, in a worker process: ``python -m tasks.model.run_export``.

The process has the exported files only, and imports one runtime. It cannot import Keras unless that is the runtime.
"""

import json
import os
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import StoredArtifactError
from schemas.export import ExportFormat
from tasks.data.splits import open_split
from tasks.model.latency import call_seconds
from tasks.runtime.blocked_imports import blocked_imports
from tasks.runtime.fingerprint import installed_version
from tasks.runtime.worker_process import Emit, run_worker, serve_jobs

# In the archive of a .keras or .tflite file, and in the folder that SavedModels have for files of users.
METADATA_NAME = "fashion_ann.json"
METADATA_PATH = f"assets.extra/{METADATA_NAME}"

_BLOCK_ROWS = 1_000
_CALLS = {1: 100, 1_000: 9}  # measured calls by rows

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Opened:
    """A model that its runtime opened.

    predict: uint8 (N, pixels) to float32 (N, classes). constants: the arrays in the model, weights and others.
    packages: the distributions whose versions are recorded.
    """

    predict: Callable[[Images], npt.NDArray[np.float32]]
    class_names: list[str]
    constants: list[npt.NDArray[Any]]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class ExportOutput:
    """Output of an exported model for all test rows: probabilities, float32 (N, classes).

    arrays: the float32 vectors and matrices in the model. latency_ms: median time of a call, by rows. runtime: the
    versions of its packages.
    """

    probabilities: npt.NDArray[np.float32]
    arrays: list[npt.NDArray[np.float32]]
    class_names: tuple[str, ...]
    latency_ms: dict[str, float]
    runtime: dict[str, str]


def run_export(model: Path, export_format: ExportFormat, prepared: Path) -> ExportOutput:
    """Open ``model`` with its runtime in a fresh process, and predict the test split of ``prepared``.

    Raises `StoredArtifactError` if the runtime cannot open it, cannot run it, or returns another shape or type.
    """
    job = {"model": str(model.absolute()), "format": export_format, "prepared": str(prepared.absolute())}
    with run_worker(__name__, job) as process:
        result = process.result()
        with np.load(result.pop("arrays")) as arrays:
            probabilities, *constants = arrays.values()
        names = tuple(result.pop("class_names"))
        return ExportOutput(class_names=names, probabilities=probabilities, arrays=constants, **result)


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Return class names, latencies, versions and the file of all arrays, as a worker process."""
    model, images = Path(job["model"]), open_split(Path(job["prepared"]), "test").images
    with ExitStack() as stack:
        if job["format"] != "keras":
            stack.enter_context(blocked_imports("keras", "tf_keras"))
        try:
            opened = _OPEN[job["format"]](model)
            predict, class_names = opened.predict, opened.class_names
            blocks = [predict(block) for _, block in images.blocks(_BLOCK_ROWS)]
            latency_ms = {
                str(rows): round(1_000 * statistics.median(call_seconds(predict, images[:rows], rows, calls)), 4)
                for rows, calls in _CALLS.items()
            }
        except ImportError:
            raise
        except Exception as error:  # each runtime has errors of its own
            message = " ".join(str(error).split())[:300]
            raise StoredArtifactError(
                f"{model}: expected a model in the format {job['format']} that takes uint8 (N, {images.shape[1]}). "
                f"Its runtime raised {type(error).__name__}: {message}"
            ) from error
    received = {(block.dtype, block.shape[1:]) for block in blocks}
    if received != {(np.dtype(np.float32), (len(class_names),))}:
        raise StoredArtifactError(
            f"{model}: expected float32 (N, {len(class_names)}), as many as it has class names, received {received}."
        )
    path = str(Path(tempfile.mkdtemp()) / "arrays.npz")  # in the worker's temporary folder
    constants = [array for array in opened.constants if array.ndim in (1, 2) and array.dtype == np.float32]
    np.savez(path, np.concatenate(blocks), *constants)
    versions = {name: version for name in opened.packages if (version := installed_version(name)) is not None}
    return {
        "arrays": path,
        "class_names": class_names,
        "latency_ms": latency_ms,
        "runtime": {"python": ".".join(map(str, sys.version_info[:3])), **versions},
    }


def _open_savedmodel(folder: Path) -> _Opened:
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    serve = loaded.signatures["serving_default"]
    (output,) = serve.structured_outputs
    variables = list(loaded.variables)  # they exist as long as something refers to them

    def predict(images: Images) -> Any:
        return serve(tf.constant(images))[output].numpy()

    class_names = json.loads((folder / METADATA_PATH).read_bytes())["class_names"]
    constants = [variable.numpy() for variable in variables]
    return _Opened(predict, class_names, constants, ("tensorflow", "tensorflow-cpu", "numpy"))


def _open_onnx(path: Path) -> _Opened:
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    (pixels,) = (entry.name for entry in session.get_inputs())
    constants = [onnx.numpy_helper.to_array(entry) for entry in onnx.load(path).graph.initializer]
    return _Opened(
        lambda images: session.run(None, {pixels: images})[0], class_names, constants, ("onnxruntime", "numpy")
    )


def _open_litert(path: Path) -> _Opened:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    run = interpreter.get_signature_runner()
    (output,) = run.get_output_details()
    reader = Interpreter(str(path))  # another one, because an interpreter whose tensors are referred to does not run
    reader.allocate_tensors()
    constants = []
    for tensor in reader.get_tensor_details():
        with suppress(ValueError):  # it is no constant, so it has no value before a call
            constants.append(np.array(reader.get_tensor(tensor["index"])))
    return _Opened(lambda images: run(pixels=images)[output], _in_archive(path), constants, ("ai-edge-litert", "numpy"))


def _open_keras(path: Path) -> _Opened:
    from tasks.model.backend import set_up_backend

    set_up_backend(seed=0, device="cpu")
    import keras

    model = keras.saving.load_model(path)
    packages = ("keras", "tensorflow", "tensorflow-cpu", "numpy")
    return _Opened(
        lambda images: np.asarray(model(images, training=False)), _in_archive(path), model.get_weights(), packages
    )


def _in_archive(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names: list[str] = json.loads(archive.read(METADATA_NAME))["class_names"]
        return names


_OPEN: dict[ExportFormat, Callable[[Path], _Opened]] = {
    "savedmodel": _open_savedmodel,
    "onnx": _open_onnx,
    "litert": _open_litert,
    "keras": _open_keras,
}

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # a GPU adds in another order
    serve_jobs({"tasks.model.run_export": main})
