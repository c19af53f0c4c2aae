"""The list of faults a bundle must withstand, and the tests that show it does.

C rows are faults of a bundle on disk, E rows those of resources. `test_rows.py` checks that every
row has a test and that every test named here exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BUNDLE = "tests/runtime/test_bundle.py"
MANIFEST = "tests/runtime/test_manifest.py"
PREFLIGHT = "tests/runtime/test_onnx_preflight.py"
ENGINE = "tests/runtime/test_onnx_engine.py"
TENSORS = "tests/runtime/test_tensors.py"
SESSION = "tests/runtime/test_session.py"
PUBLISH = "tests/export/test_publish.py"
REPORT = "tests/report/test_report.py"


@dataclass(frozen=True)
class Row:
    """A fault, and what shows the answer to it.

    Attributes:
        fault: what goes wrong.
        tests: "file::function" of each test.
    """

    fault: str
    tests: tuple[str, ...]


ROWS: Mapping[str, Row] = {
    "C1": Row(
        "no folder, an empty one, one without a manifest, an unfinished export",
        (f"{BUNDLE}::test_what_is_not_a_bundle_is_told_from_an_unfinished_export",),
    ),
    "C2": Row(
        "any file truncated or with a flipped bit",
        (
            f"{BUNDLE}::test_truncation_or_a_flipped_bit_anywhere_is_found",
            f"{BUNDLE}::test_an_integrity_error_shows_found_and_expected",
        ),
    ),
    "C3": Row(
        "a manifest that is no strict JSON",
        (
            f"{MANIFEST}::test_what_is_not_strict_json_or_no_manifest_is_corrupt",
            f"{MANIFEST}::test_more_than_four_mebibytes_are_refused",
            f"{MANIFEST}::test_mutated_manifests_raise_our_errors_only",
        ),
    ),
    "C5": Row(
        "files missing, not listed, or colliding in case",
        (
            f"{BUNDLE}::test_a_missing_file_is_an_error_and_an_extra_one_a_warning",
            f"{BUNDLE}::test_names_that_differ_in_case_only_are_refused",
        ),
    ),
    "C6": Row(
        "paths that leave the bundle",
        (f"{BUNDLE}::test_a_path_that_leaves_the_bundle_is_refused_before_any_open",),
    ),
    "C7": Row(
        "symbolic links",
        (f"{BUNDLE}::test_links_and_special_files_are_refused_without_waiting",),
    ),
    "C8": Row("hard links", (f"{BUNDLE}::test_hard_links_load",)),
    "C9": Row(
        "special files",
        (f"{BUNDLE}::test_links_and_special_files_are_refused_without_waiting",),
    ),
    "C10": Row(
        "files swapped between check and use",
        (f"{BUNDLE}::test_files_swapped_after_the_check_have_no_effect",),
    ),
    "C11": Row(
        "hostile safetensors headers",
        (f"{TENSORS}::test_malformed_or_hostile_files_are_refused_quickly",),
    ),
    "C12": Row(
        "graphs that ask for more memory than the bundle is worth",
        (
            f"{PREFLIGHT}::test_hostile_graphs_are_refused_by_name",
            f"{PREFLIGHT}::test_a_sparse_initializer_is_refused",
        ),
    ),
    "C13": Row(
        "foreign domains, vendor blobs, outside paths, deep subgraphs",
        (f"{PREFLIGHT}::test_hostile_graphs_are_refused_by_name",),
    ),
    "C14": Row(
        "weights that are not where the graph says",
        (
            f"{PREFLIGHT}::test_hostile_graphs_are_refused_by_name",
            f"{ENGINE}::test_mutated_models_raise_our_errors_only",
        ),
    ),
    "C16": Row(
        "another format version",
        (
            f"{BUNDLE}::test_an_unknown_major_version_is_refused_with_both_versions",
            f"{BUNDLE}::test_a_newer_minor_version_loads_and_its_new_fields_are_ignored",
        ),
    ),
    "C17": Row(
        "a capability this version lacks", (f"{BUNDLE}::test_a_missing_capability_is_named",)
    ),
    "C20": Row("native code without trust", (f"{BUNDLE}::test_native_code_needs_trust",)),
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
        (f"{BUNDLE}::test_the_session_outlives_its_folder",),
    ),
    "E1": Row(
        "an error at any system call of an export",
        (f"{PUBLISH}::test_an_error_at_any_system_call_leaves_the_old_bundle",),
    ),
    "E2": Row(
        "a kill at any system call of an export",
        (
            f"{PUBLISH}::test_a_kill_at_any_system_call_leaves_the_old_bundle_or_the_new",
            f"{PUBLISH}::test_staging_of_a_killed_export_is_removed_by_the_next_one",
        ),
    ),
    "E3": Row(
        "a folder that cannot be synced after the rename",
        (f"{PUBLISH}::test_an_error_at_any_system_call_leaves_the_old_bundle",),
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
        ),
    ),
    "E6": Row(
        "an exporter and a reader at once",
        (f"{PUBLISH}::test_a_reader_sees_one_version_throughout_an_overwrite",),
    ),
    "E11": Row(
        "libraries absent at run time",
        (
            f"{SESSION}::test_a_bundle_runs_where_the_compiler_is_not_installed",
            f"{SESSION}::test_a_provider_that_is_missing_or_misspelt_is_never_replaced",
        ),
    ),
}
