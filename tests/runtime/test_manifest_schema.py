"""The JSON schema: current in docs, met by what is exported, and by nothing that is malformed."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from optimize.runtime.manifest_schema import manifest_schema
from tests.loading import module_at

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def validator():
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def package(tiny_bundle):
    return json.loads((tiny_bundle / "manifest.json").read_bytes())


def test_the_committed_schema_is_current():
    module = module_at(ROOT / "docs" / "build.py")
    assert module.SCHEMA.read_text("utf-8") == module.schema_text(), (
        "docs/manifest.schema.json is not current; run `python docs/build.py --schema`"
    )


def test_exported_manifests_meet_it(validator, package, toy_program, tmp_path):
    validator.validate(package)
    other = toy_program.export(tmp_path / "toy", loop="unrolled", recipe={"passes": []})
    validator.validate(json.loads((other / "manifest.json").read_bytes()))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m: m.pop("loop"), "loop"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m["files"]["graphs/step.onnx"].update(sha256="0" * 63), "0" * 63),
        (lambda m: m["files"]["graphs/step.onnx"].update(size=-1), "-1"),
        (lambda m: m.update(format="other"), "other"),
        (lambda m: m["loop"]["slots"][0].update(dtype="object"), "object"),
    ],
)
def test_malformed_manifests_do_not(validator, package, change, place):
    changed = copy.deepcopy(package)
    change(changed["additional_metadata"]["optimize"])
    with pytest.raises(jsonschema.ValidationError) as caught:
        validator.validate(changed)
    assert place in str(caught.value)
