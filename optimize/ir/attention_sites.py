"""The places where the tokens of a denoiser attend to one another."""

from dataclasses import dataclass
from typing import cast

from torch import fx

from optimize.ir.axes import Axes, Axis
from optimize.ir.graph import Graph
from optimize.ir.node_arguments import argument
from optimize.ir.token_axis import SDPA, mask_of


@dataclass(frozen=True)
class Site:
    """Self-attention over the tokens, and the text tokens that may stand around them.

    Attributes:
        node: the `scaled_dot_product_attention` node.
        name: the module it comes from, such as "blocks.0.attn1".
        prefix: further rows before the tokens.
        suffix: further rows after them.
        mask: a mask of keys, the same for every query; or None.
        scale: what scores are multiplied by; None is 1 / sqrt(D).
    """

    node: fx.Node
    name: str
    prefix: int
    suffix: int
    mask: fx.Node | None
    scale: float | None

    @property
    def inputs(self) -> tuple[fx.Node, fx.Node, fx.Node]:
        """Query, key and value."""
        return cast(tuple[fx.Node, fx.Node, fx.Node], self.node.args[:3])


def attention_sites(
    graph: Graph, axes: Axes, tokens: Axis
) -> tuple[tuple[Site, ...], dict[str, str]]:
    """The self-attention sites of a graph in order, and the reasons why others are none.

    Cross-attention is no site and has no reason: it does not concern these tokens' rows as keys.
    """
    sites: list[Site] = []
    refused: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.target is not SDPA:
            continue
        query, key = (axes.of(cast(fx.Node, node.args[i]))[-2] for i in (0, 1))
        if not axes.contains(key, tokens):
            continue
        reason = _refusal(axes, node, query, key, tokens)
        if reason is not None:
            refused[_name(node)] = reason
            continue
        layout = axes.layout(query, tokens)
        place = layout.index(axes.find(tokens))
        around = [part.extent for part in layout]
        if not all(isinstance(extent, int) for extent in around):
            refused[_name(node)] = f"the rows around the tokens are {around}, expected fixed sizes"
            continue
        sizes = cast(list[int], around)
        sites.append(
            Site(
                node=node,
                name=_name(node),
                prefix=sum(sizes[:place]),
                suffix=sum(sizes[place + 1 :]),
                mask=mask_of(node),
                scale=cast(float | None, node.kwargs.get("scale")),
            )
        )
    return tuple(sites), refused


def _refusal(axes: Axes, node: fx.Node, query: Axis, key: Axis, tokens: Axis) -> str | None:
    """Why an attention node that has the tokens as keys is no site; None if it is one."""
    if axes.find(query) is not axes.find(key):
        return "queries and keys are different rows"
    if sum(part is axes.find(tokens) for part in axes.layout(query, tokens)) != 1:
        return "the tokens stand in it several times"
    if argument(node, 5, "is_causal", False):
        return "the attention is causal, so its pairs are not symmetric"
    if argument(node, 4, "dropout_p", 0.0):
        return "the attention has dropout"
    value = cast(fx.Node, node.args[0]).meta["val"]
    if value.ndim != 4:
        return f"the query has {value.ndim} dimensions, expected [B, N, S, D]"
    if node.kwargs.get("enable_gqa", False):
        return "heads share keys (enable_gqa), expected a key head for each query head"
    mask = mask_of(node)
    if mask is not None:
        shape = list(mask.meta["val"].shape)
        if len(shape) != 4 or shape[-2] != 1:
            return f"its mask {shape} differs from query to query, expected a mask of keys"
    return None


def _name(node: fx.Node) -> str:
    """The user's name of the module that attends, or the node's."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    name = paths[-1] if paths else ""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name or str(node.name)
