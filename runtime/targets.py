"""Which of a bundle's targets a session runs, and why."""

from dataclasses import dataclass

from optimize.runtime import machine
from optimize.runtime.errors import DeviceError, UnsafeBundle, VersionError
from optimize.runtime.manifest import EngineEntry, Manifest

PREFERENCE = ("tensorrt-rtx", "tensorrt", "aoti")
"""Native targets of a GPU, the one to try first coming first."""


@dataclass(frozen=True)
class Choice:
    """A target of a bundle, and one sentence that says why it was chosen."""

    target: str
    reason: str


def choose(manifest: Manifest, target: str | None, trusted: bool) -> Choice:
    """Chooses what to run.

    Args:
        manifest: of the bundle.
        target: what the caller asks for; None takes the engine of this machine's GPU, and ONNX
            Runtime where there is none or it is not trusted.
        trusted: whether native code may be run.
    Raises:
        VersionError: the bundle has nothing for the target.
        UnsafeBundle: the target is native code that is not trusted.
        DeviceError: this machine cannot run the target; says what it needs and what was found.
    """
    if target is None:
        return _best(manifest, trusted)
    if target not in manifest.targets or (target != "onnx" and target not in manifest.engines):
        raise VersionError(
            f"target: found {target!r}, expected one of {', '.join(manifest.targets)}, which the "
            "bundle has; export the program for it"
        )
    if target == "onnx":
        return Choice(target, "asked for")
    engine = manifest.engines[target]  # type: ignore[index]
    if not trusted:
        names = [graph.file for graph in engine.graphs.values()]
        raise UnsafeBundle(
            f"target {target}: contains native code ({', '.join(names[:3])}); pass trust='native' "
            "if you trust where it came from"
        )
    problem = why_not(target, engine)
    if problem is not None:
        raise DeviceError(f"target {target}: {problem}")
    return Choice(target, "asked for")


def _best(manifest: Manifest, trusted: bool) -> Choice:
    if not manifest.engines:
        return Choice("onnx", "the bundle has no other target")
    if not trusted:
        return Choice("onnx", "native code was not trusted, so it was not considered")
    problems = []
    for target in PREFERENCE:
        engine = manifest.engines.get(target)  # type: ignore[call-overload]
        if engine is None:
            continue
        if engine.device == "cpu":
            problems.append(f"{target} is for the CPU: pass target={target!r} to run it")
            continue
        problem = why_not(target, engine)
        if problem is None:
            return Choice(target, f"it was built for {machine.gpu_capability()}, which is here")
        problems.append(f"{target}: {problem}")
    return Choice("onnx", "; ".join(problems))


def why_not(target: str, engine: EngineEntry) -> str | None:
    """Why this machine cannot run an engine; None where it can."""
    library = machine.LIBRARIES[target]
    found = machine.version_of(library)
    wanted = engine.built_with.get(library)
    if found != wanted:
        return (
            f"built with {library} {wanted}, found {found or 'none'} here; install that version, "
            "or export again"
        )
    here = machine.platform_name()
    if engine.needs.get("platform", here) != here:
        return f"built for {engine.needs['platform']}, found {here}; export again on such a machine"
    features = set(engine.needs.get("features", "").split())
    lacking = sorted(features - machine.processor_features())
    if lacking:
        return (
            f"built for a processor with {', '.join(lacking[:5])}, which this one lacks; export "
            "again on this machine"
        )
    if engine.device == "cuda":
        capabilities = engine.needs.get("capabilities", "").split()
        found = machine.gpu_capability()
        if found is None:
            return f"needs a GPU ({', '.join(capabilities)}), found none"
        if capabilities and found not in capabilities:
            return (
                f"built for {', '.join(capabilities)}, found {found}; export again with "
                f"capabilities=[{found!r}]"
            )
    return None
