"""Pictures of every kind become the same numbers."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from optimize.runtime.errors import ResourceError, RuntimeInputError
from optimize.runtime.pixels import pixel_values
from optimize.runtime.prompting import ImageInput

MEAN, STD = (0.25, 0.5, 0.75), (0.5, 0.25, 2.0)
EXPECTED = ImageInput(height=4, width=6, mean=MEAN, std=STD)
GREY = ImageInput(channels=1, height=4, width=6, mean=(0.0,), std=(1.0,))
BYTES = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
VALUES = ((BYTES / 255 - MEAN) / STD).transpose(2, 0, 1)


def test_a_value_is_scaled_then_normalised():
    found = pixel_values(BYTES, EXPECTED)
    assert found.dtype == np.float32 and found.shape == (3, 4, 6) and found.flags.c_contiguous
    np.testing.assert_allclose(found, VALUES, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_zero_to_one_are_bytes_over_255(dtype):
    found = pixel_values((BYTES / 255).astype(dtype), EXPECTED)
    np.testing.assert_allclose(found, VALUES, rtol=0, atol=3e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("rescale", [1 / 255, 1 / 127.5, 1.0])
def test_floats_and_bytes_agree_at_every_rescale(rescale):
    expected = EXPECTED.model_copy(update={"rescale": rescale})
    found = pixel_values(BYTES / 255, expected)
    np.testing.assert_allclose(found, pixel_values(BYTES, expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["png", "path", "pil"])
def test_files_and_pil_images_give_what_their_pixels_give(tmp_path, kind):
    picture = Image.fromarray(BYTES)
    picture.save(tmp_path / "x.png")
    given = {"png": str(tmp_path / "x.png"), "path": tmp_path / "x.png", "pil": picture}[kind]
    np.testing.assert_array_equal(pixel_values(given, EXPECTED), pixel_values(BYTES, EXPECTED))


def test_a_picture_of_the_right_size_needs_no_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    np.testing.assert_allclose(pixel_values(BYTES, EXPECTED), VALUES, rtol=0, atol=1e-6)
    for given in (BYTES[:3], "x.png"):
        with pytest.raises(ResourceError, match=r"needs Pillow, .* pip install 'optimize\[text\]'"):
            pixel_values(given, EXPECTED)


@pytest.mark.parametrize(
    "resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
)
def test_other_sizes_are_resized_with_the_named_filter(resample):
    large = np.random.default_rng(1).integers(0, 256, (9, 17, 3), dtype=np.uint8)
    expected = EXPECTED.model_copy(update={"resample": resample})
    filter_ = getattr(Image.Resampling, resample.upper())
    resized = np.asarray(Image.fromarray(large).resize((6, 4), filter_))
    found = pixel_values(large, expected)
    np.testing.assert_array_equal(found, pixel_values(resized, expected))
    # Floats take the same way without rounding to bytes on it.
    floats = pixel_values(large / 255, expected)
    assert (
        0 < np.abs(floats - found).max() * min(STD) < (1e-6 if resample == "nearest" else 1 / 200)
    )


def test_a_black_and_white_edge_stays_in_range_when_resized():
    edge = np.zeros((40, 60, 3))
    edge[:, 30:] = 1.0
    plain = EXPECTED.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    found = pixel_values(edge[:, 1:], plain)
    assert found.min() == 0.0 and found.max() == 1.0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_pil_images_of_other_modes_are_converted(mode):
    picture = Image.fromarray(BYTES).convert(mode)
    found = pixel_values(picture, EXPECTED)
    np.testing.assert_array_equal(found, pixel_values(picture.convert("RGB"), EXPECTED))


def test_single_channels_may_lack_their_dimension():
    plane = BYTES[:, :, 0]
    expected = (plane / 255)[None]
    for given in (plane, plane[:, :, None], Image.fromarray(plane)):
        np.testing.assert_allclose(pixel_values(given, GREY), expected, rtol=0, atol=1e-6)
    assert pixel_values(plane[:3], GREY).shape == (1, 4, 6)


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    picture = Image.fromarray(BYTES.transpose(1, 0, 2))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.png", exif=exif)
    turned = np.rot90(BYTES.transpose(1, 0, 2), k=-1)
    found = pixel_values(tmp_path / "x.png", EXPECTED)
    np.testing.assert_array_equal(found, pixel_values(turned, EXPECTED))


def with_nan():
    image = BYTES / 255
    image[1, 2, 0] = np.nan
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (with_nan(), "found NaN or infinite values"),
        (BYTES.astype(np.float32), r"found floats in \[.*, 248\], expected \[0, 1\]; divide"),
        (BYTES / 255 - 0.5, r"expected \[0, 1\]"),
        (BYTES.astype(np.int64), "found ndarray of dtype int64, expected an array"),
        (BYTES[:, :, :2], r"found shape \[4, 6, 2\], expected an array \[height, width, 3\]"),
        (BYTES[:, :, 0], r"found shape \[4, 6\]"),
        (BYTES.transpose(2, 0, 1), r"put the channels last with image.transpose\(1, 2, 0\)"),
        (BYTES[None], "give several pictures as a list"),
        (BYTES[:0], "found 6 x 0 pixels, expected at least one"),
        (np.broadcast_to(BYTES[:1, :1], (8001, 8001, 3)), "found 8001 x 8001 pixels, expected"),
        (object(), "found object of dtype object"),
        (Image.new("I;16", (6, 4)), "mode I;16, whose range is not known"),
        (Image.new("F", (6, 4)), "mode F, whose range"),
        ("missing.png", "image missing.png: found no such file"),
        (os.devnull, "image /dev/null: found no regular file"),
    ],
)
def test_what_is_no_picture_of_the_right_kind_is_refused(image, message):
    with pytest.raises(RuntimeInputError, match=message):
        pixel_values(image, EXPECTED)


def test_damaged_and_strange_files_are_refused(tmp_path):
    Image.fromarray(BYTES).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    Image.fromarray(BYTES).save(tmp_path / "x.eps")
    strange = (tmp_path / "x.eps").read_bytes()
    for content in (b"", b"text", whole[:40], whole[: len(whole) // 2], strange):
        (tmp_path / "y.png").write_bytes(content)
        with pytest.raises(RuntimeInputError, match="y.png: cannot be read: .* expected a file of"):
            pixel_values(tmp_path / "y.png", EXPECTED)


def test_a_file_that_says_it_is_huge_is_refused_before_it_is_read(tmp_path, monkeypatch):
    Image.new("1", (8001, 8001)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("the picture was read"))
    with pytest.raises(RuntimeInputError, match="found 8001 x 8001 pixels, expected at most 64000"):
        pixel_values(tmp_path / "x.png", EXPECTED)
