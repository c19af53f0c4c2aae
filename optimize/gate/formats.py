"""A verdict in the formats that other tools read.

`gate.json` is our own, with raw samples and the machine; `junit.xml` is read by CI systems,
`summary.md` by people (GitHub shows it beside a run), `pytest-benchmark.json` by pytest-benchmark
and github-action-benchmark, `action-benchmark.json` by the latter's `customSmallerIsBetter`.
"""

import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from optimize.gate.checks import Check, Verdict
from optimize.gate.machine import commit
from optimize.ir.report import plain
from optimize.report.whole_file import write_whole

FORMAT = "optimize-gate"
FORMAT_VERSION = "1.0"
RESULT_FILE = "gate.json"
SUMMARY_BYTES = 1 << 20
"""What GitHub shows of one step at most."""

MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}


def files(verdict: Verdict) -> dict[str, str]:
    """File name → text, of every format."""
    return {
        RESULT_FILE: _text(to_dict(verdict)),
        "junit.xml": junit(verdict),
        "summary.md": markdown(verdict),
        "pytest-benchmark.json": _text(pytest_benchmark(verdict)),
        "action-benchmark.json": _text(action_benchmark(verdict)),
    }


def _text(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_dict(verdict: Verdict) -> dict[str, Any]:
    """Everything there is to say, JSON-able."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "outcome": verdict.outcome,
        "candidate": verdict.candidate,
        "baseline": verdict.baseline,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(verdict.seconds, 3),
        "checks": plain(verdict.checks),
        "notes": list(verdict.notes),
        "machine": dict(verdict.machine),
        "facts": plain(verdict.facts),
        "samples": plain(verdict.samples),
    }


def junit(verdict: Verdict) -> str:
    """One test case per check; what could not be decided is an error, as it is no pass."""
    cases = [check for check in verdict.checks if check.gates]
    counts = {name: sum(c.outcome == name for c in cases) for name in ("fail", "inconclusive")}
    suite = ElementTree.Element(
        "testsuite",
        name="optimize gate",
        tests=str(len(cases)),
        failures=str(counts["fail"]),
        errors=str(counts["inconclusive"]),
        time=f"{verdict.seconds:.3f}",
    )
    for check in cases:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"gate.{Path(verdict.candidate).name}", name=check.metric
        )
        if check.outcome == "pass":
            ElementTree.SubElement(case, "system-out").text = check.message
        else:
            kind = "failure" if check.outcome == "fail" else "error"
            ElementTree.SubElement(case, kind, message=check.message).text = check.message
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(verdict: Verdict) -> str:
    """A table for people; failures come first."""
    order = ("fail", "inconclusive", "pass")
    rows = sorted(verdict.checks, key=lambda check: order.index(check.outcome))
    lines = [
        f"### {MARKS[verdict.outcome]} optimize gate: {verdict.outcome}",
        "",
        f"`{verdict.candidate}` against `{verdict.baseline}`",
        "",
        "| | metric | candidate / baseline | what was found |",
        "|---|---|---|---|",
        *(_row(check) for check in rows),
        "",
        *(f"- {note}" for note in verdict.notes),
        "<details><summary>machine</summary>",
        "",
        *(f"- {name}: {value}" for name, value in verdict.machine.items()),
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def _row(check: Check) -> str:
    mark = MARKS[check.outcome] if check.gates else "·"
    ratio = "" if check.ratio is None else f"{check.ratio:.3f}"
    if check.low is not None and check.high is not None:
        ratio += f" [{check.low:.3f}, {check.high:.3f}]"
    text = check.message.replace("|", "\\|").replace("\n", " ")
    return f"| {mark} | {check.metric} | {ratio} | {text} |"


def pytest_benchmark(verdict: Verdict) -> dict[str, Any]:
    """The candidate's samples as pytest-benchmark stores a run."""
    benchmarks = [
        _benchmark(f"{Path(verdict.candidate).name}[{metric}]", sides["candidate"])
        for metric, sides in verdict.samples.items()
    ]
    return {
        "machine_info": {"node": "", **verdict.machine, "cpu": {"brand": _processor(verdict)}},
        "commit_info": {"id": commit(), "dirty": False},
        "benchmarks": benchmarks,
        "datetime": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        "version": "5.3.1",
    }


def _processor(verdict: Verdict) -> str:
    return verdict.machine.get("processor", "")


def _benchmark(name: str, samples: Any) -> dict[str, Any]:
    data = [float(item) for item in samples]
    quarters = statistics.quantiles(data, n=4) if len(data) > 1 else [data[0]] * 3
    stats = {
        "min": min(data),
        "max": max(data),
        "mean": statistics.fmean(data),
        "stddev": statistics.stdev(data) if len(data) > 1 else 0.0,
        "rounds": len(data),
        "median": statistics.median(data),
        "iqr": quarters[2] - quarters[0],
        "q1": quarters[0],
        "q3": quarters[2],
        "iqr_outliers": 0,
        "stddev_outliers": 0,
        "outliers": "0;0",
        "ld15iqr": min(data),
        "hd15iqr": max(data),
        "ops": 1 / statistics.fmean(data),
        "total": sum(data),
        "iterations": 1,
        "data": data,
    }
    return {
        "group": "optimize gate",
        "name": name,
        "fullname": f"optimize gate::{name}",
        "params": None,
        "param": None,
        "extra_info": {},
        "options": {},
        "stats": stats,
    }


def action_benchmark(verdict: Verdict) -> list[dict[str, Any]]:
    """Each number of the candidate as `customSmallerIsBetter` has it."""
    return [
        {
            "name": check.metric,
            "unit": check.unit or "count",
            "value": check.candidate,
            **({} if check.ratio is None else {"extra": f"{check.ratio:.4f} of the baseline"}),
        }
        for check in verdict.checks
        if check.candidate is not None and check.metric not in ("quality", "passes", "example")
    ]


def write_files(verdict: Verdict, folder: Path) -> None:
    """Writes every format into a folder, each file whole or not at all.

    Raises:
        ResourceError: one cannot be written.
    """
    for name, text in files(verdict).items():
        write_whole(folder / name, text)


def tell_github(verdict: Verdict, environment: Mapping[str, str]) -> list[str]:
    """On GitHub, appends the table to the page of the run.

    Returns:
        Lines for standard output that GitHub turns into annotations; none elsewhere.
    """
    path = environment.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(markdown(verdict)[: SUMMARY_BYTES // 4])
        except OSError:
            return [f"::warning::optimize gate: {path} cannot be written"]
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    kinds = {"fail": "error", "inconclusive": "warning"}
    return [
        f"::{kinds[check.outcome]} title=optimize gate, {check.metric}::{_escaped(check.message)}"
        for check in verdict.checks
        if check.gates and check.outcome in kinds
    ]


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
