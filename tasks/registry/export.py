"""Export a stored version for another runtime, after proving that its predictions there are those of the version."""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from schemas.config import PromotionConfig
from schemas.contract import contract_of
from schemas.errors import CandidateRejected, DataUnavailable, StoredArtifactError, WrongUsage
from schemas.export import (
    QUANTIZED_FORMATS,
    ExportCost,
    ExportedFile,
    ExportedModel,
    ExportFormat,
    ExportRecord,
    Quantization,
    QuantizedComparison,
)
from schemas.layout import PREDICTIONS_NAME, TOPOLOGY_NAME, WEIGHTS_NAME, short_key
from schemas.references import StageRecord
from schemas.store import Manifest
from tasks.data.splits import open_split
from tasks.data.statistics import PairedTest, mcnemar
from tasks.model import export as exporter
from tasks.model.export import MODEL_NAMES, require_export_packages
from tasks.model.inference import TOLERANCE
from tasks.model.network import read_network, read_weights
from tasks.model.run_export import ExportOutput, run_export
from tasks.model.test_predictions import StoredPredictions, image_digest, read_predictions
from tasks.registry.store import StoredVersion
from tasks.registry.verify import check_version
from tasks.runtime.files import atomic_folder, describe_files, digest_of, sweep_temporaries, sync_to_disk, write_json
from tasks.runtime.materialize import materialize
from tasks.runtime.stage_cache import read_stage
from tasks.runtime.stages import PREPARE
from tasks.runtime.stored_file import read_json
from tasks.runtime.worker_process import run_worker, scratch_folder

RECORD_NAME = "export.json"
# Train rows that the ranges of activations are measured on.
CALIBRATION_ROWS = 1_000


def export_folder(
    output: Path, dataset: str, number: int, export_format: ExportFormat, quantize: Quantization | None
) -> Path:
    """Return the folder of an export: ``MODEL/VERSION``, the layout of TensorFlow Serving and of Triton.

    MODEL is the dataset for a SavedModel, and has format and quantization behind it for others, such as
    ``fashion-mnist-onnx-int8``. So one ``output`` can have all of them.
    """
    names = (dataset, *(() if export_format == "savedmodel" else (export_format,)), *filter(None, (quantize,)))
    return output / "-".join(names) / str(number)


@dataclass(frozen=True)
class Expected:
    """The facts that an exported model must reproduce.

    layers: of each layer the kernel, float32 (inputs, units), and the vectors that its bias, float32 (units,), may be.
    prepared: folder of the prepared data, with the test rows in the order of ``stored``.
    significance: of the comparison of a quantized model.
    """

    stored: StoredPredictions
    layers: tuple[tuple[npt.NDArray[np.float32], tuple[npt.NDArray[np.float32], ...]], ...]
    class_names: tuple[str, ...]
    prepared: Path
    significance: float


def export_version(
    version: StoredVersion,
    export_format: ExportFormat,
    output: Path,
    artifacts_dir: Path,
    quantize: Quantization | None = None,
) -> ExportedModel:
    """Write ``version`` for another runtime to `export_folder`, with export.json, if it passes `prove`.

    The model is written elsewhere first, so a rejected one leaves nothing in ``output``. An export that exists already
    is proven again and left as it is.

    Raises the errors of `prove` and of `require_export_packages`, and also:

    - `WrongUsage` for a quantization that the format lacks, and for an ``output`` that cannot be written
    - `DataUnavailable` if the prepared data was removed
    - `StoredArtifactError` for a damaged version or export
    """
    if quantize is not None and export_format not in QUANTIZED_FORMATS:
        raise WrongUsage(
            f"--quantize {quantize}: expected the format {' or '.join(QUANTIZED_FORMATS)}, received {export_format}."
        )
    folder = export_folder(output, version.manifest.dataset, version.number, export_format, quantize)
    if not folder.exists():
        _require_writable(folder)
    require_export_packages(export_format)
    expected = expected_of(version, artifacts_dir)
    if folder.exists():
        return _prove_again(folder, version, export_format, quantize, expected)
    with scratch_folder("export") as scratch:
        model, float_model = scratch / "model", scratch / "float"
        targets = {model: None} if quantize is None else {float_model: None, model: CALIBRATION_ROWS}
        converter = _convert(version, export_format, targets, expected.prepared)
        # A fault of the conversion must not pass as an effect of the quantization.
        float_cost = None
        if quantize is not None:
            float_cost = _cost(_files_of(float_model), prove(float_model, export_format, expected))
        proven = prove(model, export_format, expected, quantize)
        files = _files_of(model)
        record = _record(version, export_format, quantize, files, expected, proven, converter, float_cost)
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(folder)
        try:
            with atomic_folder(folder) as temporary:
                _copy_files(model, temporary, record)
                write_json(temporary / RECORD_NAME, record.model_dump())
                for path in (*temporary.rglob("*"), temporary):
                    sync_to_disk(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process has exported it meanwhile
                return _prove_again(folder, version, export_format, quantize, expected)
            # The error of a full disk names no file.
            error.filename = error.filename or str(folder)
            raise
        sync_to_disk(folder.parent)
    return _reference(folder, record, created=True)


def _prove_again(
    folder: Path,
    version: StoredVersion,
    export_format: ExportFormat,
    quantize: Quantization | None,
    expected: Expected,
) -> ExportedModel:
    """Return an existing export, with what was measured now. Raises as `export_version` does."""
    record = read_export(folder)
    if record.manifest_sha256 != version.manifest.manifest_sha256:
        raise WrongUsage(
            f"{folder} is the export of another version {record.version}: expected the manifest "
            f"{version.manifest.manifest_sha256}, received {record.manifest_sha256}. Choose another --output."
        )
    proven = prove(folder, export_format, expected, quantize)
    float_cost = None if record.quantized is None else record.quantized.float_cost
    now = _record(version, export_format, quantize, record.files, expected, proven, record.converter, float_cost)
    for name in ("dataset", "version", "format", "quantize", "class_names", "rows"):
        if (received := getattr(record, name)) != getattr(now, name):
            raise StoredArtifactError(
                f"{folder / RECORD_NAME}: expected {name} {getattr(now, name)}, received {received}. The export was "
                f"changed. Remove {folder} and export again."
            )
    if (record.quantized is None) != (quantize is None):
        raise StoredArtifactError(
            f"{folder / RECORD_NAME}: expected the comparison of a quantized model only for one. Remove {folder} and "
            "export again."
        )
    return _reference(folder, now, created=False)


def _copy_files(model: Path, folder: Path, record: ExportRecord) -> None:
    for name in record.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((model / name).read_bytes())
    _require_files(folder, record)


def expected_of(version: StoredVersion, artifacts_dir: Path) -> Expected:
    """Return the facts that an export of ``version`` must reproduce.

    Raises `DataUnavailable` if its prepared data was removed, and `StoredArtifactError` if that or the version is
    damaged.
    """
    check_version(version)
    manifest = version.manifest
    contract = contract_of(manifest.dataset)
    stored = read_predictions(version.path(PREDICTIONS_NAME), contract, version.digests[PREDICTIONS_NAME])
    prepared = _prepared_folder(manifest, artifacts_dir)
    images = open_split(prepared, "test").images
    if [image_digest(image) for _, block in images.blocks() for image in block] != stored.images:
        raise StoredArtifactError(
            f"{prepared}: expected the {len(stored.images):,} test images of version {version.number} in their order, "
            f"received {len(images):,} others."
        )
    # A version of another release may lack the setting.
    significance = float(str(manifest.promotion.get("significance", PromotionConfig().significance)))
    network = read_network(version.folder / TOPOLOGY_NAME, version.digests)
    weights = read_weights(version.folder / WEIGHTS_NAME, network, version.digests)
    layers: list[tuple[Any, tuple[Any, ...]]]
    layers = [(kernel, (bias,)) for kernel, bias in zip(weights[::2], weights[1::2], strict=True)]
    # LiteRT's converter normalizes in the first layer: what normalization subtracts becomes a part of the bias.
    kernel, (bias,) = layers[0]
    low, high = contract.scale
    layers[0] = kernel, (bias, bias - np.float32(low / (high - low)) * kernel.sum(axis=0))
    return Expected(stored, tuple(layers), contract.class_names, prepared, significance)


def _convert(
    version: StoredVersion, export_format: ExportFormat, targets: Mapping[Path, int | None], prepared: Path
) -> dict[str, str]:
    """Run `tasks.model.export.main` in a fresh process, and return the versions of the converting packages."""
    manifest = version.manifest
    contract = contract_of(manifest.dataset)
    job = {
        "folder": str(version.folder.absolute()),
        "digests": version.digests,
        "format": export_format,
        "scale": contract.scale._asdict(),
        "metadata": {
            "dataset": manifest.dataset,
            "version": version.number,
            "manifest_sha256": manifest.manifest_sha256,
            "class_names": contract.class_names,
        },
        "targets": [(str(folder), rows) for folder, rows in targets.items()],
        "prepared": str(prepared.absolute()),
        "seed": manifest.seed,
    }
    with run_worker(exporter.__name__, job) as process:
        converter: dict[str, str] = process.result()
        return converter


def prove(
    folder: Path, export_format: ExportFormat, expected: Expected, quantize: Quantization | None = None
) -> ExportOutput:
    """Run the export in ``folder`` with its own runtime on all test rows, and compare it with the stored predictions.

    Raises `StoredArtifactError` for other class names, a probability that differs by more than `TOLERANCE`, another
    predicted class, or other weights. For a quantized model raises `CandidateRejected` instead, if the float model is
    better by McNemar's exact test.
    """
    path = folder / (MODEL_NAMES[export_format] or "")
    output, stored = run_export(path, export_format, expected.prepared), expected.stored
    if output.class_names != expected.class_names:
        raise StoredArtifactError(
            f"{path}: expected the classes {', '.join(expected.class_names)}, received {', '.join(output.class_names)}."
        )
    if output.probabilities.shape != stored.probabilities.shape or not np.isfinite(output.probabilities).all():
        raise StoredArtifactError(
            f"{path}: expected finite probabilities {stored.probabilities.shape}, received "
            f"{output.probabilities.shape}, or some that are not finite."
        )
    difference, changed = difference_from(output.probabilities, stored)
    if quantize is None:
        if difference > TOLERANCE or changed:
            raise StoredArtifactError(
                f"{path}: expected the stored probabilities of {len(stored.labels):,} test rows within {TOLERANCE} and "
                f"the same classes, received a largest difference of {difference:.3g} and {changed} rows of another "
                "class. The export is rejected."
            )
        # A weight of a pixel that is 0 in all test rows, or of an inactive unit, changes no prediction.
        for place, (kernel, biases) in enumerate(expected.layers, start=1):
            if not (_contains(output.arrays, kernel) and any(_contains(output.arrays, bias) for bias in biases)):
                raise StoredArtifactError(
                    f"{path}: expected the stored weights of layer {place}, or a multiple of them, received others. "
                    "The export is rejected."
                )
        return output
    paired = compared(output, stored)
    if paired.p_value < expected.significance and paired.broken > paired.fixed:
        raise CandidateRejected(
            f"{path}: the {quantize} model is worse than the float model on the same {paired.rows:,} test rows "
            f"({paired.fixed} fixed, {paired.broken} broken, p = {paired.p_value:.3g}, expected >= "
            f"{expected.significance}). The export is rejected. Export it without --quantize."
        )
    return output


def _contains(arrays: Sequence[npt.NDArray[np.float32]], weights: npt.NDArray[np.float32]) -> bool:
    """Return whether an array is ``weights`` or its transpose, times one number.

    LiteRT's converter multiplies by the scale of pixels.
    """
    stored = weights.astype(np.float64)
    square = np.vdot(stored, stored)
    for array in arrays:
        for found in (array.astype(np.float64), array.astype(np.float64).T):
            if found.shape != stored.shape:
                continue
            factor = float(np.vdot(found, stored) / square) if square else 0.0
            # float32 rounds by 6e-8 of a value, and sums thousands. Zeros are no multiple of anything else.
            largest = 1e-5 * abs(factor) * np.abs(stored).max()
            if np.abs(found - factor * stored).max() <= largest and bool(factor) == bool(square):
                return True
    return False


def compared(output: ExportOutput, stored: StoredPredictions) -> PairedTest:
    """Return the paired test of an exported model against the stored predictions, on the same test rows."""
    return mcnemar(output.probabilities.argmax(axis=1) == stored.labels, stored.right)


def difference_from(probabilities: npt.NDArray[np.float32], stored: StoredPredictions) -> tuple[float, int]:
    """Return the largest absolute difference from the stored probabilities, and the number of rows of another class."""
    difference = float(np.abs(probabilities.astype(np.float64) - stored.probabilities).max())
    return difference, int((probabilities.argmax(axis=1) != stored.predicted).sum())


def read_export(folder: Path) -> ExportRecord:
    """Return the record of an export after checking the digest of every file.

    Raises `WrongUsage` for a folder without a record, and `StoredArtifactError` for other files than it lists.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        raise WrongUsage(f"{folder} exists, and has no {RECORD_NAME}: it is no export. Choose another --output.")
    try:
        record = ExportRecord.model_validate(read_json(path))
    except ValidationError as error:
        raise StoredArtifactError(f"{path}: {error.errors()[0]['msg']}. Remove {folder}.") from error
    _require_files(folder, record)
    return record


def _require_files(folder: Path, record: ExportRecord) -> None:
    actual = describe_files(folder)
    actual.pop(RECORD_NAME, None)
    for name in sorted({*actual, *record.files}):
        expected = record.files.get(name)
        received = actual.get(name, {}).get("sha256")
        if expected is None or received != expected.sha256:
            wanted = "no such file" if expected is None else f"sha256 {expected.sha256}"
            raise StoredArtifactError(
                f"{folder / name}: expected {wanted}, received {received or 'none'}. The export was changed. Remove "
                f"{folder} and export again."
            )


def _require_writable(folder: Path) -> None:
    """Raise `WrongUsage` unless ``folder`` can be made."""
    nearest = next(path for path in folder.parents if os.path.lexists(path))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise WrongUsage(
            f"The export goes to {folder}, but {nearest} is not a folder that can be written to. Choose another "
            "--output."
        )


def _prepared_folder(manifest: Manifest, artifacts_dir: Path) -> Path:
    """Return the folder of the prepared data of a version, after checking its digests.

    Raises `DataUnavailable` if it was removed, and `StoredArtifactError` if it was changed.
    """
    stage = manifest.stage(PREPARE.name)
    folder = PREPARE.outputs(artifacts_dir) / short_key(stage.key)
    record = StageRecord(path=folder, **stage.model_dump(include=StageRecord.model_fields.keys() - {"path"}))
    folder = materialize(record, artifacts_dir).path
    if not folder.is_dir():
        files = " and ".join(
            f"{data.file} with sha256 {data.csv_sha256}" for data in (manifest.data.train, manifest.data.test)
        )
        raise DataUnavailable(
            f"The prepared data of version {manifest.version} is missing: expected {folder}. An export is compared on "
            f"its test rows. Put {files} into the data folder, and run `fashion-ann train` to prepare it again."
        )
    if (actual := digest_of(read_stage(folder)["files"])) != stage.digest:
        raise StoredArtifactError(f"{folder}: expected an output with digest {stage.digest}, received {actual}.")
    return folder


def _record(
    version: StoredVersion,
    export_format: ExportFormat,
    quantize: Quantization | None,
    files: dict[str, ExportedFile],
    expected: Expected,
    proven: ExportOutput,
    converter: dict[str, str],
    float_cost: ExportCost | None,
) -> ExportRecord:
    stored = expected.stored
    difference, changed = difference_from(proven.probabilities, stored)
    quantized = None
    if float_cost is not None:
        paired = compared(proven, stored)
        quantized = QuantizedComparison(
            calibration_rows=min(CALIBRATION_ROWS, version.manifest.data.split_rows["train"]),
            fixed=paired.fixed,
            broken=paired.broken,
            p_value=paired.p_value,
            test_accuracy=float((proven.probabilities.argmax(axis=1) == stored.labels).mean()),
            float_cost=float_cost,
        )
    return ExportRecord.model_validate(
        {
            "dataset": version.manifest.dataset,
            "version": version.number,
            "manifest_sha256": version.manifest.manifest_sha256,
            "format": export_format,
            "quantize": quantize,
            "class_names": proven.class_names,
            "files": files,
            "converter": converter,
            "runtime": proven.runtime,
            "rows": len(stored.labels),
            "largest_difference": difference,
            "changed_classes": changed,
            "cost": _cost(files, proven),
            "quantized": quantized,
        }
    )


def _files_of(model: Path) -> dict[str, ExportedFile]:
    return {name: ExportedFile.model_validate(entry) for name, entry in describe_files(model).items()}


def _cost(files: dict[str, ExportedFile], proven: ExportOutput) -> ExportCost:
    size = sum(entry.bytes for entry in files.values())
    return ExportCost.model_validate({"bytes": size, "latency_ms": proven.latency_ms})


def _reference(folder: Path, record: ExportRecord, *, created: bool) -> ExportedModel:
    path = folder / (MODEL_NAMES[record.format] or "")
    return ExportedModel(path=path, record_path=folder / RECORD_NAME, created=created, record=record)
