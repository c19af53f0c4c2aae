"""What `capture` promises about the modules it is given: rows A1-A6 and A9-A11."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from optimize.capture.from_denoiser import capture
from optimize.ir.errors import InputModelError, NumericsError


class Denoiser(nn.Module):
    """The least that can be captured; subclasses spoil one thing each."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.drop(torch.tanh(self.mix(hidden_states))) + shift[:, None]
        return self.spoiled(self.out(hidden), timestep)

    def spoiled(self, hidden: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return hidden * (1 + 0.001 * timestep[:, None])


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 4),
        "timestep": torch.tensor([1.0, 1.0]),
        "shift": torch.tensor([0.5, -0.5]),
    }


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("model.safetensors", "found str"),
        ({"weight": torch.zeros(1)}, "found dict"),
        (None, "found NoneType"),
        (nn.Linear, "found a class"),
        (lambda hidden_states: hidden_states, "found function"),
    ],
)
def test_a1_what_is_no_module(model: Any, found: str) -> None:
    with pytest.raises(InputModelError, match=f"{found}, expected a torch.nn.Module"):
        capture(model, inputs())


class ReadsNumber(Denoiser):
    def spoiled(self, hidden: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return hidden * 2 if hidden.sum().item() > 0 else hidden  # the faulty line


class BranchesOnTensor(Denoiser):
    def spoiled(self, hidden: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if timestep.max() > 500:  # the faulty line
            return hidden * 2
        return hidden


@pytest.mark.parametrize("kind", [ReadsNumber, BranchesOnTensor])
def test_a2_data_dependent_control_flow_names_the_line(kind: type[Denoiser]) -> None:
    lines, first = inspect.getsourcelines(kind.spoiled)
    (faulty,) = [first + i for i, line in enumerate(lines) if "the faulty line" in line]
    with pytest.raises(InputModelError) as error:
        capture(kind().eval(), inputs())
    assert f"{kind.__name__}: cannot be traced" in str(error.value)
    assert f"{__file__}:{faulty}" in str(error.value)
    assert "data-dependent control flow" in str(error.value)


def test_a3_training_mode_warns_once_and_is_kept() -> None:
    model = Denoiser()
    model.train()
    model.mix.eval()
    flags = [module.training for module in model.modules()]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        program = capture(model, inputs())
    ours = [item for item in seen if "training mode" in str(item.message)]
    assert len(ours) == 1 and ours[0].filename == __file__
    assert [module.training for module in model.modules()] == flags
    # Dropout is off: the same request gives the same answer, that of evaluation mode.
    given = inputs()
    ours_out = program.graphs["denoiser"].run(
        program.weights,
        {"latent": given["hidden_states"], "timestep": torch.tensor(1.0), "shift": given["shift"]},
    )["prediction"]
    with torch.no_grad():
        torch.testing.assert_close(ours_out, model.eval()(**given))


@pytest.mark.parametrize("kind", [ReadsNumber, BranchesOnTensor])
def test_a3_flags_are_kept_after_an_exception(kind: type[Denoiser]) -> None:
    model = kind()
    model.drop.eval()
    flags = [module.training for module in model.modules()]
    with pytest.warns(UserWarning, match="training mode"), pytest.raises(InputModelError):
        capture(model, inputs())
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda given: None, "found nothing, expected a dict"),
        (lambda given: [*given.values()], "found list, expected a dict"),
        (lambda given: {**given, 3: given["shift"]}, "found key 3"),
        (lambda given: {k: v for k, v in given.items() if k != "shift"}, "missing.*'shift'"),
        (lambda given: {**given, "shfit": given["shift"]}, "unexpected.*'shfit'"),
    ],
)
def test_a4_wrong_example_inputs(change: Callable[[dict[str, Any]], Any], expected: str) -> None:
    with pytest.raises(InputModelError, match=expected) as error:
        capture(Denoiser().eval(), change(inputs()))
    if "key" not in expected:
        assert "Denoiser.forward(hidden_states" in str(error.value)


def test_a4_latent_that_is_no_tensor() -> None:
    with pytest.raises(InputModelError, match="no tensor 'hidden_states'"):
        capture(Denoiser().eval(), {**inputs(), "hidden_states": 3})


def test_a5_meta_and_lazy_parameters() -> None:
    with torch.device("meta"):
        model = Denoiser()
    with pytest.raises(InputModelError, match="'mix.weight' is on the meta device"):
        capture(model, inputs())
    lazy = Denoiser()
    lazy.mix = nn.LazyLinear(4)  # type: ignore[assignment]
    with pytest.raises(InputModelError, match="'mix.weight' is not initialised"):
        capture(lazy, inputs())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a6_weights_that_are_not_finite(bad: float) -> None:
    model = Denoiser().eval()
    with torch.no_grad():
        model.out.weight[1, 2] = bad
    with pytest.raises(NumericsError, match="out.weight") as error:
        capture(model, inputs())
    assert "mix.weight" not in str(error.value)
    program = capture(model, inputs(), allow_nonfinite=True)
    assert any("allow_nonfinite" in note and "out.weight" in note for note in program.notes)


def test_a7_tied_weights_are_stored_once() -> None:
    model = Denoiser().eval()
    model.out.weight = model.mix.weight
    program = capture(model, inputs())
    assert sum("weight" in name for name in program.weights) == 1
    given = inputs()
    ours = program.graphs["denoiser"].run(
        program.weights,
        {"latent": given["hidden_states"], "timestep": torch.tensor(1.0), "shift": given["shift"]},
    )["prediction"]
    with torch.no_grad():
        torch.testing.assert_close(ours, model(**given))


def test_weights_stay_byte_identical() -> None:
    model = Denoiser().eval()
    before = {name: item.numpy().tobytes() for name, item in model.state_dict().items()}
    places = {name: item.data_ptr() for name, item in model.named_parameters()}
    given = inputs()
    copies = {name: item.clone() for name, item in given.items()}
    program = capture(model, given)
    program(shift=given["shift"], seed=0)
    assert {k: v.numpy().tobytes() for k, v in model.state_dict().items()} == before
    assert {name: item.data_ptr() for name, item in model.named_parameters()} == places
    assert all(torch.equal(copies[name], item) for name, item in given.items())
    assert all(item.grad is None and item.requires_grad for item in model.parameters())


class Counts(Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def spoiled(self, hidden: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return hidden + self.calls


def test_a9_changed_buffers_are_named_and_put_back() -> None:
    model = Counts().eval()
    with pytest.raises(InputModelError, match="buffer 'calls' is changed by forward"):
        capture(model, inputs())
    assert float(model.calls) == 0.0


class DrawsNoise(Denoiser):
    def spoiled(self, hidden: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return hidden + 0.1 * torch.randn_like(hidden)


class DropsAlways(Denoiser):
    def spoiled(self, hidden: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(hidden, 0.5, training=True)


@pytest.mark.parametrize("kind", [DrawsNoise, DropsAlways])
def test_a10_random_forward_is_refused(kind: type[Denoiser]) -> None:
    with pytest.raises(InputModelError, match="draws random numbers"):
        capture(kind().eval(), inputs())


class FixesBatch(Denoiser):
    def spoiled(self, hidden: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return hidden.reshape(2, 4) * torch.ones(2, 1)


def test_a11_a_batch_the_model_fixes() -> None:
    with pytest.raises(InputModelError, match="FixesBatch: a batch of any size.*fixes it at 2"):
        capture(FixesBatch().eval(), inputs(), dynamic=True)
    program = capture(FixesBatch().eval(), inputs())
    assert program.notes == ("the model fixes the batch at 2",)
    assert program.signature.dimensions == {}


def test_a11_a_batch_of_one_cannot_vary() -> None:
    one = {name: item[:1] for name, item in inputs().items()}
    with pytest.raises(InputModelError, match="the example has batch 1"):
        capture(Denoiser().eval(), one, dynamic=True)


def test_a11_a_batch_that_varies() -> None:
    program = capture(Denoiser().eval(), inputs(), dynamic=True)
    low, high = program.signature.dimensions["batch"]
    assert low == 1 and high > 2
    given = {"latent": torch.randn(5, 4), "shift": torch.randn(5)}
    whole = program(**given)["latent"]
    part = program(latent=given["latent"][3:4], shift=given["shift"][3:4])["latent"]
    torch.testing.assert_close(part, whole[3:4])
