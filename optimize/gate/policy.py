"""What a gate allows: how much worse than its baseline a bundle may be, and how sure it must be.

    limits:                    # share of the baseline by which a metric may grow
      cpu_time: 0.025
      engine_calls: 0
    ignore: [wall_time]        # metrics that are reported and never fail
    allow:                     # what may disappear: passes and ops
      - cache_regions
    quality: 0.25              # share of the budget that quality may lose
    confidence: 0.99
    seconds: 60

A policy has no logic. Everything wrong with it is listed at once.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optimize.ir.errors import GateError
from optimize.recipes.options import build, nearest
from optimize.recipes.strict_yaml import MAX_BYTES, Node, decode, from_python, parse

LIMITS: Mapping[str, float] = {
    "flops": 0.0,
    "bytes": 0.0,
    "engine_calls": 0.0,
    "predicted_seconds": 0.01,
    "nodes": 0.0,
    "graph_bytes": 0.05,
    "weight_bytes": 0.0,
    "duplicate_weight_bytes": 0.0,
    "engine_bytes": 0.05,
    "bundle_bytes": 0.01,
    "kernel_registers": 0.0,
    "kernel_spill_bytes": 0.0,
    "kernel_shared_bytes": 0.0,
    "cpu_time": 0.025,
    "wall_time": 0.1,
    "peak_memory": 0.05,
}
"""Metric → share of the baseline by which it may grow, unless a policy says otherwise."""

OTHERS = ("quality", "example", "passes", "ops")
"""Metrics without such a share."""

METRICS = (*LIMITS, *OTHERS)


@dataclass(frozen=True)
class Policy:
    """A checked policy; make one with `load_policy`.

    Args:
        limits: metric → share of the baseline by which it may grow, >= 0; others have `LIMITS`.
        ignore: metrics that are reported and never fail.
        allow: passes that may stop matching, and ops that may fall back.
        quality: share of the quality budget that the result may lose, in [0, 1]; without a budget,
            the share by which its error may grow.
        stored: share by which the time may grow against a stored baseline, which cannot be run in
            turns with; >= 0.
        confidence: of the intervals of times, in [0.5, 1).
        seconds: longest time for measuring, in [1, 3600]; half of it for a confirming rerun.
        threads: of an operator, in [1, 1024]; null lets the engine choose.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    quality: float = 0.25
    stored: float = 0.25
    confidence: float = 0.99
    seconds: float = 60.0
    threads: int | None = 1

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if name not in LIMITS:
                raise ValueError(
                    f"limits: unknown metric {name!r}; {nearest(name, LIMITS, 'metrics')}"
                )
            if not 0 <= limit < float("inf"):
                raise ValueError(f"limits.{name}: found {limit}, expected a share >= 0")
        for name in self.ignore:
            if name not in METRICS:
                raise ValueError(
                    f"ignore: unknown metric {name!r}; {nearest(name, METRICS, 'metrics')}"
                )
        for name, low, high in (
            ("quality", 0.0, 1.0),
            ("stored", 0.0, 1000.0),
            ("confidence", 0.5, 0.9999),
            ("seconds", 1.0, 3600.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name}: found {getattr(self, name)}, expected a number in [{low:g}, {high:g}]"
                )
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ValueError(f"threads: found {self.threads}, expected a number in [1, 1024]")

    def limit(self, metric: str) -> float:
        """The share by which a metric may grow."""
        return self.limits.get(metric, LIMITS[metric])

    def gates(self, metric: str) -> bool:
        """Whether a metric can fail."""
        return metric not in self.ignore


def load_policy(source: "str | os.PathLike[str] | Mapping[str, Any] | Policy | None") -> Policy:
    """Loads a policy.

    Args:
        source: path of a YAML file, a mapping, a policy, or None for the defaults.
    Raises:
        GateError: listing every problem with its place.
    """
    if source is None:
        return Policy()
    if isinstance(source, Policy):
        return source
    problems: list[str] = []
    root: Node | None
    if isinstance(source, Mapping):
        name = "policy"
        root = from_python(source, name, problems)
    else:
        name = Path(source).name
        root = parse(decode(_read(Path(source)), name, problems), name, problems)
    policy = None
    if root is not None:
        policy = build(Policy, root, "policy", problems)
    elif not problems:
        policy = Policy()
    if problems or policy is None:
        raise GateError("\n  ".join([f"policy {name}:", *problems]))
    return policy


def with_options(policy: Policy, options: Mapping[str, Any]) -> Policy:
    """A policy with other options; limits may stand among them by their own names.

    Raises:
        GateError: an option is unknown or out of range.
    """
    limits = {name: value for name, value in options.items() if name in LIMITS}
    others = {name: value for name, value in options.items() if name not in LIMITS}
    given = {**asdict(policy), **others}
    return load_policy(given | {"limits": {**given["limits"], **limits}})


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise GateError(
            f"policy {path}: cannot be read: {error.strerror}; `optimize gate --init` writes one"
        ) from error
