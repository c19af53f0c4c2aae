"""Pictures: ranges, grids, and PNG files that any decoder reads."""

import struct
import zlib

import numpy as np
import pytest

from optimize.runtime.errors import RuntimeInputError
from optimize.runtime.image import grid, png_bytes, save_png, to_uint8


def decoded(png):
    """A PNG decoder written from the specification, for filter type 0."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    position, data, header = 8, b"", None
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind, body = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        (check,) = struct.unpack(">I", png[position + 8 + length : position + 12 + length])
        assert check == zlib.crc32(kind + body)
        header = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else header
        data += body if kind == b"IDAT" else b""
        position += 12 + length
    width, height, depth, colour, *rest = header
    assert (depth, rest) == (8, [0, 0, 0])
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, {0: 1, 2: 3, 6: 4}[colour])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_decodes_to_its_pixels(channels, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    np.testing.assert_array_equal(decoded(png_bytes(pixels)), pixels)
    save_png(tmp_path / "p.png", pixels)
    np.testing.assert_array_equal(decoded((tmp_path / "p.png").read_bytes()), pixels)


def test_floats_are_rounded_and_clipped():
    image = np.array([-1.5, -1.0, 0.0, 1.0, 2.0], np.float32).reshape(1, 1, 1, 5)
    assert to_uint8(image).reshape(-1).tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(image, "0..1").reshape(-1).tolist() == [0, 0, 0, 255, 255]


def test_channels_go_last():
    image = np.zeros((2, 3, 4, 5), np.float32)
    image[1, 2] = 1.0
    pixels = to_uint8(image, "0..1")
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels[1, :, :, 2].min() == 255
    assert pixels[0].max() == 0


def test_a_grid_holds_every_picture_once(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    canvas = grid(images, columns=3, gap=1)
    assert canvas.shape == (5, 11, 1)
    assert canvas[:2, :3].max() == 0
    assert (canvas[3:, 4:7] == 4).all()
    assert (canvas[2] == 255).all()
    save_png(tmp_path / "g.png", images)
    assert decoded((tmp_path / "g.png").read_bytes()).shape[2] == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: to_uint8(np.zeros((3, 4, 4), np.float32)),
        lambda: to_uint8(np.zeros((1, 2, 4, 4), np.float32)),
        lambda: to_uint8(np.zeros((1, 3, 4, 4), np.uint8)),
        lambda: to_uint8(np.full((1, 3, 4, 4), np.nan, np.float32)),
        lambda: png_bytes(np.zeros((4, 4, 3), np.float32)),
        lambda: png_bytes(np.zeros((0, 4, 3), np.uint8)),
        lambda: grid(np.zeros((0, 4, 4, 3), np.uint8)),
    ],
)
def test_what_is_no_picture_is_refused(call):
    with pytest.raises(RuntimeInputError, match="expected"):
        call()
