"""The receipts of many gates as a trend: a folder of JSON files, and a page that draws it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimize.gate.checks import Verdict
from optimize.gate.formats import FORMAT, to_dict
from optimize.gate.policy import LIMITS
from optimize.ir.errors import GateError
from optimize.report.gate_plots import Series, trend
from optimize.report.html import render_page
from optimize.report.images import data_uri
from optimize.report.whole_file import write_whole
from optimize.runtime.errors import ResourceError

MAX_BYTES = 32 << 20
COSTS = ("flops", "bytes", "engine_calls", "nodes", "weight_bytes", "graph_bytes")
"""Facts that are drawn, as shares of the first receipt's."""
TIMES = ("cpu_time", "wall_time", "peak_memory")


@dataclass(frozen=True)
class Point:
    """One receipt.

    Attributes:
        date, commit: of the gate, as it wrote them.
        outcome: of the whole gate.
        ratios: metric → (candidate / baseline, low, high); NaN-free, low and high may be None.
        facts: metric → value of the candidate.
        quality: metric → value of the candidate.
        failed: what failed, in words.
        machine: processor it ran on.
    """

    date: str
    commit: str
    outcome: str
    ratios: Mapping[str, tuple[float, float | None, float | None]]
    facts: Mapping[str, float]
    quality: Mapping[str, float]
    failed: tuple[str, ...]
    machine: str


@dataclass(frozen=True)
class History:
    """Receipts in the order of their dates, and the files that are none."""

    points: tuple[Point, ...]
    problems: tuple[str, ...] = field(default_factory=tuple)

    def creep(self) -> list[str]:
        """Costs that have grown by more than a gate allows at once, however small the steps."""
        if len(self.points) < 2:
            return []
        first, last = self.points[0].facts, self.points[-1].facts
        return [
            f"{name}: grew by {last[name] / first[name] - 1:.1%} since {self.points[0].date[:10]}"
            for name in COSTS
            if first.get(name) and name in last and last[name] > first[name] * (1 + LIMITS[name])
        ]


def keep(verdict: Verdict, folder: Path) -> Path:
    """Adds the receipt of a verdict to a folder, under a name that is not taken.

    Raises:
        ResourceError: the folder cannot be written.
    """
    data = to_dict(verdict)
    # Raw samples are for the run itself; a history of thousands of runs stays small without.
    data.pop("samples")
    stem = f"{data['date'].replace(':', '')}-{data['commit'][:12] or 'uncommitted'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            path = folder / f"{stem}-{number:03}.json"
            part = folder / f".{path.name}.{os.getpid()}.part"
            part.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            try:
                os.link(part, path)
            except FileExistsError:
                continue
            finally:
                part.unlink()
            return path
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written: {error.strerror}") from error
    raise ResourceError(f"{folder}: found a thousand receipts of one second, expected fewer")


def read_history(folder: Path) -> History:
    """Reads the receipts of a folder; what is none is named, never fatal.

    Raises:
        GateError: there is no folder, or no receipt in it.
    """
    if not folder.is_dir():
        raise GateError(f"history {folder}: found no folder, expected one from `gate --store`")
    points, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            points.append(_point(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path.name}: no receipt ({error})")
    if not points:
        raise GateError(
            f"history {folder}: found no receipt ({len(problems)} other files), expected some "
            "from `optimize gate BUNDLE --baseline REF --store FOLDER`"
        )
    return History(tuple(sorted(points, key=lambda point: point.date)), tuple(problems))


def _point(path: Path) -> Point:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    checks = data["checks"]
    return Point(
        date=str(data["date"]),
        commit=str(data["commit"]),
        outcome=str(data["outcome"]),
        ratios={
            check["metric"]: (float(check["ratio"]), check["low"], check["high"])
            for check in checks
            if check["metric"] in TIMES and check["ratio"] is not None
        },
        facts={name: float(value) for name, value in data["facts"].get("numbers", {}).items()},
        quality={name: float(value) for name, value in data["facts"].get("quality", {}).items()},
        failed=tuple(str(c["message"]) for c in checks if c["gates"] and c["outcome"] == "fail"),
        machine=str(data["machine"].get("processor", "")),
    )


def render_history(history: History) -> str:
    """The page."""
    return render_page(
        "gate_history.html.j2",
        "Gate history",
        points=list(reversed(history.points)),
        problems=history.problems,
        creep=history.creep(),
        pictures=[
            (title, data_uri(picture, "image/svg+xml"))
            for title, picture in _pictures(history.points)
        ],
    )


def write_page(history: History, path: Path) -> None:
    """Writes the page, whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    write_whole(path, render_history(history))


def _pictures(points: Sequence[Point]) -> list[tuple[str, bytes]]:
    """Times against each baseline, costs against the first receipt, and quality."""
    labels = [f"{point.date[5:10]} {point.commit[:7]}".strip() for point in points]
    outcomes = [point.outcome for point in points]
    times = [_ratios(name, points) for name in TIMES]
    costs = [_shares(name, points) for name in COSTS]
    qualities = sorted({name for point in points for name in point.quality})
    made = [
        ("Time and memory, candidate / baseline", times, 1.0),
        ("Costs, share of the first receipt's", costs, 1.0),
        *((f"Quality: {n}", [_values(n, [p.quality for p in points])], None) for n in qualities),
    ]
    return [
        (title, trend(labels, [item for item in lines if item.known], outcomes, middle))
        for title, lines, middle in made
        if any(item.known for item in lines)
    ]


def _ratios(name: str, points: Sequence[Point]) -> Series:
    found: list[Any] = [point.ratios.get(name, (None, None, None)) for point in points]
    return Series(name, *(tuple(item[place] for item in found) for place in range(3)))


def _shares(name: str, points: Sequence[Point]) -> Series:
    known = [point.facts[name] for point in points if point.facts.get(name)]
    first = known[0] if known else 1.0
    return _values(name, [{n: v / first for n, v in point.facts.items()} for point in points])


def _values(name: str, values: Sequence[Mapping[str, float]]) -> Series:
    nothing = (None,) * len(values)
    return Series(name, tuple(item.get(name) for item in values), nothing, nothing)
