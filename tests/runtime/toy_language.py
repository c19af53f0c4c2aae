"""A language model without a network: what it answers depends on the last token and the picture.

Answers are written down one after the other, each with a stop token at its end; the last token of a
prompt says where to begin, and a bright picture goes one answer further.
"""

from collections.abc import Mapping

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from optimize.capture.from_module import trace
from optimize.ir.program import Program
from optimize.runtime.loop import (
    Binding,
    Call,
    Destination,
    Input,
    Loop,
    Repeat,
    Signature,
    Slot,
)
from optimize.runtime.prompting import ImageInput, Prompting

WIDTH, HEIGHT, COLUMNS = 6, 4, 12


class Prefill(nn.Module):
    """The first token of each answer."""

    def __init__(self, script: torch.Tensor, starts: torch.Tensor, stop: int) -> None:
        super().__init__()
        self.register_buffer("script", script)
        self.register_buffer("starts", starts)
        self.stop = stop

    def forward(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        last = torch.gather(input_ids, 1, lengths[:, None] - 1)
        starts = torch.index_select(self.starts, 0, last[:, 0])
        bright = torch.zeros_like(last)
        if pixel_values is not None:
            bright = (pixel_values.mean((1, 2, 3)) > 0).to(torch.int64)[:, None]
        position = torch.gather(starts, 1, bright)[:, 0]
        token = torch.index_select(self.script, 0, position)
        return token, position, token == self.stop


class Decode(nn.Module):
    """The next token of each answer; padding after its end."""

    def __init__(self, script: torch.Tensor, stop: int, pad: int) -> None:
        super().__init__()
        self.register_buffer("script", script)
        self.stop, self.pad = stop, pad

    def forward(
        self, position: torch.Tensor, finished: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        after = position + torch.where(finished, 0, 1)
        token = torch.index_select(self.script, 0, after)
        token = torch.where(finished, self.pad, token)
        return token, after, torch.logical_or(finished, token == self.stop)


def speaking(
    prompting: Prompting,
    tokenizer: bytes,
    answers: Mapping[int, tuple[list[int], ...]],
    steps: int,
) -> Program:
    """A program that answers prompts.

    Args:
        prompting: its first stop token ends the answers.
        tokenizer: content of its tokenizer file.
        answers: last token of a prompt → its answers, one, or one for a dark and one for a bright
            picture. All other tokens get the first.
        steps: most tokens of an answer.
    """
    stop, script = prompting.stop_tokens[0], []
    starts = np.zeros((prompting.vocabulary, 2), dtype=np.int64)
    for last, texts in answers.items():
        for bright in (0, 1):
            starts[last, bright] = len(script)
            script += [*texts[min(bright, len(texts) - 1)], stop]
    words = torch.tensor(script + [prompting.pad_token] * steps)
    request = {"input_ids": torch.ones(2, COLUMNS, dtype=torch.int64), "lengths": torch.ones(2)}
    request["lengths"] = request["lengths"].to(torch.int64)
    inputs = [
        Input(name="input_ids", dtype="int64", shape=("batch", COLUMNS)),
        Input(name="lengths", dtype="int64", shape=("batch",), low=1, high=COLUMNS),
    ]
    if prompting.image is not None:
        request["pixel_values"] = torch.zeros(2, 3, HEIGHT, WIDTH)
        shape = ("batch", 3, HEIGHT, WIDTH)
        inputs.append(Input(name="pixel_values", dtype="float32", shape=shape))
    state = {"position": torch.zeros(2, dtype=torch.int64), "finished": torch.zeros(2).bool()}
    names = ("token", "position_next", "finished_next")
    outputs = {
        "token": Destination(append="tokens"),
        "position_next": Destination(state="position"),
        "finished_next": Destination(state="finished"),
    }
    first = trace(Prefill(words, torch.tensor(starts), stop), request, names, 2, True)
    after = trace(Decode(words, stop, prompting.pad_token), state, names, 2, True)
    given = {name: Binding(source="request", name=name) for name in request}
    kept = {name: Binding(source="state", name=name) for name in state}
    decode = Call(graph="decode", inputs=kept, outputs=outputs)
    body = (
        Call(graph="prefill", inputs=given, outputs=outputs),
        Repeat(steps=("decode",) * (steps - 1), bodies={"decode": (decode,)}, until="finished"),
    )
    return Program(
        graphs={"prefill": first.graph, "decode": after.graph},
        weights={**first.weights, **after.weights},
        loop=Loop(
            slots=(
                Slot(name="position", dtype="int64", shape=("batch",)),
                Slot(name="finished", dtype="bool", shape=("batch",)),
            ),
            body=body,
            results={},
        ),
        tables={},
        signature=Signature(
            inputs=tuple(inputs), dimensions={"batch": (1, 16)}, outputs=("tokens",)
        ),
        prompting=prompting,
        assets={prompting.tokenizer: tokenizer},
    )


WORDS = ["<pad>", "<unk>", "<s>", "</s>", "red", "blue", "what", "colour", "is", "it", "no", "Q"]


def colours(picture: bool = False, steps: int = 8) -> Program:
    """Asked for a colour it says red, or blue of a bright picture; to anything else it says no."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:4])
    number = WORDS.index
    red, blue = ([number(word) for word in ("it", "is", colour)] for colour in ("red", "blue"))
    image = ImageInput(height=HEIGHT, width=WIDTH, mean=(0.5,) * 3, std=(0.5,) * 3)
    prompting = Prompting(
        template="Q <image> {prompt}" if picture else "Q {prompt}",
        image=image if picture else None,
        image_offset=1 if picture else 0,
        stop_tokens=(number("</s>"),),
        pad_token=0,
        longest_prompt=10,
        vocabulary=len(WORDS),
    )
    answers = {0: ([number("no")],), number("colour"): (red, blue) if picture else (red,)}
    return speaking(prompting, tokenizer.to_str().encode(), answers, steps)
