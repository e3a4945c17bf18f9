"""Measure pixel values: range, border, histogram distance."""

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.checks.image_profile import ImageProfile, Images
from tasks.checks.measurement import Measurement


def pixel_range(images: Images, contract: DatasetContract) -> dict[str, Measurement]:
    """Measure background and brightest_pixel: do pixels use the whole range of the contract?"""
    smallest, largest = images.min(axis=1), images.max(axis=1)
    without = int((smallest > contract.pixel_min).sum())
    middle = float(np.median(largest))
    span = contract.pixel_max - contract.pixel_min
    return {
        "background": Measurement(
            without / len(images),
            f"{without} of {len(images)} sampled images have no pixel of {contract.pixel_min}, the background; the "
            f"smallest pixel of the median image is {np.median(smallest):g}",
        ),
        "brightest_pixel": Measurement(
            (middle - contract.pixel_min) / span,
            f"the largest pixel of the median image is {middle:g}, the range ends at {contract.pixel_max}",
        ),
    }


def border_brightness(images: Images, contract: DatasetContract) -> npt.NDArray[np.float64]:
    """Return the mean of each image's outermost pixels, 0 for background and 1 for the brightest; float64 (N,)."""
    frame = np.ones((contract.height, contract.width), bool)
    frame[1:-1, 1:-1] = False
    edge = images[:, frame.ravel()].mean(axis=1)
    brightness: npt.NDArray[np.float64] = (edge - contract.pixel_min) / (contract.pixel_max - contract.pixel_min)
    return brightness


def drift(observed: ImageProfile, baseline: ImageProfile) -> float:
    """Return the Jensen-Shannon distance of two pixel histograms (Lin 1991), base 2: 0 equal, 1 disjoint."""
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(observed.histogram, baseline.histogram, base=2))
