"""A captured pipeline gives what the pipeline itself gives on the same latents."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optimize.capture.capture_model import capture_model
from optimize.capture.from_diffusers import capture_pipeline, load_pipeline
from optimize.commands.models import load_model
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError
from optimize.ir.program import Program
from optimize.ir.spec import check_program
from optimize.passes.cache_regions import CacheRegions
from optimize.passes.fuse_solver import FuseSolver
from optimize.runtime.errors import ResourceError

pytest.importorskip("diffusers")
SPEC = importlib.util.spec_from_file_location(
    "tiny_pipelines", Path(__file__).parent / "tiny_pipelines.py"
)
assert SPEC is not None and SPEC.loader is not None
tiny = importlib.util.module_from_spec(SPEC)
sys.modules["tiny_pipelines"] = tiny
SPEC.loader.exec_module(tiny)

FAMILIES = "dit pixart sd3 flux lumina wan cogvideox hunyuanvideo".split()
STEPS = 4
TOLERANCE = 1e-5
# Following a batch of any size costs twice the tracing time.
DYNAMIC = ("flux",)


@cache
def captured(name: str) -> tuple[Any, Program]:
    case = tiny.case(name)
    dynamic = None if name in DYNAMIC else False
    return case, capture_pipeline(case.pipeline, steps=STEPS, dynamic=dynamic, **case.sizes)


def result(program: Program, case: Any) -> dict[str, torch.Tensor]:
    return program(latent=case.latent, **case.request)


def reference(name: str, case: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent and the pixels of the pipeline's own call, channels before frames."""
    call, pipeline = dict(case.call), case.pipeline
    given: list[torch.Tensor] = []
    decode = pipeline.vae.decode

    def recorded(latent: torch.Tensor, *args: Any, **options: Any) -> Any:
        given.append(latent)
        return decode(latent, *args, **options)

    if name == "dit":
        pipeline.vae.decode = recorded
        try:
            pixels = pipeline(**call, num_inference_steps=STEPS, output_type="pt")[0]
        finally:
            pipeline.vae.decode = decode
        return given[0] * pipeline.vae.config.scaling_factor, pixels
    call["latents"] = case.latent
    latent = pipeline(**call, num_inference_steps=STEPS, output_type="latent")[0]
    pixels = pipeline(**call, num_inference_steps=STEPS, output_type="pt")[0]
    return latent, pixels.permute(0, 2, 1, 3, 4) if pixels.ndim == 5 else pixels


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert float(theirs.std()) > 1e-3
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_program_equals_the_pipeline(name: str) -> None:
    case, program = captured(name)
    latent, pixels = reference(name, case)
    out = result(program, case)
    assert relative(out["latent"], latent) <= TOLERANCE
    assert program.signature.outputs == case.outputs
    kind = case.outputs[1]
    assert relative(out[kind], pixels) <= TOLERANCE
    assert out[kind].dtype == torch.float32
    low, high = torch.aminmax(out[kind])
    assert low >= 0 and high <= 1
    # The noise went a long way: equal results are not equal inputs.
    assert relative(case.latent, latent) > 0.1


def test_guidance_is_on_in_these_comparisons() -> None:
    for name, other in (("sd3", "encoder_hidden_states"), ("wan", "encoder_hidden_states")):
        case, program = captured(name)
        out = result(program, case)["latent"]
        unguided = program(latent=case.latent, **case.request, guidance_scale=1.0)["latent"]
        assert relative(unguided, out) > 1e-3
        swapped = {**case.request, f"negative_{other}": case.request[other]}
        assert relative(program(latent=case.latent, **swapped)["latent"], out) > 1e-3


def test_embedded_guidance_is_a_field_with_the_pipelines_default() -> None:
    case, program = captured("flux")
    default = {item.name: item.default for item in program.signature.inputs}
    assert default["guidance"] == 3.5 and "guidance_scale" not in default
    changed = program(latent=case.latent, **case.request, guidance=7.0)["latent"]
    case.call["guidance_scale"] = 7.0
    try:
        latent, _ = reference("flux", case)
    finally:
        del case.call["guidance_scale"]
    assert relative(changed, latent) <= TOLERANCE
    assert relative(result(program, case)["latent"], latent) > 1e-4


def test_batch_of_any_size() -> None:
    case, program = captured("flux")
    assert program.signature.dimensions["batch"] == (1, 63)
    first = {name: item[:1] for name, item in case.request.items()}
    one = program(latent=case.latent[:1], **first)
    both = result(program, case)
    assert relative(one["image"], both["image"][:1]) <= TOLERANCE


def test_weights_keep_their_names_and_bytes() -> None:
    case, program = captured("sd3")
    ours = dict(case.pipeline.transformer.named_parameters())
    decoder = {f"vae.{name}": item for name, item in case.pipeline.vae.named_parameters()}
    assert "vae.decoder.conv_in.weight" in program.weights
    for name, tensor in program.weights.items():
        owner = decoder if name.startswith("vae.") else ours
        if name in owner:
            assert tensor.data_ptr() == owner[name].data_ptr()
    named = [name for name in program.weights if name in ours or name in decoder]
    assert len(named) >= len(program.weights) - 1  # the cropped position table


def test_passes_leave_the_decoder_behind_the_loop() -> None:
    case, program = captured("pixart")
    check_program(program)
    fused = FuseSolver().rewrite(program).program
    check_program(fused)
    assert "solver" not in fused.graphs and "decoder" in fused.graphs
    ours, theirs = result(fused, case), result(program, case)
    assert relative(ours["image"], theirs["image"]) <= TOLERANCE
    assert relative(ours["latent"], theirs["latent"]) <= TOLERANCE
    faster = FuseSolver(solver="dpm_solver_pp", steps=2).rewrite(program).program
    check_program(faster)
    assert result(faster, case)["image"].shape == theirs["image"].shape


def test_caching_regions_leaves_the_decoder_behind_the_loop() -> None:
    case, program = captured("flux")
    cached = CacheRegions(keep_ratio=1.0, warmup=2).rewrite(program).program
    check_program(cached)
    assert relative(result(cached, case)["image"], result(program, case)["image"]) <= 1e-4


@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_another_number_of_steps_follows_the_scheduler(name: str) -> None:
    case, program = captured(name)
    shorter = FuseSolver(steps=2).rewrite(program).program
    check_program(shorter)
    call = {**case.call, "latents": case.latent, "num_inference_steps": 2, "output_type": "latent"}
    assert relative(result(shorter, case)["latent"], case.pipeline(**call)[0]) <= TOLERANCE


def test_folder_gives_the_same_result(tmp_path: Path) -> None:
    case, program = captured("dit")
    case.pipeline.save_pretrained(tmp_path / "dit")
    loaded = capture_pipeline(str(tmp_path / "dit"), steps=STEPS, dynamic=False)
    ours, theirs = result(loaded, case), result(program, case)
    assert relative(ours["image"], theirs["image"]) <= TOLERANCE
    assert relative(ours["latent"], theirs["latent"]) <= TOLERANCE
    assert type(load_model(str(tmp_path / "dit")).model).__name__ == "DiTPipeline"


def test_pipeline_without_vae_says_so() -> None:
    case = tiny.case("dit")
    case.pipeline.vae = None
    program = capture_pipeline(case.pipeline, steps=2, dynamic=False)
    assert program.signature.outputs == ("latent",)
    assert any("no VAE" in note for note in program.notes)


def test_decoder_that_cannot_be_traced_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny.case("dit")

    def decode(latent: torch.Tensor, return_dict: bool = True) -> Any:
        return (latent * float(latent.sum().item()),)

    monkeypatch.setattr(case.pipeline.vae, "decode", decode)
    program = capture_pipeline(case.pipeline, steps=2, dynamic=False)
    assert program.signature.outputs == ("latent",)
    assert any("AutoencoderKL cannot be traced" in note for note in program.notes)


def test_random_scheduler_says_so() -> None:
    case = tiny.case("dit")
    config = case.pipeline.scheduler.config
    import diffusers

    case.pipeline.vae = None
    case.pipeline.scheduler = diffusers.DDPMScheduler.from_config(config, clip_sample=False)
    program = capture_pipeline(case.pipeline, steps=2, dynamic=False)
    assert any("DDPMScheduler adds noise" in note for note in program.notes)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sd3", {"height": 18}, "height: found 18, expected a multiple of 4"),
        ("flux", {"width": 26}, "width: found 26, expected a multiple of 4"),
        ("sd3", {"frames": 5}, "frames: found 5"),
        ("wan", {"height": 16, "width": 32, "frames": 4}, "frames: found 4, expected one more"),
        ("dit", {"height": 32}, "makes one size only"),
        ("sd3", {"batch": 0}, "batch: found 0"),
        ("sd3", {"steps": 0}, "steps: found 0"),
        ("cogvideox", {"frames": 3, "text_length": 9}, "text_length: found 9, expected 7"),
    ],
)
def test_sizes_that_do_not_fit(name: str, options: dict[str, int], expected: str) -> None:
    with pytest.raises(InputModelError, match=expected):
        capture_pipeline(tiny.case(name).pipeline, **options)


def test_other_classes_are_refused_with_the_way_out() -> None:
    class StrangePipeline:
        transformer = nn.Linear(1, 1)

    with pytest.raises(InputModelError, match="StrangePipeline with Linear.*WanPipeline") as error:
        capture_pipeline(StrangePipeline())
    assert "optimize(pipeline.transformer" in str(error.value)
    import diffusers

    case = tiny.case("sd3")
    parts = {**case.pipeline.components}
    other = diffusers.StableDiffusion3Img2ImgPipeline(**parts)
    with pytest.raises(InputModelError, match="StableDiffusion3Img2ImgPipeline"):
        capture_pipeline(other)


def test_folders_and_ids_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputModelError, match="found no such folder"):
        load_pipeline(tmp_path / "missing" / "deep")
    with pytest.raises(InputModelError, match="found no such folder"):
        load_pipeline("./missing")
    with pytest.raises(InputModelError, match="without model_index.json"):
        load_pipeline(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="cannot be loaded.*pass its folder"):
        load_pipeline("nobody/no-such-pipeline-anywhere")


def test_a_pipeline_brings_its_own_loop() -> None:
    with pytest.raises(InputModelError, match="brings its own"):
        capture_model(tiny.case("dit").pipeline, loop=DenoiseLoop())


def test_wan_with_two_transformers_is_refused() -> None:
    case = tiny.case("wan")
    case.pipeline.register_to_config(boundary_ratio=0.9)
    with pytest.raises(InputModelError, match="boundary_ratio=0.9"):
        capture_pipeline(case.pipeline, **case.sizes)


def test_capture_leaves_the_pipeline_alone() -> None:
    case = tiny.case("sd3")
    scheduler = case.pipeline.scheduler
    before = {name: str(item) for name, item in vars(scheduler).items()}
    weights = {name: item.clone() for name, item in case.pipeline.vae.state_dict().items()}
    case.pipeline.vae.train()
    case.pipeline.vae.decoder.eval()
    with pytest.warns(UserWarning, match="training mode"):
        capture_pipeline(case.pipeline, steps=2, dynamic=False, **case.sizes)
    assert {name: str(item) for name, item in vars(scheduler).items()} == before
    assert case.pipeline.vae.training and not case.pipeline.vae.decoder.training
    for name, item in case.pipeline.vae.state_dict().items():
        assert torch.equal(item, weights[name])
