"""Name every folder and file below the artifacts folder, once. Nothing else in the project spells them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Files of a stage's output folder.
RECORD_NAME = "stage.json"
QUARANTINE_NAME = "quarantine.parquet"  # ingest: a copy of the quarantine file, covered by the stage's digests
RESULT_NAME = "great_expectations.json"
PROFILE_NAME = "profile.json"
SKETCHES_NAME = "sketches.npz"
TEST_IN_TRAIN_NAME = "test_in_train.npy"
TOPOLOGY_NAME = "topology.json"
WEIGHTS_NAME = "model.weights.h5"
GOLDEN_NAME = "golden.json"
HISTORY_NAME = "history.json"
METRICS_NAME = "metrics.json"
PREDICTIONS_NAME = "test_predictions.parquet"

# Further files of a version's folder.
MANIFEST_NAME = "manifest.json"
VERDICT_NAME = "verdict.json"
REPORT_NAME = "report.html"
# Every version has these; its manifest may name more.
STORED_NAMES = frozenset(
    {TOPOLOGY_NAME, WEIGHTS_NAME, GOLDEN_NAME, METRICS_NAME, PREDICTIONS_NAME, VERDICT_NAME, REPORT_NAME}
)

# Files of a store.
ALIAS_LOG_NAME = "aliases.jsonl"
VERSIONS_FOLDER = "versions"

# Data Docs.
INDEX_NAME = "index.html"
VERDICTS_FOLDER = "verdicts"

_VALIDATION_FOLDER = "validation"
# A stage's folder is named by the beginning of its key.
_KEY_CHARACTERS = 16


def short_key(key: str) -> str:
    """Return the part of a cache key that names a folder."""
    return key[:_KEY_CHARACTERS]


def images_name(split: str) -> str:
    """Return the file name of a prepared split's images: float32 (N, pixels)."""
    return f"{split}_images.npy"


def labels_name(split: str) -> str:
    """Return the file name of a prepared split's labels: int32 (N,)."""
    return f"{split}_labels.npy"


def validation_folder(parquet: Path) -> Path:
    """Return the folder of the verdicts on a Parquet file: it is stored with the data."""
    return parquet.parent / _VALIDATION_FOLDER


@dataclass(frozen=True)
class Artifacts:
    """The folder that runs write to. Every property is a path below ``root``."""

    root: Path

    @property
    def ingested(self) -> Path:
        return self.root / "data"

    @property
    def prepared(self) -> Path:
        return self.root / "prepared"

    @property
    def trained(self) -> Path:
        return self.root / "trained"

    @property
    def evaluated(self) -> Path:
        return self.root / "evaluated"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def returned(self) -> Path:
        """References that trainings on the gpu worker return to main flows, which read them at once."""
        return self.root / "returned"

    @property
    def announced(self) -> Path:
        """Digests of the data that watch-data announced last, one file per data folder."""
        return self.root / "announced"

    @property
    def comparisons(self) -> Path:
        return self.root / "comparisons"

    @property
    def data_docs(self) -> Path:
        return self.root / "data_docs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def services(self) -> Path:
        return self.root / "services"

    @property
    def service_logs(self) -> Path:
        return self.services / "logs"

    @property
    def lock(self) -> Path:
        return self.root / ".in-use"

    @property
    def stores(self) -> Path:
        """The model stores, one folder per dataset."""
        return self.root / "models"

    def store(self, dataset: str) -> Path:
        return self.stores / dataset

    def stage_folders(self) -> Iterator[Path]:
        """Yield the folders that hold stage outputs, one folder per key; those of validate after the data."""
        yield from (self.ingested, self.prepared, self.trained, self.evaluated)
        yield from sorted(self.ingested.glob(f"*/{_VALIDATION_FOLDER}"))
