"""The list of faults to withstand, and the tests that show the answer to each.

B rows are faults of recipes and commands, C rows of a bundle on disk, E rows of resources, G rows
of gates. Every row has a test, and every test that is named exists.
"""

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.reliability.row import Row
from tests.reliability.rows_of_recipes import PENDING as RECIPE_PENDING
from tests.reliability.rows_of_recipes import ROWS as RECIPE_ROWS

ROOT = Path(__file__).parents[2]
LAST = {"B": 11, "C": 24, "E": 11, "G": 11}
EXPECTED = {f"{kind}{number}" for kind, last in LAST.items() for number in range(1, last + 1)}

BUNDLE = "tests/runtime/test_bundle.py"
MANIFEST = "tests/runtime/test_manifest.py"
PREFLIGHT = "tests/runtime/test_onnx_preflight.py"
ENGINE = "tests/runtime/test_onnx_engine.py"
TENSORS = "tests/runtime/test_tensors.py"
SESSION = "tests/runtime/test_session.py"
PUBLISH = "tests/export/test_publish.py"
REPORT = "tests/report/test_report.py"
ENGINES = "tests/export/test_engines.py"
TARGETS = "tests/runtime/test_targets.py"
SIGNATURE = "tests/runtime/test_signature.py"
OPERATORS = "tests/runtime/test_onnx_operators.py"
FUZZ = "tests/reliability/test_fuzz_bundles.py"
CRASH = "tests/reliability/test_crash_points.py"
FOLDERS = "tests/reliability/test_hostile_folders.py"


ROWS: Mapping[str, Row] = {
    **RECIPE_ROWS,
    "C1": Row(
        "no folder, an empty one, one without a manifest, an unfinished export",
        (f"{BUNDLE}::test_what_is_not_a_bundle_is_told_from_an_unfinished_export",),
    ),
    "C2": Row(
        "any file truncated or with a flipped bit",
        (
            f"{BUNDLE}::test_truncation_or_a_flipped_bit_anywhere_is_found",
            f"{BUNDLE}::test_an_integrity_error_shows_found_and_expected",
            f"{FUZZ}::test_damaged_bundles_are_refused_or_harmless",
        ),
    ),
    "C3": Row(
        "a manifest that is no strict JSON",
        (
            f"{MANIFEST}::test_what_is_not_strict_json_or_no_manifest_is_corrupt",
            f"{MANIFEST}::test_more_than_four_mebibytes_are_refused",
            f"{MANIFEST}::test_mutated_manifests_raise_our_errors_only",
            f"{FUZZ}::test_damaged_bundles_are_refused_or_harmless",
        ),
    ),
    "C4": Row(
        "a manifest edited consistently with its files",
        (
            f"{SIGNATURE}::test_an_unsigned_bundle_says_so_and_is_refused_where_a_key_is_asked_for",
            f"{SIGNATURE}::test_a_bundle_signed_by_another_key_is_refused",
            f"{SIGNATURE}::test_a_bundle_edited_consistently_after_signing_is_refused",
            f"{SIGNATURE}::test_a_signature_that_claims_the_key_but_was_not_made_by_it_is_refused",
        ),
    ),
    "C5": Row(
        "files missing, not listed, or colliding in case",
        (
            f"{BUNDLE}::test_a_missing_file_is_an_error_and_an_extra_one_a_warning",
            f"{BUNDLE}::test_names_that_differ_in_case_only_are_refused",
            f"{SIGNATURE}::test_a_manifest_cannot_list_itself_or_its_signature",
        ),
    ),
    "C6": Row(
        "paths that leave the bundle",
        (f"{BUNDLE}::test_a_path_that_leaves_the_bundle_is_refused_before_any_open",),
    ),
    "C7": Row(
        "symbolic links",
        (
            f"{BUNDLE}::test_links_and_special_files_are_refused_without_waiting",
            f"{SIGNATURE}::test_a_signature_that_is_a_link_is_refused",
        ),
    ),
    "C8": Row(
        "hard links",
        (f"{BUNDLE}::test_hard_links_load",),
    ),
    "C9": Row(
        "special files",
        (
            f"{BUNDLE}::test_links_and_special_files_are_refused_without_waiting",
            f"{FOLDERS}::test_a_fifo_in_the_place_of_the_folder_does_not_wait",
        ),
    ),
    "C10": Row(
        "files swapped between check and use",
        (f"{BUNDLE}::test_files_swapped_after_the_check_have_no_effect",),
    ),
    "C11": Row(
        "hostile safetensors headers",
        (
            f"{TENSORS}::test_malformed_or_hostile_files_are_refused_quickly",
            f"{FUZZ}::test_damaged_bundles_are_refused_or_harmless",
        ),
    ),
    "C12": Row(
        "graphs that ask for more memory than the bundle is worth",
        (
            f"{PREFLIGHT}::test_hostile_graphs_are_refused_by_name",
            f"{PREFLIGHT}::test_a_sparse_initializer_is_refused",
            f"{OPERATORS}::test_giant_tensors_that_a_constant_asks_for_are_refused",
            f"{OPERATORS}::test_sizes_inside_subgraphs_count",
            f"{OPERATORS}::test_a_sparse_constant_in_an_attribute_is_refused",
            f"{OPERATORS}::test_loading_a_memory_bomb_takes_no_memory",
            f"{FUZZ}::test_damaged_graphs_of_one_operator_are_refused_or_harmless",
            f"{FUZZ}::test_harm_is_noticed_counted_and_saved",
        ),
    ),
    "C13": Row(
        "foreign domains, vendor blobs, outside paths, deep subgraphs",
        (
            f"{PREFLIGHT}::test_hostile_graphs_are_refused_by_name",
            f"{OPERATORS}::test_nodes_that_kernels_are_not_made_for_are_refused",
        ),
    ),
    "C14": Row(
        "weights that are not where the graph says",
        (
            f"{PREFLIGHT}::test_hostile_graphs_are_refused_by_name",
            f"{ENGINE}::test_mutated_models_raise_our_errors_only",
        ),
    ),
    "C15": Row(
        "an archive in the place of a bundle",
        (f"{FOLDERS}::test_archives_are_not_extracted_but_refused_with_advice",),
    ),
    "C16": Row(
        "another format version",
        (
            f"{BUNDLE}::test_an_unknown_major_version_is_refused_with_both_versions",
            f"{BUNDLE}::test_a_newer_minor_version_loads_and_its_new_fields_are_ignored",
        ),
    ),
    "C17": Row(
        "a capability this version lacks",
        (f"{BUNDLE}::test_a_missing_capability_is_named",),
    ),
    "C18": Row(
        "an engine for another release, GPU, driver or system",
        (
            f"{TARGETS}::test_an_engine_of_another_machine_is_refused_by_name",
            f"{TARGETS}::test_what_was_asked_for_is_never_replaced",
        ),
    ),
    "C19": Row(
        "code of another build than its metadata",
        (f"{FOLDERS}::test_native_code_of_another_build_is_found_before_anything_runs",),
    ),
    "C20": Row(
        "native code without trust",
        (
            f"{ENGINES}::test_native_code_needs_trust_and_is_not_touched_without",
            f"{BUNDLE}::test_native_code_that_no_engine_names_is_refused",
            f"{SIGNATURE}::test_native_code_of_a_bundle_signed_by_a_trusted_key_may_run",
            f"{FOLDERS}::test_opening_bundles_imports_writes_and_connects_to_nothing",
        ),
    ),
    "C21": Row(
        "a provider that is absent or misspelt",
        (f"{SESSION}::test_a_provider_that_is_missing_or_misspelt_is_never_replaced",),
    ),
    "C22": Row(
        "hostile strings in the report",
        (
            f"{REPORT}::test_page_escapes_hostile_strings",
            f"{REPORT}::test_page_loads_nothing",
        ),
    ),
    "C23": Row(
        "a folder that goes while its session is open",
        (
            f"{BUNDLE}::test_the_session_outlives_its_folder",
            f"{FOLDERS}::test_loading_from_a_read_only_folder_works",
            f"{FOLDERS}::test_a_new_load_of_a_moved_bundle_fails_clearly",
        ),
    ),
    "C24": Row(
        "graphs over 2 GiB, files over 4 GiB, long paths",
        (
            f"{FOLDERS}::test_tensors_behind_four_gibibytes_are_read_where_they_lie",
            f"{FOLDERS}::test_a_file_over_four_gibibytes_is_verified_in_little_memory",
            f"{OPERATORS}::test_inline_constants_have_a_limit",
            f"{BUNDLE}::test_a_path_that_leaves_the_bundle_is_refused_before_any_open",
        ),
    ),
    "E1": Row(
        "an error at any system call of an export",
        (
            f"{PUBLISH}::test_an_error_at_any_system_call_leaves_the_old_bundle",
            f"{CRASH}::test_a_failure_at_any_system_call_leaves_the_old_bundle_or_the_new",
            f"{SIGNATURE}::test_a_failure_while_signing_leaves_the_old_signature",
            f"{FOLDERS}::test_a_disk_that_cannot_be_read_is_a_typed_error",
        ),
    ),
    "E2": Row(
        "a kill at any system call of an export",
        (
            f"{PUBLISH}::test_a_kill_at_any_system_call_leaves_the_old_bundle_or_the_new",
            f"{PUBLISH}::test_staging_of_a_killed_export_is_removed_by_the_next_one",
            f"{CRASH}::test_a_failure_at_any_system_call_leaves_the_old_bundle_or_the_new",
            f"{SIGNATURE}::test_what_a_killed_signer_left_is_removed_by_the_next",
        ),
    ),
    "E3": Row(
        "a folder that cannot be synced after the rename",
        (
            f"{PUBLISH}::test_an_error_at_any_system_call_leaves_the_old_bundle",
            f"{CRASH}::test_a_failure_at_any_system_call_leaves_the_old_bundle_or_the_new",
        ),
    ),
    "E4": Row(
        "a target that cannot be written",
        (
            f"{PUBLISH}::test_a_target_in_the_way_is_found_before_the_work",
            f"{PUBLISH}::test_a_missing_parent_is_found_before_the_work",
            f"{PUBLISH}::test_an_unwritable_parent_is_found_before_the_work",
        ),
    ),
    "E5": Row(
        "two exporters to one path",
        (
            f"{PUBLISH}::test_of_two_exporters_one_wins_whole_and_the_other_is_refused",
            f"{PUBLISH}::test_staging_of_a_living_export_is_left_alone",
            f"{CRASH}::test_of_sixteen_exporters_one_wins_and_every_reader_sees_a_whole_bundle",
        ),
    ),
    "E6": Row(
        "an exporter and a reader at once",
        (
            f"{PUBLISH}::test_a_reader_sees_one_version_throughout_an_overwrite",
            f"{CRASH}::test_of_sixteen_exporters_one_wins_and_every_reader_sees_a_whole_bundle",
        ),
    ),
    "E7": Row(
        "memory that runs out",
        (
            f"{FOLDERS}::test_weights_that_do_not_fit_in_memory_are_a_typed_error",
            f"{FOLDERS}::test_memory_that_runs_out_in_a_command_is_exit_4",
        ),
    ),
    "E8": Row(
        "a cache that is damaged, shared or full: there is none on disk",
        (f"{FOLDERS}::test_opening_bundles_imports_writes_and_connects_to_nothing",),
    ),
    "E9": Row(
        "clock, home, temporary folder, umask, descriptors",
        (
            f"{CRASH}::test_an_export_after_the_clock_went_backwards_leaves_the_living_alone",
            f"{FOLDERS}::test_an_export_needs_no_home_no_temporary_folder_and_no_friendly_umask",
            f"{FOLDERS}::test_a_process_out_of_file_descriptors_says_so",
            f"{FOLDERS}::test_a_deleted_working_folder_is_a_typed_error",
        ),
    ),
    "E10": Row(
        "a worker process that dies or hangs",
        (
            "tests/gate/test_gate.py::test_a_candidate_that_dies_half_way_fails",
            "tests/gate/test_gate.py::test_a_side_that_hangs_is_given_up",
            "tests/recipes/tuning/test_tune.py::test_resumes_after_a_kill",
        ),
    ),
    "E11": Row(
        "libraries absent at run time",
        (
            f"{SESSION}::test_a_bundle_runs_where_the_compiler_is_not_installed",
            f"{SESSION}::test_a_provider_that_is_missing_or_misspelt_is_never_replaced",
        ),
    ),
}

PENDING = RECIPE_PENDING


@cache
def functions(file: str) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_row_has_a_test() -> None:
    assert set(ROWS) | PENDING == EXPECTED
    assert not set(ROWS) & PENDING
    assert [name for name, row in ROWS.items() if not row.tests] == []


def test_every_test_named_exists() -> None:
    missing = []
    for name, row in ROWS.items():
        for test in row.tests:
            file, _, function = test.partition("::")
            if not (ROOT / file).is_file() or function not in functions(file):
                missing.append(f"{name}: {test}")
    assert missing == []
