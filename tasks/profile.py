"""What the images of a split look like together: their profile, and how it differs from another one."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.proportions import sign_test, wilson_interval

PROFILE_NAME = "profile.json"

Images = npt.NDArray[np.uint8]  # (N, pixels)
Labels = npt.NDArray[np.uint8]  # (N,)
Floats = npt.NDArray[np.float32]

_BINS = 16
_AS_IT_IS = "as it is"
_SHUFFLED = 0.1  # relation to the images, relative to the reference, below which labels are called so
_WILSON_Z = 4.0  # one in 30,000, on one side
# A part of a split: enough images for bounds that were found on 100, few enough that a shard of ten is most of one.
_PART_IMAGES = 128
_LEAST_OF_A_CLASS = 3
# What a part is asked, in the order of the answers: of images that are other ones it is no question how they stand.
_OF_PARTS = (
    "likeness",
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
class ImageProfile:
    """What is kept of a split's images, as JSON.

    class_rows: images of each class. mean_images: of each class present, its mean image in pixel values, by label.
    histogram: share of pixels that are background, then of the other values in 16 bins of equal width.
    varying: of each pixel, the share of images where it has another value than its smallest.
    label_agreement: share of images whose label is that of the most alike of ``mean_images`` (`agreement`).
    label_relation: share of the pixels' variance that labels explain (`variance_explained`).
    """

    class_rows: Sequence[int]
    mean_images: Mapping[str, Sequence[float]]
    histogram: Sequence[float]
    varying: Sequence[float]
    label_agreement: float
    label_relation: float


@dataclass(frozen=True)
class Figure:
    """One figure about a split, and what it says in words where that is more than the number."""

    value: float
    says: str = ""


def profile_images(images: Images, labels: Labels, contract: DatasetContract) -> ImageProfile:
    """The profile of labelled images, of one at least."""
    means = mean_images(images, labels)
    present = sorted(means)
    alike = np.array(present)[most_alike(images, standardized(np.stack([means[label] for label in present])))]
    return ImageProfile(
        class_rows=np.bincount(labels, minlength=contract.classes).tolist(),
        mean_images={str(label): np.round(means[label].astype(float), 1).tolist() for label in present},
        histogram=np.round(histogram(images, contract), 6).tolist(),
        varying=np.round((images != images.min(axis=0)).mean(axis=0), 5).tolist(),
        label_agreement=round(agreement(alike == labels, labels)[0], 4),
        label_relation=round(variance_explained(images, labels), 4),
    )


def write_profile(path: Path, profile: ImageProfile) -> None:
    """One key a line: small, and a change shows."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(profile).items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def read_profile(content: bytes) -> ImageProfile:
    return ImageProfile(**json.loads(content))


def reference_profile(contract: DatasetContract) -> ImageProfile | None:
    """The profile of the published train split, where the contract has one."""
    return None if contract.reference is None else read_profile(contract.reference.read_bytes())


# --- what a profile is made of ---


def mean_images(images: Images, labels: Labels) -> dict[int, Floats]:
    """The mean image, float32 (pixels,), of each label that is there."""
    return {int(label): images[labels == label].mean(axis=0, dtype=np.float32) for label in np.unique(labels)}


def histogram(images: Images, contract: DatasetContract) -> npt.NDArray[np.float64]:
    """Share of pixels that are background, then of the values above in bins of equal width; float64 (17,)."""
    counts = np.bincount(images.ravel(), minlength=256)
    values = np.arange(contract.pixel_min + 1, contract.pixel_max + 1)
    place = (values - contract.pixel_min - 1) * _BINS // (contract.pixel_max - contract.pixel_min)
    binned = np.bincount(place, weights=counts[values], minlength=_BINS)
    shares: npt.NDArray[np.float64] = np.concatenate([[counts[: contract.pixel_min + 1].sum()], binned]) / images.size
    return shares


def likeness(images: npt.NDArray[Any], others: npt.NDArray[Any]) -> Floats:
    """Pearson's correlation of each image with each of ``others``: neither brightness nor contrast changes it.

    images (N, pixels) and others (M, pixels) to float32 (N, M); 0 for an image without any contrast.
    """
    return standardized(images) @ standardized(others).T


def standardized(images: npt.NDArray[Any]) -> Floats:
    """Each image (N, pixels) less its mean, of length 1: products of two are their correlations; float32."""
    centred = images.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.float32(1e-6))
    return centred


def most_alike(images: Images, others: Floats) -> npt.NDArray[np.int64]:
    """Which of ``others``, (M, pixels) and `standardized`, each image correlates with most; int64 (N,).

    Brightness and contrast of an image change its products with all of them alike, so that it is taken as it is.
    """
    return np.asarray((images.astype(np.float32) @ others.T).argmax(axis=1))


def variance_explained(images: Images, labels: Labels) -> float:
    """Omega squared (Hays 1963): the share of the pixels' variance between classes, 0 on average for labels that have
    nothing to do with the images, however few they are.

    Every class weighs alike, so that the share does not hang on how many rows each has. A class of one row is taken to
    vary as the others do; 0 where all are.
    """
    present, rows = np.unique(labels, return_counts=True)
    if rows.max() < 2:
        return 0.0
    means = [images[labels == label].mean(axis=0, dtype=np.float32) for label in present]
    squares = [
        float(((images[labels == label] - mean) ** 2).sum(dtype=np.float64))
        for label, mean in zip(present, means, strict=True)
    ]
    within = np.array(squares) / np.maximum(rows - 1, 1)
    within[rows == 1] = within[rows > 1].mean()
    found = float(((np.stack(means) - np.mean(means, axis=0)) ** 2).sum(dtype=np.float64)) / len(rows)
    between = found - (1 - 1 / len(rows)) * float(np.mean(within / rows))  # by chance means differ, too
    total = between + float(np.mean(within))
    return between / total if total else 0.0


def agreement(right: npt.NDArray[np.bool_], labels: Labels) -> tuple[float, float]:
    """Share of rows that are ``right``, bool (N,), every class weighed alike; and how many rows of a balanced split
    would tell as much (Kish 1965)."""
    rows = np.bincount(labels)
    shares = np.bincount(labels, weights=right)[rows > 0] / rows[rows > 0]
    return float(shares.mean()), len(shares) ** 2 / float((1 / rows[rows > 0]).sum())


# --- how one differs from another ---


def drift(found: ImageProfile, baseline: ImageProfile) -> float:
    """Jensen-Shannon distance of the two histograms of pixel values (Lin 1991), to the base 2: 0 the same, 1 apart."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(found.histogram, baseline.histogram, base=2))


class ReferenceImages:
    """The mean images of a reference: as they are; and `standardized`, as they would look laid or moved otherwise."""

    def __init__(self, reference: ImageProfile, contract: DatasetContract) -> None:
        self.profile = reference
        self.images = np.stack([np.asarray(image, np.float32) for image in reference.mean_images.values()])
        self.labels = np.array([int(label) for label in reference.mean_images])
        self.turned = {name: standardized(view) for name, view in orientations(self.images, contract).items()}
        self.moved = [standardized(view) for view in _moved(self.images, contract)]


def compare(
    images: Images,
    labels: Labels,
    contract: DatasetContract,
    known: ReferenceImages,
    relation: float | None = None,
) -> dict[str, Figure]:
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
    other = contract.check("likeness").fails(fits[orientation])
    figures = {
        "polarity": Figure(
            max(inverse.values()) - max(right.values()),
            f"the images look inverted, background is {contract.pixel_max}" if inverted else "",
        ),
        "orientation": Figure(
            max(value for name, value in fits.items() if name != _AS_IT_IS) - fits[_AS_IT_IS],
            f"the images look {orientation}" if orientation != _AS_IT_IS else "",
        ),
        "likeness": Figure(fits[orientation], _unlike(known.images, means, contract) if other else ""),
    }
    # Of images that stand otherwise it is no question.
    upright = orientation == _AS_IT_IS and not inverted
    gained = max(fit(found @ view.T) for view in known.moved) - fits[orientation] if upright else -1.0
    figures["position"] = Figure(gained, "the images look moved by a pixel or more" if gained > 0 else "")
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
    figures["label_permutation"] = Figure(p_value, _permutation(like_class, contract) if permuted else "")
    if relation is not None:
        figures["label_relation"] = Figure(
            related, "the labels look shuffled, the mean images of all classes are alike" if shuffled else ""
        )
    figures["label_agreement"] = Figure(
        wilson_interval(share * rows, rows, _WILSON_Z)[1] / reference.label_agreement,
        f"{int(agree.sum())} of {len(labels)} images are most like the reference's mean image of their own class, "
        f"{reference.label_agreement:.0%} in the reference",
    )
    return figures


def odd_parts(
    images: Images,
    labels: Labels,
    rows: npt.NDArray[np.int64],
    contract: DatasetContract,
    known: ReferenceImages,
    refused: Collection[str],
) -> Figure | None:
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
        figures = compare(images[here], labels[here], contract, known)
        if contract.check("label_permutation").tells(figures["label_permutation"].value):
            # Also of shuffled labels some renaming is the best.
            relation = variance_explained(images[here], labels[here])
            figures = compare(images[here], labels[here], contract, known, relation)
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
    return Figure(sum(map(bool, judged)) / len(judged), shown)


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
    return float(likeness(pairs[:1], pairs[1:])[0, 0])


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


def pixel_range(images: Images, contract: DatasetContract) -> dict[str, Figure]:
    """Whether pixels reach from one end of the contract's range to the other."""
    smallest, largest = images.min(axis=1), images.max(axis=1)
    without = int((smallest > contract.pixel_min).sum())
    middle = float(np.median(largest))
    span = contract.pixel_max - contract.pixel_min
    return {
        "background": Figure(
            without / len(images),
            f"{without} of {len(images)} images looked at have no pixel of {contract.pixel_min}, the background; the "
            f"smallest pixel of the median image is {np.median(smallest):g}",
        ),
        "brightest_pixel": Figure(
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
