"""What each op does to axes: letters before and after; the same letter is the same axis."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optimize.capture.from_module import trace
from optimize.ir.axis_rules import infer_axes, mixed_dimensions
from optimize.ir.errors import UnsupportedOpError
from optimize.ir.graph import Graph


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(8, 4))
        self.kernel = nn.Parameter(torch.randn(8, 3, 2, 2))

    def forward(self, x, y=None):
        return (self.function(self, x) if y is None else self.function(self, x, y),)


def graph_of(function, *shapes) -> Graph:
    arguments = dict(zip("xy", (torch.randn(shape) for shape in shapes), strict=False))
    return trace(Function(function).eval(), arguments, ("out",), None, None).graph


# Letters of x (and y) -> letters of the output; a letter not seen before is a new axis.
ROWS = [
    ("add", lambda m, x: x + 1, [(2, 6, 4)], "bnc -> bnc"),
    ("broadcast", lambda m, x, y: x * y, [(2, 6, 4), (6, 1)], "bnc,n1 -> bnc"),
    ("linear", lambda m, x: F.linear(x, m.weight), [(2, 6, 4)], "bnc -> bnd"),
    ("permute", lambda m, x: x.permute(2, 0, 1), [(2, 6, 4)], "bnc -> cbn"),
    ("transpose", lambda m, x: x.transpose(-1, -2), [(2, 6, 4)], "bnc -> bcn"),
    ("unsqueeze", lambda m, x: x.unsqueeze(1), [(2, 6)], "bn -> bkn"),
    ("mean", lambda m, x: x.mean(1), [(2, 6, 4)], "bnc -> bc"),
    ("mean-keepdim", lambda m, x: x.mean(1, keepdim=True), [(2, 6, 4)], "bnc -> bkc"),
    ("logsumexp", lambda m, x: x.logsumexp(1), [(2, 6, 4)], "bnc -> bc"),
    (
        "scatter",
        lambda m, x, y: x.scatter(1, y.argmax(1, keepdim=True), 1.0),
        [(2, 6), (2, 5)],
        "bn,ck -> bn",
    ),
    ("softmax", lambda m, x: x.softmax(-1), [(2, 6, 4)], "bnc -> bnc"),
    ("layer-norm", lambda m, x: F.layer_norm(x, (4,)), [(2, 6, 4)], "bnc -> bnc"),
    ("matmul", lambda m, x, y: x @ y, [(2, 6, 4), (2, 4, 5)], "bnc,bcm -> bnm"),
    ("patchify", lambda m, x: F.conv2d(x, m.kernel, stride=2), [(2, 3, 8, 6)], "bchw -> bdij"),
    ("split-heads", lambda m, x: x.view(2, 6, 2, 2), [(2, 6, 4)], "bnc -> bnhd"),
    ("select", lambda m, x: x[:, 0], [(2, 6, 4)], "bnc -> bc"),
    ("full-slice", lambda m, x: x[:, 0:6], [(2, 6, 4)], "bnc -> bnc"),
    ("half-slice", lambda m, x: x[:, 0:3], [(2, 6, 4)], "bnc -> bkc"),
    ("stack", lambda m, x, y: torch.stack([x, y], 1), [(2, 6), (2, 6)], "bn,bn -> bkn"),
    ("einsum", lambda m, x: torch.einsum("bnc,dc->bnd", x, m.weight), [(2, 6, 4)], "bnc -> bnd"),
    ("equal-sizes-stay-apart", lambda m, x: x.view(2, 4, 4), [(2, 16)], "bn -> bhw"),
    (
        "attention",
        lambda m, x, y: F.scaled_dot_product_attention(x, y, y),
        [(2, 3, 6, 4), (2, 3, 5, 4)],
        "bhnc,bhmc -> bhnc",
    ),
]


@pytest.mark.parametrize(
    ("function", "shapes", "letters"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_rule(function, shapes, letters):
    graph = graph_of(function, *shapes)
    axes = infer_axes(graph)
    before, after = letters.split(" -> ")
    known: dict[str, object] = {}
    for name, word in zip(graph.inputs, before.split(","), strict=True):
        for letter, axis in zip(word, axes.of(graph.node(name)), strict=True):
            if letter != "1":
                assert known.setdefault(letter, axis) is axis, (name, letter)
    assert len(set(map(id, known.values()))) == len(known), "two letters are one axis"
    for letter, axis in zip(after, axes.of(graph.output_nodes()["out"]), strict=True):
        if letter in known:
            assert known[letter] is axis, letter
        else:
            assert all(axis is not other for other in known.values()), letter
            known[letter] = axis


def test_flatten_then_unflatten_gives_the_factors_back():
    graph = graph_of(lambda m, x: x.flatten(2).transpose(1, 2).reshape(2, 4, 3, 5), (2, 5, 4, 3))
    axes = infer_axes(graph)
    batch, channel, height, width = axes.of(graph.node("x"))
    assert axes.of(graph.output_nodes()["out"]) == [batch, height, width, channel]


def test_slice_on_a_part_boundary_gives_the_part_back():
    def joint(m, x, y):
        both = torch.cat([x, y], 1) * 2
        return both[:, 7:]

    graph = graph_of(joint, (2, 7, 4), (2, 6, 4))
    axes = infer_axes(graph)
    assert axes.of(graph.output_nodes()["out"])[1] is axes.of(graph.node("y"))[1]


def test_rows_of_one_table_that_serve_two_axes_do_not_make_them_one():
    """A position table serves rows and columns: the same four rows of it are two axes here."""

    def positions(m, x):
        table = m.weight[:4]  # [4, 4]
        return x + table.view(4, 1, 4) + m.weight[0:4].view(1, 4, 4)

    graph = graph_of(positions, (2, 4, 4, 4))
    axes = infer_axes(graph)
    _, rows, columns, _ = axes.of(graph.output_nodes()["out"])
    assert rows is not columns


def test_ops_that_mix_rows_say_so():
    graph = graph_of(lambda m, x: x.softmax(1).cumsum(2), (2, 6, 4))
    softmax, cumsum = (n for n in graph.graph.nodes if n.op == "call_function")
    assert mixed_dimensions(softmax, softmax.args[0]) == {1}
    assert mixed_dimensions(cumsum, cumsum.args[0]) == {2}


def test_unknown_op_is_named_with_node_and_line():
    graph = graph_of(lambda m, x: torch.cdist(x, x), (2, 6, 4))
    with pytest.raises(
        UnsupportedOpError, match=r"op aten::\w*cdist\w* at node \w+ \(.*\.py:\d+\)"
    ):
        infer_axes(graph)
