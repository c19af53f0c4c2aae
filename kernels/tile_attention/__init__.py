"""Attention of video transformers between some frames only: "attention tiles"."""

from optimize.kernels.tile_attention.schema import tile_attention as tile_attention
