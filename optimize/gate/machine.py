"""What a time was measured on, and whether another one may be compared with it."""

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from optimize.measure.receipt import processor, versions

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def fingerprint(threads: int | None) -> dict[str, str]:
    """Hardware, system and versions; times of machines that differ in one are not comparable."""
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "governor": _governor(),
        "threads": "chosen by the engine" if threads is None else str(threads),
        **versions(),
    }


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What differs, as "cores: 2 here, 8 there"."""
    names = [*here, *(name for name in there if name not in here)]
    return [
        f"{name}: {here.get(name, 'unknown')} here, {there.get(name, 'unknown')} there"
        for name in names
        if here.get(name) != there.get(name)
    ]


def commit() -> str:
    """The commit that is checked out; "" where that is not known."""
    given = os.environ.get("GITHUB_SHA")
    if given:
        return given
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _governor() -> str:
    try:
        return _GOVERNOR.read_text().strip()
    except OSError:
        return "unknown"
