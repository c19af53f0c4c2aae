"""Where `Program.export` finds the exporter, which comes after `ir` in the import order."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from optimize.ir.errors import RecipeError
from optimize.runtime import machine
from optimize.runtime.errors import ResourceError

Exporter = Callable[..., Path]
"""(program, path, targets=…, and the options of `Program.export`) → the bundle's folder."""

EXPORTERS: list[Exporter] = []
"""The one exporter; set by the face of the package."""

Target = Literal["onnx", "aoti", "tensorrt-rtx", "tensorrt"]
"""What a bundle can hold code for."""

Precision = Literal["float32", "float16", "bfloat16", "int8"]
"""What a target computes matrix products in; int8 is for ONNX on CPUs."""

LoopForm = Literal["step", "unrolled", "onnx_loop"]
"""How the steps of a loop become engine calls: one each, several at once, or an ONNX `Loop`."""


def check_form(form: str, unroll: int | None) -> None:
    """Refuses a form of the loop that there is not, before any work is done for it.

    Raises:
        RecipeError: says what there is.
    """
    if form not in get_args(LoopForm):
        raise RecipeError(f"loop: found {form!r}, expected one of {', '.join(get_args(LoopForm))}")
    if unroll is not None and form != "unrolled":
        raise RecipeError(f'unroll: found {unroll} with loop="{form}", expected loop="unrolled"')
    if unroll is not None and unroll < 1:
        raise RecipeError(f"unroll: found {unroll}, expected a number of steps of at least 1")


def check_target_names(targets: Sequence[str]) -> None:
    """Refuses a target that there is not or that cannot be built here, before any work for it.

    Raises:
        RecipeError: says what there is.
        ResourceError: the library that builds it is not installed.
    """
    unknown = [item for item in targets if item not in get_args(Target)]
    if unknown or not targets:
        found = repr(unknown[0]) if unknown else "none"
        raise RecipeError(f"unknown target {found}; known targets: {', '.join(get_args(Target))}")
    for target in (item for item in targets if item in machine.EXTRAS):
        if machine.version_of(machine.LIBRARIES[target]) is None:
            raise ResourceError(
                f"target {target}: found no library {machine.LIBRARIES[target]}, which builds it; "
                f"pip install 'optimize[{machine.EXTRAS[target]}]'"
            )


def precisions_of(
    precision: Precision | Mapping[str, Precision] | None, targets: Sequence[str]
) -> dict[str, Precision]:
    """Target → precision, of those that ask for one; checked before any work is done for it.

    Raises:
        RecipeError: a precision or a target that there is not, or that do not go together.
    """
    if precision is None:
        return {}
    given = dict.fromkeys(targets, precision) if isinstance(precision, str) else dict(precision)
    for target, item in given.items():
        if item not in get_args(Precision):
            raise RecipeError(
                f"precision: found {item!r}, expected one of {', '.join(get_args(Precision))}"
            )
        if target not in targets:
            raise RecipeError(
                f"precision: found one for target {target!r}, expected some of "
                f"{', '.join(targets)}, which are to be written"
            )
        if item == "int8" and target != "onnx":
            raise RecipeError(
                f"precision: found int8 for target {target}, expected float32, float16 or "
                'bfloat16; int8 is for "onnx"'
            )
    return given


def export(program: Any, path: Any, target: str | Sequence[str], **options: Any) -> Path:
    """Writes a bundle for a target or several, such as "onnx" or ("onnx", "aoti").

    Raises:
        RecipeError: there is no such target.
    """
    targets = [target] if isinstance(target, str) else list(target)
    check_target_names(targets)
    return EXPORTERS[0](program, path, targets=targets, **options)
