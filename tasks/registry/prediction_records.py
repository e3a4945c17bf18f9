"""Keep what `predict` predicted: a profile beside its output, and a record of it in the artifacts folder.

    artifacts/predictions/fashion-mnist/
        2026-01-31/093000-1f2e3d4c/profile.json   `PredictionProfile`, as beside the output
        2026-01-31/093000-1f2e3d4c/rows.parquet   per row: digest of the image, predicted class, confidence
        labels/0123456789abcdef.parquet           labels that arrived later: digest of the image, class

A record has 21 bytes per row. Records are on the machine that predicted, also with FASHION_ANN_REMOTE.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import DatasetContract
from schemas.errors import StoredArtifactError
from schemas.layout import (
    LABELS_FOLDER,
    PREDICTED_ROWS_NAME,
    PROFILE_NAME,
    Artifacts,
    name_of_temporary,
    short_key,
)
from schemas.predictions import CONFIDENCE_BINS, CONFIDENCE_EDGES, PIXEL_BINS, PredictionProfile, ShadowComparison
from tasks.checks.estimated_accuracy import Counts, confidence_counts
from tasks.checks.image_checks import drift_of_classes, half_histograms
from tasks.checks.image_profile import ImageProfile
from tasks.data.csv_reader import open_csv
from tasks.model.test_predictions import image_digest
from tasks.registry.store import StoredVersion
from tasks.runtime.files import atomic_folder, atomic_write, remove_path, sha256_file, sweep_temporaries, write_json
from tasks.runtime.locks import abandoned
from tasks.runtime.stored_file import open_stored, read_json, require_digest

logger = logging.getLogger(__name__)

_DIGEST = pa.binary(16)
_ROWS = pa.schema({"image": _DIGEST, "predicted": pa.uint8(), "confidence": pa.float32()})
_LABELS = pa.schema({"image": _DIGEST, "label": pa.uint8()})
_CREATED = b"fashion_ann.created"
_DAY, _DAY_PATTERN = "%Y-%m-%d", "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_CHUNK = 2_048  # images whose pixels are counted at once: 13 MB as int64
# Fewer rows have no drift: chance alone exceeded its bound on one of 300 quiet days of 100 rows.
LEAST_ROWS = 200

Labels = dict[bytes, int]  # class by `image_digest`


@dataclass(frozen=True)
class PredictedRows:
    """Rows of a record: the `image_digest` of each, the predicted class uint8 (N,) and its confidence float32 (N,)."""

    images: list[bytes]
    predicted: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]


class PredictionRecord:
    """Count the predictions of a file batch by batch.

    writer: receives the rows, None if they are not kept. fault: the first error of the writer, which ends the record
    and not the predictions.
    """

    def __init__(self, stored: StoredVersion, contract: DatasetContract, now: datetime, shadow_of: int | None) -> None:
        self.counts: Counts = np.zeros((contract.classes, CONFIDENCE_BINS), np.int64)
        self.pixels = np.zeros((2, PIXEL_BINS))
        self.profile: PredictionProfile | None = None
        self.writer: pq.ParquetWriter | None = None
        self.fault: OSError | None = None
        self._stored, self._contract, self._now, self._shadow_of = stored, contract, now, shadow_of

    def add(self, images: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.float32]) -> None:
        """Add the next images, uint8 (N, pixels), with the probability of each class, float32 (N, classes)."""
        predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        self.counts += confidence_counts(predicted, confidence, self._contract.classes)
        for start in range(0, len(images), _CHUNK):
            self.pixels += half_histograms(images[start : start + _CHUNK], self._contract)
        if self.writer is None or self.fault is not None:
            return
        digests = pa.array(map(image_digest, images), _DIGEST)
        rows = pa.table([digests, predicted.astype(np.uint8), confidence.astype(np.float32)], schema=_ROWS)
        try:
            self.writer.write_table(rows)
        except OSError as error:
            self.fault = error

    def finish(
        self,
        output: str,
        sha256: str,
        train: ImageProfile | None,
        warnings: list[str],
        shadow: ShadowComparison | None = None,
    ) -> PredictionProfile:
        """Return the profile of all rows. ``output``, a file name, has the digest ``sha256``.

        train: profile of the version's train split.
        """
        class_rows = self.counts.sum(axis=1)
        self.profile = PredictionProfile(
            dataset=self._contract.name,
            version=self._stored.number,
            manifest_sha256=self._stored.manifest.manifest_sha256,
            created=self._now.isoformat(timespec="milliseconds"),
            output=output,
            output_sha256=sha256,
            rows=int(class_rows.sum()),
            class_rows=class_rows.tolist(),
            confidence_edges=list(CONFIDENCE_EDGES),
            confidence_rows=self.counts.tolist(),
            pixel_counts=self.pixels.astype(np.int64).tolist(),
            drift=measured_drift(self.pixels, class_rows, train),
            warnings=warnings,
            shadow_of=self._shadow_of,
            shadow=shadow,
        )
        return self.profile


@contextmanager
def recording(
    artifacts_dir: Path, stored: StoredVersion, contract: DatasetContract, now: datetime, shadow_of: int | None = None
) -> Iterator[PredictionRecord]:
    """Yield a record, and write it to the artifacts folder when the block ends. After an error nothing is written.

    now: the time of the predictions, in UTC. The block calls `PredictionRecord.finish`.

    If the folder cannot be written to, or its disk is full, a warning is logged and nothing is written: the predictions
    are what the user asked for.
    """
    day = Artifacts(artifacts_dir).predictions / contract.name / now.strftime(_DAY)
    record = PredictionRecord(stored, contract, now, shadow_of)
    entered, failed = False, None  # the error of the block
    try:
        day.mkdir(parents=True, exist_ok=True)
        with atomic_folder(day / f"{now:%H%M%S}-{uuid4().hex[:8]}") as folder:
            rows = folder / PREDICTED_ROWS_NAME
            # Neither digests nor confidences repeat.
            with pq.ParquetWriter(rows, _ROWS, compression="zstd", use_dictionary=False) as record.writer:
                entered = True
                try:
                    yield record
                except BaseException as error:
                    failed = error
                    raise
            if record.fault is not None:
                raise record.fault
            if record.profile is not None:
                write_json(folder / PROFILE_NAME, {**record.profile.as_json(), "rows_sha256": sha256_file(rows)})
    except OSError as error:
        if failed is not None:
            raise failed  # noqa: B904  # that of the writer only follows from it
        logger.warning(
            "the predictions are not recorded, and watch-predictions does not count them: %s: %s",
            day,
            error.strerror or error,
        )
        if not entered:
            yield record


def measured_drift(
    pixels: npt.NDArray[np.float64], class_rows: npt.NDArray[np.int64], profile: ImageProfile | None
) -> float | None:
    """Return `prediction_drift` of images with these `half_histograms` and rows per predicted class.

    profile: of the version's train split. None if that is missing, or the rows are too few.
    """
    if profile is None or class_rows.sum() < LEAST_ROWS:
        return None
    return drift_of_classes(pixels, class_rows, profile)


@dataclass(frozen=True)
class StoredRecord:
    """A record in the artifacts folder. The digest of its rows was not checked yet."""

    folder: Path
    profile: PredictionProfile
    rows_sha256: str

    @classmethod
    def read(cls, folder: Path, contract: DatasetContract) -> "StoredRecord":
        """Read the profile of a record. Raises `StoredArtifactError` unless it is one of this dataset and day."""
        path = folder / PROFILE_NAME
        content = read_json(path)
        rows_sha256 = content.pop("rows_sha256", None) if isinstance(content, dict) else None
        profile = PredictionProfile.parse(content, str(path))
        if not isinstance(rows_sha256, str):
            raise StoredArtifactError(f"{path}: expected rows_sha256, received none.")
        received = (profile.dataset, len(profile.class_rows), profile.day)
        if received != (expected := (contract.name, contract.classes, folder.parent.name)):
            raise StoredArtifactError(f"{path}: expected dataset, classes and day {expected}, received {received}.")
        return cls(folder, profile, rows_sha256)

    def rows(self) -> PredictedRows:
        """Return what was predicted for each row. Raises `StoredArtifactError` for another file."""
        table = _read_table(self.folder / PREDICTED_ROWS_NAME, _ROWS, self.rows_sha256)
        if len(table) != self.profile.rows:
            raise StoredArtifactError(f"{self.folder}: expected {self.profile.rows} rows, received {len(table)}.")
        predicted, confidence = (np.asarray(table[name]) for name in ("predicted", "confidence"))
        return PredictedRows(table["image"].to_pylist(), predicted, confidence)


def read_records(
    artifacts_dir: Path, contract: DatasetContract, since: str = "", until: str = "9999-12-31"
) -> Iterator[StoredRecord]:
    """Yield the records of a dataset from one day to another, such as 2026-01-31, oldest first.

    The same images that the same version predicted again on one day count once: a repetition adds no information. A
    record that cannot be read is left out, with a warning. What killed processes left is removed.
    """
    seen: set[tuple[str, ...]] = set()
    for day in sorted((Artifacts(artifacts_dir).predictions / contract.name).glob(_DAY_PATTERN)):
        if day.name < since:
            continue
        if day.name > until:
            logger.warning("left out: %s is in the future. Was the clock of its machine wrong?", day)
            continue
        for folder in sorted(day.glob("*")):
            if name_of_temporary(folder.name) is not None:
                _remove_abandoned(folder)
                continue
            try:
                record = StoredRecord.read(folder, contract)
            except (StoredArtifactError, OSError) as error:  # OSError: of a file that another user may not read
                logger.warning("left out: %s", error)
                continue
            profile = record.profile
            key = (day.name, profile.manifest_sha256, record.rows_sha256, str(profile.shadow_of))
            if key not in seen:
                seen.add(key)
                yield record


def _remove_abandoned(folder: Path) -> None:
    with suppress(OSError), abandoned(folder) as dead:
        if dead:
            remove_path(folder)


def store_labels(csv: Path, contract: DatasetContract, artifacts_dir: Path, now: datetime) -> Labels:
    """Store the labels of a CSV by the digest of each image, and return them.

    csv: as ingest reads it, with the label column. Of several rows with one image the last one counts, and a warning is
    logged if their labels differ, or if an earlier file has another label.

    Raises `DataContractError` as ingest does. Nothing is stored then.
    """
    labels: Labels = {}
    conflicts: set[bytes] = set()
    with open_csv(csv, contract) as blocks:
        for rows in blocks:
            for image, label in zip(map(image_digest, rows[:, 1:]), rows[:, 0].tolist(), strict=True):
                if labels.setdefault(image, label) != label:
                    conflicts.add(image)
                    labels[image] = label
    if conflicts:
        logger.warning("%s: %d images have rows with different labels; the last row counts", csv.name, len(conflicts))
    earlier = _label_files(artifacts_dir, contract)
    known = _joined(earlier)
    if changed := sum(known.get(image, label) != label for image, label in labels.items()):
        logger.warning("%s: %d images had another label in an earlier file; this file counts", csv.name, changed)
    # Later than every earlier file, also if the clock was put back.
    created = max([now, *(file.created + timedelta(microseconds=1) for file in earlier)])
    folder = _labels_folder(artifacts_dir, contract)
    folder.mkdir(parents=True, exist_ok=True)
    schema = _LABELS.with_metadata({_CREATED: created.isoformat().encode()})
    table = pa.table([pa.array(labels.keys(), _DIGEST), pa.array(labels.values(), pa.uint8())], schema=schema)
    content = hashlib.sha256(b"".join(image + bytes([label]) for image, label in sorted(labels.items()))).hexdigest()
    path = folder / f"{short_key(content)}.parquet"
    sweep_temporaries(path)
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False)
    return labels


@dataclass(frozen=True)
class _LabelFile:
    created: datetime
    name: str
    table: pa.Table


def read_labels(artifacts_dir: Path, contract: DatasetContract) -> Labels:
    """Return all labels that arrived. Of several for one image the last one counts.

    A file that cannot be read is left out, with a warning.
    """
    return _joined(_label_files(artifacts_dir, contract))


def _labels_folder(artifacts_dir: Path, contract: DatasetContract) -> Path:
    return Artifacts(artifacts_dir).predictions / contract.name / LABELS_FOLDER


def _label_files(artifacts_dir: Path, contract: DatasetContract) -> list[_LabelFile]:
    """Return the files with labels, the oldest first."""
    files = []
    for path in _labels_folder(artifacts_dir, contract).glob("[!.]*.parquet"):
        try:
            table = _read_table(path, _LABELS)
            created = datetime.fromisoformat((table.schema.metadata or {})[_CREATED].decode())
            files.append(_LabelFile(created.astimezone(UTC), path.name, table))
        except (StoredArtifactError, OSError, KeyError, ValueError) as error:
            logger.warning("left out: %s: expected labels (%s)", path, error)
    return sorted(files, key=lambda file: (file.created, file.name))


def _joined(files: Iterable[_LabelFile]) -> Labels:
    labels: Labels = {}
    for file in files:
        labels.update(zip(file.table["image"].to_pylist(), file.table["label"].to_pylist(), strict=True))
    return labels


def _read_table(path: Path, schema: pa.Schema, sha256: str | None = None) -> pa.Table:
    with open_stored(path, sha256) as opened:
        if sha256 is not None:
            require_digest(path, opened, sha256)
        try:
            table = pq.read_table(opened)
            if not table.schema.equals(schema) or any(column.null_count for column in table.columns):
                raise ValueError(f"expected the columns {schema.names} without nulls")
        except (ValueError, OSError, pa.ArrowException) as error:
            raise StoredArtifactError(f"{path}: expected rows of predictions ({error!s:.200}).") from error
    return table
