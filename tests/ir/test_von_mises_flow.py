"""The mathematics of the periodic Bayesian flow against quadrature and closed forms."""

import math

import numpy as np
import pytest
from scipy import special

from optimize.ir.von_mises_flow import (
    LARGEST_DEVIATION,
    accuracies,
    belief,
    bessel_ratio,
    concentration_targets,
    divergence,
    entropy,
    lattice_accuracy,
    lattice_belief,
    mean_concentration,
    quantiles,
    type_belief,
    updated_belief,
    wrap,
)

CIRCLE = np.linspace(-np.pi, np.pi, 40001)[:-1]
CELL = 2 * np.pi / len(CIRCLE)


def density(mean: float, concentration: float) -> np.ndarray:
    """vM(mean, concentration) on CIRCLE."""
    values = np.exp(concentration * (np.cos(CIRCLE - mean) - 1))
    return values / (values.sum() * CELL)


def test_update_is_the_product_of_densities():
    mean, concentration, observation, accuracy = 0.7, 3.1, -2.2, 1.9
    product = density(mean, concentration) * np.exp(accuracy * np.cos(observation - CIRCLE))
    product /= product.sum() * CELL
    after = density(*map(float, updated_belief(mean, concentration, observation, accuracy)))
    np.testing.assert_allclose(after, product, rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [10, 100])
def test_updates_one_by_one_equal_the_closed_form(steps):
    generator = np.random.default_rng(0)
    alphas = np.array(accuracies(steps))
    observations = generator.vonmises(1.3, alphas[:, None], (steps, 500))
    mean, concentration = np.zeros(500), np.zeros(500)
    for alpha, observation in zip(alphas, observations, strict=True):
        mean, concentration = updated_belief(mean, concentration, observation, alpha)
    closed_mean, closed_concentration = belief(observations, alphas)
    assert np.abs(concentration - closed_concentration).max() < 2e-12
    assert np.abs(wrap(mean - closed_mean)).max() < 2e-15


@pytest.mark.parametrize(
    ("concentration", "expected"), [(0.5, 1.77817698), (5.0, 0.67564316), (100.0, -0.88112754)]
)
def test_entropy_is_that_of_the_density(concentration, expected):
    values = density(0.0, concentration)
    by_quadrature = -(values * np.log(np.maximum(values, 1e-300))).sum() * CELL
    assert entropy(concentration) == pytest.approx(by_quadrature, abs=1e-13)
    assert entropy(concentration) == pytest.approx(expected, abs=5e-9)


def test_entropy_has_its_limits():
    assert entropy(0.0) == math.log(2 * math.pi)
    # A narrow von Mises distribution is a normal one of variance 1 / concentration.
    normal = 0.5 * math.log(2 * math.pi * math.e / 1e6)
    assert entropy(1e6) == pytest.approx(normal, abs=1e-6)


def test_schedule_has_the_published_accuracies():
    alphas = accuracies(10)
    published = (1.47803, 1.58701, 2.62813, 5.38411, 11.4377, 24.5496)
    # Half a unit of the sixth figure.
    assert alphas[:6] == pytest.approx(published, rel=5e-6)
    assert alphas[-2:] == pytest.approx((248.579, 539.033), rel=3e-6)
    assert sum(alphas) == pytest.approx(1002.37, abs=0.005)
    assert sum(accuracies(100)) == pytest.approx(1045.14, abs=0.01)


@pytest.mark.parametrize("steps", [2, 10, 100])
def test_schedule_makes_the_entropy_fall_linearly(steps):
    targets = np.array(concentration_targets(steps))
    falls = np.diff(entropy(np.concatenate([[0.0], targets])))
    np.testing.assert_allclose(falls, falls[0], rtol=1e-9)
    assert targets[-1] == 1000.0
    for before, after, alpha in zip(targets[:-1], targets[1:], accuracies(steps)[1:], strict=True):
        # The schedule's own quadrature is checked with another one.
        lengths = np.abs(before + alpha * np.exp(1j * CIRCLE))
        assert (density(0.0, alpha) * lengths).sum() * CELL == pytest.approx(after, rel=1e-7)


def test_mean_concentration_has_its_limits():
    assert mean_concentration(3.0, 1e-9) == pytest.approx(3.0, abs=1e-8)
    assert mean_concentration(0.0, 2.5) == pytest.approx(2.5, rel=1e-12)


def test_divergence_is_that_of_the_densities():
    accuracy, difference = 3.7, 0.9
    ratio = accuracy * (np.cos(CIRCLE) - np.cos(CIRCLE - difference))
    by_quadrature = (density(0.0, accuracy) * ratio).sum() * CELL
    assert divergence(accuracy, difference) == pytest.approx(by_quadrature, abs=1e-14)
    assert divergence(accuracy, difference) == pytest.approx(1.19130568, abs=5e-9)


def test_turning_all_observations_turns_the_belief():
    generator = np.random.default_rng(1)
    alphas = np.array(accuracies(10))
    deviations = generator.vonmises(0.0, alphas[:, None], (10, 300))
    mean, concentration = belief(deviations, alphas)
    turned_mean, turned_concentration = belief(deviations + 2.345, alphas)
    assert np.abs(turned_concentration - concentration).max() < 2e-12
    assert np.abs(wrap(turned_mean - mean - 2.345)).max() < 2e-14


def test_agreeing_observations_add_up_and_opposite_ones_cancel():
    mean, concentration = updated_belief(0.4, 7.0, 0.4, 2.5)
    assert (float(mean), float(concentration)) == pytest.approx((0.4, 9.5), abs=1e-14)
    for accuracy in (2.5, 9.0):
        _, concentration = updated_belief(0.4, 7.0, 0.4 + math.pi, accuracy)
        assert concentration == pytest.approx(abs(7.0 - accuracy), abs=1e-14)


@pytest.mark.parametrize(
    ("steps", "shares"), [(10, {2: 0.894, 3: 0.888, 10: 0.998}), (100, {26: 0.856, 100: 0.997})]
)
def test_beliefs_centre_on_the_data_and_fall_short_of_the_targets(steps, shares):
    generator = np.random.default_rng(2)
    alphas, targets = np.array(accuracies(steps)), concentration_targets(steps)
    count, data = 20_000, 2.0
    total = np.zeros(count, dtype=complex)
    falls, before = 0, np.zeros(count)
    for step, alpha in enumerate(alphas, start=1):
        total += alpha * np.exp(1j * generator.vonmises(data, alpha, count))
        falls += int((np.abs(total) < before - 1e-9).sum())
        before = np.abs(total)
        if step in shares:
            assert before.mean() / targets[step - 1] == pytest.approx(shares[step], abs=0.006)
            # 20,000 draws: four standard errors of the mean direction.
            error = 4 / math.sqrt(count * min(1.0, float(before.mean())))
            assert abs(wrap(np.angle(total.sum()) - data)) < error
    # Concentrations fall in 2.0 % and 13.4 % of the steps.
    assert falls / (count * steps) == pytest.approx({10: 0.020, 100: 0.134}[steps], abs=0.003)


@pytest.mark.parametrize("accuracy", [0.01, 1.478, 24.5, 248.6, 2000.0])
def test_quantiles_of_normal_numbers_are_von_mises(accuracy):
    found = quantiles(accuracy, 8193)
    grid = np.linspace(0, LARGEST_DEVIATION, 8193)
    assert found[0] == 0 and np.all(np.diff(found) >= 0) and found[-1] <= math.pi
    weight = np.exp(-(grid**2) / 2)
    weight[0] /= 2
    weight /= weight.sum()
    for order in (1, 2, 3):
        moment = special.ive(order, accuracy) / special.ive(0, accuracy)
        assert weight @ np.cos(order * found) == pytest.approx(moment, abs=1e-8)


def test_bessel_ratio_does_not_overflow():
    assert bessel_ratio(0.0) == 0.0
    assert bessel_ratio(1e5) == pytest.approx(1 - 0.5e-5, abs=1e-9)


def test_lattice_belief_goes_from_nothing_to_the_data():
    deviation = math.sqrt(1e-3)
    assert lattice_accuracy(0.0, deviation) == 0.0
    assert lattice_accuracy(1.0, deviation) == pytest.approx(0.999, abs=1e-15)
    lattice = np.array([[0.3, -1.2], [2.0, 0.1]])
    noise = np.random.default_rng(0).standard_normal((50_000, 2, 2))
    assert not lattice_belief(lattice, noise, 0.0, deviation).any()
    drawn = lattice_belief(lattice, noise, 0.5, deviation)
    gamma = 1 - deviation
    np.testing.assert_allclose(drawn.mean(axis=0), gamma * lattice, atol=0.004)
    np.testing.assert_allclose(drawn.var(axis=0), gamma * (1 - gamma), rtol=0.03)


def test_type_belief_goes_from_uniform_to_the_data():
    data = np.eye(5)[[3, 0]]
    noise = np.random.default_rng(0).standard_normal(data.shape)
    np.testing.assert_array_equal(type_belief(data, noise, 0.0, 0.5), np.full((2, 5), 0.2))
    sure = type_belief(data, noise, 1.0, 60.0)
    np.testing.assert_allclose(sure, data, atol=1e-6)
    assert type_belief(data, noise, 0.5, 0.5).sum(axis=-1) == pytest.approx([1.0, 1.0])
