"""The requests on which passes are measured: a few, fixed, and drawn by seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.runtime import philox
from optimize.runtime.errors import RuntimeInputError
from optimize.runtime.loop import Input, Loop, Signature, size_of
from optimize.runtime.request import check_request, numpy_dtype

if TYPE_CHECKING:  # requests are also made where PyTorch is not installed
    from optimize.ir.program import Program

Request = Mapping[str, Any]

PROMPT, PROMPT_TOKENS = "prompt", 16
"""Name of the size of a prompt, and how many more tokens than the fewest a drawn one has."""
NEW_TOKENS, ANSWER_TOKENS = "max_new_tokens", 8
"""The field for the length of an answer, and how long one is that is only compared."""


@dataclass(frozen=True)
class Calibration:
    """How to make the requests.

    Args:
        samples: how many requests, in [1, 64].
        seed: of the first request; the others follow, in [0, 2**63).
        inputs: request field → number or nested lists; the others come from the example inputs.
    """

    samples: int = 1
    seed: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= 64:
            raise ValueError(f"samples: found {self.samples}, expected a number in [1, 64]")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: found {self.seed}, expected a number in [0, 2**63)")


def requests(
    program: "Program",
    calibration: Calibration | None = None,
    examples: Mapping[str, Any] | None = None,
) -> list[Request]:
    """The calibration requests of a program.

    Each field comes from `calibration.inputs`, else from `examples` (the tensors the model was
    captured with), else from its default, else it is drawn: whole numbers uniformly in the field's
    range, zero without one; others normally. Prompts are of moderate length, answers short.
    """
    calibration = calibration or Calibration()
    return [
        signature_request(
            program.signature, program.loop, calibration, examples or {}, calibration.seed + index
        )
        for index in range(calibration.samples)
    ]


def signature_request(
    signature: Signature,
    loop: Loop,
    calibration: Calibration,
    examples: Mapping[str, Any],
    seed: int,
) -> Request:
    """One request for a signature, a bundle's as well as a program's.

    Raises:
        RuntimeInputError: a field of `calibration.inputs` does not exist or does not fit.
    """
    fields = {item.name: item for item in signature.inputs}
    unknown = sorted(set(calibration.inputs) - set(fields) - set(signature.dimensions))
    if unknown:
        raise RuntimeInputError(
            f"calibration: found unknown field {unknown[0]!r}, "
            f"expected some of {', '.join([*fields, *signature.dimensions])}"
        )
    request: dict[str, Any] = dict(calibration.inputs)
    sizes = {name: max(1, low) for name, (low, _) in signature.dimensions.items()}
    if PROMPT in sizes:
        sizes[PROMPT] = min(signature.dimensions[PROMPT][1], sizes[PROMPT] + PROMPT_TOKENS)
    if NEW_TOKENS in fields and NEW_TOKENS not in examples:
        request.setdefault(NEW_TOKENS, int(min(fields[NEW_TOKENS].high or 1, ANSWER_TOKENS)))
    for name, item in fields.items():
        if name not in request and name in examples:
            request[name] = _host(examples[name])
        if name in request and np.ndim(request[name]) == len(item.shape):
            for dimension, size in zip(item.shape, np.shape(request[name]), strict=True):
                if isinstance(dimension, str) and "*" not in dimension:
                    sizes[dimension] = size
    for name, item in fields.items():
        if name not in request and item.default is None:
            request[name] = _drawn(item, sizes, seed)
    check_request(signature, loop, request, seed)
    return {**request, "seed": seed}


def _host(value: Any) -> Any:
    """A tensor as an array; bfloat16, which numpy lacks, as float32."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _drawn(item: Input, sizes: dict[str, int], seed: int) -> Any:
    shape = tuple(size_of(dimension, sizes) for dimension in item.shape)
    count = int(np.prod(shape, dtype=np.int64))
    dtype = numpy_dtype(item.dtype)
    if dtype.kind == "f" and item.low is None and item.high is None:
        return philox.normal(seed, item.name, 0, 0, count).reshape(shape).astype(dtype)
    if item.low is None or item.high is None:
        if dtype.kind == "b":
            return np.ones(shape, dtype)
        if item.low is None:
            return np.zeros(shape, dtype)
        return np.full(shape, item.low, dtype)
    span = item.high - item.low
    numbers = philox.uniform(seed, item.name, 0, 0, count)
    if dtype.kind == "i":
        return (item.low + np.floor(numbers * (span + 1))).reshape(shape).astype(dtype)
    return (item.low + numbers * span).reshape(shape).astype(dtype)
