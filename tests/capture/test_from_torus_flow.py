"""Bayesian flows over angles as programs: laws, the loop against a float64 sampler, the bundle."""

import math

import numpy as np
import onnxruntime as ort
import pytest
import torch
from scipy import special
from torch import nn

from optimize.capture.capture_model import capture_model
from optimize.capture.from_torus_flow import UNIFORM_SCALE, capture_torus_flow, quantile_table
from optimize.export.bundle import export_bundle
from optimize.ir.axis_rules import infer_axes
from optimize.ir.errors import InputModelError, NumericsError
from optimize.ir.program import Program
from optimize.ir.spec import check_program
from optimize.ir.torch_engine import TorchEngine
from optimize.ir.torus_flow import TorusFlowLoop
from optimize.ir.von_mises_flow import belief, quantiles, wrap
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.runtime import load, philox

LOOP = TorusFlowLoop(steps=4, last_concentration=200.0)
ATOMS = 3


class Pull(nn.Module):
    """Pulls every angle towards a place of its own, the more the less is known."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.linspace(-3.0, 3.0, ATOMS * 2).view(ATOMS, 2))

    def forward(
        self,
        mean: torch.Tensor,
        concentration: torch.Tensor,
        step_index: torch.Tensor,
        shift: torch.Tensor,
    ) -> torch.Tensor:
        share = 0.2 + 0.1 * step_index[:, None, None] / (1 + concentration.sqrt())
        return mean + share * torch.sin(self.places + shift[:, None, None] - mean)


def example_inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    return {
        "mean": torch.zeros(batch, ATOMS, 2),
        "concentration": torch.zeros(batch, ATOMS, 2),
        "step_index": torch.ones(batch),
        "shift": torch.linspace(0.0, 1.0, batch),
    }


@pytest.fixture(scope="module")
def program() -> Program:
    return capture_torus_flow(Pull().eval(), example_inputs(), LOOP)


def drawn_noise(seed: int, batch: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The prior's mean and the noise of each step, as the driver draws them."""
    mean = philox.batch(seed, "mean", 0, (batch, ATOMS, 2)) * UNIFORM_SCALE
    shape = (batch, LOOP.steps - 1, ATOMS, 2)
    steps = range(LOOP.steps)
    return mean, [philox.batch(seed, "observation_noise", i, shape) for i in steps]


def deviations(noise: np.ndarray) -> np.ndarray:
    """Von Mises numbers [steps - 1, B, ...] of normal ones [B, steps - 1, ...], in float64."""
    grid = np.linspace(0, 8.75, 200_001)
    rows = []
    for index, alpha in enumerate(LOOP.accuracies()[:-1]):
        z = noise[:, index]
        rows.append(np.sign(z) * np.interp(np.abs(z), grid, quantiles(float(alpha), len(grid))))
    return np.stack(rows)


def run_solver(program: Program, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    graph = program.graphs["solver"]
    tensors = {name: torch.from_numpy(item.copy()).float() for name, item in inputs.items()}
    return {name: item.numpy() for name, item in graph.run(program.weights, tensors).items()}


def test_program_is_well_formed_and_every_op_has_an_axis_rule(program):
    check_program(program)
    assert {role: graph.inputs for role, graph in program.graphs.items()} == {
        "denoiser": ("mean", "concentration", "step_index", "shift"),
        "solver": ("prediction", "observation_noise", "accuracies"),
    }
    for graph in program.graphs.values():
        infer_axes(graph)


def test_program_equals_a_float64_sampler_given_the_same_noise(program):
    seed, batch = 5, 6
    model, shift = Pull().double().eval(), torch.linspace(-1, 1, batch)
    mean, noise = drawn_noise(seed, batch)
    concentration = np.zeros_like(mean)
    for step in range(1, LOOP.steps + 1):
        with torch.no_grad():
            angles = model(
                torch.from_numpy(mean),
                torch.from_numpy(concentration),
                torch.full((batch,), float(step)),
                shift.double(),
            ).numpy()
        if step < LOOP.steps:
            u = deviations(noise[step - 1])[:step]
            mean, concentration = belief(angles + u, LOOP.accuracies()[:step])
    found = program(seed=seed, shift=shift)["coordinates"].numpy()
    difference = found - np.mod(angles / (2 * math.pi) + 0.5, 1.0)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() < 1
    assert np.abs(difference - np.round(difference)).max() < 2e-5


def test_last_prediction_is_the_result(program):
    seen = program.watch(("prediction", "coordinates"), seed=1, shift=torch.zeros(2))
    assert len(seen["prediction"]) == LOOP.steps
    expected = np.mod(seen["prediction"][-1].astype(np.float64) / (2 * math.pi) + 0.5, 1.0)
    np.testing.assert_allclose(seen["coordinates"][-1], expected, atol=2e-7)


@pytest.mark.parametrize("step", range(1, LOOP.steps))
def test_belief_has_the_law_of_the_observations(program, step):
    """A belief around the data 0.9: E exp(i k mean) and E c^2 have closed forms."""
    count = 40_000
    noise = philox.batch(3, "law", step, (count, LOOP.steps - 1, 1, 1))
    row = program.tables["accuracies"][step - 1]
    given = np.full((count, 1, 1), 0.9)
    found = run_solver(program, prediction=given, observation_noise=noise, accuracies=row)
    alphas = LOOP.accuracies()[:step]
    ratios = special.i1e(alphas) / special.i0e(alphas)
    total = found["concentration"].astype(np.float64) * np.exp(1j * (found["mean"] - 0.9))
    # E R = sum alpha A(alpha); E |R|^2 adds the variances of the parts.
    expected = (alphas * ratios).sum()
    square = (alphas**2).sum() + expected**2 - ((alphas * ratios) ** 2).sum()
    error = 4 * np.sqrt((alphas**2).sum() / count)
    assert abs(total.mean() - expected) < error
    assert (np.abs(total) ** 2).mean() == pytest.approx(square, abs=2 * abs(expected) * error)


def test_observations_are_von_mises(program):
    """One observation alone: the belief's mean is the observation."""
    z = np.linspace(-6, 6, 4001)
    weight = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    noise = np.broadcast_to(z[:, None, None, None], (len(z), LOOP.steps - 1, 1, 1))
    zeros = np.zeros((len(z), 1, 1))
    for index, alpha in enumerate(LOOP.accuracies()[:-1]):
        row = np.zeros(LOOP.steps - 1)
        row[index] = alpha
        found = run_solver(program, prediction=zeros, observation_noise=noise, accuracies=row)
        u = found["mean"][:, 0, 0].astype(np.float64)
        np.testing.assert_allclose(found["concentration"], alpha, rtol=1e-6)
        for order in (1, 2, 3):
            moment = special.ive(order, alpha) / special.ive(0, alpha)
            assert weight @ np.cos(order * u) == pytest.approx(moment, abs=1e-6)


def test_interpolated_quantiles_are_close_to_fine_ones():
    rows = quantile_table(LOOP).numpy().reshape(LOOP.steps - 1, -1, 2)
    middles = rows[:, :, 0] + rows[:, :, 1] / 2
    for alpha, row in zip(LOOP.accuracies(), middles, strict=False):
        fine = quantiles(float(alpha), 2 * row.size + 1)[1::2]
        assert np.abs(row - fine).max() < 1e-5


def test_angle_in_the_graph_is_atan2(program):
    """One observation of each sign and quadrant, far tails and none included."""
    turn = np.linspace(-np.pi, np.pi, 2001)
    noise = np.random.default_rng(0).standard_normal((len(turn), LOOP.steps - 1, 1, 1)) * 3
    row = LOOP.accuracies()[:-1]
    zeros = np.zeros((len(turn), 1, 1))
    found = run_solver(program, prediction=zeros, observation_noise=noise, accuracies=row)
    u = deviations(noise.astype(np.float32).astype(np.float64))
    mean, concentration = belief(u, row)
    np.testing.assert_allclose(found["concentration"], concentration, atol=1e-3)
    # The tables' interpolation moves the sum by 1e-5 of each accuracy.
    limit = 1e-6 + 2e-5 * row.sum() / concentration
    assert (np.abs(wrap(found["mean"] - mean)) < limit).all()
    nothing = run_solver(program, prediction=zeros, observation_noise=noise, accuracies=0 * row)
    assert not nothing["concentration"].any() and not nothing["mean"].any()


def test_prior_is_uniform():
    mean, _ = drawn_noise(0, 20_000)
    for order in (1, 2, 3):
        assert abs(np.exp(1j * order * mean).mean()) < 4 / math.sqrt(mean.size)
    # In closed form: the first Fourier coefficient of the wrapped normal density.
    assert math.exp(-(UNIFORM_SCALE**2) / 2) < 1.3e-14


def test_bundle_runs_without_torch_and_calls_the_network_once_per_step(program, tmp_path):
    session = load(export_bundle(program, tmp_path / "bundle"))
    shift = np.linspace(0, 1, 3, dtype=np.float32)
    ours = program(seed=9, shift=shift)["coordinates"].numpy()
    theirs = session(seed=9, shift=shift)["coordinates"]
    difference = ours - theirs
    assert np.abs(difference - np.round(difference)).max() < 1e-5
    assert engine_calls(program, shift) == {"denoiser": LOOP.steps, "solver": LOOP.steps}


def test_fuse_solver_makes_it_one_engine_call_per_network_call(program):
    """Network and flow update in one graph, without a change of the result."""
    joined = run_passes(program, [FuseSolver()])
    assert "only 'same' fits it" in (FuseSolver("ddim").declines(program) or "")
    shift = np.linspace(0, 1, 3, dtype=np.float32)
    assert list(engine_calls(joined, shift).values()) == [LOOP.steps]
    ours = program(seed=9, shift=shift)["coordinates"]
    assert torch.equal(joined(seed=9, shift=shift)["coordinates"], ours)


@pytest.mark.parametrize(
    "form", [{"loop": "unrolled", "unroll": 1}, {"loop": "unrolled"}, {"loop": "onnx_loop"}]
)
def test_every_form_of_the_loop_gives_the_same_bundle_result(program, tmp_path, form):
    session = load(export_bundle(program, tmp_path / "bundle", **form))
    shift = np.linspace(0, 1, 3, dtype=np.float32)
    ours = program(seed=9, shift=shift)["coordinates"].numpy()
    difference = ours - session(seed=9, shift=shift)["coordinates"]
    assert np.abs(difference - np.round(difference)).max() < 1e-5


def engine_calls(program: Program, shift: np.ndarray) -> dict[str, int]:
    """Graph → how often a run calls it."""
    run = program.prepared({"shift": shift}, 9)
    run.engine = counting = CountingEngine(program)
    run.execute()
    return counting.calls


class CountingEngine(TorchEngine):
    """Counts the calls of each graph."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graphs, program.weights)
        self.calls = dict.fromkeys(program.graphs, 0)

    def run(self, graph, inputs, outputs):
        self.calls[graph] += 1
        return super().run(graph, inputs, outputs)


def test_atan_is_the_same_in_onnx_runtime(program, tmp_path):
    """The solver graph alone, to 1e-6 of pi."""
    path = export_bundle(program, tmp_path / "bundle") / "graphs" / "solver.onnx"
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(4)
    inputs = {
        "prediction": generator.uniform(-3.1, 3.1, (50, ATOMS, 2)).astype(np.float32),
        "observation_noise": generator.standard_normal((50, LOOP.steps - 1, ATOMS, 2)),
        "accuracies": LOOP.accuracies()[:-1].astype(np.float32),
    }
    inputs["observation_noise"] = inputs["observation_noise"].astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    theirs = dict(zip(names, session.run(None, inputs), strict=True))
    ours = run_solver(program, **inputs)
    assert np.abs(wrap(theirs["mean"] - ours["mean"])).max() < 4e-6
    np.testing.assert_allclose(theirs["concentration"], ours["concentration"], rtol=1e-5)


def test_dispatch_captures_by_the_kind_of_loop():
    program = capture_model(Pull().eval(), example_inputs(), loop=LOOP)
    assert program.signature.outputs == ("coordinates",)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"steps": 1}, "found steps 1, expected a whole number in .2, 1000."),
        ({"steps": 2.5}, "found steps 2.5"),
        ({"last_concentration": 0.0}, "found last_concentration 0.0"),
        ({"last_concentration": math.nan}, "found last_concentration nan"),
    ],
)
def test_refuses_loops_that_cannot_be_meant(options, found):
    with pytest.raises(InputModelError, match=found):
        TorusFlowLoop(**options)


def test_refuses_missing_arguments_wrong_shapes_and_broken_weights():
    given = example_inputs()
    loop = TorusFlowLoop(mean="angles")
    with pytest.raises(InputModelError, match="found no tensor 'angles'"):
        capture_torus_flow(Pull(), given, loop)

    class Halved(Pull):
        def forward(self, mean, concentration, step_index, shift):
            return super().forward(mean, concentration, step_index, shift)[..., :1]

    with pytest.raises(InputModelError, match="an angle for each mean"):
        capture_torus_flow(Halved().eval(), given, LOOP)
    broken = Pull().eval()
    broken.places.data[0] = math.nan
    with pytest.raises(NumericsError, match="found NaN or Inf in places"):
        capture_torus_flow(broken, given, LOOP)
