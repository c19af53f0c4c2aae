"""What the pass `tile_attention` chose, as reports show it: which frames attend to which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.ir.record import Record
from optimize.ir.report import Report

PASS = "tile_attention"
HEAD = ("layer", "references", "density", "error alone")
"""The columns of the table."""


@dataclass(frozen=True)
class LayerTiles:
    """One attention layer.

    Attributes:
        site: name of its attention.
        references: the frames that see every frame and are seen by every frame, ascending.
        density: share of the pairs of tokens that are computed, in (0, 1].
        error: relative error of the result with this layer alone in tiles; None if not measured.
        map: [F][F], the share of the attention of a frame that goes to each frame; None if not
            measured.
        text_share: the share that goes to text, in [0, 1]; None if not measured.
    """

    site: str
    references: tuple[int, ...]
    density: float
    error: float | None
    map: Sequence[Sequence[float]] | None
    text_share: float | None


@dataclass(frozen=True)
class FrameTiles:
    """All layers that the pass rewrote, and what that costs and gains.

    Attributes:
        frames: F.
        tokens_per_frame: P.
        budget: the greatest relative error allowed; None where references were given.
        joint_error: relative error with all layers in tiles; None if not measured.
        attention_share: of the time before, in [0, 1]; None if not measured.
        predicted_speedup: by Amdahl's law; None without a share.
        measured_speedup: None if not measured.
        layers: in the order of the model.
    """

    frames: int
    tokens_per_frame: int
    budget: float | None
    joint_error: float | None
    attention_share: float | None
    predicted_speedup: float | None
    measured_speedup: float | None
    layers: tuple[LayerTiles, ...]

    def rows(self, named: bool) -> list[list[str]]:
        """One row of cells per layer, under `HEAD`; the references named, or only counted."""
        return [
            [
                layer.site,
                self._references(layer, named),
                f"{layer.density:.1%}",
                "" if layer.error is None else f"{layer.error:.3g}",
            ]
            for layer in self.layers
        ]

    def summary(self) -> list[str]:
        """What it costs and what it gains, as far as that was measured."""
        if self.joint_error is None or self.budget is None:
            return ["References as given: no search, nothing measured layer by layer."]
        share = self.attention_share
        taken = "" if share is None else f", attention taking {share:.0%} of the time"
        return [
            f"Error with all layers in tiles {self.joint_error:.3g}, budget {self.budget:g}.",
            f"Speed-up predicted by Amdahl's law {_times(self.predicted_speedup)}{taken}; "
            f"measured {_times(self.measured_speedup)}.",
        ]

    def left_out(self, layer: LayerTiles) -> NDArray[np.bool_]:
        """[F, F]: whether the tile of the row's frame and the column's frame is not computed."""
        left_out = ~np.eye(self.frames, dtype=bool)
        left_out[list(layer.references), :] = False
        left_out[:, list(layer.references)] = False
        return left_out

    def _references(self, layer: LayerTiles, named: bool) -> str:
        count = f"{len(layer.references)} of {self.frames}"
        if not named or len(layer.references) == self.frames:
            return count
        return f"{count}: {' '.join(map(str, layer.references))}"


def frame_tiles(report: Report) -> FrameTiles | None:
    """The choice of a report's last `tile_attention` that has one."""
    for record in reversed(report.passes):
        if record.name == PASS and record.details.get("tiles"):
            return _read(record)
    return None


def _read(record: Record) -> FrameTiles:
    tiles: Mapping[str, Any] = record.details["tiles"]
    layers = tuple(
        LayerTiles(**{**layer, "references": tuple(layer["references"])})
        for layer in tiles["layers"]
    )
    return FrameTiles(**{**tiles, "layers": layers})


def _times(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}x"
