"""The pieces of a Chimera draft, its graph, and its file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import fx
from torch.func import functional_call
from torch.nn.functional import scaled_dot_product_attention

from optimize.ir.builder import Builder
from optimize.ir.recording import record
from optimize.passes.drafts.chimera import Chimera, ChimeraConfig, token_windows
from optimize.passes.drafts.chimera_file import load_chimera, save_chimera

WIDTH, VOCABULARY = 32, 50
KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "rank 0": {"head_rank": 0},
    "rank 8": {"head_rank": 8},
    "residual": {"residual_heads": True},
    "residual of rank 8": {"residual_heads": True, "head_rank": 8},
}


def draft(dtype: torch.dtype = torch.float32, random: bool = True, **options: Any) -> Chimera:
    config = ChimeraConfig(WIDTH, VOCABULARY, mlp_width=48, heads=3, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tables = torch.randn(2, VOCABULARY, WIDTH, dtype=dtype)
        chimera = Chimera(config, tables[0], tables[1])
        for parameter in chimera.parameters() if random else []:
            torch.nn.init.normal_(parameter, std=0.2)
    return chimera.eval()


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_heads_are_at_first_the_sum_of_the_targets_logits(options: dict[str, Any]) -> None:
    chimera = draft(torch.float64, random=False, **options)
    hidden, fused = rows(2, 2, 5, WIDTH, dtype=torch.float64)
    for depth in range(3):
        found = chimera.logits(hidden, fused, depth)
        expected = hidden @ chimera.lm_head.T + fused @ chimera.lm_head.T
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        twice = chimera.logits(hidden, hidden, depth)
        base = hidden @ chimera.lm_head.T
        torch.testing.assert_close(twice, 2 * base, rtol=0, atol=1e-10)
        assert torch.equal(twice.argmax(-1), base.argmax(-1))


def test_the_trigram_block_is_at_first_linear() -> None:
    chimera = draft(random=False)
    embedded = rows(2, 5, 3 * WIDTH)
    torch.testing.assert_close(chimera.trigram(embedded), embedded @ chimera.trigram_out.T)


def test_trigrams_are_of_three_tokens() -> None:
    tokens = torch.tensor([[7, 8, 9, 10]])
    expected = [[7, 7, 7], [7, 7, 8], [7, 8, 9], [8, 9, 10]]
    assert token_windows(tokens)[0].tolist() == expected
    chimera = draft()
    tokens = torch.arange(12)[None]
    before = chimera.trigram(chimera.embed(token_windows(tokens)))
    changed = tokens.clone()
    changed[0, 4] = 40
    after = chimera.trigram(chimera.embed(token_windows(changed)))
    moved = (before != after).any(-1)[0].nonzero().flatten()
    assert moved.tolist() == [4, 5, 6]


def test_scores_depend_on_distances_alone() -> None:
    chimera = draft(torch.float64)
    hidden, trigrams = rows(2, 1, 6, WIDTH, dtype=torch.float64)

    def fused(shift: int) -> torch.Tensor:
        places = torch.arange(6)[None] + shift
        keys, values = chimera.context(hidden, places)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            return scaled_dot_product_attention(query, key, value)

        return chimera.fuse(trigrams, places + 6, attend)

    torch.testing.assert_close(fused(0), fused(90), rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_pieces_become_nodes_of_a_graph_with_any_batch(options: dict[str, Any]) -> None:
    chimera = draft(**options)
    weights = {**dict(chimera.named_parameters()), "lm_head": chimera.lm_head}

    def step(
        embedded: torch.Tensor, hidden: torch.Tensor, positions: torch.Tensor, *given: torch.Tensor
    ) -> torch.Tensor:
        named = dict(zip(weights, given, strict=True))

        def call(piece: str, *arguments: Any) -> Any:
            return functional_call(chimera, named, (piece, *arguments))

        keys, values = call("context", hidden, positions)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            return scaled_dot_product_attention(query, key, value)

        trigrams = call("trigram", embedded)
        attended = attend(*call("project", trigrams, positions + 4))
        fused = call("finish", trigrams, attended)
        result: torch.Tensor = call("logits", hidden, fused, 1)
        return result

    def request(batch: int) -> tuple[torch.Tensor, ...]:
        positions = torch.arange(4).expand(batch, 4)
        return rows(batch, 4, 3 * WIDTH), rows(batch, 4, WIDTH, seed=2), positions

    graph = _recorded(step, request(2), weights)
    for batch in (1, 3):
        found = graph(*request(batch), *weights.values())
        torch.testing.assert_close(found, step(*request(batch), *weights.values()))


class _Inputs(torch.nn.Module):
    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(item + 1 for item in given)


def _recorded(
    function: Any, examples: tuple[torch.Tensor, ...], weights: dict[str, torch.Tensor]
) -> fx.GraphModule:
    """What a function of inputs with a symbolic batch, and of weights, computes, as a graph."""
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"given": tuple({0: batch} for _ in examples)}
    program = torch.export.export(_Inputs(), examples, dynamic_shapes=shapes)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    builder = Builder(values[0].fake_mode)
    inputs = [builder.input(f"input_{place}", value) for place, value in enumerate(values)]
    given = [
        builder.weight(name, builder.fake(value.shape, value.dtype))
        for name, value in weights.items()
    ]
    builder.graph.output(record(builder, function, *inputs, *given))
    return fx.GraphModule({}, builder.graph)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_file_gives_the_draft_back(tmp_path: Path, options: dict[str, Any]) -> None:
    chimera = draft(**options)
    path = tmp_path / "draft.safetensors"
    save_chimera(chimera, path)
    found = load_chimera(path, chimera.embedding, chimera.lm_head)
    assert found.config == chimera.config
    for name, value in chimera.state_dict().items():
        assert torch.equal(found.state_dict()[name], value.half().float())
    assert not {"embedding", "lm_head"} & set(found.state_dict())


def test_a_file_of_another_target_is_refused(tmp_path: Path) -> None:
    chimera = draft()
    path = tmp_path / "draft.safetensors"
    save_chimera(chimera, path)
    with pytest.raises(ValueError, match="found a draft of the target .* fit a draft to this"):
        load_chimera(path, chimera.embedding, chimera.lm_head + 1)


def test_a_file_that_is_no_draft_is_refused(tmp_path: Path) -> None:
    chimera = draft()
    path = tmp_path / "other.safetensors"
    tables = chimera.embedding, chimera.lm_head
    with pytest.raises(ValueError, match="found no such file"):
        load_chimera(path, *tables)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="format None, expected 'chimera draft 1'"):
        load_chimera(path, *tables)
    path.write_text("nothing")
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_chimera(path, *tables)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_heads": 5}, "attention_heads: found 5 for width 32"),
        ({"head_rank": -1}, "head_rank: found -1"),
        ({"heads": 0}, "heads: found 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChimeraConfig(**{"width": WIDTH, "vocabulary": VOCABULARY, **options})


def test_tables_of_another_size_are_refused() -> None:
    config = ChimeraConfig(WIDTH, VOCABULARY)
    with pytest.raises(ValueError, match=r"embedding: found shape \[9, 32\], expected \[50, 32\]"):
        Chimera(config, torch.ones(9, WIDTH), torch.ones(VOCABULARY, WIDTH))
    with pytest.raises(ValueError, match="piece: found 'other'"):
        draft()("other")


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_whole_heads_say_the_same(options: dict[str, Any]) -> None:
    chimera = draft(**options)
    whole = chimera.with_whole_heads()
    hidden, fused = rows(2, 3, WIDTH), rows(2, 3, WIDTH, seed=2)
    for depth in range(chimera.config.heads):
        expected = chimera.logits(hidden, fused, depth)
        torch.testing.assert_close(whole.logits(hidden, fused, depth), expected)
