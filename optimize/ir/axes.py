"""Axis inference: which dimensions of a graph are the same logical axis.

Every (node, dimension) gets an `Axis`, an element of a union-find. The rule of each op
(`optimize.ir.axis_rules`) joins the elements that are the same axis: elementwise ops join equal
dimensions, `linear` joins all but the last, attention joins query rows with output rows and key
rows with value rows. Two kinds of axis have an inside:

- a *composite* has parts, in order: `cat` makes one, `slice` on a boundary gives the part back.
  Joint text-image attention runs over the composite [text, image];
- a *product* has factors, in order: flattening [height, width] makes one, unflattening gives the
  factors back.

Size alone never joins two axes. What is left are classes: batch, tokens, heads, channels, frames.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch
from torch import fx

from optimize.ir.errors import UnsupportedOpError
from optimize.ir.graph import Graph

Extent: TypeAlias = "int | sympy.Expr"
"""A size: a number, or an expression of the sizes a request decides."""


@dataclass(eq=False)
class Axis:
    """One element; use `Axes.find` before comparing two of them with `is`."""

    extent: Extent
    hint: int
    serial: int
    parent: "Axis | None" = None
    parts: "list[Axis] | None" = None
    factors: "list[Axis] | None" = None


NodeAxes = list[Axis] | list[list[Axis]] | None
"""Axes of a tensor, of each tensor of a tuple, or None for a value that is not a tensor."""

Rule = Callable[["Axes", fx.Node], NodeAxes]


class Axes:
    """The axes of one graph, inferred when made.

    Args:
        graph: the graph to read; it is not changed.
        rules: op name (such as "aten::linear") → rule.
    Raises:
        UnsupportedOpError: an op has no rule; names op, node and source line.
    """

    def __init__(self, graph: Graph, rules: dict[str, Rule]) -> None:
        self._serial = itertools.count()
        self._composites: dict[tuple[int, ...], Axis] = {}
        self._products: dict[tuple[int, ...], Axis] = {}
        self._of: dict[fx.Node, NodeAxes] = {}
        constant = {node for node in graph.graph.nodes if node.name in graph.weights}
        for node in graph.graph.nodes:
            if node.op == "output":
                continue
            if node.op == "call_function" and constant.issuperset(node.all_input_nodes):
                constant.add(node)
                self._of[node] = self._fresh(node.meta.get("val"))
            else:
                self._of[node] = self._infer(node, rules)

    def _fresh(self, value: Any) -> NodeAxes:
        """Axes of what is computed from weights alone, in common with nothing until it is used.

        A table of positions serves several axes: its first four rows may be four frames in one
        place and four rows of pixels in another.
        """
        if isinstance(value, torch.Tensor):
            return self.fresh_like(value)
        if isinstance(value, (tuple, list)):
            return [self.fresh_like(item) for item in value]
        return None

    def _infer(self, node: fx.Node, rules: dict[str, Rule]) -> NodeAxes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            return self.fresh_like(value) if isinstance(value, torch.Tensor) else None
        if not isinstance(value, (torch.Tensor, tuple, list)):
            return None
        name = op_name(node)
        if name not in rules:
            raise UnsupportedOpError(
                f"axis inference: found op {name} at node {node.name} ({source_line(node)}), "
                "which has no rule; add one in optimize/ir/axis_rules.py"
            )
        axes = rules[name](self, node)
        self._check(node, value, axes)
        return axes

    def _check(self, node: fx.Node, value: Any, axes: NodeAxes) -> None:
        values = [value] if isinstance(value, torch.Tensor) else list(value)
        groups: Any = [axes] if isinstance(value, torch.Tensor) else axes
        for tensor, group in zip(values, groups or [], strict=True):
            found = [axis.hint for axis in group]
            expected = [extent_of(size)[1] for size in tensor.shape]
            if found != expected:
                raise UnsupportedOpError(
                    f"axis inference: the rule of {op_name(node)} gave sizes {found} at node "
                    f"{node.name} ({source_line(node)}), expected {expected}"
                )

    # Reading

    def of(self, node: fx.Node) -> list[Axis]:
        """The axes of a tensor node, as representatives that can be compared with `is`."""
        axes = self._of[node]
        if axes is None or (axes and isinstance(axes[0], list)):
            raise TypeError(f"{node.name} is not a single tensor")
        return [self.find(axis) for axis in axes]  # type: ignore[arg-type]

    def of_item(self, node: fx.Node, index: int) -> list[Axis]:
        """The axes of one tensor of a node that returns several."""
        axes = self._of[node]
        assert axes is not None
        return [self.find(axis) for axis in axes[index]]  # type: ignore[union-attr]

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether the node is a single tensor."""
        return isinstance(node.meta.get("val"), torch.Tensor)

    def find(self, axis: Axis) -> Axis:
        """The representative of an axis's class."""
        while axis.parent is not None:
            if axis.parent.parent is not None:
                axis.parent = axis.parent.parent
            axis = axis.parent
        return axis

    def parts(self, axis: Axis) -> list[Axis]:
        """The parts of a composite, innermost; the axis itself if it is no composite."""
        axis = self.find(axis)
        if axis.parts is None:
            return [axis]
        return [inner for part in axis.parts for inner in self.parts(part)]

    def factors(self, axis: Axis) -> list[Axis]:
        """The factors of a product, innermost; the axis itself if it is no product."""
        axis = self.find(axis)
        if axis.factors is None:
            return [axis]
        return [inner for factor in axis.factors for inner in self.factors(factor)]

    def contains(self, axis: Axis, wanted: Axis) -> bool:
        """Whether `wanted` is the axis or one of the parts of the composite."""
        axis, wanted = self.find(axis), self.find(wanted)
        return axis is wanted or any(self.contains(part, wanted) for part in axis.parts or [])

    def layout(self, axis: Axis, wanted: Axis) -> list[Axis]:
        """The parts of a composite, with `wanted` kept whole."""
        axis, wanted = self.find(axis), self.find(wanted)
        if axis is wanted or not self.contains(axis, wanted):
            return [axis]
        return [inner for part in axis.parts or [] for inner in self.layout(part, wanted)]

    def carrying(self, node: fx.Node, wanted: Axis) -> list[int]:
        """The dimensions of a tensor node that are `wanted` or contain it."""
        return [
            dimension for dimension, axis in enumerate(self.of(node)) if self.contains(axis, wanted)
        ]

    # Joining

    def fresh(self, extent: Extent, hint: int) -> Axis:
        """A new axis of its own class."""
        return Axis(extent, hint, next(self._serial))

    def fresh_like(self, tensor: torch.Tensor) -> list[Axis]:
        """A new axis for each dimension of a tensor."""
        return [self.fresh(*extent_of(size)) for size in tensor.shape]

    def join(self, first: Axis, second: Axis) -> Axis:
        """Makes two axes one class; their insides are aligned as far as boundaries agree."""
        first, second = self.find(first), self.find(second)
        if first is second:
            return first
        if first.hint != second.hint:
            raise UnsupportedOpError(
                f"axis inference: cannot join axes of sizes {first.extent} and {second.extent}"
            )
        if first.serial > second.serial:
            first, second = second, first
        second.parent = first
        first.parts = self._aligned(first.parts, second.parts, "parts", sum_extents)
        first.factors = self._aligned(first.factors, second.factors, "factors", multiply_extents)
        return first

    def _aligned(
        self,
        first: list[Axis] | None,
        second: list[Axis] | None,
        inside: str,
        total: "Callable[[Sequence[Axis]], Extent]",
    ) -> list[Axis] | None:
        """One list for two decompositions of the same axis, the finer one where they nest."""
        if first is None or second is None:
            return first or second
        finer: list[Axis] = []
        for group, other in matching_groups(first, second, total):
            if len(group) == 1 and len(other) == 1:
                finer.append(self.join(group[0], other[0]))
            elif len(group) == 1 or len(other) == 1:
                whole, pieces = (group[0], other) if len(group) == 1 else (other[0], group)
                whole = self.find(whole)
                known = getattr(whole, inside)
                setattr(whole, inside, self._aligned(known, pieces, inside, total))
                finer.append(whole)
            else:
                return first
        return finer

    def join_all(self, first: Sequence[Axis], second: Sequence[Axis]) -> list[Axis]:
        """Joins two lists of axes pairwise."""
        return [self.join(a, b) for a, b in zip(first, second, strict=True)]

    def concatenated(self, parts: Sequence[Axis]) -> Axis:
        """The composite of the parts; the same axis when asked for again."""
        found = [self.find(part) for part in parts]
        if len(found) == 1:
            return found[0]
        key = tuple(part.serial for part in found)
        if key not in self._composites:
            axis = self.fresh(sum_extents(found), sum(part.hint for part in found))
            axis.parts = found
            self._composites[key] = axis
        return self.find(self._composites[key])

    def merged(self, factors: Sequence[Axis]) -> Axis:
        """The product of the factors; the same axis when asked for again."""
        found = [self.find(factor) for factor in factors]
        if len(found) == 1:
            return found[0]
        key = tuple(factor.serial for factor in found)
        if key not in self._products:
            hint = 1
            for factor in found:
                hint *= factor.hint
            axis = self.fresh(multiply_extents(found), hint)
            axis.factors = found
            self._products[key] = axis
        return self.find(self._products[key])

    def divided(self, axis: Axis, pieces: Sequence[Axis], composite: bool) -> list[Axis]:
        """The parts (or factors) of an axis with the sizes of `pieces`, which are fresh axes.

        An axis that had no inside gets these as its own; where its inside is known and the
        boundaries agree, the known ones are joined with the fresh ones.
        """
        axis = self.find(axis)
        inside, total = ("parts", sum_extents) if composite else ("factors", multiply_extents)
        setattr(axis, inside, self._aligned(getattr(axis, inside), list(pieces), inside, total))
        memo = self._composites if composite else self._products
        memo.setdefault(tuple(self.find(piece).serial for piece in pieces), axis)
        return [self.find(piece) for piece in pieces]

    def reshaped(self, source: Sequence[Axis], target: torch.Size) -> list[Axis]:
        """The axes of a reshape: one-to-one groups keep their axis, others split or merge."""
        new = [self.fresh(*extent_of(size)) for size in target]
        kept = [axis for axis in source if axis.extent != 1]
        wanted = [axis for axis in new if axis.extent != 1]
        result = {id(axis): axis for axis in new}
        for group, other in matching_groups(kept, wanted, multiply_extents):
            self._regroup(group, other, result)
        return [result[id(axis)] for axis in new]

    def _regroup(self, group: list[Axis], other: list[Axis], result: dict[int, Axis]) -> None:
        """Enters what the fresh axes `other` are, which hold the same elements as `group`."""
        if len(group) == 1 and len(other) == 1:
            result[id(other[0])] = self.find(group[0])
        elif len(group) == 1:
            for piece, axis in zip(other, self.divided(group[0], other, False), strict=True):
                result[id(piece)] = axis
        elif len(other) == 1:
            result[id(other[0])] = self.merged(group)
        else:
            # Boundaries may agree one level further in, as where patches are joined to a token.
            factors = [factor for axis in group for factor in self.factors(axis)]
            if len(factors) > len(group):
                for inner, pieces in matching_groups(factors, other, multiply_extents):
                    self._regroup(inner, pieces, result)


def matching_groups(
    first: Sequence[Axis], second: Sequence[Axis], total: Callable[[Sequence[Axis]], Extent]
) -> list[tuple[list[Axis], list[Axis]]]:
    """Splits two decompositions of one extent into the smallest groups of equal total."""
    groups: list[tuple[list[Axis], list[Axis]]] = []
    left, right = list(first), list(second)
    group: list[Axis] = []
    other: list[Axis] = []
    while left or right:
        if not group and not other:
            if not left or not right:
                return [*groups, (left, right)]
            group, other = [left.pop(0)], [right.pop(0)]
        if same_extent(total(group), total(other)):
            groups.append((group, other))
            group, other = [], []
        elif _hint(group, total) < _hint(other, total) and left:
            group.append(left.pop(0))
        elif right:
            other.append(right.pop(0))
        elif left:
            group.append(left.pop(0))
    if group or other:
        if same_extent(total(group), total(other)):
            groups.append((group, other))
        else:
            groups.append((group, other))
    return groups


def _hint(axes: Sequence[Axis], total: Callable[[Sequence[Axis]], Extent]) -> int:
    if total is sum_extents:
        return sum(axis.hint for axis in axes)
    product = 1
    for axis in axes:
        product *= axis.hint
    return product


def sum_extents(axes: Sequence[Axis]) -> Extent:
    """The extent of a composite."""
    result: Extent = 0
    for axis in axes:
        result = result + axis.extent
    return result


def multiply_extents(axes: Sequence[Axis]) -> Extent:
    """The extent of a product."""
    result: Extent = 1
    for axis in axes:
        result = result * axis.extent
    return result


def same_extent(first: Extent, second: Extent) -> bool:
    """Whether two extents are equal whatever the request."""
    if isinstance(first, int) and isinstance(second, int):
        return first == second
    return bool(first == second) or sympy.expand(first - second) == 0


def extent_of(size: int | torch.SymInt) -> tuple[Extent, int]:
    """A size as (extent, hint)."""
    if isinstance(size, int):
        return size, size
    expression = size.node.expr
    if expression.is_number:
        return int(expression), int(expression)
    return expression, int(size.node.hint)


def op_name(node: fx.Node) -> str:
    """The op without its overload: "aten::linear", "optimize::gather_rows", "getitem"."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name
    return getattr(target, "__name__", str(target))


def source_line(node: fx.Node) -> str:
    """`file:line` of the user's code that made a node, or "no source recorded"."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    if not lines:
        return "no source recorded"
    file, _, rest = lines[-1].removeprefix("File ").partition(", line ")
    return f"{file.strip(chr(34))}:{rest.split(',')[0]}"
