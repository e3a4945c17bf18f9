"""Name every folder and file below the artifacts folder, once. Nothing else in the project spells them.

Only the folders of stage outputs are elsewhere, in tasks/runtime/stages.py: this module is part of cache keys.
"""

import re
from collections.abc import Iterable
from pathlib import Path

# Files of a stage's output folder.
RECORD_NAME = "stage.json"
QUARANTINE_NAME = "quarantine.parquet"  # ingest: a copy of the quarantine file, covered by the stage's digests
PART_NAME = "part.parquet"  # the good rows of one shard
ROW_DIGESTS_NAME = "row_digests.bin"
RESULT_NAME = "great_expectations.json"
PROFILE_NAME = "profile.json"
SKETCHES_NAME = "sketches.npz"
CANDIDATES_NAME = "candidates.npz"  # the images of one file that may be in the sample of its split
TEST_IN_TRAIN_NAME = "test_in_train.npy"
SCALE_NAME = "scale.json"
VALIDATION_ROWS_NAME = "validation_rows.npy"
TOPOLOGY_NAME = "topology.json"
WEIGHTS_NAME = "model.weights.h5"
GOLDEN_NAME = "golden.json"
HISTORY_NAME = "history.json"
METRICS_NAME = "metrics.json"
PREDICTIONS_NAME = "test_predictions.parquet"

# Further files of a version's folder.
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.json.sig"  # Ed25519 signature of the manifest's bytes; the manifest does not name it
VERDICT_NAME = "verdict.json"
REPORT_NAME = "report.html"
BOM_NAME = "bom.cdx.json"  # CycloneDX; missing in versions of older releases
# Every version has these; its manifest may name more.
STORED_NAMES = frozenset(
    {TOPOLOGY_NAME, WEIGHTS_NAME, GOLDEN_NAME, METRICS_NAME, PREDICTIONS_NAME, VERDICT_NAME, REPORT_NAME}
)

# Files of a store.
ALIAS_LOG_NAME = "aliases.jsonl"
ALIAS_STATE_NAME = "aliases.state.json"  # its length and digest, and what was sent to Prefect
VERSIONS_FOLDER = "versions"

# Files of a study of `fashion-ann tune`.
STUDY_NAME = "study.db"
STUDY_LOCK_NAME = "study.lock"
RECIPE_NAME = "recipe.toml"
TRIALS_PAGE_NAME = "trials.html"

# Predictions: the rows of a record, beside its profile; labels that arrive later; the page.
PREDICTED_ROWS_NAME = "rows.parquet"
LABELS_FOLDER = "labels"
PREDICTIONS_PAGE_NAME = "predictions.html"

# The page of all versions in a store, and the first page of Data Docs.
INDEX_NAME = "index.html"
VERDICTS_FOLDER = "verdicts"

VALIDATION_FOLDER = "validation"

# Files and folders that operating systems and programs leave: macOS, Windows, Synology and QNAP, NFS, FUSE, SMB,
# desktops, LibreOffice, vim.
_LITTER = re.compile(
    r"\.DS_Store|\._.*|\.AppleDouble|\.Spotlight-V100|\.Trashes|\.fseventsd|\.localized|Icon\r"
    r"|(eh)?Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|@eaDir|\.@__thumb|#recycle"
    r"|\.nfs[0-9a-f]+|\.fuse_hidden.*|\.smbdelete.*|\.Trash-\d+|\.directory|\.~lock\..*#|\..*\.sw[a-p]",
    re.IGNORECASE,
)


# Temporary names, see `tasks.runtime.files.temporary_name`.
_TEMPORARY = re.compile(r"\.(?P<of>.+)\.[0-9a-f]+\.tmp")
_SHORT_KEY = re.compile(r"[0-9a-f]{16}")


def name_of_temporary(name: str) -> str | None:
    """Return the final name of a temporary file or folder, None if ``name`` is not temporary."""
    match = _TEMPORARY.fullmatch(name)
    return match and match["of"]


def is_short_key(name: str) -> bool:
    """Return whether ``name`` has the form that `short_key` returns."""
    return _SHORT_KEY.fullmatch(name) is not None


def is_litter(name: str) -> bool:
    """Return whether a file or folder with this name was left by the system, and not written by this project."""
    return _LITTER.fullmatch(name) is not None


def short_key(key: str) -> str:
    """Return the part of a cache key that names a folder."""
    return key[:16]


def images_name(part: int) -> str:
    """Return the file name of the images of a part of a prepared split: uint8 (n, pixels)."""
    return f"images-{part:05}.npy"


def labels_name(part: int) -> str:
    """Return the file name of the labels of a part of a prepared split: int32 (n,)."""
    return f"labels-{part:05}.npy"


def part_name(place: int) -> str:
    """Return the file name of a shard's rows in the folder of its split."""
    return f"part-{place:05}.parquet"


def profile_beside(output: Path) -> Path:
    """Return the path of the profile of predictions that were written to ``output``.

    Readers of a folder as one Parquet dataset leave out names that start with an underscore.
    """
    return output.with_name(f"_{output.name}.profile.json")


def shadow_beside(output: Path) -> Path:
    """Return the path of the challenger's predictions for the same images as ``output``."""
    return output.with_name(f"_{output.stem}.shadow{output.suffix}")


def files_beside(outputs: Iterable[Path]) -> set[Path]:
    """Return the paths of the profiles and shadows of predictions that were written to ``outputs``."""
    return {place(output) for output in outputs for place in (profile_beside, shadow_beside)}


def validation_folder(parquet: Path) -> Path:
    """Return the folder of the verdicts on the Parquet of a split: it is stored with the data."""
    return parquet.parent / VALIDATION_FOLDER


class Artifacts:
    """The folder that runs write to, and every path in it but those of stage outputs."""

    def __init__(self, root: Path) -> None:
        self.checkpoints = root / "checkpoints"
        self.quarantine = root / "quarantine"
        # References that trainings on the gpu worker return to main flows, which read them at once.
        self.returned = root / "returned"
        # Digests of the data that watch-data announced last, one file per data folder.
        self.announced = root / "announced"
        # Copies of CSVs from object storage, one folder per address.
        self.downloaded = root / "downloaded"
        self.comparisons = root / "comparisons"
        # Profiles of predictions and what they predicted, one folder per dataset.
        self.predictions = root / "predictions"
        self.studies = root / "studies"
        self.data_docs = root / "data_docs"
        self.logs = root / "logs"
        self.services = root / "services"
        self.service_logs = self.services / "logs"
        # Prefect stores results and exceptions of flow runs there, if the worker's PREFECT_HOME is beside the logs.
        self.flow_results = self.services / "prefect" / "storage"
        self.lock = root / ".in-use"
        self.stores = root / "models"

    def store(self, dataset: str) -> Path:
        """Return the folder of a dataset's model store."""
        return self.stores / dataset
