"""Captures a masked-diffusion language model: any module from tokens to logits, and its loop.

LLaDA- and Dream-shaped models, MDLM-like denoisers with a time: the module is traced once, with any
number of rows, and everything else is made around that graph.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from optimize.capture.check_model import check_finite, check_module
from optimize.capture.from_module import MAX_BATCH, NamedSize, evaluation_mode, trace
from optimize.capture.prompt_template import (
    TOKENIZER_FILE,
    Template,
    template_of,
    tokenizer_file,
)
from optimize.capture.unmask_loop import unmask_program
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.ir.unmask import Unmasking, UnmaskLoop
from optimize.runtime.prompting import Prompting

MASK_NAMES = ("mask_token_id", "mask_id")
"""What configurations and tokenizers call the token of a mask."""

BATCH = 2
EXAMPLE_PROMPT, LEAST_EXAMPLE = 7, 2
TIMES = (0.2, 0.7)
"""Masked shares at which a model is asked whether it looks at the time."""


def capture_masked_model(
    model: nn.Module,
    example_inputs: Mapping[str, Any] | None = None,
    *,
    loop: UnmaskLoop,
    tokenizer: Any = None,
    template: str | None = None,
    allow_nonfinite: bool = False,
) -> Program:
    """Captures a masked-diffusion language model and the loop that fills in its texts.

    Args:
        model: takes tokens int64 [B, S], masks among them, and a time where `loop` names one;
            returns logits [B, S, V], alone, first in a tuple, or as `logits`. Left as it was.
        example_inputs: further arguments of the model, which become constants.
        loop: how text is filled in.
        tokenizer: a fast tokenizer of transformers, so that a request may be a prompt.
        template: what a prompt is put into, with "{prompt}"; nothing more where not given.
        allow_nonfinite: accept NaN and Inf in the weights.
    Returns:
        A program that takes `input_ids` [batch, prompt] int64 where there are prompts, all of one
        length; `template` [batch, length] int64, texts whose masks are filled in, all masks where
        not given; `temperature` and `top_p` where tokens are drawn. It returns "tokens" [batch,
        length] int64 and "calls" [batch] int64, how many calls of the model each text took.
    Raises:
        InputModelError: the model cannot be captured, or the loop does not fit it.
        NumericsError: NaN or Inf in the weights.
    """
    check_module(model)
    loop = _with_mask(loop, model, tokenizer)
    constants = dict(example_inputs or {})
    for name in (loop.tokens, loop.timestep):
        constants.pop(name, None)  # type: ignore[arg-type]
    wrapped = MaskedDenoiser(model, loop, constants)
    device = next((item.device for item in model.parameters()), torch.device("cpu"))
    rows = loop.length
    if loop.max_prompt:
        # The rows that are traced become those of a prompt, the text comes behind: as an example
        # they must not be the longest, or a table of positions would seem to be used up.
        rows = max(LEAST_EXAMPLE, min(EXAMPLE_PROMPT, loop.max_prompt - 1))
    tokens = torch.full((BATCH, rows), loop.mask, device=device)
    arguments: dict[str, Any] = {"input_ids": tokens}
    with torch.no_grad(), evaluation_mode(model):
        logits, timed = _tried(wrapped, tokens, loop)
        if timed:
            arguments["timestep"] = torch.full((BATCH,), TIMES[0], device=device)
        _check_logits(logits, tokens, loop)
        most = max(loop.length + loop.max_prompt, 3)
        sizes = {"rows": NamedSize("input_ids", 1, 2, most)} if loop.max_prompt or rows > 2 else {}
        traced = trace(wrapped, arguments, ("logits",), BATCH, True, MAX_BATCH, sizes)
    if not allow_nonfinite:
        check_finite(traced.weights)
    notes = list(traced.notes)
    if loop.timestep is not None and not timed:
        notes.append(f"{loop.timestep} does not change the logits; the loop runs without a time")
    program = unmask_program(
        traced.graph, traced.weights, Unmasking(loop, int(logits.shape[-1]), timed)
    )
    program = replace(program, notes=tuple(notes))
    return program if tokenizer is None else _with_text(program, tokenizer, template)


class MaskedDenoiser(nn.Module):
    """The user's module as `UnmaskGraphs` takes it."""

    def __init__(self, module: nn.Module, loop: UnmaskLoop, constants: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.loop, self.constants = module, loop, dict(constants)
        if loop.timestep is not None:
            self.register_buffer("no_time", torch.full((1,), TIMES[0]), persistent=False)
            self.no_time: torch.Tensor

    def forward(
        self, input_ids: torch.Tensor, timestep: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        given = dict(self.constants)
        if self.loop.timestep is not None:
            time = self.no_time.expand(input_ids.shape[0]) if timestep is None else timestep
            given[self.loop.timestep] = time
        return (logits_of(self.module(**{self.loop.tokens: input_ids}, **given)),)


def with_prompts(program: Program, tokenizer: bytes, template: Template) -> Program:
    """The program with a tokenizer, so that a request may be a prompt.

    It is without `lengths`, for there is no padding.

    Args:
        tokenizer: content of its file.
        template: what prompts are put into.
    """
    unmasking = program.unmasking
    assert unmasking is not None
    prompting = Prompting(
        tokenizer=TOKENIZER_FILE,
        lengths=None,
        template=template.text,
        stop_tokens=unmasking.loop.stop_tokens,
        # Any token of text: nothing is padded.
        pad_token=int(unmasking.loop.mask == 0),
        add_special_tokens=template.add_special_tokens,
        longest_prompt=unmasking.loop.max_prompt,
        vocabulary=unmasking.vocabulary,
    )
    return replace(program, prompting=prompting, assets={TOKENIZER_FILE: tokenizer})


def _with_mask(loop: UnmaskLoop, model: nn.Module, tokenizer: Any) -> UnmaskLoop:
    """The loop with the mask that model or tokenizer name, where it says none."""
    if loop.mask_id is None:
        places = (getattr(model, "config", None), tokenizer)
        found = [getattr(place, name, None) for place in places for name in MASK_NAMES]
        known = [int(item) for item in found if item is not None]
        if not known:
            raise InputModelError(
                "UnmaskLoop: found no mask_id, and none in the model's configuration or tokenizer, "
                "expected the token that stands for a mask; pass UnmaskLoop(mask_id=...)"
            )
        loop = replace(loop, mask_id=known[0])
    if tokenizer is not None and _is_text(tokenizer, loop.mask):
        raise InputModelError(
            f"UnmaskLoop: found mask_id {loop.mask_id} inside the vocabulary of text: it is "
            f"{tokenizer.convert_ids_to_tokens(loop.mask)!r} of the tokenizer, expected a special "
            "token, which no text has"
        )
    return loop


def _is_text(tokenizer: Any, token: int) -> bool:
    """Whether a tokenizer makes a token from plain text."""
    if token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder:
        return False
    return tokenizer.convert_ids_to_tokens(token) is not None


def _with_text(program: Program, tokenizer: Any, template: str | None) -> Program:
    content, unmasking = tokenizer_file(tokenizer), program.unmasking
    assert unmasking is not None
    if content is None:
        raise InputModelError(
            f"tokenizer: found {type(tokenizer).__name__}, which has no tokenizer.json, expected a "
            "fast one; load it with AutoTokenizer.from_pretrained(folder, use_fast=True)"
        )
    if unmasking.loop.max_prompt == 0:
        raise InputModelError(
            "tokenizer: found one for a loop with max_prompt 0, which takes no prompts; leave it "
            "away, or raise max_prompt"
        )
    chosen = template_of(tokenizer, None, template, has_image=False)
    return with_prompts(program, content, chosen)


def logits_of(output: Any) -> torch.Tensor:
    """The logits in what a module returns: a tensor, the first of a tuple, or `logits`.

    Raises:
        InputModelError: there are none.
    """
    found = getattr(output, "logits", output)
    while isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, torch.Tensor):
        raise InputModelError(
            f"model: returned {type(output).__name__}, expected logits [B, S, V], alone, first in "
            "a tuple, or as `logits`"
        )
    return found


def _tried(
    wrapped: MaskedDenoiser, tokens: torch.Tensor, loop: UnmaskLoop
) -> tuple[torch.Tensor, bool]:
    """The logits of an example, and whether they change with the time."""
    if loop.timestep is None:
        return _run(wrapped, tokens, None, loop), False
    # Half of the text is there, so that what depends on its content does, too.
    half = tokens.clone()
    half[:, ::2] = 0 if loop.mask_id else 1
    first, second = (
        _run(wrapped, half, torch.full((BATCH,), time, device=tokens.device), loop)
        for time in TIMES
    )
    return first, not torch.equal(first, second)


def _run(
    wrapped: MaskedDenoiser, tokens: torch.Tensor, time: torch.Tensor | None, loop: UnmaskLoop
) -> torch.Tensor:
    try:
        logits: torch.Tensor
        (logits,) = wrapped(tokens, time)
    except IndexError as error:
        raise InputModelError(
            f"model: found no embedding of the mask, token {loop.mask_id} ({error}); give the "
            "mask_id that the model was trained with"
        ) from error
    except TypeError as error:
        raise InputModelError(
            f"model: cannot be called with {loop.tokens!r}"
            + ("" if loop.timestep is None else f" and {loop.timestep!r}")
            + f" ({error}); name its arguments with UnmaskLoop(tokens=..., timestep=...)"
        ) from error
    return logits


def _check_logits(logits: torch.Tensor, tokens: torch.Tensor, loop: UnmaskLoop) -> None:
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise InputModelError(
            f"model: returned {list(logits.shape)} for tokens {list(tokens.shape)}, expected "
            "logits [B, S, V], one row for each token"
        )
    width = logits.shape[-1]
    if loop.vocabulary is not None and loop.vocabulary > width:
        raise InputModelError(
            f"UnmaskLoop: found vocabulary {loop.vocabulary}, expected at most {width}, for which "
            "the model has logits"
        )
    for stop in loop.stop_tokens:
        if not 0 <= stop < width or stop == loop.mask_id:
            raise InputModelError(
                f"UnmaskLoop: found {stop} in stop_tokens, expected tokens in [0, {width}), none "
                f"of them the mask {loop.mask_id}"
            )
