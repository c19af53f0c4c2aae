"""A loaded bundle that answers requests."""

import os
import threading
from collections.abc import Sequence
from typing import Any, Literal, Self

from numpy.typing import NDArray

from optimize.runtime.bundle import Bundle, native_files, open_bundle
from optimize.runtime.driver import Progress, Run, TableRows
from optimize.runtime.errors import ResourceError, UnsafeBundle, VersionError
from optimize.runtime.loop import Signature
from optimize.runtime.manifest import Manifest
from optimize.runtime.onnx_engine import OnnxEngine, OnnxGraphs
from optimize.runtime.request import check_request


def load(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    trust: Literal["native"] | None = None,
    prepack: bool = False,
) -> "Session":
    """Opens a bundle.

    Args:
        path: the bundle's folder.
        providers: ONNX Runtime execution providers, in order; None means the CPU. A provider that
            cannot be used is an error, never replaced.
        threads: threads of one operator; None lets ONNX Runtime choose.
        trust: "native" allows files that hold native code. A bundle is not signed: its hashes show
            damage, not who wrote it.
        prepack: spend a second copy of the weights on faster small matrix products.
    Raises:
        BundleError: its subclasses say what is wrong with the bundle.
        ResourceError: memory, disk or permission.
    """
    if threads is not None and (isinstance(threads, bool) or not 1 <= threads <= 1024):
        raise ValueError(f"threads: found {threads!r}, expected a number in [1, 1024]")
    bundle = open_bundle(path)
    native = native_files(bundle.manifest)
    if native and trust != "native":
        raise UnsafeBundle(
            f"{path}: contains native code ({', '.join(native[:3])}); pass trust='native' if you "
            "trust where it came from"
        )
    if "onnx" not in bundle.manifest.targets:
        raise VersionError(
            f"{path}: found targets {', '.join(bundle.manifest.targets)}, expected onnx; export "
            "the program for it"
        )
    graphs = OnnxGraphs(
        bundle.models, bundle.manifest.graphs, bundle.weights, providers, threads, prepack
    )
    return Session(bundle, graphs)


class Session:
    """A loaded bundle. Call it with a request; it may be called from several threads.

    Attributes:
        manifest: what the bundle says about itself.
        signature: what a request may contain and what comes back.
        providers: the execution providers in use.
    """

    def __init__(self, bundle: Bundle, graphs: OnnxGraphs) -> None:
        self.manifest: Manifest = bundle.manifest
        self.signature: Signature = bundle.manifest.signature
        self.providers = graphs.providers
        self._tables = bundle.tables
        self._rows: TableRows = {}
        self._graphs: OnnxGraphs | None = graphs
        self._process = os.getpid()
        self._lock = threading.Lock()

    def __call__(
        self, *, seed: int | None = None, progress: Progress | None = None, **request: Any
    ) -> dict[str, NDArray[Any]]:
        """Runs the loop.

        Args:
            seed: in [0, 2**64); draws the noise that the request does not give.
            progress: called after each step with (steps done, steps in all); what it raises ends
                the request, and the session stays usable.
            request: the fields of `signature`, as arrays or numbers.
        Returns:
            Result name → array.
        Raises:
            RuntimeInputError: the request does not fit the signature.
            ResourceError: the session is closed, belongs to another process, or ran out of memory.
        """
        graphs = self._graphs
        if graphs is None:
            raise ResourceError("session: found a closed session; load the bundle again")
        if os.getpid() != self._process:
            raise ResourceError(
                "session: found a session made before a fork, whose threads are gone; load the "
                "bundle in the child process"
            )
        checked = check_request(self.signature, self.manifest.loop, request, seed)
        run = Run(
            loop=self.manifest.loop,
            tables=self._tables,
            engine=OnnxEngine(graphs),
            sizes=checked.sizes,
            request=checked.arrays,
            request_dtypes=checked.dtypes,
            seed=checked.seed,
            progress=progress,
            rows=self._rows,
        )
        return run.execute()

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
