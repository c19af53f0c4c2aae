"""What families of transformers vision-language models do around their language model.

Text models need no entry: `language_parts` checks that a model does what a decoder must. An entry
here says where the parts of a model with images are, which images its tower takes, and how it
counts positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from optimize.capture.language_decoder import Attention
from optimize.capture.qwen_tower import QwenTower
from optimize.capture.vision_towers import FullTile, SelectedLayers, WholeImage
from optimize.ir.errors import InputModelError

Size = tuple[int, int]


@dataclass(frozen=True)
class Normalisation:
    """What an image processor does to pixels.

    Attributes:
        mean, std: of (bytes x rescale), one number per channel.
        resample: name of the filter for images of another size.
        rescale: factor from bytes to [0, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str = "bicubic"
    rescale: float = 1 / 255


CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LANCZOS = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "lanczos")


@dataclass(frozen=True)
class Family:
    """One kind of model with images.

    Attributes:
        vision: (model, image size) → module from pixels to features.
        language_model: model → its decoder without the head.
        grid: (model's configuration, image size) → rows and columns of image tokens.
        image_size: configuration → the only size (height, width) the tower takes, or None.
        multiple: configuration → what height and width must be multiples of.
        attention, first_position: as in `LanguageDecoder`.
        axes: of positions; 3 where image tokens have a position per axis.
        pixels: configuration → what the family's image processor does, where none is given.
    """

    vision: Callable[[Any, Size], nn.Module]
    language_model: Callable[[Any], Any]
    grid: Callable[[Any, Size], Size]
    image_size: Callable[[Any], Size | None]
    multiple: Callable[[Any], int]
    attention: Attention = "causal"
    first_position: int = 0
    axes: int = 1
    pixels: Callable[[Any], Normalisation] = lambda config: CLIP


def _square(config: Any) -> Size:
    side = config.vision_config.image_size
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def _patch(config: Any) -> int:
    return int(config.vision_config.patch_size)


def _is_clip(config: Any) -> bool:
    return bool(config.vision_config.model_type == "clip_vision_model")


def _llava_vision(model: Any, size: Size) -> nn.Module:
    config = model.config
    kind = config.vision_config.model_type
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise InputModelError(
            f"model: found LLaVA with a {kind} tower, expected clip_vision_model or "
            "siglip_vision_model; other towers make a number of tokens that differs by image"
        )
    skip = config.vision_feature_select_strategy == "default"
    if skip != _is_clip(config):
        raise InputModelError(
            f"model: found vision_feature_select_strategy={config.vision_feature_select_strategy!r}"
            f" with a {kind} tower, expected 'default' for CLIP and 'full' for SigLIP, so that "
            "image tokens are a grid of patches; a class token among them cannot be captured"
        )
    inner = model.model
    return SelectedLayers(
        inner.vision_tower, inner.multi_modal_projector, config.vision_feature_layer, skip
    )


def _merged(config: Any) -> int:
    return _patch(config) * int(config.vision_config.spatial_merge_size)


def _shuffled(config: Any) -> int:
    return _patch(config) * int(config.scale_factor)


def _cells(multiple: Callable[[Any], int]) -> Callable[[Any, Size], Size]:
    """Rows and columns of tokens that each stand for a square of pixels."""
    return lambda config, size: (size[0] // multiple(config), size[1] // multiple(config))


IDEFICS = Family(
    vision=lambda model, size: FullTile(model.model.vision_model, model.model.connector, size),
    language_model=lambda model: model.model.text_model,
    grid=_cells(_shuffled),
    image_size=_square,
    multiple=_shuffled,
    pixels=lambda config: LANCZOS,
)
QWEN = Family(
    vision=lambda model, size: QwenTower(model.model.visual, size),
    language_model=lambda model: model.model.language_model,
    grid=_cells(_merged),
    image_size=lambda config: None,
    multiple=_merged,
    axes=3,
)
FAMILIES: dict[str, Family] = {
    "llava": Family(
        vision=_llava_vision,
        language_model=lambda model: model.model.language_model,
        grid=_cells(_patch),
        image_size=_square,
        multiple=_patch,
        pixels=lambda config: CLIP if _is_clip(config) else SIGLIP,
    ),
    "paligemma": Family(
        vision=lambda model, size: WholeImage(model.model),
        language_model=lambda model: model.model.language_model,
        grid=_cells(_patch),
        image_size=_square,
        multiple=_patch,
        attention="prefix",
        first_position=1,
        pixels=lambda config: SIGLIP,
    ),
    "smolvlm": IDEFICS,
    "idefics3": IDEFICS,
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
}
"""`config.model_type` → how such models are put together."""
