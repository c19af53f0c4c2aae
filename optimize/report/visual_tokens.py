"""What the pass `prune_visual_tokens` did to one picture and its prompt, as reports show it."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import image
from numpy.typing import NDArray

from optimize.ir.layer_widths import LayerWidths
from optimize.ir.record import Record
from optimize.ir.report import Report, amount

PASS = "prune_visual_tokens"
BINS = 16
"""Of the histogram of an image without a grid."""


@dataclass(frozen=True)
class StageTokens:
    """What one stage kept of the image of the first sample.

    Attributes:
        layer: the first one with fewer tokens.
        kept: raster numbers of the tokens, ascending.
        marked: those of `kept` that the uniform grid kept, whatever their scores.
        mean_position: of the kept tokens in raster order, 0 the first of the image, 1 the last.
    """

    layer: int
    kept: tuple[int, ...]
    marked: tuple[int, ...]
    mean_position: float


@dataclass(frozen=True)
class Saving:
    """One quantity with all tokens and with those that are kept."""

    name: str
    unit: str
    before: float
    after: float

    @property
    def share(self) -> float:
        """What is saved, in (-inf, 1]."""
        return 1 - self.after / self.before if self.before else 0.0

    def cells(self) -> list[str]:
        """Its line of a table."""
        values = [amount(value) + self.unit for value in (self.before, self.after)]
        return [self.name, *values, f"{self.share:.1%}"]


@dataclass(frozen=True)
class VisualTokens:
    """The pruning of one prompt.

    Attributes:
        criterion: how tokens are scored; an option of the pass.
        image_tokens: of the image.
        text_tokens: of the prompt, padding not counted.
        grid: (rows, columns) of the image tokens; None where they have none.
        picture: the image as a PNG file in base64, its smallest value black, its largest white;
            None where it cannot be shown.
        stages: in the order of the layers.
        widths: of the layers; None where the graph does not show them.
        work: of the prefill.
        cache: bytes of the key-value caches of one sample.
    """

    criterion: str
    image_tokens: int
    text_tokens: int
    grid: tuple[int, int] | None
    picture: str | None
    stages: tuple[StageTokens, ...]
    widths: LayerWidths | None
    work: tuple[Saving, ...]
    cache: tuple[Saving, ...]

    @property
    def pixels(self) -> NDArray[np.uint8] | None:
        """The image, uint8 [H, W, 3]."""
        if self.picture is None:
            return None
        read = image.imread(io.BytesIO(base64.b64decode(self.picture)), format="png")
        coloured = np.stack([read] * 3, -1) if read.ndim == 2 else read[:, :, :3]
        pixels: NDArray[np.uint8] = np.rint(coloured * 255).astype(np.uint8)
        return pixels

    @property
    def bins(self) -> int:
        """Rows of the grid, or as many pieces of the raster as the histogram has bars."""
        return min(BINS, self.image_tokens) if self.grid is None else self.grid[0]

    def caption(self, stage: StageTokens) -> str:
        """How many tokens a stage left, and where."""
        count = len(stage.kept)
        share = f"{count} of {self.image_tokens} kept ({count / self.image_tokens:.1%})"
        grid = f", {len(stage.marked)} of them by the grid" if stage.marked else ""
        return f"from layer {stage.layer} on: {share}{grid}"

    def row_shares(self, numbers: tuple[int, ...], of: int) -> NDArray[np.float64]:
        """[bins]: how many of the tokens stand in each row of the image, as a share of `of`."""
        rows = np.asarray(numbers, np.int64) * self.bins // self.image_tokens
        return np.bincount(rows, minlength=self.bins) / max(1, of)

    def how_to_read_pictures(self) -> str:
        """What the pictures of the stages show."""
        if self.grid is None:
            return (
                "The image tokens come from no grid of rows and columns that could be drawn over "
                "the image; only counts and positions in the sequence are shown."
            )
        shown = "The first image of the calibration request" if self.picture else "The tokens"
        grid = any(stage.marked for stage in self.stages)
        orange = (
            ", an orange one if the uniform grid keeps them whatever their scores" if grid else ""
        )
        return (
            f"{shown}, {self.grid[0]} x {self.grid[1]} tokens: dropped tokens are darkened, kept "
            f"ones have a blue frame{orange}."
        )

    def how_to_read(self) -> str:
        """One sentence about the histogram and the mean position."""
        bar = "row of the image" if self.grid is not None else "piece of the image's token sequence"
        return (
            f"Each bar is the share of the kept tokens in one {bar}, top to bottom; the mean "
            "position goes from 0 (first token, top left) to 1 (last token, bottom right), and "
            "0.5 is no bias to either end."
        )

    def about_work(self) -> str:
        """What the figures of the prefill count."""
        counted = (
            f"Counted from the graphs: all operations of the prefill for one sample with "
            f"{self.text_tokens} text tokens and as many image tokens as any image may keep, the "
            "scoring included, a multiplication and an addition being two."
        )
        if self.widths is None:
            return (
                f"{counted} The formula C(n) is left out: layers differ, or are not made of four "
                "projections and a perceptron."
            )
        three = "3 n d m (gated perceptron)" if self.widths.gated else "2 n d m"
        return (
            f"Formula: C(n) = 4 n d² + 2 n² d + {three} multiply-adds for each layer with n "
            f"tokens, summed over the layers; d = {self.widths.width} and m = "
            f"{self.widths.perceptron} are read from the graph. The linear part leaves n² out. "
            f"{counted}"
        )

    def about_cache(self) -> str:
        """What the two lines of the caches are."""
        return (
            "The slots have space for the longest prompt and answer; the other line counts the "
            f"rows that this prompt of {self.text_tokens} text and {self.image_tokens} image "
            "tokens fills."
        )


WORK_HEAD = ("prefill", "before", "after", "cut")
CACHE_HEAD = ("key-value cache of one sample", "before", "after", "saved")
"""Columns of the two tables."""


def visual_tokens(report: Report) -> VisualTokens | None:
    """The pruning of a report's last `prune_visual_tokens` that has figures."""
    for record in reversed(report.passes):
        if record.name == PASS and record.details.get("visual_tokens"):
            return _read(record)
    return None


def pruning_note(report: Report) -> str | None:
    """What `prune_visual_tokens` says of the model, such as that it has no rotary positions."""
    notes = [record.details.get("note") for record in report.passes if record.name == PASS]
    return next((note for note in reversed(notes) if note), None)


def _read(record: Record) -> VisualTokens:
    data: Mapping[str, Any] = record.details["visual_tokens"]
    stages = [
        StageTokens(
            stage["layer"], tuple(stage["kept"]), tuple(stage["marked"]), stage["mean_position"]
        )
        for stage in data["stages"]
    ]
    return VisualTokens(
        **{
            **data,
            "grid": None if data["grid"] is None else (data["grid"][0], data["grid"][1]),
            "stages": tuple(stages),
            "widths": None if data["widths"] is None else LayerWidths(**data["widths"]),
            "work": tuple(Saving(**item) for item in data["work"]),
            "cache": tuple(Saving(**item) for item in data["cache"]),
        }
    )
