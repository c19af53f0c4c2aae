"""The pipeline: each stage stops what it should, and the record says what happened."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pytest
import torch

from optimize.ir.errors import NumericsError, PassDeclined, PassError
from optimize.ir.printing import program_text
from optimize.ir.program import Program
from optimize.measure.cost import program_flops
from optimize.passes.pass_base import Declined, Numerics, OracleResult, Pass, Rewritten
from optimize.passes.pipeline import Entry, results_error, results_match, run_passes

aten = torch.ops.aten


def damped(program: Program, factor: float) -> Program:
    """Multiplies the predictions by a factor in the solver graph."""
    graph = program.graphs["solver"].copied()
    node = graph.node("prediction")
    with graph.graph.inserting_before(next(iter(node.users))):
        new = graph.graph.call_function(aten.mul.Tensor, (node, factor))
    new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    graph.module.recompile()
    return replace(program, graphs={**program.graphs, "solver": graph})


@dataclass(frozen=True)
class Damp(Pass):
    """Damps the predictions; each option breaks one promise of a pass."""

    numerics: ClassVar[Numerics] = "approximate"

    factor: float = 0.9
    reason: str | None = None
    site: str | None = "solver"
    breaks: bool = False
    raises: bool = False
    late_reason: str | None = None
    identity_factor: float = 1.0
    oracle: float = 0.0

    def declines(self, program: Program) -> str | None:
        return self.reason

    def rewrite(self, program: Program) -> Rewritten:
        if self.raises:
            raise KeyError("surprise")
        if self.late_reason is not None:
            raise Declined(self.late_reason)
        after = damped(program, self.factor)
        if self.breaks:
            del after.graphs["solver"].graph.output_node().prev.meta["val"]
        return Rewritten(after, (self.site,) if self.site else (), {"factor": self.factor})

    def identity(self) -> Self:
        return replace(self, factor=self.identity_factor)

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        assert set(request) == {"shift"}
        return [OracleResult("halves agree", self.oracle, 0.5)]


@dataclass(frozen=True)
class Exact(Pass):
    """Claims to be exact."""

    numerics: ClassVar[Numerics] = "exact"

    factor: float = 1.0

    def declines(self, program: Program) -> str | None:
        return None

    def rewrite(self, program: Program) -> Rewritten:
        return Rewritten(damped(program, self.factor), ("solver",))

    def identity(self) -> Self:
        return replace(self, factor=1.0)


Damp.name, Exact.name = "damp", "exact"


def test_record_says_what_the_pass_did(toy_program: Program) -> None:
    text = program_text(toy_program)
    after = run_passes(toy_program, [Damp()])
    (record,) = after.history
    assert (record.name, record.sites, record.declined) == ("damp", ("solver",), None)
    assert record.options["factor"] == 0.9
    assert record.flops_before == program_flops(toy_program)
    assert record.flops_after == program_flops(after) == record.flops_before + 4 * 48
    assert record.oracles == {"halves agree": 0.0, "identity": 0.0}
    assert record.details["factor"] == 0.9 and 10 < record.details["psnr"] < 60
    assert record.error is not None and 0.01 < record.error < 0.2
    assert record.seconds > 0
    assert toy_program.history == () and program_text(toy_program) == text


def test_error_is_against_the_program_before_the_first_pass(toy_program: Program) -> None:
    request = {"seed": 0, "shift": torch.tensor([0.5, -0.5])}
    after = run_passes(toy_program, [Damp(), Damp(factor=0.8)], calibration=[request])
    once, twice = (record.error for record in after.history)
    reference, result = toy_program(**request)["latent"], after(**request)["latent"]
    assert twice == pytest.approx(
        float((result.double() - reference.double()).norm() / reference.double().norm())
    )
    assert once is not None and twice is not None and twice > once


def test_required_pass_that_declines_is_an_error(toy_program: Program) -> None:
    with pytest.raises(PassDeclined) as caught:
        run_passes(toy_program, [Damp(reason="found no loop, expected one")])
    assert str(caught.value) == (
        "damp: found no loop, expected one; remove it from the recipe, or mark it `optional: true`"
    )
    with pytest.raises(PassDeclined, match="damp: found no site to rewrite"):
        run_passes(toy_program, [Damp(site=None)])


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Damp(reason="because"), "because"),
        (Damp(late_reason="too late"), "too late"),
        (Damp(site=None), "found no site to rewrite"),
    ],
)
def test_optional_pass_that_declines_is_recorded(
    toy_program: Program, item: Pass, reason: str
) -> None:
    after = run_passes(toy_program, [Entry(item, optional=True), Damp()])
    first, second = after.history
    assert first.declined == reason and first.sites == ()
    assert first.flops_before == first.flops_after == second.flops_before
    assert second.declined is None


def test_broken_graph_names_the_pass(toy_program: Program) -> None:
    with pytest.raises(PassError, match="damp: left a program that breaks its specification"):
        run_passes(toy_program, [Damp(breaks=True)], verify=False)


def test_unforeseen_exception_names_the_pass_and_those_before(toy_program: Program) -> None:
    with pytest.raises(PassError) as caught:
        run_passes(toy_program, [Exact(), Damp(raises=True)])
    assert str(caught.value) == "damp: failed with KeyError: 'surprise'; passes before it: exact"
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("measured", [0.6, float("nan")])
def test_oracle_that_fails_stops(toy_program: Program, measured: float) -> None:
    with pytest.raises(NumericsError, match="damp: oracle 'halves agree': found .*at most 0.5"):
        run_passes(toy_program, [Damp(oracle=measured)])


def test_identity_that_changes_something_stops(toy_program: Program) -> None:
    with pytest.raises(NumericsError, match="damp: found relative change .* at its identity"):
        run_passes(toy_program, [Damp(identity_factor=1.0 + 1e-6)])


def test_exact_pass_must_be_exact(toy_program: Program) -> None:
    run_passes(toy_program, [Damp(), Exact()])
    with pytest.raises(NumericsError, match="expected none from an exact pass"):
        run_passes(toy_program, [Exact(factor=1.0 + 1e-6)])


def test_results_that_are_not_finite_stop(toy_program: Program) -> None:
    with pytest.raises(NumericsError, match="after damp: found NaN or Inf in result 'latent'"):
        run_passes(toy_program, [Damp(factor=float("inf"))])


def test_without_verification_nothing_runs(toy_program: Program) -> None:
    after = run_passes(toy_program, [Damp(oracle=9.0, identity_factor=2.0)], verify=False)
    assert after.history[0].error is None and after.history[0].oracles == {}


def test_payment_is_reported_and_optional_losses_are_dropped(toy_program: Program) -> None:
    seconds = iter([1.0, 0.5, 0.8, 0.9])
    after = run_passes(
        toy_program,
        [Damp(), Entry(Damp(factor=0.8), optional=True), Damp(factor=0.7)],
        measure=lambda program: next(seconds),
    )
    faster, dropped, slower = after.history
    assert faster.details["seconds_per_request"] == {"before": 1.0, "after": 0.5}
    assert faster.details["pays"] is True
    assert dropped.declined == (
        "does not pay on the measured target: 0.5 s per request before, 0.8 s after"
    )
    assert slower.details["seconds_per_request"] == {"before": 0.5, "after": 0.9}
    assert slower.details["pays"] is False and slower.declined is None
    assert program_flops(after) == program_flops(toy_program) + 2 * 4 * 48


def test_progress_counts_up_to_the_total(toy_program: Program) -> None:
    told: list[tuple[str, int, int]] = []
    run_passes(toy_program, [Damp(), Exact()], progress=lambda *item: told.append(item))
    assert [name for name, _, _ in told] == [
        "reference", "damp: rewrite", "damp: check", "damp: oracles", "damp: error",
        "exact: rewrite", "exact: check", "exact: oracles", "exact: error",
    ]  # fmt: skip
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert all(done < total == 8 for _, done, total in told)


def test_whole_number_results_count_differences() -> None:
    tokens = torch.tensor([1, 2, 3, 4]).numpy()
    other: dict[str, Any] = {"tokens": torch.tensor([1, 2, 3, 9]).numpy()}
    assert results_error([other], [{"tokens": tokens}]) == 0.25


def tokens(*rows: list[int]) -> dict[str, Any]:
    return {"tokens": torch.tensor(rows).numpy()}


@pytest.mark.parametrize(
    ("ours", "theirs", "share"),
    [
        (tokens([1, 2]), tokens([1, 2, 3, 4]), 0.5),
        (tokens([1, 2, 3, 4]), tokens([1, 2]), 0.5),
        (tokens([1, 9], [5, 6]), tokens([1, 2, 3], [5, 6, 7]), 0.5),
        (tokens([1, 2]), tokens([1, 2]), 1.0),
    ],
    ids=["shorter", "longer", "batch", "equal"],
)
def test_answers_may_end_at_different_steps(
    ours: dict[str, Any], theirs: dict[str, Any], share: float
) -> None:
    assert results_match([ours], [theirs]) == share
    assert results_error([ours], [theirs]) == 1 - share


def test_answers_are_counted_over_all_requests() -> None:
    ours, theirs = [tokens([1]), tokens([1, 2, 3])], [tokens([2]), tokens([1, 2, 3])]
    assert results_match(ours, theirs) == 0.75
    assert results_match([{"x": torch.ones(2).numpy()}], [{"x": torch.ones(2).numpy()}]) is None


def test_only_the_length_of_answers_may_change() -> None:
    with pytest.raises(NumericsError, match=r"found shape \[2, 1\], expected \[1, 1\]"):
        results_error([tokens([1], [2])], [tokens([1])])
    floats = [{"x": torch.zeros(1, size).numpy()} for size in (2, 3)]
    with pytest.raises(NumericsError, match=r"found shape \[1, 2\], expected \[1, 3\]"):
        results_error(floats[:1], floats[1:])


def test_results_of_another_shape_stop() -> None:
    with pytest.raises(NumericsError, match=r"found shape \[3\], expected \[4\]"):
        results_error([{"x": torch.zeros(3).numpy()}], [{"x": torch.ones(4).numpy()}])
