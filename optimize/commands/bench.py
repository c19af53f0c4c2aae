"""`optimize bench`: a bundle against another, or against its model in PyTorch, run in turns."""

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from optimize.commands.console import Json, console, print_json
from optimize.commands.progress import StageBar
from optimize.commands.targets import Target, open_target

INCONCLUSIVE = 3


def bench(
    bundle: Annotated[str, typer.Argument(help="The bundle in question, or a MODEL.")],
    baseline: Annotated[str, typer.Argument(help="Another bundle, or a MODEL, as it is.")],
    repeats: Annotated[int, typer.Option(min=2, max=10_000, help="Measured pairs.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, max=1000, help="Pairs before them.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to generate; of language models.")
    ] = None,
    at_least: Annotated[
        float, typer.Option(min=0, help="Speedup to prove; below it the command exits with 1.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Time a bundle against a baseline: paired, interleaved, with a bootstrap interval."""
    with StageBar(quiet=as_json) as bar:
        bar.wait("load")
        ours, theirs = open_target(bundle, threads), open_target(baseline, threads)
        request = _shared_request(ours, theirs, seed, new_tokens)
        from optimize.measure.timing import compare, interleaved_seconds

        seconds = interleaved_seconds(
            {
                "baseline": lambda: theirs.answer(**request),
                "bundle": lambda: ours.answer(**request),
            },
            repeats,
            warmup,
            lambda done, total: bar("bench", done, total),
        )
        decoding = [_decoding(target.answer(**request)) for target in (ours, theirs)]
    comparison = compare(seconds["bundle"], seconds["baseline"])
    speedup = comparison.speedup
    if speedup.low >= at_least and comparison.verdict != "inconclusive":
        verdict, code = "pass", 0
    elif speedup.high < at_least:
        verdict, code = "fail", 1
    else:
        verdict, code = "inconclusive", INCONCLUSIVE
    data: dict[str, Any] = {
        "speedup": speedup.value,
        "interval": [speedup.low, speedup.high],
        "at_least": at_least,
        "verdict": verdict,
        "seconds": {"bundle": comparison.seconds, "baseline": comparison.baseline_seconds},
        "engines": {"bundle": ours.engine, "baseline": theirs.engine},
        "raw_seconds": seconds,
    }
    times = (comparison.seconds, comparison.baseline_seconds)
    if all(decoding):
        data["decoding"] = {
            name: {**facts, "tokens_per_second": facts["tokens"] / spent}
            for name, facts, spent in zip(("bundle", "baseline"), decoding, times, strict=True)
        }
    if as_json:
        print_json(data)
    else:
        _show(ours, theirs, comparison, verdict, at_least)
        for name, facts in data.get("decoding", {}).items():
            console().print(_decoding_line(name, facts))
    raise typer.Exit(code)


def _decoding(results: Any) -> dict[str, Any]:
    """What a run generated: tokens and, with a draft, what was kept of it; empty of others."""
    import numpy as np

    from optimize.measure.acceptance import acceptance

    if "tokens" not in results:
        return {}
    facts: dict[str, Any] = {"tokens": int(np.size(results["tokens"]))}
    if "accepted" in results:
        facts |= acceptance(np.asarray(results["accepted"]))
    return facts


def _decoding_line(name: str, facts: dict[str, Any]) -> str:
    line = f"{name}: {facts['tokens_per_second']:.1f} tokens per second"
    if "rounds" in facts:
        rates = ", ".join(f"{rate:.2f}" for rate in facts["acceptance_rate"])
        line += f", {facts['tokens_per_call']:.2f} per call, acceptance by position {rates}"
    return line


def _shared_request(
    ours: Target, theirs: Target, seed: int, new_tokens: int | None
) -> dict[str, Any]:
    """One request that both take, of fields drawn by seed."""
    from optimize.ir.errors import RecipeError
    from optimize.passes.calibration import Calibration, signature_request

    examples = {**ours.examples, **theirs.examples}
    mine = [item.name for item in ours.signature.inputs]
    other = [item.name for item in theirs.signature.inputs]
    if sorted(mine) != sorted(other):
        raise RecipeError(
            f"bench: found fields {', '.join(mine)} and {', '.join(other)}, expected the same "
            "request for both; compare bundles of one model"
        )
    inputs = {} if new_tokens is None else {"max_new_tokens": new_tokens}
    calibration = Calibration(seed=seed, inputs=inputs)
    request = signature_request(ours.signature, ours.loop, calibration, examples, seed)
    return dict(request)


def _show(ours: Target, theirs: Target, comparison: Any, verdict: str, at_least: float) -> None:
    from optimize.ir.report import seconds_text

    table = Table("", "engine", "median per request", box=None, header_style="bold")
    table.add_row(Text(ours.name), ours.engine, seconds_text(comparison.seconds))
    table.add_row(Text(theirs.name), theirs.engine, seconds_text(comparison.baseline_seconds))
    output = console()
    output.print(table)
    speedup = comparison.speedup
    output.print(
        f"speedup {speedup.value:.3f}, 95 % interval [{speedup.low:.3f}, {speedup.high:.3f}], "
        f"wanted at least {at_least:g}: {verdict}"
    )
    if verdict == "inconclusive":
        output.print("the interval is too wide to tell; use more --repeats or a quieter machine")
