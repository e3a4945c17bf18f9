"""Define the export of a version: a model file for another runtime, and the record beside it."""

from pathlib import Path
from typing import Literal

from schemas.references import Reference
from schemas.store import Digest

ExportFormat = Literal["savedmodel", "onnx", "litert", "keras"]
Quantization = Literal["int8"]
QUANTIZED_FORMATS: tuple[ExportFormat, ...] = ("onnx", "litert")


class ExportedFile(Reference):
    bytes: int
    sha256: Digest


class ExportCost(Reference):
    """Size of a model's files, and the median time of a call with 1 and with 1,000 rows, in milliseconds."""

    bytes: int
    latency_ms: dict[Literal["1", "1000"], float]


class QuantizedComparison(Reference):
    """A quantized model compared with the float one, on the same test rows.

    calibration_rows: number of train rows that its ranges were measured on. fixed: rows that only the quantized model
    predicts correctly. broken: rows that only the float model predicts correctly. p_value: of McNemar's exact test.
    """

    calibration_rows: int
    fixed: int
    broken: int
    p_value: float
    test_accuracy: float
    float_cost: ExportCost


class ExportRecord(Reference):
    """The content of export.json.

    manifest_sha256: `schemas.store.Manifest.manifest_sha256` of the version.
    files: the files of the export by relative path, without export.json.
    converter, runtime: versions of the packages that wrote the model, and of those that ran it.
    largest_difference: largest absolute difference of a probability from the stored one, over all ``rows`` of test.
    changed_classes: number of rows with another predicted class than the stored one; 0 unless quantized.
    """

    dataset: str
    version: int
    manifest_sha256: Digest
    format: ExportFormat
    quantize: Quantization | None
    class_names: tuple[str, ...]
    files: dict[str, ExportedFile]
    converter: dict[str, str]
    runtime: dict[str, str]
    rows: int
    largest_difference: float
    changed_classes: int
    cost: ExportCost
    quantized: QuantizedComparison | None


class ExportedModel(Reference):
    """A proven export. path: what its runtime opens, a file or the folder of a SavedModel.

    created: False if an earlier export was there, and was proven again.
    """

    path: Path
    record_path: Path
    created: bool
    record: ExportRecord
