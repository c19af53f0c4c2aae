"""What an entry of the list of faults is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault, and what shows the answer to it.

    Attributes:
        fault: what goes wrong.
        tests: "file::function" of each test.
    """

    fault: str
    tests: tuple[str, ...]
