"""Two versions on the same test images: who is right where the other is not, in figures and as pictures."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract, contract_of
from schemas.errors import DataContractError, WrongUsage
from schemas.layout import PREDICTIONS_NAME, Artifacts, images_name
from schemas.store import Manifest
from tasks.data.csv_reader import open_csv
from tasks.data.splits import unscaled_images
from tasks.model.test_predictions import StoredPredictions, image_digest, read_predictions, shared_rows
from tasks.registry.paired_test import mcnemar
from tasks.registry.store import ModelStore
from tasks.reports.charts import png_uri
from tasks.reports.version_report import Chance, grey, render
from tasks.runtime.files import atomic_write
from tasks.runtime.stage_cache import output_folder

# Pictures of either kind: what more there is would make the page slow and tell nothing new.
_MOST_PICTURES = 250


@dataclass(frozen=True)
class Change:
    """One test image that one of two versions alone has right. ``uri`` is None where the image cannot be had."""

    uri: str | None
    row: int
    true: str
    before: Chance
    after: Chance


@dataclass(frozen=True)
class Comparison:
    """``figures`` as JSON; ``fixed``: images that ``after`` alone has right, ``broken``: the other way round.

    The surest of ``after`` come first, 250 at most. ``without_pictures``: why there are none, else None.
    """

    figures: dict[str, Any]
    fixed: tuple[Change, ...]
    broken: tuple[Change, ...]
    without_pictures: str | None
    contract: DatasetContract


def compare(store: ModelStore, artifacts_dir: Path, data_dir: Path, before: int, after: int) -> Comparison:
    """Compare what two versions of the store said of the test images that both were tested on.

    The images come from the arrays that either was tested on, or from its CSV in ``data_dir``, and are known by their
    content. Raises `VersionNotFound`; `StoredArtifactError` when a file is not what the manifest says; `WrongUsage`
    when both are the same version, or no image is common to both.
    """
    if before == after:
        raise WrongUsage(
            f"Both are version {before}: two different versions were expected. `fashion-ann versions` lists those that "
            "there are, with their aliases."
        )
    versions = [store.version(number) for number in (before, after)]
    for version in versions:
        version.check()
    manifests = [version.manifest for version in versions]
    contract = contract_of(manifests[1].dataset)
    old, new = (read_predictions(version.folder / PREDICTIONS_NAME, contract) for version in versions)
    old_rows, new_rows = shared_rows(old, new)
    if not len(new_rows):
        raise WrongUsage(
            f"Versions {before} and {after} were tested on different images: {len(old.labels)} and {len(new.labels)} "
            "rows, none in both. Expected two versions of the same test data."
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
                "name": name,
                "rows": int(of_class.sum()),
                "recall_before": float(old_right[of_class].mean()),
                "recall_after": float(new_right[of_class].mean()),
                "fixed": int((new_right & ~old_right)[of_class].sum()),
                "broken": int((old_right & ~new_right)[of_class].sum()),
            }
            for label, name in enumerate(contract.class_names)
            if (of_class := labels == label).any()
        ],
        "differs": _differences(*manifests),
    }
    sides: list[list[tuple[int, int]]] = []
    for changed in (new_right & ~old_right, old_right & ~new_right):
        places = np.flatnonzero(changed)
        surest = places[np.argsort(-new.confidence[new_rows[places]], kind="stable")][:_MOST_PICTURES]
        sides.append([(int(old_rows[place]), int(new_rows[place])) for place in surest])
    wanted = {new.images[row] for side in sides for _, row in side}
    found = _find_images(wanted, manifests, artifacts_dir, data_dir, contract)
    fixed, broken = (
        tuple(_change(old, old_row, new, new_row, found, contract) for old_row, new_row in side) for side in sides
    )
    return Comparison(
        figures=figures,
        fixed=fixed,
        broken=broken,
        without_pictures=None
        if wanted <= set(found)
        else f"{len(wanted - set(found))} of {len(wanted)} images cannot be had: the prepared test images are gone "
        f"from {artifacts_dir / 'prepared'}, and {data_dir} does not hold the test CSV that they came from. Put "
        f"{manifests[1].data.test.file} there, or name its folder with --data-dir, and run again.",
        contract=contract,
    )


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Write the page, whole or not at all; it stands alone as report.html does."""
    html = render("compare.html", contract=comparison.contract, comparison=comparison, figures=comparison.figures)
    with atomic_write(output) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _differences(before: Manifest, after: Manifest) -> list[dict[str, Any]]:
    """What two manifests state differently of what the versions were made from: what, before, after."""

    def stated(manifest: Manifest) -> dict[str, Any]:
        return {
            **manifest.configuration,
            "train data, sha256": manifest.data.train.csv_sha256,
            "test data, sha256": manifest.data.test.csv_sha256,
            "code": manifest.code.revision,
            "lock, sha256": manifest.lock_sha256,
            "device": manifest.device.name,
        }

    old, new = stated(before), stated(after)
    return [
        {"what": key, "before": old.get(key), "after": new.get(key)}
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _change(
    old: StoredPredictions,
    old_row: int,
    new: StoredPredictions,
    new_row: int,
    found: Mapping[bytes, str],
    contract: DatasetContract,
) -> Change:
    def said(predictions: StoredPredictions, row: int) -> Chance:
        label = int(predictions.predicted[row])
        return Chance(
            contract.class_names[label], float(predictions.probabilities[row, label]), label == predictions.labels[row]
        )

    return Change(
        uri=found.get(new.images[new_row]),
        row=new_row,
        true=contract.class_names[int(new.labels[new_row])],
        before=said(old, old_row),
        after=said(new, new_row),
    )


def _find_images(
    wanted: set[bytes],
    manifests: list[Manifest],
    artifacts_dir: Path,
    data_dir: Path,
    contract: DatasetContract,
) -> dict[bytes, str]:
    """PNG data URIs of the wanted images (`image_digest`), of as many as can be had."""
    found: dict[bytes, str] = {}
    for images in _sources(manifests, artifacts_dir, data_dir, contract):
        for image in images:
            digest = image_digest(image)
            if digest in wanted and digest not in found:
                found[digest] = png_uri(grey(image, contract))
        if len(found) == len(wanted):
            break
    return found


def _sources(
    manifests: list[Manifest], artifacts_dir: Path, data_dir: Path, contract: DatasetContract
) -> Iterator[Iterable[npt.NDArray[np.uint8]]]:
    """Test images wherever they may still lie, uint8 (pixels,) each. Whatever cannot be read is passed over."""
    for manifest in manifests:
        key = manifest.stage("prepare").key
        try:
            images = np.load(output_folder(Artifacts(artifacts_dir).prepared, key) / images_name("test"), mmap_mode="r")
        except (OSError, ValueError):
            continue
        yield unscaled_images(images, contract)
    for name in dict.fromkeys(entry.file for manifest in manifests for entry in manifest.data.test.csv_files):
        try:
            with open_csv(data_dir / name, contract) as csv:
                for rows in csv:
                    yield rows[:, 1:]
        except DataContractError:
            continue
