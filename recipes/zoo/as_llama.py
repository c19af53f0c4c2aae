"""A zoo language model as the Llama of `transformers` with the same weights, to compare with."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel

OUTSIDE = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
"""Weight outside the blocks → its name in Llama."""

IN_BLOCK = {
    "input_norm": "input_layernorm",
    "to_query": "self_attn.q_proj",
    "to_key": "self_attn.k_proj",
    "to_value": "self_attn.v_proj",
    "to_out": "self_attn.o_proj",
    "hidden_norm": "post_attention_layernorm",
    "to_gate": "mlp.gate_proj",
    "to_hidden": "mlp.up_proj",
    "from_hidden": "mlp.down_proj",
}
"""Module of a block → its name in a layer of Llama."""


def as_llama(model: RotaryLanguageModel, end: int = 0) -> LlamaForCausalLM:
    """The same function of the same weights, which are copied, in evaluation mode.

    Args:
        model: the model.
        end: token after which `generate` stops, and that it pads with.
    """
    config = LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.embed.embedding_dim,
        intermediate_size=model.hidden,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=model.head_count,
        num_key_value_heads=model.head_count,
        max_position_embeddings=model.max_positions,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": model.theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    llama = LlamaForCausalLM(config)
    state = {_name_in_llama(name): tensor for name, tensor in model.state_dict().items()}
    llama.load_state_dict(state)
    return llama.eval()


def _name_in_llama(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, number, module, weight = name.split(".")
    return f"model.layers.{number}.{IN_BLOCK[module]}.{weight}"


@torch.no_grad()
def sampled(
    model: RotaryLanguageModel, prompts: torch.Tensor, count: int, temperature: float = 1.0
) -> torch.Tensor:
    """Prompts [B, S] with `count` drawn tokens behind each, [B, S + count], int64.

    Tokens are drawn with torch's global generator. What follows an end token is end tokens.
    """
    drawn: torch.Tensor = as_llama(model).generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=count,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
    )
    return drawn
