"""What a bundle costs and promises, as far as nothing has to be measured.

All of it is read from the bundle itself: the manifest, the ONNX graphs, the weights file, and
`report.json`, whose hash the manifest has.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from optimize.ir.errors import GateError
from optimize.measure.cost import loop_calls
from optimize.measure.receipt import read_report
from optimize.runtime.bundle import Bundle, open_bundle
from optimize.runtime.loop import Loop
from optimize.runtime.manifest import ENGINES_FOLDER, GRAPHS_FOLDER, WEIGHTS_FILE, Manifest
from optimize.runtime.tensors import StoredTensor

LEAST_DUPLICATE = 1024
"""Bytes below which equal tensors are no waste: constants such as scales are often alike."""


class Facts(BaseModel):
    """Facts of a bundle, JSON-able.

    Attributes:
        numbers: metric → value; a smaller one is better.
        ops: ONNX op, with its domain where it is not the standard one → nodes in all graphs.
        sites: pass → places it rewrote.
        declined: pass → why it did not apply.
        quality: metric → value of the result after all passes.
        budget: metric → limit of the recipe.
        signature: SHA-256 of what a request contains and returns.
        source: SHA-256 of the graphs before any pass; "" where the bundle does not say.
        weights: SHA-256 of the weights before any pass; "" likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    numbers: dict[str, float]
    ops: dict[str, int] = {}
    sites: dict[str, int] = {}
    declined: dict[str, str] = {}
    quality: dict[str, float] = {}
    budget: dict[str, float] = {}
    signature: str = ""
    source: str = ""
    weights: str = ""


def bundle_facts(path: str | os.PathLike[str]) -> Facts:
    """The facts of a bundle.

    Raises:
        BundleError: it is no good bundle.
        GateError: its report is not what a report is.
    """
    bundle = open_bundle(path, target="onnx")
    report = read_report(path)
    try:
        return _facts(bundle, report)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise GateError(
            f"{path}: report.json: found something else than a report ({error}); export again"
        ) from error


def _facts(bundle: Bundle, report: Mapping[str, Any]) -> Facts:
    manifest = bundle.manifest
    ops = _ops(bundle.models)
    records = report.get("passes", [])
    applied = [record for record in records if record.get("declined") is None]
    source = report.get("source") or {}
    return Facts(
        numbers={
            **_costs(report, manifest.loop),
            "nodes": sum(ops.values()),
            **_sizes(manifest),
            "duplicate_weight_bytes": _duplicates(bundle.weights),
            **_kernels(report),
        },
        ops=dict(sorted(ops.items())),
        sites=dict(_summed((record["name"], len(record["sites"])) for record in applied)),
        declined={r["name"]: r["declined"] for r in records if r.get("declined") is not None},
        quality=_quality(report, applied),
        budget={name: float(limit) for name, limit in (report.get("budget") or {}).items()},
        signature=_digest(manifest),
        source=source.get("graphs", ""),
        weights=source.get("weights", ""),
    )


def _summed(pairs: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, count in pairs:
        counts[name] += count
    return counts


def _costs(report: Mapping[str, Any], loop: Loop) -> dict[str, float]:
    """What a request costs; what only the program knew is missing in bundles of old versions."""
    costs = report.get("costs") or {}
    found = {name: float(costs[name]) for name in ("flops", "bytes") if name in costs}
    found["engine_calls"] = float(sum(loop_calls(loop).values()))
    predicted = report.get("predicted") or {}
    return found | {f"predicted_seconds[{name}]": float(s) for name, s in predicted.items()}


def _ops(models: Mapping[str, bytes]) -> Counter[str]:
    """Nodes of all graphs by op, those inside loops and branches included."""
    import onnx

    counts: Counter[str] = Counter()

    def count(graph: Any) -> None:
        for node in graph.node:
            counts[f"{node.domain}.{node.op_type}" if node.domain else node.op_type] += 1
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    count(attribute.g)

    for content in models.values():
        model = onnx.ModelProto()
        model.ParseFromString(content)
        count(model.graph)
        for function in model.functions:
            count(function)
    return counts


def _sizes(manifest: Manifest) -> dict[str, float]:
    """Bytes of the files that a device gets; reports, whose length says nothing, are left out."""
    sizes = {name: entry.size for name, entry in manifest.files.items()}
    graphs = [
        name for name in sizes if name.startswith(f"{GRAPHS_FOLDER}/") and name != WEIGHTS_FILE
    ]
    engines = [name for name in sizes if name.startswith(f"{ENGINES_FOLDER}/")]
    found = {
        "graph_bytes": sum(sizes[name] for name in graphs),
        "weight_bytes": sizes[WEIGHTS_FILE],
        "bundle_bytes": sum(
            size for name, size in sizes.items() if not name.startswith(("report.", "recipe."))
        ),
    }
    if engines:
        found["engine_bytes"] = sum(sizes[name] for name in engines)
    return {name: float(size) for name, size in found.items()}


def _duplicates(weights: Mapping[str, StoredTensor]) -> float:
    """Bytes of tensors that stand in the weights file a second time."""
    seen: set[bytes] = set()
    wasted = 0
    for tensor in weights.values():
        if tensor.array.nbytes < LEAST_DUPLICATE:
            continue
        digest = hashlib.sha256(tensor.array.reshape(-1).view("uint8").data).digest()
        wasted += tensor.array.nbytes if digest in seen else 0
        seen.add(digest)
    return float(wasted)


def _kernels(report: Mapping[str, Any]) -> dict[str, float]:
    """Resources of each kernel on each architecture, as its compiler said."""
    found: dict[str, float] = {}
    for kernel, architectures in (report.get("kernels") or {}).items():
        for architecture, used in architectures.items():
            for resource in ("registers", "spill_bytes", "shared_bytes"):
                found[f"kernel_{resource}[{kernel}, {architecture}]"] = float(used[resource])
    return found


def _quality(report: Mapping[str, Any], applied: list[Any]) -> dict[str, float]:
    """Quality of the result; a result equal to the reference has an infinite ratio, left out."""
    given = report.get("quality_of_result")
    if given is None and applied:
        last = applied[-1]
        details = last.get("details", {})
        given = {"relative_error": last.get("error")} | {
            name: details.get(name) for name in ("psnr", "token_match")
        }
    return {name: float(value) for name, value in (given or {}).items() if value is not None}


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(manifest.signature.model_dump_json().encode()).hexdigest()
