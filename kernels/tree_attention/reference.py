"""`tree_attention` in plain PyTorch, one sample and one row at a time."""

import torch


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    sees: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Gathers what each row sees and attends to it."""
    scale = query.shape[3] ** -0.5 if scale is None else scale
    shared = query.shape[1] // key.shape[1]
    result = torch.empty(*query.shape[:3], value.shape[3], dtype=query.dtype)
    for sample, length in enumerate(lengths.tolist()):
        for row in range(query.shape[2]):
            keys = torch.cat([key_cache[sample, :, :length], key[sample][:, sees[row]]], 1)
            values = torch.cat([value_cache[sample, :, :length], value[sample][:, sees[row]]], 1)
            scores = keys.repeat_interleave(shared, 0) @ query[sample, :, row, :, None]
            weights = (scores[..., 0] * scale).softmax(-1)
            result[sample, :, row] = (weights[:, None] @ values.repeat_interleave(shared, 0))[:, 0]
    return result
