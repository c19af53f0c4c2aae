"""Captures a diffusers pipeline: transformer, guidance, scheduler and VAE decoder as one program.

    latent ~ noise → Repeat(denoiser, solver) → decoder → {"latent", "image" or "video"}

Text encoders are not part of the program: a request gives their embeddings under the names of the
transformer's arguments, `negative_<name>` for the unconditional half of guidance. A pipeline may
be loaded without them.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from optimize.capture.decoder import with_decoder
from optimize.capture.families import Family, family_of
from optimize.capture.from_denoiser import capture
from optimize.capture.hub_source import cannot_be_loaded, folder_or_hub_id
from optimize.capture.scheduler import DiffusersSchedule, schedule_of
from optimize.capture.transformer_calls import Size
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.runtime.errors import ResourceError


def capture_pipeline(
    pipeline: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    text_length: int | None = None,
    batch: int = 2,
    dynamic: bool | None = None,
) -> Program:
    """Captures a pipeline at one size.

    Args:
        pipeline: a diffusers pipeline, its folder, or its hub id; left exactly as it was.
        height, width: pixels, multiples of the VAE's scale times the patch; the pipeline's
            default if not given.
        frames: of a video; one more than a multiple of the VAE's temporal scale.
        steps: denoising steps; the pipeline's default if not given.
        guidance_scale: 1 or less turns guidance off. Where the network takes it as an input, it
            is the default of that request field.
        text_length: tokens of the text embeddings.
        batch: of the example; at least 2 where the batch may vary.
        dynamic: as for `capture`.
    Returns:
        A program that returns "latent" and, with a VAE, "image" [B, C, H, W] or "video"
        [B, C, F, H, W], float32 in [0, 1].
    Raises:
        InputModelError: not a pipeline that can be captured, or a size that does not fit.
        NumericsError: NaN or Inf in the weights.
        ResourceError: diffusers is not installed, or a hub id cannot be loaded.
    """
    if isinstance(pipeline, (str, os.PathLike)):
        pipeline = load_pipeline(pipeline)
    family = family_of(pipeline)
    size = size_of(pipeline, family, height, width, frames)
    schedule = _schedule(pipeline, family, size)
    scale = family.guidance_scale if guidance_scale is None else float(guidance_scale)
    guided = scale > 1 and family.embedded_guidance is None
    steps = family.steps if steps is None else steps
    loop = DenoiseLoop(
        prediction=schedule.prediction,
        schedule=schedule,
        steps=steps,
        guidance_scale=scale if guided else None,
        unconditional=family.unconditional if guided else (),
        null_values=family.null_values if guided else {},
        guided_channels=family.guided_channels if guided else None,
    )
    inputs = example_inputs(pipeline, family, size, text_length, batch)
    module = PipelineDenoiser(pipeline.transformer, family, family.constants(pipeline, size))
    program = capture(module, inputs, loop=loop, dynamic=dynamic)
    if schedule.random:
        note = (
            f"{schedule.scheduler} adds noise at every step; the program takes deterministic DDIM "
            "steps at the same noise levels"
        )
        program = replace(program, notes=(*program.notes, note))
    program = _with_ranges(program, _ranges(pipeline, family, scale))
    return with_decoder(program, pipeline, family, size, batch)


def is_pipeline(model: Any) -> bool:
    """Whether an object is a diffusers pipeline; does not import diffusers."""
    names = {kind.__name__ for kind in type(model).__mro__}
    return "DiffusionPipeline" in names and not isinstance(model, nn.Module)


class PipelineDenoiser(nn.Module):
    """A transformer called as its pipeline calls it."""

    def __init__(self, module: nn.Module, family: Family, constants: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.family = family
        self.constants = dict(constants)
        for name, item in constants.items():
            if isinstance(item, torch.Tensor):
                self.register_buffer(name, item.to(_device(module)), persistent=False)
        self.training = module.training

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, **given: torch.Tensor
    ) -> Any:
        """The transformer's output at the scheduler's timestep."""
        tables = {name: getattr(self, name, item) for name, item in self.constants.items()}
        return self.family.call(self.module, hidden_states, timestep, given, tables)


def load_pipeline(source: str | os.PathLike[str]) -> Any:
    """Loads a pipeline from a folder or the hub.

    Raises:
        InputModelError: neither a pipeline folder nor a hub id.
        ResourceError: diffusers is not installed, or the pipeline cannot be had.
    """
    name = folder_or_hub_id(source, "model_index.json", "a diffusers pipeline", "pipeline")
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ResourceError(
            "diffusers is not installed; pip install 'optimize[compile,hf]'"
        ) from error
    try:
        load: Any = DiffusionPipeline.from_pretrained
        return load(name)
    except (OSError, ValueError) as error:
        raise cannot_be_loaded(source, error) from error


def size_of(
    pipeline: Any, family: Family, height: int | None, width: int | None, frames: int | None
) -> Size:
    """What is generated, checked.

    Raises:
        InputModelError: a size that the VAE or the transformer cannot make.
    """
    config = pipeline.transformer.config
    space, time = _scales(pipeline)
    if family.size is not None:
        default = family.size
    else:
        trained = getattr(config, "sample_size", None) or pipeline.__dict__.get(
            "default_sample_size", getattr(config, "sample_height", None)
        )
        columns = getattr(config, "sample_width", None) or trained
        default = (trained * space, columns * space, getattr(config, "sample_frames", None) or 1)
    pixels = [given or usual for given, usual in zip((height, width, frames), default, strict=True)]
    patch = config.patch_size if not family.packed else 2
    patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
    for name, found in zip(("height", "width"), pixels[:2], strict=True):
        if found <= 0 or found % (space * patch):
            raise InputModelError(
                f"{name}: found {found}, expected a multiple of {space * patch} (VAE scale "
                f"{space}, patch {patch})"
            )
    if family.video and (pixels[2] <= 0 or (pixels[2] - 1) % time):
        raise InputModelError(
            f"frames: found {pixels[2]}, expected one more than a multiple of {time}"
        )
    if not family.video and pixels[2] != 1:
        raise InputModelError(
            f"frames: found {pixels[2]}, expected none: the pipeline makes images"
        )
    if family.null_values and pixels[:2] != list(default[:2]):
        raise InputModelError(
            f"height, width: found {pixels[0]}x{pixels[1]}, expected {default[0]}x{default[1]}: "
            f"{type(pipeline).__name__} makes one size only"
        )
    latent_frames = (pixels[2] - 1) // time + 1
    group = getattr(config, "patch_size_t", None)
    if family.frames_first and group:
        latent_frames += -latent_frames % group
    high, wide, long = pixels
    return Size(high, wide, long, high // space, wide // space, latent_frames)


def _scales(pipeline: Any) -> tuple[int, int]:
    """How many pixels and frames one latent cell stands for."""
    time = getattr(pipeline, "vae_scale_factor_temporal", 1)
    for name in ("vae_scale_factor_spatial", "vae_scale_factor"):
        if hasattr(pipeline, name):
            return int(getattr(pipeline, name)), int(time)
    vae = getattr(pipeline, "vae", None)
    return 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8, int(time)


def example_inputs(
    pipeline: Any, family: Family, size: Size, text_length: int | None, batch: int
) -> dict[str, torch.Tensor]:
    """Inputs of the right shapes; their values do not matter."""
    if isinstance(batch, bool) or batch < 1:
        raise InputModelError(f"batch: found {batch!r}, expected a whole number of at least 1")
    config, dtype = pipeline.transformer.config, pipeline.transformer.dtype
    device = _device(pipeline.transformer)
    length = family.text_length if text_length is None else text_length
    fixed = getattr(config, "max_text_seq_length", None)
    if fixed is not None:
        if text_length is not None and text_length != fixed:
            raise InputModelError(f"text_length: found {text_length}, expected {fixed}")
        length = fixed
    inputs = {
        "hidden_states": torch.zeros(
            (batch, *family.shape(config, size)), dtype=dtype, device=device
        ),
        "timestep": torch.zeros(batch, device=device),
    }
    whole = family.integers(config)
    for name, shape in family.conditioning(config, length).items():
        kind = torch.int64 if name in whole else dtype
        inputs[name] = torch.ones((batch, *shape), dtype=kind, device=device)
    return inputs


def _schedule(pipeline: Any, family: Family, size: Size) -> DiffusersSchedule:
    for name in ("boundary_ratio", "expand_timesteps"):
        if pipeline.config.get(name):
            raise InputModelError(
                f"model: found {type(pipeline).__name__} with {name}={pipeline.config[name]}, "
                "expected one transformer with one time for all tokens; capture each transformer "
                "alone with optimize(pipeline.transformer, example_inputs=..., loop=...)"
            )
    config = pipeline.scheduler.config
    mu = None
    if family.shifts and config.get("use_dynamic_shifting"):
        patch = 2 if family.packed else pipeline.transformer.config.patch_size
        tokens = (size.rows // patch) * (size.columns // patch)
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", family.largest_shift)
        mu = low + (high - low) / (many - few) * (tokens - few)
    return schedule_of(pipeline.scheduler, sigmas=family.sigmas, mu=mu)


def _ranges(pipeline: Any, family: Family, scale: float) -> dict[str, dict[str, float | int]]:
    """Request field → default and limits that shapes do not tell."""
    whole = family.integers(pipeline.transformer.config)
    ranges: dict[str, dict[str, float | int]] = {
        name: {"low": 0.0, "high": float(high)} for name, high in whole.items()
    }
    if family.embedded_guidance is not None:
        ranges[family.embedded_guidance] = {"default": scale, "low": 0.0, "high": 1000.0}
    return ranges


def _with_ranges(program: Program, ranges: Mapping[str, Mapping[str, float | int]]) -> Program:
    old = program.signature
    fields = [item.model_copy(update=dict(ranges.get(item.name, {}))) for item in old.inputs]
    return replace(program, signature=old.model_copy(update={"inputs": tuple(fields)}))


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
