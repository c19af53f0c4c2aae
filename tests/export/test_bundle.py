"""export_bundle: what is in the folder, determinism, refusals."""

import hashlib
import json

import onnx
import onnxruntime as ort
import pytest
import torch

from optimize.export import to_onnx
from optimize.export.bundle import export_bundle
from optimize.ir.errors import RecipeError
from optimize.runtime.bundle import open_bundle
from optimize.runtime.errors import ResourceError


def _files(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_the_same_program_gives_the_same_bytes(tiny_program, tmp_path):
    extra = {"report.json": b"{}", "tokenizer/vocab.txt": b"a b"}
    program = tiny_program()
    first = export_bundle(program, tmp_path / "a", extra_files=extra, recipe={"z": 1, "a": 2})
    swapped = dict(reversed(extra.items()))
    second = export_bundle(program, tmp_path / "b", extra_files=swapped, recipe={"a": 2, "z": 1})
    assert _files(first) == _files(second)


def test_every_file_is_listed_with_its_size_and_hash(tiny_bundle):
    files = _files(tiny_bundle)
    package = json.loads(files.pop("manifest.json"))
    listed = package["additional_metadata"]["optimize"]["files"]
    assert set(listed) == set(files)
    for name, content in files.items():
        assert listed[name] == {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def test_onnx_runtime_opens_the_bundle_as_a_model_package(tiny_bundle, tiny_program):
    package = ort.ModelPackageContext(str(tiny_bundle))
    assert package.get_component_names() == ["step"]
    options = ort.SessionOptions()
    options.add_provider("CPUExecutionProvider", {})
    component = package.select_component("step", ort.ModelPackageOptions(options))
    session = component.create_session()
    torch.manual_seed(0)
    feeds = {
        "latent": torch.randn(3, 1, 8, 8),
        "timestep": torch.tensor(0.5),
        "change": torch.tensor(-0.1),
        "labels": torch.tensor([1, 2, 3]),
    }
    program = tiny_program()
    expected = program.graphs["step"].run(program.weights, feeds)["latent_next"]
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_graphs_pass_the_onnx_checker_from_where_they_lie(tiny_bundle):
    onnx.checker.check_model(tiny_bundle / "graphs" / "step.onnx", full_check=True)


def test_extra_files_and_the_report_digest_are_kept(tiny_program, tmp_path):
    report = b'{"ok": true}'
    path = export_bundle(tiny_program(), tmp_path / "b", extra_files={"report.json": report})
    manifest = open_bundle(path, strict=True).manifest
    assert (path / "report.json").read_bytes() == report
    assert manifest.report_sha256 == hashlib.sha256(report).hexdigest()


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "graphs/step.onnx", "GRAPHS/Step.onnx", "manifest.json", "a/../b", "a\\b", ""],
)
def test_extra_files_with_bad_or_taken_names_are_refused(tiny_program, tmp_path, name):
    """C5, C6"""
    with pytest.raises(RecipeError):
        export_bundle(tiny_program(), tmp_path / "b", extra_files={name: b""})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_path_is_refused_before_any_translation(tiny_program, tmp_path, monkeypatch):
    """E4, B11"""
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(to_onnx, "graph_to_onnx", lambda *_: pytest.fail("work was started"))
    with pytest.raises(ResourceError, match="exists"):
        export_bundle(tiny_program(), tmp_path / "b")


def test_overwrite_replaces_the_whole_folder(tiny_program, tmp_path):
    path = export_bundle(tiny_program(), tmp_path / "b", extra_files={"old.txt": b""})
    export_bundle(tiny_program(), path, overwrite=True)
    assert not (path / "old.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_progress_names_each_file(tiny_program, tmp_path):
    seen = []
    export_bundle(tiny_program(), tmp_path / "b", progress=seen.append)
    assert seen == ["graphs/weights.safetensors", "graphs/step.onnx", "tables.safetensors"]


def test_weights_of_other_strides_and_dtypes_survive(tiny_program, tmp_path):
    bundle = open_bundle(export_bundle(tiny_program(), tmp_path / "b"))
    for name, tensor in tiny_program().weights.items():
        stored = bundle.weights.get(name)
        if stored is not None:
            assert torch.equal(torch.from_numpy(stored.array.copy()), tensor)
