"""A tiny vision-language model with enough layers to prune between."""

from functools import cache

import torch

from optimize.capture.from_decoder import capture_decoder
from optimize.ir.decode import DecodeLoop
from optimize.ir.program import Program
from optimize.recipes.zoo.tiny_decoder import tiny_model

GRID = (8, 8)
IMAGE = 4 * GRID[0]
LAYERS = 8
WIDTH, PERCEPTRON = 32, 64
KEY_WIDTH = 16
"""Of the keys of one layer, all groups together."""


@cache
def tiny_vlm(seed: int = 0) -> Program:
    """Eight layers, an image of 8 x 8 tokens behind two tokens of text."""
    model = tiny_model(GRID, torch.float32, seed, layers=LAYERS, width=WIDTH, image_offset=2)
    return capture_decoder(model, DecodeLoop(max_prompt=24, max_new_tokens=6))
