"""Compare two versions on the same test images: counts as JSON, images in an HTML page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DEFAULT_DATASET, DatasetContract, contract_of
from schemas.errors import DataContractError, StoredArtifactError, VersionNotFound, WrongUsage
from schemas.layout import METRICS_NAME, PREDICTIONS_NAME, Artifacts
from schemas.store import Manifest, MeasuredMetrics
from tasks.data.csv_reader import open_csv
from tasks.data.splits import open_parts
from tasks.data.statistics import mcnemar
from tasks.model.test_predictions import image_digest, read_predictions, shared_rows
from tasks.registry.differences import differences, unknown_differences
from tasks.registry.store import ModelStore, StoredVersion
from tasks.reports.images import image_uri
from tasks.reports.rendering import render
from tasks.reports.version_report import ClassProbability, class_probability
from tasks.runtime.files import atomic_write
from tasks.runtime.stage_cache import output_folder
from tasks.runtime.stages import PREPARE


@dataclass(frozen=True)
class Change:
    """A test image that only one of two versions classifies correctly. ``uri`` is None without an image."""

    uri: str | None
    row: int
    true_class: str
    before: ClassProbability
    after: ClassProbability


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    - ``figures``: counts and metrics, for JSON
    - ``fixed``: images that only ``after`` classifies correctly, up to 250, the most confident of ``after`` first
    - ``broken``: images that only ``before`` classifies correctly, likewise
    - ``without_pictures``: why images are missing, None if none is
    """

    figures: dict[str, Any]
    fixed: tuple[Change, ...]
    broken: tuple[Change, ...]
    without_pictures: str | None
    contract: DatasetContract


def compare(store: ModelStore, artifacts_dir: Path, data_dir: Path, before: int, after: int) -> Comparison:
    """Compare the stored predictions of two versions for the test images that they share.

    The images come from the prepared arrays of either version, or from the test CSV in ``data_dir``. They are matched
    by content. Raises `VersionNotFound`; `StoredArtifactError` if a file differs from its manifest; `WrongUsage` if
    both are the same version or share no image.
    """
    if before == after:
        raise WrongUsage(
            f"Both are version {before}; expected two different versions. Run `fashion-ann versions` to list them."
        )
    versions = [store.version(number) for number in (before, after)]
    for version in versions:
        version.check()
    manifests = [version.manifest for version in versions]
    champion = _third_version(store, before, after)
    contract = contract_of(manifests[1].dataset)
    old, new = (
        read_predictions(version.path(PREDICTIONS_NAME), contract, version.digests[PREDICTIONS_NAME])
        for version in versions
    )
    old_rows, new_rows = shared_rows(old, new)
    if not len(new_rows):
        raise WrongUsage(
            f"Versions {before} and {after} were tested on different images: {len(old.labels)} and {len(new.labels)} "
            "rows, none of them shared. Expected two versions with the same test data."
        )
    old_right, new_right = old.right[old_rows], new.right[new_rows]
    paired = mcnemar(new_right, old_right)
    labels = new.labels[new_rows]
    figures = {
        "before": before,
        "after": after,
        "rows": paired.rows,
        "rows_of_one_alone": {"before": len(old.labels) - paired.rows, "after": len(new.labels) - paired.rows},
        "test_accuracy": {"before": float(old_right.mean()), "after": float(new_right.mean())},
        "fixed": paired.fixed,
        "broken": paired.broken,
        "p_value": paired.p_value,
        "per_class": [
            {
                "label": label,
                "name": contract.labels[label],
                "rows": int(of_class.sum()),
                "recall_before": float(old_right[of_class].mean()),
                "recall_after": float(new_right[of_class].mean()),
                "fixed": int((new_right & ~old_right)[of_class].sum()),
                "broken": int((old_right & ~new_right)[of_class].sum()),
            }
            for at, label in enumerate(contract.class_labels)
            if (of_class := labels == at).any()
        ],
        **_measured(versions),
        "differs": differences(manifests[0], manifests[1], champion),
        "unknown": unknown_differences(*manifests),
        "champion": None if champion is None else champion.version,
    }
    sides: list[list[tuple[int, int]]] = []
    for changed in (new_right & ~old_right, old_right & ~new_right):
        places = np.flatnonzero(changed)
        shown = places[np.argsort(-new.confidence[new_rows[places]], kind="stable")][:250]  # more would be slow
        sides.append([(int(old_rows[place]), int(new_rows[place])) for place in shown])
    wanted = {new.images[row] for side in sides for _, row in side}
    uris: dict[bytes, str] = {}
    for images in _image_sources(manifests, artifacts_dir, data_dir, contract):
        for image in images:
            if (digest := image_digest(image)) in wanted and digest not in uris:
                uris[digest] = image_uri(image, contract)
        if len(uris) == len(wanted):
            break
    fixed, broken = (
        tuple(
            Change(
                uri=uris.get(new.images[new_row]),
                row=new_row,
                true_class=contract.class_names[int(new.labels[new_row])],
                before=class_probability(old, old_row, int(old.predicted[old_row]), contract),
                after=class_probability(new, new_row, int(new.predicted[new_row]), contract),
            )
            for old_row, new_row in side
        )
        for side in sides
    )
    missing = len(wanted - set(uris))
    return Comparison(
        figures=figures,
        fixed=fixed,
        broken=broken,
        without_pictures=f"{missing} of {len(wanted)} images are in neither the prepared test images in "
        f"{PREPARE.outputs(artifacts_dir)} nor a test CSV in {data_dir}. Put "
        f"{manifests[1].data.test.file} there, or pass its folder with --data-dir, and run again."
        if missing
        else None,
        contract=contract,
    )


def comparisons_folder(artifacts_dir: Path, dataset: str) -> Path:
    """Return the folder of the pages that `comparison_name` names: one per dataset, because they share the numbers."""
    folder = Artifacts(artifacts_dir).comparisons
    return folder if dataset == DEFAULT_DATASET else folder / dataset


def comparison_name(before: int, after: int) -> str:
    """Return the file name of the page that compares two versions."""
    return f"{before:04d}-{after:04d}.html"


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Write the HTML page atomically. It loads no other file."""
    html = render("comparison.html", contract=comparison.contract, comparison=comparison, figures=comparison.figures)
    with atomic_write(output) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _measured(versions: Sequence[StoredVersion]) -> dict[str, Any]:
    """Return accuracy by disturbance and cost of two versions, ``before`` and ``after``; None if one lacks a value."""
    before, after = (version.read_json(METRICS_NAME, MeasuredMetrics) for version in versions)
    accuracies = [{name: row.accuracy for name, row in metrics.robustness.items()} for metrics in (before, after)]
    costs = [{} if metrics.cost is None else metrics.cost.figures() for metrics in (before, after)]
    return {
        "robustness": [{"disturbance": row.pop("what"), **row} for row in _side_by_side(*accuracies)],
        "cost": [{"quantity": row.pop("what"), **row} for row in _side_by_side(*costs)],
    }


def _side_by_side(before: Mapping[str, float], after: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {"what": name, "before": before.get(name), "after": after.get(name)}
        for name in dict.fromkeys([*before, *after])
    ]


def _third_version(store: ModelStore, *compared: int) -> Manifest | None:
    """Return the manifest of the champion, None if it is one of the compared versions or cannot be read."""
    number = store.aliases.champion()
    if number is None or number in compared:
        return None
    with suppress(StoredArtifactError, VersionNotFound):
        return store.version(number).manifest
    return None


def _image_sources(
    manifests: list[Manifest], artifacts_dir: Path, data_dir: Path, contract: DatasetContract
) -> Iterator[Iterable[npt.NDArray[np.uint8]]]:
    """Yield the test images of each source, uint8 (pixels,) each. Skips sources that cannot be read."""
    for manifest in manifests:
        key = manifest.stage(PREPARE.name).key
        try:
            parts = [images for images, _ in open_parts(output_folder(PREPARE.outputs(artifacts_dir), key), "test")]
        except (OSError, ValueError, StoredArtifactError):
            continue
        for images in parts:
            if images.dtype == np.uint8 and images.shape[1:] == (contract.pixels,):
                yield images
    for name in dict.fromkeys(entry.file for manifest in manifests for entry in manifest.data.test.csv_files):
        try:
            with open_csv(data_dir / name, contract) as csv:
                for rows in csv:
                    yield rows[:, 1:]
        except DataContractError:
            continue
