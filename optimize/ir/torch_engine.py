"""Runs a program's graphs in PyTorch: the reference engine of the driver."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from optimize.ir.graph import Graph
from optimize.ir.process_group import exchange_error

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
"""Names of dtypes in loops and signatures → PyTorch's."""

DTYPE_NAMES: dict[torch.dtype, Any] = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""PyTorch's dtypes → their names in loops and signatures."""


class TorchEngine:
    """An engine over `Graph.run`; handles are tensors on the weights' device."""

    def __init__(self, graphs: Mapping[str, Graph], weights: Mapping[str, torch.Tensor]) -> None:
        self.graphs = graphs
        self.weights = weights
        self.device = next(iter(weights.values())).device if weights else torch.device("cpu")

    def upload(self, array: NDArray[Any], dtype: str) -> torch.Tensor:
        return torch.tensor(np.asarray(array), dtype=TORCH_DTYPES[dtype], device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        return torch.zeros(shape, dtype=TORCH_DTYPES[dtype], device=self.device)

    def download(self, handle: torch.Tensor) -> NDArray[Any]:
        handle = handle.detach().cpu()
        array: NDArray[Any] = (handle.float() if handle.dtype == torch.bfloat16 else handle).numpy()
        return array

    def run(
        self,
        graph: str,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor | None],
    ) -> dict[str, torch.Tensor]:
        try:
            return self.graphs[graph].run(self.weights, inputs)
        except RuntimeError as error:
            failed = exchange_error(error, graph)
            if failed is None:
                raise
            raise failed from error
