"""The random Wan transformer has the size it is asked for."""

import pytest
import torch

from optimize.recipes.zoo.wan_shaped import wan_shaped


def test_attends_over_all_tokens_of_all_frames() -> None:
    made = wan_shaped(3, 4, 6, layers=2, heads=2, head_dim=8, text=5, batch=2)
    queries: list[torch.Size] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def noted(query: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        queries.append(query.shape)
        return attend(query, *args, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        (prediction,) = made.module(**made.inputs, return_dict=False)
    assert prediction.shape == made.inputs["hidden_states"].shape == (2, 16, 3, 4, 6)
    # Self-attention and cross-attention, twice, over 3 frames of 2 x 3 tokens.
    assert queries == [torch.Size((2, 2, 18, 8))] * 4


def test_seed_decides_weights_and_inputs_and_nothing_else_changes() -> None:
    state = torch.get_rng_state()
    first, again, other = (wan_shaped(2, 4, 4, head_dim=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    name = "blocks.0.attn1.to_q.weight"
    weights = [made.module.state_dict()[name] for made in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    latents = [made.inputs["hidden_states"] for made in (first, again, other)]
    assert torch.equal(latents[0], latents[1]) and not torch.equal(latents[0], latents[2])


def test_dtype_is_that_of_weights_and_inputs() -> None:
    made = wan_shaped(2, 4, 4, head_dim=8, dtype=torch.float16)
    assert {item.dtype for item in made.module.parameters()} == {torch.float16}
    assert made.inputs["encoder_hidden_states"].dtype == torch.float16


@pytest.mark.parametrize(("frames", "height", "width"), [(0, 4, 4), (1, 3, 4), (1, 4, 5)])
def test_refuses_what_cannot_be_cut_into_patches(frames: int, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"found a latent of {frames} x {height} x {width}"):
        wan_shaped(frames, height, width)
