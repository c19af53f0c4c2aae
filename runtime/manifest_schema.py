"""The JSON schema of manifest.json, for readers that are not this one."""

from typing import Any

from optimize.runtime.manifest import (
    FORMAT,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    MANIFEST_FILE,
    PACKAGE_SLOT,
    PACKAGE_VERSION,
    Manifest,
)


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of manifest.json in this version; docs/manifest.schema.json is a copy.

    It says what a manifest looks like. What its parts must be to each other, and which paths are
    allowed, only `parse_manifest` checks.
    """
    ours = Manifest.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {**ours.pop("$defs"), "Manifest": ours}
    variant = _closed(
        variant_directory={"type": "string"},
        ep={"const": "CPUExecutionProvider"},
        device={"const": "cpu"},
        executor_info=_closed(ort=_closed(model_file={"type": "string"})),
    )
    component = _closed(variants=_closed(onnx=variant))
    package = _closed(
        schema_version={"const": PACKAGE_VERSION},
        components={"type": "object", "additionalProperties": component},
        additional_metadata=_closed(**{PACKAGE_SLOT: {"$ref": "#/$defs/Manifest"}}),
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{FORMAT} {FORMAT_MAJOR}.{FORMAT_MINOR}: {MANIFEST_FILE}",
        **package,
        "$defs": definitions,
    }


def _closed(**properties: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
