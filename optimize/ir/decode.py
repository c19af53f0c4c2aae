"""What a user says about generating tokens, and what capture found out about the model."""

from dataclasses import dataclass
from typing import Literal, get_args

from optimize.ir.errors import InputModelError

Attention = Literal["causal", "prefix"]
"""Whether a prompt attends to what comes before only, or to all of itself."""

PROMPT_POSITIONS = "prompt_positions"
"""The weight of a prefill graph that says at which positions the rows of a prompt stand."""

MAX_ROWS = 2**20


@dataclass(frozen=True)
class Sampling:
    """Draws each token instead of taking the likeliest.

    Args:
        temperature: what the logits are divided by, in (0, 100]; the default of a request field.
        top_k: only this many of the likeliest tokens can be drawn; None for all.
        top_p: only the likeliest tokens that make up this probability, in (0, 1]; the default of a
            request field. None for no such field, which saves sorting the vocabulary at each token.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 100:
            raise InputModelError(
                f"Sampling: found temperature {self.temperature}, expected a number in (0, 100]; "
                "leave `sampling` away for the likeliest token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputModelError(f"Sampling: found top_k {self.top_k}, expected at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputModelError(f"Sampling: found top_p {self.top_p}, expected one in (0, 1]")


@dataclass(frozen=True)
class DecodeLoop:
    """Describes how tokens are generated, so that any decoder can be captured.

    Args:
        max_prompt: most text tokens of a prompt, image tokens not counted.
        max_new_tokens: most tokens generated for one prompt.
        stop_tokens: tokens after which a sample is finished; the token itself is returned. None for
            those that the model names, if it does.
        pad_token: what a finished sample returns while others of its batch go on. None for the one
            that the model names, or 0.
        sampling: how tokens are drawn; None takes the likeliest.
    """

    max_prompt: int = 512
    max_new_tokens: int = 256
    stop_tokens: tuple[int, ...] | None = None
    pad_token: int | None = None
    sampling: Sampling | None = None

    def rows(self, image_tokens: int) -> int:
        """Most rows of a sequence: those of the longest prompt, of its image, of the answer."""
        return self.max_prompt + image_tokens + self.max_new_tokens

    def __post_init__(self) -> None:
        for name in ("max_prompt", "max_new_tokens"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_ROWS:
                raise InputModelError(
                    f"DecodeLoop: found {name} {count!r}, expected a whole number in "
                    f"[1, {MAX_ROWS}]"
                )


@dataclass(frozen=True)
class Decoding:
    """A captured program that generates tokens: its loop, and facts about its decoder.

    Attributes:
        loop: what the user said.
        attention: of the rows of a prompt.
        image_tokens: rows of the image in a prompt; 0 without.
        image_offset: text tokens of a prompt before the image; 0 without.
        vocabulary: tokens are in [0, vocabulary).
        layers: self-attention sites, in order; site i has the cache slots `key_i` and `value_i`.
        position_shift: position of a generated token less its row.
    """

    loop: DecodeLoop
    attention: Attention
    image_tokens: int
    image_offset: int
    vocabulary: int
    layers: int
    position_shift: int = 0

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise InputModelError(
                f"decoder: found attention {self.attention!r}, "
                f"expected one of {', '.join(get_args(Attention))}"
            )

    @property
    def prompt_range(self) -> tuple[int, int]:
        """Fewest and most text tokens of a prompt, padding included: two follow the image.

        One is a size that tracing would make a special case; such a prompt can be padded.
        """
        return self.image_offset + 2, self.loop.max_prompt

    @property
    def capacity(self) -> int:
        """Rows of a cache that nothing is pruned from."""
        return self.loop.rows(self.image_tokens)
