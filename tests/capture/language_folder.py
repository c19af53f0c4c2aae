"""A tiny LLaVA and its tokenizer in a folder, as `save_pretrained` leaves them."""

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from optimize.recipes.zoo.language_families import IMAGE_TOKEN, VOCABULARY
from tests.passes.tiny_llava import tiny_llava

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, VOCABULARY))]
CHAT = (
    "{% for message in messages %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}w4 <image> {% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} w5"
)


def word_tokenizer() -> Any:
    """A fast tokenizer of words w4, w5, …, that puts <s> before a text."""
    words = [word if number != IMAGE_TOKEN else "<image>" for number, word in enumerate(WORDS)]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    fast.image_token, fast.image_token_id = "<image>", IMAGE_TOKEN
    return fast


def processor(chat: str | None = CHAT) -> Any:
    """A processor of pictures of 24 x 24 pixels, with a chat template."""
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    return transformers.LlavaProcessor(
        images,
        word_tokenizer(),
        patch_size=6,
        num_additional_image_tokens=1,
        chat_template=chat,
        vision_feature_select_strategy="default",
    )


def save_tiny_llava(folder: Path) -> Path:
    """Writes the model, its tokenizer and its processor."""
    tiny_llava().model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
