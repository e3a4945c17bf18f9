"""Encode images and weights as PNG data URIs."""

import base64
import struct
import zlib
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract

# From dark blue over grey to yellow, with increasing lightness, so that it is readable in print and for colour-blind
# people. After cividis: Nunez, Anderton and Renslow, "Optimizing colormaps with consideration for color vision
# deficiency", PLoS ONE 13, 2018.
_COLOURS = ((0, 32, 77), (59, 73, 108), (124, 123, 120), (187, 174, 109), (255, 234, 70))
_GAP = 2  # pixels between two tiles


def png_uri(pixels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8] | None = None) -> str:
    """Return a PNG data URI of ``pixels``, uint8 (height, width).

    The values are grey levels, or indices into ``palette``, uint8 (255, 3); index 255 is then transparent.
    """
    height, width = pixels.shape
    lines = np.zeros((height, width + 1), np.uint8)  # the first byte of a line is its filter, 0 for none
    lines[:, 1:] = pixels
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if palette is None else 3, 0, 0, 0)),
        *([(b"PLTE", palette.tobytes() + bytes(3)), (b"tRNS", b"\xff" * 255 + b"\0")] if palette is not None else []),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode("ascii")


def image_uri(image: npt.NDArray[np.uint8], contract: DatasetContract) -> str:
    """Return a grey PNG data URI of an image, uint8 (pixels,) in pixel_min .. pixel_max."""
    levels = (image.astype(np.float64) - contract.pixel_min) * (255 / (contract.pixel_max - contract.pixel_min))
    return png_uri(np.rint(levels).astype(np.uint8).reshape(contract.height, contract.width))


@dataclass(frozen=True)
class WeightsPicture:
    """A grid with ``columns`` tiles per row, one tile per hidden unit. Colours range from -``bound`` to ``bound``."""

    uri: str
    width: int
    height: int
    columns: int
    bound: float
    scale_uri: str


def weights_picture(kernel: npt.NDArray[np.float32], height: int, width: int, columns: int = 16) -> WeightsPicture:
    """Draw the incoming weights of each hidden unit as an image, from float32 (height * width, units).

    The largest 0.5 % of all weights share the last colour. Otherwise they would leave the others grey.
    """
    units = kernel.shape[1]
    bound = float(np.quantile(np.abs(kernel), 0.995)) or 1.0
    shades = np.rint((np.clip(kernel / bound, -1, 1) + 1) / 2 * 254).astype(np.uint8)
    down, across = height + _GAP, width + _GAP
    sheet = np.full((ceil(units / columns) * down - _GAP, columns * across - _GAP), 255, np.uint8)
    for unit in range(units):
        top, left = unit // columns * down, unit % columns * across
        sheet[top : top + height, left : left + width] = shades[:, unit].reshape(height, width)
    colours = np.array(_COLOURS, dtype=np.float64)
    places = np.linspace(0, len(colours) - 1, 255)
    channels = [np.interp(places, range(len(colours)), channel) for channel in colours.T]
    palette = np.rint(np.column_stack(channels)).astype(np.uint8)
    return WeightsPicture(
        uri=png_uri(sheet, palette),
        width=sheet.shape[1],
        height=sheet.shape[0],
        columns=columns,
        bound=bound,
        scale_uri=png_uri(np.arange(255, dtype=np.uint8)[None, :], palette),
    )
