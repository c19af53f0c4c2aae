"""Quality of results: the numbers of the budget, with intervals where there can be any."""

import numpy as np
import pytest

from optimize.ir.errors import QualityError
from optimize.measure.result_quality import result_quality
from optimize.passes.pipeline import results_error, results_match, results_psnr


def drawn(requests=3, batch=4, noise=0.1, seed=0):
    """Results of two outputs, and the same with noise."""
    random = np.random.default_rng(seed)
    expected = [
        {
            "latent": random.standard_normal((batch, 2, 5)).astype(np.float32),
            "scores": random.standard_normal((batch, 7)) * 100,
        }
        for _ in range(requests)
    ]
    found = [
        {name: item + noise * random.standard_normal(item.shape) for name, item in result.items()}
        for result in expected
    ]
    return found, expected


def test_values_are_those_of_the_budget():
    found, expected = drawn()
    quality, note = result_quality(found, expected)
    assert note is None and set(quality) == {"relative_error", "psnr"}
    assert quality["relative_error"]["value"] == pytest.approx(results_error(found, expected))
    assert quality["psnr"]["value"] == pytest.approx(results_psnr(found, expected))
    for item in quality.values():
        low, high = item["interval"]
        assert low <= item["value"] <= high and low < high


def test_answers_that_end_elsewhere_count_as_the_budget_counts_them():
    expected = [{"tokens": np.array([[1, 2, 3], [4, 5, 6]])}, {"tokens": np.array([[7], [8]])}]
    found = [{"tokens": np.array([[1, 2], [4, 9]])}, {"tokens": np.array([[7, 1], [8, 1]])}]
    quality, note = result_quality(found, expected)
    share = quality["token_match"]["value"]
    assert share == pytest.approx(results_match(found, expected)) and 0 < share < 1
    assert quality["relative_error"]["value"] == pytest.approx(results_error(found, expected))
    assert note is None and "psnr" not in quality
    low, high = quality["token_match"]["interval"]
    assert 0 <= low <= share <= high <= 1


def test_an_interval_covers_the_number_of_many_samples():
    """Of 40 sets of 16 samples, at least 34 intervals hold the error of all 640."""
    everything = drawn(requests=1, batch=640)
    true = results_error(*everything)
    held = 0
    for start in range(0, 640, 16):
        found, expected = (
            [{name: item[start : start + 16] for name, item in results[0].items()}]
            for results in everything
        )
        low, high = result_quality(found, expected)[0]["relative_error"]["interval"]
        held += low <= true <= high
    assert held >= 34


def test_requests_are_the_samples_where_a_result_has_no_batch():
    expected = [{"energy": np.array(float(value))} for value in (1, 2, 3)]
    found = [{"energy": np.array(value)} for value in (1.1, 2.0, 3.3)]
    quality, note = result_quality(found, expected)
    assert quality["relative_error"]["interval"] is not None
    one, why = result_quality(found[:1], expected[:1])
    assert one["relative_error"]["interval"] is None
    assert "found one sample, an interval needs two; give `calibration" in str(why)
    assert note is None and "psnr" not in quality  # a number has no range


def test_equal_results_have_no_psnr_and_an_interval_of_nothing():
    _, expected = drawn()
    quality, note = result_quality(expected, expected)
    assert quality == {"relative_error": {"value": 0.0, "interval": [0.0, 0.0]}} and note is None


def test_an_interval_that_reaches_no_noise_is_left_out_and_said():
    found, expected = drawn(requests=1, batch=2)
    found[0] = {name: np.copy(item) for name, item in expected[0].items()}
    found[0]["latent"][1] += 0.5
    quality, note = result_quality(found, expected)
    assert quality["psnr"]["interval"] is None and quality["psnr"]["value"] > 0
    assert quality["relative_error"]["interval"][0] == 0.0
    assert note is not None and note.startswith("no interval of psnr: it is not finite in some")


def test_a_reference_without_signal_is_refused():
    with pytest.raises(QualityError, match="found a reference of all zeros"):
        result_quality([{"x": np.ones((2, 2))}], [{"x": np.zeros((2, 2))}])


def test_how_many_calls_an_answer_took_is_no_part_of_it():
    tokens = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    other = tokens.copy()
    other[0, 0] = 9
    expected = [{"tokens": tokens, "calls": np.array([4, 4])}]
    found = [{"tokens": other, "calls": np.array([1, 2])}]
    metrics, _ = result_quality(found, expected)
    assert metrics["token_match"]["value"] == results_match(found, expected) == 7 / 8
    assert metrics["relative_error"]["value"] == results_error(found, expected) == 1 / 8
    alone = [{"calls": np.array([4, 4])}]
    assert results_match([{"calls": np.array([4, 1])}], alone) == 1 / 2
