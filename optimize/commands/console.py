"""What commands print: tables for people, one JSON document with `--json`, errors in a line."""

import json
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def console(to_error: bool = False) -> Console:
    """A console that follows NO_COLOR and the width of the terminal."""
    return Console(stderr=to_error, highlight=False)


def print_json(data: Any) -> None:
    """Prints data as one JSON document."""
    json.dump(data, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def say(text: str, style: str = "") -> None:
    """Prints a line for people, on standard error, so that it never mixes with data."""
    console(to_error=True).print(Text(text, style))


def fail(text: str, exit_code: int) -> NoReturn:
    """Ends the command with a message."""
    say(text, "red")
    raise typer.Exit(exit_code)
