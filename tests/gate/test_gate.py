import json
import os
import shutil
import signal

import numpy as np
import pytest

from optimize.gate.facts import bundle_facts
from optimize.gate.gate import gate_bundle
from optimize.gate.policy import Policy
from optimize.gate.sides import BundleSide, FunctionSide, SideFailed
from optimize.gate.stored import MAX_BYTES, StoredBaseline, read_stored, write_stored
from optimize.ir.errors import GateError
from optimize.runtime.errors import BundleError, OptimizeError

QUICK = Policy(seconds=6.0, limits={"cpu_time": 0.5, "wall_time": 2.0})


def failed(verdict):
    return [check.metric for check in verdict.failed()]


def test_a_bundle_passes_against_its_like(bundles):
    verdict = gate_bundle(bundles["again"], bundles["base"], QUICK)
    assert verdict.outcome == "pass"
    cpu = verdict.check("cpu_time")
    assert 0.5 < cpu.low <= cpu.ratio <= cpu.high < 1.5
    assert verdict.check("example").candidate < 1e-6
    assert verdict.check("peak_memory").candidate > 1 << 20
    assert len(verdict.samples["wall_time"]["candidate"]) >= 6
    assert verdict.machine["threads"] == "1"


def test_more_steps_fail_by_cost_and_by_time(bundles):
    verdict = gate_bundle(bundles["longer"], bundles["base"], QUICK)
    assert verdict.outcome == "fail"
    assert {"engine_calls", "cpu_time"} <= set(failed(verdict))
    assert verdict.check("cpu_time").ratio > 2
    text = verdict.check("engine_calls").message
    assert text == "engine_calls: 128, baseline 16 (+700.00%); at most 16 is allowed"


def test_another_model_is_refused_before_anything_is_timed(bundles):
    ours = bundle_facts(bundles["other"])
    assert ours.signature == bundle_facts(bundles["base"]).signature
    with pytest.raises(GateError, match="found another model .graphs .* before any pass"):
        gate_bundle(bundles["other"], bundles["base"])


def test_a_model_with_other_requests_is_refused(bundles, tmp_path, tiny_program):
    other = tiny_program().export(tmp_path / "fixed", static={"batch": 2})
    with pytest.raises(GateError, match="whose requests or results differ"):
        gate_bundle(other, bundles["base"])


def test_what_is_no_bundle_is_refused(bundles, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError):
        gate_bundle(bundles["base"], tmp_path / "empty")


def test_no_baseline_is_never_a_pass(bundles, tmp_path):
    verdict = gate_bundle(bundles["base"], tmp_path / "none")
    assert verdict.outcome == "inconclusive"
    assert "found no baseline at" in verdict.check("baseline").message


def test_the_first_run_records_and_the_next_compares(bundles, tmp_path):
    path = tmp_path / "kept" / "baseline.json"
    first = gate_bundle(bundles["base"], path, QUICK)
    assert first.outcome == "inconclusive"
    assert "recorded" in first.check("baseline").message
    stored = read_stored(path)
    assert stored.facts == bundle_facts(bundles["base"])
    assert 0 < stored.times["cpu_time"].low <= stored.times["cpu_time"].value
    second = gate_bundle(bundles["again"], path, Policy(seconds=6.0, stored=1.0))
    assert second.outcome == "pass"
    longer = gate_bundle(bundles["longer"], path, Policy(seconds=6.0))
    assert {"engine_calls", "cpu_time"} <= set(failed(longer))


def test_a_baseline_of_another_machine_is_not_comparable(bundles, tmp_path):
    path = tmp_path / "baseline.json"
    gate_bundle(bundles["base"], path, QUICK)
    stored = read_stored(path)
    machine = {**stored.machine, "cores": "512", "governor": "powersave"}
    path.write_text(stored.model_copy(update={"machine": machine}).model_dump_json())
    verdict = gate_bundle(bundles["again"], path, QUICK)
    assert verdict.outcome == "inconclusive"
    text = verdict.check("cpu_time").message
    assert f"not comparable: cores: {os.cpu_count()} here, 512 there; governor:" in text
    # Costs are the same on every machine, and are held all the same.
    assert gate_bundle(bundles["longer"], path, QUICK).outcome == "fail"


def test_without_a_clock_costs_alone_decide(bundles):
    verdict = gate_bundle(bundles["again"], bundles["base"], clock=False)
    assert verdict.outcome == "pass" and not verdict.samples
    assert "cpu_time" not in {check.metric for check in verdict.checks}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "something else than a baseline"),
        (b"[]", "something else than a baseline"),
        (b'{"format": "optimize-gate-baseline"}', "something else than a baseline"),
        (b'{"format_version": "9.0"}', "found format 9.0, expected 1.x; update"),
        (b"\xff\xfe", "something else than a baseline"),
        (b"[" * 100_000, "something else than a baseline"),
        (b" " * (MAX_BYTES + 1), "found more than"),
    ],
)
@pytest.mark.parametrize("update", [False, True])
def test_a_broken_baseline_is_an_error_and_stays_as_it_is(
    content, expected, update, bundles, tmp_path
):
    path = tmp_path / "baseline.json"
    path.write_bytes(content)
    with pytest.raises(GateError, match=expected):
        gate_bundle(bundles["base"], path, clock=False, update=update)
    assert path.read_bytes() == content


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"fast"'])
def test_an_edited_time_is_an_error(value, tmp_path):
    path = tmp_path / "baseline.json"
    write_stored(path, StoredBaseline(name="x", machine={"cores": "2"}))
    text = path.read_text().replace(
        '"times": {}', f'"times": {{"cpu_time": {{"value": {value}, "low": 1.0, "high": 1.0}}}}'
    )
    path.write_text(text)
    with pytest.raises(GateError, match="something else than a baseline"):
        read_stored(path)


def test_results_that_changed_fail(bundles, tmp_path):
    """The file of the example says something else than the bundle gives."""
    from optimize.gate.findings import example_check
    from optimize.measure.receipt import StoredExample

    stored = StoredExample({}, {"image": np.ones(3, np.float32)})
    good = example_check({"image": np.ones(3, np.float32)}, stored, 1e-4, Policy())
    bad = example_check({"image": np.full(3, 1.1, np.float32)}, stored, 1e-4, Policy())
    broken = example_check({"image": np.full(3, np.nan, np.float32)}, stored, 1e-4, Policy())
    assert (good.outcome, bad.outcome, broken.outcome) == ("pass", "fail", "fail")
    assert "relative error 0.1, limit 0.0001" in bad.message


def request_of(bundle):
    return bundle / "example.safetensors"


def test_a_candidate_that_dies_half_way_fails(bundles, monkeypatch):
    """Its process is killed after some slices, as the kernel does when memory runs out."""
    runs = []
    run = BundleSide.run

    def killed(self, slices):
        if self._side == "candidate":
            runs.append(1)
            if len(runs) == 5:
                os.kill(self._process.pid, signal.SIGKILL)
                self._process.wait()
        return run(self, slices)

    monkeypatch.setattr(BundleSide, "run", killed)
    verdict = gate_bundle(bundles["again"], bundles["base"], QUICK)
    assert verdict.outcome == "fail"
    text = verdict.check("cpu_time").message
    assert text.startswith("candidate: its process was killed by signal 9, after 4 slices")


def test_a_baseline_that_dies_decides_nothing(bundles, monkeypatch):
    run = BundleSide.run

    def killed(self, slices):
        if self._side == "baseline":
            self._process.kill()
            self._process.wait()
        return run(self, slices)

    monkeypatch.setattr(BundleSide, "run", killed)
    verdict = gate_bundle(bundles["again"], bundles["base"], QUICK)
    assert verdict.outcome == "inconclusive"
    assert verdict.check("cpu_time").message.startswith("baseline: its process was killed")


def test_a_side_that_hangs_is_given_up(bundles):
    side = BundleSide("candidate", bundles["base"], request_of(bundles["base"])).wait()
    try:
        os.kill(side._process.pid, signal.SIGSTOP)
        side._left = 0.2
        with pytest.raises(SideFailed, match="candidate: found no answer within 0 s; before it"):
            side.run(8)
    finally:
        side.close()


def test_a_side_that_cannot_load_says_why(bundles, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(bundles["base"], broken)
    weights = broken / "graphs" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    side = BundleSide("candidate", broken, request_of(bundles["base"]))
    try:
        with pytest.raises(
            SideFailed, match="ended with exit code 1, before it answered: .*sha256"
        ):
            side.wait()
    finally:
        side.close()


def test_closing_a_side_ends_its_process(bundles):
    side = BundleSide("candidate", bundles["base"], request_of(bundles["base"])).wait()
    assert side.steps == 8 and side.seconds > 0
    assert min(side.run(8)) > 0
    side.close()
    side.close()
    with pytest.raises(ProcessLookupError):
        os.kill(side._process.pid, 0)


def test_short_functions_are_called_in_a_row():
    side = FunctionSide(lambda: None)
    assert side.loops > 100
    assert min(side.run(1)[1] for _ in range(5)) < 1e-4


def test_duplicate_weights_are_found():
    from optimize.gate.facts import _duplicates
    from optimize.runtime.tensors import StoredTensor

    one = np.arange(1024, dtype=np.float32)
    tensors = {
        "a": StoredTensor("float32", one, 0),
        "b": StoredTensor("float32", one + 1, 0),
        "c": StoredTensor("float32", one.copy(), 0),
        "small": StoredTensor("float32", one[:4], 0),
        "small too": StoredTensor("float32", one[:4], 0),
    }
    assert _duplicates(tensors) == one.nbytes


def test_errors_are_errors_of_optimize():
    assert issubclass(SideFailed, OptimizeError) and GateError.exit_code == 2


def test_a_verdict_is_json(bundles):
    from optimize.gate.formats import to_dict

    verdict = gate_bundle(bundles["again"], bundles["base"], clock=False)
    json.dumps(to_dict(verdict), allow_nan=False)
