r"""How text and pictures become a request, as data: what a bundle of a language model says of it.

    Prompting(tokenizer="tokenizer.json", template="USER: <image>\n{prompt}\nASSISTANT:",
              image=ImageInput(field="pixel_values", channels=3, height=336, width=336,
                               rescale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3),
              image_offset=4, stop_tokens=(2,), pad_token=0, longest_prompt=512, vocabulary=32064)

`optimize.runtime.prompter` does what this says.
"""

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from optimize.runtime.loop import Data, Identifier, Input, Signature

PROMPT, IMAGE = "{prompt}", "<image>"
ASKED = ("prompt", "image")
"""What a request may have in the place of the fields that are made from it."""

MAX_TOKENS = 2**24

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Token = Annotated[int, Field(ge=0, lt=2**31)]


class ImageInput(Data):
    """The request field that a picture becomes: float32 [batch, channels, height, width].

    A value is `(byte * rescale - mean) / std`, where `byte` is in 0..255 and `mean` and `std` have
    a number per channel. Pictures of another size are stretched to this one with `resample`.
    """

    field: Identifier = "pixel_values"
    channels: Literal[1, 3, 4] = 3
    height: int = Field(ge=1, le=16384)
    width: int = Field(ge=1, le=16384)
    rescale: float = Field(default=1 / 255, gt=0, allow_inf_nan=False)
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    resample: Resample = "bicubic"

    @model_validator(mode="after")
    def _a_number_per_channel(self) -> "ImageInput":
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != self.channels:
                raise ValueError(
                    f"`{name}` has {len(numbers)} numbers, expected one for each of the "
                    f"{self.channels} channels"
                )
        return self


class Prompting(Data):
    """How prompts become requests and tokens become text.

    Attributes:
        tokenizer: path in the bundle of a tokenizer.json of the library `tokenizers`.
        tokens: request field of the prompts' tokens, int64 [batch, prompt], padded on the right.
        lengths: request field of how many of them are the prompt's, int64 [batch]; None where all
            prompts of a request have as many.
        result: the generated tokens, int64 [batch, steps].
        template: text with "{prompt}" once, where the prompt goes; with a picture also "<image>"
            once, before it. The texts before and after "<image>" are tokenized apart.
        image: how pictures are prepared; None for a model of text alone.
        image_offset: how many tokens stand before the picture, the specials at the start included.
        stop_tokens: tokens that end an answer; they and what follows them are not shown.
        pad_token: fills up shorter prompts.
        add_special_tokens: let the tokenizer put its special tokens (such as a BOS) at the start.
        longest_prompt: most tokens of a prompt, template included, pictures not.
        vocabulary: number of tokens the model knows.
    """

    tokenizer: str = "tokenizer.json"
    tokens: Identifier = "input_ids"
    lengths: Identifier | None = "lengths"
    result: Identifier = "tokens"
    template: str = Field(default=PROMPT, max_length=100_000)
    image: ImageInput | None = None
    image_offset: int = Field(default=0, ge=0, le=MAX_TOKENS)
    stop_tokens: tuple[Token, ...] = Field(default=(), max_length=1000)
    pad_token: Token
    add_special_tokens: bool = True
    longest_prompt: int = Field(ge=1, le=MAX_TOKENS)
    vocabulary: int = Field(ge=1, le=2**31)

    @model_validator(mode="after")
    def _a_place_for_everything(self) -> "Prompting":
        before = self.template.rpartition(IMAGE)[0]
        others = (self.lengths, None if self.image is None else self.image.field)
        fields = (self.tokens, *(name for name in others if name is not None))
        if len({*fields, *ASKED}) != len(fields) + len(ASKED):
            raise ValueError(f"the fields are {', '.join(fields)}, expected other names than these")
        if self.template.count(PROMPT) != 1:
            raise ValueError(
                f'`template` has "{PROMPT}" {self.template.count(PROMPT)} times, not 1'
            )
        if self.image is None and self.image_offset:
            raise ValueError(f"`image_offset` is {self.image_offset} in a model without pictures")
        if self.image is not None:
            if self.template.count(IMAGE) != 1:
                raise ValueError(
                    f'`template` has "{IMAGE}" {self.template.count(IMAGE)} times, not 1'
                )
            if PROMPT in before:
                raise ValueError(f'`template` has "{PROMPT}" before "{IMAGE}", expected after it')
        if self.pad_token >= self.vocabulary:
            raise ValueError(f"`pad_token` is {self.pad_token} of {self.vocabulary} tokens")
        return self


def prompting_problems(
    prompting: Prompting, signature: Signature, files: Collection[str]
) -> Iterator[str]:
    """What a bundle or program lacks of what its prompting needs; nothing when all is there."""
    if prompting.tokenizer not in files:
        yield f"prompting: found no file {prompting.tokenizer!r} for the tokenizer"
    fields = {item.name: item for item in signature.inputs}
    for name in sorted(fields.keys() & set(ASKED)):
        yield f"prompting: found a request field {name!r}, expected another name for it"
    yield from _field_problems(fields, prompting.tokens, "int64", 2)
    for width in fields[prompting.tokens].shape[-1:] if prompting.tokens in fields else ():
        if isinstance(width, str) and width not in signature.dimensions:
            known = ", ".join(signature.dimensions)
            yield f"prompting: found prompts {width!r} wide, expected one of {known}, or a number"
    if prompting.lengths is not None:
        yield from _field_problems(fields, prompting.lengths, "int64", 1)
    image = prompting.image
    if image is not None:
        size = (image.channels, image.height, image.width)
        yield from _field_problems(fields, image.field, "float32", 4, size)
    if prompting.result not in signature.outputs:
        found = ", ".join(signature.outputs)
        yield f"prompting: found no result {prompting.result!r} for the tokens, known: {found}"


def _field_problems(
    fields: dict[str, Input], name: str, dtype: str, rank: int, end: tuple[int, ...] = ()
) -> Iterator[str]:
    item = fields.get(name)
    if item is None:
        yield f"prompting: found no request field {name!r}, known: {', '.join(fields)}"
    elif item.dtype != dtype or len(item.shape) != rank or item.shape[rank - len(end) :] != end:
        expected = ", ".join(map(str, ["batch", *["…"] * (rank - 1 - len(end)), *end]))
        found = f"{item.dtype} [{', '.join(map(str, item.shape))}]"
        yield f"prompting: found field {name!r} as {found}, expected {dtype} [{expected}]"
