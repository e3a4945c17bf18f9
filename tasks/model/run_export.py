"""Run an exported model by its own runtime, in a worker process: ``python -m tasks.model.run_export``.

The process has the exported files only, and imports one runtime. It cannot import Keras unless that is the runtime.
"""

import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import StoredArtifactError
from schemas.export import ExportFormat
from tasks.data.splits import open_split
from tasks.runtime.blocked_imports import blocked_imports
from tasks.runtime.fingerprint import installed_version
from tasks.runtime.worker_process import Emit, run_worker, serve_jobs

# In the archive of a .keras or .tflite file, and in the folder that SavedModels have for files of users.
METADATA_NAME = "fashion_ann.json"
METADATA_PATH = f"assets.extra/{METADATA_NAME}"

_BLOCK_ROWS = 1_000
_CALLS = {1: 100, 1_000: 9}  # measured calls by rows

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ExportOutput:
    """Output of an exported model for all test rows: probabilities, float32 (N, classes).

    latency_ms: median time of a call, by rows. runtime: the versions of its packages.
    """

    probabilities: npt.NDArray[np.float32]
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
        probabilities = np.load(result.pop("probabilities"))
        return ExportOutput(**{**result, "class_names": tuple(result["class_names"])}, probabilities=probabilities)


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Return class names, latencies, versions and the file of the probabilities, as a worker process."""
    model, images = Path(job["model"]), open_split(Path(job["prepared"]), "test").images
    with ExitStack() as stack:
        if job["format"] != "keras":
            stack.enter_context(blocked_imports("keras", "tf_keras"))
        try:
            predict, class_names, packages = _OPEN[job["format"]](model)
            blocks = [predict(block) for _, block in images.blocks(_BLOCK_ROWS)]
            thousand = np.resize(images[:_BLOCK_ROWS], (_BLOCK_ROWS, images.shape[1]))
            latency_ms = {str(rows): _latency(predict, thousand[:rows], calls) for rows, calls in _CALLS.items()}
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
    path = str(Path(tempfile.mkdtemp()) / "probabilities.npy")  # in the worker's temporary folder
    np.save(path, np.concatenate(blocks))
    versions = {name: version for name in packages if (version := installed_version(name)) is not None}
    return {
        "probabilities": path,
        "class_names": class_names,
        "latency_ms": latency_ms,
        "runtime": {"python": ".".join(map(str, sys.version_info[:3])), **versions},
    }


def _latency(predict: Predict, images: npt.NDArray[np.uint8], calls: int) -> float:
    """Return the median time of a call in milliseconds, after one that is not measured."""
    predict(images)
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        predict(images)
        times.append(time.perf_counter() - started)
    return round(1_000 * statistics.median(times), 4)


def _open_savedmodel(folder: Path) -> tuple[Predict, list[str], tuple[str, ...]]:
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    serve = loaded.signatures["serving_default"]
    (output,) = serve.structured_outputs
    class_names = json.loads((folder / METADATA_PATH).read_bytes())["class_names"]

    def predict(images: npt.NDArray[np.uint8], loaded: Any = loaded) -> Any:  # which keeps the variables
        return serve(tf.constant(images))[output].numpy()

    return predict, class_names, ("tensorflow", "tensorflow-cpu", "numpy")


def _open_onnx(path: Path) -> tuple[Predict, list[str], tuple[str, ...]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    (pixels,) = (entry.name for entry in session.get_inputs())
    return (lambda images: session.run(None, {pixels: images})[0]), class_names, ("onnxruntime", "numpy")


def _open_litert(path: Path) -> tuple[Predict, list[str], tuple[str, ...]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    run = interpreter.get_signature_runner()
    (output,) = run.get_output_details()
    return (lambda images: run(pixels=images)[output]), _in_archive(path), ("ai-edge-litert", "numpy")


def _open_keras(path: Path) -> tuple[Predict, list[str], tuple[str, ...]]:
    from tasks.model.backend import set_up_backend

    set_up_backend(seed=0, device="cpu")
    import keras

    model = keras.saving.load_model(path)
    packages = ("keras", "tensorflow", "tensorflow-cpu", "numpy")
    return (lambda images: np.asarray(model(images, training=False))), _in_archive(path), packages


def _in_archive(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names: list[str] = json.loads(archive.read(METADATA_NAME))["class_names"]
        return names


_OPEN: dict[ExportFormat, Callable[[Path], tuple[Predict, list[str], tuple[str, ...]]]] = {
    "savedmodel": _open_savedmodel,
    "onnx": _open_onnx,
    "litert": _open_litert,
    "keras": _open_keras,
}

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # a GPU adds in another order
    serve_jobs({"tasks.model.run_export": main})
