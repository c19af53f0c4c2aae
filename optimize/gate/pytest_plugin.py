"""Perf gates in a test suite: the fixture `perf_gate` and the marker of its thresholds.

    def test_sampling_is_as_fast_as_before(perf_gate):
        perf_gate(new_sampler, old_sampler)          # two functions, in turns
        perf_gate(new_sampler)                       # one, against a stored baseline
        perf_gate.bundle("build/bundle", "build/baseline")

    @pytest.mark.perf_gate(cpu_time=0.05, seconds=30)

A gate that fails fails its test; one that cannot be decided is reported, and fails only with
`--optimize-gate-strict`. Importing this file imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from optimize.gate.checks import Verdict
    from optimize.gate.policy import Policy

MARKER = "perf_gate(**options): thresholds of a perf gate, as in the policy of `optimize gate`"
OUTPUT = "optimize_gate"
"""Key of an xdist worker's output."""

OPTIONS: dict[str, tuple[str, bool, str]] = {
    "update": ("store_true", False, "record stored baselines anew"),
    "strict": ("store_true", False, "fail tests whose gate cannot be decided"),
    "time": ("store_true", False, "measure times in spite of several xdist workers"),
    "no-time": ("store_true", False, "measure no times: costs alone are held"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, each with a twin in the ini file."""
    group = parser.getgroup("optimize-gate", "perf gates")
    for name, (action, default, text) in OPTIONS.items():
        group.addoption(f"--optimize-gate-{name}", action=action, default=default, help=text)
        parser.addini(_ini(name), f"{text} (as the option)", type="bool", default=False)
    for name, text in {
        "baselines": "folder of stored baselines, .optimize-gate by default",
        "policy": "policy of all gates, a YAML file",
        "json": "write all verdicts to this file",
    }.items():
        group.addoption(f"--optimize-gate-{name}", metavar="PATH", default=None, help=text)
        parser.addini(_ini(name), f"{text} (as the option)", default="")


def _ini(name: str) -> str:
    return f"optimize_gate_{name.replace('-', '_')}"


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known, so that --strict-markers takes it."""
    config.addinivalue_line("markers", MARKER)
    config.stash[_RESULTS] = []


_RESULTS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


def _flag(config: pytest.Config, name: str) -> bool:
    return bool(config.getoption(f"--optimize-gate-{name}") or config.getini(_ini(name)))


def _path(config: pytest.Config, name: str) -> Path | None:
    given = config.getoption(f"--optimize-gate-{name}")
    if given:
        return Path(config.invocation_params.dir) / str(given)
    ini = str(config.getini(_ini(name)))
    return Path(config.rootpath) / ini if ini else None


@pytest.fixture
def perf_gate(request: pytest.FixtureRequest) -> Iterator[PerfGate]:
    """Holds functions and bundles against baselines; see the top of this file."""
    yield PerfGate(request)


class PerfGate:
    """The gates of one test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._config = request.config
        self._count = 0

    def __call__(
        self, candidate: Callable[[], object], baseline: Callable[[], object] | None = None
    ) -> Verdict:
        """Times a function against another one in turns, or against a stored baseline.

        Args:
            candidate: takes nothing; what it returns is dropped.
            baseline: of the same work; None compares with what was stored for this test, as ratios
                to fixed work.
        Returns:
            The verdict, which has passed or could not be decided.
        """
        from optimize.gate.functions import gate_functions, gate_stored_function

        policy = self._policy()
        if not self._clock():
            return self._untimed()
        if baseline is not None:
            verdict = gate_functions(candidate, baseline, policy, self._name)
        else:
            update = _flag(self._config, "update")
            verdict = gate_stored_function(candidate, self._stored(), policy, self._name, update)
        return self._settled(verdict)

    def bundle(self, candidate: str | os.PathLike[str], baseline: Any = None) -> Verdict:
        """Holds a bundle against another one, or against a stored baseline; as `optimize gate`."""
        from optimize.gate.gate import gate_bundle

        verdict = gate_bundle(
            candidate,
            self._stored() if baseline is None else baseline,
            self._policy(),
            clock=self._clock(),
            update=baseline is None and _flag(self._config, "update"),
        )
        return self._settled(verdict)

    @property
    def _name(self) -> str:
        return str(self._request.node.nodeid)

    def _stored(self) -> Path:
        """The file of this test's next stored baseline."""
        folder = _path(self._config, "baselines") or self._config.rootpath / ".optimize-gate"
        self._count += 1
        kept = [letter if letter.isalnum() or letter in "._-" else "_" for letter in self._name]
        number = "" if self._count == 1 else f"-{self._count}"
        return folder / f"{''.join(kept)[-150:]}{number}.json"

    def _policy(self) -> Policy:
        """The policy of the file, with the options of the test's markers, the nearest last."""
        from optimize.gate.policy import load_policy, with_options

        policy = load_policy(_path(self._config, "policy"))
        for marker in reversed(list(self._request.node.iter_markers("perf_gate"))):
            policy = with_options(policy, marker.kwargs)
        return policy

    def _clock(self) -> bool:
        """Whether times are measured: never beside other workers, unless told to."""
        if _flag(self._config, "no-time"):
            return False
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        return workers <= 1 or _flag(self._config, "time")

    def _untimed(self) -> Verdict:
        from optimize.gate.checks import Check, Verdict

        text = "times are not measured beside other xdist workers; run with -n 0"
        if _flag(self._config, "no-time"):
            text = "times are not measured with --optimize-gate-no-time"
        check = Check("cpu_time", "inconclusive", text)
        return self._settled(Verdict(self._name, "", (check,)))

    def _settled(self, verdict: Verdict) -> Verdict:
        """Keeps the verdict for the report, and fails the test where the gate failed."""
        from optimize.gate.formats import to_dict

        self._config.stash[_RESULTS].append({"test": self._name, **to_dict(verdict)})
        for check in verdict.checks:
            if check.ratio is not None:
                self._request.node.user_properties.append((f"{check.metric}_ratio", check.ratio))
        failed = verdict.failed()
        if failed:
            pytest.fail("\n".join(check.message for check in failed), pytrace=False)
        if verdict.outcome == "inconclusive" and _flag(self._config, "strict"):
            told = [c.message for c in verdict.checks if c.outcome == "inconclusive"]
            pytest.fail("\n".join(["the gate could not be decided", *told]), pytrace=False)
        return verdict


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Takes the verdicts of an xdist worker."""
    for item in getattr(node, "workeroutput", {}).get(OUTPUT, []):
        node.config.stash[_RESULTS].append(json.loads(item))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """An xdist worker hands its verdicts over; anyone else writes them to the file asked for."""
    config = session.config
    output = getattr(config, "workeroutput", None)
    if output is not None:
        output[OUTPUT] = [json.dumps(item) for item in config.stash[_RESULTS]]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A line per gate; and the file of all verdicts."""
    results = config.stash[_RESULTS]
    path = _path(config, "json")
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            terminalreporter.write_line(f"optimize gate: {path} cannot be written: {error}")
    if not results:
        return
    terminalreporter.section("perf gates")
    for item in results:
        shown = [
            f"{check['metric']} {check['ratio']:.3f}"
            for check in item["checks"]
            if check["ratio"] is not None and check["low"] is not None
        ]
        why = [c["message"] for c in item["checks"] if c["outcome"] == "inconclusive"]
        told = ", ".join(shown) or "; ".join(why[:1])
        terminalreporter.write_line(f"{item['outcome']:12} {item['test']}: {told}")
