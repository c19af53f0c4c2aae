"""Refuses models and example inputs that cannot be captured, before any tracing starts."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from optimize.ir.errors import InputModelError, NumericsError


def check_module(model: Any) -> None:
    """Checks that the model is a materialised module.

    Raises:
        InputModelError: not an `nn.Module`; a parameter is on the meta device or not yet made.
    """
    if not isinstance(model, nn.Module):
        kind = "a class" if isinstance(model, type) else f"{type(model).__name__}"
        raise InputModelError(
            f"model: found {kind}, expected a torch.nn.Module or a diffusers pipeline; "
            "load the model first and pass the object"
        )
    for name, tensor in named_tensors(model):
        if nn.parameter.is_lazy(tensor):
            raise InputModelError(
                f"model: parameter {name!r} is not initialised yet, expected known shapes; "
                "run the module once on example inputs first"
            )
        if tensor.is_meta:
            raise InputModelError(
                f"model: parameter {name!r} is on the meta device, expected data; "
                "load the weights (model.to_empty, load_state_dict) first"
            )


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Checks that no weight the graph reads is NaN or infinite.

    Raises:
        NumericsError: names the first tensors that are.
    """
    bad = []
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.detach())
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                bad.append(name)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NumericsError(
            f"model: found NaN or Inf in {', '.join(bad[:3])}{more}, expected finite weights; "
            "check the checkpoint, or pass allow_nonfinite=True"
        )


def named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Every parameter and buffer with its name."""
    return [*model.named_parameters(), *model.named_buffers()]


def check_example_inputs(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Checks the example inputs against the signature of `forward`.

    Returns:
        Argument name → value.
    Raises:
        InputModelError: not a mapping; unknown, missing or wrong arguments.
    """
    signature = inspect.signature(model.forward)
    expected = f"{type(model).__name__}.forward{signature}"
    if not isinstance(example_inputs, Mapping):
        found = "nothing" if example_inputs is None else type(example_inputs).__name__
        raise InputModelError(
            f"example_inputs: found {found}, expected a dict of argument name → tensor "
            f"for {expected}"
        )
    for name in example_inputs:
        if not isinstance(name, str):
            raise InputModelError(f"example_inputs: found key {name!r}, expected argument names")
    try:
        signature.bind(**example_inputs)
    except TypeError as error:
        raise InputModelError(f"example_inputs: {error}; expected {expected}") from None
    return dict(example_inputs)
