"""Find what changed in the predictions of a day: their images, their classes, and their accuracy."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.errors import FashionAnnError, StoredArtifactError
from schemas.layout import PREDICTIONS_NAME
from schemas.predictions import EstimatedAccuracy, MeasuredAccuracy, PairedLabels, PredictionProfile
from schemas.references import WatchedDay
from schemas.store import ClassRecall
from tasks.checks.estimated_accuracy import Counts, calibration_table, estimate_accuracy
from tasks.checks.image_profile import ImageProfile
from tasks.checks.measurements import Measurement
from tasks.checks.summary import check_results
from tasks.data.statistics import PairedTest, mcnemar, same_shares_test, wilson_interval
from tasks.model.test_predictions import read_predictions
from tasks.registry.prediction_checks import accuracy_test, read_class_profile, read_recall
from tasks.registry.prediction_records import (
    LEAST_ROWS,
    Labels,
    PredictedRows,
    StoredRecord,
    measured_drift,
    read_labels,
    read_records,
)
from tasks.registry.store import ModelStore, StoredVersion

logger = logging.getLogger(__name__)

# The approximation of the chi-square test needs about five rows per class.
_LEAST_ROWS_PER_CLASS = 5


@dataclass(frozen=True)
class Baseline:
    """What a version predicted for its test split, which later predictions are compared with.

    table: `calibration_table`. class_rows: test rows per predicted class. accuracy: on the test split.
    profile: of the train split, None in versions of older releases.
    """

    table: Counts
    class_rows: npt.NDArray[np.int64]
    accuracy: float
    recall: Sequence[ClassRecall]
    profile: ImageProfile | None

    @classmethod
    def of(cls, version: StoredVersion, contract: DatasetContract) -> "Baseline":
        """Read the baseline of a version. Raises `StoredArtifactError` for a damaged file."""
        path = version.path(PREDICTIONS_NAME)
        stored = read_predictions(path, contract, version.digests[PREDICTIONS_NAME])
        return cls(
            calibration_table(stored.labels, stored.predicted, stored.confidence, contract.classes),
            np.bincount(stored.predicted, minlength=contract.classes),
            float(stored.right.mean()),
            read_recall(version, contract),
            read_class_profile(version, contract),
        )


def watched_days(
    artifacts_dir: Path, store: ModelStore, contract: DatasetContract, now: datetime, days: int
) -> list[WatchedDay]:
    """Return the predictions of the last ``days`` days up to ``now``, one entry per day and version, oldest first.

    A day of fewer than 200 rows, or five per class, has no checks.
    """
    since = (now - timedelta(days=days - 1)).date().isoformat()
    labels = read_labels(artifacts_dir, contract)
    baselines = _Baselines(store, contract)
    records = sorted(read_records(artifacts_dir, contract, since, now.date().isoformat()), key=_series)
    groups = {key: list(group) for key, group in groupby(records, key=_series)}
    return [_watched_day(group, groups, baselines, labels, contract) for group in groups.values()]


_Series = tuple[str, int, int, str]


def _series(record: StoredRecord) -> _Series:
    profile = record.profile
    return profile.day, profile.shadow_of or 0, profile.version, profile.manifest_sha256


class _Baselines:
    """Baselines of the versions of a store, each read once."""

    def __init__(self, store: ModelStore, contract: DatasetContract) -> None:
        self._store, self._contract = store, contract
        self._read: dict[tuple[int, str], Baseline | str] = {}

    def of(self, profile: PredictionProfile) -> Baseline | str:
        """Return the baseline of the version that predicted, or why there is none."""
        key = profile.version, profile.manifest_sha256
        if key not in self._read:
            try:
                version = self._store.version(profile.version)
                if version.manifest.manifest_sha256 != profile.manifest_sha256:
                    self._read[key] = f"Version {profile.version} of the store is another one."
                else:
                    self._read[key] = Baseline.of(version, self._contract)
            except FashionAnnError as error:  # also a remote store that cannot be reached
                self._read[key] = str(error)
        return self._read[key]


def _watched_day(
    group: list[StoredRecord],
    groups: Mapping[_Series, list[StoredRecord]],
    baselines: _Baselines,
    labels: Labels,
    contract: DatasetContract,
) -> WatchedDay:
    profiles = [record.profile for record in group]
    first = profiles[0]
    counts = np.array([profile.confidence_rows for profile in profiles], np.int64).sum(axis=0)
    pixels = np.array([profile.pixel_counts for profile in profiles], np.float64).sum(axis=0)
    rows = int(counts.sum())
    labelled = _labelled(group, labels)
    notes, measured = [], {}
    estimated = None
    baseline = baselines.of(first)
    least = max(LEAST_ROWS, _LEAST_ROWS_PER_CLASS * contract.classes)
    if isinstance(baseline, str):
        notes.append(f"Nothing was compared. {baseline}")
    else:
        estimated = estimate_accuracy(baseline.table, counts)
        if rows >= least:
            measured = measure_day(counts, pixels, baseline, estimated)
        else:
            notes.append(f"Fewer than {least} rows: drift, classes and estimated accuracy are not compared.")
        if baseline.profile is None:
            notes.append("Drift was not measured: the version has no profile of the images of each class.")
        if labelled.classes:
            measured["measured_accuracy"] = _measure_labels(labelled, baseline, contract)
    return WatchedDay(
        dataset=first.dataset,
        day=first.day,
        version=first.version,
        shadow_of=first.shadow_of,
        files=len(group),
        rows=rows,
        class_shares=tuple((counts.sum(axis=1) / rows).tolist()),
        checks=tuple(check_results(measured, contract)),
        estimated=estimated,
        measured=labelled.accuracy,
        paired=None if first.shadow_of is None else _paired(group, groups, labels),
        note=" ".join(notes),
    )


def measure_day(
    counts: Counts, pixels: npt.NDArray[np.float64], baseline: Baseline, estimated: EstimatedAccuracy
) -> dict[str, Measurement]:
    """Measure the checks of a day that need no labels."""
    class_rows = counts.sum(axis=1)
    drop = baseline.accuracy - estimated.interval[1]
    measured = {
        "prediction_classes": Measurement(
            same_shares_test(class_rows, baseline.class_rows), "chi-square test against the version's test split"
        ),
        "estimated_accuracy": Measurement(
            drop,
            f"estimated accuracy {estimated.accuracy:.4f}, at most {estimated.interval[1]:.4f}; "
            f"{baseline.accuracy:.4f} on the version's test split",
        ),
    }
    if (drift := measured_drift(pixels, class_rows, baseline.profile)) is not None:
        measured["prediction_drift"] = Measurement(
            drift, "distance of the distribution of pixel values from that of the version's train split"
        )
    return measured


@dataclass(frozen=True)
class _Labelled:
    """Rows of a day that have a label: the true class of each, and whether it was predicted."""

    classes: list[int]
    correct: list[bool]

    @property
    def accuracy(self) -> MeasuredAccuracy | None:
        if not (rows := len(self.correct)):
            return None
        correct = sum(self.correct)
        low, high = wilson_interval(correct, rows)
        return MeasuredAccuracy(labelled=rows, correct=correct, accuracy=correct / rows, interval=[low, high])


def _labelled(group: list[StoredRecord], labels: Labels) -> _Labelled:
    classes: list[int] = []
    correct: list[bool] = []
    for rows in _rows_of(group if labels else ()):
        for image, predicted in zip(rows.images, rows.predicted.tolist(), strict=True):
            if (label := labels.get(image)) is not None:
                classes.append(label)
                correct.append(label == predicted)
    return _Labelled(classes, correct)


def _rows_of(records: Iterable[StoredRecord]) -> Iterator[PredictedRows]:
    """Yield the rows of each record. Damaged ones are left out, with a warning."""
    for record in records:
        try:
            yield record.rows()
        except (StoredArtifactError, OSError) as error:
            logger.warning("left out: %s", error)


def _measure_labels(labelled: _Labelled, baseline: Baseline, contract: DatasetContract) -> Measurement:
    label_rows = np.bincount(labelled.classes, minlength=contract.classes)
    correct = sum(labelled.correct)
    own, p_value = accuracy_test(baseline.recall, label_rows, correct)
    return Measurement(
        p_value,
        f"{correct / len(labelled.correct):.4f} on {len(labelled.correct)} labels, {own:.4f} on the same classes of "
        "the version's test split",
    )


def _paired(
    group: list[StoredRecord], groups: Mapping[_Series, list[StoredRecord]], labels: Labels
) -> PairedLabels | None:
    """Compare a challenger with the version beside which it predicted, on the images of the day that have a label."""
    if not labels:
        return None
    profile = group[0].profile
    answers: dict[bytes, int] = {}
    for (day, shadow_of, version, _), records in groups.items():
        if (day, shadow_of, version) == (profile.day, 0, profile.shadow_of):
            for rows in _rows_of(records):
                answers |= zip(rows.images, rows.predicted.tolist(), strict=True)
    right = []
    for rows in _rows_of(group):
        for image, predicted in zip(rows.images, rows.predicted.tolist(), strict=True):
            if image in labels and image in answers:
                right.append((labels[image] == predicted, labels[image] == answers[image]))
    if not right:
        return None
    challenger, champion = np.array(right).T
    return paired_labels(mcnemar(challenger, champion))


def paired_labels(test: PairedTest) -> PairedLabels:
    """Return the result of McNemar's test, as it is stored."""
    return PairedLabels(rows=test.rows, fixed=test.fixed, broken=test.broken, p_value=test.p_value)


def labelled_images(artifacts_dir: Path, contract: DatasetContract, labels: Labels) -> set[bytes]:
    """Return the images of ``labels`` that were predicted, on any day."""
    rows = _rows_of(read_records(artifacts_dir, contract))
    return {image for record in rows for image in record.images if image in labels}
