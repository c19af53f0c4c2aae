"""How graphs are called, as data: the part of a program that no engine can hold.

A `Loop` has state slots and a body of `Call`s and `Repeat`s. A call's inputs come from a request
field, a state slot, the current row of a table, or noise; its outputs go to state slots or are
appended to a result. Nothing is computed here: every number is made by a graph.

    Loop(
        slots=(Slot(name="latent", dtype="float32", shape=("batch", 1, 32, 32),
                    initial=Binding(source="noise", name="latent")),),
        noise=(Noise(name="latent", dtype="float32", shape=("batch", 1, 32, 32)),),
        body=(Repeat(steps=("step",) * 8, bodies={"step": (Call(
            graph="step",
            inputs={"latent": Binding(source="state", name="latent"),
                    "timestep": Binding(source="table", name="timestep")},
            outputs={"latent": Destination(state="latent")}),)}),),
        results={"latent": "latent"})
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Identifier = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")
]
"""Names of graphs, slots, tables, inputs and outputs."""

Dimension = (
    Annotated[int, Field(ge=0, le=2**31)]
    | Annotated[str, Field(max_length=200, pattern=r"^([1-9]\d{0,5}\*)?[A-Za-z_][A-Za-z0-9_]*$")]
)
"""A size, or one that a request decides: its name, or a multiple of it ("batch", "2*batch")."""

DType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "bool"]


STEP_RANGES = "step_ranges"
"""The feature of loops whose calls take the rows of several steps."""
RAGGED_RESULTS = "ragged_results"
"""The feature of loops whose calls append a number of elements that differs by sample."""
UNIFORM_NOISE = "uniform_noise"
"""The feature of loops that draw uniform numbers."""
TEXT_FIELDS = "text_fields"
"""The feature of requests with a field that excludes a value, or that one number fills."""


class Data(BaseModel):
    """Base of everything stored in a manifest: strict, frozen, unknown keys refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Binding(Data):
    """Where a value comes from; `table` means the row of the innermost loop's current step.

    `steps`: for a table or noise, the rows or draws of this many steps from the current one on,
    stacked in a first dimension of their own; None means one without that dimension.
    """

    source: Literal["request", "state", "table", "noise"]
    name: Identifier
    steps: int | None = Field(default=None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _steps_of_what_has_steps(self) -> "Binding":
        if self.steps is not None and self.source not in ("table", "noise"):
            raise ValueError(f"{self.source} {self.name!r} has `steps`, which it does not have")
        return self


class Destination(Data):
    """Where an output goes: replaces a state slot, or is appended to a result.

    The parts [B, ...] of an appended result come back as [B, parts, ...].

    `counts`: another output of the call, [B] int64. Of the part [B, S, ...] the first counts[b]
    elements of sample b are appended; the result comes back as [B, longest, ...].
    `fill`: what stands behind the elements of a sample that has fewer than the longest.
    """

    state: Identifier | None = None
    append: Identifier | None = None
    counts: Identifier | None = None
    fill: int = 0

    @model_validator(mode="after")
    def _exactly_one(self) -> "Destination":
        if (self.state is None) == (self.append is None):
            raise ValueError("a destination has exactly one of `state` and `append`")
        if self.append is None and self.counts is not None:
            raise ValueError("a destination that is a state slot has no `counts`")
        return self


class Slot(Data):
    """A value kept between calls. Without `initial` it starts as zeros.

    `in_place`: the graphs that write the slot read it only in the node that updates it, so an
    engine may give input and output the same memory.
    """

    name: Identifier
    dtype: DType
    shape: tuple[Dimension, ...]
    initial: Binding | None = None
    in_place: bool = False

    @model_validator(mode="after")
    def _initial_from_outside(self) -> "Slot":
        if self.initial is not None and self.initial.source == "state":
            raise ValueError(
                f"slot {self.name!r} starts from another slot; bind both to the same source"
            )
        return self


class Noise(Data):
    """Random numbers times `scale`, drawn anew for each step from (seed, name, step).

    Standard normal ones, or uniform ones in (0, 1).

    A request may give the array itself under the same name; it is then used as it is: the same at
    every step or, with `steps`, an array [steps, *shape] with one draw per step.
    """

    name: Identifier
    dtype: DType
    shape: tuple[Dimension, ...]
    scale: float = 1.0
    steps: int | None = Field(default=None, ge=1, le=1_000_000)
    distribution: Literal["normal", "uniform"] = "normal"


class Call(Data):
    """One engine call."""

    graph: Identifier
    inputs: dict[Identifier, Binding]
    outputs: dict[Identifier, Destination]

    @model_validator(mode="after")
    def _counts_are_outputs(self) -> "Call":
        for name, to in self.outputs.items():
            if to.counts is not None and to.counts not in self.outputs:
                raise ValueError(
                    f"output {name!r} counts its elements by {to.counts!r}, which is not among the "
                    f"outputs {sorted(self.outputs)}"
                )
        return self


class Repeat(Data):
    """Runs one of `bodies` per step, in the order `steps` names them.

    `until` names a boolean slot read after each step; the loop ends when all its elements are true.
    `stride`: how many rows of the tables, and draws of the noise, one step goes on by.
    """

    steps: tuple[Identifier, ...] = Field(max_length=1_000_000)
    bodies: dict[Identifier, tuple["Item", ...]]
    until: Identifier | None = None
    stride: int = Field(default=1, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _known_bodies(self) -> "Repeat":
        unknown = sorted(set(self.steps) - set(self.bodies))
        if unknown:
            raise ValueError(f"steps name unknown bodies {unknown}, known: {sorted(self.bodies)}")
        return self


def _kind(item: Any) -> str:
    """Told by its fields, so that an error is about the item meant, not about both kinds."""
    repeats = "steps" in item if isinstance(item, dict) else isinstance(item, Repeat)
    return "repeat" if repeats else "call"


Item = Annotated[
    Annotated[Call, Tag("call")] | Annotated[Repeat, Tag("repeat")], Discriminator(_kind)
]
"""A part of a loop's body."""


class Loop(Data):
    """Slots, noise, body, and which slot is returned under which result name."""

    slots: tuple[Slot, ...]
    noise: tuple[Noise, ...] = ()
    body: tuple[Item, ...]
    results: dict[Identifier, Identifier]


class Input(Data):
    """A request field: conditioning, guidance scale, initial latent.

    `low` and `high` bound the values (inclusive) where the field has a range; `at_most` names a
    size of the request that they may not exceed. `excluded` is a value within the range that is
    none of the field's, such as the token of a mask in a prompt. `default` fills a field of any
    shape.
    """

    name: Identifier
    dtype: DType
    shape: tuple[Dimension, ...]
    default: float | int | None = None
    low: float | None = None
    high: float | None = None
    at_most: Identifier | None = None
    excluded: int | None = None


class Signature(Data):
    """What a request may contain and what it returns.

    `dimensions` gives the allowed range (low, high) of each named size.
    """

    inputs: tuple[Input, ...]
    dimensions: dict[Identifier, tuple[int, int]]
    outputs: tuple[Identifier, ...]


def size_of(dimension: int | str, sizes: dict[str, int]) -> int:
    """The size of a dimension, given the named sizes of a request."""
    if isinstance(dimension, int):
        return dimension
    factor, _, name = dimension.rpartition("*")
    return int(factor or 1) * sizes[name]


def features(loop: Loop, signature: Signature) -> tuple[str, ...]:
    """What a reader must know to run a loop, beyond the first version of the format."""
    fields = signature.inputs
    bound = [binding for call in calls(loop.body) for binding in call.inputs.values()]
    ranges = (
        any(binding.steps is not None for binding in bound)
        or any(noise.steps is not None for noise in loop.noise)
        or any(item.stride != 1 for item in repeats(loop.body))
    )
    written = [to for call in calls(loop.body) for to in call.outputs.values()]
    needed = {
        STEP_RANGES: ranges,
        RAGGED_RESULTS: any(to.counts is not None for to in written),
        UNIFORM_NOISE: any(noise.distribution == "uniform" for noise in loop.noise),
        TEXT_FIELDS: any(
            item.excluded is not None or (item.default is not None and len(item.shape) > 1)
            for item in fields
        ),
    }
    return tuple(name for name, is_needed in needed.items() if is_needed)


def repeats(body: tuple[Call | Repeat, ...]) -> list[Repeat]:
    """Every repeat of a body, inner ones after the one that holds them."""
    found: list[Repeat] = []
    for item in body:
        if isinstance(item, Repeat):
            found.append(item)
            for inner in item.bodies.values():
                found.extend(repeats(inner))
    return found


def appended_results(loop: Loop) -> tuple[str, ...]:
    """The results that grow while the loop runs, in the order of their first calls."""
    made = [to.append for call in calls(loop.body) for to in call.outputs.values()]
    return tuple(dict.fromkeys(name for name in made if name is not None))


def calls(body: tuple[Call | Repeat, ...]) -> list[Call]:
    """Every call of a body, in order, each once."""
    found: list[Call] = []
    for item in body:
        if isinstance(item, Call):
            found.append(item)
        else:
            for inner in item.bodies.values():
                found.extend(calls(inner))
    return found
