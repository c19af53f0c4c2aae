"""`cached_attention` in plain PyTorch, one sample and one new row at a time."""

import torch


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float | None = None,
    sees: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Writes the new rows behind the old ones; each sees what is before it or what it is told."""
    keys, values = key_cache.clone(), value_cache.clone()
    scale = query.shape[3] ** -0.5 if scale is None else scale
    shared = query.shape[1] // key.shape[1]
    result = torch.empty(*query.shape[:3], value.shape[3], dtype=query.dtype)
    for sample, length in enumerate(lengths.tolist()):
        for row in range(query.shape[2]):
            end = length + row + 1
            keys[sample, :, end - 1] = key[sample, :, row]
            values[sample, :, end - 1] = value[sample, :, row]
            new = range(row + 1) if sees is None else sees[row].nonzero()[:, 0].tolist()
            seen = [*range(length), *(length + item for item in new)]
            seen_keys = keys[sample, :, seen].repeat_interleave(shared, 0)
            seen_values = values[sample, :, seen].repeat_interleave(shared, 0)
            scores = (seen_keys @ query[sample, :, row, :, None])[..., 0] * scale
            weights = scores.softmax(-1)
            result[sample, :, row] = (weights[:, None] @ seen_values)[:, 0]
    return result, keys, values
