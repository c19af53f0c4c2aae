"""The page and the picture of a search."""

import json

from optimize.measure.quality import Interval
from optimize.report.tuning import Attempt, Measurement, Tuning
from optimize.report.tuning_page import MOST_ROWS, quality_cell, render_tuning
from optimize.report.tuning_plot import tuning_picture

PASSES = ({"fuse_solver": {"solver": "unipc", "steps": 6, "order": None}},)


def made(metric: str = "psnr", values: tuple[float, ...] = (28.0, 34.0, 41.0)) -> Tuning:
    names = ("", "known & <loved>", "")
    judged = [
        Attempt(n, "judged", PASSES, names[n], predicted_seconds=0.1 * (n + 1), quality={metric: v})
        for n, v in enumerate(values)
    ]
    dropped = Attempt(3, "pruned", PASSES, reason="predicted 3 s, <slow>", predicted_seconds=3.0)
    return Tuning(
        model="zoo:x",
        target="onnx",
        metric=metric,
        limits={metric: values[1]},
        predicted_seconds=1.0,
        attempts=(*judged, dropped),
        front=(0, 1, 2),
        measured=(
            Measurement(None, "unoptimised", 1.0, Interval(1, 1, 1)),
            Measurement(1, names[1], 0.25, Interval(4, 3.5, 4.4), {metric: values[1]}),
            Measurement(2, "trial 2", 0.2, Interval(5, 4.5, 5.4), {metric: values[2]}),
        ),
        chosen=2,
        recipe="passes:\n- fuse_solver\n",
        ratios={names[1]: Interval(1.25, 1.1, 1.3)},
        notes=("the time was up",),
        environment={"date": "2026-01-01"},
    )


def test_page_shows_what_was_found_and_loads_nothing() -> None:
    page = render_tuning(made())
    assert "5.00 times as fast as the unoptimised program, within psnr=34" in page
    assert "1.25 [1.10, 1.30] times as fast as known &amp; &lt;loved&gt;" in page
    assert "predicted 3 s, &lt;slow&gt;" in page and "<loved>" not in page
    assert "fuse_solver: solver unipc, steps 6, order null" in page
    assert "data:image/svg+xml;base64," in page
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_page_without_a_recipe() -> None:
    tuning = Tuning("zoo:x", "onnx", "psnr", {"psnr": 99.0}, 1.0, ())
    page = render_tuning(tuning)
    assert "No recipe was found within psnr=99" in page and "<img" not in page


def test_long_searches_are_cut_in_the_page_only() -> None:
    attempts = tuple(Attempt(n, "pruned", reason="slow") for n in range(MOST_ROWS + 7))
    tuning = Tuning("zoo:x", "onnx", "psnr", {"psnr": 30.0}, 1.0, attempts)
    assert "and 7 more in tuned.json" in render_tuning(tuning)
    assert len(tuning.to_dict()["attempts"]) == MOST_ROWS + 7


def test_picture_names_the_recipes_and_the_budget() -> None:
    for metric, values in (
        ("psnr", (28.0, 34.0, float("inf"))),
        ("relative_error", (0.2, 0.1, 0.0)),
        ("token_match", (0.9, 1.0, 1.0)),
    ):
        drawn = made(metric, values)
        text = tuning_picture(drawn, "svg").decode()
        assert f"budget: {values[1]:g}" in text
        assert "known &amp; &lt;loved&gt;, 4.00x" in text
        assert "recipe found (trial 2), 5.00x" in text
        assert "unoptimised" in text
        assert "mathdefault" not in text
        assert tuning_picture(drawn, "svg").decode() == text
        assert tuning_picture(drawn, "png").startswith(b"\x89PNG")


def test_data_is_strict_json() -> None:
    data = made("psnr", (28.0, 34.0, float("inf"))).to_dict()
    json.dumps(data, allow_nan=False)
    assert data["attempts"][2]["quality"] == {"psnr": None}
    assert data["chosen"] == 2 and data["measured"][2]["speedup"]["low"] == 4.5


def test_cells() -> None:
    assert quality_cell("psnr", 30.04) == "30.0 dB"
    assert quality_cell("token_match", 0.98765) == "0.9877"
    assert quality_cell("psnr", None) == ""
