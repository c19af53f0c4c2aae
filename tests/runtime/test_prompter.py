"""Prompts become tokens as the template says, and what does not fit is refused."""

import json
import re
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from optimize.runtime.errors import CorruptBundle, ResourceError, RuntimeInputError, UnsafeBundle
from optimize.runtime.loop import Input, Signature
from optimize.runtime.prompter import Prompter
from optimize.runtime.prompting import ImageInput, Prompting, prompting_problems
from optimize.runtime.tokenizer_file import parse_tokenizer

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "red", "blue", "what", "is", "it", "Q", "A", ":"]
PAD, BOS, EOS = 0, 2, 3


def tokenizer(single="<s> $A </s>"):
    """Words apart at spaces, with a special token at both ends."""
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(WORDS[:4])
    specials = [("<s>", BOS), ("</s>", EOS)]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    return made


def signature(columns="prompt", picture=False, prompt=(1, 64)):
    inputs = [
        Input(name="input_ids", dtype="int64", shape=("batch", columns)),
        Input(name="lengths", dtype="int64", shape=("batch",)),
    ]
    if picture:
        inputs.append(
            Input(name="pixel_values", dtype="float32", shape=("batch", 3, 4, 6)),
        )
    dimensions = {"batch": (1, 8), "prompt": prompt}
    return Signature(inputs=tuple(inputs), dimensions=dimensions, outputs=("tokens",))


def with_image_field():
    plain = signature()
    image = Input(name="image", dtype="float32", shape=("batch",))
    return plain.model_copy(update={"inputs": (*plain.inputs, image)})


def picture(**options):
    return ImageInput(height=4, width=6, mean=(0.0,) * 3, std=(1.0,) * 3, **options)


def made(made_signature=None, content=None, **options):
    options = {
        "pad_token": PAD, "longest_prompt": 16, "vocabulary": len(WORDS), **options
    }  # fmt: skip
    prompting = Prompting(stop_tokens=(EOS,), **options)
    given = signature(picture=prompting.image is not None)
    content = tokenizer().to_str().encode() if content is None else content
    return Prompter(prompting, made_signature or given, content)


IMAGE = np.zeros((4, 6, 3), np.uint8)


def words_of(fields, row=0):
    return [WORDS[i] for i in fields["input_ids"][row, : fields["lengths"][row]]]


def test_the_prompt_takes_its_place_in_the_template_after_the_first_special_token():
    asked = made(template="Q: {prompt} A:").asked({"prompt": "what is it", "seed": 1})
    assert words_of(asked.fields) == ["<s>", "Q", ":", "what", "is", "it", "A", ":"]
    assert asked.fields["input_ids"].shape == (1, 8) and asked.fields["seed"] == 1
    assert asked.fields["input_ids"].dtype == asked.fields["lengths"].dtype == np.int64


def test_prompts_of_different_lengths_are_padded_on_the_right():
    fields = made().asked({"prompt": ["what is it", "red"]}).fields
    assert fields["input_ids"].tolist() == [[BOS, 6, 7, 8], [BOS, 4, PAD, PAD]]
    assert fields["lengths"].tolist() == [4, 2]


@pytest.mark.parametrize("columns", ["prompt", 12])
def test_prompts_are_as_wide_as_the_model_wants_at_least(columns):
    fields = made(signature(columns, prompt=(12, 64))).asked({"prompt": "red"}).fields
    assert fields["input_ids"].tolist() == [[BOS, 4, *[PAD] * 10]]
    assert fields["lengths"].tolist() == [2]


def test_without_special_tokens_there_are_none():
    assert words_of(made(add_special_tokens=False).asked({"prompt": "red"}).fields) == ["red"]


def test_braces_and_markers_in_a_prompt_are_text():
    template = "Q <image> {prompt}"
    prompter = made(template=template, image=picture(), image_offset=2)
    plain = prompter.asked({"prompt": "is it", "image": IMAGE}).fields
    marked = prompter.asked({"prompt": "{prompt} <image> {0}", "image": IMAGE}).fields
    assert words_of(plain) == ["<s>", "Q", "is", "it"]
    assert words_of(marked)[:2] == ["<s>", "Q"] and words_of(marked)[2] == "<unk>"


@pytest.mark.parametrize(
    ("template", "offset", "expected"),
    [
        ("Q: <image> {prompt} A", 3, ["<s>", "Q", ":", "red", "A"]),
        ("<image>{prompt}", 1, ["<s>", "red"]),
        (" <image>{prompt}", 1, ["<s>", "red"]),
    ],
)
def test_the_texts_around_a_picture_are_tokenized_apart(template, offset, expected):
    prompter = made(template=template, image=picture(), image_offset=offset)
    assert words_of(prompter.asked({"prompt": "red", "image": IMAGE}).fields) == expected


def test_a_tokenizer_that_puts_the_picture_elsewhere_is_refused():
    prompter = made(template="Q: <image> {prompt}", image=picture(), image_offset=2)
    with pytest.raises(CorruptBundle, match="found 3 tokens before the picture, expected 2"):
        prompter.asked({"prompt": "red", "image": IMAGE})


def test_one_picture_serves_all_prompts_and_a_list_has_one_for_each():
    prompter = made(template="<image>{prompt}", image=picture(), image_offset=1)
    white = np.full_like(IMAGE, 255)
    same = prompter.asked({"prompt": ["red", "blue"], "image": white}).fields["pixel_values"]
    assert same.shape == (2, 3, 4, 6) and same.dtype == np.float32 and (same == 1).all()
    apart = prompter.asked({"prompt": ["red", "blue"], "image": [IMAGE, white]}).fields
    assert apart["pixel_values"].mean((1, 2, 3)).tolist() == [0.0, 1.0]


PICTURES = {"template": "<image>{prompt}", "image": picture(), "image_offset": 1}


@pytest.mark.parametrize(
    ("options", "request_", "message"),
    [
        ({}, {"prompt": ""}, "prompt: found '', expected some text"),
        ({}, {"prompt": " \n"}, "expected some text"),
        ({}, {"prompt": ["red", ""]}, "prompt: found '', expected some text"),
        ({}, {"prompt": []}, "found an empty list, expected at least one prompt"),
        ({}, {"prompt": 3}, "prompt: found int, expected text or a list"),
        ({}, {"prompt": ["red", b"x"]}, "prompt: found bytes in a list, expected text"),
        ({}, {"prompt": "\x00\ud800"}, "found text that cannot be tokenized"),
        ({}, {"prompt": "red " * 16}, "found 17 tokens with the template, expected at most 16"),
        ({"longest_prompt": 99}, {"prompt": "red " * 64}, "found 65 tokens .* at most 64"),
        ({}, {"prompt": "red", "image": IMAGE}, "image: found one, expected none: .* text only"),
        ({}, {"image": IMAGE}, "image: found no prompt with it"),
        ({}, {"prompt": "red", "input_ids": [[1]]}, "found both 'input_ids' and what it is made"),
        (PICTURES, {"prompt": "red"}, "image: found none, expected one for each prompt"),
        (PICTURES, {"prompt": "red", "image": [IMAGE] * 2}, "found 2 pictures for 1 prompt, exp"),
        (PICTURES, {"prompt": ["red"] * 3, "image": [IMAGE] * 2}, "2 pictures for 3 prompts, exp"),
        (PICTURES, {"prompt": "red", "image": []}, "found 0 pictures for 1 prompt"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, request_, message):
    with pytest.raises(RuntimeInputError, match=message):
        made(**options).asked(request_)


def test_special_tokens_alone_are_no_prompt():
    deaf = tokenizer()
    deaf.normalizer = normalizers.Replace("red", "")
    with pytest.raises(RuntimeInputError, match="found no tokens in 'red', expected some"):
        made(content=deaf.to_str().encode()).asked({"prompt": "red"})


def test_a_request_without_prompt_stays_as_it_is():
    request = {"input_ids": [[1]], "lengths": [1], "prompt": None}
    asked = made().asked(request)
    assert asked.fields == {"input_ids": [[1]], "lengths": [1]}
    assert made().answer(asked, {"tokens": np.zeros((1, 2))}).keys() == {"tokens"}


def test_answers_end_at_the_first_stop_token():
    results = {"tokens": np.array([[4, 5, EOS, 6], [EOS, 4, 4, 4], [4, 5, 6, 7]])}
    prompter = made()
    asked = prompter.asked({"prompt": ["it", "it", "it"]})
    assert prompter.answer(asked, results)["text"] == ["red blue", "", "red blue what is"]
    one = prompter.asked({"prompt": "it"})
    assert prompter.answer(one, {"tokens": results["tokens"][:1]})["text"] == "red blue"


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused_where_it_matters():
    prompter = made(vocabulary=9)
    prompter.asked({"prompt": "it"})
    with pytest.raises(CorruptBundle, match="found token 10, expected one of the model's 9"):
        prompter.asked({"prompt": "A"})


def test_cutting_and_padding_of_the_tokenizer_file_do_not_count():
    cutting = tokenizer()
    cutting.enable_truncation(2)
    cutting.enable_padding(length=9)
    fields = made(content=cutting.to_str().encode()).asked({"prompt": "what is it"}).fields
    assert words_of(fields) == ["<s>", "what", "is", "it"]


def test_damaged_tokenizer_files_are_corrupt():
    whole = tokenizer().to_str().encode()
    for content in (b"", b"{}", b"\xff", b"[" * 100_000, whole[: len(whole) // 2]):
        prompter = made(content=content)
        with pytest.raises(CorruptBundle, match="tokenizer.json: found no tokenizer: "):
            prompter.asked({"prompt": "red"})
    for place in range(0, len(whole), 7):
        try:
            parse_tokenizer("t.json", whole[:place] + b"\0" + whole[place + 1 :])
        except CorruptBundle:
            continue


def test_merges_that_would_abort_the_library_are_refused():
    model = {
        "type": "BPE", "vocab": {"é": 0, "a": 1, "aé": 2, "xé": 3, "axé": 4},
        "continuing_subword_prefix": "x",
    }  # fmt: skip
    for merges in ([["a", "é"]], ["a é"], [["a"]], [[]], [3], [{}]):
        content = json.dumps({"model": {**model, "merges": merges}}).encode()
        with pytest.raises(CorruptBundle, match="found no tokenizer: merge .* begins with 'x'"):
            parse_tokenizer("t.json", content)
    good = json.dumps({"model": {**model, "merges": [["a", "xé"]]}}).encode()
    assert parse_tokenizer("t.json", good).get_vocab_size() == 5


def test_a_tokenizer_file_over_64_mebibytes_is_refused(monkeypatch):
    monkeypatch.setattr("optimize.runtime.tokenizer_file.MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(UnsafeBundle, match=r"tokenizer.json: found \d+ bytes, expected at most"):
        made()


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    prompter = made(content=b"{}")
    assert prompter.asked({"input_ids": [[1]]}).fields == {"input_ids": [[1]]}
    with pytest.raises(ResourceError, match=r"tokenizers, .* pip install 'optimize\[text\]'"):
        prompter.asked({"prompt": "red"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "Q"}, "{prompt}. 0 times, not 1"),
        ({"template": "{prompt} {prompt}"}, "{prompt}. 2 times, not 1"),
        ({"image": picture(), "template": "{prompt}"}, "<image>. 0 times, not 1"),
        ({"image": picture(), "template": "<image><image>{prompt}"}, "<image>. 2 times, not 1"),
        ({"image": picture(), "template": "{prompt}<image>"}, "expected after it"),
        ({"image_offset": 3}, "3 in a model without pictures"),
        ({"pad_token": 12}, "`pad_token` is 12 of 12 tokens"),
        ({"tokens": "lengths"}, "expected other names"),
        ({"image": picture(field="image"), "template": "<image>{prompt}"}, "expected other names"),
    ],
)
def test_prompting_that_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_means_and_deviations_are_one_per_channel():
    with pytest.raises(ValueError, match="`std` has 2 numbers, expected one for each of the 3"):
        ImageInput(height=1, width=1, mean=(0.0,) * 3, std=(1.0,) * 2)


@pytest.mark.parametrize(
    ("options", "signature_", "message"),
    [
        ({"tokenizer": "other.json"}, signature(), "found no file 'other.json' for the tokenizer"),
        ({"tokens": "ids"}, signature(), "no request field 'ids', known: input_ids, lengths"),
        ({"lengths": "pixel_values"}, signature(picture=True), r"as float32 .*expected int64 \[b"),
        (PICTURES, signature(), "found no request field 'pixel_values'"),
        ({}, signature("2*prompt"), "found prompts '2.prompt' wide, expected one of batch, prompt"),
        ({}, signature("other"), "found prompts 'other' wide"),
        ({}, with_image_field(), "found a request field 'image', expected another name"),
        ({"result": "text"}, signature(), "found no result 'text' for the tokens, known: tokens"),
        (
            PICTURES | {"image": ImageInput(height=9, width=6, mean=(0.0,) * 3, std=(1.0,) * 3)},
            signature(picture=True),
            r"found field 'pixel_values' as float32 \[batch, 3, 4, 6\], expected float32 \[batch, 3"
            r", 9, 6\]",
        ),
    ],
)
def test_prompting_is_checked_against_the_signature(options, signature_, message):
    prompting = Prompting(pad_token=0, longest_prompt=16, vocabulary=12, **options)
    (problem,) = prompting_problems(prompting, signature_, {"tokenizer.json"})
    assert re.search(message, problem)
