"""Define the profile of predictions, and the comparison with a challenger.

A profile has counts only, so those of several files of a day are added.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.contract import NAME_PATTERN
from schemas.store import Digest, Interval, Share, StoredJson, Time, VersionNumber

# Bounds of the bins of confidence: finer near 1, where most predictions of a good model are.
CONFIDENCE_EDGES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)
CONFIDENCE_BINS = len(CONFIDENCE_EDGES) + 1
PIXEL_BINS = 17  # of `tasks.checks.image_profile.histogram`

Count = Annotated[int, Field(ge=0, lt=10**15)]


class EstimatedAccuracy(StoredJson):
    """An accuracy that was estimated without labels, with its interval of 95 %."""

    accuracy: Share
    interval: Interval


class MeasuredAccuracy(StoredJson):
    """The accuracy on the rows that have a label, with Wilson's interval of 95 %."""

    labelled: Count
    correct: Count
    accuracy: Share
    interval: Interval


class PairedLabels(StoredJson):
    """Champion and challenger on the same labelled images: McNemar's exact test, two-sided."""

    rows: Count
    fixed: Count
    broken: Count
    p_value: Share


class ShadowComparison(StoredJson):
    """The answers of a challenger, ``version``, beside those of the version that predicted the same rows.

    output: the name of the file with the answers, beside that of the other version. agreement: share of rows with the
    same predicted class, with Wilson's interval of 95 %. classes_p_value: of the chi-square test that both predict the
    same shares of the classes. estimated, shadow_estimated: accuracies of both without labels; None for a version whose
    stored predictions cannot be read. paired: None without labels.
    """

    version: VersionNumber
    output: str
    output_sha256: Digest
    rows: Count
    agree: Count
    agreement: Share
    agreement_interval: Interval
    classes_p_value: Share
    estimated: EstimatedAccuracy | None
    shadow_estimated: EstimatedAccuracy | None
    paired: PairedLabels | None


class PredictionProfile(StoredJson):
    """The counts of the predictions of one file, which `predict` keeps.

    output, output_sha256: the name of the file that was written, and its digest.
    class_rows: rows per predicted class, in the order of the labels. confidence_rows: rows per predicted class and bin
    of `CONFIDENCE_EDGES`. pixel_counts: two pixel histograms, of every other image and of the rest.
    drift: `prediction_drift` of this file alone, None if it could not be measured. warnings: those of `predict`.
    shadow_of: the version beside which a challenger predicted, else None. shadow: the comparison with a challenger.
    """

    dataset: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: VersionNumber
    manifest_sha256: Digest
    created: Time
    output: str
    output_sha256: Digest
    rows: Count
    class_rows: list[Count]
    confidence_edges: list[float]
    confidence_rows: list[list[Count]]
    pixel_counts: list[list[Count]]
    drift: Share | None
    warnings: list[str]
    shadow_of: VersionNumber | None
    shadow: ShadowComparison | None

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        """Raise ValueError for counts that contradict each other. A profile of other bins cannot be added."""
        if tuple(self.confidence_edges) != CONFIDENCE_EDGES:
            raise ValueError(f"confidence_edges: expected {CONFIDENCE_EDGES}")
        if [len(row) for row in self.confidence_rows] != [CONFIDENCE_BINS] * len(self.class_rows):
            raise ValueError(f"confidence_rows: expected {CONFIDENCE_BINS} bins per class")
        if [sum(row) for row in self.confidence_rows] != self.class_rows or sum(self.class_rows) != self.rows:
            raise ValueError(f"class_rows, confidence_rows: expected counts of {self.rows} rows")
        if [len(half) for half in self.pixel_counts] != [PIXEL_BINS] * 2:
            raise ValueError(f"pixel_counts: expected two histograms of {PIXEL_BINS} bins")
        return self

    @property
    def day(self) -> str:
        """Return the day of the predictions in UTC, such as 2026-01-31."""
        return self.created[:10]
