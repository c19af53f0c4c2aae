"""What a pruned prompt kept of its image, on a terminal."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimize.report.visual_tokens import (
    CACHE_HEAD,
    WORK_HEAD,
    Saving,
    StageTokens,
    VisualTokens,
)

BAR = 20
"""Characters of a bar that stands for all kept tokens of the fullest row."""

KEPT, MARKED, DROPPED = "█", "▒", "·"
STYLES = {KEPT: "bright_blue", MARKED: "yellow", DROPPED: "dim"}
ROWS = 40
"""A map of more rows than these is left out."""


def print_visual_tokens(figures: VisualTokens, console: Console) -> None:
    """Prints a map and a histogram per stage, then what is saved."""
    console.print(Text("Image tokens that are left", "bold"))
    for stage in figures.stages:
        position = f"mean position {stage.mean_position:.2f}"
        console.print(Text(f"{figures.caption(stage)}, {position}"))
        for line in stage_lines(figures, stage, console.width):
            console.print(line, no_wrap=True, crop=True)
    grid = any(stage.marked for stage in figures.stages)
    if figures.grid is not None:
        marked = f", {MARKED} kept by the grid" if grid else ""
        console.print(Text(f"{KEPT} kept by score{marked}, {DROPPED} dropped", "dim"))
    console.print(Text(figures.how_to_read(), "dim"))
    console.print(savings_table(WORK_HEAD, figures.work))
    console.print(Text(figures.about_work(), "dim"))
    console.print(savings_table(CACHE_HEAD, figures.cache))


def stage_lines(figures: VisualTokens, stage: StageTokens, width: int) -> list[Text]:
    """A line per row of the image: its tokens where they fit, its share of those kept, a bar.

    Args:
        figures: of the prompt.
        stage: one of its stages.
        width: of the terminal, in characters.
    """
    shares = figures.row_shares(stage.kept, len(stage.kept))
    largest = shares.max(initial=0.0) or 1.0
    maps = _map(figures, stage, width - BAR - 8) or [Text()] * len(shares)
    lines = []
    for tokens, share in zip(maps, shares, strict=True):
        bar = "━" * round(BAR * share / largest)
        lines.append(Text.assemble("  ", tokens, f"{share:5.0%} ", (bar, "bright_blue")))
    return lines


def savings_table(head: tuple[str, ...], savings: tuple[Saving, ...]) -> Table:
    """One line per quantity that is saved."""
    table = Table(box=SIMPLE)
    for name in head:
        table.add_column(name, justify="left" if name == head[0] else "right")
    for item in savings:
        table.add_row(*map(Text, item.cells()))
    return table


def _map(figures: VisualTokens, stage: StageTokens, width: int) -> list[Text] | None:
    """The tokens of each row, two characters a token or one; None where they do not fit."""
    if figures.grid is None or figures.grid[0] > ROWS or figures.grid[1] > width:
        return None
    rows, columns = figures.grid
    gap = " " if 2 * columns <= width else ""
    marks = [DROPPED] * (rows * columns)
    for number in stage.kept:
        marks[number] = KEPT
    for number in stage.marked:
        marks[number] = MARKED
    return [
        Text.assemble(*((mark + gap, STYLES[mark]) for mark in marks[start : start + columns]))
        for start in range(0, rows * columns, columns)
    ]
