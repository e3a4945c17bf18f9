"""Define what the model store writes: a version's manifest, and one line of the alias log.

A digest proves that a text is unchanged. These models prove that it contains what the code reads.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

from schemas.config import Disturbance, PromotionConfig, TrainingConfig
from schemas.contract import NAME_PATTERN, Split
from schemas.errors import StoredArtifactError

# A plain name: it cannot lead out of the version's folder.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)]
# The name of a CSV, which a user chose: it cannot lead out of the data folder.
CsvName = Annotated[str, Field(pattern=r"^[^/\x00]+$", max_length=255)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
VersionNumber = Annotated[StrictInt, Field(ge=1, lt=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]


def _within(config: type[TrainingConfig] | type[PromotionConfig]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a validator of settings against the bounds of ``config``. Keys of other releases are kept."""

    def check(settings: dict[str, Any]) -> dict[str, Any]:
        known = {key: value for key, value in settings.items() if key in config.model_fields}
        config.model_validate(known, strict=True)
        return settings

    return check


def _check_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("expected a time with its zone")
    return text


Setting = bool | int | float | str | list[int] | dict[str, float] | None
TrainingSettings = Annotated[dict[str, Setting], AfterValidator(_within(TrainingConfig))]
PromotionSettings = Annotated[dict[str, Setting], AfterValidator(_within(PromotionConfig))]
Time = Annotated[str, AfterValidator(_check_time)]

# The manifest's key `layout`, 1 if it is missing. Raise it with each change that makes earlier manifests unreadable.
LAYOUT = 2


class StoredJson(BaseModel):
    """A strict, immutable model of a stored JSON object. Unknown keys are kept: they inform people."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, content: Any, source: str) -> Self:
        """Return the model of a JSON object. Raises `StoredArtifactError`, which names ``source`` and the key."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key, received = ".".join(map(str, first["loc"])), f"{first['input']!r:.80}"
            raise StoredArtifactError(f"{source}, {key}: {first['msg']}, received {received}.") from error

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object that was read, unknown keys included."""
        return self.model_dump(by_alias=True)


class AliasEvent(StoredJson):
    """One line of the alias log: an alias moved from one version to another."""

    model_config = ConfigDict(extra="forbid")

    when: str
    alias: str
    before: VersionNumber | None = Field(alias="from")
    to: VersionNumber
    by: str
    reason: str
    flow_run: str | None


class LogHead(StoredJson):
    """The length of an alias log, and the digest of its last line, which covers all lines. Empty without lines."""

    lines: Annotated[int, Field(ge=0)] = 0
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


EMPTY_LOG = LogHead()


class AliasLogState(StoredJson):
    """The record beside an alias log.

    head: the log after the last move. abandoned: the newest version whose manifest may name a head that was lost.
    sent: the head up to which Prefect has received the moves as events. sent_version: the newest version whose verdict
    it has received.
    """

    head: LogHead = EMPTY_LOG
    abandoned: Annotated[int, Field(ge=0)] = 0
    sent: LogHead = EMPTY_LOG
    sent_version: Annotated[int, Field(ge=0)] = 0


class StoredFile(StoredJson):
    bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


Outcome = Literal["promoted", "kept", "waiting", "refused"]


def shown_outcome(outcome: str) -> str:
    """Return an `Outcome` as people read it. Stored files and tags keep "refused" for a rejected version."""
    return "rejected" if outcome == "refused" else outcome


class StoredVerdict(StoredJson):
    outcome: Outcome
    reason: str
    event: AliasEvent | None


class StoredStage(StoredJson):
    """One entry of the lineage: a stage's cache key and the digest of its output."""

    stage: str
    split: str | None
    key: Digest
    digest: Digest
    reused: bool
    seconds: Annotated[float, Field(ge=0)]


class StoredCsv(StoredJson):
    file: CsvName
    sha256: Digest


class StoredSplit(StoredJson):
    file: str
    csv_sha256: Digest
    csv_files: list[StoredCsv]
    parquet_sha256: Digest
    content_sha256: Digest | None = None  # missing in versions of older releases
    rows: int
    quarantined: int
    origin: Literal["supplied", "fetched"]

    @property
    def identity(self) -> str:
        """Return the digest of the rows, which does not depend on how CSVs divide them. Older releases: of the CSVs."""
        return self.content_sha256 or self.csv_sha256


class StoredData(StoredJson):
    train: StoredSplit
    test: StoredSplit
    prepared_sha256: Digest | None = None  # missing in versions of older releases
    split_rows: Annotated[dict[Literal["train", "validation", "test"], int], Field(min_length=3)]

    def split(self, name: Split) -> StoredSplit:
        return self.train if name == "train" else self.test


class StoredDevice(StoredJson):
    kind: str
    name: str
    count: int
    backend: str


class StoredCode(StoredJson):
    revision: str | None
    dirty: bool | None


class VersionResult(StoredJson):
    """The part of a manifest that the page of all versions shows."""

    dataset: Annotated[str, Field(pattern=NAME_PATTERN)]
    created: Time
    test_accuracy: Share
    test_loss: float
    data: StoredData
    parent: VersionNumber | None
    note: str | None = None
    verdict: StoredVerdict


class VersionFacts(VersionResult):
    """A manifest without the version number, the files and the digest, which the store adds."""

    made_from: str
    topology_id: Digest
    configuration: TrainingSettings
    batch_size_used: Annotated[int, Field(ge=1)] | None = None
    memory_budget_used: Annotated[int, Field(ge=0)] | None = None  # bytes
    promotion: PromotionSettings
    seed: int
    code: StoredCode
    environment: dict[str, str] = {}
    code_sha256: Digest | None = None
    lock_sha256: Digest
    packages: dict[str, str]
    device: StoredDevice
    training_seconds: float
    epochs_run: int
    flow_run_id: str | None
    lineage: list[StoredStage]

    @property
    def used_settings(self) -> dict[str, Setting]:
        """Return the configuration of the training, with the batch size that was used."""
        used = {} if self.batch_size_used is None else {"batch_size": self.batch_size_used}
        return {**self.configuration, **used}

    @property
    def recipe(self) -> TrainingConfig:
        """Return the configuration of the training. Settings of other releases are left out."""
        known = TrainingConfig.model_fields
        return TrainingConfig.model_validate({key: value for key, value in self.configuration.items() if key in known})

    def stage(self, name: str, split: str | None = None) -> StoredStage:
        """Return the lineage entry of a stage. Raises `StoredArtifactError` without one."""
        for entry in self.lineage:
            if (entry.stage, entry.split) == (name, split):
                return entry
        raise StoredArtifactError(f"The manifest of this version of {self.dataset} lacks the stage {name} in lineage.")


class Manifest(VersionFacts):
    """The manifest of a version: its files with their sha256, and how it was created.

    alias_log: the log just before the version, without its own promotion. None in versions of older releases.
    text: the bytes of manifest.json, which a signature covers. Not a key of the JSON object.
    """

    version: VersionNumber
    alias_log: LogHead | None = None
    files: dict[FileName, StoredFile]
    manifest_sha256: Digest
    text: bytes = Field(b"", exclude=True, repr=False)


class ClassRecall(StoredJson):
    """The part of a class in metrics.json that checks of predictions read."""

    recall: Share
    rows: Annotated[int, Field(ge=0, lt=10**12)]


class RecallMetrics(StoredJson):
    per_class: Annotated[list[ClassRecall], Field(min_length=1)]


class ClassMetrics(ClassRecall):
    name: str
    precision: Share
    f1: Share


class StoredMetrics(StoredJson):
    """The part of metrics.json that is shown."""

    per_class: Annotated[list[ClassMetrics], Field(min_length=1)]


class Epoch(StoredJson):
    """The metrics of one epoch in history.json and metrics.json."""

    loss: float
    accuracy: Share
    val_loss: float
    val_accuracy: Share
    seconds: float


EPOCHS: TypeAdapter[list[Epoch]] = TypeAdapter(Annotated[list[Epoch], Field(min_length=1)])


class Accuracy(StoredJson):
    """An accuracy with its 95 % interval."""

    accuracy: Share
    accuracy_interval: Interval


class BrightnessSlice(Accuracy):
    """Test rows of similar brightness, mean pixel values."""

    darkest: float = Field(alias="from")
    brightest: float = Field(alias="to")
    rows: Annotated[int, Field(ge=1, lt=10**12)]


class Latency(StoredJson):
    p50_seconds: Annotated[float, Field(ge=0)]
    p95_seconds: Annotated[float, Field(ge=0)]


class Cost(StoredJson):
    """The cost of loading and using a version, in the process that evaluated it.

    latency: by number of rows. load_seconds: from the stored files to a model, after the import of the backend.
    """

    latency: dict[Literal["1", "1000"], Latency]
    load_seconds: Annotated[float, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    peak_memory_bytes: Annotated[int, Field(ge=0)]

    def figures(self) -> dict[str, float]:
        """Return the values by what they measure."""
        latency = {
            f"{name} latency of {int(rows):,} row{'s' if rows != '1' else ''}, s": seconds
            for rows, measured in self.latency.items()
            for name, seconds in (("p50", measured.p50_seconds), ("p95", measured.p95_seconds))
        }
        return {
            **latency,
            "load time, s": self.load_seconds,
            "stored model, bytes": self.bytes,
            "peak memory, bytes": self.peak_memory_bytes,
        }


class MeasuredMetrics(StoredJson):
    """The part of metrics.json that versions of older releases lack."""

    robustness: dict[str, Accuracy] = {}
    cost: Cost | None = None


class CalibrationBin(StoredJson):
    confidence: Share
    accuracy: Share
    rows: Annotated[int, Field(ge=1, lt=10**12)]


class EvaluatedMetrics(StoredMetrics):
    """metrics.json, as far as a run reads it."""

    test_accuracy: Share
    test_loss: float
    test_accuracy_interval: Interval
    test_rows: Annotated[int, Field(ge=1, lt=10**12)]
    test_accuracy_without_duplicates: Share | None
    test_rows_without_duplicates: Annotated[int, Field(ge=0, lt=10**12)]
    expected_calibration_error: Share
    confusion_matrix: list[list[Annotated[int, Field(ge=0, lt=10**12)]]]
    calibration: Annotated[list[CalibrationBin], Field(min_length=1)]
    brightness: Annotated[list[BrightnessSlice], Field(min_length=1)]
    robustness: dict[Disturbance, Accuracy]
    robustness_rows: Annotated[int, Field(ge=1, lt=10**12)]
    cost: Cost
    inactive_units: dict[str, Annotated[int, Field(ge=0)]]
    history: Annotated[list[Epoch], Field(min_length=1)]


class Paired(StoredJson):
    p_value: Share


class PairedVerdict(StoredJson):
    """The part of verdict.json that events contain."""

    paired: Paired | None = None


class VerdictRule(StoredJson):
    rule: str
    figure: float | str | None
    bound: str
    holds: bool

    @property
    def finding(self) -> str:
        """Return the figure as text. That of a comparison has its direction: a small p-value alone has none."""
        text = f"{self.figure:.6g}" if isinstance(self.figure, float) else str(self.figure)
        counts = self.model_extra or {}
        if not {"fixed", "broken"} <= counts.keys():
            return text
        fixed, broken = counts["fixed"], counts["broken"]
        favoured = "the candidate" if fixed > broken else "the champion" if fixed < broken else "neither"
        return f"{text} in favour of {favoured} ({fixed} fixed, {broken} broken)"


class Verdict(PairedVerdict):
    """The part of verdict.json that is shown."""

    outcome: Outcome
    reason: str
    policy: str
    rules: list[VerdictRule]
