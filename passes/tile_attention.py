"""Lets the frames of a video attend to a few reference frames and to themselves only.

    attended = sdpa(query, key, value)      ───▶    attended = tile_attention(query, key, value, …,
                                                        frames=8, references=[0, 4])

With F frames of P tokens, k of them references, (F-k)(F-k-1) of the F x F tiles of a site's
attention map fall away. How many references each layer needs is searched: the sparsest choice whose
prediction stays within the budget. Text beside the tokens stays global, cross-attention as it is.
Graphs that run on some tokens only (of cache_regions) keep whole attention for these.

Changes: the self-attention nodes of the "denoiser" graph; nothing else.
Declines when: the program generates tokens; the loop is fused or has no denoiser; the frames cannot
    be found in the tokens; there are fewer than three; every site is causal, masked by query or
    shares key heads; no layer can be made sparser within the budget.
Numerics: approximate; exact with every frame as a reference.
Source: Ding et al. (2025), Efficient-vDiT: attention tile and layer-wise search (algorithm 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

from optimize.ir.attention_sites import Site, attention_sites
from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import builder_with_inputs
from optimize.ir.exporting import Target
from optimize.ir.frame_axis import FrameGrid, frame_grid, given_grid
from optimize.ir.graph import Graph
from optimize.ir.program import Program
from optimize.ir.replay import Replay
from optimize.ir.token_axis import CannotSubset, token_axis
from optimize.kernels.tile_attention.pattern import spread_references
from optimize.kernels.tile_attention.schema import Form, form_of
from optimize.passes.calibration import Request
from optimize.passes.choices import Choice, RealNumber
from optimize.passes.pass_base import Declined, Fitted, OracleResult, Pass, Rewritten
from optimize.passes.tile_check import sampled_rows_error
from optimize.passes.tile_data import tiles_data
from optimize.passes.tile_figures import layer_figures, speed
from optimize.passes.tile_node import tiled
from optimize.passes.tile_search import Search, default_candidates, search
from optimize.passes.trajectory import denoiser_inputs

FEWEST_FRAMES = 3
"""With two, one reference frame already sees and shows everything."""


@dataclass(frozen=True)
class Layout:
    """What the pass found in a denoiser.

    Attributes:
        grid: the frames in the tokens.
        sites: self-attention over them, in graph order.
        refused: further attention over them → why it stays as it is.
    """

    grid: FrameGrid
    sites: tuple[Site, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class TileAttention(Pass):
    """Options of `tile_attention`.

    Args:
        budget: largest relative squared error of the prediction, ||y - dense||² / ||dense||², that
            the search may spend, in [0, 1). The paper's r is not normalised: never copy it.
        references: reference frames: "search" finds a number for each layer, a number is for all, a
            list has one for each (the number of frames: dense), "all" takes every frame.
        candidates: numbers of reference frames that the search tries; empty means an eighth, a
            sixth, a quarter, a third and half of the frames.
        frames: of the video, where the model's inputs do not tell (packed latents): tokens then
            stand frame after frame. For a picture it divides the rows of tokens into bands.
        moments: denoising steps at which the search compares predictions, in [1, 64].
    """

    budget: float = 0.02
    references: Literal["search", "all"] | int | tuple[int, ...] = "search"
    candidates: tuple[int, ...] = ()
    frames: int | None = None
    moments: int = 4

    numerics: ClassVar[Literal["exact", "rounding", "approximate"]] = "approximate"

    def __post_init__(self) -> None:
        if not 0 <= self.budget < 1:
            raise ValueError(f"budget: found {self.budget}, expected a number in [0, 1)")
        if not 1 <= self.moments <= 64:
            raise ValueError(f"moments: found {self.moments}, expected a number in [1, 64]")
        if self.frames is not None and self.frames < FEWEST_FRAMES:
            raise ValueError(f"frames: found {self.frames}, expected at least {FEWEST_FRAMES}")
        if isinstance(self.references, str) and self.references not in ("search", "all"):
            raise ValueError(
                f"references: found {self.references!r}, expected 'search', 'all', a number of "
                "frames, or a list of numbers"
            )
        for name, counts in (("references", self._given), ("candidates", self.candidates)):
            if any(isinstance(count, bool) or count < 1 for count in counts):
                raise ValueError(f"{name}: found {list(counts)}, expected numbers of at least 1")
        if len(set(self.candidates)) != len(self.candidates):
            raise ValueError(f"candidates: found {list(self.candidates)}, expected no number twice")

    @property
    def _given(self) -> tuple[int, ...]:
        if isinstance(self.references, str):
            return ()
        return (self.references,) if isinstance(self.references, int) else self.references

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        return {"budget": RealNumber(1e-3, 0.2, log=True)}

    def identity(self) -> Self:
        return replace(self, references="all")

    def declines(self, program: Program) -> str | None:
        if program.generates_tokens:
            return "the program generates tokens, expected one that denoises"
        if "denoiser" not in program.graphs:
            fused = any(name.startswith("step") for name in program.graphs)
            return "list it before fuse_solver" if fused else "the program has no denoiser"
        try:
            layout = self._layout(program.graphs["denoiser"])
        except CannotSubset as reason:
            return str(reason)
        frames = layout.grid.frames
        if frames < FEWEST_FRAMES:
            return f"found {frames} frames, expected at least {FEWEST_FRAMES}: all tiles are kept"
        if not layout.sites:
            reasons = "; ".join(f"{name}: {why}" for name, why in layout.refused.items())
            return f"found no self-attention over the frames that can be tiled ({reasons})"
        too_many = [count for count in (*self._given, *self.candidates) if count > frames]
        if too_many:
            return f"found {too_many[0]} reference frames, expected at most the {frames} frames"
        if isinstance(self.references, tuple) and len(self.references) != len(layout.sites):
            return (
                f"found references for {len(self.references)} layers, expected one for each of "
                f"the {len(layout.sites)}: {', '.join(site.name for site in layout.sites)}"
            )
        return None

    def fit(self, program: Program, requests: Sequence[Request]) -> Fitted:
        """Searches the reference frames of each layer on the moments of the first requests."""
        if self.references != "search":
            return Fitted(self)
        graph = program.graphs["denoiser"]
        layout = self._layout(graph)
        frames = layout.grid.frames
        starts = [
            partial(Replay, graph, program.weights, inputs)
            for request in requests
            for inputs in denoiser_inputs(program, request, self.moments)
        ]
        found = search(
            starts,
            layout.sites,
            layout.grid,
            sorted(self.candidates) or default_candidates(frames),
            self.budget,
        )
        if all(count == frames for count in found.choice):
            raise Declined(f"no layer can be made sparser within the budget of {self.budget:g}")
        tiles = tiles_data(
            layout.grid,
            layout.sites,
            found.choice,
            budget=self.budget,
            joint_error=found.error,
            figures=layer_figures(starts[0](), layout.sites, layout.grid, _errors(found, frames)),
            speed=speed(starts[0], layout.sites, layout.grid, found.choice),
        )
        return Fitted(replace(self, references=found.choice), {"tiles": tiles})

    def rewrite(self, program: Program) -> Rewritten:
        graph = program.graphs["denoiser"]
        layout = self._layout(graph)
        counts = self._counts(layout)
        chosen = {
            site: spread_references(layout.grid.frames, count)
            for site, count in zip(layout.sites, counts, strict=True)
            if count < layout.grid.frames or self.references == "all"
        }
        builder, arguments = builder_with_inputs(graph)
        instead = {
            site.node: tiled(
                builder.call, site, layout.grid, references, site.node.meta["val"].device
            )
            for site, references in chosen.items()
        }
        nodes = builder.inlined_nodes(graph, arguments, instead=instead)
        outputs = {name: nodes[node] for name, node in graph.output_nodes().items()}
        graphs = {**program.graphs, "denoiser": builder.finish(outputs, graph.dimensions)}
        tiles = tiles_data(layout.grid, layout.sites, counts)
        details = {
            "tiles": tiles,
            "forms": {site.name: _form(site) for site in chosen},
            "refused": dict(layout.refused),
        }
        sites = tuple(site.name for site in chosen)
        return Rewritten(replace(program, graphs=graphs), sites, details)

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """At some rows of each kind, tiles give what attention with the mask written out gives."""
        (inputs,) = denoiser_inputs(after, {**request, "seed": 0}, 1)
        return sampled_rows_error(after, inputs)

    def _layout(self, graph: Graph) -> Layout:
        """Frames and sites of a denoiser.

        Raises:
            CannotSubset: they cannot be found.
        """
        axes = infer_axes(graph)
        tokens = token_axis(graph, axes)
        if self.frames is None:
            grid = frame_grid(graph, axes, tokens)
        else:
            grid = given_grid(tokens, self.frames)
        return Layout(grid, *attention_sites(graph, axes, tokens))

    def _counts(self, layout: Layout) -> tuple[int, ...]:
        """Reference frames of each site."""
        assert self.references != "search", "the pipeline fits before it rewrites"
        if isinstance(self.references, tuple):
            return self.references
        every = layout.grid.frames if self.references == "all" else self.references
        assert isinstance(every, int)
        return (every,) * len(layout.sites)


def _form(site: Site) -> Form:
    """Which implementation of the op runs at a site in PyTorch."""
    query, _, value = (item.meta["val"] for item in site.inputs)
    return form_of(query.device.type, query.dtype, max(query.shape[-1], value.shape[-1]))


def _errors(found: Search, frames: int) -> list[float]:
    """The error of each site's choice alone."""
    return [
        0.0 if count == frames else errors[count]
        for count, errors in zip(found.choice, found.alone, strict=True)
    ]
