"""The files that start a gate: a policy with every default, and a workflow for GitHub."""

from pathlib import Path

from optimize.ir.errors import GateError
from optimize.runtime.errors import ResourceError

FILES = {
    Path("gate.yaml"): "policy.yaml",
    Path(".github/workflows/optimize-gate.yml"): "workflow.yml",
}
"""Where a file goes → the file beside this one that it is."""


def write_starter(folder: Path) -> list[Path]:
    """Writes the files into a project and returns where they are.

    Raises:
        GateError: one of them is there already; nothing is written then.
        ResourceError: one cannot be written.
    """
    there = [str(path) for path in FILES if (folder / path).exists()]
    if there:
        raise GateError(f"--init: found {', '.join(there)} already, expected none; move it away")
    written = []
    for path, source in FILES.items():
        place = folder / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(Path(__file__).with_name(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise ResourceError(f"{place}: cannot be written: {error.strerror}") from error
        written.append(place)
    return written
