"""Bundles of language models: prompts in, text out, token by token."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from optimize.export.bundle import export_bundle
from optimize.ir.errors import PassError, RecipeError
from optimize.ir.spec import check_program
from optimize.runtime import load
from optimize.runtime.bundle import open_bundle
from optimize.runtime.driver import Run
from optimize.runtime.errors import (
    CorruptBundle,
    IntegrityError,
    ResourceError,
    RuntimeInputError,
    UnsafeBundle,
)
from optimize.runtime.manifest import parse_manifest
from optimize.runtime.onnx_engine import OnnxEngine
from optimize.runtime.prompting import Prompting
from tests.runtime import toy_language as toy

SENTENCE = "Die Katze 猫 saß 😀 da."


@pytest.fixture(scope="module")
def program():
    return toy.colours()


@pytest.fixture(scope="module")
def session(program, tmp_path_factory):
    folder = export_bundle(program, tmp_path_factory.mktemp("language") / "b")
    with load(folder, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    made = toy.colours(picture=True)
    check_program(made)
    with load(export_bundle(made, tmp_path_factory.mktemp("seeing") / "b"), threads=1) as opened:
        yield made, opened


def test_a_prompt_is_answered_by_program_and_bundle_alike(program, session):
    check_program(program)
    for prompt, text in (("what colour", "it is red"), ("what", "no")):
        expected, found = program(prompt=prompt), session(prompt=prompt)
        assert found["text"] == expected["text"] == text
        assert isinstance(expected["tokens"], torch.Tensor) and found["tokens"].dtype == np.int64
        np.testing.assert_array_equal(found["tokens"], expected["tokens"].numpy())


def test_several_prompts_are_answered_together_each_up_to_its_end(program, session):
    prompts = ["what", "what colour", "is it"]
    found = session(prompt=prompts)
    assert found["text"] == program(prompt=prompts)["text"] == ["no", "it is red", "no"]
    stop, pad = program.prompting.stop_tokens[0], program.prompting.pad_token
    assert found["tokens"][0].tolist()[1:] == [stop, pad, pad]
    assert session(prompt=["what"])["text"] == ["no"]


def test_plain_fields_are_taken_as_before(session, program):
    fields = session._prompter.asked({"prompt": "what colour"}).fields
    found = session(**fields)
    assert found.keys() == {"tokens"}
    np.testing.assert_array_equal(found["tokens"], session(prompt="what colour")["tokens"])


def test_a_picture_changes_the_answer(seeing):
    program, session = seeing
    dark = np.zeros((toy.HEIGHT, toy.WIDTH, 3), np.uint8)
    pictures = [dark, dark + 255]
    for model in (program, session):
        found = model(prompt=["colour", "colour"], image=pictures)
        assert found["text"] == ["it is red", "it is blue"]
        assert model(prompt="colour", image=pictures[1] / 255)["text"] == "it is blue"
    assert "".join(session.stream(prompt="colour", image=pictures[1])) == "it is blue"
    with pytest.raises(RuntimeInputError, match="image: found none"):
        session(prompt="colour")


def test_text_streams_while_the_loop_runs(session, monkeypatch):
    calls = []
    plain = OnnxEngine.run

    def run(self, graph, inputs, outputs):
        calls.append(graph)
        return plain(self, graph, inputs, outputs)

    monkeypatch.setattr(OnnxEngine, "run", run)
    seen = [(piece, len(calls)) for piece in session.stream(prompt="what colour")]
    assert seen == [("it", 1), (" is", 2), (" red", 3)]
    assert calls == ["prefill", "decode", "decode", "decode"]


def test_a_stream_tells_progress(session):
    seen = []
    list(session.stream(prompt="what", progress=lambda done, total: seen.append((done, total))))
    list(session.stream(
        prompt="what colour", progress=lambda done, total: seen.append((done, total)),
    ))  # fmt: skip
    assert seen == [(1, 7), (2, 7)]


def test_pieces_of_split_characters_add_up_to_the_text(tmp_path):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "</s>"], show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(["Die Katze saß da."] * 3, trainer)
    answer = made.encode(SENTENCE).ids
    prompting = Prompting(
        stop_tokens=(1,), pad_token=0, longest_prompt=12, vocabulary=made.get_vocab_size()
    )
    last = made.encode("?").ids[-1]
    program = toy.speaking(prompting, made.to_str().encode(), {last: (answer,)}, len(answer) + 5)
    with load(export_bundle(program, tmp_path / "b"), threads=1) as session:
        pieces = list(session.stream(prompt="Wo?"))
        assert "".join(pieces) == session(prompt="Wo?")["text"] == SENTENCE
        assert len(pieces) < len(answer) and "" not in pieces
        assert not any("\ufffd" in piece for piece in pieces)


def test_without_a_prompt_the_tokens_stream(session):
    fields = session._prompter.asked({"prompt": ["what", "what colour"]}).fields
    parts = list(session.stream(**fields))
    assert all(part.shape == (2,) and part.dtype == np.int64 for part in parts)
    np.testing.assert_array_equal(np.stack(parts, axis=1), session(**fields)["tokens"])


def test_closing_a_stream_early_frees_the_run(session, monkeypatch):
    made = []
    plain = Run.__post_init__

    def remember(self):
        plain(self)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Run, "__post_init__", remember)
    stream = session.stream(prompt="what colour")
    assert next(stream) == "it"
    (run,) = made
    assert run() is not None
    stream.close()
    assert run() is None
    assert session(prompt="what colour")["text"] == "it is red"


def test_streams_do_not_disturb_one_another(session):
    one, other = session.stream(prompt="what colour"), session.stream(prompt="what")
    assert [next(one), next(other), *one, *other] == ["it", "no", " is", " red"]


def test_a_stream_refuses_its_request_when_it_is_made(session, tiny_bundle):
    with pytest.raises(RuntimeInputError, match="prompt: found 2 prompts, expected one to stream"):
        session.stream(prompt=["what", "colour"])
    with pytest.raises(RuntimeInputError, match="prompt: found '', expected some text"):
        session.stream(prompt="")
    with pytest.raises(RuntimeInputError, match="'input_ids' is missing"):
        session.stream()
    with load(tiny_bundle, threads=1) as plain:
        with pytest.raises(RuntimeInputError, match="stream: found no result growing step by step"):
            plain.stream(seed=0, labels=[1])
        with pytest.raises(RuntimeInputError, match="prompt: found one, .* no tokenizer here"):
            plain(seed=0, labels=[1], prompt="red")


def test_a_closed_session_does_not_stream(program, tmp_path):
    session = load(export_bundle(program, tmp_path / "b"), threads=1)
    session.close()
    with pytest.raises(ResourceError, match="closed session"):
        session.stream(prompt="what")


@pytest.fixture
def bundle(program, tmp_path):
    return export_bundle(program, tmp_path / "bundle")


def change_manifest(bundle, change):
    package = json.loads((bundle / "manifest.json").read_text())
    change(package["additional_metadata"]["optimize"])
    (bundle / "manifest.json").write_text(json.dumps(package))


def test_the_tokenizer_is_hashed_like_every_file(bundle, program):
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    assert manifest.prompting == program.prompting and manifest.format_version == "1.5"
    assert open_bundle(bundle, strict=True).tokenizer == program.assets["tokenizer.json"]
    content = bytearray(program.assets["tokenizer.json"])
    content[-1] ^= 1
    (bundle / "tokenizer.json").write_bytes(content)
    with pytest.raises(IntegrityError, match="tokenizer.json: found sha256"):
        load(bundle)


def test_a_tokenizer_over_the_cap_is_not_read(bundle):
    change_manifest(bundle, lambda m: m["files"]["tokenizer.json"].update(size=64 * 2**20 + 1))
    with pytest.raises(UnsafeBundle, match="tokenizer.json: found 67108865 bytes, expected at mo"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(tokenizer="other.json"), "found no file 'other.json'"),
        (lambda p: p.update(tokens="ids"), "found no request field 'ids'"),
        (lambda p: p.update(template="Q"), "0 times, not 1"),
        (lambda p: p.update(surprise=1), "surprise"),
        (lambda p: p.update(pad_token=-1), "pad_token"),
    ],
)
def test_prompting_that_does_not_fit_the_bundle_is_corrupt(bundle, change, message):
    change_manifest(bundle, lambda manifest: change(manifest["prompting"]))
    with pytest.raises(CorruptBundle, match=message):
        open_bundle(bundle)


def test_readers_of_format_1_1_ignore_it(bundle, monkeypatch):
    change_manifest(bundle, lambda manifest: manifest.update(unheard_of=manifest.pop("prompting")))
    monkeypatch.setattr("optimize.runtime.manifest.FORMAT_MINOR", 1)
    assert parse_manifest((bundle / "manifest.json").read_bytes()).prompting is None


def test_a_bundle_of_format_1_1_is_still_read(bundle):
    def older(manifest):
        manifest["format_version"] = "1.1"
        del manifest["prompting"]

    change_manifest(bundle, older)
    with load(bundle, threads=1) as session:
        fields = {"input_ids": [[1] * toy.COLUMNS], "lengths": [1]}
        assert session(**fields)["tokens"].shape[0] == 1
        with pytest.raises(RuntimeInputError, match="there is no tokenizer here"):
            session(prompt="what")


def test_exporting_twice_gives_the_same_bytes(program, bundle, tmp_path):
    other = export_bundle(program, tmp_path / "other")
    for file in bundle.rglob("*.json"):
        assert file.read_bytes() == (other / file.relative_to(bundle)).read_bytes()


def test_a_program_without_its_tokenizer_is_refused(program, tmp_path):
    lacking = replace(program, assets={})
    with pytest.raises(PassError, match="prompting: found no file 'tokenizer.json'"):
        check_program(lacking)
    with pytest.raises(RecipeError, match="prompting: found no file 'tokenizer.json'"):
        export_bundle(lacking, tmp_path / "b")
    with pytest.raises(RecipeError, match="'tokenizer.json': found an asset of the program there"):
        export_bundle(program, tmp_path / "b", extra_files={"tokenizer.json": b""})
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_does_not_parse_is_told_at_the_first_prompt(program, tmp_path):
    damaged = replace(program, assets={"tokenizer.json": b'{"model": 1}'})
    with load(export_bundle(damaged, tmp_path / "b"), threads=1) as session:
        with pytest.raises(CorruptBundle, match="tokenizer.json: found no tokenizer"):
            session(prompt="what")
        assert session(input_ids=[[1] * toy.COLUMNS], lengths=[1])["tokens"].size
