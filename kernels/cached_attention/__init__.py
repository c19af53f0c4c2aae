"""Causal attention of new rows over the rows of a key-value cache and themselves."""

from optimize.kernels.cached_attention.schema import cached_attention as cached_attention
