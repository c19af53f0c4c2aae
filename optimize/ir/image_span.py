"""Where the image stands in a prompt, and on which grid: read from axes, never assumed."""

from dataclasses import dataclass
from typing import cast

from torch import fx

from optimize.ir.axes import Axes
from optimize.ir.axis_rules import infer_axes
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.token_axis import SDPA, CannotSubset

FEATURES = "image_features"


@dataclass(frozen=True)
class ImageSpan:
    """The rows of the image in the sequence of a prefill graph.

    Attributes:
        offset: rows before it.
        tokens: its rows.
        grid: (rows, columns) of the picture, in raster order; None where no such grid is found.
    """

    offset: int
    tokens: int
    grid: tuple[int, int] | None


def image_span(program: Program) -> ImageSpan:
    """The image in the sequence that self-attention of the prefill runs over.

    Raises:
        CannotSubset: there is no image, it lies in several pieces, or its place is not fixed.
    """
    prefill = program.graphs["prefill"]
    if FEATURES not in prefill.inputs:
        raise CannotSubset("the prefill has no image: no part of its sequence is one")
    offset, tokens = _place(prefill, infer_axes(prefill))
    vision = program.graphs.get("vision")
    return ImageSpan(offset, tokens, None if vision is None else _grid(vision))


def _place(graph: Graph, axes: Axes) -> tuple[int, int]:
    image = axes.of(graph.node(FEATURES))[1]
    site = next((node for node in graph.graph.nodes if node.target is SDPA), None)
    if site is None:
        raise CannotSubset("found no self-attention in the prefill")
    sequence = axes.of(cast(fx.Node, site.args[0]))[-2]
    pieces = axes.parts(image)
    if len(pieces) > 1:
        sizes = ", ".join(str(piece.extent) for piece in pieces)
        raise CannotSubset(
            f"the image stands in the sequence in {len(pieces)} pieces of {sizes} rows, expected "
            "one piece"
        )
    parts = axes.parts(sequence)
    places = [place for place, part in enumerate(parts) if part is axes.find(image)]
    if len(places) != 1:
        raise CannotSubset(
            f"the image stands in the sequence {len(places)} times, expected once, whole"
        )
    before = [part.extent for part in parts[: places[0]]]
    if not all(isinstance(extent, int) for extent in (*before, image.extent)):
        raise CannotSubset(
            f"the rows before the image are {before} and of it {image.extent}, expected fixed sizes"
        )
    return sum(cast(list[int], before)), cast(int, image.extent)


def _grid(graph: Graph) -> tuple[int, int] | None:
    """The two factors of the image tokens, each a dimension of the picture."""
    axes = infer_axes(graph)
    tokens = axes.of(graph.output_nodes()[FEATURES])[1]
    extents = [axis.extent for axis in axes.factors(tokens) if axis.extent != 1]
    if len(extents) != 2 or not all(isinstance(extent, int) for extent in extents):
        return None
    rows, columns = cast(list[int], extents)
    return rows, columns
