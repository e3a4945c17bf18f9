"""Measure what the contract's checks compare: orientation, polarity, labels, chunks, drift, leaks."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.checks.expectations import join_first
from tasks.checks.image_profile import (
    Floats,
    ImageProfile,
    Images,
    Labels,
    agreement,
    baseline_profile,
    mean_images,
    most_alike,
    similarity,
    standardized,
    variance_explained,
)
from tasks.checks.near_duplicates import count_duplicates
from tasks.checks.scan import Sample, Scan
from tasks.data.statistics import sign_test, wilson_interval

if TYPE_CHECKING:
    pass

_AS_IT_IS = "as it is"
_SHUFFLED = 0.1  # relation to the images, relative to the reference, below which labels are called so
_WILSON_Z = 4.0  # one in 30,000, on one side
# A part of a split: enough images for bounds that were found on 100, few enough that a shard of ten is most of one.
_PART_IMAGES = 128
_LEAST_OF_A_CLASS = 3
# What a part is asked, in the order of the answers: of images that are other ones it is no question how they stand.
_OF_PARTS = (
    "similarity",
    "polarity",
    "orientation",
    "position",
    "background",
    "brightest_pixel",
    "label_permutation",
    "label_agreement",
)
# Of these the words have numbers in them, which differ from part to part.
_COUNTED = ("background", "brightest_pixel", "label_agreement")


@dataclass(frozen=True)
class Measurement:
    """One figure about a split, and what it says in words where that is more than the number."""

    value: float
    says: str = ""


# --- how one differs from another ---


def drift(found: ImageProfile, baseline: ImageProfile) -> float:
    """Jensen-Shannon distance of the two histograms of pixel values (Lin 1991), to the base 2: 0 the same, 1 apart."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(found.histogram, baseline.histogram, base=2))


class BaselineImages:
    """The mean images of a reference: as they are; and `standardized`, as they would look laid or moved otherwise."""

    def __init__(self, reference: ImageProfile, contract: DatasetContract) -> None:
        self.profile = reference
        self.images = np.stack([np.asarray(image, np.float32) for image in reference.mean_images.values()])
        self.labels = np.array([int(label) for label in reference.mean_images])
        self.turned = {name: standardized(view) for name, view in orientations(self.images, contract).items()}
        self.moved = [standardized(view) for view in _moved(self.images, contract)]


def compare_with_baseline(
    images: Images,
    labels: Labels,
    contract: DatasetContract,
    known: BaselineImages,
    relation: float | None = None,
) -> dict[str, Measurement]:
    """How labelled images differ from the reference: upside down, inverted, relabelled, or something else altogether.

    relation: the share of the images' variance that labels explain, as their profile keeps it; without it, whether that
    is enough is not asked.

    Each question is asked after the answers before it: orientation of images put back into the right polarity, labels
    of images put back into the right orientation, agreement of labels that were put back. So each fault is named once.
    """
    from scipy.optimize import linear_sum_assignment

    reference = known.profile
    means = np.stack(list(mean_images(images, labels).values()))
    found = standardized(means)

    def fit(likes: Floats) -> float:
        """Mean correlation of the mean images with those of the reference that they are most like, each taken once:
        so that permuted labels do not hide how the images stand."""
        return float(likes[linear_sum_assignment(likes, maximize=True)].mean())

    likes = {name: found @ view.T for name, view in known.turned.items()}
    right = {name: fit(table) for name, table in likes.items()}
    inverse = {name: fit(-table) for name, table in likes.items()}
    inverted = max(inverse.values()) > max(right.values())
    fits = inverse if inverted else right
    orientation = max(fits, key=lambda name: fits[name])
    other = contract.check("similarity").fails(fits[orientation])
    figures = {
        "polarity": Measurement(
            max(inverse.values()) - max(right.values()),
            f"the images look inverted, background is {contract.pixel_max}" if inverted else "",
        ),
        "orientation": Measurement(
            max(value for name, value in fits.items() if name != _AS_IT_IS) - fits[_AS_IT_IS],
            f"the images look {orientation}" if orientation != _AS_IT_IS else "",
        ),
        "similarity": Measurement(fits[orientation], _unlike(known.images, means, contract) if other else ""),
    }
    # Of images that stand otherwise it is no question.
    upright = orientation == _AS_IT_IS and not inverted
    gained = max(fit(found @ view.T) for view in known.moved) - fits[orientation] if upright else -1.0
    figures["position"] = Measurement(gained, "the images look moved by a pixel or more" if gained > 0 else "")
    # Rows: the label that an image has; columns: the class that it is most like.
    alike = known.labels[most_alike(images, known.turned[orientation] * np.float32(-1 if inverted else 1))]
    table = np.zeros((contract.classes, contract.classes), np.int64)
    np.add.at(table, (labels, alike), 1)
    _, like_class = linear_sum_assignment(table, maximize=True)
    related = 1.0 if relation is None else relation / reference.label_relation
    shuffled = related < _SHUFFLED
    # Of labels that have nothing to do with the images no renaming is the right one.
    p_value = 1.0 if shuffled else _better_by_chance(labels, alike, like_class)
    permuted = contract.check("label_permutation").tells(p_value)
    agree = (like_class[labels] if permuted else labels) == alike
    share, rows = agreement(agree, labels)
    figures["label_permutation"] = Measurement(p_value, _permutation(like_class, contract) if permuted else "")
    if relation is not None:
        figures["label_relation"] = Measurement(
            related, "the labels look shuffled, the mean images of all classes are alike" if shuffled else ""
        )
    figures["label_agreement"] = Measurement(
        wilson_interval(share * rows, rows, _WILSON_Z)[1] / reference.label_agreement,
        f"{int(agree.sum())} of {len(labels)} images are most like the reference's mean image of their own class, "
        f"{reference.label_agreement:.0%} in the reference",
    )
    return figures


def faulty_chunks(
    images: Images,
    labels: Labels,
    rows: npt.NDArray[np.int64],
    contract: DatasetContract,
    known: BaselineImages,
    refused: Collection[str],
) -> Measurement | None:
    """Of a split cut into parts, in file order, the share that would be refused by themselves, as a bad shard would.

    rows: the row of the split that each image is, int64 (N,), ascending. refused: the checks that refuse it as a whole:
    few images are less sure of what all say together. A part with hardly any images of a class, as of a file that is
    sorted, is left out; None where no two are left.
    """
    unsure = {"position", "label_permutation"} & set(refused)
    if {"label_permutation", "label_relation", "label_agreement"} & set(refused):
        unsure.add("label_agreement")
    asked = [name for name in _OF_PARTS if name not in unsure]
    # Of each part its fault, in words and in what it has in common with others: "" for none, None where it is left out.
    told: list[tuple[str | None, str, npt.NDArray[np.int64]]] = []
    for part in np.array_split(np.arange(len(labels)), max(1, len(labels) // _PART_IMAGES)):
        here = slice(part[0], part[-1] + 1)
        blank = images[here].min(axis=1) == images[here].max(axis=1)  # told by a check of their own
        few = np.bincount(labels[here], minlength=contract.classes).min() < _LEAST_OF_A_CLASS
        if few or blank.mean() > 0.5:
            told.append((None, "", rows[here]))
            continue
        figures = compare_with_baseline(images[here], labels[here], contract, known)
        if contract.check("label_permutation").tells(figures["label_permutation"].value):
            # Also of shuffled labels some renaming is the best.
            relation = variance_explained(images[here], labels[here])
            figures = compare_with_baseline(images[here], labels[here], contract, known, relation)
        figures |= pixel_range(images[here], contract)
        fault = next((name for name in asked if contract.check(name).fails(figures[name].value)), "")
        says = figures[fault].says if fault else ""
        told.append((fault if fault in _COUNTED else says, says, rows[here]))
    judged = [fault for fault, _, _ in told if fault is not None]
    if len(judged) < 2:
        return None
    runs = [(fault, list(parts)) for fault, parts in groupby(told, key=lambda part: part[0])]
    found = []
    for place, (fault, parts) in enumerate(runs):
        beside = [runs[at][0] for at in (place - 1, place + 1) if 0 <= at < len(runs)]
        # A part of which some is right, at the end of others with a fault that has a name, agrees with few images.
        if fault and not (fault == "label_agreement" and len(parts) == 1 and any(beside)):
            found.append(f"about rows {parts[0][2][0] + 1:,} to {parts[-1][2][-1] + 1:,}: {parts[0][1]}")
    shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
    return Measurement(sum(map(bool, judged)) / len(judged), shown)


def orientations(images: Floats, contract: DatasetContract) -> dict[str, Floats]:
    """Images (N, pixels) laid into their frame in every way: what they look like then, and they themselves."""
    upright = images.reshape(-1, contract.height, contract.width)
    ways = {
        _AS_IT_IS: upright,
        "upside down (turned by 180 degrees)": upright[:, ::-1, ::-1],
        "mirrored left to right": upright[:, :, ::-1],
        "mirrored top to bottom": upright[:, ::-1],
    }
    if contract.height == contract.width:
        across = upright.transpose(0, 2, 1)
        ways |= {
            "transposed (rows are columns)": across,
            "turned by 90 degrees to the right": across[:, :, ::-1],
            "turned by 90 degrees to the left": across[:, ::-1],
            "transposed along the other diagonal": across[:, ::-1, ::-1],
        }
    return {name: laid.reshape(len(images), -1) for name, laid in ways.items()}


def _moved(images: Floats, contract: DatasetContract) -> list[Floats]:
    """Images (N, pixels) moved by a pixel to each side."""
    upright = images.reshape(-1, contract.height, contract.width)
    return [np.roll(upright, step, axis).reshape(len(images), -1) for step, axis in ((1, 2), (-1, 2), (1, 1), (-1, 1))]


def _unlike(known: Floats, found: Floats, contract: DatasetContract) -> str:
    """What images may be whose mean images ``found`` are like the reference's in no orientation."""
    scattered = _smoothness(found, contract) < _smoothness(known, contract) / 2
    return "neighbouring pixels are unrelated: the pixels look permuted" if scattered else "they look like other images"


def _smoothness(means: Floats, contract: DatasetContract) -> float:
    """Correlation of a pixel of a mean image with the one to its right and the one below."""
    image = means.mean(axis=0).reshape(contract.height, contract.width)
    pairs = np.concatenate(
        [np.stack([image[:, 1:], image[:, :-1]]).reshape(2, -1), np.stack([image[1:], image[:-1]]).reshape(2, -1)],
        axis=1,
    )
    return float(similarity(pairs[:1], pairs[1:])[0, 0])


def _better_by_chance(labels: Labels, alike: npt.NDArray[Any], like_class: npt.NDArray[Any]) -> float:
    """McNemar's exact test, on one side: how likely chance lets so many more images agree once labels are renamed."""
    as_named, as_renamed = labels == alike, like_class[labels] == alike
    gained, lost = int((as_renamed & ~as_named).sum()), int((as_named & ~as_renamed).sum())
    return sign_test(gained, lost)


def _permutation(like_class: npt.NDArray[Any], contract: DatasetContract) -> str:
    classes = len(like_class)
    shifts = np.bincount((np.arange(classes) - like_class) % classes, minlength=classes)
    shift = int(shifts.argmax())
    if shift and shifts[shift] > classes / 2:  # of few rows a class or two are taken for others
        amount = shift if shift <= classes - shift else shift - classes
        said = f"{'one' if abs(amount) == 1 else abs(amount)} {'more' if amount > 0 else 'less'}"
        return (
            f"the labels look shifted by {'one' if amount == 1 else amount}: each is {said} than the class of its image"
        )
    moved = [(label, int(like)) for label, like in enumerate(like_class) if label != like]
    names = contract.class_names
    said = ", ".join(f"{label} ({names[label]}) looks like {like} ({names[like]})" for label, like in moved)
    return f"the labels look permuted: {said}"


def pixel_range(images: Images, contract: DatasetContract) -> dict[str, Measurement]:
    """Whether pixels reach from one end of the contract's range to the other."""
    smallest, largest = images.min(axis=1), images.max(axis=1)
    without = int((smallest > contract.pixel_min).sum())
    middle = float(np.median(largest))
    span = contract.pixel_max - contract.pixel_min
    return {
        "background": Measurement(
            without / len(images),
            f"{without} of {len(images)} images looked at have no pixel of {contract.pixel_min}, the background; the "
            f"smallest pixel of the median image is {np.median(smallest):g}",
        ),
        "brightest_pixel": Measurement(
            (middle - contract.pixel_min) / span,
            f"the largest pixel of the median image is {middle:g}, the range ends at {contract.pixel_max}",
        ),
    }


def border_brightness(images: Images, contract: DatasetContract) -> npt.NDArray[np.float64]:
    """Mean of the outermost pixels of each image, 0 where they are background, 1 at the brightest; float64 (N,)."""
    frame = np.ones((contract.height, contract.width), bool)
    frame[1:-1, 1:-1] = False
    edge = images[:, frame.ravel()].mean(axis=1)
    brightness: npt.NDArray[np.float64] = (edge - contract.pixel_min) / (contract.pixel_max - contract.pixel_min)
    return brightness


# Share of images with a bright border from which on, and up to which, what all images look like together is that of
# neither kind.
_MIXED = 0.05


def measure_checks(
    scan: Scan, sample: Sample, profile: ImageProfile, contract: DatasetContract, champion: ImageProfile | None
) -> dict[str, Measurement]:
    """The figures of the contract's checks that this split alone, the reference and the champion's profile give."""
    class_rows = scan.classes["rows"]
    figures = {
        "class_imbalance": Measurement(
            float(class_rows.max() / class_rows.min()), "rows of the largest for one of the smallest class"
        ),
        "blank_images": Measurement(
            (blank := int(sample.sketches.blank.sum())) / scan.rows, f"{blank} of {scan.rows} images are of one value"
        ),
        "repeated_images": Measurement(
            (again := count_duplicates(sample.sketches)) / scan.rows,
            f"{again} of {scan.rows} images repeat an earlier row",
        ),
    }
    if blank > scan.rows / 2:
        return figures  # of the rest nothing that is said of images would be true
    ends = pixel_range(sample.images, contract)
    reference = baseline_profile(contract)
    if reference is not None:
        bright = border_brightness(sample.images, contract) > 0.5
        figures["inverted_images"] = Measurement(
            float(bright.mean()), f"{int(bright.sum())} of {len(bright)} images looked at have a bright border"
        )
        known = BaselineImages(reference, contract)
        compared = compare_with_baseline(sample.images, sample.labels, contract, known, profile.label_relation)
        refused = {name for name, figure in {**ends, **compared}.items() if contract.check(name).fails(figure.value)}
        odd = faulty_chunks(sample.images, sample.labels, sample.rows, contract, known, refused)
        of_two_kinds = _MIXED < bright.mean() < 1 - _MIXED and not {"polarity", "similarity"} & refused
        # Where all parts are odd, and the split is, it is so as a whole.
        if odd is not None and (odd.value < 1 or not (refused or of_two_kinds)):
            figures["faulty_chunks"] = odd
            of_two_kinds |= odd.value > 0
        if not of_two_kinds:  # of two, what is said of all together would be true of neither
            # Of other images, how they stand and what their labels mean is no question.
            figures |= {"similarity": compared["similarity"]} if "similarity" in refused else compared
        if not {"polarity", "orientation"} & refused:
            figures["constant_columns"] = _constant_columns(scan, contract, reference)
    # The ends of the range have changed places in inverted images.
    if "polarity" not in figures or not contract.check("polarity").fails(figures["polarity"].value):
        figures |= ends
    baseline, whose = (champion, "the champion's train split") if champion is not None else (reference, "the reference")
    if baseline is not None:
        figures["drift"] = Measurement(
            drift(profile, baseline), f"distance of the distribution of pixel values from that of {whose}"
        )
    return figures


def _constant_columns(scan: Scan, contract: DatasetContract, reference: ImageProfile) -> Measurement:
    """Of the pixels that the reference says should vary in as many rows, and of those that are not even background."""
    pixels = scan.columns.iloc[1:]
    by_chance = (1 - np.asarray(reference.varying)) ** scan.rows * contract.pixels
    # The smallest value that there is: that of another background is told by a check of its own.
    lit = (pixels["minimum"] > pixels["minimum"].min()).to_numpy()
    constant = pixels["column"][
        (pixels["minimum"] == pixels["maximum"]).to_numpy() & (lit | (by_chance < 1e-6))
    ].tolist()
    return Measurement(len(constant) / contract.pixels, join_first(constant, 5))


def measure_leaks(found: npt.NDArray[np.uint8]) -> dict[str, Measurement]:
    """Of a test split, from what `find_test_images_in_train` found."""
    same, near = int((found == 2).sum()), int((found == 1).sum())
    return {
        "test_images_in_train": Measurement(
            same / len(found), f"{same} of {len(found)} test images stand in train, too"
        ),
        "near_duplicates_in_train": Measurement(
            near / len(found), f"{near} of {len(found)} test images are near duplicates of train images"
        ),
    }
