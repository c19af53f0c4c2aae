"""The pass cache_regions: rewrites, declines, numerics."""

import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
from optimize.passes.cache_regions import CacheRegions, RegionPlan, active_maps
from optimize.passes.fuse_solver import FuseSolver

REGIONS = CacheRegions(keep_ratio=0.5, warmup=2, max_age=4)


def test_keep_ratio_one_is_the_plain_loop_bit_for_bit(family, captured):
    made, program = captured(family, torch.float32)
    plain = program(seed=1, **made.request())["latent"]
    same = REGIONS.identity()
    assert same.keep_ratio == 1.0
    rewritten = same.rewrite(program).program
    assert any(name.startswith("denoiser_rows") for name in rewritten.graphs)
    assert torch.equal(rewritten(seed=1, **made.request())["latent"], plain)


def test_oracle_holds_on_every_family(family, captured):
    made, program = captured(family, torch.float32)
    assert REGIONS.declines(program) is None
    rewritten = REGIONS.rewrite(program).program
    (result,) = REGIONS.oracles(program, rewritten, made.request())
    assert result.holds, result


class SizesFirst(torch.nn.Module):
    """Reads the batch from the latent before anything else, whose rows are the tokens."""

    def __init__(self):
        super().__init__()
        self.query = torch.nn.Linear(4, 4)

    def forward(self, hidden_states, timestep):
        tokens = hidden_states * (1 + timestep.expand(hidden_states.shape[0])[:, None, None])
        heads = tokens[:, None]
        return torch.nn.functional.scaled_dot_product_attention(self.query(heads), heads, heads)[
            :, 0
        ]


def test_oracle_holds_where_a_size_of_the_latent_is_read():
    inputs = {"hidden_states": torch.randn(2, 16, 4), "timestep": torch.ones(2)}
    program = capture(SizesFirst().eval(), inputs, loop=DenoiseLoop(steps=8))
    rewritten = REGIONS.rewrite(program).program
    (result,) = REGIONS.oracles(program, rewritten, {})
    assert result.holds, result


def test_recomputes_half_of_the_tokens_after_the_warm_up(captured):
    made, program = captured("sd3", torch.float32)
    rewritten = REGIONS.rewrite(program)
    maps = active_maps(rewritten.program, made.request(), seed=0)
    assert [sum(tokens) for tokens in maps] == [24, 24, 12, 12, 12, 12, 12, 12]
    assert rewritten.details["grid"] == [4, 6]
    assert rewritten.details["rows"] == [24, 24, 12, 12, 12, 12, 12, 12]
    assert len(rewritten.sites) == 6


def test_input_program_is_unchanged(captured):
    made, program = captured("dit", torch.float32)
    before = {name: str(graph.graph) for name, graph in program.graphs.items()}
    REGIONS.rewrite(program)
    assert {name: str(graph.graph) for name, graph in program.graphs.items()} == before
    assert program.plan is None


def test_fused_and_unfused_regions_agree_bit_for_bit(captured):
    made, program = captured("sd3", torch.float32)
    regions = REGIONS.rewrite(program).program
    fused = FuseSolver().rewrite(regions).program
    assert set(fused.graphs) == {"step", "step_rows_12"}
    expected = regions(seed=3, **made.request())["latent"]
    assert torch.equal(fused(seed=3, **made.request())["latent"], expected)


def test_guidance_halves_share_the_rows(captured):
    from dataclasses import replace

    made, _ = captured("sd3", torch.float32)
    text = ("encoder_hidden_states", "pooled_projections")
    loop = replace(made.loop(6), guidance_scale=3.0, unconditional=text)
    program = capture(made.module, made.inputs, loop=loop)
    request = made.request()
    request |= {f"negative_{name}": torch.zeros_like(request[name]) for name in text}
    plain = program(seed=1, **request)["latent"]
    rewritten = REGIONS.identity().rewrite(program).program
    assert torch.equal(rewritten(seed=1, **request)["latent"], plain)
    half = REGIONS.rewrite(program).program
    assert REGIONS.oracles(program, half, request)[0].holds
    caches = [slot for slot in half.loop.slots if slot.name.startswith("cache_")]
    assert all(slot.shape[0] == "2*batch" for slot in caches)


def test_samples_of_a_batch_choose_their_own_tokens(captured):
    made, program = captured("sd3", torch.float32)
    rewritten = REGIONS.rewrite(program).program
    ages = rewritten.watch(("age",), seed=0, **made.request())["age"]
    assert any((age[0] != age[1]).any() for age in ages)
    # Sample 0 does not depend on what else is in the batch.
    alone = {name: item[:1] for name, item in made.request().items()}
    single = rewritten(seed=0, **alone)["latent"]
    both = rewritten(seed=0, **made.request())["latent"]
    assert torch.allclose(single[0], both[0], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"warmup": 8}, "none of the 8 steps is a region step"),
        ({"keep_ratio": 0.05, "max_age": 4}, "max_age 4 needs at least 6 of 24 tokens"),
    ],
)
def test_declines_with_a_reason(captured, options, reason):
    _, program = captured("sd3", torch.float32)
    assert reason in (CacheRegions(**options).declines(program) or "")


def test_declines_after_fusion_and_when_applied_twice(captured):
    _, program = captured("sd3", torch.float32)
    fused = FuseSolver().rewrite(program).program
    assert "before fuse_solver" in (REGIONS.declines(fused) or "")
    once = REGIONS.rewrite(program).program
    assert "already caches regions" in (REGIONS.declines(once) or "")


@pytest.mark.parametrize(
    "options",
    [{"keep_ratio": 0.0}, {"keep_ratio": 1.5}, {"warmup": 0}, {"drop_high": 2.0},
     {"starvation": -1.0}, {"metric": "mean"}],
)  # fmt: skip
def test_refuses_options_out_of_range(options):
    with pytest.raises(ValueError, match="expected"):
        CacheRegions(**options)


def test_plan_follows_resets_interval_and_stepped_ratio():
    # warmup 2, last step whole, reset at 4, whole every third region step, fewer rows from step 6.
    plan = RegionPlan(2, 1, (4,), 3, ((0, 0.5), (6, 0.25)), 16)
    rows = [plan.rows(step, 10) for step in range(10)]
    assert rows == [None, None, 8, 8, None, 8, 4, None, 4, None]
