"""Check the images that a version predicts against the profile and the test accuracy that are stored with it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.errors import StoredArtifactError
from schemas.layout import METRICS_NAME, PROFILE_NAME
from schemas.references import CheckResult
from schemas.store import ClassRecall, RecallMetrics
from tasks.checks.image_checks import measure_predicted
from tasks.checks.image_profile import ImageProfile, read_profile
from tasks.checks.scan import PredictedImages
from tasks.checks.summary import check_results, sentences
from tasks.data.statistics import binomial_test, wilson_interval
from tasks.registry.store import StoredVersion

# p-value below which an accuracy is lower than the version's own by more than chance.
_SIGNIFICANT = 0.001


def read_class_profile(version: StoredVersion, contract: DatasetContract) -> ImageProfile | None:
    """Return the profile of a version's train split, None for one that has none of the images of each class.

    Raises `StoredArtifactError` for a damaged one.
    """
    if PROFILE_NAME not in version.manifest.files:
        return None
    try:
        profile = read_profile(version.read(PROFILE_NAME), contract)
    except ValueError as error:
        raise StoredArtifactError(f"{version.folder / PROFILE_NAME}: expected a profile ({error}).") from error
    return profile if profile.class_fits else None


def read_recall(version: StoredVersion, contract: DatasetContract) -> list[ClassRecall]:
    """Return the recall of each class on a version's test split. Raises `StoredArtifactError` for a damaged file."""
    recall = version.read_json(METRICS_NAME, RecallMetrics).per_class
    if len(recall) != contract.classes:
        raise StoredArtifactError(
            f"{version.folder / METRICS_NAME}: expected {contract.classes} classes, received {len(recall)}."
        )
    return recall


def accuracy_test(
    recall: Sequence[ClassRecall], label_rows: npt.NDArray[np.integer[Any]], correct: int
) -> tuple[float, float]:
    """Test whether an accuracy is that of the version on its own test split, for the same share of each class.

    recall: of the test split. label_rows: labelled rows per class (classes,), of which ``correct`` were predicted.
    Returns the accuracy on the test split for these shares, and the one-sided p-value.

    The bound is the lower end of Wilson's interval of that accuracy, because the test split is finite too.
    """
    rows = int(label_rows.sum())
    shares = label_rows / rows
    own = float(shares @ [entry.recall for entry in recall])
    # Kish 1965, as in `balanced_agreement`.
    tested = 1 / float((shares**2 / np.maximum([entry.rows for entry in recall], 1)).sum())
    return own, binomial_test(correct, rows, wilson_interval(own * tested, tested)[0])


class PredictionChecks:
    """Collect images and labels batch by batch, then check them."""

    def __init__(self, version: StoredVersion, contract: DatasetContract) -> None:
        self._version, self._contract = version, contract
        # Before the model is loaded: a version that cannot be used is rejected at once.
        self.profile = read_class_profile(version, contract)
        self._recall = read_recall(version, contract)
        self._seen = PredictedImages(contract)
        self._label_rows = np.zeros(contract.classes, np.int64)
        self._correct = 0

    def add(
        self, images: npt.NDArray[np.uint8], predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.uint8] | None
    ) -> None:
        """Add the next images, uint8 (N, pixels), with the predicted and the true class of each, if it is known."""
        self._seen.add(images, predicted)
        if labels is not None:
            self._label_rows += np.bincount(labels, minlength=len(self._label_rows))
            self._correct += int(np.count_nonzero(labels == predicted))

    @property
    def accuracy(self) -> float | None:
        """Return the share of labels that were predicted, None without labels."""
        rows = int(self._label_rows.sum())
        return self._correct / rows if rows else None

    def results(self) -> tuple[list[CheckResult], list[str]]:
        """Return the checks that were measured, and one sentence per warning."""
        results, warnings = [], []
        if (profile := self.profile) is None:
            warnings.append(
                f"the images were not checked: version {self._version.number} has no profile of the images of each "
                "class. `fashion-ann train` makes a version that has one"
            )
        else:
            results += check_results(measure_predicted(self._seen, self._contract, profile), self._contract)
        if self._label_rows.any():
            results.append(self._accuracy_check())
        return results, warnings + sentences(results)

    def _accuracy_check(self) -> CheckResult:
        rows = int(self._label_rows.sum())
        own, p_value = accuracy_test(self._recall, self._label_rows, self._correct)
        return CheckResult(
            check="accuracy",
            figure=p_value,
            bound=f">= {_SIGNIFICANT:g}",
            severity="warning",
            result="warned" if p_value < _SIGNIFICANT else "met",
            says=f"{self.accuracy:.4f} on {rows} labels, {own:.4f} on the same classes of the version's test split; "
            "p-value of the exact binomial test",
        )
