"""The type that flows: graphs, weights and a loop, never changed in place."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

from optimize.ir import exporting
from optimize.ir.decode import Decoding
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.digest import Source, graphs_digest, weights_digest
from optimize.ir.exporting import LoopForm, Precision
from optimize.ir.graph import Graph
from optimize.ir.record import Record
from optimize.ir.report import Report
from optimize.ir.torch_engine import TorchEngine
from optimize.ir.unmask import Unmasking
from optimize.runtime.driver import Run
from optimize.runtime.loop import Call, Loop, Repeat, Signature
from optimize.runtime.prompter import Prompter, without_prompting
from optimize.runtime.prompting import Prompting
from optimize.runtime.request import check_request


class StepPlan(Protocol):
    """Chooses the body of each step of a denoising loop, for any number of steps."""

    def bodies(self, steps: int) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Program:
    """A model and the loop that calls it.

    Attributes:
        graphs: role → graph. Roles of a denoising program: "denoiser" and "solver", or "step"
            variants once the solver is fused; "decoder" where there is a VAE.
        weights: name → tensor, shared by all graphs; a tied weight is stored once.
        loop: how the graphs are called.
        tables: name → one row per step; float64-computed, stored as the graphs want them.
        signature: what a request may contain and what it returns.
        description: what the user said about the loop; passes make new schedules from it.
        decoding: of a program that generates tokens, with the roles "prefill", "decode" and, where
            there is an image, "vision".
        unmasking: of a program that fills in masked text, with the role "step".
        decoder: of a program that generates tokens, its decoder without caches: tokens and their
            positions [B, S] → logits of every row, each seeing those before it; of one that fills
            in masked text its denoiser, tokens [B, S] → logits. The loop does not call it; passes
            make graphs from it.
        plan: which body of the loop each step runs; None runs "step" at every step.
        history: one record per pass.
        notes: facts found at capture that a user should know, such as "batch is fixed at 2".
        prompting: how text and pictures become requests; None where they do not.
        assets: path → content of further files of a bundle, such as the tokenizer.
        source: digests of the program as it was captured, set before the first pass; None until
            then, see `source_digest`.
    """

    graphs: Mapping[str, Graph]
    weights: Mapping[str, torch.Tensor]
    loop: Loop
    tables: Mapping[str, NDArray[Any]]
    signature: Signature
    description: DenoiseLoop | None = None
    decoding: Decoding | None = None
    unmasking: Unmasking | None = None
    decoder: Graph | None = None
    plan: StepPlan | None = None
    history: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()
    prompting: Prompting | None = None
    assets: Mapping[str, bytes] = field(default_factory=dict)
    source: Source | None = None

    @property
    def generates_tokens(self) -> bool:
        """Whether what it makes is text, token after token or mask by mask."""
        return self.decoding is not None or self.unmasking is not None

    @property
    def report(self) -> Report:
        """What each pass did; printing it shows a line per pass."""
        return Report(self.history, self.notes)

    @cached_property
    def source_digest(self) -> Source:
        """What the program was captured as: `source`, or while no pass has run its own digests.

        Computed once per program, and not at capture: it reads every weight.
        """
        if self.source is not None:
            return self.source
        whole = {} if self.decoder is None else {"decoder without caches": self.decoder}
        return Source(graphs_digest({**self.graphs, **whole}), weights_digest(self.weights))

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        target: str | Sequence[str] = "onnx",
        precision: Precision | Mapping[str, Precision] | None = None,
        loop: LoopForm = "step",
        unroll: int | None = None,
        overwrite: bool = False,
        recipe: Mapping[str, Any] | None = None,
        report: Report | None = None,
        capabilities: Sequence[str] | None = None,
        sizes: Mapping[str, tuple[int, int, int]] | None = None,
        static: Mapping[str, int] | None = None,
        example: bool = False,
        baseline: "Program | None" = None,
    ) -> Path:
        """Writes a bundle that runs without PyTorch.

        Args:
            path: the folder to make.
            target: what the bundle is for; several share one folder, and every bundle has the
                graphs of "onnx".
            precision: what matrix products are computed in, for all targets or by target; None
                leaves the model as it is. The change of the result is held against the budget of
                the recipe, or against a relative error of 0.1 where it has none.
            loop: "step" makes one engine call per step, "unrolled" one per `unroll` steps,
                "onnx_loop" one for all, with an ONNX `Loop` inside. The numbers are the same.
            unroll: steps per call of an unrolled loop; None means all.
            overwrite: replace a bundle that stands there; it stays whole until the new one is.
            recipe: kept in the bundle, for whoever reads it.
            report: kept in the bundle; the program's own by default.
            capabilities: of the GPUs that TensorRT-RTX builds for, such as ("SM89", "SM120").
            sizes: named size → (least, best, greatest) that TensorRT-RTX builds for.
            static: named size → the one size that the whole bundle is for.
            example: keep one calibration request with its results, and a receipt of how fast and
                how near they are, for `optimize verify`; runs the program in PyTorch. What the
                Triton kernels of its ops use of GPUs is reported, too, where they can be compiled.
            baseline: the program before the passes: the receipt of an example then says how much
                slower that is, for which at most ten seconds are taken, and how near the results
                are to its own.
        Raises:
            RecipeError: unknown target, or a form that the loop cannot have.
            QualityError: a precision changes the result by more than the budget.
            ResourceError: the folder exists or cannot be written, or a library is missing.
        """
        return exporting.export(
            self,
            path,
            target,
            precision=precision,
            loop=loop,
            unroll=unroll,
            overwrite=overwrite,
            recipe=recipe,
            report=report or self.report,
            capabilities=capabilities,
            sizes=sizes,
            static=static,
            example=example,
            baseline=baseline,
        )

    def __call__(
        self,
        *,
        seed: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Runs the loop in PyTorch.

        Args:
            seed: in [0, 2**64); draws the noise that the request does not give.
            progress: called after each step with (steps done, steps in all).
            request: the fields of `signature`, as tensors, arrays or numbers. With `prompting`,
                `prompt` and `image` may stand for the fields made from them, as for a `Session`.
        Returns:
            Result name → tensor; after a prompt also "text", the answer or the list of answers.
        Raises:
            RuntimeInputError: the request does not fit the signature.
        """
        prompter = self._prompter
        given = as_arrays(request)
        asked = (
            without_prompting(given, self.signature) if prompter is None else prompter.asked(given)
        )
        run = self.prepared(asked.fields, seed)
        run.progress = progress
        results = {name: torch.from_numpy(array) for name, array in run.execute().items()}
        return results if prompter is None else prompter.answer(asked, results)

    @cached_property
    def _prompter(self) -> Prompter | None:
        if self.prompting is None:
            return None
        tokenizer = self.assets.get(self.prompting.tokenizer, b"")
        return Prompter(self.prompting, self.signature, tokenizer)

    def watch(
        self, slots: tuple[str, ...], *, seed: int | None = None, **request: Any
    ) -> dict[str, list[NDArray[Any]]]:
        """Runs the loop and returns the value of some state slots after each step."""
        run = self.prepared(request, seed)
        seen: dict[str, list[NDArray[Any]]] = {slot: [] for slot in slots}

        def look(done: int, total: int) -> None:
            for slot in slots:
                seen[slot].append(run.read(slot))

        run.progress = look
        run.execute()
        return seen

    def prepared(self, request: Mapping[str, Any], seed: int | None) -> Run:
        """One run of the loop, not yet begun.

        Raises:
            RuntimeInputError: the request does not fit the signature.
        """
        checked = check_request(self.signature, self.loop, as_arrays(request), seed)
        return Run(
            loop=self.loop,
            tables=self.tables,
            engine=TorchEngine(self.graphs, self.weights),
            sizes=checked.sizes,
            request=checked.arrays,
            request_dtypes=checked.dtypes,
            seed=checked.seed,
        )


def denoising_repeat(program: Program) -> Repeat:
    """The one `Repeat` of a denoising loop; a decoder may be called after it."""
    (repeat,) = [item for item in program.loop.body if isinstance(item, Repeat)]
    return repeat


def with_repeat(program: Program, new: Call | Repeat) -> tuple[Call | Repeat, ...]:
    """The body of a denoising loop with another item for its `Repeat`, and the calls around it."""
    return tuple(new if isinstance(item, Repeat) else item for item in program.loop.body)


def as_arrays(request: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as numpy arrays; bfloat16, which numpy lacks, as float32."""
    arrays: dict[str, Any] = {}
    for name, item in request.items():
        if isinstance(item, torch.Tensor):
            tensor = item.detach().cpu()
            item = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        arrays[name] = item
    return arrays
