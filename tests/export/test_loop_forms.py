"""The forms of a loop in a bundle give the same numbers."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from optimize.capture.from_denoiser import capture
from optimize.export.bundle import export_bundle
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import RecipeError
from optimize.passes.cache_regions import CacheRegions
from optimize.passes.fuse_solver import FuseSolver
from optimize.runtime.errors import RuntimeInputError, VersionError
from optimize.runtime.manifest import parse_manifest
from optimize.runtime.session import load

FORMS = [
    {"loop": "step"},
    {"loop": "unrolled", "unroll": 3},
    {"loop": "unrolled"},
    {"loop": "onnx_loop"},
]


class Denoiser(torch.nn.Module):
    """A small model of the clean value; its weights are large enough for sessions to share."""

    def __init__(self):
        super().__init__()
        self.inside, self.outside = torch.nn.Linear(4, 8192), torch.nn.Linear(8192, 4)

    def forward(self, hidden_states, timestep):
        time = torch.cos(timestep * 0.01).reshape(-1, 1, 1)
        return self.outside(torch.tanh(self.inside(hidden_states) + time))


def fused(**options):
    torch.manual_seed(0)
    inputs = {"hidden_states": torch.randn(2, 6, 4), "timestep": torch.tensor([1.0, 1.0])}
    program = capture(Denoiser().eval(), inputs, loop=DenoiseLoop(prediction="denoised", steps=7))
    return FuseSolver(solver="dpm_solver_pp", order=2, **options).rewrite(program).program


@pytest.fixture(scope="module")
def programs():
    """A deterministic two-step solver, and a stochastic one that draws noise at each step."""
    return {
        "deterministic": fused(),
        "stochastic": fused(eta=1.0),
    }


def latent_of(folder, **request):
    with load(folder, threads=1) as session:
        return session(**request)["latent"]


@pytest.mark.parametrize("name", ["deterministic", "stochastic"])
def test_forms_agree_with_one_another_and_with_pytorch(programs, name, tmp_path):
    program = programs[name]
    for batch in (1, 3):
        expected = program(seed=5, batch=batch)["latent"].numpy()
        found = []
        for index, form in enumerate(FORMS):
            folder = export_bundle(program, tmp_path / f"{batch}-{index}", **form)
            found.append(latent_of(folder, seed=5, batch=batch))
        for latent in found:
            np.testing.assert_allclose(latent, expected, rtol=0, atol=1e-6)
            np.testing.assert_allclose(latent, found[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_request_may_give_the_noise_of_each_step(programs, form, tmp_path):
    program = programs["stochastic"]
    (name,) = {noise.name for noise in program.loop.noise} - {"latent"}
    noise = tuple(
        item.model_copy(update={"steps": 7} if item.name == name else {})
        for item in program.loop.noise
    )
    program = replace(program, loop=program.loop.model_copy(update={"noise": noise}))
    folder = export_bundle(program, tmp_path / "bundle", **form)
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((7, 2, 6, 4)).astype(np.float32)}
    expected = program(seed=0, **given)["latent"].numpy()
    np.testing.assert_allclose(latent_of(folder, seed=0, **given), expected, rtol=0, atol=1e-6)
    with pytest.raises(RuntimeInputError, match=r"expected .* \[7, batch, 6, 4\]"):
        latent_of(folder, seed=0, **{name: given[name][:6]})


def test_mixed_bodies_are_unrolled_and_make_no_onnx_loop(captured, tmp_path):
    made, program = captured("sd3", torch.float32)
    regions = CacheRegions(keep_ratio=0.5, warmup=2, max_age=4).rewrite(program).program
    mixed = FuseSolver().rewrite(regions).program
    step = export_bundle(mixed, tmp_path / "step")
    joined = export_bundle(mixed, tmp_path / "joined", loop="unrolled", unroll=3)
    request = {name: item.numpy() for name, item in made.request().items()}
    found = latent_of(joined, seed=2, **request)
    np.testing.assert_allclose(found, latent_of(step, seed=2, **request), rtol=0, atol=1e-6)
    with pytest.raises(RecipeError, match="found steps of different bodies"):
        export_bundle(mixed, tmp_path / "loop", loop="onnx_loop")
    assert not (tmp_path / "loop").exists()


def test_an_onnx_loop_is_one_graph_with_the_weights_outside(programs, tmp_path):
    folder = export_bundle(programs["deterministic"], tmp_path / "bundle", loop="onnx_loop")
    (file,) = (folder / "graphs").glob("*.onnx")
    onnx.checker.check_model(str(file), full_check=True)
    graph = onnx.load(file, load_external_data=False).graph
    (loop,) = graph.node
    assert loop.op_type == "Loop"
    assert file.stat().st_size < 20_000
    outside = [item for item in graph.initializer if item.external_data]
    assert len(outside) == 4
    with load(folder) as session:
        seen = []
        session(seed=0, batch=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == []


def test_unrolled_steps_are_reported_as_calls(programs, tmp_path):
    program = programs["deterministic"]
    folder = export_bundle(program, tmp_path / "bundle", loop="unrolled", unroll=3)
    seen = []
    with load(folder) as session:
        session(seed=0, batch=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_older_readers_are_told_that_they_cannot_run_it(programs, tmp_path, monkeypatch):
    program = programs["deterministic"]
    plain = export_bundle(program, tmp_path / "plain")
    assert parse_manifest((plain / "manifest.json").read_bytes()).required_features == ()
    folder = export_bundle(program, tmp_path / "bundle", loop="unrolled", unroll=3)
    raw = (folder / "manifest.json").read_bytes()
    assert parse_manifest(raw).required_features == ("step_ranges",)
    monkeypatch.setattr("optimize.runtime.manifest.FEATURES", frozenset())
    with pytest.raises(VersionError, match="needs step_ranges"):
        parse_manifest(raw)


def test_a_bundle_of_the_first_format_version_is_still_read(programs, tmp_path):
    folder = export_bundle(programs["deterministic"], tmp_path / "bundle")
    package = json.loads((folder / "manifest.json").read_bytes())
    ours = package["additional_metadata"]["optimize"]
    ours["format_version"] = "1.0"
    for item in (*ours["loop"]["noise"], *bindings(ours["loop"])):
        del item["steps"]
    del ours["loop"]["body"][0]["stride"]
    manifest = parse_manifest(json.dumps(package).encode())
    assert manifest.loop == programs["deterministic"].loop


def bindings(loop):
    yield from (slot["initial"] for slot in loop["slots"] if slot["initial"])
    for body in loop["body"][0]["bodies"].values():
        for call in body:
            yield from call["inputs"].values()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"loop": "other"}, "loop: found 'other', expected one of step, unrolled, onnx_loop"),
        ({"loop": "onnx_loop", "unroll": 2}, 'expected loop="unrolled"'),
        ({"loop": "unrolled", "unroll": 0}, "unroll: found 0"),
    ],
    ids=str,
)
def test_refuses_other_forms(programs, form, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        programs["deterministic"].export(tmp_path / "bundle", **form)
