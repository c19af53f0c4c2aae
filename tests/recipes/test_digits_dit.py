"""The digits DiT: shapes, tracing, the shipped weights, and that it draws what it is asked for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from optimize.ir.errors import QualityError
from optimize.recipes.zoo.digits_data import (
    NULL_LABEL,
    DigitsData,
    enlarge,
    load_digits_data,
)
from optimize.recipes.zoo.digits_dit import WEIGHTS_PATH, WEIGHTS_SHA256, DigitsDiT, load_digits_dit
from optimize.recipes.zoo.digits_judge import DigitsJudge
from optimize.recipes.zoo.digits_sampling import (
    balanced_labels,
    draw_noise,
    sample_digits,
    sigma_schedule,
)
from optimize.recipes.zoo.train_digits_dit import TrainingOptions, train


@pytest.fixture(scope="module")
def data() -> DigitsData:
    return load_digits_data()


@pytest.fixture(scope="module")
def judge(data: DigitsData) -> DigitsJudge:
    return DigitsJudge.fit(data)


@pytest.fixture(scope="module")
def model() -> DigitsDiT:
    return load_digits_dit()


@pytest.fixture
def tiny() -> DigitsDiT:
    """A small model with random weights everywhere, also where training starts from zero."""
    torch.manual_seed(0)
    tiny = DigitsDiT(image_size=8, dim=16, block_count=2, head_count=2, expansion=2)
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tiny.eval()


def noisy_batch(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(count, 1, size, size, generator=generator)
    return latent, torch.linspace(0, 1000, count), torch.arange(count) % (NULL_LABEL + 1)


# Data.


def test_splits_are_stratified_disjoint_and_in_range(data: DigitsData) -> None:
    assert (len(data.train), len(data.held_out)) == (1437, 360)
    for split in (data.train, data.held_out):
        assert split.images.shape == (len(split), 1, 32, 32)
        assert split.images.dtype == torch.float32
        assert (split.images.min().item(), split.images.max().item()) == (-1.0, 1.0)
        shares = torch.bincount(split.labels, minlength=10) / len(split)
        assert torch.all((shares - 0.1).abs() < 0.005)
    train_rows = {row.numpy().tobytes() for row in data.train.images}
    assert not any(row.numpy().tobytes() in train_rows for row in data.held_out.images)


def test_enlarging_keeps_flat_areas_and_orientation() -> None:
    pixels = torch.zeros(1, 8, 8)
    pixels[:, :, :3] = 16
    image = enlarge(pixels.flatten(1))[0, 0]
    assert torch.all(image[:, :6] == 1.0)
    assert torch.all(image[:, 20:] == -1.0)


# The architecture.


@pytest.mark.parametrize("count", [1, 3])
def test_velocity_has_the_shape_of_the_latent(tiny: DigitsDiT, count: int) -> None:
    latent, timestep, labels = noisy_batch(count, size=8)
    velocity = tiny(latent, timestep, labels)
    assert velocity.shape == latent.shape
    assert velocity.dtype == torch.float32


def test_rows_of_a_batch_do_not_affect_each_other(tiny: DigitsDiT) -> None:
    latent, timestep, labels = noisy_batch(3, size=8)
    whole = tiny(latent, timestep, labels)
    alone = tiny(latent[1:2], timestep[1:2], labels[1:2])
    torch.testing.assert_close(whole[1:2], alone)


def test_every_input_matters(tiny: DigitsDiT) -> None:
    latent, timestep, labels = noisy_batch(2, size=8)
    velocity = tiny(latent, timestep, labels)
    assert not torch.allclose(velocity, tiny(latent.flip(-1), timestep, labels))
    assert not torch.allclose(velocity, tiny(latent, timestep.flip(0), labels))
    assert not torch.allclose(velocity, tiny(latent, timestep, labels + 3))


def test_predicts_zero_before_training() -> None:
    fresh = DigitsDiT(image_size=8, dim=16, block_count=1, head_count=2)
    assert not fresh(*noisy_batch(2, size=8)).any()


def test_rejects_sizes_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="found image_size 9"):
        DigitsDiT(image_size=9)
    with pytest.raises(ValueError, match="head_count 5"):
        DigitsDiT(head_count=5)


def test_exports_with_a_dynamic_batch(tiny: DigitsDiT) -> None:
    batch = torch.export.Dim("batch", min=1, max=512)
    program = torch.export.export(
        tiny,
        noisy_batch(2, size=8),
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
        strict=False,
    )
    targets = {str(node.target) for node in program.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" in targets
    for count in (1, 5):
        inputs = noisy_batch(count, size=8)
        torch.testing.assert_close(program.module()(*inputs), tiny(*inputs))


# The schedule.


def test_schedule_falls_from_one_to_zero() -> None:
    assert sigma_schedule(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = sigma_schedule(4, shift=3.0)
    assert shifted.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (4, 0.0), (4, float("nan"))])
def test_schedule_rejects_options_out_of_range(steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="sigma_schedule: found"):
        sigma_schedule(steps, shift)


# The shipped weights.


def test_weights_are_the_recorded_ones() -> None:
    content = WEIGHTS_PATH.read_bytes()
    record = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text())
    assert hashlib.sha256(content).hexdigest() == WEIGHTS_SHA256 == record["sha256"]
    assert len(content) <= 8_000_000


def test_parameters_are_finite_and_as_many_as_recorded(model: DigitsDiT) -> None:
    record = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text())
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
    assert record["parameters"] <= 1_800_000
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_loading_names_the_cure_when_the_weights_are_missing_or_changed(tmp_path: Path) -> None:
    path = tmp_path / "digits_dit.safetensors"
    with pytest.raises(FileNotFoundError, match="restore it"):
        load_digits_dit(path)
    content = bytearray(WEIGHTS_PATH.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"expected {WEIGHTS_SHA256}; restore"):
        load_digits_dit(path)


@pytest.mark.parametrize(("sigma", "largest_error"), [(0.3, 0.09), (0.6, 0.19), (0.9, 0.38)])
def test_velocity_leads_back_to_unseen_images(
    model: DigitsDiT, data: DigitsData, sigma: float, largest_error: float
) -> None:
    clean, labels = data.held_out.images[:32], data.held_out.labels[:32]
    latent = (1 - sigma) * clean + sigma * draw_noise(32, seed=0)
    with torch.no_grad():
        velocity = model(latent, torch.full((32,), 1000 * sigma), labels)
    error = (latent - sigma * velocity - clean).square().mean().sqrt().item()
    assert error < largest_error


def test_draws_the_digits_asked_for(model: DigitsDiT, judge: DigitsJudge) -> None:
    labels = balanced_labels(64)
    images = sample_digits(model, draw_noise(64, seed=0), labels, sigma_schedule(12))
    assert judge.accuracy(images, labels) >= 0.95
    assert images.abs().max() < 1.6


def test_null_label_draws_digits_of_several_classes(model: DigitsDiT, judge: DigitsJudge) -> None:
    labels = torch.full((20,), NULL_LABEL)
    images = sample_digits(model, draw_noise(20, seed=0), labels, sigma_schedule(8))
    drawn = [judge.accuracy(images, torch.full((20,), digit)) for digit in range(10)]
    assert sum(share > 0 for share in drawn) >= 5


# The judge.


def test_judge_recognises_real_digits_and_prefers_them(
    data: DigitsData, judge: DigitsJudge
) -> None:
    assert judge.held_out_accuracy() >= 0.98
    floor = judge.frechet_floor(resamples=50)
    assert floor.low < floor.value < floor.high
    real, labels = data.held_out.images, data.held_out.labels
    assert judge.frechet(real) == pytest.approx(floor.value)
    # Blurring, fading and dropping classes are what a worse sampler does.
    blurred = torch.nn.functional.avg_pool2d(real, 9, stride=1, padding=4, count_include_pad=False)
    assert judge.frechet(blurred) > 3 * floor.high
    assert judge.frechet(real * 0.8) > 3 * floor.high
    assert judge.frechet(real[labels < 5]) > 3 * floor.high
    assert judge.accuracy(real, (labels + 1) % 10) < 0.05


def test_judge_cannot_decide_on_the_null_label(data: DigitsData, judge: DigitsJudge) -> None:
    images = data.held_out.images[:2]
    with pytest.raises(QualityError, match="not for the null label"):
        judge.accuracy(images, torch.tensor([3, NULL_LABEL]))
    with pytest.raises(QualityError, match="2 images and 1 labels"):
        judge.accuracy(images, torch.tensor([3]))


def test_nearest_train_distance_exposes_copies(data: DigitsData, judge: DigitsJudge) -> None:
    assert judge.nearest_train_distance(data.train.images[:5]) == pytest.approx(0.0, abs=1e-6)
    assert judge.held_out_nearest_train_distance() > 0.1


# Training.


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_training_learns_and_records_what_it_did(tmp_path: Path, data: DigitsData) -> None:
    torch.manual_seed(0)
    coarse = DigitsDiT(patch_size=8, dim=64, block_count=1, head_count=2)
    options = TrainingOptions(
        steps=60, batch_size=8, warmup_steps=2, check_every=60, check_samples=4, average_decay=0.5
    )
    train(coarse, data, options, tmp_path)
    record = json.loads((tmp_path / "digits_dit.json").read_text())
    content = (tmp_path / "digits_dit.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["options"]["steps"] == record["step"] == 60
    # Predicting zero scores the variance of the noise plus the mean square of the images, 1.7.
    assert record["loss"] < 1.5
