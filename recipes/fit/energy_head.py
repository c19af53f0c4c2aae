"""Fits an energy head to a denoiser: it learns to tell texts from what the denoiser makes of them.

    text x0 ─▶ x_t with n masks, n drawn evenly from 1 … G
    x0' drawn for the masks with the denoiser's p(. | x_t), as its program draws
    loss = -log sigmoid(-E(x0, x_t)) - log sigmoid(E(x0', x_t))

It is 2 log 2 for a head that tells nothing, and least for E = log p(x0 | x_t) - log q(x0 | x_t), q
the law of the texts. The denoiser stays as it is; the head's trunk starts from its weights.

Source: Xu et al. (2025), Energy-Based Diffusion Language Models (arXiv 2410.21357), noise
contrastive estimation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from optimize.ir import unmask_rules as rules
from optimize.ir.decode import Sampling
from optimize.ir.program import Program
from optimize.passes.energies.energy_head import EnergyHead


@dataclass(frozen=True)
class EnergyFitOptions:
    """How a head is fitted.

    Args:
        steps: optimizer steps.
        batch_size: texts per step, each with one drawn text.
        rate: AdamW's learning rate.
        warmup_steps: steps over which it rises from 0; then it stays.
        largest_gradient: norm that gradients are clipped to.
        average_decay: of the moving average of the weights, per step, in [0, 1); less in the first
            steps.
        bfloat16: forward and backward of the head in bfloat16 autocast.
        seed: of the initial weights and of all that is drawn.
    """

    steps: int = 1000
    batch_size: int = 8
    rate: float = 3e-4
    warmup_steps: int = 20
    largest_gradient: float = 1.0
    average_decay: float = 0.99
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        for name in ("rate", "largest_gradient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected more than 0")
        if not 0 <= self.average_decay < 1:
            raise ValueError(
                f"average_decay: found {self.average_decay}, expected a number in [0, 1)"
            )


@dataclass(frozen=True)
class Contrast:
    """What a head is shown.

    Attributes:
        candidates: [2 * B, G] int64, each text and what the denoiser drew, one after the other.
        text: [B, G] int64, the text with masks.
        prompt: [B, P] int64, what stands before it; None where P is 0.
        masks: [B] int64, how many there are.
    """

    candidates: torch.Tensor
    text: torch.Tensor
    prompt: torch.Tensor | None
    masks: torch.Tensor


Progress = Callable[[int, float, EnergyHead], None]
"""Called after every step with its number, from 1, its loss, and the head so far."""


def fit_energy_head(
    program: Program,
    texts: torch.Tensor,
    options: EnergyFitOptions | None = None,
    progress: Progress | None = None,
) -> EnergyHead:
    """A head for a program's denoiser, in evaluation mode, its weights averaged over the steps.

    Args:
        program: fills in masked text; tokens are drawn with its own temperature, top-k and top-p.
        texts: [N, P + G] int64 without masks, G the length of the loop; the first P tokens, which
            may be none, are prompts.
        options: see `EnergyFitOptions`.
        progress: what to tell on the way.
    Raises:
        ValueError: the denoiser cannot have a head, or the texts do not fit the program.
    """
    options = options or EnergyFitOptions()
    _check_texts(program, texts)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        head = EnergyHead(program)
    parameters = list(head.parameters())
    averages = [item.detach().clone() for item in parameters]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / options.warmup_steps)
    )
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(1, options.steps + 1):
        while len(order) < options.batch_size:
            order = torch.cat([order, torch.randperm(len(texts), generator=generator)])
        chosen, order = order[: options.batch_size], order[options.batch_size :]
        shown = contrast(program, texts[chosen], generator)
        with torch.autocast(texts.device.type, torch.bfloat16, options.bfloat16):
            loss = pair_losses(head, program, shown).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, options.largest_gradient)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        decay = min(options.average_decay, step / (step + 9))
        torch._foreach_lerp_(averages, [item.detach() for item in parameters], 1 - decay)
        if progress is not None:
            progress(step, loss.item(), head)
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
    return head.eval().requires_grad_(False)


@torch.no_grad()
def contrast(program: Program, texts: torch.Tensor, generator: torch.Generator) -> Contrast:
    """Masks texts, and draws others for the masks.

    The counts of masks are drawn evenly from 1 … G, one from each of as many cells as there are
    texts; tokens are drawn in float64.

    Args:
        texts: [B, P + G] int64.
        generator: of all that is drawn, on the CPU.
    """
    assert program.unmasking is not None
    loop = program.unmasking.loop
    before, text = texts.tensor_split([texts.shape[1] - loop.length], 1)
    batch = len(text)
    cells = torch.randperm(batch, generator=generator)
    shares = (cells + torch.rand(batch, generator=generator, dtype=torch.float64)) / batch
    masks = (shares * loop.length).long() + 1
    keys = torch.rand(text.shape, generator=generator, dtype=torch.float64)
    uniforms = torch.rand(text.shape, generator=generator, dtype=torch.float64)
    hidden = (keys.argsort(-1).argsort(-1) < masks[:, None]).to(text.device)
    masked = text.masked_fill(hidden, loop.mask)
    logits = denoiser_logits(program, torch.cat([before, masked], 1))
    sampling = loop.sampling or Sampling(top_p=None)
    given = [sampling.temperature] + ([] if sampling.top_p is None else [sampling.top_p])
    numbers = [torch.tensor(item, device=text.device) for item in given]
    drawn = rules.drawn(logits, sampling, uniforms.to(text.device), *numbers)
    other = torch.where(hidden, drawn, text)
    candidates = torch.stack([text, other], 1).flatten(0, 1)
    return Contrast(candidates, masked, before if before.shape[1] else None, masks)


def denoiser_logits(program: Program, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, G, V] of a text's own tokens, behind a prompt or none: tokens [B, P + G]."""
    denoiser, unmasking = program.decoder, program.unmasking
    assert denoiser is not None and unmasking is not None
    logits = denoiser.run(program.weights, {"input_ids": tokens})["logits"]
    if unmasking.loop.shifted:
        # Row i foretells token i + 1; nothing foretells the first one but its own row.
        logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
    own = logits[:, tokens.shape[1] - unmasking.loop.length :]
    return rules.text_logits(own, unmasking.loop.mask, unmasking.vocabulary)


def pair_losses(head: EnergyHead, program: Program, shown: Contrast) -> torch.Tensor:
    """The loss of every text and its drawn one, [B] float64; 2 log 2 where both energies are 0."""
    assert program.unmasking is not None
    mask_id = program.unmasking.loop.mask
    energies = head(shown.candidates, shown.text, mask_id, shown.prompt)
    own, drawn = energies.view(-1, 2).unbind(1)
    return -logsigmoid(-own) - logsigmoid(drawn)


@torch.no_grad()
def losses_by_share(
    head: EnergyHead,
    program: Program,
    texts: torch.Tensor,
    parts: int = 4,
    draws: int = 1,
    batch_size: int = 16,
    seed: int = 1,
) -> list[float]:
    """Mean loss over texts with few masks, …, with many: those of each of equal ranges of shares.

    Args:
        texts: [N, P + G] int64, such as the head was not fitted to.
        parts: ranges of the masked share (0, 1].
        draws: of masks and of tokens, for every text.
        batch_size: texts per call.
        seed: of what is drawn.
    Raises:
        ValueError: the texts do not fit the program, or none has so many masks.
    """
    _check_texts(program, texts)
    assert program.unmasking is not None
    generator = torch.Generator().manual_seed(seed)
    losses, places = [], []
    for _ in range(draws):
        for start in range(0, len(texts), batch_size):
            shown = contrast(program, texts[start : start + batch_size], generator)
            losses.append(pair_losses(head, program, shown).cpu())
            places.append((shown.masks - 1) * parts // program.unmasking.loop.length)
    loss, place = torch.cat(losses), torch.cat(places)
    empty = [part for part in range(parts) if not (place == part).any()]
    if empty:
        raise ValueError(
            f"losses_by_share: found no texts in {len(empty)} of {parts} ranges of masked shares; "
            "give more texts or draws, or fewer parts"
        )
    return [float(loss[place == part].mean()) for part in range(parts)]


def _check_texts(program: Program, texts: torch.Tensor) -> None:
    unmasking = program.unmasking
    if unmasking is None:
        raise ValueError(
            "program: found one that does not fill in masked text, expected one that does"
        )
    loop = unmasking.loop
    least, most = loop.length, loop.length + loop.max_prompt
    if texts.ndim != 2 or not least <= texts.shape[1] <= most or not len(texts):
        raise ValueError(
            f"texts: found shape {list(texts.shape)}, expected [N, S] with S in [{least}, {most}], "
            "prompts and the text that the loop fills in"
        )
    if (texts == loop.mask).any() or int(texts.min()) < 0 or int(texts.max()) >= unmasking.logits:
        raise ValueError(
            f"texts: found tokens in [{int(texts.min())}, {int(texts.max())}], expected text in "
            f"[0, {unmasking.logits}) without the mask {loop.mask}"
        )
