"""Disturb images as a camera or a shop might, to measure how much accuracy a model loses.

The noise, blur and contrast are those of Hendrycks and Dietterich, "Benchmarking neural network robustness to common
corruptions and perturbations", ICLR 2019. The patch is that of Zhong et al., "Random erasing data augmentation", AAAI
2020. New pixels are background.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from schemas.config import Disturbance

if TYPE_CHECKING:
    from numpy.random import Generator  # each start of the flow imports this module, and numpy.random takes 5 ms

# Normalized images, float32 (n, height, width) in [0, 1], and the generator of the random choices.
Pictures = npt.NDArray[np.float32]
_Disturb = Callable[[Pictures, "Generator"], Pictures]

_LEVELS = np.float32(255)  # of a byte


def disturb_each(images: Pictures, generator: "Generator") -> Iterator[tuple[Disturbance, Pictures]]:
    """Yield each disturbance with the disturbed images, which have the levels of bytes.

    images: float32 (n, height, width) in [0, 1] with the levels of bytes, and background 0.
    """
    for name, (_, disturb) in _DISTURBANCES.items():
        yield name, disturb(images, generator)


def _as_bytes(images: Pictures) -> Pictures:
    """Return images that are in [0, 1] and have the levels of bytes. Changes the argument: a copy takes longer."""
    np.clip(images, 0, 1, out=images)
    images *= _LEVELS
    np.rint(images, out=images)
    images /= _LEVELS
    return images


def _shift(pixels: int) -> _Disturb:
    def shift(images: Pictures, generator: "Generator") -> Pictures:
        _, height, width = images.shape
        padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
        shifted = np.empty_like(images)
        sides = generator.integers(4, size=len(images))
        for side, (down, right) in enumerate(((0, 1), (2, 1), (1, 0), (1, 2))):
            top, left = down * pixels, right * pixels
            shifted[sides == side] = padded[sides == side, top : top + height, left : left + width]
        return shifted

    return shift


def _rotate(images: Pictures, generator: "Generator") -> Pictures:
    from scipy.ndimage import rotate

    rotated = np.empty_like(images)
    left = generator.random(len(images)) < 0.5
    for chosen, degrees in ((left, 10), (~left, -10)):
        if chosen.any():
            rotated[chosen] = rotate(images[chosen], degrees, axes=(2, 1), reshape=False, order=1)
    return _as_bytes(rotated)


def _mirror(images: Pictures, generator: "Generator") -> Pictures:
    return images[:, :, ::-1]


def _add_noise(images: Pictures, generator: "Generator") -> Pictures:
    noise = generator.standard_normal(images.shape, np.float32)
    noise *= np.float32(0.1)
    noise += images
    return _as_bytes(noise)


def _blur(images: Pictures, generator: "Generator") -> Pictures:
    from scipy.ndimage import gaussian_filter

    return _as_bytes(gaussian_filter(images, (0, 1, 1)))


def _reduce_contrast(images: Pictures, generator: "Generator") -> Pictures:
    reduced: Pictures = images + images.mean(axis=(1, 2), keepdims=True)
    reduced /= np.float32(2)
    return _as_bytes(reduced)


def _erase(images: Pictures, generator: "Generator") -> Pictures:
    inside: list[npt.NDArray[np.bool_]] = []
    for side in images.shape[1:]:
        patch = -(-side // 3)
        start = generator.integers(side - patch + 1, size=(len(images), 1))
        places = np.arange(side)
        inside.append((places >= start) & (places < start + patch))
    rows, columns = inside
    return np.where(rows[:, :, None] & columns[:, None, :], np.float32(0), images)


_DISTURBANCES: dict[Disturbance, tuple[str, _Disturb]] = {
    "shift_1": ("moved by 1 pixel to a random side", _shift(1)),
    "shift_2": ("moved by 2 pixels to a random side", _shift(2)),
    "rotation": ("turned by 10 degrees to a random side, bilinear", _rotate),
    "mirror": ("left and right exchanged", _mirror),
    "noise": ("with Gaussian noise, standard deviation a tenth of the pixel range", _add_noise),
    "blur": ("blurred by a Gaussian filter, standard deviation 1 pixel", _blur),
    "contrast": ("half as far from their own mean", _reduce_contrast),
    "erased": ("without a patch of a third of each side, at a random place", _erase),
}
# Description of the disturbed images, by disturbance.
DISTURBED_IMAGES = {name: text for name, (text, _) in _DISTURBANCES.items()}
