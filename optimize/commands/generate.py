"""`optimize generate`: the answer of a bundled language model to a prompt, as it is written."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from optimize.commands.console import Json, print_json
from optimize.commands.progress import StageBar

MAX_NEW_TOKENS = "max_new_tokens"
"""The request field, of bundles that have it, for how long an answer may be."""

_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def generate(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle of a language model.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to answer.")],
    image: Annotated[
        Path | None, typer.Option("--image", help="File of a picture the prompt is about.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, where there is any.")] = 0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Longest answer, if the bundle takes it."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")] = None,
    as_json: Json = False,
) -> None:
    """Answer a prompt; the text appears on standard output as its tokens are made."""
    from optimize.runtime.errors import RuntimeInputError
    from optimize.runtime.session import load

    with StageBar(quiet=as_json) as bar:
        bar.wait("load")
        session = load(bundle, threads=threads)
    with session:
        request: dict[str, Any] = {"prompt": prompt, "image": image, "seed": seed}
        fields = [item.name for item in session.signature.inputs]
        if max_new_tokens is not None:
            if MAX_NEW_TOKENS not in fields:
                raise RuntimeInputError(
                    f"--max-new-tokens: found no such field in the bundle, which takes "
                    f"{', '.join(fields)}; leave it out, or export with another length"
                )
            request[MAX_NEW_TOKENS] = max_new_tokens
        if as_json:
            _print_answer(session, bundle, request)
            return
        clean = sys.stdout.isatty()
        for piece in session.stream(**request):
            sys.stdout.write(without_controls(piece) if clean else piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


def without_controls(text: str) -> str:
    """Text that cannot steer a terminal."""
    return text.translate(_CONTROLS)


def _print_answer(session: Any, bundle: str, request: dict[str, Any]) -> None:
    start = time.perf_counter()
    results = session(**request)
    seconds = time.perf_counter() - start
    tokens = results[session.manifest.prompting.result]
    print_json(
        {
            "bundle": bundle,
            "prompt": request["prompt"],
            "image": None if request["image"] is None else str(request["image"]),
            "text": results["text"],
            "tokens": tokens[0].tolist(),
            "seconds": seconds,
        }
    )
