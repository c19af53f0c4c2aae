"""What a user says about filling in masked text, and what capture and passes found out or chose."""

from dataclasses import dataclass
from typing import Literal, get_args

from optimize.ir.decode import Sampling
from optimize.ir.errors import InputModelError

Remasking = Literal["low_confidence", "margin", "entropy", "random", "ancestral"]
"""What decides which masks a call fills in, and which stay: how sure the model is of a token (its
probability, the gap to the second, the negative entropy), chance with fixed numbers per call, or a
coin for each mask, as the reverse process in steps has it."""

TimeScale = Literal["t", "sigma"]
"""What a model takes for the time: the masked share t, or sigma = -log(1 - t)."""

MAX_LENGTH = 2**16
MAX_STEPS = 10_000


@dataclass(frozen=True)
class UnmaskLoop:
    """Describes how masked text is filled in, so that any module from tokens to logits will do.

    Args:
        mask_id: the token of a mask, which text never has; None for the one that the model or its
            tokenizer names.
        length: tokens that are filled in, in [1, 65536].
        block_length: tokens of a block, which divides `length`: blocks are filled in one after the
            other, and later ones are seen as masks. None makes one block of all.
        steps: calls of the model, at least one and as many for each block; None for `length`.
        remasking: which masks a call fills in.
        sampling: how tokens are drawn; None takes the likeliest.
        max_prompt: most tokens of a prompt, which stands before the text; 0 for none at all.
        tokens: the module's argument that takes the tokens, int64 [B, S].
        timestep: the module's argument that takes the time, [B]; None where it takes none. A module
            that turns out not to look at it is captured without.
        time: what the time is.
        shifted: row i of the logits foretells token i + 1, as in models that were autoregressive.
        vocabulary: text has tokens below this only; None for all that have logits, but the mask.
        stop_tokens: the text of an answer ends before the first of them.

    Source: Nie et al. (2025), LLaDA; Ye et al. (2025), Dream; Sahoo et al. (2024), MDLM.
    """

    mask_id: int | None = None
    length: int = 128
    block_length: int | None = None
    steps: int | None = None
    remasking: Remasking = "low_confidence"
    sampling: Sampling | None = None
    max_prompt: int = 512
    tokens: str = "input_ids"
    timestep: str | None = None
    time: TimeScale = "t"
    shifted: bool = False
    vocabulary: int | None = None
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.mask_id is not None:
            _check_count("mask_id", self.mask_id, 0, 2**31 - 1, "the token that stands for a mask")
        _check_count("length", self.length, 1, MAX_LENGTH, "the tokens to fill in")
        _check_count("max_prompt", self.max_prompt, 0, MAX_LENGTH, "the longest prompt")
        if self.block_length is not None:
            _check_count("block_length", self.block_length, 1, self.length, "tokens of a block")
            if self.length % self.block_length:
                raise InputModelError(
                    f"UnmaskLoop: found block_length {self.block_length}, which does not divide "
                    f"length {self.length}; choose one of {_divisors(self.length)}"
                )
        if self.steps is not None:
            _check_count("steps", self.steps, 1, MAX_STEPS, "calls of the model")
        if self.calls % self.blocks:
            raise InputModelError(
                f"UnmaskLoop: found {self.calls} steps for {self.blocks} blocks, expected as many "
                f"for each; choose a multiple of {self.blocks}"
            )
        for name, kinds in (("remasking", Remasking), ("time", TimeScale)):
            if getattr(self, name) not in get_args(kinds):
                raise InputModelError(
                    f"UnmaskLoop: found {name} {getattr(self, name)!r}, expected one of "
                    f"{', '.join(get_args(kinds))}"
                )
        if self.vocabulary is not None:
            _check_count("vocabulary", self.vocabulary, 1, 2**31 - 1, "the tokens of text")
            if self.mask_id is not None and self.mask_id < self.vocabulary:
                raise InputModelError(
                    f"UnmaskLoop: found mask_id {self.mask_id} inside the vocabulary of text, "
                    f"[0, {self.vocabulary}), expected another token; a text with it would be "
                    "filled in where it is not masked"
                )

    @property
    def mask(self) -> int:
        """The token of a mask, once it is known."""
        assert self.mask_id is not None
        return self.mask_id

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.block_length or self.length

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.length // self.block

    @property
    def calls(self) -> int:
        """Most calls of the model."""
        return self.length if self.steps is None else self.steps

    @property
    def calls_per_block(self) -> int:
        """Most calls for a block."""
        return self.calls // self.blocks

    @property
    def order_is_blind(self) -> bool:
        """Whether which masks are filled in does not depend on what the model says."""
        return self.remasking in ("random", "ancestral")


@dataclass(frozen=True)
class FirstHitting:
    """The reverse process followed from one reveal to the next.

    Attributes:
        groups: masks that each call for a block fills in, in order.
        chosen_rows: the vocabulary projection runs on the rows of these masks only.
        extrapolate: predictions within a group are carried on linearly in time from the last two
            calls. Experimental.
    """

    groups: tuple[int, ...]
    chosen_rows: bool = True
    extrapolate: bool = False


@dataclass(frozen=True)
class Commit:
    """Fills in all that is left once the answer is certain.

    Attributes:
        thresholds: mean gaps between the two largest logits that are enough, in logits, while less
            than `breakpoints` of the calls have been made.
        breakpoints: shares of the calls, increasing.
        region: first token of the answer within the text, and how many; None for all that is left.
        masked_only: the mean is over what is still masked in the region, not over all of it.
    """

    thresholds: tuple[float, ...]
    breakpoints: tuple[float, ...]
    region: tuple[int, int] | None = None
    masked_only: bool = False

    def threshold(self, call: int, calls: int) -> float:
        """What is enough at a call, counted from 1."""
        progress = call / calls
        passed = sum(progress >= item for item in self.breakpoints)
        return self.thresholds[passed]


@dataclass(frozen=True)
class Resample:
    """Draws whole texts, and keeps one of them by its energy.

    Attributes:
        candidates: texts drawn at a call.
        window: masked shares between which calls do this, least and greatest.
        temperature: what energies are divided by.
    """

    candidates: int
    window: tuple[float, float]
    temperature: float


@dataclass(frozen=True)
class Unmasking:
    """A captured program that fills in masked text: its loop, facts, and what passes chose.

    Attributes:
        loop: what the user said.
        logits: width of the model's logits.
        timed: whether the model looks at the time.
        first_hitting, commit, resample: what passes made of the loop.
    """

    loop: UnmaskLoop
    logits: int
    timed: bool = False
    first_hitting: FirstHitting | None = None
    commit: Commit | None = None
    resample: Resample | None = None

    @property
    def vocabulary(self) -> int:
        """Tokens of text are in [0, vocabulary)."""
        return self.logits if self.loop.vocabulary is None else self.loop.vocabulary

    @property
    def groups(self) -> tuple[int, ...]:
        """Masks that the calls for a block fill in; of coins the mean would be as many."""
        if self.first_hitting is not None:
            return self.first_hitting.groups
        return even_groups(self.loop.block, self.loop.calls_per_block)

    @property
    def calls_per_block(self) -> int:
        """Most calls for a block, with what passes chose."""
        return len(self.groups)


def even_groups(count: int, groups: int) -> tuple[int, ...]:
    """A count split as evenly as can be, the larger parts first."""
    whole, more = divmod(count, groups)
    return tuple(whole + (place < more) for place in range(groups))


def _check_count(name: str, found: object, low: int, high: int, what: str) -> None:
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise InputModelError(
            f"UnmaskLoop: found {name} {found!r}, expected {what}, a whole number in "
            f"[{low}, {high}]"
        )


def _divisors(count: int) -> str:
    found = [str(item) for item in range(1, count + 1) if count % item == 0]
    return ", ".join(found[-8:])
