"""A video transformer of Wan's shape, with random weights and as many tokens as you like.

    made = wan_shaped(frames=8, height=64, width=64)      # 8 frames of 1024 tokens
    program = capture(made.module, made.inputs, loop=made.loop(8))

It is for timing: the layers, their order and the attention over all tokens of all frames are those
of the published model, but narrow, so that attention takes most of the time as it does there.
"""

import torch

from optimize.recipes.zoo.families import Example

CHANNELS = 16
"""Of Wan's latent."""

PATCH = (1, 2, 2)
"""Frames, rows and columns of the latent that make one token."""


def wan_shaped(
    frames: int = 8,
    height: int = 64,
    width: int = 64,
    *,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 64,
    expansion: int = 2,
    text: int = 16,
    batch: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Example:
    """A `WanTransformer3DModel` of diffusers with random weights, and inputs for it.

    Args:
        frames: of the latent, >= 1.
        height, width: of the latent, even.
        layers: transformer blocks, each with self-attention, cross-attention and a feed-forward.
        heads, head_dim: the model is heads * head_dim wide; head_dim is even and at least 6.
        expansion: width of the feed-forward divided by that of the model.
        text: tokens of the text.
        batch: of the inputs; 2 is one video with classifier-free guidance. A program captured
            from 1 keeps that batch, from 2 it takes any.
        seed: of weights and inputs.
        dtype: of all weights and floating inputs.
    Raises:
        ValueError: the latent cannot be cut into patches.
    """
    if frames < 1 or height % PATCH[1] or width % PATCH[2]:
        raise ValueError(
            f"wan_shaped: found a latent of {frames} x {height} x {width}, expected at least one "
            "frame and an even height and width"
        )
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = WanTransformer3DModel(
            patch_size=PATCH,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=heads * head_dim,
            ffn_dim=expansion * heads * head_dim,
            num_layers=layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=max(frames, height // PATCH[1], width // PATCH[2]),
        )
        inputs = {
            "hidden_states": torch.randn(batch, CHANNELS, frames, height, width, dtype=dtype),
            "timestep": torch.full((batch,), 500),
            "encoder_hidden_states": torch.randn(batch, text, heads * head_dim, dtype=dtype),
        }
    return Example("wan_shaped", module.eval().to(dtype), inputs, "flow")
