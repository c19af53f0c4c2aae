"""A program without a purpose whose loop uses every part of the format."""

import numpy as np
import torch
from torch import nn

from optimize.capture.from_module import trace
from optimize.ir.program import Program
from optimize.runtime.loop import (
    Binding,
    Call,
    Destination,
    Input,
    Loop,
    Noise,
    Repeat,
    Signature,
    Slot,
)

BATCH, WIDTH, STEPS = 2, 4, 3


class Outer(nn.Module):
    """Takes the rows of three steps of a table and two kinds of noise, and appends some numbers."""

    def forward(
        self,
        value: torch.Tensor,
        count: torch.Tensor,
        few: torch.Tensor,
        half: torch.Tensor,
        rows: torch.Tensor,
        unit: torch.Tensor,
        bell: torch.Tensor,
        limit: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        after = value + rows.sum() * unit.sum(0) + bell
        count = count + 1
        numbers = count[:, None] * 10 + torch.arange(3)
        lengths = torch.remainder(count, 4)
        half = half + bell[:, 0].to(half.dtype)
        return after, count, few + 1, half, count >= limit, numbers, lengths


class Inner(nn.Module):
    """One row of a table and one draw; appends what it made."""

    def forward(
        self, value: torch.Tensor, row: torch.Tensor, bell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        after = value * row + bell.to(torch.float32) * 0.5
        return after, after.mean(1)


def program() -> Program:
    """Repeats within repeats, ragged results, ranges of steps, and all dtypes of slots."""
    floats = torch.zeros(BATCH, WIDTH)
    whole = torch.zeros(BATCH, dtype=torch.int64)
    outer = {
        "value": floats,
        "count": whole,
        "few": torch.zeros(BATCH, dtype=torch.int32),
        "half": torch.zeros(BATCH, dtype=torch.float16),
        "rows": torch.zeros(STEPS),
        "unit": torch.zeros(STEPS, BATCH, WIDTH),
        "bell": floats,
        "limit": whole,
    }
    outputs = ("value_next", "count_next", "few_next", "half_next", "done", "numbers", "lengths")
    first = trace(Outer(), outer, outputs, BATCH, False)
    inner = {"value": floats, "row": torch.zeros(()), "bell": floats.double()}
    second = trace(Inner(), inner, ("value_next", "mean"), BATCH, False)

    def state(name: str) -> Binding:
        return Binding(source="state", name=name)

    outer_call = Call(
        graph="outer",
        inputs={
            **{name: state(name) for name in ("value", "count", "few", "half")},
            "rows": Binding(source="table", name="coefficients", steps=STEPS),
            "unit": Binding(source="noise", name="unit", steps=STEPS),
            "bell": Binding(source="noise", name="bell"),
            "limit": Binding(source="request", name="limit"),
        },
        outputs={
            **{f"{name}_next": Destination(state=name) for name in ("value", "count", "few")},
            "half_next": Destination(state="half"),
            "done": Destination(state="done"),
            "numbers": Destination(append="numbers", counts="lengths", fill=-7),
            "lengths": Destination(append="lengths"),
        },
    )
    inner_call = Call(
        graph="inner",
        inputs={
            "value": state("value"),
            "row": Binding(source="table", name="coefficients"),
            "bell": Binding(source="noise", name="wide"),
        },
        outputs={"value_next": Destination(state="value"), "mean": Destination(append="mean")},
    )
    within = Repeat(steps=("one", "two", "one"), bodies={"one": (inner_call,), "two": ()})
    names = ("outer",) * 5
    table = np.linspace(0.5, 1.5, 16)
    shape = (BATCH, WIDTH)
    return Program(
        graphs={"outer": first.graph, "inner": second.graph},
        weights={**first.weights, **second.weights},
        loop=Loop(
            slots=(
                Slot(
                    name="value",
                    dtype="float32",
                    shape=shape,
                    initial=Binding(source="noise", name="first"),
                ),
                Slot(
                    name="count",
                    dtype="int64",
                    shape=(BATCH,),
                    initial=Binding(source="request", name="start"),
                    in_place=True,
                ),
                Slot(
                    name="few",
                    dtype="int32",
                    shape=(BATCH,),
                    initial=Binding(source="table", name="start_few"),
                ),
                Slot(name="half", dtype="float16", shape=(BATCH,)),
                Slot(name="done", dtype="bool", shape=(BATCH,)),
            ),
            noise=(
                Noise(name="first", dtype="float32", shape=shape, scale=3.0),
                Noise(name="unit", dtype="float32", shape=shape, distribution="uniform"),
                Noise(name="bell", dtype="float32", shape=shape, scale=0.25),
                Noise(name="wide", dtype="float64", shape=shape, steps=8),
            ),
            body=(
                Repeat(
                    steps=names,
                    bodies={"outer": (outer_call, within)},
                    until="done",
                    stride=STEPS,
                ),
            ),
            results={name: name for name in ("value", "count", "few", "half", "done")},
        ),
        tables={
            "coefficients": table.astype(np.float32),
            "start_few": np.array([[5, -6]], dtype=np.int32),
        },
        signature=Signature(
            inputs=(
                Input(name="start", dtype="int64", shape=(BATCH,), default=0, low=0, high=9),
                Input(name="limit", dtype="int64", shape=(BATCH,), default=4, low=1),
            ),
            dimensions={},
            outputs=(
                *("value", "count", "few", "half", "done"),
                *("numbers", "lengths", "mean"),
            ),
        ),
    )
