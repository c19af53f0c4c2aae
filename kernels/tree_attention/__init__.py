"""Attention of drafted rows over a key-value cache and over those of them that each sees."""

from optimize.kernels.tree_attention.schema import tree_attention as tree_attention
