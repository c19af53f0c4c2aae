"""Baselines in a file: what to hold a candidate against where no bundle can be run in turns."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from optimize.gate.checks import Check
from optimize.gate.facts import Facts
from optimize.gate.machine import commit
from optimize.ir.errors import GateError
from optimize.measure.quality import Interval
from optimize.report.whole_file import write_whole

FORMAT_MAJOR = 1
MAX_BYTES = 4 << 20


class WorkRatio(BaseModel):
    """Seconds of a request divided by those of fixed work, with an interval."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float
    high: float


class StoredBaseline(BaseModel):
    """A baseline in a file.

    Attributes:
        name: of the bundle or the test.
        facts: of the bundle; of a function it has none.
        times: metric → ratio to fixed work; empty where no time was measured.
        machine: fingerprint of what the times were measured on.
        commit, date: of the measurement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["optimize-gate-baseline"] = "optimize-gate-baseline"
    format_version: str = f"{FORMAT_MAJOR}.0"
    name: str
    facts: Facts | None = None
    times: dict[str, WorkRatio] = {}
    machine: dict[str, str] = {}
    commit: str = ""
    date: str = ""


def read_stored(path: Path) -> StoredBaseline:
    """Reads a baseline.

    Raises:
        GateError: it is too large, no baseline, or of a newer version; it is left as it is.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise GateError(f"baseline {path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise GateError(
            f"baseline {path}: found more than {MAX_BYTES} bytes, expected a file that "
            "`optimize gate` wrote; delete it and record anew"
        )
    try:
        data = json.loads(content)
        version = str(data["format_version"]) if isinstance(data, dict) else ""
        if version.partition(".")[0].isdecimal() and int(version.partition(".")[0]) > FORMAT_MAJOR:
            raise GateError(
                f"baseline {path}: found format {version}, expected {FORMAT_MAJOR}.x; update "
                "optimize, or record anew with --update"
            )
        return StoredBaseline.model_validate(data)
    except (ValueError, KeyError, RecursionError) as error:
        if isinstance(error, GateError):
            raise
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise GateError(
            f"baseline {path}: found something else than a baseline ({why}); it was left as it "
            "is, delete it to record anew"
        ) from error


def record(
    path: Path,
    name: str,
    times: Mapping[str, Interval],
    machine: Mapping[str, str],
    facts: Facts | None = None,
) -> Check:
    """Stores a baseline, and says so as a check that is no pass: nothing was compared.

    Args:
        path: of the file.
        name: of the bundle or the test.
        times: metric → ratio to fixed work.
        machine: fingerprint of what they were measured on.
        facts: of the bundle.
    Raises:
        GateError: something else than a baseline stands there.
        ResourceError: it cannot be written.
    """
    ratios = {
        metric: WorkRatio(value=item.value, low=item.low, high=item.high)
        for metric, item in times.items()
    }
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_stored(
        path,
        StoredBaseline(
            name=name, facts=facts, times=ratios, machine=dict(machine), commit=commit(), date=date
        ),
    )
    text = f"recorded {path}; there was nothing to compare with, the next run compares"
    return Check("baseline", "inconclusive", text)


def write_stored(path: Path, baseline: StoredBaseline) -> None:
    """Writes a baseline, whole or not at all.

    Raises:
        GateError: something else than a baseline stands there.
        ResourceError: it cannot be written.
    """
    if path.exists():
        read_stored(path)
    write_whole(path, baseline.model_dump_json(indent=2) + "\n")
