"""What the Triton kernels of a program's own ops use of GPUs, compiled without one.

Each form of a call (dtypes, sizes, options) is a kernel of its own. Compiling takes from a fifth of
a second (`solver_step`) to two seconds (`tile_attention`) per form and architecture, once: Triton
keeps what it compiled.
"""

from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch
from torch import fx

from optimize.ir.program import Program
from optimize.kernels.triton_forms import TRITON_FORMS
from optimize.measure.cost import arguments_on_meta, node_flops

MOST_FORMS = 3
"""Forms of an op that are compiled; layers may each have one of their own."""

Facts = dict[str, dict[str, dict[str, int]]]


def kernel_facts(program: Program) -> tuple[Facts, list[str]]:
    """Op → architecture → what its kernel uses, and notes on what could not be found out.

    Args:
        program: its ops, dtypes and traced sizes are those that are compiled for.
    Returns:
        {"tile_attention": {"sm_80": {"registers", "spill_bytes", "shared_bytes"}, …}, …}: registers
        per thread, bytes per thread and per program; the most of any form of the op that runs.
    """
    calls = _calls(program)
    if not calls:
        return {}, []
    try:
        # Triton takes a moment to import, and is not there on every system.
        from optimize.kernels.triton_compile import ARCHITECTURES, Usage, usage_of
    except ImportError as error:
        return {}, [f"kernels: not compiled, Triton cannot be imported: {error}"]
    facts: Facts = {}
    notes = []
    names = [item.name for item in fields(Usage)]
    for op, nodes in calls.items():
        short = op.partition("::")[2]
        forms, left_out = _forms(nodes)
        if left_out:
            notes.append(
                f"kernels: {short} has {len(forms) + left_out} forms; the {len(forms)} of most "
                "operations were compiled"
            )
        for capability in ARCHITECTURES:
            compile_call = partial(TRITON_FORMS[op], capability)
            try:
                made = [compile_call(*args, **kwargs) for args, kwargs in forms]
            except Exception as error:  # whatever Triton, LLVM or ptxas raise
                what = f"{type(error).__name__}: {error}".splitlines()[0]
                notes.append(f"kernels: {short} does not compile for sm_{capability}: {what}")
                continue
            used = [asdict(usage_of(kernel)) for kernel in made if kernel is not None]
            if used:
                most = {name: max(item[name] for item in used) for name in names}
                facts.setdefault(short, {})[f"sm_{capability}"] = most
    return facts, notes


def _calls(program: Program) -> dict[str, list[fx.Node]]:
    """Op that has a Triton form → the nodes that call it."""
    calls: dict[str, list[fx.Node]] = {}
    for _, graph in sorted(program.graphs.items()):
        for node in graph.graph.nodes:
            packet = getattr(node.target, "overloadpacket", None)
            op = getattr(packet, "_qualified_op_name", "")
            if op in TRITON_FORMS:
                calls.setdefault(op, []).append(node)
    return dict(sorted(calls.items()))


def _forms(nodes: list[fx.Node]) -> tuple[list[Any], int]:
    """The distinct arguments of the calls with most operations, and how many others there are."""
    largest = sorted(nodes, key=node_flops, reverse=True)
    distinct = {_key(arguments): arguments for arguments in map(arguments_on_meta, largest)}
    forms = list(distinct.values())
    return forms[:MOST_FORMS], len(forms[MOST_FORMS:])


def _key(item: Any) -> str:
    """Equal for arguments that compile alike: numbers of tensors do not count."""
    if isinstance(item, torch.Tensor):
        return f"{item.dtype}{list(item.shape)}"
    if isinstance(item, dict):
        return str({name: _key(inner) for name, inner in sorted(item.items())})
    if isinstance(item, (list, tuple)):
        return str([_key(inner) for inner in item])
    return repr(item)
