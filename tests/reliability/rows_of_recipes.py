"""B rows, faults of recipes and commands, and G rows, those of gates."""

from collections.abc import Mapping

from tests.reliability.row import Row

RECIPE = "tests/recipes/test_recipe.py"
YAML = "tests/recipes/test_strict_yaml.py"
PIPELINE = "tests/passes/test_pipeline.py"
CLI = "tests/face/test_cli.py"
POLICY = "tests/gate/test_policy.py"
GATE = "tests/gate/test_gate.py"
GATE_CLI = "tests/face/test_gate_cli.py"
PAIRS = "tests/gate/test_pairs.py"
TIMING = "tests/gate/test_timing.py"
COSTS = "tests/gate/test_costs.py"
FORMATS = "tests/gate/test_formats.py"
PLUGIN = "tests/gate/test_pytest_plugin.py"

ROWS: Mapping[str, Row] = {
    "B1": Row(
        "an unknown key, pass or metric",
        (
            f"{RECIPE}::test_lists_every_problem_at_once",
            f"{POLICY}::test_what_is_wrong_is_named",
        ),
    ),
    "B2": Row(
        "a wrong type, a value out of range, several problems",
        (
            f"{RECIPE}::test_lists_every_problem_at_once",
            f"{RECIPE}::test_out_of_range_names_the_pass",
            f"{POLICY}::test_all_problems_are_listed_at_once",
        ),
    ),
    "B3": Row("a key given twice", (f"{YAML}::test_duplicate_keys_name_both_places",)),
    "B4": Row(
        "words that YAML reads in two ways",
        (
            f"{YAML}::test_plain_words_have_one_reading",
            f"{YAML}::test_words_with_two_readings_are_refused",
        ),
    ),
    "B5": Row(
        "tags, import paths, interpolation",
        (f"{RECIPE}::test_import_paths_are_refused", f"{POLICY}::test_what_is_wrong_is_named"),
    ),
    "B6": Row(
        "anchors that refer to themselves, alias bombs",
        (
            f"{YAML}::test_cycle_and_alias_bomb_are_refused",
            f"{YAML}::test_many_values_are_refused",
        ),
    ),
    "B7": Row(
        "deep nesting, bytes that are no text, marks, huge files",
        (
            f"{YAML}::test_deep_nesting_is_refused_early",
            f"{YAML}::test_bytes_that_are_no_text_are_refused",
            f"{YAML}::test_mark_and_line_endings_are_accepted",
        ),
    ),
    "B9": Row(
        "an order of passes that cannot work",
        (f"{RECIPE}::test_order_that_cannot_work_is_refused",),
    ),
    "B10": Row(
        "a pass that matches nothing",
        (
            f"{PIPELINE}::test_required_pass_that_declines_is_an_error",
            f"{PIPELINE}::test_optional_pass_that_declines_is_recorded",
            f"{COSTS}::test_a_pass_that_stopped_matching_fails",
        ),
    ),
    "B11": Row(
        "an output path that must not be written", (f"{CLI}::test_out_is_checked_before_the_work",)
    ),
    "G1": Row(
        "no baseline",
        (
            f"{GATE}::test_no_baseline_is_never_a_pass",
            f"{GATE}::test_the_first_run_records_and_the_next_compares",
            f"{GATE_CLI}::test_no_baseline_is_3_or_0_when_told",
        ),
    ),
    "G2": Row(
        "a baseline of another machine",
        (f"{GATE}::test_a_baseline_of_another_machine_is_not_comparable",),
    ),
    "G3": Row(
        "a noisy machine",
        (
            f"{PAIRS}::test_a_machine_that_changes_speed_changes_nothing",
            f"{TIMING}::test_what_cannot_be_decided_is_inconclusive",
            f"{TIMING}::test_a_failure_must_be_found_twice",
        ),
    ),
    "G4": Row(
        "no variance, identical samples, a coarse clock",
        (
            f"{PAIRS}::test_identical_samples_give_a_finite_interval",
            f"{TIMING}::test_the_smallest_effect_applies_to_times_without_noise",
            f"{TIMING}::test_a_clock_that_stands_still_decides_nothing",
            f"{GATE}::test_short_functions_are_called_in_a_row",
        ),
    ),
    "G5": Row(
        "one sample, NaN, negative times, outliers",
        (
            f"{PAIRS}::test_one_request_is_refused",
            f"{PAIRS}::test_what_is_no_time_is_refused",
            f"{PAIRS}::test_an_outlier_changes_nothing",
        ),
    ),
    "G6": Row(
        "a baseline file that is corrupt, edited, newer or huge",
        (
            f"{GATE}::test_a_broken_baseline_is_an_error_and_stays_as_it_is",
            f"{GATE}::test_an_edited_time_is_an_error",
        ),
    ),
    "G7": Row("a metric that went missing", (f"{COSTS}::test_a_metric_that_is_missing_fails",)),
    "G9": Row(
        "creep below the limit", ("tests/gate/test_formats.py::test_receipts_are_kept_and_drawn",)
    ),
    "G10": Row(
        "xdist, other options, a report that cannot be written",
        (
            f"{PLUGIN}::test_workers_hand_their_verdicts_over_and_measure_no_times",
            f"{PLUGIN}::test_the_plugin_is_quiet_where_nobody_uses_it",
            f"{PLUGIN}::test_a_json_file_that_cannot_be_written_breaks_nothing",
        ),
    ),
    "G11": Row("faster and worse", (f"{COSTS}::test_speed_does_not_make_up_for_quality",)),
}

PENDING = {
    # Recipes have no version: an unknown key is refused.
    "B8",
    # Each time metric may err in its share of the cases (Bonferroni); rates over hundreds of runs
    # are measured by benchmarks/gates.py.
    "G8",
}
