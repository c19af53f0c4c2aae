"""A loaded bundle that answers requests."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, Self

from optimize.runtime.bundle import Bundle, open_bundle
from optimize.runtime.detokenizing import TextStream
from optimize.runtime.driver import Engine, Part, Progress, Run, TableRows, joined
from optimize.runtime.errors import ResourceError, RuntimeInputError
from optimize.runtime.loop import Signature, appended_results
from optimize.runtime.manifest import Manifest
from optimize.runtime.onnx_engine import OnnxGraphs
from optimize.runtime.prompter import Asked, Prompter, without_prompting
from optimize.runtime.request import check_request


class Graphs(Protocol):
    """The loaded graphs of a bundle, whatever runs them.

    `providers` names what does; `engine` makes what runs them for one request.
    """

    providers: tuple[str, ...]

    def engine(self) -> Engine: ...


def load(
    path: str | os.PathLike[str],
    *,
    target: Literal["onnx", "aoti", "tensorrt-rtx", "tensorrt"] | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    trust: Literal["native"] | None = None,
    prepack: bool | None = None,
    public_key: bytes | None = None,
) -> "Session":
    """Opens a bundle.

    Args:
        path: the bundle's folder.
        target: which of the bundle's targets runs; None takes the engine that was built for this
            machine's GPU, if native code is trusted, and ONNX Runtime otherwise. The session says
            which and why. What was asked for is never replaced by another.
        providers: ONNX Runtime execution providers, in order; None means the CPU. A provider that
            cannot be used is an error, never replaced.
        threads: threads of one operator; None lets the engine choose.
        trust: "native" allows native code: engines and compiled packages. The hashes of a bundle
            show damage, not who wrote it.
        prepack: spend a second copy of the weights on faster matrix products; None does so for
            graphs that have few rows, such as those that decode one token, and for bundles whose
            copies are small.
        public_key: Ed25519, PEM, of whom you trust: a bundle that this key did not sign is refused,
            and native code of one that it signed may run.
    Raises:
        BundleError: its subclasses say what is wrong with the bundle.
        ResourceError: memory, disk or permission.
    """
    if threads is not None and (isinstance(threads, bool) or not 1 <= threads <= 1024):
        raise ValueError(f"threads: found {threads!r}, expected a number in [1, 1024]")
    if providers is not None and target not in (None, "onnx"):
        raise ValueError(f"providers: found some with target {target!r}, expected target 'onnx'")
    bundle = open_bundle(
        path,
        target="onnx" if providers is not None else target,
        trusted=trust == "native",
        public_key=public_key,
    )
    return Session(bundle, _graphs(bundle, providers, threads, prepack))


def _graphs(
    bundle: Bundle,
    providers: Sequence[str] | None,
    threads: int | None,
    prepack: bool | None,
) -> Graphs:
    """The graphs in the engine of the chosen target; its libraries are imported here."""
    manifest, target = bundle.manifest, bundle.choice.target
    if target == "onnx":
        return OnnxGraphs(
            bundle.models, manifest.graphs, bundle.weights, providers, threads, prepack
        )
    if target == "aoti":
        from optimize.runtime.aoti_engine import AotiGraphs

        return AotiGraphs(manifest.engines["aoti"], bundle.engine_files, bundle.weights, threads)
    from optimize.runtime.tensorrt_engine import TensorRtGraphs

    name: Any = target
    return TensorRtGraphs(name, manifest.engines[name], bundle.engine_files)


class Session:
    """A loaded bundle. Call it with a request; it may be called from several threads.

    Attributes:
        manifest: what the bundle says about itself.
        signature: what a request may contain and what comes back.
        target: what runs the graphs, such as "onnx".
        reason: why that target was chosen.
        providers: the execution providers in use.
        provenance: "unsigned", "signed, not checked" or "signed by KEY".
    """

    def __init__(self, bundle: Bundle, graphs: Graphs) -> None:
        self.manifest: Manifest = bundle.manifest
        self.signature: Signature = bundle.manifest.signature
        self.target = bundle.choice.target
        self.reason = bundle.choice.reason
        self.provenance = bundle.provenance
        self.providers = graphs.providers
        self._tables = bundle.tables
        self._rows: TableRows = {}
        prompting = self.manifest.prompting
        self._prompter = (
            None if prompting is None else Prompter(prompting, self.signature, bundle.tokenizer)
        )
        self._graphs: Graphs | None = graphs
        self._process = os.getpid()
        self._lock = threading.Lock()

    def __call__(
        self, *, seed: int | None = None, progress: Progress | None = None, **request: Any
    ) -> dict[str, Any]:
        """Runs the loop.

        Args:
            seed: in [0, 2**64); draws the noise that the request does not give.
            progress: called after each step with (steps done, steps in all); what it raises ends
                the request, and the session stays usable.
            request: the fields of `signature`, as arrays or numbers. Where the manifest has
                `prompting`, `prompt` (text, or a list of texts) and `image` (array [H, W, C] of
                uint8 or of floats in [0, 1], path or PIL image, one or a list) stand for the fields
                made from them.
        Returns:
            Result name → array; after a prompt also "text", the answer or the list of answers.
        Raises:
            RuntimeInputError: the request does not fit the signature.
            ResourceError: the session is closed, belongs to another process, or ran out of memory;
                or a prompt needs a library that is not installed.
        """
        asked = self._asked(request)
        results = self._run(asked.fields, seed, progress).execute()
        return results if self._prompter is None else self._prompter.answer(asked, results)

    def stream(
        self, *, seed: int | None = None, progress: Progress | None = None, **request: Any
    ) -> Iterator[Any]:
        """Runs the loop and gives what it makes while it runs.

        After a prompt these are pieces of its answer; together they are its text, which comes whole
        where the loop fills it in everywhere at once. Otherwise these
        are the parts [B, ...] of the result that grows, such as the tokens int64 [B] of each step;
        where a step makes different numbers of tokens, int64 [B, most], -1 behind those of a sample
        that got fewer.
        Closing the iterator early ends the request and frees its memory.

        Args:
            seed, progress, request: as for a call; of prompts only one.
        Raises:
            RuntimeInputError: the request does not fit the signature, or no result grows.
            ResourceError: as for a call.
        """
        asked = self._asked(request)
        grows = appended_results(self.manifest.loop)
        prompter = None if asked.prompts == 0 else self._prompter
        if prompter is not None:
            asked.one()
            grows = tuple(name for name in grows if name == prompter.prompting.result)
            if not grows:
                results = self._run(asked.fields, seed, progress).execute()
                return iter([prompter.answer(replace(asked, prompts=None), results)["text"]])
        if not grows:
            raise RuntimeInputError(
                "stream: found no result growing step by step; call the session instead"
            )
        parts = _parts(self._run(asked.fields, seed, progress), grows[0])
        return map(_array, parts) if prompter is None else _pieces(parts, prompter.stream())

    def _asked(self, request: Mapping[str, Any]) -> Asked:
        if self._prompter is None:
            return without_prompting(request, self.signature)
        return self._prompter.asked(request)

    def _run(self, request: Mapping[str, Any], seed: int | None, progress: Progress | None) -> Run:
        graphs = self._graphs
        if graphs is None:
            raise ResourceError("session: found a closed session; load the bundle again")
        if os.getpid() != self._process:
            raise ResourceError(
                "session: found a session made before a fork, whose threads are gone; load the "
                "bundle in the child process"
            )
        checked = check_request(self.signature, self.manifest.loop, request, seed)
        self._check_sizes(checked.sizes)
        return Run(
            loop=self.manifest.loop,
            tables=self._tables,
            engine=graphs.engine(),
            sizes=checked.sizes,
            request=checked.arrays,
            request_dtypes=checked.dtypes,
            seed=checked.seed,
            progress=progress,
            rows=self._rows,
        )

    def _check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Refuses sizes that the native code was not built for, before anything is allocated."""
        engine = self.manifest.engines.get(self.target)  # type: ignore[call-overload]
        for name, (least, most) in ({} if engine is None else engine.sizes).items():
            if not least <= sizes.get(name, least) <= most:
                raise RuntimeInputError(
                    f"{name}: found {sizes[name]}, expected {least} to {most}, the sizes that the "
                    f"{self.target} engine was built for; split the request, or export again"
                )

    def close(self) -> None:
        """Frees the sessions and weights; calling it again does nothing."""
        with self._lock:
            self._graphs = None
            self._tables = {}
            self._rows = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._graphs is None else ", ".join(self.providers)
        return f"Session({', '.join(self.manifest.graphs)}; {state})"


def _parts(run: Run, result: str) -> Iterator[Part]:
    """What is appended to a result, part by part."""
    seen = 0
    for _ in run.steps():
        parts = run.appended.get(result, [])
        yield from parts[seen:]
        seen = len(parts)


def _array(part: Part) -> Any:
    """A part as streaming hands it on."""
    return part.array if part.counts is None else joined([replace(part, fill=-1)])


def _pieces(parts: Iterator[Part], text: TextStream) -> Iterator[str]:
    """The text of the tokens of a single sample, until one of them ends the answer."""
    for part in parts:
        for token in part.of_sample(0):
            if piece := text.push(int(token)):
                yield piece
            if text.finished:
                break
        if text.finished:
            break
    if piece := text.rest():
        yield piece
