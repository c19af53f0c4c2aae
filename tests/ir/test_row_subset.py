"""A graph on some rows, with caches filled at the same input, equals the whole graph."""

import pytest
import torch

from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import builder_with_inputs
from optimize.ir.graph import Graph
from optimize.ir.row_subset import RowSubset, Subset
from optimize.ir.token_axis import CannotSubset, token_axis


def on_rows(graph: Graph, count: int) -> tuple[Graph, Subset]:
    axes = infer_axes(graph)
    tokens = token_axis(graph, axes)
    builder, arguments = builder_with_inputs(graph)
    batch = graph.node("latent").meta["val"].shape[0]
    index = builder.input("index", builder.fake((batch, count), torch.int64))
    subset = RowSubset(graph, axes, tokens, builder, index, arguments).run()
    return builder.finish({**subset.outputs, **subset.updated}, graph.dimensions), subset


def with_sources(graph: Graph, subset: Subset) -> Graph:
    """The whole graph with the cached tensors as further outputs."""
    builder, arguments = builder_with_inputs(graph)
    nodes = builder.inlined_nodes(graph, arguments)
    outputs = {name: nodes[node] for name, node in graph.output_nodes().items()}
    outputs |= {cache.name: nodes[cache.source] for cache in subset.caches}
    return builder.finish(outputs, graph.dimensions)


def test_rows_equal_the_whole_graph_when_caches_are_fresh(family, captured):
    made, program = captured(family, torch.float64)
    graph = program.graphs["denoiser"]
    tokens = token_axis(graph, infer_axes(graph)).hint
    rows_graph, subset = on_rows(graph, tokens // 2)
    # A batch of three where the model allows it, with other rows for each sample.
    batch = 3 if graph.dimensions else 2
    request = {}
    for name, item in made.request().items():
        batched = item.ndim and item.shape[0] == 2
        request[name] = torch.cat([item, item[:1]])[:batch] if batched else item
    latent = made.inputs["hidden_states"]
    latent = torch.cat([latent, latent[:1] * 0.5])[:batch]
    inputs = {**request, "latent": latent, "timestep": torch.tensor(300.0, dtype=torch.float64)}
    whole = with_sources(graph, subset).run(program.weights, inputs)
    generator = torch.Generator().manual_seed(1)
    index = torch.stack(
        [torch.randperm(tokens, generator=generator)[: tokens // 2].sort().values
         for _ in range(batch)]
    )  # fmt: skip
    caches = {cache.name: whole[cache.name] for cache in subset.caches}
    rows = rows_graph.run(program.weights, {**inputs, **caches, "index": index})
    for name, value in rows.items():
        assert torch.allclose(value, whole[name], rtol=0, atol=1e-10), name
    # Negative control: with empty caches the check must fail.
    empty = {name: torch.zeros_like(value) for name, value in caches.items()}
    wrong = rows_graph.run(program.weights, {**inputs, **empty, "index": index})
    assert (wrong["prediction"] - whole["prediction"]).abs().max() > 1e-3


def test_caches_two_tensors_per_self_attention_and_the_prediction(captured):
    _, program = captured("sd3", torch.float64)
    _, subset = on_rows(program.graphs["denoiser"], 12)
    assert [cache.attention for cache in subset.caches].count(True) == 2 * 3
    assert [cache.attention for cache in subset.caches].count(False) == 1


def test_token_axis_of_joint_attention_is_the_image_part(captured):
    _, program = captured("sd3", torch.float64)
    graph = program.graphs["denoiser"]
    axes = infer_axes(graph)
    tokens = token_axis(graph, axes)
    assert tokens.hint == 24
    assert [factor.hint for factor in axes.factors(tokens)] == [4, 6]


def test_declines_without_self_attention():
    from optimize.capture.from_denoiser import capture

    class Pointwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = torch.nn.Linear(4, 4)

        def forward(self, hidden_states, timestep):
            return self.mix(hidden_states) * timestep.view(-1, 1, 1)

    inputs = {"hidden_states": torch.randn(2, 6, 4), "timestep": torch.rand(2)}
    graph = capture(Pointwise(), inputs).graphs["denoiser"]
    with pytest.raises(CannotSubset, match="no self-attention"):
        token_axis(graph, infer_axes(graph))


def test_declines_attention_written_out(captured):
    from optimize.capture.from_denoiser import capture

    class WrittenOut(torch.nn.Module):
        """Mixed: one proper site, one softmax over an explicit score matrix."""

        def __init__(self):
            super().__init__()
            self.project = torch.nn.Linear(4, 4)

        def forward(self, hidden_states, timestep):
            x = self.project(hidden_states)
            x = torch.nn.functional.scaled_dot_product_attention(x, x, x)
            scores = x @ x.transpose(1, 2)
            return scores.softmax(-1) @ x

    inputs = {"hidden_states": torch.randn(2, 6, 4), "timestep": torch.rand(2)}
    graph = capture(WrittenOut(), inputs).graphs["denoiser"]
    with pytest.raises(CannotSubset, match="2 dimensions"):
        on_rows(graph, 3)
