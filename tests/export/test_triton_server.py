"""Model repositories of Triton Inference Server: parsed by the official protobuf, and run."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.export.layouts import check_layout
from optimize.export.triton_server import write_model_repository
from optimize.ir.errors import RecipeError
from optimize.runtime import load
from optimize.runtime.errors import BundleError, ResourceError
from tests.export import fake_triton
from tests.runtime.toy_language import colours

tritonclient = pytest.importorskip("tritonclient", reason="tritonclient is not installed")


def parsed(path: Path) -> Any:
    """config.pbtxt by the protobuf that the server itself uses."""
    from google.protobuf import text_format

    file = Path(next(iter(tritonclient.__path__))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(path.read_text(), module.ModelConfig()), module


def started(repository: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model as the server starts it."""
    from google.protobuf import json_format

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_triton.module())
    config, _ = parsed(repository / name / "config.pbtxt")
    spec = importlib.util.spec_from_file_location("model", repository / name / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    text = json_format.MessageToDict(config, preserving_proto_field_name=True)
    model.initialize(
        {
            "model_config": json.dumps(text),
            "model_repository": str(repository / name),
            "model_version": "1",
            "model_name": name,
        }
    )
    return model


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    return colours().export(tmp_path_factory.mktemp("language") / "colours")


def test_config_says_what_the_signature_says(tiny_bundle, tmp_path):
    repository = write_model_repository(tiny_bundle, tmp_path / "models", name="tiny-1")
    config, module = parsed(repository / "tiny-1" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("tiny-1", "python", 0)
    with load(tiny_bundle) as session:
        manifest = session.manifest
    inputs = {item.name: item for item in config.input}
    for field in manifest.signature.inputs:
        dims = [size if isinstance(size, int) else -1 for size in field.shape] or [1]
        assert list(inputs[field.name].dims) == dims
        assert inputs[field.name].optional == (field.default is not None)
        kind = module.DataType.Name(inputs[field.name].data_type)
        assert kind == {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}[field.dtype]
    assert inputs["seed"].optional and inputs["seed"].data_type == module.TYPE_UINT64
    assert all(inputs[noise.name].optional for noise in manifest.loop.noise)
    assert {item.name for item in config.output} == set(manifest.loop.results)
    assert module.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) == "KIND_CPU"
    assert not config.HasField("dynamic_batching")


def test_the_server_gets_what_a_session_gives(tiny_bundle, tmp_path, monkeypatch):
    repository = write_model_repository(tiny_bundle, tmp_path / "models", name="tiny")
    model = started(repository, "tiny", monkeypatch)
    with load(tiny_bundle) as session:
        asked = []
        for batch, seed in ((1, 0), (3, 2**64 - 1)):
            fields = {
                item.name: np.zeros(
                    [size if isinstance(size, int) else batch for size in item.shape], item.dtype
                )
                for item in session.signature.inputs
            }
            asked.append((fields, seed))
        requests = [
            fake_triton.Request(seed=np.array([seed], np.uint64), **fields)
            for fields, seed in asked
        ]
        (first, *_) = asked[0][0]
        wrong = {first: np.zeros((1, 99), np.float32)}
        bad = fake_triton.Request(seed=np.array([1], np.uint64), **wrong)
        responses = model.execute([*requests, bad])
        for response, (fields, seed) in zip(responses, asked, strict=False):
            assert response.error is None
            for name, array in session(seed=seed, **fields).items():
                np.testing.assert_array_equal(response.tensors[name], array)
    assert responses[-1].error is not None and "input: " in responses[-1].error.message()
    model.finalize()


def test_text_is_answered_and_streamed(language, tmp_path, monkeypatch):
    whole = write_model_repository(language, tmp_path / "whole")
    model = started(whole, "colours", monkeypatch)
    prompt = np.array([b"what colour"], np.object_)
    (response,) = model.execute([fake_triton.Request(prompt=prompt, seed=np.array([0], np.uint64))])
    with load(language) as session:
        expected = session(prompt="what colour", seed=0)
    assert response.error is None, response.error
    assert response.tensors["text"][0].decode() == expected["text"]
    streamed = write_model_repository(language, tmp_path / "streamed", decoupled=True)
    config, _ = parsed(streamed / "colours" / "config.pbtxt")
    assert config.model_transaction_policy.decoupled
    model = started(streamed, "colours", monkeypatch)
    request = fake_triton.Request(prompt=prompt, seed=np.array([0], np.uint64))
    wrong = fake_triton.Request(nothing=np.zeros(1), seed=np.array([0], np.uint64))
    assert model.execute([request, wrong]) is None
    pieces = [item.tensors["text"][0].decode() for item in request.sender.responses]
    assert request.sender.final and "".join(pieces) == expected["text"] and len(pieces) > 1
    assert wrong.sender.final and wrong.sender.responses[-1].error is not None


def test_what_is_wrong_is_refused_before_anything_is_written(tiny_bundle, tmp_path):
    out = tmp_path / "models"
    with pytest.raises(RecipeError, match=r"name: found '\.\./x', expected letters"):
        write_model_repository(tiny_bundle, out, name="../x")
    with pytest.raises(RecipeError, match="instances: found 0"):
        write_model_repository(tiny_bundle, out, instances=0)
    with pytest.raises(RecipeError, match="decoupled: found no result growing"):
        write_model_repository(tiny_bundle, out, decoupled=True)
    with pytest.raises(BundleError, match="found nothing, expected a bundle folder"):
        write_model_repository(tmp_path / "none", out)
    assert not list(tmp_path.iterdir())
    write_model_repository(tiny_bundle, out)
    with pytest.raises(ResourceError, match="exists; choose another path"):
        write_model_repository(tiny_bundle, out)
    assert write_model_repository(tiny_bundle, out, overwrite=True, kind="gpu") == out
    config = (out / "tiny" / "config.pbtxt").read_text()
    assert "KIND_GPU" in config and "CUDAExecutionProvider" in config
    assert (out / "README.md").is_file()


def test_layouts_and_their_options_are_checked():
    with pytest.raises(RecipeError, match="layout: found 'kserve', expected one of bundle"):
        check_layout("kserve", None)
    with pytest.raises(RecipeError, match="found none with --layout browser"):
        check_layout("browser", None)
    with pytest.raises(RecipeError, match="found one with --layout triton-server"):
        check_layout("triton-server", Path("dist"))
