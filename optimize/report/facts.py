"""What a bundle costs and what its receipt says, as cells that the terminal and the page show."""

from collections.abc import Mapping, Sequence
from typing import Any

from optimize.ir.report import Report, amount

COST_HEAD = ("graph", "engine calls", "FLOPs", "bytes", "nodes")
KERNEL_HEAD = ("kernel", "GPU", "registers", "spilled bytes", "shared bytes")
QUALITY_HEAD = ("metric", "value", "95 % interval", "budget")
SHOWN = 12
"""Digits of a digest; `report.json` has all."""

_UNITS = {"psnr": " dB"}


def cost_cells(report: Report) -> list[list[str]]:
    """A row per graph, and their sum where there are several; all per request but the nodes."""
    graphs = report.costs.get("graphs", {})
    rows = [[role, *_cost(item), str(item["nodes"])] for role, item in graphs.items()]
    if len(rows) > 1:
        total = {**report.costs, "calls": report.costs["engine_calls"]}
        rows.append(["all", *_cost(total), str(sum(item["nodes"] for item in graphs.values()))])
    return rows


def _cost(item: Mapping[str, Any]) -> list[str]:
    return [str(item["calls"]), amount(item["flops"]), amount(item["bytes"])]


def kernel_cells(report: Report) -> list[list[str]]:
    """A row per kernel and GPU architecture, architectures in their order."""
    return [
        [op, gpu, str(used["registers"]), str(used["spill_bytes"]), str(used["shared_bytes"])]
        for op, gpus in report.kernels.items()
        for gpu, used in sorted(gpus.items(), key=lambda item: int(item[0].partition("_")[2]))
    ]


def quality_cells(report: Report) -> list[list[str]]:
    """A row per metric that the receipt or the budget names."""
    measured = report.receipt.get("quality", {})
    rows = []
    for name in sorted({*measured, *report.budget}):
        item, limit = measured.get(name, {}), report.budget.get(name)
        unit = _UNITS.get(name, "")
        rows.append(
            [
                name,
                f"{item['value']:.4g}{unit}" if item else "not measured",
                interval_text(item.get("interval")),
                "" if limit is None else f"{limit:g}{unit}",
            ]
        )
    return rows


def receipt_cells(report: Report) -> list[tuple[str, str]]:
    """What the receipt promises and what it is bound to, each with its name."""
    receipt, rows = report.receipt, []
    if "speedup" in receipt:
        speedup = receipt["speedup"]
        text = f"{speedup['value']:.3g}x {interval_text(speedup['interval'])}".rstrip()
        rows.append(("speed-up over the captured program", text))
    if "interval" in receipt:
        text = f"{receipt['ratio']:.3g} {interval_text(receipt['interval'])}"
        rows.append(("time over that of the fixed work", text))
    rows += [(f"captured {name}", short(digest)) for name, digest in sorted(report.source.items())]
    rows += [(f"graph {role}", short(it)) for role, it in receipt.get("graphs", {}).items()]
    rows += [(name, short(receipt[name])) for name in ("weights", "tables") if name in receipt]
    if "versions" in receipt:
        versions = receipt["versions"].items()
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions)))
    return rows


def short(digest: str) -> str:
    """The first digits of a SHA-256."""
    return f"{digest[:SHOWN]}…"


def interval_text(interval: Sequence[float] | None) -> str:
    """An interval in brackets; empty where there is none."""
    return "" if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"
