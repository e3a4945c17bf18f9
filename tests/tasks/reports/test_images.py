import base64
import math
import struct
import zlib
from typing import Any

import numpy as np

from tasks.reports.images import png_uri, weights_picture


def _decode(uri: str) -> tuple[Any, Any]:
    """Return the values of a PNG without line filters, uint8 (height, width), and its palette or None."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        assert checksum == zlib.crc32(kind + content)
        chunks[kind], at = content, at + 12 + length
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3) if b"PLTE" in chunks else None
    return lines[:, 1:], palette


def test_png_contains_the_pixels() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    decoded, palette = _decode(png_uri(pixels))
    assert np.array_equal(decoded, pixels)
    assert palette is None


def test_weights_are_tiles_and_larger_weights_are_lighter() -> None:
    kernel = np.zeros((6, 3), np.float32)  # three units with 2 x 3 inputs
    kernel[:, 1] = [-1, -0.5, 0, 0.5, 1, 1]
    picture = weights_picture(kernel, 2, 3, columns=2)
    values, palette = _decode(picture.uri)
    assert values.shape == (picture.height, picture.width) == (2 + 2 + 2, 3 + 2 + 3)
    lightness = palette.sum(axis=1).astype(int)[values]
    second = lightness[0:2, 5:8].ravel()
    assert (np.diff(second)[:4] > 0).all()
    assert second[2] == lightness[0, 0]  # zero has the same colour in every tile
    transparent = values == 255
    assert transparent[:, 3:5].all()
    assert transparent[4:, 5:].all()  # there is no fourth unit
    assert not transparent[0:2, 0:3].any()
    assert picture.bound == 1


def test_draws_weights_that_are_all_zero() -> None:
    assert math.isfinite(weights_picture(np.zeros((4, 2), np.float32), 2, 2).bound)
