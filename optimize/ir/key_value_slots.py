"""The slots of key-value caches: their names, and rows in the form they are kept."""

import operator
import re

import torch
from torch import fx

from optimize.ir.builder import Builder
from optimize.ir.graph import shape

aten = torch.ops.aten

CACHE = re.compile(r"(?:draft_)?(key|value)_(\d+)")
"""Slots of layer i, [B, G, capacity, D]: `key_i` and `value_i`; a draft's are `draft_key_i`, …"""


def padded(builder: Builder, item: fx.Node, capacity: int) -> fx.Node:
    """Keys or values [B, G, S, D] with rows of zeros up to the capacity of their cache."""
    batch, rows = (builder.call(aten.sym_size.int, item, dimension) for dimension in (0, 2))
    missing = builder.call(operator.sub, capacity, rows)
    _, groups, _, width = shape(item)
    like = item.meta["val"]
    sizes = [batch, groups, missing, width]
    zeros = builder.call(aten.zeros.default, sizes, dtype=like.dtype, device=like.device)
    return builder.call(aten.cat.default, [item, zeros], 2)
