"""Model repositories of Triton: the configuration, and model.py run as the server runs it."""

import importlib.util
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimize.export.bundle import export_bundle
from optimize.export.triton_config import Tensor, _unique
from optimize.export.triton_server import write_model_repository
from optimize.ir.errors import RecipeError
from optimize.runtime import load
from optimize.runtime.errors import IntegrityError, ResourceError, UnsafeBundle
from optimize.runtime.loop import Input
from optimize.runtime.signing import sign_bundle
from tests.export import fake_triton as fake
from tests.loading import module_at
from tests.runtime import toy_language as toy

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def config_class():
    """NVIDIA's own ModelConfig; from its file, as the package around it needs gRPC."""
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.skip("needs the package tritonclient, found none")
    folder = Path(next(iter(found.submodule_search_locations)))
    return module_at(folder / "grpc" / "model_config_pb2.py").ModelConfig


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return export_bundle(toy.colours(), tmp_path_factory.mktemp("language") / "colours")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return export_bundle(toy.colours(picture=True), tmp_path_factory.mktemp("seeing") / "b")


@pytest.fixture
def serve(config_class, tmp_path):
    """Writes the repository of a bundle and loads its model; closes it after the test."""
    servers = []

    def start(bundle, name="model", **options):
        repository = write_model_repository(bundle, tmp_path / "models", name=name, **options)
        servers.append(fake.Server(repository, name, config_class))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def declared(config, field):
    """Inputs or outputs of a ModelConfig as (name, type, dims, optional)."""
    types = type(config).DESCRIPTOR.fields_by_name["input"].message_type
    names = types.fields_by_name["data_type"].enum_type.values_by_number
    return [
        (item.name, names[item.data_type].name, list(item.dims), getattr(item, "optional", False))
        for item in getattr(config, field)
    ]


def texts(array):
    return [item.decode() for item in array]


def test_the_configuration_declares_fields_noise_seed_and_results(serve, tiny_bundle):
    config = serve(tiny_bundle, "tiny.dit-1", instances=2, concurrency=3, threads=1).message
    assert (config.name, config.backend, config.max_batch_size) == ("tiny.dit-1", "python", 0)
    assert declared(config, "input") == [
        ("labels", "TYPE_INT64", [-1], False),
        ("latent", "TYPE_FP32", [-1, 1, 8, 8], True),
        ("seed", "TYPE_UINT64", [1], True),
    ]
    assert declared(config, "output") == [("image", "TYPE_FP32", [-1, 1, 8, 8], False)]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, type(group).KIND_CPU)
    assert {key: item.string_value for key, item in config.parameters.items()} == {
        "concurrency": "3",
        "threads": "1",
    }
    assert not config.HasField("dynamic_batching")
    assert not config.model_transaction_policy.decoupled


def test_the_configuration_declares_prompts_pictures_and_texts(serve, seeing):
    config = serve(seeing).message
    assert declared(config, "input") == [
        ("input_ids", "TYPE_INT64", [-1, 12], True),
        ("lengths", "TYPE_INT64", [-1], True),
        ("pixel_values", "TYPE_FP32", [-1, 3, 4, 6], True),
        ("prompt", "TYPE_STRING", [-1], True),
        ("image", "TYPE_UINT8", [-1, -1, -1, 3], True),
        ("seed", "TYPE_UINT64", [1], True),
    ]
    assert declared(config, "output") == [
        ("tokens", "TYPE_INT64", [-1, -1], False),
        ("text", "TYPE_STRING", [-1], False),
    ]


def test_a_gpu_instance_asks_for_the_gpu(config_class, tiny_bundle, tmp_path):
    repository = write_model_repository(tiny_bundle, tmp_path / "models", name="m", device="gpu")
    text = (repository / "m" / "config.pbtxt").read_text()
    config = fake.text_format.Parse(text, config_class())
    assert config.instance_group[0].kind == type(config.instance_group[0]).KIND_GPU
    readme = (repository / "README.md").read_text()
    assert "--gpus all" in readme and "onnxruntime-gpu" in readme


@pytest.mark.parametrize(
    ("parameters", "kind", "expected"),
    [
        ({}, "CPU", {"target": None, "trust": None, "threads": None}),
        ({"threads": "2"}, "CPU", {"target": None, "trust": None, "threads": 2}),
        ({}, "GPU", {"target": None, "trust": None, "threads": None, "providers": "GPU"}),
        ({"trust": "native"}, "GPU", {"target": None, "trust": "native", "threads": None}),
        (
            {"trust": "native", "target": "aoti"},
            "CPU",
            {"target": "aoti", "trust": "native", "threads": None},
        ),
    ],
)
def test_an_instance_loads_the_bundle_as_its_parameters_say(
    serve, tiny_bundle, monkeypatch, parameters, kind, expected
):
    server = serve(tiny_bundle)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    asked = {}

    def loading(path, **options):
        asked.update(options)
        return server.model._session

    monkeypatch.setattr(server.module, "load", loading)
    server.initialize(kind, {name: {"string_value": item} for name, item in parameters.items()})
    if "providers" in expected:
        expected = expected | {"providers": server.module.GPU_PROVIDERS}
    assert asked == expected


@pytest.mark.parametrize(
    ("before", "device", "after"), [(None, 1, "1"), ("4,7", 1, "7"), ("GPU-a, GPU-b", 0, "GPU-a")]
)
def test_an_instance_sees_only_its_own_gpu(serve, tiny_bundle, monkeypatch, before, device, after):
    module = serve(tiny_bundle).module
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before or "")
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    module._see_only(device)
    assert module.os.environ["CUDA_VISIBLE_DEVICES"] == after


def test_answers_equal_the_sessions_own_at_every_batch(serve, tiny_bundle):
    server = serve(tiny_bundle)
    with load(tiny_bundle) as session:
        for labels, seed in (([3], 0), ([1, 2, 3], 2**64 - 1)):
            expected = session(seed=seed, labels=labels)["image"]
            found = server.answer(labels=np.array(labels), seed=np.array([seed], np.uint64))
            np.testing.assert_array_equal(found["image"], expected)
        noise = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
        expected = session(labels=[1, 2], latent=noise)["image"]
    found = server.answer(labels=np.array([1, 2]), latent=noise)
    np.testing.assert_array_equal(found["image"], expected)


def test_scalars_and_sizes_reach_the_session_as_numbers(serve, toy_program, tmp_path):
    signature = toy_program.signature
    shift = signature.inputs[0]
    assert shift.shape == ("batch",)
    # With a default, `shift` no longer shows the batch, so a request may name it.
    default = Input(name="shift", dtype=shift.dtype, shape=shift.shape, default=0.25)
    program = replace(toy_program, signature=signature.model_copy(update={"inputs": (default,)}))
    bundle = export_bundle(program, tmp_path / "b")
    server = serve(bundle)
    assert ("batch", "TYPE_INT64", [1], True) in declared(server.message, "input")
    found = server.answer(batch=np.array([3]), seed=np.array([1], np.uint64))["latent"]
    with load(bundle) as session:
        np.testing.assert_array_equal(found, session(batch=3, seed=1)["latent"])


def test_several_requests_run_at_once_and_keep_apart(serve, tiny_bundle, monkeypatch):
    server = serve(tiny_bundle, concurrency=3, threads=1)
    together = threading.Barrier(3, timeout=30)
    session = server.model._session
    plain = type(session).__call__

    def meeting(self, **request):
        together.wait()
        return plain(self, **request)

    monkeypatch.setattr(type(session), "__call__", meeting)
    requests = [
        {"labels": np.array([label]), "seed": np.array([label], np.uint64)} for label in range(6)
    ]
    senders = server.send(*requests)
    assert all(sender.done.wait(60) for sender in senders)
    monkeypatch.undo()
    for label, sender in enumerate(senders):
        found = fake.tensors(sender.responses[0])["image"]
        np.testing.assert_array_equal(found, session(seed=label, labels=[label])["image"])


def test_prompts_are_answered_one_or_several(serve, language):
    server = serve(language)
    one = server.answer(prompt=np.array([b"what colour"], np.object_))
    assert texts(one["text"]) == ["it is red"]
    several = server.answer(prompt=np.array([b"what", b"what colour"], np.object_))
    assert texts(several["text"]) == ["no", "it is red"]
    with load(language) as session:
        expected = session(prompt=["what", "what colour"])["tokens"]
        fields = session._prompter.asked({"prompt": "what colour"}).fields
    np.testing.assert_array_equal(several["tokens"], expected)
    plain = server.answer(**fields)
    assert set(plain) == {"tokens"}
    np.testing.assert_array_equal(plain["tokens"], one["tokens"])


def test_pictures_go_with_their_prompts(serve, seeing):
    server = serve(seeing)
    dark, bright = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 255, np.uint8)
    prompts = np.array([b"what colour"] * 2, np.object_)
    assert texts(server.answer(prompt=prompts, image=np.stack([dark, bright]))["text"]) == [
        "it is red",
        "it is blue",
    ]
    assert texts(server.answer(prompt=prompts, image=bright[None])["text"]) == ["it is blue"] * 2


def test_a_decoupled_model_streams_text_and_tokens(serve, language):
    server = serve(language, stream=True)
    assert server.message.model_transaction_policy.decoupled
    assert declared(server.message, "output") == [
        ("tokens", "TYPE_INT64", [-1], False),
        ("text", "TYPE_STRING", [-1], False),
    ]
    with load(language) as session:
        pieces = list(session.stream(prompt="what colour"))
        fields = session._prompter.asked({"prompt": "what colour"}).fields
        parts = list(session.stream(**fields))
    found = server.ask(prompt=np.array([b"what colour"], np.object_))
    assert [texts(fake.tensors(item)["text"]) for item in found] == [[piece] for piece in pieces]
    assert len(pieces) > 1
    found = server.ask(**fields)
    assert len(found) == len(parts) > 1
    for response, part in zip(found, parts, strict=True):
        np.testing.assert_array_equal(fake.tensors(response)["tokens"], part)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_bad_requests_are_errors_with_our_message_and_the_server_goes_on(serve, language, stream):
    server = serve(language, stream=stream)
    for prompts, message in (
        ([b" "], "prompt: found ' ', expected some text"),
        ([b"\xff"], "prompt: found bytes that are not UTF-8 at 0"),
        ([b"what " * 30], "tokens with the template, expected at most 10"),
        ([], "prompt: found an empty list"),
    ):
        (response,) = server.ask(prompt=np.array(prompts, np.object_))
        assert message in response.error().message()
        assert response.error().code() == fake.Code.INVALID_ARG
    (response,) = server.ask()
    assert "'input_ids' is missing" in response.error().message()
    (*_, last) = server.ask(prompt=np.array([b"what"], np.object_))
    assert texts(fake.tensors(last)["text"]) == ["no"]
    assert server.logged == []


def test_errors_of_other_kinds_have_other_codes(serve, tiny_bundle, monkeypatch):
    server = serve(tiny_bundle)
    (response,) = server.ask(labels=np.array([99]), seed=np.array([0], np.uint64))
    assert "labels: found values in [99, 99]" in response.error().message()
    (response,) = server.ask(labels=np.array([1]))
    assert "found neither `seed` nor 'latent'" in response.error().message()
    server.model._session.close()
    request = {"labels": np.array([1]), "seed": np.array([0], np.uint64)}
    (response,) = server.ask(**request)
    assert response.error().code() == fake.Code.UNAVAILABLE

    def broken(self, **request):
        raise ZeroDivisionError("by us")

    monkeypatch.setattr(type(server.model._session), "__call__", broken)
    (response,) = server.ask(**request)
    assert response.error().code() == fake.Code.INTERNAL
    assert "ZeroDivisionError: by us" in response.error().message()
    assert "in broken" in server.logged[0]


def test_a_cancelled_request_stops_at_its_next_step(serve, tiny_bundle, monkeypatch):
    server = serve(tiny_bundle, concurrency=1)
    steps = []
    cancelled = fake.Sender.is_cancelled

    def at_the_second_step(self):
        steps.append(None)
        return len(steps) == 2 or cancelled(self)

    monkeypatch.setattr(fake.Sender, "is_cancelled", at_the_second_step)
    (response,) = server.ask(labels=np.array([1]), seed=np.array([0], np.uint64))
    assert response.error().code() == fake.Code.CANCELLED and len(steps) == 2


def test_the_request_in_the_readme_works(config_class, tiny_bundle, language, tmp_path):
    for bundle in (tiny_bundle, language):
        folder = tmp_path / bundle.name
        write_model_repository(bundle, folder, name="m")
        readme = (folder / "README.md").read_text()
        assert "$" not in readme.replace("$PWD", "")
        request = json.loads(re.search(r"curl -d '(.*)' localhost", readme)[1])
        server = fake.Server(folder, "m", config_class)
        types = {"INT64": np.int64, "UINT64": np.uint64, "BYTES": np.object_}
        inputs = {
            item["name"]: np.array(
                [v.encode() if isinstance(v, str) else v for v in item["data"]],
                types[item["datatype"]],
            ).reshape(item["shape"])
            for item in request["inputs"]
        }
        assert server.answer(**inputs)
        server.close()
    write_model_repository(language, tmp_path / "stream", name="m", stream=True)
    assert "m/generate_stream" in (tmp_path / "stream" / "README.md").read_text()


def test_the_bundle_is_copied_whole_and_verified(bundle, tmp_path):
    (bundle / "notes.txt").write_text("not of the bundle")
    with pytest.warns(UserWarning, match=r"notes\.txt"):
        out = write_model_repository(bundle, tmp_path / "models", name="m")
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    copied = {name for name in names if name.startswith("m/1/bundle/")}
    expected = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*.*")}
    assert copied == {f"m/1/bundle/{name}" for name in expected - {"notes.txt"}}
    assert names - copied == {"README.md", "m/config.pbtxt", "m/1/model.py"}
    for name in copied:
        assert (out / name).read_bytes() == (bundle / name.removeprefix("m/1/bundle/")).read_bytes()
    weights = bundle / "graphs" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.warns(UserWarning), pytest.raises(IntegrityError, match="sha256"):
        write_model_repository(bundle, tmp_path / "other", name="m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "models"]


def test_a_signature_goes_along_and_is_checked_with_the_key(config_class, bundle, tmp_path):
    cryptography = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization

    keys = [cryptography.Ed25519PrivateKey.generate() for _ in range(2)]
    private = keys[0].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for index, key in enumerate(keys):
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (tmp_path / f"{index}.pem").write_bytes(public)
    sign_bundle(bundle, private)
    server = fake.Server(
        write_model_repository(bundle, tmp_path / "models", name="m"), "m", config_class
    )
    assert server.model._session.provenance == "signed, not checked"
    server.initialize("CPU", {"public_key": {"string_value": str(tmp_path / "0.pem")}})
    assert server.model._session.provenance.startswith("signed by")
    with pytest.raises(UnsafeBundle):
        server.initialize("CPU", {"public_key": {"string_value": str(tmp_path / "1.pem")}})
    server.close()


def test_an_existing_folder_is_kept_unless_told(tiny_bundle, tmp_path):
    out = write_model_repository(tiny_bundle, tmp_path / "models")
    assert (out / "tiny" / "config.pbtxt").is_file()
    with pytest.raises(ResourceError, match="exists"):
        write_model_repository(tiny_bundle, out)
    write_model_repository(tiny_bundle, out, name="other", overwrite=True)
    assert not (out / "tiny").exists() and (out / "other").is_dir()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "ä", "x" * 201, 'a"'])
def test_names_that_triton_cannot_serve_are_refused(tiny_bundle, tmp_path, name):
    with pytest.raises(RecipeError, match="name: found"):
        write_model_repository(tiny_bundle, tmp_path / "models", name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": True}, "found no result growing"),
        ({"concurrency": 0}, "concurrency: found 0"),
        ({"instances": True}, "instances: found True"),
        ({"threads": 5000}, "threads: found 5000"),
        ({"device": "tpu"}, "device: found 'tpu'"),
    ],
)
def test_options_that_cannot_work_are_refused(tiny_bundle, tmp_path, options, message):
    with pytest.raises(RecipeError, match=message):
        write_model_repository(tiny_bundle, tmp_path / "models", name="m", **options)


def test_a_field_named_like_one_of_the_servers_is_refused():
    with pytest.raises(RecipeError, match="'seed': found two of this name"):
        _unique([Tensor("seed", "TYPE_INT64", (1,))] * 2, "request field")
