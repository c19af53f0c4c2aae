"""The speed-up of a whole by that of one of its parts."""

import math

import pytest

from optimize.measure.amdahl import predicted_speedup


@pytest.mark.parametrize(
    ("kernel_ms", "expected"), [(46.52, 1.16), (40.08, 1.27), (31.35, 1.45), (20.65, 1.77)]
)
def test_predicts_the_published_speedups_of_frame_tiles(kernel_ms, expected):
    # 64 attention calls of 58.36 ms in a step of 5.56 s, Efficient-vDiT, 29 frames.
    share = 64 * 58.36e-3 / 5.56
    assert share == pytest.approx(0.672, abs=5e-4)
    assert round(predicted_speedup(share, 58.36 / kernel_ms), 2) == expected


def test_nothing_and_everything():
    assert predicted_speedup(0.0, 100.0) == 1.0
    assert predicted_speedup(1.0, 3.0) == pytest.approx(3.0)
    assert predicted_speedup(0.5, math.inf) == 2.0


@pytest.mark.parametrize(("share", "speedup"), [(-0.1, 2), (1.1, 2), (0.5, 0), (math.nan, 2)])
def test_refuses_what_is_no_share_or_speedup(share, speedup):
    with pytest.raises(ValueError, match="expected a share in"):
        predicted_speedup(share, speedup)
