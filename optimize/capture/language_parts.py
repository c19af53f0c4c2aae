"""A loaded transformers model as vision and decoder, as language models are captured.

    pixels ─▶ vision ─▶ features ─▶ decoder(tokens, positions, mask, features) ─▶ logits

The model's own modules compute; the user's model stays as it is. Whether a model is one that can be
captured is found out by running it on a few tokens, so that families that go the usual way need no
entry of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from optimize.capture.check_model import check_module
from optimize.capture.language_checks import check_behaviour, check_configuration
from optimize.capture.language_decoder import LanguageDecoder, Positions
from optimize.capture.language_families import FAMILIES, Family, Normalisation, Size
from optimize.ir.errors import InputModelError


@dataclass(frozen=True)
class LanguageParts:
    """A language model's modules, and what becomes of an image before it.

    Attributes:
        vision: pixels float32 [B, C, H, W] → features [B, N, D]; None for a text model.
        decoder: text and features → logits.
        image_size: (H, W) in pixels; None for a text model, as everything below.
        channels: C.
        grid: rows and columns of the N image tokens.
        mean, std: what (pixels x rescale) is normalised with, one number per channel.
        rescale: factor from bytes to [0, 1].
        resample: name of the filter for images of another size.
    """

    vision: nn.Module | None
    decoder: LanguageDecoder
    image_size: Size | None = None
    channels: int = 3
    grid: Size | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    rescale: float = 1 / 255
    resample: str = "bicubic"

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of an image; None for a text model."""
        return None if self.image_size is None else (self.channels, *self.image_size)


def parts_of(
    model: Any,
    image_size: Size | None = None,
    prefix: int = 0,
    *,
    processor: Any = None,
) -> LanguageParts:
    """Takes a transformers language model apart.

    Args:
        model: a loaded model with a language-modelling head, with or without images.
        image_size: (height, width) in pixels; needed where the tower takes any.
        prefix: text tokens before the image.
        processor: the model's processor or image processor; its normalisation is used.
    Raises:
        InputModelError: a model, or a size, that cannot be captured.
    """
    check_module(model)
    config = check_configuration(model)
    if isinstance(prefix, bool) or not isinstance(prefix, int) or prefix < 0:
        raise InputModelError(f"prefix: found {prefix!r}, expected a number of tokens, 0 or more")
    family = FAMILIES.get(config.model_type)
    other = [name for name in ("vision_config", "audio_config") if hasattr(config, name)]
    if family is None and other:
        raise InputModelError(
            f"model: found {type(model).__name__} with {', '.join(other)}, expected a text model "
            f"or one of type {', '.join(sorted(FAMILIES))}; the towers of others are not known"
        )
    with _evaluation(model):
        if family is None:
            parts = _text_parts(model, config, image_size)
        else:
            parts = _image_parts(model, config, family, image_size, prefix, processor)
    for module in (parts.vision, parts.decoder):
        if module is not None:
            module.training = model.training
    return parts


def _text_parts(model: Any, config: Any, image_size: Size | None) -> LanguageParts:
    if image_size is not None:
        raise InputModelError(
            f"image_size: found {image_size} for {type(model).__name__}, expected none: the model "
            "takes no images"
        )
    decoder = _decoder(model, model, None, Positions())
    check_behaviour(model, decoder)
    return LanguageParts(vision=None, decoder=decoder)


def _image_parts(
    model: Any,
    config: Any,
    family: Family,
    image_size: Size | None,
    prefix: int,
    processor: Any,
) -> LanguageParts:
    size = _size(config, family, image_size)
    rows, columns = family.grid(config, size)
    grid = (rows, columns) if family.axes > 1 else None
    decoder = _decoder(
        model,
        family.language_model(model),
        model.get_output_embeddings(),
        Positions(family.first_position, grid, family.axes),
        attention=family.attention,
        image_offset=prefix,
        image_tokens=rows * columns,
    )
    check_behaviour(model, decoder)
    vision = family.vision(model, size)
    channels = getattr(config.vision_config, "num_channels", 3)
    _check_features(vision, decoder, (channels, *size), rows * columns)
    pixels = _normalisation(family.pixels(config), processor)
    return LanguageParts(
        vision=vision,
        decoder=decoder,
        image_size=size,
        channels=channels,
        grid=(rows, columns),
        mean=pixels.mean,
        std=pixels.std,
        rescale=pixels.rescale,
        resample=pixels.resample,
    )


def _decoder(
    model: Any, body: Any, head: nn.Module | None, positions: Positions, **image: Any
) -> LanguageDecoder:
    text = model.config.get_text_config()
    window = smallest_window(text)
    longest = text.max_position_embeddings - positions.first
    return LanguageDecoder(
        body,
        head,
        positions=positions,
        vocabulary=int(model.get_output_embeddings().weight.shape[0]),
        max_positions=longest if window is None else min(longest, window),
        window=window,
        **image,
    )


def smallest_window(config: Any) -> int | None:
    """The sliding window, in tokens, of the layers of a text model that have one."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        used = "sliding_attention" in layers
    else:
        used = getattr(config, "use_sliding_window", True)
    return int(window) if window and used else None


def _size(config: Any, family: Family, found: Size | None) -> Size:
    only = family.image_size(config)
    size = only if found is None else found
    multiple = family.multiple(config)
    if size is None:
        raise InputModelError(
            f"image_size: found none, expected (height, width) in multiples of {multiple}: a model "
            f"of type {config.model_type} takes images of any size, and one is captured"
        )
    whole = (
        isinstance(size, (tuple, list))
        and len(size) == 2
        and all(isinstance(side, int) and side > 0 for side in size)
    )
    if not whole or any(side % multiple for side in size):
        raise InputModelError(
            f"image_size: found {size!r}, expected (height, width) in multiples of {multiple}"
        )
    if only is not None and tuple(size) != only:
        raise InputModelError(
            f"image_size: found {size[0]}x{size[1]}, expected {only[0]}x{only[1]}: the tower has "
            "positions for that size only"
        )
    return size[0], size[1]


def _check_features(
    vision: nn.Module, decoder: LanguageDecoder, shape: tuple[int, ...], tokens: int
) -> None:
    weight: Any = decoder.model.get_input_embeddings().weight  # type: ignore[operator]
    with torch.no_grad():
        found = vision(torch.zeros(1, *shape, dtype=torch.float32, device=weight.device)).shape
    expected = (1, tokens, weight.shape[1])
    if tuple(found) != expected:
        raise InputModelError(
            f"model: found image features {list(found)} for pixels {list(shape)}, expected "
            f"{list(expected)}; the tower does not make one token per cell of its grid"
        )


def _normalisation(usual: Normalisation, processor: Any) -> Normalisation:
    """What a processor does, or what the family's usually does if there is none."""
    images = getattr(processor, "image_processor", processor)
    if images is None:
        return usual
    channels = len(usual.mean)
    normalises = getattr(images, "do_normalize", True)
    mean = tuple(images.image_mean) if normalises else (0.0,) * channels
    std = tuple(images.image_std) if normalises else (1.0,) * channels
    rescale = float(images.rescale_factor) if getattr(images, "do_rescale", True) else 1.0
    code = getattr(images, "resample", None)
    if code is None:
        return Normalisation(mean, std, usual.resample, rescale)
    from PIL.Image import Resampling

    return Normalisation(mean, std, Resampling(int(code)).name.lower(), rescale)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the checks; every submodule is put back as it was."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag
