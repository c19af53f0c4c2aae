"""What passes learn about a decoder from its graphs (layers, image, positions), and rewrites."""

from functools import cache

import pytest
import torch
from torch import nn

from optimize.capture.from_decoder import capture_decoder
from optimize.capture.from_module import trace
from optimize.ir.axis_rules import infer_axes
from optimize.ir.builder import builder_with_inputs
from optimize.ir.cache_lengths import Cut, with_shorter_caches
from optimize.ir.decode import DecodeLoop
from optimize.ir.graph import shape
from optimize.ir.image_span import image_span
from optimize.ir.layer_inputs import decoder_layers
from optimize.ir.position_free import position_nodes, without_positions
from optimize.ir.recording import record
from optimize.ir.spec import check_graph
from optimize.ir.token_axis import CannotSubset
from optimize.ir.unflattened import unflattened
from optimize.recipes.zoo.tiny_decoder import tiny_model, tiny_request

LOOP = DecodeLoop(max_prompt=12, max_new_tokens=4)


@cache
def _program(**options):
    return capture_decoder(tiny_model(grid=(3, 4), **options), LOOP)


@pytest.mark.parametrize("rotary", [True, False])
def test_a_layer_begins_with_the_sum_of_the_one_before(rotary):
    graph = _program(rotary=rotary).graphs["prefill"]
    layers = decoder_layers(graph, infer_axes(graph))
    assert len(layers) == 4
    first, *later = (layer.hidden for layer in layers)
    # Learned positions are added to the embeddings before the first layer.
    assert first.target is (torch.ops.aten.cat.default if rotary else torch.ops.aten.add.Tensor)
    assert all(node.target is torch.ops.aten.add.Tensor for node in later)
    # The residual of each perceptron: a product of weights is added.
    assert all("linear" in str(node.args[1].target) for node in later)


def test_the_image_is_found_in_the_sequence_and_its_grid_in_the_vision_graph():
    span = image_span(_program())
    assert (span.offset, span.tokens, span.grid) == (1, 12, (3, 4))
    assert image_span(_program(image_offset=3)).offset == 3


def test_there_is_no_image_in_text():
    with pytest.raises(CannotSubset, match="the prefill has no image"):
        image_span(capture_decoder(tiny_model(), LOOP))


def test_only_rotary_positions_reach_queries_and_keys():
    for rotary in (True, False):
        graph = _program(rotary=rotary).graphs["prefill"]
        layers = decoder_layers(graph, infer_axes(graph))
        assert bool(position_nodes(graph, layers[2])) is rotary


def test_queries_without_positions_equal_those_at_position_zero():
    model = tiny_model(grid=(3, 4))
    program, request = capture_decoder(model, LOOP), tiny_request(model)
    graph = program.graphs["prefill"]
    layer = decoder_layers(graph, infer_axes(graph))[0]
    builder, inputs = builder_with_inputs(graph)
    mapping = builder.inlined_nodes(graph, inputs)
    query, key = without_positions(builder, mapping.__getitem__, graph, layer)
    found = builder.finish({"query": query, "key": key}, graph.dimensions)
    check_graph(found)
    features = model.vision(request["pixel_values"].double())
    given = {**request, "max_new_tokens": torch.tensor([1, 1]), "image_features": features}
    values = found.run(program.weights, given)
    block, ids = model.decoder.blocks[0], request["input_ids"]
    hidden = model.decoder.embed(ids)
    hidden = torch.cat([hidden[:, :1], features, hidden[:, 1:]], 1)
    normed = block.norm(hidden)
    for name, layer_of in (("query", block.query), ("key", block.key)):
        expected = layer_of(normed).unflatten(2, (-1, 8)).transpose(1, 2)
        torch.testing.assert_close(values[name], expected.detach(), rtol=1e-12, atol=1e-12)


def test_caches_of_later_layers_become_shorter():
    graph = _program().graphs["decode"]
    cuts = [Cut(1, "dropped_1", 20), Cut(3, "dropped_2", 18)]
    new = with_shorter_caches(graph, cuts)
    check_graph(new)
    assert [shape(new.node(f"key_{layer}"))[2] for layer in range(4)] == [28, 20, 20, 18]
    assert {"dropped_1", "dropped_2"} <= set(new.inputs)


def test_records_a_function_with_symbolic_sizes():
    class Twice(nn.Module):
        def forward(self, x):
            return (x * 2,)

    graph = trace(Twice(), {"x": torch.randn(3, 5)}, ("y",), 3, True).graph
    builder, inputs = builder_with_inputs(graph)

    def halves(x, scale):
        values, order = torch.sort(x, dim=1, descending=True, stable=True)
        rows = torch.arange(x.shape[0] + 2)
        return {"best": values[:, :2] * scale, "order": order, "rows": rows}

    made = record(builder, halves, inputs["x"], 0.5)
    new = builder.finish(made, graph.dimensions)
    check_graph(new)
    x = torch.randn(4, 5)
    found = new.run({}, {"x": x})
    assert torch.equal(found["best"], x.sort(1, descending=True)[0][:, :2] * 0.5)
    assert torch.equal(found["order"], torch.sort(x, dim=1, descending=True, stable=True)[1])
    assert found["rows"].tolist() == [0, 1, 2, 3, 4, 5]


class _Flat(nn.Module):
    """A product over flattened rows, as GPT-2 has it."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return (flat.view(*x.shape[:-1], 4),)


def test_products_over_flattened_rows_keep_batch_and_rows_apart():
    module = _Flat()
    x = torch.randn(3, 5, 6)
    traced = trace(module, {"x": x}, ("y",), 3, True)
    new = unflattened(traced.graph)
    check_graph(new)
    assert not any("addmm" in str(node.target) for node in new.graph.nodes)
    found = new.run(traced.weights, {"x": x})["y"]
    torch.testing.assert_close(found, module(x)[0].detach())
    axes = infer_axes(new)
    own, made = axes.of(new.node("x")), axes.of(new.output_nodes()["y"])
    assert (made[0], made[1]) == (own[0], own[1])


def test_patches_joined_to_a_token_leave_a_grid():
    class Joined(nn.Module):
        def forward(self, x):
            # [B, 4, 6, C]: blocks of 2 x 2 become one token.
            blocks = x.view(x.shape[0], 2, 2, 3, 2, 5).permute(0, 1, 3, 2, 4, 5)
            return (blocks.reshape(x.shape[0], 24, 5).reshape(x.shape[0], 6, 20),)

    graph = trace(Joined(), {"x": torch.randn(2, 4, 6, 5)}, ("y",), 2, True).graph
    axes = infer_axes(graph)
    tokens = axes.of(graph.output_nodes()["y"])[1]
    assert [axis.extent for axis in axes.factors(tokens)] == [2, 3]


def test_index_by_a_vector_keeps_the_other_axes():
    class Picked(nn.Module):
        def forward(self, x):
            return (x[:, torch.tensor([2, 0])],)

    graph = trace(Picked(), {"x": torch.randn(2, 3, 5)}, ("y",), 2, True).graph
    axes = infer_axes(graph)
    own, made = axes.of(graph.node("x")), axes.of(graph.output_nodes()["y"])
    assert (made[0], made[2]) == (own[0], own[2])
    assert made[1] is not own[1]
