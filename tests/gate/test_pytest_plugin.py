"""The plugin in test suites of its own."""

import json

import pytest

QUIET = ("-p", "no:cacheprovider")
SUITE = """
import time

def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Runs a suite with the plugin, as its entry point loads it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # These tests may run in a worker of xdist themselves.
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)

    def run(suite, *arguments):
        pytester.makepyfile(SUITE + suite)
        return pytester.runpytest_subprocess(*QUIET, *arguments)

    monkeypatch.setattr(pytester, "plugins", [])
    return run


def test_two_functions_pass_and_fail(run):
    result = run(
        """
import pytest

@pytest.mark.perf_gate(cpu_time=0.3, wall_time=0.3, seconds=4.0)
def test_same(perf_gate):
    verdict = perf_gate(lambda: spin(0.002), lambda: spin(0.002))
    assert verdict.check("cpu_time").ratio < 1.3

@pytest.mark.perf_gate(cpu_time=0.3, wall_time=0.3, seconds=4.0)
def test_slower(perf_gate):
    perf_gate(lambda: spin(0.004), lambda: spin(0.002))
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*slower than the limit allows*", "*perf gates*", "pass *test_same*"]
    )


def test_a_stored_baseline_is_recorded_and_then_held(run, pytester):
    suite = """
import pytest

@pytest.mark.perf_gate(seconds=2.0, stored={})
def test_speed(perf_gate):
    perf_gate(lambda: spin({}))
"""
    first = run(suite.format(1.0, 0.002))
    first.assert_outcomes(passed=1)
    first.stdout.fnmatch_lines(["inconclusive *recorded *"])
    (path,) = (pytester.path / ".optimize-gate").iterdir()
    before = path.read_text()
    run(suite.format(1.0, 0.002)).assert_outcomes(passed=1)
    assert path.read_text() == before
    run(suite.format(1.0, 0.02)).assert_outcomes(failed=1)
    run(suite.format(1.0, 0.02), "--optimize-gate-update").assert_outcomes(passed=1)
    assert path.read_text() != before


def test_strict_fails_what_cannot_be_decided(run):
    suite = """
def test_speed(perf_gate):
    perf_gate(lambda: None)
"""
    result = run(suite, "--optimize-gate-strict", "--optimize-gate-no-time")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*times are not measured with --optimize-gate-no-time*"])


@pytest.mark.parametrize("marker", ["cpu_tiem=0.1", "seconds='fast'"])
def test_a_wrong_threshold_is_named(run, marker):
    result = run(
        f"""
import pytest

@pytest.mark.perf_gate({marker})
def test_speed(perf_gate):
    perf_gate(lambda: None, lambda: None)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GateError: policy policy:*"])


def test_a_corrupt_stored_baseline_fails_and_stays(run, pytester):
    folder = pytester.path / "kept"
    folder.mkdir()
    suite = """
def test_speed(perf_gate):
    perf_gate(lambda: None)
"""
    run(suite, "--optimize-gate-baselines", "kept", "--optimize-gate-no-time")
    name = [item.name for item in pytester.path.glob("test_*.py")][0]
    path = folder / f"{name}__test_speed.json"
    path.write_text("{")
    result = run(suite, "--optimize-gate-baselines", "kept")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*GateError: baseline *something else than a baseline*"])
    assert path.read_text() == "{"


def test_workers_hand_their_verdicts_over_and_measure_no_times(run, pytester):
    suite = """
import pytest

@pytest.mark.parametrize("number", range(2))
def test_speed(perf_gate, number):
    perf_gate(lambda: None, lambda: None)
"""
    arguments = ("-n", "2", "--optimize-gate-json", "verdicts.json")
    result = run(suite, *arguments)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["inconclusive *not measured beside other xdist workers*"])
    verdicts = json.loads((pytester.path / "verdicts.json").read_text())
    assert sorted(item["test"][-3:] for item in verdicts) == ["[0]", "[1]"]


def test_the_plugin_is_quiet_where_nobody_uses_it(run):
    result = run("def test_nothing(): pass", "--strict-markers")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*perf gates*")
    assert run("def test_nothing(): pass", "--collect-only").ret == 0


def test_ratios_are_properties_of_the_test(run, pytester):
    suite = """
import pytest

@pytest.mark.perf_gate(cpu_time=0.5, wall_time=2.0, seconds=3.0)
def test_speed(perf_gate):
    perf_gate(lambda: spin(0.002), lambda: spin(0.002))
"""
    run(suite, "--junitxml", "junit.xml")
    assert 'name="cpu_time_ratio"' in (pytester.path / "junit.xml").read_text()


def test_a_json_file_that_cannot_be_written_breaks_nothing(run, pytester):
    (pytester.path / "file").write_text("")
    result = run("def test_nothing(): pass", "--optimize-gate-json", "file/verdicts.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["optimize gate: *cannot be written*"])


def test_loading_the_plugin_imports_nothing_heavy(run, pytester):
    result = run(
        """
import sys

def test_nothing():
    heavy = {"torch", "onnxruntime", "scipy", "pydantic", "matplotlib"}
    assert not heavy & set(sys.modules)
""",
    )
    result.assert_outcomes(passed=1)
