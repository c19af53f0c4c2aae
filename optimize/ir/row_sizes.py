"""Sizes and bounds of a graph that runs on some rows of an axis."""

from typing import Any, cast

from torch import fx

from optimize.ir.axes import Axes, Axis, op_name, source_line
from optimize.ir.axis_rules_layout import slice_bounds
from optimize.ir.graph import Size
from optimize.ir.token_axis import CannotSubset

SIZED_OPS = ("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::expand")


class RowSizes:
    """How long axes are once the token axis has only some rows.

    Args:
        axes: of the whole graph.
        axis: the token axis.
        rows: how many of its rows are left; a node where a request decides it.
    """

    def __init__(self, axes: Axes, axis: Axis, rows: int | fx.Node) -> None:
        self.axes, self.axis, self.rows = axes, axis, rows

    def fixed(self, axis: Axis) -> int:
        if not isinstance(axis.extent, int):
            raise CannotSubset(
                f"an axis beside the tokens has size {axis.extent}, expected a fixed one; capture "
                "with fixed sizes"
            )
        return axis.extent

    def takes_other_parts(self, node: fx.Node) -> bool:
        """Whether a slice takes parts of a composite beside the tokens, such as the text."""
        if op_name(node) != "aten::slice" or self.axes.carrying(node, self.axis):
            return False
        dimension, start, end, step = slice_bounds(node)
        layout = self.axes.layout(self.axes.of(cast(fx.Node, node.args[0]))[dimension], self.axis)
        boundaries = [0]
        for part in layout:
            boundaries.append(boundaries[-1] + self.fixed(part))
        return self.axis in layout and step == 1 and start in boundaries and end in boundaries

    def adjust(self, node: fx.Node, new: fx.Node) -> None:
        """Replaces sizes and bounds written in the arguments that count tokens."""
        name = op_name(node)
        if name in SIZED_OPS:
            sizes = list(cast(Any, new.args[1]))
            for dimension, axis in enumerate(self.axes.of(node)):
                if self.axes.contains(axis, self.axis):
                    sizes[dimension] = self.size(axis)
            new.args = (new.args[0], sizes, *new.args[2:])
        elif name in ("aten::slice", "aten::slice_scatter"):
            position = 1 if name == "aten::slice" else 2
            own = self.axes.of(cast(fx.Node, node.args[0]))
            dimension, start, end, _ = slice_bounds(node, position)
            if self.axes.contains(own[dimension], self.axis):
                bounds = [self.bound_of(own[dimension], bound) for bound in (start, end)]
                rest = new.args[position + 3 :]
                new.args = (*new.args[:position], dimension, *bounds, *rest)
        elif name == "aten::split_with_sizes":
            dimension = cast(int, node.args[2]) if len(node.args) > 2 else 0
            groups = [self.axes.of_item(node, i) for i in range(len(node.meta["val"]))]
            sizes = [self.size(group[dimension]) for group in groups]
            new.args = (new.args[0], sizes, *new.args[2:])
        elif name == "aten::split":
            self._check_untouched(node, cast(int, node.args[2]) if len(node.args) > 2 else 0)

    def _check_untouched(self, node: fx.Node, dimension: int) -> None:
        own = self.axes.of(cast(fx.Node, node.args[0]))
        if self.axes.contains(own[dimension], self.axis):
            raise CannotSubset(f"node {node.name} ({source_line(node)}) splits the tokens evenly")

    def size(self, axis: Axis) -> int | fx.Node:
        """How long an axis is that is, or is made with, the token axis."""
        layout = self.axes.layout(axis, self.axis)
        if len(layout) == 1:
            return self.rows if layout[0] is self.axis else self.fixed(layout[0])
        return sum(self._count(part) for part in layout)

    def _count(self, part: Axis) -> int:
        if part is not self.axis:
            return self.fixed(part)
        if isinstance(self.rows, fx.Node):
            raise CannotSubset(
                "the tokens are joined with other rows, expected them alone where a request "
                "decides how many there are"
            )
        return self.rows

    def bound_of(self, axis: Axis, bound: Size) -> int:
        """Where a boundary between parts lies once the token part has fewer rows."""
        before = after = 0
        for part in self.axes.layout(axis, self.axis):
            if before == bound:
                return after
            before += self.fixed(part)
            after += self._count(part)
        if before == bound:
            return after
        raise CannotSubset(f"a slice cuts the tokens at {bound}, expected a boundary of parts")
