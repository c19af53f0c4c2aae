"""Bundles with native code: built, run, equal to the program; refused where they do not fit."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.export.engines import sizes_of
from optimize.export.to_aoti import build_package
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import QualityError, RecipeError
from optimize.runtime import load, machine
from optimize.runtime.errors import (
    CorruptBundle,
    ResourceError,
    RuntimeInputError,
    UnsafeBundle,
)

rtx = pytest.mark.skipif(
    machine.version_of("tensorrt_rtx") is None,
    reason="tensorrt-rtx-cu13-bindings is not installed (extra rtx)",
)


@pytest.fixture(scope="module")
def both(tiny_program, tmp_path_factory) -> Path:
    """The tiny program for ONNX Runtime and, in bfloat16 products, for AOTInductor."""
    folder = tmp_path_factory.mktemp("engines") / "both"
    return tiny_program().export(folder, target=("onnx", "aoti"), precision={"aoti": "bfloat16"})


@pytest.fixture(scope="module")
def request_of(tiny_program):
    """A request of the tiny program at some batch."""

    def make(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
        numbers = np.random.default_rng(seed)
        sizes = {"batch": batch}
        made = {}
        for item in tiny_program().signature.inputs:
            shape = [size if isinstance(size, int) else sizes[size] for size in item.shape]
            if item.dtype.startswith("int"):
                made[item.name] = numbers.integers(0, 4, shape)
            else:
                made[item.name] = numbers.standard_normal(shape).astype(item.dtype)
        return made

    return make


def test_compiled_packages_share_the_weights_file(tiny_program, tmp_path, request_of):
    """In the precision of the program, a package holds code and no weights."""
    program = tiny_program()
    bundle = program.export(tmp_path / "bundle", target=["aoti", "onnx"])
    manifest = json.loads((bundle / "manifest.json").read_text())
    engine = manifest["additional_metadata"]["optimize"]["engines"]["aoti"]
    assert engine["weights_file"] == "graphs/weights.safetensors"
    assert engine["precision"] == "float32" and engine["device"] == "cpu"
    with load(bundle) as onnx, load(bundle, target="aoti", trust="native") as aoti:
        assert (onnx.target, aoti.target) == ("onnx", "aoti")
        for batch in (1, 3):
            request = request_of(batch)
            theirs, ours = onnx(seed=1, **request), aoti(seed=1, **request)
            expected = program(seed=1, **request)
            for name, array in theirs.items():
                np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(ours[name], expected[name], rtol=1e-4, atol=1e-5)
        # Several threads at once get what one gets.
        alone = aoti(seed=1, **request_of(2))
        found: list[dict[str, np.ndarray]] = []
        threads = [
            threading.Thread(target=lambda: found.append(aoti(seed=1, **request_of(2))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for result in found:
            for name, array in alone.items():
                np.testing.assert_array_equal(result[name], array)


def test_results_of_any_layout_are_read_right_by_the_next_call(tmp_path):
    """Compiled code does not check strides: Lumina's transposed prediction went wrong by half."""

    class Transposing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(6, 6)

        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            mixed = self.inner(hidden_states.transpose(1, 2)).transpose(1, 2)
            return mixed + timestep[:, None, None]

    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(2, 6, 4), "timestep": torch.tensor([1.0, 1.0])}
    program = capture(Transposing().eval(), inputs, loop=DenoiseLoop(steps=3))
    bundle = program.export(tmp_path / "bundle", target="aoti")
    with load(bundle, target="aoti", trust="native") as session:
        found = session(latent=np.float32(inputs["hidden_states"].numpy()))["latent"]
    expected = program(latent=inputs["hidden_states"])["latent"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_target_in_another_precision_has_its_own_weights(both, request_of):
    files = {str(path.relative_to(both)) for path in both.rglob("*") if path.is_file()}
    assert "engines/aoti/weights.safetensors" in files
    report = json.loads((both / "report.json").read_text())["targets"]
    assert report["aoti"]["precision"] == "bfloat16" and report["onnx"]["precision"] == "float32"
    assert 0 < report["aoti"]["relative_error"] < 0.1
    assert report["aoti"]["seconds"] > 0 and report["onnx"]["bytes"] > 0
    assert all(sum(ops.values()) > 0 for ops in report["onnx"]["nodes"].values())
    request = request_of(2)
    with load(both) as onnx, load(both, target="aoti", trust="native") as aoti:
        for name, array in onnx(seed=3, **request).items():
            difference = np.linalg.norm(aoti(seed=3, **request)[name] - array)
            assert 0 < difference <= 3 * report["aoti"]["relative_error"] * np.linalg.norm(array)


def test_native_code_needs_trust_and_is_not_touched_without(both):
    """C20"""
    with load(both) as session:
        assert session.target == "onnx" and "not trusted" in session.reason
    with pytest.raises(UnsafeBundle, match="contains native code .*engines/aoti/"):
        load(both, target="aoti")


def test_a_package_that_is_none_is_refused(both, tmp_path):
    import hashlib
    import shutil

    broken = Path(shutil.copytree(both, tmp_path / "broken"))
    package = next((broken / "engines" / "aoti").glob("*.pt2"))
    content = b"PK\x03\x04 no archive"
    package.write_bytes(content)
    whole = json.loads((broken / "manifest.json").read_text())
    name = str(package.relative_to(broken))
    whole["additional_metadata"]["optimize"]["files"][name] = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (broken / "manifest.json").write_text(json.dumps(whole))
    with pytest.raises(CorruptBundle, match=r"PyTorch .* refused the package"):
        load(broken, target="aoti", trust="native")


@rtx
def test_rtx_engines_are_in_the_bundle_with_their_sizes(tiny_program, tmp_path):
    bundle = tiny_program().export(
        tmp_path / "bundle",
        target=("onnx", "tensorrt-rtx"),
        precision={"tensorrt-rtx": "float16"},
        capabilities=("SM89",),
        sizes={"batch": (1, 2, 8)},
    )
    with load(bundle, trust="native") as session:
        engine = session.manifest.engines["tensorrt-rtx"]
        assert engine.needs["capabilities"] == "SM89" and engine.precision == "float16"
        assert engine.sizes == {"batch": (1, 8)}
        assert set(engine.graphs) == set(session.manifest.graphs)
        if machine.gpu_capability() is None:
            assert session.target == "onnx" and "needs a GPU (SM89), found none" in session.reason


def test_sizes_reach_from_the_least_allowed_to_four_times_the_traced(tiny_program):
    program = tiny_program()
    role, graph = next((r, g) for r, g in program.graphs.items() if g.dimensions)
    sizes = sizes_of(program, graph.dimensions, role)
    least, best, most = sizes["batch"]
    assert least == program.signature.dimensions["batch"][0]
    assert most == min(4 * best, program.signature.dimensions["batch"][1])


def test_a_size_the_engine_was_not_built_for_is_refused(both, request_of):
    """D6"""
    with load(both, target="aoti", trust="native") as session:
        entry = session.manifest.engines["aoti"].model_copy(update={"sizes": {"batch": (1, 2)}})
        session.manifest.engines["aoti"] = entry
        with pytest.raises(RuntimeInputError, match="batch: found 3, expected 1 to 2, the sizes"):
            session(seed=0, **request_of(3))


@pytest.mark.parametrize("precision", ["int8", "float16", "bfloat16"])
def test_onnx_in_low_precision_stays_near(tiny_program, tmp_path, precision, request_of):
    program = tiny_program()
    plain = program.export(tmp_path / "plain")
    small = program.export(tmp_path / "small", precision=precision)
    size = {
        path: (path / "graphs" / "weights.safetensors").stat().st_size for path in (plain, small)
    }
    assert size[small] < 0.75 * size[plain]
    report = json.loads((small / "report.json").read_text())["targets"]["onnx"]
    assert report["precision"] == precision and 0 < report["relative_error"] < 0.1
    assert ("MatMulInteger" in str(report["nodes"])) == (precision == "int8")
    with load(plain) as session:
        expected = session(seed=2, **request_of(2))
    with load(small) as session:
        found = session(seed=2, **request_of(2))
    for name, array in expected.items():
        assert 0 < np.linalg.norm(found[name] - array) < 0.1 * np.linalg.norm(array)


def test_a_precision_over_the_budget_is_refused_and_nothing_written(tiny_program, tmp_path):
    recipe = {"passes": [], "budget": {"relative_error": 1e-9}}
    with pytest.raises(QualityError, match="precision bfloat16: over the quality budget"):
        tiny_program().export(tmp_path / "bundle", precision="bfloat16", recipe=recipe)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "coreml"}, "unknown target 'coreml'; known targets: onnx, aoti"),
        ({"target": ()}, "unknown target none"),
        ({"precision": "int4"}, "precision: found 'int4', expected one of float32"),
        ({"target": "aoti", "precision": "int8"}, 'int8 is for "onnx"'),
        ({"precision": {"aoti": "float16"}}, "found one for target 'aoti', expected some of onnx"),
        ({"target": "aoti", "loop": "onnx_loop"}, "expected onnx alone"),
        ({"static": {"frames": 3}}, "static: found size 'frames', expected some of batch"),
        ({"static": {"batch": 10**9}}, "static: found 1000000000 for 'batch', expected 1 to"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_refused_before_any_work(
    tiny_program, tmp_path, options, message
):
    with pytest.raises(RecipeError, match=message):
        tiny_program().export(tmp_path / "bundle", **options)
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_missing_is_named_before_any_work(tiny_program, tmp_path, monkeypatch):
    """E11"""
    monkeypatch.setattr(machine, "version_of", lambda library: None)
    with pytest.raises(ResourceError, match=r"no library tensorrt, which builds it; pip install"):
        tiny_program().export(tmp_path / "bundle", target=("onnx", "tensorrt"))
    assert not list(tmp_path.iterdir())


def test_static_sizes_leave_no_shape_nodes(tiny_program, tmp_path, request_of):
    bundle = tiny_program().export(tmp_path / "bundle", static={"batch": 2})
    nodes = json.loads((bundle / "report.json").read_text())["targets"]["onnx"]["nodes"]
    assert all("Shape" not in ops for ops in nodes.values())
    plain = tiny_program().export(tmp_path / "plain")
    with load(bundle) as session, load(plain) as dynamic:
        request = request_of(2)
        expected = dynamic(seed=0, **request)
        for name, array in session(seed=0, **request).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)
        with pytest.raises(RuntimeInputError):
            session(seed=0, **request_of(3))


def test_an_uncompilable_graph_is_refused_by_name(tiny_program, monkeypatch):
    from optimize.ir.errors import UnsupportedOpError

    program = tiny_program()
    role, graph = next(iter(program.graphs.items()))

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nfound")

    monkeypatch.setattr(torch._inductor, "aot_compile", fails)
    with pytest.raises(UnsupportedOpError, match=rf"{role}: TorchInductor .* no compiler found"):
        build_package(graph, program.weights, role)
