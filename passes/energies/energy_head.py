"""The energy of a trained head: a copy of the denoiser's trunk that sees a candidate and its masks.

    candidate [B * k, G] ─┐                    ┌─▶ [B * k, G, H] ─┐
    text      [B, G]     ─┴─▶ trunk ─▶ states ─┴─▶ [B, G, H]     ─┴─▶ pairs [B * k, G, 2H]
    pairs ─▶ linear, SiLU [B * k, G, H] ─▶ mean over masks [B * k, H] ─▶ linear, ReLU, linear ─▶ E

The trunk is what the denoiser computes before its output layer, cut out of the captured graph; its
weights are the head's own, buffers stay those of the denoiser.

Source: Xu et al. (2025), Energy-Based Diffusion Language Models (arXiv 2410.21357), EDLM-NCE. There
the pairs go through the trunk, here its states are paired, and the mean is over what was masked.
"""

import torch
from torch import nn
from torch.nn.functional import linear, relu, silu

from optimize.ir.builder import builder_with_inputs
from optimize.ir.decoder_rows import output_layer
from optimize.ir.digest import weights_digest
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph, placeholders
from optimize.ir.program import Program
from optimize.passes.energies.energy_base import repeated

PARAMETER = "p_"
"""How `torch.export` begins the placeholders of parameters; buffers have other beginnings."""

TRUNK = "trunk."
"""What names of the trunk's weights begin with among those of a head."""

LAYERS = ("mix_weight", "mix_bias", "inner_weight", "inner_bias", "score_weight")
"""Weights of the layers behind the trunk, in the order that `energies` takes them."""


def unsuitable(program: Program) -> str | None:
    """Why a head cannot judge the texts of a program, or None."""
    denoiser = program.decoder
    if program.unmasking is None or denoiser is None:
        return "found a program that does not fill in masked text"
    if "timestep" in denoiser.inputs:
        return "the denoiser looks at the time; an energy head judges texts without one"
    try:
        hidden = output_layer(denoiser).hidden.meta["val"]
    except InputModelError as error:
        return str(error)
    if hidden.ndim != 3 or not isinstance(hidden.shape[-1], int):
        return (
            f"the output layer of the denoiser reads states of shape {list(hidden.shape)}, "
            "expected [B, S, H]"
        )
    if not parameters_of(denoiser):
        return "the denoiser's graph tells no parameters, expected one as it was captured"
    return None


def parameters_of(denoiser: Graph) -> tuple[str, ...]:
    """Names of the parameters of a captured denoiser; buffers are none."""
    names = [name for node, name in denoiser.weights.items() if node.startswith(PARAMETER)]
    return tuple(dict.fromkeys(names))


def denoiser_fingerprint(program: Program) -> str:
    """SHA-256 over the denoiser's parameters as float32, whatever its loop and its passes."""
    assert program.decoder is not None
    names = parameters_of(program.decoder)
    return weights_digest({name: program.weights[name].float() for name in names})


def trunk_of(denoiser: Graph) -> Graph:
    """The denoiser up to its output layer: `input_ids` [B, S] → `hidden` [B, S, H]."""
    builder, inputs = builder_with_inputs(denoiser)
    nodes = builder.inlined_nodes(denoiser, inputs)
    hidden = nodes[output_layer(denoiser).hidden]
    return builder.finish({"hidden": hidden}, denoiser.dimensions)


class EnergyHead(nn.Module):
    """A head for a program's denoiser; at first its energies are all 0.

    Args:
        program: of the denoiser, whose weights the trunk starts from; it stays as it is.
    Raises:
        ValueError: its denoiser cannot have a head, see `unsuitable`.

    Attributes:
        graph: the trunk.
        names: of the trunk's own weights, as the denoiser calls them.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        reason = unsuitable(program)
        if reason is not None:
            raise ValueError(f"EnergyHead: {reason}")
        assert program.decoder is not None
        self.graph = trunk_of(program.decoder)
        used = dict.fromkeys(self.graph.weights.values())
        parameters = set(parameters_of(program.decoder))
        self.names = tuple(name for name in used if name in parameters)
        self.trunk = nn.ParameterList(program.weights[name].clone() for name in self.names)
        self._fixed = tuple(name for name in used if name not in parameters)
        for place, name in enumerate(self._fixed):
            self.register_buffer(f"fixed_{place}", program.weights[name], persistent=False)
        width = self.graph.output_nodes()["hidden"].meta["val"].shape[-1]
        self.mix = nn.Linear(2 * width, width)
        self.inner = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def layers(self) -> dict[str, torch.Tensor]:
        """The weights behind the trunk, by the names of `LAYERS`."""
        tensors = (
            *(self.mix.weight, self.mix.bias),
            *(self.inner.weight, self.inner.bias),
            self.score.weight,
        )
        return dict(zip(LAYERS, tensors, strict=True))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All weights of the head: the trunk's own, behind `TRUNK`, and its layers."""
        own = {TRUNK + name: item for name, item in zip(self.names, self.trunk, strict=True)}
        return own | self.layers()

    def forward(
        self,
        candidates: torch.Tensor,
        text: torch.Tensor,
        mask_id: int,
        prompt: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Energies of candidates.

        Args:
            candidates: [B * k, G] int64, those of a text one after another.
            text: [B, G] int64, what they were drawn for, masks included.
            mask_id: the token of a mask.
            prompt: [B, P] int64, what stands before the texts.
        Returns:
            [B * k] float64.
        """
        weights = dict(zip(self.names, self.trunk, strict=True))
        weights |= {name: getattr(self, f"fixed_{n}") for n, name in enumerate(self._fixed)}
        given = {"input_ids": sequences(candidates, text, prompt)}
        arguments = [
            weights[self.graph.weights[name]] if name in self.graph.weights else given[name]
            for name in placeholders(self.graph.graph)
        ]
        (hidden,) = self.graph.module(*arguments)
        with torch.autocast(hidden.device.type, enabled=False):
            return energies(hidden, candidates, text == mask_id, *self.layers().values())


def sequences(
    candidates: torch.Tensor, text: torch.Tensor, prompt: torch.Tensor | None
) -> torch.Tensor:
    """What the trunk reads: candidates and then their texts, [B * k + B, P + G]."""
    whole = torch.cat([candidates, text])
    if prompt is None:
        return whole
    before = torch.cat([repeated(prompt, candidates.shape[0] // prompt.shape[0]), prompt])
    return torch.cat([before, whole], 1)


def energies(
    hidden: torch.Tensor, candidates: torch.Tensor, masked: torch.Tensor, *layers: torch.Tensor
) -> torch.Tensor:
    """Energies [B * k] float64, 0 of texts without masks.

    Args:
        hidden: [B * k + B, P + G, H], states of `sequences`.
        candidates: [B * k, G].
        masked: [B, G] bool.
        layers: weights in the order of `LAYERS`, float32.
    """
    mix_weight, mix_bias, inner_weight, inner_bias, score_weight = layers
    count, length = candidates.shape
    each = count // masked.shape[0]
    states = hidden[:, hidden.shape[1] - length :].float()
    pairs = torch.cat([states[:count], repeated(states[count:], each)], -1)
    rows = silu(linear(pairs, mix_weight, mix_bias))
    counted = repeated(masked, each).float()
    number = counted.sum(-1, keepdim=True)
    mean = (rows * counted[..., None]).sum(1) / torch.clamp(number, min=1.0)
    inner = relu(linear(mean, inner_weight, inner_bias))
    return torch.where(number > 0, linear(inner, score_weight), 0.0)[:, 0].double()
