"""What passes between tasks: small, frozen, and serializable as JSON, so that a worker elsewhere can be handed one.

Paths are absolute. A digest is sha256, in hexadecimal.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.contract import Split


class Reference(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageRecord(Reference):
    """Where a stage's output lies, on what it hung, and whether this run made it.

    ``key`` is the digest of everything that the output depends on; ``digest`` is that of the output itself.
    ``seconds``: what making it took, in the run that made it.
    """

    stage: str
    key: str
    digest: str
    path: Path
    reused: bool
    seconds: float


class CsvFile(Reference):
    """One CSV on disk. ``sha256`` is that of the file as it lies there, compressed or not."""

    path: Path
    sha256: str


class CsvSplit(Reference):
    """The CSVs that a split is read from: one, or several shards in the order of their names.

    ``origin`` is "fetched" for the published data, whose every row is known, and "supplied" for what people put there.
    """

    split: Split
    files: tuple[CsvFile, ...] = Field(min_length=1)
    origin: Literal["supplied", "fetched"]

    @property
    def sha256(self) -> str:
        """The file's; of shards what ``sha256sum SHARD.. | sha256sum`` prints in their folder."""
        return self.files[0].sha256 if len(self.files) == 1 else sha256sum_digest(self.files)

    @property
    def name(self) -> str:
        """For people: the file's, or that of the first shard and how many more there are."""
        first = self.files[0].path.name
        return first if len(self.files) == 1 else f"{first} and {len(self.files) - 1} more"


def sha256sum_digest(files: Iterable[CsvFile]) -> str:
    """One digest of several files and their names: sha256 of what ``sha256sum`` prints for them, ordered by name."""
    lines = sorted((file.path.name, file.sha256) for file in files)
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode()).hexdigest()


class ParquetSplit(Reference):
    """One split as Parquet: the contract's columns in order, uint8, no nulls.

    ``quarantined`` rows of the source were bad and set aside; ``rows`` are those that were taken.
    """

    record: StageRecord
    split: Split
    path: Path
    sha256: str
    rows: int
    quarantined: int
    origin: Literal["supplied", "fetched"]
    source: CsvSplit


class DuplicateReport(Reference):
    """Images that occur more than once, to the byte; ``test_rows_near_train`` are others that all but stand in train.

    Rows are counted, not pairs.
    """

    within_train: int
    within_test: int
    test_rows_in_train: int
    test_rows_near_train: int


class CheckResult(Reference):
    """A figure of a split against one bound of its `schemas.contract.Check`, such as ``<= 0.1``; ``says`` explains it.

    ``severity``: whether what is past the bound is told or refused.
    """

    check: str
    figure: float
    bound: str
    severity: Literal["warning", "critical"]
    result: Literal["met", "warned"]
    says: str


class ValidatedSplit(Reference):
    """A split that Great Expectations accepted. ``result`` is the whole verdict as JSON, ``warnings`` a sentence each.

    ``duplicates`` is there for a test split that was judged beside its train split.
    """

    record: StageRecord
    data: ParquetSplit
    result: Path
    expectations: int
    checks: tuple[CheckResult, ...]
    warnings: tuple[str, ...]
    duplicates: DuplicateReport | None


class PreparedData(Reference):
    """Arrays ready for Keras under ``record.path``.

    ``<split>_images.npy`` float32 (N, pixels) in [0, 1] and ``<split>_labels.npy`` int32 (N,), for the splits train,
    validation and test.
    """

    record: StageRecord
    dataset: str
    train_rows: int
    validation_rows: int
    test_rows: int
    duplicates: DuplicateReport


class Device(Reference):
    """What the numbers were computed on, as the backend itself named it. None is for what does not apply.

    ``count``: devices of that name that shared the work. ``driver``: NVIDIA's. ``cuda``: the backend's.
    ``mixed_precision``: whether layers compute in another type than they keep (``dtype_policy``, as Keras names it).
    ``tensor_float_32``: whether a float32 product may be rounded to 10 bits. ``memory_growth``: whether memory is taken
    as it is needed, rather than all of it at the start.
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
    """Who trained: the flow run, None outside of one, and the worker that ran it, None where there was none."""

    flow_run_id: str | None
    worker: str | None
    host: str


class TrainedModel(Reference):
    """Topology, weights and history under ``record.path``.

    A reused one names who trained it then. Lock and packages are those of the process that trained, which may be
    another machine's.
    """

    record: StageRecord
    topology_sha256: str
    weights_sha256: str
    epochs_run: int
    seconds: float
    device: Device
    trained_by: TrainedBy
    lock_sha256: str
    packages: dict[str, str]


class Evaluation(Reference):
    """Figures of a model on the test split; all of them are in ``metrics.json`` under ``record.path``.

    ``golden_difference`` is between what it said of the golden images in training and, once stored, in a fresh process.
    """

    record: StageRecord
    test_accuracy: float
    test_loss: float
    golden_difference: float


class ModelVersion(Reference):
    """One immutable version in the store. ``created`` is False when these inputs had made it before."""

    version: int
    path: Path
    created: bool
    champion: bool
    verdict: str
    test_accuracy: float
    test_loss: float


class Predictions(Reference):
    """What a version said about ``rows`` images, written to ``output``.

    ``accuracy`` is the share of rows where it said what the label column says, None where there is no such column.
    """

    version: int
    rows: int
    accuracy: float | None
    output: Path
    sha256: str


class WatchedData(Reference):
    """What a look at the data folder found. ``digest`` is None where the data is not whole or is being written."""

    data_dir: Path
    digest: str | None
    announced: bool
