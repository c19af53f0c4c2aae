"""Runs the parts of a benchmark, each in a process of its own, and writes one JSON file.

So threads, memory and compiled code of one part cannot change another.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def run_parts(
    description: str | None,
    name: str,
    parts: Mapping[str, Callable[..., Figures]],
    packages: Sequence[str],
) -> None:
    """The command line of a benchmark.

    Args:
        description: for `--help`.
        name: of the JSON file in build/bench.
        parts: name → function that measures; `--part NAME` runs one and prints its figures.
        packages: whose versions are part of the environment.
    """
    script = sys.argv[0]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(f"build/bench/{name}.json"))
    parser.add_argument("--part", choices=parts)
    parser.add_argument("arguments", nargs="*", type=int, help="of the part, where it has any")
    given = parser.parse_args()
    if given.part:
        print(json.dumps(parts[given.part](*given.arguments), ensure_ascii=False))
        return
    figures: Figures = {}
    for part in parts:
        print(f"{part} …", file=sys.stderr, flush=True)
        start = time.perf_counter()
        command = [sys.executable, script, "--part", part]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        figures |= json.loads(output.splitlines()[-1])
        print(f"  {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"figures": figures, "environment": environment(packages)}
    given.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(figures, indent=2, ensure_ascii=False))


def environment(packages: Sequence[str]) -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
        "processor": _processor(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
