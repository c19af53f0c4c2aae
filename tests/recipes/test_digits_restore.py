"""The digits restorer: degradations, the network, its samplers, the shipped weights."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.commands.zoo import load_restorer
from optimize.ir.program import Program
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.recipes.zoo.digits_data import DigitsData, load_digits_data
from optimize.recipes.zoo.digits_degradation import (
    TASKS,
    DegradedDigits,
    degrade,
    degraded_digits,
    image_psnr,
)
from optimize.recipes.zoo.digits_restore import (
    SCHEDULE,
    WEIGHTS_PATH,
    WEIGHTS_SHA256,
    DigitsRestorer,
    load_digits_restore,
)
from optimize.recipes.zoo.digits_restore_sampling import (
    mean_reverting_steps,
    sample_euler,
    sample_mean_reverting,
    sample_posterior,
)
from optimize.recipes.zoo.train_digits_restore import RestoreOptions, jitter, train
from optimize.runtime import load


@pytest.fixture(scope="module")
def data() -> DigitsData:
    return load_digits_data()


@pytest.fixture(scope="module")
def pairs(data: DigitsData) -> DegradedDigits:
    return degraded_digits(data.held_out, seed=0)


@pytest.fixture(scope="module")
def model() -> DigitsRestorer:
    return load_digits_restore()


@pytest.fixture(scope="module")
def program() -> Program:
    """The captured zoo model, 100 first-order steps."""
    loaded = load_restorer("zoo:digits-restore")
    return capture(loaded.model, loaded.example_inputs, loop=loaded.loop)


@pytest.fixture
def tiny() -> DigitsRestorer:
    """A small model with random weights everywhere, also where training starts from zero."""
    torch.manual_seed(0)
    tiny = DigitsRestorer(width=8)
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return tiny.eval()


def noisy_batch(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(count, 1, 8, 8, generator=generator)
    return latent, torch.linspace(0, 100, count), torch.rand(latent.shape, generator=generator)


class Knows(DigitsRestorer):
    """Always finds the noise that leads to the same clean images."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__(width=8)
        self.clean = clean

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, degraded: torch.Tensor
    ) -> torch.Tensor:
        times = timestep.double().numpy()
        alpha, sigma = (
            torch.from_numpy(values(times))[:, None, None, None]
            for values in (SCHEDULE.alpha, SCHEDULE.sigma)
        )
        return (latent - degraded - alpha * (self.clean - degraded)) / sigma


# Degradations.


def test_degradations_are_seeded_in_range_and_strong(
    data: DigitsData, pairs: DegradedDigits
) -> None:
    again = degraded_digits(data.held_out, seed=0)
    assert torch.equal(again.degraded, pairs.degraded)
    assert not torch.equal(degraded_digits(data.held_out, seed=1).degraded, pairs.degraded)
    for images in (pairs.clean, pairs.degraded):
        assert images.shape == (360, 1, 32, 32)
        assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    decibels = image_psnr(pairs.degraded, pairs.clean)
    for task in range(len(TASKS)):
        assert 11 < decibels[pairs.tasks == task].mean() < 16


def test_each_task_does_its_own_damage() -> None:
    clean = torch.zeros(3, 1, 32, 32)
    clean[:, :, :, 16:] = 1.0
    noisy, blurred, holed = degrade(clean, torch.arange(3), torch.Generator().manual_seed(0))
    assert 0.1 < (noisy - clean[0]).std() < 0.4
    columns = blurred[0].mean(dim=0)
    assert columns[15].item() == pytest.approx(0.5, abs=0.1)
    assert columns[2] < 0.05
    hidden = holed != clean[2]
    assert torch.all(holed[hidden] == 0.5)
    assert 8 * 8 <= int(hidden.sum()) <= 3 * 12 * 12


def test_psnr_is_that_of_the_clipped_image() -> None:
    clean = torch.ones(2, 1, 4, 4)
    images = torch.stack([torch.full((1, 4, 4), 0.9), torch.full((1, 4, 4), 1.7)])
    assert image_psnr(images, clean).tolist() == pytest.approx([20.0, math.inf])


def test_jitter_moves_its_share_of_the_images(pairs: DegradedDigits) -> None:
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(jitter(pairs.clean, 0.0, generator), pairs.clean)
    moved = jitter(pairs.clean, 0.5, generator)
    changed = (moved != pairs.clean).flatten(1).any(dim=1)
    assert 0.4 < changed.float().mean() < 0.6
    assert 0 <= moved.min() <= moved.max() <= 1
    assert (moved - pairs.clean)[changed].abs().mean() < 0.2


# The network.


def test_rows_of_a_batch_do_not_affect_each_other(tiny: DigitsRestorer) -> None:
    latent, timestep, degraded = noisy_batch(3)
    whole = tiny(latent, timestep, degraded)
    assert whole.shape == latent.shape
    torch.testing.assert_close(whole[1:2], tiny(latent[1:2], timestep[1:2], degraded[1:2]))


def test_every_input_matters(tiny: DigitsRestorer) -> None:
    latent, timestep, degraded = noisy_batch(2)
    noise = tiny(latent, timestep, degraded)
    assert not torch.allclose(noise, tiny(latent.flip(-1), timestep, degraded))
    assert not torch.allclose(noise, tiny(latent, timestep.flip(0), degraded))
    assert not torch.allclose(noise, tiny(latent, timestep, degraded.flip(-1)))


def test_knows_the_noise_level_between_timesteps() -> None:
    # Untrained, the velocity is 0 and the noise that of a latent of which nothing is known.
    latent, _, degraded = noisy_batch(3)
    timestep = torch.tensor([0.4, 57.25, 100.0])
    sigma = torch.from_numpy(SCHEDULE.sigma(timestep.double().numpy()))[:, None, None, None]
    expected = sigma * (latent - degraded) / SCHEDULE.stationary_sigma**2
    noise = DigitsRestorer(width=8)(latent, timestep, degraded)
    torch.testing.assert_close(noise, expected.float(), rtol=1e-4, atol=1e-4)


def test_rejects_widths_that_groups_do_not_divide() -> None:
    with pytest.raises(ValueError, match="found width 12"):
        DigitsRestorer(width=12)


def test_exports_with_a_dynamic_batch(tiny: DigitsRestorer) -> None:
    batch = torch.export.Dim("batch", min=1, max=512)
    exported = torch.export.export(tiny, noisy_batch(2), dynamic_shapes=({0: batch},) * 3)
    for count in (1, 5):
        inputs = noisy_batch(count)
        torch.testing.assert_close(exported.module()(*inputs), tiny(*inputs))


# The samplers.


def test_steps_are_equally_spaced_in_time() -> None:
    steps = mean_reverting_steps(4)
    assert [step.timestep for step in steps] == [100.0, 75.0, 50.0, 25.0]
    assert steps[0].previous_size is None
    for step, before in zip(steps[1:], steps, strict=False):
        assert (step.alpha_from, step.sigma_from) == (before.alpha, before.sigma)
        assert step.previous_size == before.size > 0
    with pytest.raises(ValueError, match="found count 0"):
        mean_reverting_steps(0)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("count", [1, 4, 20])
def test_ordinary_sampler_is_exact_where_the_clean_image_is_known(
    pairs: DegradedDigits, order: int, form: Any, count: int
) -> None:
    clean, degraded = pairs.clean[:4].double(), pairs.degraded[:4]
    restored = sample_mean_reverting(Knows(clean), degraded, 0, count, order, form)
    # Only the noise of timestep 0 is left, in the proportion of the first latent's.
    error = (restored - clean) / SCHEDULE.sigma(np.zeros(1))[0]
    assert error.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("sampler", [sample_posterior, sample_euler])
def test_native_samplers_end_at_the_clean_image_where_it_is_known(
    pairs: DegradedDigits, sampler: Any
) -> None:
    clean, degraded = pairs.clean[:4].double(), pairs.degraded[:4]
    error = sampler(Knows(clean), degraded, 0) - clean
    assert error.square().mean().sqrt().item() < 2 * SCHEDULE.sigma(np.ones(1))[0]


def test_refuses_orders_it_does_not_have(model: DigitsRestorer, pairs: DegradedDigits) -> None:
    with pytest.raises(ValueError, match="found order 3"):
        sample_mean_reverting(model, pairs.degraded[:1], 0, 5, order=3)


def test_first_order_forms_are_the_same(model: DigitsRestorer, pairs: DegradedDigits) -> None:
    few = pairs.degraded[:4]
    data, noise = (sample_mean_reverting(model, few, 0, 6, 1, form) for form in ("data", "noise"))
    torch.testing.assert_close(data, noise, rtol=0, atol=1e-5)


def test_second_order_is_closer_to_the_exact_solution(
    model: DigitsRestorer, pairs: DegradedDigits
) -> None:
    few = pairs.degraded[:6]
    fine = sample_mean_reverting(model, few, 0, 100)
    first, second = (
        (sample_mean_reverting(model, few, 0, 10, order, denoise_last=True) - fine).norm()
        for order in (1, 2)
    )
    assert second < 0.8 * first


# The captured program.


def test_captured_program_is_the_first_order_sampler(
    program: Program, model: DigitsRestorer, pairs: DegradedDigits
) -> None:
    few = pairs.degraded[:3]
    restored = program(degraded=few, seed=5)["latent"]
    expected = sample_mean_reverting(model, few, 5, 100, order=1)
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("order", "steps"), [(1, 5), (2, 5), (2, 10)])
def test_fused_mr_sampler_is_the_published_one(
    program: Program,
    model: DigitsRestorer,
    pairs: DegradedDigits,
    order: int,
    steps: int,
    eta: float,
) -> None:
    few = pairs.degraded[:3]
    solver = FuseSolver(solver="mr_sampler", order=order, steps=steps, eta=eta)
    restored = run_passes(program, [solver], verify=False)(degraded=few, seed=5)["latent"]
    expected = sample_mean_reverting(model, few, 5, steps, order, stochastic=eta > 0)
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-5)


def test_schedule_that_ends_clean_is_denoise_last(
    program: Program, model: DigitsRestorer, pairs: DegradedDigits
) -> None:
    few = pairs.degraded[:3]
    solver = FuseSolver(solver="mr_sampler", steps=5, schedule="time")
    restored = run_passes(program, [solver], verify=False)(degraded=few, seed=5)["latent"]
    expected = sample_mean_reverting(model, few, 5, 5, denoise_last=True)
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_fused_noise_form_is_the_published_one(
    program: Program, model: DigitsRestorer, pairs: DegradedDigits, eta: float
) -> None:
    few = pairs.degraded[:3]
    solver = FuseSolver(solver="dpm_solver", order=2, steps=16, eta=eta, variant="taylor")
    restored = run_passes(program, [solver], verify=False)(degraded=few, seed=5)["latent"]
    expected = sample_mean_reverting(model, few, 5, 16, 2, "noise", stochastic=eta > 0)
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-5)


def test_bundle_restores_like_the_program(
    program: Program, pairs: DegradedDigits, tmp_path: Path
) -> None:
    fused = run_passes(program, [FuseSolver(solver="mr_sampler", steps=10)], verify=False)
    fused.export(tmp_path / "bundle")
    few = pairs.degraded[:6]
    restored = load(tmp_path / "bundle")(degraded=few.numpy(), seed=5)["latent"]
    expected = fused(degraded=few, seed=5)["latent"].numpy()
    np.testing.assert_allclose(restored, expected, rtol=0, atol=1e-4)
    decibels = image_psnr(torch.from_numpy(restored), pairs.clean[:6])
    assert decibels.mean() > image_psnr(few, pairs.clean[:6]).mean() + 6


# The shipped weights.


def test_weights_are_the_recorded_ones(model: DigitsRestorer) -> None:
    content = WEIGHTS_PATH.read_bytes()
    record = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text())
    assert hashlib.sha256(content).hexdigest() == WEIGHTS_SHA256 == record["sha256"]
    assert len(content) <= 4_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_ten_calls_restore_as_well_as_a_hundred(
    model: DigitsRestorer, pairs: DegradedDigits
) -> None:
    few, clean = pairs.degraded[:90], pairs.clean[:90]
    native = image_psnr(sample_posterior(model, few, seed=0), clean).mean()
    assert native > image_psnr(few, clean).mean() + 8
    ten = image_psnr(sample_mean_reverting(model, few, 0, 10, order=1), clean).mean()
    assert ten > native - 0.1


# Training.


def test_training_learns_and_records_what_it_did(tmp_path: Path, data: DigitsData) -> None:
    torch.manual_seed(0)
    options = RestoreOptions(
        steps=120, batch_size=8, warmup_steps=2, check_every=120, average_decay=0.5
    )
    train(DigitsRestorer(width=8), data, options, tmp_path)
    record = json.loads((tmp_path / "digits_restore.json").read_text())
    content = (tmp_path / "digits_restore.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["options"]["steps"] == record["step"] == 120
    # A velocity of zero scores 1.08: the variances of noise and of clean - degraded mixed.
    assert record["loss"] < 0.9
    assert math.isfinite(record["check"]["psnr"])
