"""What was done to a program and what it gained, as data and as plain text.

`Program.report` has the passes; a measuring caller adds rows and curves with `dataclasses.replace`.
`optimize.report` draws the same data for terminals and browsers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optimize.ir.record import Record

Role = Literal["baseline", "ours", "control", "part"]

FORMAT_VERSION = "1.1"


@dataclass(frozen=True)
class Row:
    """One measured way to get the result.

    Args:
        name: what it is, such as "Euler, 50 steps, eager".
        role: the "baseline", "ours", an honest "control", or a "part" of ours by itself.
        denoiser_calls: network evaluations per sample.
        seconds: per sample, median.
        quality: metric → value.
    """

    name: str
    role: Role
    denoiser_calls: int
    seconds: float
    quality: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """A quality metric over denoiser calls; points are (calls, value)."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Report:
    """Everything there is to say about an optimised program.

    Attributes:
        passes: the history of the program.
        notes: facts found at capture that a user should know.
        rows: measured rows, the baseline and the controls among them.
        curves: calls versus quality, with `curve_metric` as the label of the vertical axis.
        environment: what the figures were measured on.
        targets: target of a bundle → its precision, what that changed, nodes, bytes and the seconds
            it took to build.
        receipt: what the bundle promises when it is measured again, and what that is bound to, see
            `docs/receipts.md`.
        costs: of the program that was written, see `optimize.measure.cost.program_costs`.
        predicted: GPU → seconds of one request by the cost model, see `docs/cost_model.md`.
        source: "graphs" and "weights", digests of the program as it was captured.
        budget: metric → limit that the result was held against.
        kernels: op of ours → GPU architecture, such as "sm_90" → registers per thread, and bytes
            that it spills and shares, of its Triton kernel.
    """

    passes: tuple[Record, ...]
    notes: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    curves: tuple[Curve, ...] = ()
    curve_metric: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    receipt: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, float] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)

    def row(self, role: Role) -> Row | None:
        """The first row of a role."""
        return next((row for row in self.rows if row.role == role), None)

    @property
    def speedup(self) -> float | None:
        """Seconds of the baseline divided by ours; None when not measured."""
        baseline, ours = self.row("baseline"), self.row("ours")
        if baseline is None or ours is None or not ours.seconds > 0:
            return None
        return baseline.seconds / ours.seconds

    @property
    def quality_of_result(self) -> dict[str, float]:
        """Metric → value after the last pass that applied, on the calibration requests.

        Metrics that were not measured are not there, nor is the psnr of a result without any error.
        """
        applied = [record for record in self.passes if record.declined is None]
        if not applied or applied[-1].error is None:
            return {}
        last = applied[-1]
        found = {name: last.details.get(name) for name in ("psnr", "token_match")}
        found["relative_error"] = last.error
        return {
            name: float(value)
            for name, value in sorted(found.items())
            if value is not None and math.isfinite(value)
        }

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data; what is not finite becomes null."""
        baseline, ours = self.row("baseline"), self.row("ours")
        data: dict[str, Any] = plain(
            {
                "format": FORMAT_VERSION,
                "speedup": self.speedup,
                "quality": {
                    "baseline": baseline.quality if baseline else {},
                    "ours": ours.quality if ours else {},
                },
                "controls": [row for row in self.rows if row.role == "control"],
                "passes": self.passes,
                "rows": self.rows,
                "curves": self.curves,
                "curve_metric": self.curve_metric,
                "notes": self.notes,
                "environment": self.environment,
                "targets": self.targets,
                "receipt": self.receipt,
                "costs": self.costs,
                "predicted": self.predicted,
                "source": self.source,
                "budget": self.budget,
                "quality_of_result": self.quality_of_result,
                "kernels": self.kernels,
            }
        )
        return data

    def __str__(self) -> str:
        lines = [_pass_line(record) for record in self.passes] or ["no passes"]
        if self.rows:
            metrics = list(dict.fromkeys(name for row in self.rows for name in row.quality))
            head = ["", "calls", "time", *metrics]
            body = [row_cells(row, metrics) for row in self.rows]
            lines += ["", *columns([head, *body])]
        for record in self.passes:
            lines += ["", *columns(table)] if (table := process_cells(record)) else []
        if self.speedup is not None:
            lines += ["", f"{self.speedup:.2f}x less time per sample than the baseline"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def row_cells(row: Row, metrics: Sequence[str]) -> list[str]:
    """The cells of a row: name, calls, time, one per metric."""
    values = [f"{row.quality[name]:.4g}" if name in row.quality else "" for name in metrics]
    return [row.name, str(row.denoiser_calls), seconds_text(row.seconds), *values]


def process_cells(record: Record) -> list[list[str]]:
    """The table of what each process does per step, its header first; empty for other passes."""
    rows = record.details.get("per_process", ())
    cells = [
        [
            str(row["processes"]),
            amount(row["flops_per_step"]) + "FLOP",
            amount(row["bytes_sent_per_step"]) + "B",
            f"{row['flop_scaling']:.1%}",
        ]
        for row in rows
    ]
    return [["processes", "each, per step", "sends per step", "of ideal"], *cells] if cells else []


def calls_text(record: Record) -> str | None:
    """How many calls of the model a pass leaves, mean by sample; None where it does not say."""
    before, after = (record.details.get(name) for name in ("calls_before", "calls"))
    return None if before is None or after is None else f"{before:.4g} → {after:.3g} calls"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text, aligned in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def amount(value: float) -> str:
    """A large number as a reader knows it: 12.3 G."""
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g}"


def seconds_text(seconds: float) -> str:
    """A duration as a reader knows it: 12.3 ms."""
    if not math.isfinite(seconds):
        return "not measured"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def plain(item: Any) -> Any:
    """Data as JSON has it: dataclasses as objects, arrays as lists, NaN and Inf as null."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = dataclasses.fields(item)
        return {entry.name: plain(getattr(item, entry.name)) for entry in fields}
    if isinstance(item, Mapping):
        return {str(key): plain(inner) for key, inner in item.items()}
    if hasattr(item, "tolist"):
        return plain(item.tolist())
    if isinstance(item, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in item]
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    return item if item is None or isinstance(item, (bool, int, str)) else str(item)


def _pass_line(record: Record) -> str:
    if record.declined is not None:
        return f"{record.name}: declined, {record.declined}"
    parts = [
        f"{record.name}: {len(record.sites)} {'site' if len(record.sites) == 1 else 'sites'}",
        f"{amount(record.flops_before)}FLOP → {amount(record.flops_after)}FLOP",
        *(item for item in (calls_text(record),) if item is not None),
        "error not verified" if record.error is None else f"error {record.error:.3g}",
        seconds_text(record.seconds),
    ]
    return ", ".join(parts)
