"""Write a stored network in the format of another runtime, in a worker process: ``python -m tasks.model.export``.

The exported network takes bytes, uint8 (N, pixels), normalizes them itself, and returns probabilities, float32
(N, classes). A caller cannot forget the normalization.
"""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.config import install_command
from schemas.contract import PixelScale
from schemas.errors import ExtraNotInstalled
from schemas.export import ExportFormat
from schemas.layout import TOPOLOGY_NAME, WEIGHTS_NAME
from tasks.data.splits import open_split
from tasks.model.backend import set_up_backend
from tasks.model.network import load_network
from tasks.model.run_export import METADATA_NAME, METADATA_PATH
from tasks.runtime.fingerprint import installed_version
from tasks.runtime.worker_process import Emit, serve_jobs

# The model's file by format. None: the folder itself is the model.
MODEL_NAMES: Mapping[ExportFormat, str | None] = {
    "savedmodel": None,
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "keras": "model.keras",
}
# Packages that a format needs beside TensorFlow, by the names of their imports.
_MODULES: Mapping[ExportFormat, tuple[str, ...]] = {
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
}
_CONVERTERS = ("keras", "tensorflow", "tensorflow-cpu", "tf2onnx", "onnx", "onnxruntime")


def require_export_packages(export_format: ExportFormat) -> None:
    """Raise `ExtraNotInstalled` unless the packages of a format are installed. They are not imported."""
    missing = [name for name in _MODULES.get(export_format, ()) if find_spec(name) is None]
    if missing:
        raise ExtraNotInstalled(
            f"The format {export_format} needs {', '.join(missing)}, which is not installed. Install the extra export "
            f"with `{install_command('export')}`, or choose the format savedmodel or keras."
        )


def with_scaling(network: Any, scale: PixelScale) -> Any:
    """Return a `keras.Model` that normalizes uint8 (N, pixels) by ``scale`` and applies the layers of ``network``."""
    import keras

    pixels = keras.Input((network.input_shape[1],), dtype="uint8", name="pixels")
    width = scale.maximum - scale.minimum
    values = keras.layers.Rescaling(1 / width, -scale.minimum / width, name="scale")(pixels)
    for layer in network.layers[1:]:
        values = layer(values)
    return keras.Model(pixels, values, name=network.name)


def write_export(
    model: Any,
    export_format: ExportFormat,
    folder: Path,
    metadata: Mapping[str, Any],
    calibration: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Write a Keras model with its metadata to the new ``folder``.

    calibration: images, uint8 (n, pixels), that the ranges of int8 activations are measured on; onnx and litert only.
    None writes float32.
    """
    folder.mkdir()
    path = folder / (MODEL_NAMES[export_format] or "")
    match export_format:
        case "savedmodel":
            model.export(path, format="tf_saved_model", verbose=False)
            described = path / METADATA_PATH
            described.parent.mkdir()
            described.write_text(json.dumps(dict(metadata), indent=2), encoding="utf-8")
        case "onnx":
            _write_onnx(model, path, metadata, calibration)
        case "litert":
            model = _with_named_output(model)
            model.export(path, format="litert", verbose=False, **({} if calibration is None else _int8(calibration)))
        case "keras":
            model.save(path)
    if export_format in ("litert", "keras"):
        # A .keras file is a zip archive. TFLite's convention for associated files is an archive behind the model.
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(METADATA_NAME, json.dumps(dict(metadata), indent=2))


def _with_named_output(model: Any) -> Any:
    """Return the model with an output that converters name: theirs would be ``output_0`` or ``Identity:0``."""
    import keras

    return keras.Model(model.input, {"probabilities": model.output}, name=model.name)


def _write_onnx(model: Any, path: Path, metadata: Mapping[str, Any], calibration: npt.NDArray[np.uint8] | None) -> None:
    import keras
    import onnx

    layers = [layer for layer in model.layers if getattr(layer, "activation", None) is keras.activations.gelu]
    for layer in layers:
        layer.activation = _gelu
    named = _with_named_output(model)
    named(np.zeros((1, model.input_shape[1]), np.uint8))  # Keras converts only a model that was called
    named.export(path, format="onnx", verbose=False)
    for layer in layers:
        layer.activation = keras.activations.gelu
    if calibration is not None:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
            def __init__(self) -> None:
                self._blocks = iter([{"pixels": calibration}])

            def get_next(self) -> dict[str, Any] | None:
                return next(self._blocks, None)

        # Weights and activations in signed bytes, ONNX Runtime's default: unsigned ones saturate on CPUs without VNNI.
        # The products only: softmax in 8 bits would make classes tie.
        products = ["MatMul", "Gemm"]
        quantize_static(path, path, Images(), per_channel=True, op_types_to_quantize=products)
    stored = onnx.load(path)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(stored, texts)
    onnx.save(stored, path)


def _gelu(values: Any) -> Any:
    """Return GELU by ``erf``: tf2onnx does not convert ``erfc``, by which Keras computes it with TensorFlow."""
    import keras

    return 0.5 * values * (1 + keras.ops.erf(values * 0.5**0.5))


def _int8(calibration: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return the converter's attributes for int8 weights and activations."""
    import tensorflow as tf

    def images() -> Iterator[list[npt.NDArray[np.uint8]]]:
        for image in calibration:
            yield [image[None]]

    operations = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    return {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": images,
        "target_spec": {"supported_ops": operations},
    }


def calibration_images(prepared: Path, rows: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return a sample of the train images of ``prepared``, uint8 (n, pixels): at most ``rows``, the same per seed."""
    images = open_split(prepared, "train").images
    chosen = np.random.default_rng(seed).choice(len(images), min(rows, len(images)), replace=False)
    return images[np.sort(chosen)]


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Write each of ``targets``, and return the versions of the converting packages, as a worker process.

    targets: folders with the number of train rows to calibrate on, None for float32.
    """
    set_up_backend(seed=0, device="cpu")
    folder = Path(job["folder"])
    network = load_network(folder / TOPOLOGY_NAME, folder / WEIGHTS_NAME, job["digests"])
    model = with_scaling(network, PixelScale(**job["scale"]))
    for target, rows in job["targets"]:
        images = None if rows is None else calibration_images(Path(job["prepared"]), rows, job["seed"])
        write_export(model, job["format"], Path(target), job["metadata"], images)
    return {name: version for name in _CONVERTERS if (version := installed_version(name)) is not None}


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the only backend with all formats
    serve_jobs({"tasks.model.export": main})
