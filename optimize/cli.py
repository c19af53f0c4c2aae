"""The command line. Importing this file loads neither PyTorch nor ONNX Runtime.

Exit codes: 0 ok, 1 gate or budget failed, 2 usage or recipe, 3 inconclusive, 4 environment or
resource, 5 bad bundle, 6 model not supported.
"""

import errno
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer

from optimize import __version__
from optimize.commands.console import say
from optimize.runtime.errors import OptimizeError

EPILOG = (
    "Exit codes: 0 ok, 1 gate or budget failed, 2 usage or recipe, 3 inconclusive, "
    "4 environment or resource, 5 bad bundle, 6 model not supported."
)
# Command → module and function.
COMMANDS = {
    "demo": "demo:demo",
    "run": "run:run",
    "tune": "tune:tune",
    "inspect": "inspect:inspect",
    "export": "export:export",
    "generate": "generate:generate",
    "bench": "bench:bench",
    "gate": "gate:gate",
    "gate history": "gate:gate_history",
    "verify": "verify:verify",
    "sign": "sign:sign",
    "recipes": "lists:recipes",
    "passes": "lists:passes",
    "solvers": "solvers:solvers",
}

app = typer.Typer(
    name="optimize",
    help="A compiler for generative models.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"optimize {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error arose.")
    ] = False,
) -> None:
    """A compiler for generative models: rewrites, proves and ships them without PyTorch."""


for _name, _place in COMMANDS.items():
    _module, _, _function = _place.partition(":")
    app.command(_name, epilog=EPILOG)(
        getattr(import_module(f"optimize.commands.{_module}"), _function)
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    sys.exit(run_command(given))


def run_command(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; errors become one message."""
    _quieten_libraries()
    show_trace = "--traceback" in arguments
    # `--traceback` works before and after the command.
    arguments = [item for item in arguments if item != "--traceback"]
    if " ".join(arguments[:2]) in COMMANDS:
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    try:
        result: Any = app(arguments, prog_name="optimize", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error)
    except typer.Abort:
        return 130
    except Exception as error:
        if show_trace:
            raise
        return _report(error)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return result if isinstance(result, int) else 0


def _quieten_libraries() -> None:
    """Keeps the libraries' own remarks from between the lines of a command; ours stay."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module=r"optimize(\..*)?$")
    os.environ.setdefault("TORCH_LOGS", "-onnx")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _usage(error: Any) -> int:
    error.show()
    return int(getattr(error, "exit_code", 2))


def _report(error: Exception) -> int:
    if isinstance(error, OptimizeError):
        say(f"error: {error}", "red")
        return error.exit_code
    if (
        isinstance(error, ModuleNotFoundError)
        and (error.name or "").partition(".")[0] != "optimize"
    ):
        extra = {"sklearn": "zoo", "diffusers": "hf", "transformers": "hf", "optuna": "tune"}.get(
            str(error.name).partition(".")[0], "compile"
        )
        say(f"error: {error.name} is not installed; pip install 'optimize[{extra}]'", "red")
        return 4
    if isinstance(error, MemoryError):
        say("error: out of memory; use a smaller batch or a machine with more", "red")
        return 4
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        say(f"error: {where}{os.strerror(error.errno)}", "red")
        return 2 if error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR) else 4
    say(
        f"error: {type(error).__name__}: {error}\n"
        "This is a defect of optimize, or of a file you gave; `--traceback` shows where it arose.",
        "red",
    )
    return 6
