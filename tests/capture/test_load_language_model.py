"""Language models come from a folder, from the hub or as they are, with what lies beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from optimize.capture.language_parts import parts_of
from optimize.capture.load_language_model import load_language_model
from optimize.ir.errors import InputModelError
from optimize.recipes.zoo.language_families import language_example, reference_logits
from optimize.runtime.errors import ResourceError

transformers = pytest.importorskip("transformers")


@torch.no_grad()
def test_loads_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    example = language_example("llama")
    example.model.save_pretrained(tmp_path)
    found = load_language_model(tmp_path)
    assert found.tokenizer is None and found.processor is None
    ids = torch.arange(3, 9)[None]
    assert torch.equal(reference_logits(found.model, ids), reference_logits(example.model, ids))
    tokenizer(tmp_path)
    again = load_language_model(str(tmp_path))
    assert again.tokenizer.decode(again.tokenizer("a b").input_ids) == "a b"
    assert load_language_model(example.model) == (example.model, None, None)


def test_loads_a_model_with_images_and_its_processor(tmp_path: Path) -> None:
    example = language_example("llava")
    example.model.save_pretrained(tmp_path)
    images = transformers.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3])
    transformers.LlavaProcessor(images, tokenizer(tmp_path), patch_size=6).save_pretrained(tmp_path)
    found = load_language_model(tmp_path)
    assert type(found.model).__name__ == "LlavaForConditionalGeneration"
    assert parts_of(found.model, processor=found.processor).mean == (0.1, 0.2, 0.3)


def tokenizer(folder: Path) -> Any:
    """A tokenizer of a few words, saved to a folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2, "<image>": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    fast.image_token, fast.image_token_id = "<image>", 3
    fast.save_pretrained(folder)
    return fast


def test_errors_of_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputModelError, match=r"found no such folder, expected .*config\.json"):
        load_language_model("/no/such/folder/anywhere")
    with pytest.raises(InputModelError, match=r"found a folder without config\.json"):
        load_language_model(tmp_path)
    with pytest.raises(InputModelError, match="found int, expected a transformers model"):
        load_language_model(3)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ResourceError, match="cannot be loaded: .*; download it where"):
        load_language_model(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="model no-owner/no-model: cannot be loaded"):
        load_language_model("no-owner/no-model")
