"""Captures a module as a program: the denoiser as one graph, its loop as data."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from optimize.capture.check_model import check_example_inputs, check_module
from optimize.ir.errors import InputModelError
from optimize.ir.graph import Graph, copy_graph

RANDOM_OPS = ("rand", "normal", "bernoulli", "dropout", "multinomial", "poisson")
MAX_BATCH = 4096


@dataclass(frozen=True)
class Traced:
    """A traced module: its graph, its weights, and what a user should know about them."""

    graph: Graph
    weights: dict[str, torch.Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NamedSize:
    """A size besides the batch that a request decides.

    Attributes:
        argument, dimension: where it is seen.
        smallest, largest: its range.
        others: further arguments that have it in the same dimension.
    """

    argument: str
    dimension: int
    smallest: int
    largest: int
    others: tuple[str, ...] = ()


def prepare(model: Any, example_inputs: Any) -> dict[str, Any]:
    """All checks that need no tracing; returns the example inputs as a dict.

    Raises:
        InputModelError: not a module, parameters without data, wrong example inputs.
    """
    check_module(model)
    return check_example_inputs(model, example_inputs)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a module in evaluation mode, and every submodule back as it was at the end."""
    flags = [(module, module.training) for module in model.modules()]
    if model.training:
        warnings.warn(
            f"{_class_name(model)} is in training mode; it is captured in evaluation mode "
            "(dropout off) and left as it was",
            stacklevel=_callers_level(),
        )
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _callers_level() -> int:
    """How many frames up the code lies that called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and (
        "optimize" in str(frame.f_globals.get("__name__")).split(".")
        or "contextlib" in frame.f_code.co_filename
    ):
        level, frame = level + 1, frame.f_back
    return level


class Flat(nn.Module):
    """A module that takes a flat list of tensors and rebuilds the arguments of another.

    Complex tensors have no counterpart in most engines: they become buffers, stored as pairs of
    real numbers.
    """

    def __init__(self, module: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        paths, self.spec = pytree.tree_flatten_with_path(dict(arguments))
        self.leaves: list[Any] = []
        self.names: list[str] = []
        self.tensors: list[torch.Tensor] = []
        self.constants: list[str] = []
        for path, leaf in paths:
            name = "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            if isinstance(leaf, torch.Tensor) and leaf.is_complex():
                buffer = f"constant_{name}"
                self.register_buffer(buffer, torch.view_as_real(leaf).contiguous())
                self.constants.append(name)
                self.leaves.append(("complex", buffer))
            elif isinstance(leaf, torch.Tensor):
                self.leaves.append(("input", len(self.names)))
                self.names.append(name)
                self.tensors.append(leaf.detach())
            else:
                self.leaves.append(("value", leaf))

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = []
        for kind, item in self.leaves:
            if kind == "input":
                leaves.append(tensors[item])
            elif kind == "complex":
                leaves.append(torch.view_as_complex(getattr(self, item)))
            else:
                leaves.append(item)
        return self.module(**pytree.tree_unflatten(leaves, self.spec))


def trace(
    module: nn.Module,
    arguments: Mapping[str, Any],
    outputs: tuple[str, ...],
    batch: int | None,
    dynamic: bool | None,
    largest: int = MAX_BATCH,
    sizes: Mapping[str, NamedSize] | None = None,
) -> Traced:
    """Traces a module to a functional graph with parameters lifted out.

    Args:
        module: takes `arguments` as keywords; returns a tensor or a tuple, one per output name.
        arguments: name → tensor, or nests of these; other values become constants.
        outputs: names of the returned tensors.
        batch: size of the batch in the example; tensors whose first dimension has it are batched.
        dynamic: whether the batch may vary: True requires it, None tries.
        largest: the largest batch that is asked for.
        sizes: further sizes that a request decides, by name; the batch must be one, too.
    Raises:
        InputModelError: the module cannot be traced; says where in the user's code.
    """
    flat = Flat(module, arguments)
    notes = [f"{name} is complex and stored with the weights" for name in flat.constants]
    exported = None
    if dynamic is not False and batch is not None and batch > 1:
        size = torch.export.Dim("batch", min=1, max=largest)
        shapes: tuple[dict[int, Any], ...] = tuple(
            {0: size} if tensor.ndim and tensor.shape[0] == batch else {} for tensor in flat.tensors
        )
        for name, item in (sizes or {}).items():
            named = torch.export.Dim(name, min=item.smallest, max=item.largest)
            for argument in (item.argument, *item.others):
                shapes[flat.names.index(argument)][item.dimension] = named
        try:
            exported = _export(flat, (shapes,))
        except torch._dynamo.exc.UserError as error:
            if dynamic:
                raise InputModelError(
                    f"{_class_name(module)}: a batch of any size was asked for, but the model "
                    f"fixes it at {batch}; capture with dynamic=False. Cause: {_first_lines(error)}"
                ) from error
            notes.append(f"the model fixes the batch at {batch}")
    elif dynamic:
        raise InputModelError(
            f"{_class_name(module)}: a batch of any size was asked for, but the example has batch "
            f"{batch}; give example inputs with a batch of at least 2"
        )
    if exported is None:
        exported = _export(flat, None)
    graph, weights = _graph_of(exported, flat, outputs, sizes or {})
    _refuse_random(graph)
    return Traced(graph, weights, tuple(notes))


def _export(flat: Flat, shapes: Any) -> torch.export.ExportedProgram:
    try:
        exported = torch.export.export(
            flat, tuple(flat.tensors), dynamic_shapes=shapes, strict=False
        )
        functional: torch.export.ExportedProgram = exported.run_decompositions({})
        return functional
    except torch._dynamo.exc.UserError as error:
        if shapes is not None and "onstraints violated" in str(error):
            raise
        raise InputModelError(_untraceable(flat, error)) from error
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise InputModelError(_untraceable(flat, error)) from error


def _untraceable(flat: Flat, error: Exception) -> str:
    return (
        f"{_class_name(flat.module)}: cannot be traced ({type(error).__name__}): "
        f"{_first_lines(error)}; expected a forward without data-dependent control flow "
        f"(`.item()`, `if tensor`); {_user_line(error)}"
    )


def _class_name(module: nn.Module) -> str:
    while isinstance(getattr(module, "module", None), nn.Module):
        module = module.module  # type: ignore[assignment]
    return type(module).__name__


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:600]


def _user_line(error: BaseException) -> str:
    """Where in the user's code tracing stopped."""
    trace = error.__traceback__
    found = None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/torch/" not in file and "/optimize/" not in file and not file.startswith("<"):
            found = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"look at {found}" if found else "run the model eagerly on the example inputs first"


def _graph_of(
    exported: torch.export.ExportedProgram,
    flat: Flat,
    outputs: tuple[str, ...],
    sizes: Mapping[str, NamedSize],
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The exported graph in the form of `Graph`, and the tensors of its weights."""
    signature = exported.graph_signature
    mutated = list(signature.buffers_to_mutate.values())
    if mutated:
        raise InputModelError(
            f"{_class_name(flat.module)}: buffer {_weight_name(mutated[0])!r} is changed by "
            "forward, expected a model without hidden state; pass the state as an argument"
        )
    graph = copy_graph(exported.graph)
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[tuple[Any, ...], str] = {}
    placeholder_weights: dict[str, str] = {}
    inputs: list[str] = []
    kinds = torch.export.graph_signature.InputKind
    specifications = {spec.arg.name: spec for spec in signature.input_specs}
    names = iter(flat.names)
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        spec = specifications[node.name]
        if spec.kind == kinds.USER_INPUT:
            _rename(graph, node, next(names))
            inputs.append(node.name)
            continue
        assert spec.target is not None
        tensor = (
            exported.state_dict[spec.target]
            if spec.target in exported.state_dict
            else exported.constants[spec.target]
        )
        assert isinstance(tensor, torch.Tensor)
        name = _weight_name(spec.target)
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        name = tied.setdefault(key, name) if tensor.numel() else name
        tensors[name] = tensor.detach()
        placeholder_weights[node.name] = name
    _clean(graph)
    used = {node.name for node in graph.nodes if node.op == "placeholder"}
    placeholder_weights = {k: v for k, v in placeholder_weights.items() if k in used}
    result = Graph(
        module=fx.GraphModule(nn.Module(), graph),
        weights=placeholder_weights,
        inputs=tuple(inputs),
        outputs=outputs,
        dimensions=_named_dimensions(graph, inputs, sizes),
    )
    kept = set(placeholder_weights.values())
    return result, {name: tensor for name, tensor in tensors.items() if name in kept}


def _weight_name(target: str) -> str:
    """The user's name of a parameter: without the names of our wrappers."""
    while target.startswith("module."):
        target = target.removeprefix("module.")
    return target


def _rename(graph: fx.Graph, node: fx.Node, name: str) -> None:
    for other in graph.nodes:
        if other is not node and other.name == name:
            graph._graph_namespace._used_names.discard(name)
            other._rename(f"{name}_value")
    graph._graph_namespace._used_names.discard(name)
    node._rename(name)
    node.target = name


def _clean(graph: fx.Graph) -> None:
    """Drops assertions, nodes nobody reads, and repeated computations."""
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if "_assert" in str(node.target):
            graph.erase_node(node)
            continue
        key = _key(node)
        if key is not None and key in known:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)
        elif key is not None:
            known[key] = node
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


def _key(node: fx.Node) -> Any:
    """What two nodes share when they compute the same thing; None for what must stay apart."""
    if any(word in str(node.target) for word in RANDOM_OPS):
        return None

    def hashable(item: Any) -> Any:
        if isinstance(item, (list, tuple)):
            return ("list", *(hashable(inner) for inner in item))
        if isinstance(item, dict):
            return ("dict", *((k, hashable(v)) for k, v in sorted(item.items())))
        return (type(item).__name__, item)

    return (node.target, hashable(node.args), hashable(node.kwargs))


def _named_dimensions(
    graph: fx.Graph, inputs: list[str], sizes: Mapping[str, NamedSize]
) -> dict[str, str]:
    """The symbols of the batch, if it may vary, and of the other sizes a request decides."""
    found: dict[str, str] = {}
    named = {(item.argument, item.dimension): name for name, item in sizes.items()}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            for dimension, size in enumerate(node.meta["val"].shape):
                name = named.get((node.name, dimension), "batch" if dimension == 0 else None)
                if name and isinstance(size, torch.SymInt) and not size.node.expr.is_number:
                    found.setdefault(name, str(size.node.expr))
    return found


def _refuse_random(graph: Graph) -> None:
    for node in graph.graph.nodes:
        name = str(node.target)
        drawn = any(f".{word}" in name.replace("native_", "") for word in RANDOM_OPS)
        if node.op == "call_function" and drawn:
            from_probability = "dropout" in name and len(node.args) > 2 and not node.args[2]
            if not from_probability:
                raise InputModelError(
                    f"model: forward draws random numbers ({name} at node {node.name}), expected a "
                    "deterministic model; pass the noise as an argument"
                )
