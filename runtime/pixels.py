"""Pictures of many kinds as one request field: read, resized and scaled as a model takes them."""

import os
import stat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.runtime.errors import ResourceError, RuntimeInputError
from optimize.runtime.prompting import ImageInput

MAX_PIXELS = 64 * 10**6
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is read from files. Of the many other formats of PIL some start programs."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def pixel_values(image: Any, expected: ImageInput) -> NDArray[np.float32]:
    """A picture as the model takes it.

    Args:
        image: array [H, W, C] of uint8, or of floats in [0, 1]; the path of a file; or a PIL image.
            One with a single channel may lack the last dimension.
        expected: the size and scale of the result.
    Returns:
        [channels, height, width].
    Raises:
        RuntimeInputError: says what was found and what was expected.
        ResourceError: the picture needs Pillow, which is not installed.
    """
    if isinstance(image, (str, os.PathLike)):
        image = _opened(image)
    pixels = _array_of(_converted(image, expected) if _is_pil(image) else image, expected)
    if pixels.shape[:2] != (expected.height, expected.width):
        pixels = _resized(pixels, expected)
    scale = expected.rescale if pixels.dtype == np.uint8 else expected.rescale * 255.0
    values = (pixels.astype(np.float64) * scale - expected.mean) / expected.std
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def _array_of(image: Any, expected: ImageInput) -> NDArray[Any]:
    """The picture as uint8 or as floats in [0, 1], [H, W, C]."""
    wanted = f"an array [height, width, {expected.channels}] of uint8 or of floats in [0, 1]"
    array = np.asarray(image)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        kind = type(image).__name__
        raise RuntimeInputError(f"image: found {kind} of dtype {array.dtype}, expected {wanted}")
    if array.ndim == 2 and expected.channels == 1:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] != expected.channels:
        hint = ""
        if array.ndim == 3 and array.shape[0] == expected.channels:
            hint = "; put the channels last with image.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; give several pictures as a list"
        raise RuntimeInputError(f"image: found shape {list(array.shape)}, expected {wanted}{hint}")
    _check_size(array.shape[1], array.shape[0])
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise RuntimeInputError("image: found NaN or infinite values, expected finite ones")
        low, high = float(array.min()), float(array.max())
        if low < 0.0 or high > 1.0:
            raise RuntimeInputError(
                f"image: found floats in [{low:g}, {high:g}], expected [0, 1]; "
                "divide bytes by 255, or give them as uint8"
            )
    return array


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise RuntimeInputError(f"image: found {width} x {height} pixels, expected at least one")
    if width * height > MAX_PIXELS:
        raise RuntimeInputError(
            f"image: found {width} x {height} pixels, expected at most {MAX_PIXELS}; "
            "make it smaller"
        )


def _is_pil(image: Any) -> bool:
    return type(image).__module__.partition(".")[0] == "PIL"


def _pil(why: str) -> Any:
    """The module PIL.Image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ResourceError(
            f"image: {why} needs Pillow, which is not installed; pip install 'optimize[text]'"
        ) from error
    return Image


def _opened(path: str | os.PathLike[str]) -> Any:
    """The picture in a file, turned as its camera says."""
    library = _pil("reading a file")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RuntimeInputError(f"image {path}: found no regular file, expected a picture")
        with library.open(path, formats=FORMATS) as opened:
            _check_size(*opened.size)
            opened.load()
            from PIL import ImageOps

            return ImageOps.exif_transpose(opened)
    except RuntimeInputError:
        raise
    except FileNotFoundError as error:
        raise RuntimeInputError(f"image {path}: found no such file, expected a picture") from error
    # PIL raises OSError, SyntaxError, ValueError and struct.error for files that are damaged.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeInputError(
            f"image {path}: cannot be read: {reason}; expected a file of {', '.join(FORMATS)}"
        ) from error


def _converted(image: Any, expected: ImageInput) -> Any:
    """A PIL image with the channels of the model, 8 bits each."""
    _check_size(*image.size)
    if image.mode.startswith(("I", "F")):
        raise RuntimeInputError(
            f"image: found a PIL image of mode {image.mode}, whose range is not known, expected "
            "8 bits per channel; convert it to an array of floats in [0, 1]"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(_MODES[expected.channels])


def _resized(pixels: NDArray[Any], expected: ImageInput) -> NDArray[Any]:
    """The picture stretched to the size of the model; floats stay floats."""
    library = _pil(
        f"resizing from {pixels.shape[1]} x {pixels.shape[0]} to {expected.width} x "
        f"{expected.height} pixels"
    )
    filter_ = getattr(library.Resampling, expected.resample.upper())
    size = (expected.width, expected.height)
    if pixels.dtype == np.uint8:
        whole = library.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        found = np.asarray(whole.resize(size, filter_))
        return found[:, :, None] if found.ndim == 2 else found
    planes = [
        np.asarray(library.fromarray(plane).resize(size, filter_))
        for plane in np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    ]
    # Filters with negative lobes overshoot at edges.
    return np.stack(planes, axis=-1).clip(0.0, 1.0)
