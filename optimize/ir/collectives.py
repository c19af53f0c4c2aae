"""Exchanges between processes as nodes of a graph: who holds which tokens and which heads.

Each of W processes holds S/W of the tokens, a contiguous range in the order of the ranks:

    to_heads     [B, N, S/W, D]  ───▶  [B, N/W, S, D]    all-to-all: all tokens of some heads
    to_tokens    [B, N/W, S, D]  ───▶  [B, N, S/W, D]    all-to-all: the way back
    gathered     [.., S/W, ..]   ───▶  [.., S, ..]       all-gather along any dimension

The nodes are PyTorch's functional collectives, which take and return contiguous tensors whose first
dimension is cut by rank, so each is one transpose, one exchange and one transpose. With one process
nothing is exchanged and the node itself is returned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as distributed
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.graph import numel
from optimize.ir.node_arguments import first_input, short_name

NAMESPACE = "_c10d_functional"

aten = torch.ops.aten


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's.

    Attributes:
        rank: of this process, in [0, processes).
        processes: how many share the work, >= 1.
        group: name of the process group; unused with one process.
    """

    rank: int = 0
    processes: int = 1
    group: str = ""

    def range(self, size: int) -> tuple[int, int]:
        """Start and end of this process's part of `size`, which `processes` divides."""
        part = size // self.processes
        return self.rank * part, (self.rank + 1) * part


def share_of_group(processes: int) -> Share | str:
    """This process's share in the default process group, or why there is none.

    Args:
        processes: the size the group must have; with 1 no group is needed.
    """
    if processes == 1:
        return Share()
    found = "no process group"
    if distributed.is_available() and distributed.is_initialized():
        if distributed.get_world_size() == processes:
            group = distributed.distributed_c10d._get_default_group()
            return Share(distributed.get_rank(), processes, group.group_name)
        found = f"a process group of {distributed.get_world_size()}"
    return (
        f"found {found}, expected one of {processes} processes; start with "
        f"`torchrun --nproc-per-node {processes}`"
    )


def to_heads(builder: Builder, node: fx.Node, share: Share) -> fx.Node:
    """[B, N, S/W, D] → [B, N/W, S, D]; W divides N."""
    if share.processes == 1:
        return node
    _, heads, tokens, width = node.meta["val"].shape
    processes = share.processes
    by_head = builder.call(aten.transpose.int, node, 0, 1)
    received = _all_to_all(builder, by_head, share)  # [W * N/W, B, S/W, D], by sender
    sizes = [processes, heads // processes, -1, tokens, width]
    by_sender = builder.call(aten.view.default, received, sizes)
    ordered = builder.call(aten.permute.default, by_sender, [2, 1, 0, 3, 4])
    sizes = [-1, heads // processes, processes * tokens, width]
    return builder.call(aten.reshape.default, ordered, sizes)


def to_tokens(builder: Builder, node: fx.Node, share: Share) -> fx.Node:
    """[B, N/W, S, D] → [B, N, S/W, D]; W divides S."""
    if share.processes == 1:
        return node
    _, heads, tokens, width = node.meta["val"].shape
    processes = share.processes
    sizes = [-1, heads, processes, tokens // processes, width]
    by_owner = builder.call(aten.reshape.default, node, sizes)
    by_owner = builder.call(aten.permute.default, by_owner, [2, 1, 0, 3, 4])
    received = _all_to_all(builder, by_owner, share)  # [W, N/W, B, S/W, D], by sender
    sizes = [processes * heads, -1, tokens // processes, width]
    by_head = builder.call(aten.view.default, received, sizes)
    return builder.call(aten.transpose.int, by_head, 0, 1)


def gathered(builder: Builder, node: fx.Node, dimension: int, share: Share) -> fx.Node:
    """All processes' parts of a tensor, joined along a dimension in the order of the ranks."""
    if share.processes == 1:
        return node
    first = builder.call(aten.transpose.int, node, 0, dimension)
    gather = torch.ops._c10d_functional.all_gather_into_tensor.default
    sent = builder.call(gather, _contiguous(builder, first), share.processes, share.group)
    return builder.call(aten.transpose.int, _waited(builder, sent), 0, dimension)


def is_collective(node: fx.Node) -> bool:
    """Whether a node is a collective, or waits for one."""
    return getattr(node.target, "namespace", None) == NAMESPACE


def waits(node: fx.Node) -> bool:
    """Whether a node only waits for a collective and returns what it brought."""
    return is_collective(node) and short_name(node) == "wait_tensor"


def bytes_sent(node: fx.Node) -> float:
    """Bytes a process sends to others in one node; 0 for what is no exchange."""
    if not is_collective(node) or waits(node):
        return 0.0
    sent = first_input(node).meta["val"]
    size = float(numel(sent.shape) * sent.dtype.itemsize)
    if short_name(node) == "all_to_all_single":
        processes = len(cast(Sequence[int], node.args[1]))
        return size * (processes - 1) / processes
    return size * (cast(int, node.args[1]) - 1)


def _all_to_all(builder: Builder, node: fx.Node, share: Share) -> fx.Node:
    """Sends the r-th part of the first dimension to rank r; the parts received, by rank."""
    parts = [node.meta["val"].shape[0] // share.processes] * share.processes
    exchange = torch.ops._c10d_functional.all_to_all_single.default
    sent = builder.call(exchange, _contiguous(builder, node), parts, parts, share.group)
    return _waited(builder, sent)


def _contiguous(builder: Builder, node: fx.Node) -> fx.Node:
    return builder.call(aten.clone.default, node, memory_format=torch.contiguous_format)


def _waited(builder: Builder, node: fx.Node) -> fx.Node:
    return builder.call(torch.ops._c10d_functional.wait_tensor.default, node)
