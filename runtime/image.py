"""Pictures from results: floats to bytes, grids, and PNG files, with numpy and zlib only."""

import os
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimize.runtime.errors import RuntimeInputError

Range = Literal["-1..1", "0..1"]
_PNG_COLOURS = {1: 0, 3: 2, 4: 6}
"""Channels → PNG colour type: grey, RGB, RGBA."""


def to_uint8(image: NDArray[Any], values: Range = "-1..1") -> NDArray[np.uint8]:
    """Float pictures as bytes, rounded and clipped.

    Args:
        image: [B, C, H, W], any float dtype, with 1, 3 or 4 channels.
        values: which range the floats span.
    Returns:
        [B, H, W, C].
    Raises:
        RuntimeInputError: another shape or dtype, or values that are not finite.
    """
    if image.ndim != 4 or image.shape[1] not in _PNG_COLOURS or image.dtype.kind != "f":
        raise RuntimeInputError(
            f"image: found {image.dtype} {list(image.shape)}, expected floats [B, C, H, W] with 1, "
            "3 or 4 channels"
        )
    if not np.isfinite(image).all():
        raise RuntimeInputError("image: found NaN or infinite values, expected finite ones")
    if values not in ("-1..1", "0..1"):
        raise RuntimeInputError(f"values: found {values!r}, expected '-1..1' or '0..1'")
    unit = image.astype(np.float64)
    if values == "-1..1":
        unit = (unit + 1.0) / 2.0
    return np.rint(unit.clip(0.0, 1.0) * 255.0).astype(np.uint8).transpose(0, 2, 3, 1)


def grid(images: NDArray[np.uint8], columns: int | None = None, gap: int = 2) -> NDArray[np.uint8]:
    """Pictures side by side on white.

    Args:
        images: [B, H, W, C].
        columns: pictures in a row; None makes the grid about square.
        gap: pixels between pictures.
    Returns:
        [height, width, C].
    """
    count, height, width, channels = images.shape
    if count == 0:
        raise RuntimeInputError("images: found none, expected at least one")
    columns = int(np.ceil(np.sqrt(count))) if columns is None else columns
    if not columns >= 1 or gap < 0:
        raise RuntimeInputError(f"grid: found {columns} columns and a gap of {gap}, expected more")
    columns = min(columns, count)
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for position, image in enumerate(images):
        top, left = (position // columns) * (height + gap), (position % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A PNG file; equal pictures give equal bytes.

    Args:
        image: [H, W] or [H, W, C] with 1, 3 or 4 channels.
    Raises:
        RuntimeInputError: another shape or dtype.
    """
    pixels = image[:, :, None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or pixels.shape[2] not in _PNG_COLOURS:
        raise RuntimeInputError(
            f"image: found {image.dtype} {list(image.shape)}, expected uint8 [H, W, C] with 1, 3 "
            "or 4 channels; convert it with to_uint8"
        )
    height, width, channels = pixels.shape
    if not height or not width:
        raise RuntimeInputError(f"image: found {width} x {height} pixels, expected at least one")
    # Each row starts with its filter type; 0 means none.
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOURS[channels], 0, 0, 0)
    body = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + _chunk(b"IEND", b"")


def save_png(
    path: str | os.PathLike[str], images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
) -> None:
    """Writes one picture [H, W, C], or several [B, H, W, C] as a grid."""
    pixels = np.asarray(images)
    data = png_bytes(grid(pixels) if pixels.ndim == 4 else pixels)
    with open(path, "wb") as file:
        file.write(data)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
