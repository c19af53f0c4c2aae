"""Pictures for reports: sample grids and token maps, as arrays and PNG bytes."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import image
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def to_picture(values: NDArray[Any], low: float, high: float) -> Picture:
    """Values in [low, high] as grey levels or colours; what lies outside is clipped."""
    scaled = (np.asarray(values, np.float64) - low) / (high - low)
    picture: Picture = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    return picture


def grid(pictures: Sequence[Picture], columns: int, gap: int = 2) -> Picture:
    """Pictures of one size, [H, W] or [H, W, 3], side by side in rows, white between them."""
    first = pictures[0]
    height, width = first.shape[:2]
    rows = -(-len(pictures) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *first.shape[2:])
    canvas = np.full(shape, 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def png(picture: Picture, scale: int = 1) -> bytes:
    """A picture as a PNG file, each value `scale` pixels wide."""
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    colours = np.stack([large] * 3, axis=-1) if large.ndim == 2 else large
    buffer = io.BytesIO()
    image.imsave(buffer, colours, format="png", metadata={"Software": "optimize"})
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A file as a URI that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def token_map(active: Sequence[Sequence[bool]]) -> Picture:
    """A map of tokens, [h][w]: those recomputed are dark, the others light."""
    return np.where(np.asarray(active, dtype=bool), np.uint8(40), np.uint8(225)).astype(np.uint8)
