import pytest

from optimize.gate.costs import cost_checks
from optimize.gate.facts import Facts
from optimize.gate.policy import Policy

NUMBERS = {
    "flops": 1e9,
    "bytes": 1e8,
    "engine_calls": 20.0,
    "nodes": 100.0,
    "weight_bytes": 4e6,
    "duplicate_weight_bytes": 0.0,
    "kernel_registers[tile_attention, sm_90]": 96.0,
    "kernel_spill_bytes[tile_attention, sm_90]": 0.0,
}
BASE = Facts(
    numbers=NUMBERS,
    ops={"Attention": 4, "MatMul": 8, "com.microsoft.RotaryEmbedding": 2, "Add": 10},
    sites={"cache_regions": 4, "fuse_solver": 1},
    quality={"psnr": 30.0, "relative_error": 0.02},
    budget={"psnr": 24.0},
    signature="s",
    source="g",
)


def checks(policy=None, **changes):
    return cost_checks(BASE.model_copy(update=changes), BASE, policy or Policy())


def messages(found, outcome="fail"):
    return [check.message for check in found if check.outcome == outcome and check.gates]


def numbers(**changes):
    return {**NUMBERS, **changes}


def test_the_same_facts_pass():
    assert messages(checks()) == []
    assert {check.outcome for check in checks()} == {"pass"}


def test_a_pass_that_stopped_matching_fails():
    found = checks(
        sites={"fuse_solver": 1}, declined={"cache_regions": "no attention over a token axis"}
    )
    assert messages(found) == [
        "pass cache_regions: 0 sites, baseline 4; it declined: no attention over a token axis; "
        "if that is meant, `allow: [cache_regions]`"
    ]
    assert messages(checks(Policy(allow=("cache_regions",)), sites={"fuse_solver": 1})) == []


def test_a_pass_with_fewer_sites_fails():
    found = checks(sites={"cache_regions": 3, "fuse_solver": 1})
    assert messages(found) == [
        "pass cache_regions: 3 sites, baseline 4; it stopped matching; if that is meant, "
        "`allow: [cache_regions]`"
    ]


def test_an_op_that_fell_back_fails():
    found = checks(
        ops={"Attention": 3, "MatMul": 10, "Softmax": 1, "com.microsoft.RotaryEmbedding": 2},
        numbers=numbers(nodes=100.0),
    )
    assert messages(found) == [
        "op Attention: 3 nodes, baseline 4: fell back to its parts; if that is meant, name it in "
        "`allow`"
    ]
    domain = checks(ops={"Attention": 4, "MatMul": 8, "Add": 22}, numbers=numbers(nodes=100.0))
    assert "com.microsoft.RotaryEmbedding: 0 nodes, baseline 2" in messages(domain)[0]


def test_fewer_attentions_in_a_smaller_graph_are_no_fallback():
    found = checks(
        ops={"Attention": 3, "MatMul": 6, "com.microsoft.RotaryEmbedding": 2},
        numbers=numbers(nodes=80.0),
    )
    assert messages(found) == []


def test_a_kernel_that_spills_fails():
    found = checks(numbers=numbers(**{"kernel_spill_bytes[tile_attention, sm_90]": 64.0}))
    assert messages(found) == [
        "kernel_spill_bytes[tile_attention, sm_90]: 64 B, baseline 0 B; at most 0 B is allowed"
    ]


def test_a_new_kernel_that_spills_fails_although_the_baseline_has_none():
    found = checks(numbers=numbers(**{"kernel_spill_bytes[new, sm_90]": 8.0}))
    assert messages(found) == [
        "kernel_spill_bytes[new, sm_90]: 8 B; the baseline does not say; a kernel must not spill"
    ]


def test_more_registers_fail():
    found = checks(numbers=numbers(**{"kernel_registers[tile_attention, sm_90]": 128.0}))
    assert messages(found) == [
        "kernel_registers[tile_attention, sm_90]: 128, baseline 96 (+33.33%); at most 96 is allowed"
    ]


def test_a_weight_stored_twice_fails():
    found = checks(numbers=numbers(weight_bytes=4.4e6, duplicate_weight_bytes=4e5))
    assert messages(found) == [
        "weight_bytes: 4.4 MB, baseline 4 MB (+10.00%); at most 4 MB is allowed",
        "duplicate_weight_bytes: 400,000 B, baseline 0 B; at most 0 B is allowed",
    ]


def test_a_quality_drop_of_half_the_budget_fails():
    # From 30 dB, which uses half of the error that 24 dB allows, to all but all of it.
    found = checks(quality={"psnr": 24.01, "relative_error": 0.04})
    assert messages(found) == [
        "quality psnr: 24.01, baseline 30, budget 24: uses 100% of it, baseline 50%; at most 25% "
        "of the budget more is allowed"
    ]


def test_quality_over_the_budget_fails():
    found = checks(Policy(quality=1.0), quality={"psnr": 20.0, "relative_error": 0.04})
    assert messages(found) == [
        "quality psnr: 20, baseline 30, budget 24: uses 158% of it, baseline 50%; over the budget"
    ]


@pytest.mark.parametrize(("error", "fails"), [(0.021, False), (0.03, True)])
def test_without_a_budget_the_baselines_error_is_the_measure(error, fails):
    base = BASE.model_copy(update={"budget": {}, "quality": {"relative_error": 0.02}})
    ours = base.model_copy(update={"quality": {"relative_error": error}})
    assert bool(messages(cost_checks(ours, base, Policy()))) == fails


def test_tokens_that_no_longer_match_fail_a_budget_of_one():
    base = BASE.model_copy(update={"budget": {"token_match": 1.0}, "quality": {"token_match": 1.0}})
    ours = base.model_copy(update={"quality": {"token_match": 0.99}})
    assert "over the budget" in messages(cost_checks(ours, base, Policy()))[0]
    assert messages(cost_checks(base, base, Policy())) == []


def test_a_result_equal_to_the_reference_is_the_best():
    # Equal results have no finite ratio, so the report leaves it out.
    base = BASE.model_copy(update={"quality": {"relative_error": 0.0}})
    assert messages(cost_checks(base, BASE, Policy())) == []


def test_speed_does_not_make_up_for_quality():
    found = checks(numbers=numbers(flops=1e8), quality={"psnr": 10.0})
    assert any("over the budget" in text for text in messages(found))


def test_a_metric_that_is_missing_fails():
    found = checks(numbers={name: value for name, value in NUMBERS.items() if name != "flops"})
    assert messages(found) == ["flops: found none, expected at most 1 GFLOP as in the baseline"]


def test_an_ignored_metric_is_reported_only():
    found = checks(Policy(ignore=("flops",)), numbers=numbers(flops=2e9))
    assert messages(found) == []
    assert [check.outcome for check in found if check.metric == "flops"] == ["fail"]


def test_growth_within_the_limit_passes():
    policy = Policy(limits={"flops": 0.1})
    assert messages(checks(policy, numbers=numbers(flops=1.09e9))) == []
    assert len(messages(checks(policy, numbers=numbers(flops=1.11e9)))) == 1
