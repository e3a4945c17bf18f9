"""References: the small frozen objects that pass between tasks. They serialize as JSON, for workers elsewhere.

Paths are absolute. A digest is a sha256 in hexadecimal.
"""

import hashlib
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.contract import Split
from schemas.predictions import EstimatedAccuracy, MeasuredAccuracy, PairedLabels, ShadowComparison


class Reference(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageRecord(Reference):
    """A stage's output: its folder, its cache key, its digest, and whether this run reused it.

    split: set for a stage that runs per split.
    key: digest of everything that the output depends on. digest: that of the output itself.
    seconds: the time that building it took, in the run that built it.
    """

    stage: str
    split: Split | None = None
    key: str
    digest: str
    path: Path
    reused: bool
    seconds: float


class CsvFile(Reference):
    """One CSV on disk. ``sha256`` is the digest of the stored file, compressed or not."""

    path: Path
    sha256: str


class CsvSplit(Reference):
    """The CSVs of a split: one file, or several shards in the order of their names.

    origin: "fetched" for the published data, whose rows are known; "supplied" for files of the user.
    """

    split: Split
    files: tuple[CsvFile, ...] = Field(min_length=1)
    origin: Literal["supplied", "fetched"]

    @property
    def sha256(self) -> str:
        """Return the file's digest; for shards, the output of ``sha256sum SHARD.. | sha256sum`` in their folder."""
        return self.files[0].sha256 if len(self.files) == 1 else sha256sum_digest(self.files)

    @property
    def name(self) -> str:
        """Return the name to show: the file's, or that of the first shard with the number of the others."""
        first = self.files[0].path.name
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more"


def sha256sum_digest(files: Iterable[CsvFile]) -> str:
    """Return one digest of several files: the sha256 of the output of ``sha256sum`` for them, ordered by name."""
    lines = sorted((file.path.name, file.sha256) for file in files)
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode()).hexdigest()


class ParquetPart(Reference):
    """The rows of one CSV of a split as a Parquet file. source: the name of the CSV."""

    source: str
    path: Path
    sha256: str
    rows: int


class ParquetSplit(Reference):
    """One split as a folder of Parquet files, one per CSV: the contract's columns in order, uint8, no nulls.

    content: digest of the rows in order. It does not depend on how they are divided into files.
    quarantined: number of bad rows of the source, which are in quarantine instead.
    """

    record: StageRecord
    split: Split
    path: Path
    content: str
    parts: tuple[ParquetPart, ...] = Field(min_length=1)
    rows: int
    quarantined: int
    origin: Literal["supplied", "fetched"]
    source: CsvSplit

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the paths of the Parquet files, in the order of the rows."""
        return tuple(part.path for part in self.parts)

    @property
    def sha256(self) -> str:
        """Return the digest of the Parquet file; of several, the output of ``sha256sum PART.. | sha256sum``."""
        if len(self.parts) == 1:
            return self.parts[0].sha256
        return sha256sum_digest(CsvFile(path=part.path, sha256=part.sha256) for part in self.parts)


class DuplicateReport(Reference):
    """Numbers of rows whose image occurs more than once. Rows are counted, not pairs.

    test_rows_near_train: test rows that are near duplicates of a train image; the other counts are of exact ones.
    """

    within_train: int
    within_test: int
    test_rows_in_train: int
    test_rows_near_train: int


class CheckResult(Reference):
    """A measured value of a split compared with one bound of its `schemas.contract.Check`, such as ``<= 0.1``.

    severity: "warning" if a value beyond the bound logs a warning, "critical" if it rejects the split.
    says: a detail for people, such as the number of images concerned.
    """

    check: str
    figure: float
    bound: str
    severity: Literal["warning", "critical"]
    result: Literal["met", "warned"]
    says: str


class ValidatedSplit(Reference):
    """A split that passed validation.

    result: path of the whole result as JSON. warnings: one sentence each.
    duplicates: set for a test split, which is compared with its train split.
    """

    record: StageRecord
    data: ParquetSplit
    result: Path
    expectations: int
    checks: tuple[CheckResult, ...]
    warnings: tuple[str, ...]
    duplicates: DuplicateReport | None


class PreparedData(Reference):
    """Arrays for Keras under ``record.path``.

    ``train/`` and ``test/`` have the images and labels of each part, under names of `schemas.layout`.
    `tasks.data.splits.open_split` opens train, validation or test, and normalizes the images.

    sha256: digest of the content, which does not depend on the number of parts. Cache keys use it instead of the digest
        of ``record``.
    test_rows, duplicates: 0 and None if the test split was left out.
    """

    record: StageRecord
    sha256: str
    dataset: str
    train_rows: int
    validation_rows: int
    test_rows: int
    duplicates: DuplicateReport | None


class Device(Reference):
    """The device that a model was trained on, as the backend names it. None marks what does not apply.

    count: number of devices of that name that shared the work.
    driver, cuda: versions of NVIDIA's driver and of the backend's CUDA.
    dtype_policy, mixed_precision: Keras's policy, and whether layers compute in another type than they store.
    tensor_float_32: whether a float32 product may be rounded to 10 bits.
    memory_growth: whether memory is allocated as needed, not all of it at the start.
    """

    kind: Literal["cpu", "gpu"]
    name: str
    count: int = 1
    backend: str
    driver: str | None = None
    cuda: str | None = None
    dtype_policy: str
    mixed_precision: bool
    tensor_float_32: bool | None = None
    memory_growth: bool | None = None


class TrainedBy(Reference):
    """The flow run, the worker and the host that trained a model. None outside a flow run or without a worker."""

    flow_run_id: str | None
    worker: str | None
    host: str


class TrainedModel(Reference):
    """Topology, weights and history under ``record.path``.

    The device and all below it are those of the run that trained, also for a reused model. environment: the variables
    that may change the weights, see `tasks.model.backend.environment`. code_sha256: digest of the code that trained.
    memory_budget: bytes for images in that run.
    """

    record: StageRecord
    memory_budget: int
    topology_sha256: str
    weights_sha256: str
    epochs_run: int
    seconds: float
    device: Device
    trained_by: TrainedBy
    environment: dict[str, str]
    code_sha256: str
    lock_sha256: str
    packages: dict[str, str]


class Evaluation(Reference):
    """Metrics of a model on the test split; ``metrics.json`` under ``record.path`` has all of them.

    golden_difference: largest difference between the golden predictions and those of the stored model in a fresh
    process.
    """

    record: StageRecord
    test_accuracy: float
    test_loss: float
    golden_difference: float


class ModelVersion(Reference):
    """One immutable version in the store. ``created`` is False if an earlier run created it from the same inputs.

    waiting: the promotion policy "ask" left its promotion to a person, and it has not been promoted since.
    """

    version: int
    path: Path
    created: bool
    champion: bool
    waiting: bool
    verdict: str
    test_accuracy: float
    test_loss: float


class Tuning(Reference):
    """The result of a study. ``finished`` counts completed and pruned trials, ``best`` is the number of the best one.

    val_accuracy: its accuracy on the held-out rows. recipe: TOML file with its settings. page: table of all trials.
    """

    dataset: str
    finished: int
    pruned: int
    best: int
    val_accuracy: float
    recipe: Path
    page: Path


class Predictions(Reference):
    """Predictions of a version for ``rows`` images, written to ``output``.

    accuracy: share of rows whose prediction equals the label; None without a label column.
    checks: those that were measured. warnings: one sentence each. profile: a file beside ``output`` with counts.
    shadow: a challenger's answers beside ``output``. Several CSVs have a profile and a shadow each, and here None.
    """

    version: int
    rows: int
    accuracy: float | None
    checks: tuple[CheckResult, ...]
    warnings: tuple[str, ...]
    output: Path
    sha256: str
    profile: Path | None
    shadow: ShadowComparison | None


class FilePredictions(Predictions):
    """Predictions for one of several CSVs, ``images``. profile_sha256: of a profile that another machine sent."""

    images: Path
    profile_sha256: str | None = None


class PredictedFiles(Predictions):
    """Predictions for several CSVs, as a folder ``output`` with a Parquet file per CSV.

    ``files`` are in the order of the names of the Parquet files. The other fields are those of all files together.
    sha256: of the Parquet files, as ``sha256sum FILE.. | sha256sum`` in the folder.
    """

    files: tuple[FilePredictions, ...] = Field(min_length=1)


class Garbage(Reference):
    """Summary of a garbage collection. ``notes`` are sentences for people. ``run_active``: some garbage stays."""

    dataset: str
    removed: int
    bytes: int
    kept_versions: tuple[int, ...]
    notes: tuple[str, ...]
    run_active: bool


class VerifiedStore(Reference):
    """A store whose versions and alias log are intact. ``versions`` are the numbers of those that were loaded."""

    dataset: str
    versions: tuple[int, ...]


class WatchedData(Reference):
    """State of the data folder. ``digest`` is None if the data is incomplete or being written.

    missing: which CSVs are missing and what the folder contains instead, None if both splits exist.
    """

    data_dir: Path
    digest: str | None
    announced: bool
    missing: str | None = None


class WatchedDay(Reference):
    """The predictions of one day (UTC) by one version.

    shadow_of: the version beside which a challenger predicted, else None.
    class_shares: share of each predicted class. checks: those that could be measured, see `DatasetContract.checks`.
    estimated: None if the version or its stored predictions cannot be read. measured: None without labels.
    paired: a challenger against the version beside which it predicted, None without labels.
    note: why a check is missing, "" if none is. drifted: a check is beyond its bound; never for a challenger.
    """

    dataset: str
    day: str
    version: int
    shadow_of: int | None
    files: int
    rows: int
    class_shares: tuple[float, ...]
    checks: tuple[CheckResult, ...]
    estimated: EstimatedAccuracy | None
    measured: MeasuredAccuracy | None
    paired: PairedLabels | None
    note: str

    @property
    def name(self) -> str:
        return f"{self.day} version {self.version}"

    @property
    def ordinal(self) -> int:
        """Return the day as a number, for a chart."""
        return date.fromisoformat(self.day).toordinal()

    @property
    def drifted(self) -> bool:
        return self.shadow_of is None and any(check.result == "warned" for check in self.checks)


class WatchedPredictions(Reference):
    """What watch-predictions found. drifted, announced: "DAY version N"; this run has sent the events of the latter."""

    dataset: str
    days: tuple[WatchedDay, ...]
    drifted: tuple[str, ...]
    announced: tuple[str, ...]
    page: Path
