import pytest

from optimize.gate.policy import LIMITS, METRICS, Policy, load_policy, with_options
from optimize.gate.starter import FILES, write_starter
from optimize.ir.errors import GateError


def test_a_file_is_read(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("limits:\n  cpu_time: 0.05\nignore: [wall_time]\nseconds: 20.0\n")
    policy = load_policy(path)
    assert policy.limit("cpu_time") == 0.05
    assert policy.limit("flops") == LIMITS["flops"]
    assert policy.seconds == 20
    assert not policy.gates("wall_time") and policy.gates("cpu_time")


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("# nothing\n")
    assert load_policy(path) == load_policy(None) == Policy()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limits: {cpu_tiem: 0.1}", "unknown metric 'cpu_tiem'.*Did you mean cpu_time"),
        ("limits: {cpu_time: -1}", "limits.cpu_time: found -1.0, expected a share >= 0"),
        ("ignore: [walltime]", "ignore: unknown metric 'walltime'.*Did you mean wall_time"),
        ("limit: {}", "unknown option 'limit'.*Did you mean limits"),
        ("confidence: 1.0", r"confidence: found 1.0, expected a number in \[0.5, 0.9999\]"),
        ("seconds: 0", r"seconds: found 0.0, expected a number in \[1, 3600\]"),
        ("seconds: fast", "seconds: found .*fast.*, expected a number"),
        ("threads: 0", "threads: found 0"),
        ("seconds: 1\nseconds: 2", "seconds"),
        ("- a list", "expected options by name"),
        ("a: &x [*x]", "anchor"),
        ("quality: !!python/object:os.system {}", "tag"),
    ],
)
def test_what_is_wrong_is_named(text, expected, tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(GateError, match=expected):
        load_policy(path)


def test_all_problems_are_listed_at_once(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("secnods: 1\nthreads: many\n")
    with pytest.raises(GateError) as error:
        load_policy(path)
    assert "secnods" in str(error.value) and "many" in str(error.value)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(GateError, match="optimize gate --init"):
        load_policy(tmp_path / "none.yaml")


def test_options_replace_those_of_a_policy():
    policy = with_options(Policy(limits={"flops": 0.5}), {"cpu_time": 0.2, "seconds": 5.0})
    assert policy.limit("flops") == 0.5 and policy.limit("cpu_time") == 0.2
    assert policy.seconds == 5
    with pytest.raises(GateError, match="Did you mean seconds"):
        with_options(policy, {"second": 5.0})


def test_the_starter_is_the_default_policy_and_overwrites_nothing(tmp_path):
    written = write_starter(tmp_path)
    assert [path.relative_to(tmp_path) for path in written] == list(FILES)
    policy = load_policy(tmp_path / "gate.yaml")
    assert policy == Policy(limits=dict(LIMITS))
    before = (tmp_path / "gate.yaml").read_text()
    with pytest.raises(GateError, match="found gate.yaml"):
        write_starter(tmp_path)
    assert (tmp_path / "gate.yaml").read_text() == before


def test_metrics_are_named_once():
    assert len(set(METRICS)) == len(METRICS)
