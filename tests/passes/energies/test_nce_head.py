"""The energy of a fitted head: its graph, its file, and what the pass makes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file

from optimize.capture.from_masked import capture_masked_model
from optimize.capture.unmask_loop import unmask_program
from optimize.ir.decode import Sampling
from optimize.ir.program import Program
from optimize.ir.spec import check_program
from optimize.ir.unmask import UnmaskLoop
from optimize.passes.drafts.catalog import register_loader
from optimize.passes.energies.energy_head import EnergyHead, denoiser_fingerprint
from optimize.passes.energies.energy_head_file import load_energy_head, save_energy_head
from optimize.passes.energy_resample import EnergyResample
from optimize.recipes.zoo.masked_language_model import MaskedLanguageModel

VOCABULARY, LENGTH, PROMPT, CANDIDATES = 6, 5, 3, 3
MASK = VOCABULARY


def denoiser() -> MaskedLanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MaskedLanguageModel(VOCABULARY, 16, 1, 2, 24).eval()


def captured(model: torch.nn.Module, max_prompt: int = 0, **options: Any) -> Program:
    loop = UnmaskLoop(
        mask_id=MASK,
        length=LENGTH,
        steps=3,
        remasking="ancestral",
        sampling=Sampling(top_p=None),
        max_prompt=max_prompt,
        **options,
    )
    return capture_masked_model(model, loop=loop)


def with_loop(program: Program, **options: Any) -> Program:
    """The same denoiser in another loop."""
    unmasking, graph = program.unmasking, program.decoder
    assert unmasking is not None and graph is not None
    other = replace(unmasking, loop=replace(unmasking.loop, **options))
    return unmask_program(graph, program.weights, other)


def random_head(program: Program) -> EnergyHead:
    """Its energies differ by a few nats, and its trunk is not the denoiser's."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = EnergyHead(program)
        for parameter in head.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        head.score.weight.data *= 10
    return head.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def programs() -> dict[int, Program]:
    """Most tokens of a prompt → the program; both of one denoiser."""
    program = captured(denoiser(), PROMPT)
    return {PROMPT: program, 0: with_loop(program, max_prompt=0)}


@pytest.fixture(scope="module")
def path(programs: dict[int, Program], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads") / "head.safetensors"
    save_energy_head(random_head(programs[0]), programs[0], path, torch.float32)
    return path


@pytest.fixture(scope="module")
def resampled(programs: dict[int, Program], path: Path) -> dict[int, Program]:
    item = EnergyResample(str(path), CANDIDATES, energy="head")
    return {most: item.rewrite(program).program for most, program in programs.items()}


def judged(batch: int, most: int) -> dict[str, torch.Tensor]:
    """Texts with masks, the last of them with none, and candidates for them."""
    generator = torch.Generator().manual_seed(batch)

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(0, VOCABULARY, shape, generator=generator)

    hidden = torch.rand(batch, LENGTH, generator=generator) < 0.6
    hidden[0, 0], hidden[-1] = True, batch == 1
    text = tokens(batch, LENGTH).masked_fill(hidden, MASK)
    each = CANDIDATES
    drawn = torch.where(hidden[:, None], tokens(batch, each, LENGTH), text[:, None]).flatten(0, 1)
    given = {"text": text, "candidates": drawn}
    given["log_probabilities"] = torch.zeros(batch * each, LENGTH, dtype=torch.float64)
    return given | ({"input_ids": tokens(batch, PROMPT)} if most else {})


@pytest.mark.parametrize("most", [0, PROMPT])
def test_the_graph_gives_the_energy_of_the_module_in_torch_and_in_onnx(
    most: int,
    programs: dict[int, Program],
    resampled: dict[int, Program],
    tmp_path: Path,
) -> None:
    head, program = random_head(programs[0]), resampled[most]
    check_program(program)
    (file,) = program.export(tmp_path / "bundle").rglob("energy.onnx")
    session = ort.InferenceSession(str(file))
    names = [item.name for item in session.get_inputs()]
    for batch in (1, 3):
        given = judged(batch, most)
        expected = head(given["candidates"], given["text"], MASK, given.get("input_ids"))
        assert expected.shape == (batch * CANDIDATES,) and expected.dtype == torch.float64
        assert expected[:CANDIDATES].std() > 0.2
        found = program.graphs["energy"].run(program.weights, given)["energy"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        (exported,) = session.run(None, {name: given[name].numpy() for name in names})
        np.testing.assert_allclose(exported, expected, rtol=1e-4, atol=1e-6)


def test_a_text_without_masks_has_energy_0_and_others_do_not(programs: dict[int, Program]) -> None:
    given = judged(3, 0)
    energy = random_head(programs[0])(given["candidates"], given["text"], MASK).view(3, -1)
    assert (energy[-1] == 0).all() and (energy[:-1] != 0).all()


def test_only_what_was_masked_counts_but_all_of_it_is_seen(programs: dict[int, Program]) -> None:
    head = random_head(programs[0])
    text = torch.tensor([[MASK, 1, 2, 3, 4]])
    energies = [
        float(head(torch.tensor([row]), seen, MASK))
        for row, seen in (
            ([0, 1, 2, 3, 4], text),
            ([0, 1, 2, 3, 5], torch.tensor([[MASK, 1, 2, 3, 5]])),
            ([5, 1, 2, 3, 4], text),
            ([0, 1, 2, 3, 4], torch.tensor([[MASK, MASK, 2, 3, 4]])),
        )
    ]
    assert len({round(item, 6) for item in energies}) == 4


def test_a_new_head_says_0_and_starts_from_the_denoiser(programs: dict[int, Program]) -> None:
    head, given = EnergyHead(programs[0]), judged(2, 0)
    assert (head(given["candidates"], given["text"], MASK) == 0).all()
    assert "frequencies" not in head.names and "head.weight" not in head.names
    for name, parameter in zip(head.names, head.trunk, strict=True):
        weight = programs[0].weights[name]
        assert torch.equal(parameter, weight)
        assert parameter.data_ptr() != weight.data_ptr()


def test_the_program_has_the_heads_weights_beside_the_denoisers(
    programs: dict[int, Program], resampled: dict[int, Program]
) -> None:
    before, after = programs[0].weights, resampled[0].weights
    added = set(after) - set(before)
    assert all(after[name] is before[name] for name in before)
    assert all(name.startswith("energy.") for name in added)
    used = set(resampled[0].graphs["energy"].weights.values())
    assert used == added | {"frequencies"}
    assert list(resampled[0].graphs) == ["propose", "energy", "choose"]


def noise_of(program: Program, batch: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for noise in program.loop.noise:
        assert noise.steps is not None and noise.shape[0] == "batch"
        inner = [int(size) for size in noise.shape[1:]]
        found[noise.name] = generator.uniform(1e-9, 1, (noise.steps, batch, *inner))
    return found


def test_two_texts_at_once_are_those_of_two_runs_with_the_same_noise(
    resampled: dict[int, Program],
) -> None:
    program, batch = resampled[PROMPT], 4
    prompts = torch.arange(batch * PROMPT).view(batch, PROMPT) % VOCABULARY
    noise = noise_of(program, batch)
    whole = program(input_ids=prompts, **noise)["tokens"]
    alone = [
        program(
            input_ids=prompts[row : row + 1],
            **{name: item[:, row : row + 1] for name, item in noise.items()},
        )["tokens"]
        for row in range(batch)
    ]
    assert len({tuple(row) for row in whole.tolist()}) > 1
    assert torch.equal(whole, torch.cat(alone))


def test_the_energy_decides_which_candidate_is_kept(
    programs: dict[int, Program], path: Path
) -> None:
    """With hardly any temperature it is the one of the least energy."""
    item = EnergyResample(str(path), CANDIDATES, temperature=1e-3, energy="head")
    program = item.rewrite(with_loop(programs[0], steps=1)).program
    seen = program.watch(("text", "candidates", "energy"), seed=0, batch=64)
    (text,), (candidates,), (energy,) = seen["text"], seen["candidates"], seen["energy"]
    energy, candidates = energy.reshape(64, -1), candidates.reshape(64, CANDIDATES, -1)
    least = candidates[np.arange(64), energy.argmin(1)]
    gap = np.partition(energy, 1, 1)[:, 1] - energy.min(1)
    clear = gap > 0.1
    assert clear.sum() > 20 and (text[clear] == least[clear]).all()


def test_tokens_that_are_there_never_change(resampled: dict[int, Program]) -> None:
    template = torch.full((8, LENGTH), MASK)
    template[:, 1] = torch.arange(8) % VOCABULARY
    request: dict[str, Any] = {"template": template, "seed": 3}
    oracles = EnergyResample(energy="head").oracles(resampled[0], resampled[0], request)
    assert oracles and all(item.holds for item in oracles)
    tokens = resampled[0](**request)["tokens"]
    assert torch.equal(tokens[:, 1], template[:, 1]) and (tokens != MASK).all()


def test_the_file_keeps_the_weights_in_either_dtype(
    programs: dict[int, Program], tmp_path: Path
) -> None:
    head, given = random_head(programs[0]), judged(3, 0)
    expected = head(given["candidates"], given["text"], MASK)
    for dtype, tolerance in ((torch.float32, 0.0), (torch.float16, 5e-3)):
        save_energy_head(head, programs[0], tmp_path / "head", dtype)
        assert {item.dtype for item in load_file(tmp_path / "head").values()} == {dtype}
        again = load_energy_head(tmp_path / "head", programs[PROMPT])
        found = again(given["candidates"], given["text"], MASK)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_declines_what_is_no_head_of_this_denoiser(
    programs: dict[int, Program], path: Path, tmp_path: Path
) -> None:
    program, weights = programs[0], load_file(path)
    mark = {"denoiser": denoiser_fingerprint(program)}
    (tmp_path / "text").write_text("no safetensors")
    save_file(weights, tmp_path / "other", {"format": "chimera draft 1", **mark})
    few = {name: item for name, item in weights.items() if name != "mix_bias"}
    save_file(few, tmp_path / "few", {"format": "energy head 1", **mark})

    def reason(source: Path, of: Program = program) -> str:
        return str(EnergyResample(str(source), energy="head").declines(of))

    assert EnergyResample(str(path), energy="head").declines(program) is None
    assert "found no such file" in reason(tmp_path / "none")
    assert "found no readable safetensors file" in reason(tmp_path / "text")
    assert "format 'chimera draft 1', expected 'energy head 1'" in reason(tmp_path / "other")
    assert "do not fit its denoiser (mix_bias)" in reason(tmp_path / "few")
    moved = {**program.weights, "norm.weight": program.weights["norm.weight"] + 1}
    other = replace(program, weights=moved)
    assert "found a head of the denoiser" in reason(path, other)
    assert denoiser_fingerprint(program)[:12] in reason(path, other)


class Timed(torch.nn.Module):
    """A denoiser that looks at the time."""

    def __init__(self) -> None:
        super().__init__()
        self.model = denoiser()

    def forward(self, input_ids: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids)
        return logits * (1 + timestep[:, None, None])


def test_declines_a_denoiser_that_looks_at_the_time(path: Path) -> None:
    program = captured(Timed().eval(), timestep="timestep")
    reason = EnergyResample(str(path), energy="head").declines(program)
    assert reason is not None and "the denoiser looks at the time" in reason
    with pytest.raises(ValueError, match="EnergyHead: the denoiser looks at the time"):
        EnergyHead(program)


def test_a_source_may_be_a_name(programs: dict[int, Program], path: Path) -> None:
    register_loader("heads-of-this-test:", lambda name, loop: path.with_name(name))
    item = EnergyResample("heads-of-this-test:head.safetensors", energy="head")
    assert item.declines(programs[0]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": "head", "start_token": 0}, "start_token: found 0 with energy: head"),
        ({"energy": "head", "carry_over": True}, "carry_over: found True with energy: head"),
        ({"energy": "heads"}, "energy: found 'heads', expected one of model, head"),
    ],
    ids=["start_token", "carry_over", "energy"],
)
def test_refuses_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnergyResample("source", **options)
