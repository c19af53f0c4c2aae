"""Calibration requests: from the recipe, the example inputs, the defaults, or drawn by seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from optimize.ir.program import Program
from optimize.passes.calibration import Calibration, requests
from optimize.runtime.errors import RuntimeInputError
from optimize.runtime.loop import Input
from tests.passes.tiny_llava import llava_program


def with_input(program: Program, item: Input) -> Program:
    signature = program.signature.model_copy(update={"inputs": (*program.signature.inputs, item)})
    return replace(program, signature=signature)


def test_draws_what_nobody_gives(toy_program: Program) -> None:
    first, second = requests(toy_program, Calibration(samples=2, seed=5))
    assert (first["seed"], second["seed"]) == (5, 6)
    assert first["shift"].shape == (1,) and first["shift"].dtype == np.float32
    assert first["shift"] != second["shift"]
    assert np.array_equal(first["shift"], requests(toy_program, Calibration(seed=5))[0]["shift"])


def test_example_inputs_give_values_and_sizes(toy_program: Program) -> None:
    program = with_input(
        toy_program, Input(name="label", dtype="int64", shape=("batch",), low=0, high=9)
    )
    (request,) = requests(program, examples={"shift": torch.zeros(3), "other": None})
    assert np.array_equal(request["shift"], np.zeros(3))
    assert request["label"].shape == (3,)
    assert ((request["label"] >= 0) & (request["label"] <= 9)).all()


def test_the_recipe_comes_first(toy_program: Program) -> None:
    calibration = Calibration(inputs={"shift": [1.0, 2.0]})
    (request,) = requests(toy_program, calibration, {"shift": torch.zeros(3)})
    assert request["shift"] == [1.0, 2.0]
    assert toy_program(**request)["latent"].shape == (2, 6, 4)


def test_defaults_stay_with_the_program(toy_program: Program) -> None:
    item = Input(name="scale", dtype="float32", shape=(), default=2.0)
    assert "scale" not in requests(with_input(toy_program, item))[0]


def test_unknown_and_ill_fitting_fields_are_named(toy_program: Program) -> None:
    with pytest.raises(RuntimeInputError, match="calibration: found unknown field 'shfit'"):
        requests(toy_program, Calibration(inputs={"shfit": 1.0}))
    with pytest.raises(RuntimeInputError, match="shift: found shape"):
        requests(toy_program, Calibration(inputs={"shift": [[1.0]]}))


def test_prompts_are_drawn_from_the_vocabulary_and_answers_short() -> None:
    program = llava_program()
    (request,) = requests(program)
    ids = request["input_ids"]
    assert ids.shape == (1, 20) and ids.dtype == np.int64
    assert ids.min() >= 0 and ids.max() < 96 and len(set(ids[0].tolist())) > 10
    assert request["pixel_values"].shape == (1, 3, 24, 24) and request["pixel_values"].std() > 0.5
    assert request["max_new_tokens"] == 8 and "lengths" not in request
    assert program(**request)["tokens"].shape == (1, 8)


def test_prompts_can_be_given() -> None:
    inputs = {"input_ids": [[5, 6, 7, 8, 9]], "max_new_tokens": 3}
    (request,) = requests(llava_program(), Calibration(inputs=inputs))
    assert llava_program()(**request)["tokens"].shape == (1, 3)
    examples = {"input_ids": torch.ones(2, 6, dtype=torch.int64)}
    (request,) = requests(llava_program(), examples=examples)
    assert request["pixel_values"].shape == (2, 3, 24, 24)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"samples": 65}, {"seed": -1}])
def test_ranges(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected a number in"):
        Calibration(**wrong)  # type: ignore[arg-type]
