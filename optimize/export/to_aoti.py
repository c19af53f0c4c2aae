"""Graph → AOTInductor package: compiled code for PyTorch's C++ runtime, weights outside.

    package = build_package(program.graphs["step"], program.weights, "step")
    Path("step.pt2").write_bytes(package.content)

A package is a zip archive with a shared library in it, so loading one runs its code. It holds no
weights: whoever loads it hands over those of the bundle's weights file, which all packages share.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from optimize.export.to_onnx import check_no_collectives, used_weights
from optimize.ir.errors import UnsupportedOpError
from optimize.ir.graph import Graph
from optimize.kernels.compiled_forms import compiled_forms
from optimize.runtime.aoti_engine import MODEL


@dataclass(frozen=True)
class Package:
    """A compiled graph.

    Attributes:
        content: the archive.
        inputs, outputs: names in the order the code takes and returns them.
        weights: name the code knows a weight by → its name in the program.
    """

    content: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, str]


def build_package(graph: Graph, weights: Mapping[str, torch.Tensor], name: str) -> Package:
    """Compiles a graph for the device its weights are on.

    Args:
        graph: any; kernels are compiled from their plain forms.
        weights: those of the program; only their shapes, dtypes and device are read.
        name: of the graph, for messages.
    Raises:
        UnsupportedOpError: TorchInductor cannot compile the graph, or there is no C++ compiler.
    Source: torch 2.13, `torch._inductor.aot_compile` and `torch._inductor.package`.
    """
    check_no_collectives(graph, name)
    module, constants = _module(graph, weights)
    examples = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    # What makes the package callable by PyTorch's own loader, too.
    module._in_spec = pytree.tree_structure((tuple(examples), {}))
    module._out_spec = pytree.tree_structure((0,) * len(graph.outputs))
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "aot_inductor.package": True,
            "aot_inductor.package_constants_in_so": False,
            "aot_inductor.output_path": f"{folder}/code",
            "cpp.dynamic_threads": True,
        }
        try:
            files = torch._inductor.aot_compile(module, tuple(examples), options=options)
            path = Path(folder) / "package.pt2"
            _archive(path, files)
            found = _constants(path)
        except Exception as error:
            raise UnsupportedOpError(
                f"{name}: TorchInductor {torch.__version__} cannot compile this graph: "
                f"{_shortened(error)}; it needs a C++ compiler (g++ or clang++) on this machine"
            ) from error
        unknown = sorted(set(found) - set(constants))
        if unknown:
            raise UnsupportedOpError(
                f"{name}: found constants {', '.join(unknown[:3])} in the compiled code that are "
                "no weights of the program, expected none; lift them to weights at capture"
            )
        content = path.read_bytes()
    return Package(
        content=content,
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        weights={item: constants[item] for item in sorted(found)},
    )


def _module(
    graph: Graph, weights: Mapping[str, torch.Tensor]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """The graph with its weights as buffers, and buffer name → weight name."""
    forms = compiled_forms()
    root = torch.nn.Module()
    made = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    buffers: dict[str, fx.Node] = {}
    used = set(used_weights(graph))
    constants: dict[str, str] = {}
    for node in graph.graph.nodes:
        weight = graph.weights.get(node.name) if node.op == "placeholder" else None
        if weight is not None and weight not in used:
            continue
        if weight is not None:
            if weight not in buffers:
                buffer = f"w{len(constants)}"
                constants[buffer] = weight
                buffers[weight] = _buffer(made, root, buffer, weights[weight])
            nodes[node] = buffers[weight]
            continue
        nodes[node] = made.node_copy(node, lambda old: nodes[old])
        nodes[node].meta = dict(node.meta)
        if node.op == "placeholder" and not node.meta["val"].is_contiguous():
            # The code reads its inputs by these strides, and callers give contiguous ones.
            with node.meta["val"].fake_mode:
                nodes[node].meta["val"] = node.meta["val"].contiguous()
        form = forms.get(getattr(node.target, "name", str)().partition(".")[0])
        if node.op == "call_function" and form is not None:
            nodes[node].target = form
    return fx.GraphModule(root, made), constants


def _buffer(made: fx.Graph, root: torch.nn.Module, name: str, weight: torch.Tensor) -> fx.Node:
    """A weight as the weights file has it: complex ones as real ones with a last dimension of 2."""
    stored = torch.view_as_real(weight.resolve_conj()) if weight.is_complex() else weight
    root.register_buffer(name, stored.detach())
    node = made.get_attr(name)
    if weight.is_complex():
        node = made.call_function(torch.ops.aten.view_as_complex.default, (node,))
    return node


def _archive(path: Path, files: Any) -> None:
    from torch._inductor.package.package import package_aoti

    package_aoti(str(path), {MODEL: files})


def _constants(path: Path) -> list[str]:
    """The names of the weights that the code of a package asks for."""
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), MODEL, False, 1, -1)
    return list(loader.get_constant_fqns())


def _shortened(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:400]}"
