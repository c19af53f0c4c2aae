"""The moving digits: clips of real digits, the judge, the shipped weights, and what they draw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from optimize.recipes.zoo.digits_data import DigitsData, load_digits_data
from optimize.recipes.zoo.digits_sampling import balanced_labels
from optimize.recipes.zoo.moving_digits import (
    WEIGHTS_PATH,
    WEIGHTS_SHA256,
    MovingDigitsDiT,
    load_moving_digits,
    position_table,
)
from optimize.recipes.zoo.moving_digits_data import (
    DIGIT_SIZE,
    FRAME_SIZE,
    FRAMES,
    SPEEDS,
    Motion,
    clips_of,
    draw_motion,
    render,
)
from optimize.recipes.zoo.moving_digits_judge import MovingDigitsJudge
from optimize.recipes.zoo.moving_digits_sampling import clip_noise, sample_clips
from optimize.recipes.zoo.train_digits_dit import flow_loss
from optimize.recipes.zoo.train_moving_digits import ClipOptions, train

ROOM = (FRAME_SIZE - DIGIT_SIZE) / 2


@pytest.fixture(scope="module")
def data() -> DigitsData:
    return load_digits_data()


@pytest.fixture(scope="module")
def judge(data: DigitsData) -> MovingDigitsJudge:
    return MovingDigitsJudge.fit(data)


@pytest.fixture(scope="module")
def model() -> MovingDigitsDiT:
    return load_moving_digits()


# Clips


def still(x: float, y: float, angle: float = 0.0) -> Motion:
    centers = torch.tensor([x, y]).expand(1, FRAMES, 2)
    return Motion(centers, torch.full((1, FRAMES), angle))


def blot() -> torch.Tensor:
    """A round spot of ink with soft edges, right of the middle and a little below."""
    place = torch.arange(32.0)
    ink = torch.exp(-((place - 22) ** 2 + (place[:, None] - 18) ** 2) / (2 * 3.0**2))
    return (2 * ink - 1)[None, None]


def center_of_ink(frame: torch.Tensor) -> torch.Tensor:
    """(x, y) in pixels from the frame's centre."""
    ink = (frame + 1) / 2
    place = torch.arange(FRAME_SIZE) + 0.5 - FRAME_SIZE / 2
    return torch.stack([(ink.sum(0) * place).sum(), (ink.sum(1) * place).sum()]) / ink.sum()


def test_a_digit_stands_where_its_motion_says() -> None:
    home = center_of_ink(render(blot(), still(0, 0))[0, 0, 0])
    moved = center_of_ink(render(blot(), still(2.5, -1.5))[0, 0, 0])
    assert torch.allclose(moved - home, torch.tensor([2.5, -1.5]), atol=0.02)


def test_a_quarter_turn_turns_the_digit() -> None:
    x, y = center_of_ink(render(blot(), still(0, 0))[0, 0, 0])
    turned = center_of_ink(render(blot(), still(0, 0, torch.pi / 2))[0, 0, 0])
    assert x > 1 and y > 0.5
    assert torch.allclose(turned, torch.tensor([-y, x]), atol=0.1)


def test_motions_stay_inside_and_keep_their_speed() -> None:
    motion = draw_motion(200, torch.Generator().manual_seed(0))
    assert motion.centers.abs().max() <= ROOM + 1e-5
    moved = motion.centers.diff(dim=1).abs()
    # Where the border throws a digit back, a step is shorter.
    straight = moved.amax(dim=1).square().sum(-1).sqrt()
    assert straight.max() <= SPEEDS[1] + 1e-4
    assert (straight >= SPEEDS[0] - 0.1).float().mean() > 0.95
    middle = (motion.angles[:, FRAMES // 2 - 1] + motion.angles[:, FRAMES // 2]) / 2
    assert torch.allclose(middle, torch.zeros(200), atol=1e-6)


def test_clips_are_the_same_for_the_same_seed_and_in_range(data: DigitsData) -> None:
    first, again, other = (clips_of(data.held_out, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (360, 1, FRAMES, FRAME_SIZE, FRAME_SIZE)
    assert first.min() >= -1 and first.max() <= 1


# The judge


def test_judge_knows_real_clips_and_no_others(judge: MovingDigitsJudge) -> None:
    assert judge.held_out_accuracy() > 0.98
    wrong = (judge.held_out_labels + 1) % 10
    assert judge.accuracy(judge.held_out, wrong) < 0.02
    noise = clip_noise(100, seed=0).clamp(-1, 1)
    assert judge.accuracy(noise, balanced_labels(100)) < 0.25
    assert judge.frechet_interval(judge.held_out).value < 0.1 * judge.frechet_interval(noise).value


def test_judge_does_not_know_a_digit_that_changes(judge: MovingDigitsJudge) -> None:
    """Frames of eight digits in one clip: what it averages is none of them."""
    mixed = torch.stack(
        [judge.held_out[frame : frame + 300, :, frame] for frame in range(FRAMES)], dim=2
    )
    assert judge.accuracy(mixed, judge.held_out_labels[:300]) < 0.5


# The model


def test_velocity_has_the_shape_of_the_latent_and_every_input_matters() -> None:
    torch.manual_seed(0)
    tiny = MovingDigitsDiT(frames=3, frame_size=4, dim=12, block_count=1, head_count=2).eval()
    for parameter in tiny.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    latent, time = torch.randn(2, 1, 3, 4, 4), torch.tensor([100.0, 900.0])
    labels = torch.tensor([1, 7])
    velocity = tiny(latent, time, labels)
    assert velocity.shape == latent.shape
    for changed in (
        tiny(latent.flip(2), time, labels).flip(2),
        tiny(latent, time.flip(0), labels),
        tiny(latent, time, labels.flip(0)),
    ):
        assert not torch.allclose(velocity, changed)


def test_each_token_has_a_position_of_its_own() -> None:
    table = position_table((3, 4, 5), 24)[0]
    assert table.shape == (60, 24)
    distances = torch.cdist(table, table) + torch.eye(60)
    assert distances.min() > 0.1


def test_rejects_sizes_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="found frame_size 9"):
        MovingDigitsDiT(frame_size=9)
    with pytest.raises(ValueError, match="head_count 5"):
        MovingDigitsDiT(head_count=5)


# The weights


def test_shipped_weights_and_their_record_belong_together() -> None:
    record = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text())
    assert record["sha256"] == WEIGHTS_SHA256
    assert record["parameters"] == sum(item.numel() for item in MovingDigitsDiT().parameters())


def test_draws_the_digit_asked_for(model: MovingDigitsDiT, judge: MovingDigitsJudge) -> None:
    labels = balanced_labels(60)
    clips = sample_clips(model, clip_noise(60, seed=3), labels, steps=10)
    assert judge.accuracy(clips, labels) > 0.8
    assert judge.accuracy(clips, (labels + 1) % 10) < 0.15


def test_trains_from_the_command_lines_options(data: DigitsData, tmp_path: Path) -> None:
    options = ClipOptions(
        steps=4, batch_size=2, check_every=4, check_samples=10, bfloat16=False, seed=1
    )
    torch.manual_seed(1)
    small = MovingDigitsDiT(dim=12, block_count=1, head_count=2)
    train(small, data, options, tmp_path)
    record = json.loads((tmp_path / "moving_digits.json").read_text())
    assert record["step"] == 4 and 0 <= record["check"]["accuracy"] <= 1
    assert (tmp_path / "moving_digits.safetensors").stat().st_size > 1000


def test_loss_of_a_model_that_predicts_nothing_is_the_power_of_the_velocity(
    data: DigitsData,
) -> None:
    clean = clips_of(data.train, 0)[:32]
    options, generator = ClipOptions(bfloat16=False), torch.Generator().manual_seed(0)
    loss = flow_loss(MovingDigitsDiT(), clean, data.train.labels[:32], options, generator)
    assert loss.item() == pytest.approx(1 + clean.square().mean().item(), rel=0.03)
