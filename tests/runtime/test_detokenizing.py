"""Pieces of text add up to the text of all tokens, whatever the tokenizer."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from optimize.runtime.detokenizing import TextStream, text_of

SENTENCES = [
    "the cat sat on the mat",
    "größer schöner weiter, naïve façade",
    "猫が座った。天気がいい",
    "😀 smiles and 👩‍👩‍👧 families",
]


def byte_level():
    """BPE over bytes, with so few merges that most characters beyond ASCII are several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"],
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(SENTENCES, trainer)
    return made


def byte_fallback():
    """Words with marks for spaces, as SentencePiece makes them; unknown characters are bytes."""
    pieces = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat"]
    pieces += ["▁▁", *"thecasonm", "é"]
    made = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True
        )
    )
    made.add_special_tokens(["<s>", "</s>"])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return made


def metaspace():
    pieces = ["<s>", "</s>", "▁the", "▁cat", "s", "▁", "at"]
    made = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="s"))
    made.add_special_tokens(["<s>", "</s>"])
    made.decoder = decoders.Metaspace()
    return made


def words():
    pieces = ["<s>", "</s>", "the", "cat", "sat"]
    made = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}))
    made.add_special_tokens(["<s>", "</s>"])
    return made


TOKENIZERS = {made.__name__: made() for made in (byte_level, byte_fallback, metaspace, words)}


def pieces_of(tokenizer, tokens, stop_tokens=()):
    stream = TextStream(tokenizer, stop_tokens)
    return [*(stream.push(token) for token in tokens), stream.rest()]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_of_random_tokens_add_up(name):
    """Invalid bytes, special tokens and numbers that are no tokens are among them."""
    tokenizer, draw = TOKENIZERS[name], random.Random(0)
    size = tokenizer.get_vocab_size()
    for length in (0, 1, 2, 5, 40, 100, 400) * 10:
        tokens = [draw.randrange(size + 2) for _ in range(length)]
        assert "".join(pieces_of(tokenizer, tokens)) == text_of(tokenizer, tokens, ())


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_character_comes_whole_with_its_last_token(sentence):
    tokenizer = TOKENIZERS["byte_level"]
    tokens = tokenizer.encode(sentence).ids
    pieces = pieces_of(tokenizer, tokens)
    assert "".join(pieces) == sentence
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""
    # As early as can be: what was given is always all but an unfinished character.
    for count in range(1, len(tokens)):
        whole = tokenizer.decode(tokens[:count])
        assert "".join(pieces[:count]) == whole.removesuffix("\ufffd")


def test_some_characters_take_several_tokens():
    tokenizer = TOKENIZERS["byte_level"]
    pieces = pieces_of(tokenizer, tokenizer.encode("😀猫").ids)
    assert pieces.count("") > 2 and "".join(pieces) == "😀猫"


def test_an_unfinished_character_at_the_end_is_shown_as_such():
    tokenizer = TOKENIZERS["byte_level"]
    tokens = tokenizer.encode("a👧").ids[:-1]
    *pieces, rest = pieces_of(tokenizer, tokens)
    assert "".join(pieces) == "a" and rest == "\ufffd"


def test_bytes_that_later_ones_make_invalid_are_not_shown_early():
    tokenizer = TOKENIZERS["byte_fallback"]
    tokens = [tokenizer.token_to_id(name) for name in ("t", "<0xC3>", "<0xA9>", "<0xFF>", "h")]
    assert pieces_of(tokenizer, tokens) == ["t", "", "", "", "\ufffd\ufffd\ufffdh", ""]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_stop_tokens_and_what_follows_are_not_shown(name):
    tokenizer = TOKENIZERS[name]
    stream = TextStream(tokenizer, (1, 3))
    shown = stream.push(2)
    assert not stream.finished
    assert [stream.push(3), stream.push(2)] == ["", ""] and stream.finished
    assert shown + stream.rest() == text_of(tokenizer, [2, 3, 2], (1, 3))
    assert text_of(tokenizer, [2, 3, 2], (1, 3)) == tokenizer.decode([2])
