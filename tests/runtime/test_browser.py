"""The browser runtime: the same numbers from the same bundle, in node and in Chromium."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.browser import (
    MODULES,
    Missing,
    arrays_of,
    browser,
    browser_figures,
    greatest_difference,
    run_in_page,
    runtime_folder,
    served,
)
from optimize.api import apply_recipe
from optimize.capture.capture_model import capture_model
from optimize.commands.models import load_model
from optimize.export.browser import write_site
from optimize.export.bundle import export_bundle
from optimize.recipes.recipe import Recipe
from optimize.runtime import load, philox
from optimize.runtime.image import to_uint8
from tests.runtime import every_feature
from tests.runtime import toy_language as toy

HERE = Path(__file__).parent
SHAPE = [1, 1, 8, 8]


@pytest.fixture(scope="module")
def node():
    """Runs a script of tests/runtime/browser with what it reads; gives what it writes."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not on PATH")

    def run(script, *arguments, given):
        command = [program, str(HERE / "browser" / script), str(MODULES), *map(str, arguments)]
        done = subprocess.run(
            command, input=json.dumps(given), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def ort():
    """The folder `dist` of onnxruntime-web."""
    try:
        return runtime_folder()
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def chromium():
    """An open Chromium."""
    try:
        with browser() as opened:
            yield opened
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture
def page(chromium):
    opened = chromium.new_page()
    yield opened
    opened.close()


@pytest.fixture
def answers(node, ort):
    """Bundle, requests → what node's session answers to each."""

    def ask(bundle, *requests, seed=None):
        given = [{"request": request, "seed": seed} for request in requests]
        return node("run_session.js", ort, bundle, given=given)

    return ask


@pytest.mark.parametrize("slot", ["latent", "draft.uniform_1", "_"])
def test_noise_is_that_of_python(node, slot):
    """Uniform numbers bit for bit; normal ones up to the rounding of logarithm and cosine."""
    draws = [
        {"seed": seed, "slot": slot, "step": step, "sample": sample, "count": count}
        for seed in (0, 1, 2**32, 2**53 + 1, 2**64 - 1)
        for step, sample in ((0, 0), (7, 3), (2**32 + 5, 0))
        for count in (1, 2, 3, 4, 5, 1001)
    ]
    given = [{**draw, "seed": str(draw["seed"])} for draw in draws]
    for draw, made in zip(draws, node("philox_numbers.js", given=given), strict=True):
        np.testing.assert_array_equal(made["uniform"], philox.uniform(**draw))
        np.testing.assert_allclose(made["normal"], philox.normal(**draw), rtol=1e-15, atol=0)


def test_every_part_of_a_loop_gives_what_python_gives(answers, tmp_path):
    """Ranges of steps, ragged results, strides, repeats in repeats, flags, all dtypes, noise."""
    bundle = export_bundle(every_feature.program(), tmp_path / "b")
    wide = np.random.default_rng(0).standard_normal((8, 2, 4))
    requests = [{"limit": [3, 4]}, {"limit": 99, "start": [2, 9]}, {"wide": wide}]
    found = answers(
        bundle,
        *requests[:2],
        {"wide": {"typed": "Float64Array", "data": wide.ravel().tolist(), "shape": [8, 2, 4]}},
        seed=str(2**64 - 1),
    )
    with load(bundle, threads=1) as session:
        for request, answer in zip(requests, found["answers"], strict=True):
            steps = []
            expected = session(
                seed=2**64 - 1, progress=lambda *of, to=steps: to.append(list(of)), **request
            )
            results = arrays_of(answer["results"])
            assert set(results) == set(expected)
            for name, array in expected.items():
                assert answer["results"][name]["dtype"] == str(array.dtype)
                np.testing.assert_allclose(results[name], array, rtol=1e-6, atol=1e-6)
            assert answer["steps"] == steps
    assert "-7" in found["answers"][1]["results"]["numbers"]["data"], "no sample was filled up"


def test_float16_slots_are_rounded_as_in_python(answers, tiny_program, tmp_path):
    bundle = export_bundle(tiny_program(torch.float16), tmp_path / "b")
    (answer,) = answers(bundle, {"labels": [1, 2]}, seed="7")["answers"]
    with load(bundle, threads=1) as session:
        expected = session(seed=7, labels=[1, 2])["image"]
    assert greatest_difference(arrays_of(answer["results"])["image"], expected) < 1e-2


def test_tokens_of_a_language_model_are_equal(answers, tmp_path):
    bundle = export_bundle(toy.colours(), tmp_path / "b")
    prompts = [[11, 6, 7, *[0] * 9], [11, 6, *[0] * 10]]
    (answer,) = answers(bundle, {"input_ids": prompts, "lengths": [3, 2]})["answers"]
    with load(bundle, threads=1) as session:
        expected = session(input_ids=prompts, lengths=[3, 2])["tokens"]
    np.testing.assert_array_equal(arrays_of(answer["results"])["tokens"], expected)


REFUSED = {
    "missing": ({}, "0", "'labels' is missing, expected labels int64 [batch]"),
    "unknown": ({"label": 1}, "0", "unknown field 'label', expected some of labels, latent, seed"),
    "fraction": ({"labels": [1.5]}, "0", "labels: found 1.5, expected labels int64 [batch]"),
    "text": ({"labels": "1"}, "0", "labels: found '1', expected labels int64 [batch]"),
    "empty": ({"labels": []}, "0", "labels: found an empty list"),
    "uneven": ({"labels": [[1], [2, 3]]}, "0", "labels: found lists of different lengths"),
    "rank": ({"labels": [[1, 2]]}, "0", "labels: found shape [1, 2], expected labels int64"),
    "range": ({"labels": [1, 11]}, "0", "labels: found value 11, expected values in [0, 10]"),
    "sizes": ({"labels": [1], "batch": 2}, "0", "labels: found shape [1], expected labels int64"),
    "batch": ({"labels": 1, "batch": 17}, "0", "batch: found 17, expected a size in [1, 16]"),
    "class": (
        {"labels": {"typed": "Int32Array", "data": [1], "shape": [1]}},
        "0",
        "labels: found Int32Array, expected BigInt64Array for labels int64 [batch]",
    ),
    "elements": (
        {"labels": {"typed": "BigInt64Array", "data": [1, 2], "shape": [3]}},
        "0",
        "labels: found 2 elements for shape [3], expected 3",
    ),
    "infinite": (
        {"labels": 1, "latent": {"typed": "Float32Array", "data": [1e39] * 64, "shape": SHAPE}},
        "0",
        "latent: found Infinity at element 0, expected finite values",
    ),
    "no-seed": ({"labels": 1}, None, "found neither `seed` nor 'latent'; give a seed"),
    "negative-seed": ({"labels": 1}, "-1", "seed: found -1, expected a whole number in [0, 2**64)"),
    "large-seed": ({"labels": 1}, str(2**64), "seed: found 18446744073709551616, expected a whole"),
}
"""Name → request, seed, and what is said of them."""


@pytest.fixture(scope="module")
def refusals(node, ort, tiny_bundle):
    """The answers to all of them by one session, and to a good request after them."""
    given = [{"request": request, "seed": seed} for request, seed, _ in REFUSED.values()]
    given.append({"request": {"labels": 1}, "seed": "0"})
    answers = node("run_session.js", ort, tiny_bundle, given=given)["answers"]
    return dict(zip((*REFUSED, "good"), answers, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_does_not_fit_is_refused(refusals, name):
    assert refusals[name]["code"] == "input"
    assert REFUSED[name][2] in refusals[name]["message"]
    # The session stays usable.
    assert refusals["good"]["results"]["image"]["shape"] == SHAPE


def flip(name):
    def damage(bundle):
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(content)

    return damage


def replace(name, content):
    return lambda bundle: (bundle / name).write_bytes(content)


def remove(name):
    return lambda bundle: (bundle / name).unlink()


def edit(change):
    """Changes the manifest as a consistent writer would."""

    def damage(bundle):
        package = json.loads((bundle / "manifest.json").read_text())
        change(package["additional_metadata"]["optimize"])
        (bundle / "manifest.json").write_text(json.dumps(package))

    return damage


def call_of(manifest):
    return manifest["loop"]["body"][0]["bodies"]["step"][0]


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (flip("graphs/step.onnx"), "bundle.integrity", "graphs/step.onnx: found sha256"),
        (flip("graphs/weights.safetensors"), "bundle.integrity", "weights.safetensors: found sha"),
        (flip("tables.safetensors"), "bundle.integrity", "tables.safetensors: found sha256"),
        (replace("graphs/step.onnx", b""), "bundle.integrity", "step.onnx: found 0 bytes"),
        (
            remove("tables.safetensors"),
            "bundle.integrity",
            "safetensors: the file is missing",
        ),
        (remove("manifest.json"), "bundle", "found no manifest.json"),
        (replace("manifest.json", b"{"), "bundle.corrupt", "expected strict JSON"),
        (
            edit(lambda m: m.update(format_version="2.0")),
            "bundle.version",
            "found format version 2.0, expected 1.x; install a newer version",
        ),
        (
            edit(lambda m: m.update(required_features=["telepathy"])),
            "bundle.version",
            "needs telepathy, which the browser runtime does not have",
        ),
        (
            edit(lambda m: m["loop"]["slots"][0].update(dtype="bfloat16")),
            "bundle.version",
            "latent: dtype: found bfloat16",
        ),
        (
            edit(lambda m: call_of(m)["inputs"]["labels"].update(source="oracle")),
            "bundle.version",
            "labels: source: found oracle",
        ),
        (
            edit(lambda m: call_of(m).update(graph="stop")),
            "bundle.corrupt",
            "the loop names unknown graph stop",
        ),
        (
            edit(lambda m: call_of(m).update(outputs=None)),
            "bundle.corrupt",
            "expected a manifest; export the bundle again",
        ),
        (
            edit(lambda m: m["loop"]["slots"][0].update(shape=["crowd"])),
            "bundle.corrupt",
            "latent: found dimension crowd, expected a size or one of batch",
        ),
        (
            edit(lambda m: m["files"].update({"../x": {"size": 1, "sha256": "0" * 64}})),
            "bundle.unsafe",
            "found path '../x'",
        ),
    ],
    ids="graph weights tables cut missing none json major feature dtype source name outputs "
    "shape path".split(),
)
def test_a_damaged_bundle_is_refused(answers, bundle, damage, code, message):
    damage(bundle)
    answer = answers(bundle, {"labels": 1}, seed="0")
    assert (answer["code"], message in answer["message"]) == (code, True), answer


@pytest.fixture(scope="module")
def digits_bundle(tmp_path_factory):
    model = load_model("zoo:digits-dit")
    program = capture_model(model.model, model.example_inputs, loop=model.loop)
    recipe = Recipe.load("image-fast")
    program = apply_recipe(program, recipe, model.example_inputs, verify=False)
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    program.export(folder, example=True)
    return folder


@pytest.mark.slow
def test_chromium_makes_the_images_of_the_python_session(chromium, ort, digits_bundle):
    figures = browser_figures(
        digits_bundle, {"class_labels": [7, 3]}, 5, repeats=1, within=chromium
    )
    assert figures["error"] <= 1e-3
    assert figures["seconds_per_image"] > 0


@pytest.mark.slow
def test_chromium_decodes_the_tokens_of_the_python_session(page, ort, tmp_path):
    """A trained transformer, its key-value cache moved from call to call."""
    model = load_model("zoo:arithmetic")
    request = {name: item.tolist() for name, item in model.example_inputs.items()}
    program = capture_model(model.model, model.example_inputs, loop=model.loop)
    program.export(tmp_path / "bundle")
    with load(tmp_path / "bundle", threads=1) as session:
        expected = session(**request)
    site = write_site(tmp_path / "bundle", tmp_path / "site", runtime=ort)
    with served(site) as address:
        page.goto(address)
        results, _ = run_in_page(page, request, 0)
    assert expected["tokens"].shape[1] > 8
    np.testing.assert_array_equal(results["tokens"], expected["tokens"])
    np.testing.assert_allclose(results["logits"], expected["logits"], atol=1e-4)


PIXELS = """() => Array.from(document.querySelectorAll("canvas"), (canvas) =>
    Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data))"""


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [False, True], ids=["one-thread", "isolated"])
def test_the_page_draws_what_was_asked_for(page, ort, digits_bundle, tmp_path, isolated):
    site = write_site(digits_bundle, tmp_path / "site", runtime=ort)
    with served(site, isolated=isolated) as address, load(digits_bundle, threads=1) as session:
        failures = []
        page.on("pageerror", lambda error: failures.append(error))
        page.on("console", lambda text: failures.append(text) if text.type == "error" else None)
        page.goto(address)
        page.locator("#request").wait_for()
        text = page.inner_text("#engine")
        assert ("the page is not cross-origin isolated" in text) is not isolated
        page.fill("[name=class_labels]", "3, 8")
        page.fill("[name=seed]", str(2**64 - 1))
        page.click("#run")
        page.locator("canvas").first.wait_for()
        pixels = np.array(page.evaluate(PIXELS)).reshape(2, 32, 32, 4)
        expected = to_uint8(session(class_labels=[3, 8], seed=2**64 - 1)["latent"]).astype(int)
        assert np.abs(pixels[..., :3] - expected).max() <= 1
        assert (pixels[..., 3] == 255).all()
        assert "2 images in" in page.inner_text("#status")
        page.click("#check")
        page.locator("#status", has_text="from PyTorch's").wait_for()
        page.fill("[name=class_labels]", "three")
        page.click("#run")
        assert "found 'three', expected a whole number" in page.inner_text("#failure")
        assert not failures


def test_the_page_says_that_a_file_is_damaged(page, ort, tiny_bundle, tmp_path):
    site = write_site(tiny_bundle, tmp_path / "site", runtime=ort)
    flip("graphs/weights.safetensors")(site / "bundle")
    with served(site) as address:
        page.goto(address)
        page.locator("#failure").wait_for()
        assert "graphs/weights.safetensors: found sha256" in page.inner_text("#failure")
        assert not page.is_visible("#request")


def test_a_run_can_be_stopped_and_the_page_stays_usable(page, ort, tiny_bundle, tmp_path):
    site = write_site(tiny_bundle, tmp_path / "site", runtime=ort)
    with served(site) as address:
        page.goto(address)
        page.locator("#request").wait_for()
        # Both messages are sent before the worker reads either.
        page.evaluate(
            "() => { for (const id of ['run', 'stop']) document.getElementById(id).click(); }"
        )
        page.locator("#status", has_text="Stopped").wait_for()
        page.click("#run")
        page.locator("canvas").wait_for()
