"""The checks that need no clock: the same bundles give the same answer on every machine."""

import math
from collections.abc import Iterator, Mapping

from optimize.gate.checks import Check, Outcome
from optimize.gate.facts import Facts
from optimize.gate.policy import LIMITS, Policy
from optimize.ir.report import amount, seconds_text

FUSED = {
    "Attention",
    "Gelu",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "MatMulInteger",
    "QLinearMatMul",
    "RMSNormalization",
    "RotaryEmbedding",
}
"""Standard ops that one node stands for and several would do; so does every op of a domain."""

UNITS = {"flops": "FLOP", "seconds": "s"}


def cost_checks(candidate: Facts, baseline: Facts, policy: Policy) -> list[Check]:
    """Every fact of the candidate, held against that of the baseline."""
    numbers = _number_checks(candidate.numbers, baseline.numbers, policy)
    return [
        *_worst_predicted(list(numbers)),
        *_pass_checks(candidate, baseline, policy),
        _op_check(candidate, baseline, policy),
        *_quality_checks(candidate, baseline, policy),
    ]


def base_metric(name: str) -> str:
    """`kernel_registers[tile_attention, sm_90]` → `kernel_registers`."""
    return name.partition("[")[0]


def _number_checks(
    candidate: Mapping[str, float], baseline: Mapping[str, float], policy: Policy
) -> Iterator[Check]:
    order = list(LIMITS)
    names = {*candidate, *baseline}
    for name in sorted(names, key=lambda name: (order.index(base_metric(name)), name)):
        yield _number_check(name, candidate.get(name), baseline.get(name), policy)


def _worst_predicted(checks: list[Check]) -> Iterator[Check]:
    """All checks, of the predicted seconds only that of the GPU where they grew most."""
    predicted = [check for check in checks if base_metric(check.metric) == "predicted_seconds"]
    worst = max(predicted, key=lambda check: check.ratio or math.inf, default=None)
    for check in checks:
        if check is worst or check not in predicted:
            yield check


def _number_check(
    name: str, candidate: float | None, baseline: float | None, policy: Policy
) -> Check:
    metric = base_metric(name)
    limit, gates = policy.limit(metric), policy.gates(metric)
    if candidate is None:
        text = f"{name}: found none, expected at most {_shown(name, baseline)} as in the baseline"
        return Check(name, "fail", text, None, baseline, limit, gates=gates)
    if baseline is None:
        text = f"{name}: {_shown(name, candidate)}; the baseline does not say"
        outcome: Outcome = "pass"
        if metric == "kernel_spill_bytes" and candidate > 0:
            outcome, text = "fail", f"{text}; a kernel must not spill"
        return Check(name, outcome, text, candidate, None, limit, gates=gates)
    most = baseline * (1 + limit)
    fails = candidate > most
    text = f"{name}: {_shown(name, candidate)}, baseline {_shown(name, baseline)}"
    if fails:
        text += f"{_growth(candidate, baseline)}; at most {_shown(name, most)} is allowed"
    return Check(
        name,
        "fail" if fails else "pass",
        text,
        candidate=candidate,
        baseline=baseline,
        limit=limit,
        ratio=candidate / baseline if baseline else None,
        unit=unit_of(metric),
        gates=gates,
    )


def unit_of(metric: str) -> str:
    """The unit of a metric, "" for counts."""
    if metric.endswith("bytes"):
        return "B"
    return next((unit for end, unit in UNITS.items() if metric.endswith(end)), "")


def _shown(name: str, value: float | None) -> str:
    metric = base_metric(name)
    if value is None:
        return "none"
    if metric.endswith("seconds"):
        return seconds_text(value)
    unit = unit_of(metric)
    if not unit:
        return f"{value:,.0f}"
    return f"{value:,.0f} B" if unit == "B" and value < 1e6 else f"{amount(value)}{unit}"


def _growth(candidate: float, baseline: float) -> str:
    return f" ({candidate / baseline - 1:+.2%})" if baseline else ""


def _pass_checks(candidate: Facts, baseline: Facts, policy: Policy) -> Iterator[Check]:
    """A pass must apply where it did, and to as many sites."""
    for name, sites in baseline.sites.items():
        found = candidate.sites.get(name, 0)
        told = f"pass {name}: {found} sites, baseline {sites}"
        if found < sites and name not in policy.allow:
            why = candidate.declined.get(name)
            told += f"; it declined: {why}" if why else "; it stopped matching"
            told += f"; if that is meant, `allow: [{name}]`"
            yield Check("passes", "fail", told, found, sites, gates=policy.gates("passes"))
        else:
            yield Check("passes", "pass", told, found, sites, gates=policy.gates("passes"))


def _op_check(candidate: Facts, baseline: Facts, policy: Policy) -> Check:
    """A fused op must not become several: fewer of it although there are no fewer nodes."""
    gates = policy.gates("ops")
    fallen = [
        f"op {name}: {candidate.ops.get(name, 0)} nodes, baseline {count}: fell back to its parts"
        for name, count in baseline.ops.items()
        if (name in FUSED or "." in name)
        and name not in policy.allow
        and candidate.ops.get(name, 0) < count
        and candidate.numbers["nodes"] >= baseline.numbers["nodes"]
    ]
    if fallen:
        text = "; ".join(fallen) + "; if that is meant, name it in `allow`"
        return Check("ops", "fail", text, gates=gates)
    count = sum(n for name, n in candidate.ops.items() if name in FUSED or "." in name)
    return Check("ops", "pass", f"ops: no fused op fell back; {count} nodes of them", gates=gates)


def _quality_checks(candidate: Facts, baseline: Facts, policy: Policy) -> Iterator[Check]:
    """Quality must stay within the budget, and not use up much more of it than the baseline."""
    gates = policy.gates("quality")
    budget = baseline.budget or candidate.budget
    names = sorted(set(candidate.quality) | set(baseline.quality) | set(budget))
    for name in names:
        ours, theirs = candidate.quality.get(name), baseline.quality.get(name)
        if ours is None and theirs is None:
            continue
        if ours is None and not (name == "psnr" and candidate.quality):
            text = f"quality {name}: found none, expected one as in the baseline"
            yield Check("quality", "fail", text, None, theirs, gates=gates)
            continue
        limit = budget.get(name)
        if limit is None and budget:
            continue
        used, before = (_used(name, value, limit) for value in (ours, theirs))
        yield _quality_check(name, ours, theirs, limit, used, before, policy)


def _quality_check(
    name: str,
    ours: float | None,
    theirs: float | None,
    limit: float | None,
    used: float,
    before: float,
    policy: Policy,
) -> Check:
    gates = policy.gates("quality")
    shown, other = ("equal" if value is None else f"{value:.4g}" for value in (ours, theirs))
    told = f"quality {name}: {shown}, baseline {other}"
    if limit is None:
        # Without a budget the baseline's own error is the measure.
        fails = used > before * (1 + policy.quality) + 1e-6
        told += f"; no budget, at most {policy.quality:.0%} worse is allowed"
    else:
        told += f", budget {limit:g}: uses {used:.0%} of it, baseline {before:.0%}"
        fails = used > 1 or used - before > policy.quality
        if used > 1:
            told += "; over the budget"
        elif fails:
            told += f"; at most {policy.quality:.0%} of the budget more is allowed"
    outcome: Outcome = "fail" if fails else "pass"
    return Check("quality", outcome, told, ours, theirs, limit, gates=gates)


def _used(name: str, value: float | None, limit: float | None) -> float:
    """The share of a budget that is used; without a budget, the error itself."""
    if value is None:
        return 0.0
    if name == "psnr":
        return float(10 ** (((limit or 0.0) - value) / 20))
    if name == "token_match":
        lost, allowed = 1 - value, 1 - (0.0 if limit is None else limit)
    else:
        lost, allowed = value, 1.0 if limit is None else limit
    if allowed == 0:
        return 0.0 if lost == 0 else float("inf")
    return lost / allowed
