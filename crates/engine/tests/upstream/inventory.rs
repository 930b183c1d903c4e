//! The inventory itself: everything that CRSqlite tests, and the test of ours that stands for it.
//!
//! A test stands for a scenario whose name is in its doc comment, in a source file that names CRSqlite's file. Where
//! the specification has no name for a scenario, the words are those of its description.

use std::path::Path;

/// CRSqlite's file, and the scenarios in it. Left out are those without content: empty stubs, runners, and printed
/// times.
const INVENTORY: &[(&str, &[&str])] = &[
    (
        "test_as_ordered.py",
        &[
            "first_insertion_prepend",
            "first_insertion_append",
            "middle_insertion",
            "front_insertion",
            "endinsertion",
            "view_first_insertion",
            "view_move",
        ],
    ),
    (
        "test_cl_merging.py",
        &[
            "larger_cl_wins_all",
            "larger_cl_delete_deletes_all",
            "smaller_delete_does_not_delete_larger_cl",
            "equivalent_delete_cls_is_noop",
            "smaller_cl_loses_all",
            "pr_299_scenario",
            "sync_with_siteid",
            "resurrection_of_live_thing_via_sentinel",
            "resurrection_of_live_thing_via_non_sentinel",
            "resurrection_of_dead_thing_via_sentinel",
            "resurrection_of_dead_thing_via_non_sentinel",
            "delete_via_sentinel",
            "out_of_order_merge",
            "out_of_order_merge_bidi",
            "ordered_delta_merge_proxy",
            "larger_col_version_same_cl",
            "larger_col_value_same_cl_and_col_version",
            "pko_create",
            "pko_delete",
            "pko_resurrect",
            "discord_report_corrosion",
        ],
    ),
    (
        "test_cl_triggers.py",
        &[
            "upsert_non_existing",
            "insert_delete_insert_delete",
            "upsert_previously_existing",
            "upsert_currently_existing",
            "update_existing",
            "insert_existing",
            "insert_or_ignore_existing",
            "delete_existing",
            "delete_previously_deleted",
            "change_primary_key_to_something_new",
            "change_primary_key_to_previously_existing",
            "change_primary_key_to_currently_existing",
            "change_primary_key_away_from_thing_with_large_length",
            "insert_previously_existing",
        ],
    ),
    ("test_config.py", &["set returns the value"]),
    ("test_crsql_changes_filters.py", &["db_version", "seq", "col_version", "cid", "table", "pk", "site_id"]),
    (
        "test_dbversion.py",
        &[
            "min_on_init",
            "increments_on_modification",
            "db_version_restored_from_disk",
            "each_tx_gets_a_version",
            "rollback_does_not_move_db_version",
        ],
    ),
    ("test_insert_new_rows.py", &["the exact clock row"]),
    (
        "test_lookaside_key_creation.py",
        &[
            "insert",
            "insert_or_replace",
            "insert_or_ignore",
            "upsert",
            "update",
            "delete",
            "delete_all",
            "pk_update",
            "merge_new_row",
            "merge_existing_row",
            "merge_delete_of_new_row",
            "merge_delete_of_existing_row",
            "merge_pk_update",
        ],
    ),
    ("test_prior_versions.py", &["opens for reading"]),
    ("test_sandbox.py", &["UUIDs as keys"]),
    (
        "test_schema_modification.py",
        &[
            "c1_4_no_primary_keys",
            "c1_3_quoted_identifiers",
            "c1_c5_compound_primary_key",
            "c1_6_single_primary_key",
            "c2_create_index",
            "drop_clock_on_col_remove",
            "backfill_col_add",
            "backfill_clocks_on_rename",
            "delete_sentinels_not_lost",
            "pk_only_sentinels",
            "backfill_existing_data",
            "backfill_moves_dbversion",
            "backfill_for_alter_does_not_move_dbversion",
            "add_col_with_default",
            "add_col_nullable",
            "add_col_implicit_nullable",
            "add_col_through_12step",
            "pk_only_table_backfill",
            "pk_and_default_backfill",
            "pk_and_default_backfill_post12step_with_new_rows",
            "add_column_and_set_column",
            "remove_rows_on_alter",
            "remove_col_from_pk",
            "remove_pk_column",
            "add_existing_col_to_pk",
            "add_new_col_to_pk",
            "rename_pk_column",
            "changing_values_in_primary_key_columns",
        ],
    ),
    (
        "test_sentinel_omission.py",
        &["insert", "replace", "merge", "no-op merge", "update merge", "deleting all", "merging those deletes"],
    ),
    (
        "test_seq.py",
        &[
            "increments_by_one_in_tx",
            "resets_on_every_tx",
            "preserved_on_merge",
            "incr_by_one",
            "when_re_inserting",
            "when_updating_after_reinsert",
            "when_resinserting_from_merge",
        ],
    ),
    (
        "test_site_id_lookaside.py",
        &[
            "a remote insert stores ordinal 1",
            "filter by site id",
            "local rows return the own id",
            "ordinals are stable",
        ],
    ),
    (
        "test_siteid.py",
        &[
            "a UUID of 16 bytes",
            "the function equals the table",
            "stable across reopening",
            "all local operations carry the own id",
            "preserved from A over B to C",
        ],
    ),
    (
        "test_sync.py",
        &[
            "changes_since",
            "delete",
            "merging_on_defaults",
            "merging_on_defaults2",
            "merging_larger_backfilled_default",
            "db_version_moves_as_expected_post_alter",
            "merge_same",
            "merge_same_w_tie_breaker",
            "merge_matching_clocks_lesser_value",
            "merge_larger_clock_larger_value",
            "merge_larger_clock_smaller_value",
            "merge_larger_clock_same_value",
            "merge",
        ],
    ),
    (
        "test_sync_bit.py",
        &["a merged insert, update and delete", "a trigger that asks for bit 0", "one that asks for 1"],
    ),
    ("test_sync_prop.py", &["delta_sync"]),
    (
        "automigrate.rs",
        &[
            "empty_schema",
            "to_empty_from_something",
            "to_something_from_empty",
            "add_col",
            "remove_col",
            "rename_col",
            "remove_index",
            "add_index",
            "change_index_from_unique",
            "remove_col_from_index",
            "add_col_to_index",
            "idempotent",
            "strut_schema",
            "remove_col_fract_table",
        ],
    ),
    ("backfill.rs", &["an empty table", "a table of two rows", "applied again"]),
    ("fract.rs", &["order without list columns", "a move among equal keys"]),
    ("pack_columns.rs", &["the documented bytes", "there and back", "typed cells in their order"]),
    (
        "pk_only_tables.rs",
        &["create", "an insert syncs", "an update of the key syncs", "ON CONFLICT DO NOTHING", "junction_table"],
    ),
    ("pk_update.rs", &["describes what LW-6 has to do"]),
    ("sync_bit_honored.rs", &["with bit 1"]),
    (
        "tableinfo.rs",
        &[
            "is read anew when the schema changes",
            "is empty once the clocks are gone",
            "columns are split into keys and others",
            "the matrix of tables",
            "the clock tables of four shapes",
            "two connections whose DDL is interleaved",
        ],
    ),
    ("teardown.rs", &["as_table removes every object"]),
    (
        "test_cl_set_vtab.rs",
        &["create_crr_via_vtab", "destroy_crr_via_vtab", "create_invalid_crr", "create_if_not_exists"],
    ),
    ("test_db_version.rs", &["the stored version", "next is 1, and again"]),
    ("changes-vtab-rowid.test.c", &["slabs of 10^13"]),
    ("changes-vtab.test.c", &["a composite key packs", "filters: none"]),
    (
        "crsqlite.test.c",
        &[
            "end to end",
            "a column dropped and another added in one window",
            "the Lamport condition",
            "no-op merges do not move versions",
            "a filter for local changes alone",
        ],
    ),
    (
        "ext-data.test.c",
        &[
            "the initial state",
            "finalize twice",
            "schema_version is noticed",
            "data_version changes only by writes of other connections",
        ],
    ),
    ("is-crr.test.c", &["a plain table is none"]),
    (
        "rows-impacted.test.c",
        &[
            "a single row",
            "many statements",
            "one statement of many rows",
            "reset after each commit",
            "equal value",
            "smaller value",
            "smaller clock",
            "stale delete",
            "duplicate create",
            "Larger value",
            "larger clock",
            "delete: 1",
        ],
    ),
    ("rs-fract.test.c", &["as_ordered twice", "rows at both ends", "rows between others", "the repair of a collision"]),
    ("sandbox.test.c", &["a table of keys alone"]),
    (
        "CRSqlite's unit tests",
        &[
            "rowid slab arithmetic",
            "the version over all tables",
            "the partition of update-trigger arguments",
            "validate_order_key",
            "key_between",
            "random re-ordering",
        ],
    ),
];

/// A test: its doc comment with that of its file, and where it is.
struct Test {
    comment: String,
    header: String,
    place: String,
}

#[test]
fn every_scenario_of_crsqlite_has_a_test_that_names_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = Vec::new();
    for folder in ["tests", "src", "../proto/src"] {
        collect(&root.join(folder), &mut tests);
    }
    let mut missing = Vec::new();
    for (file, scenarios) in INVENTORY {
        println!("{file}");
        for scenario in *scenarios {
            let names = |test: &&Test| {
                (test.comment.contains(file) || test.header.contains(file)) && has_words(&test.comment, scenario)
            };
            let places: Vec<_> = tests.iter().filter(names).map(|test| test.place.as_str()).collect();
            println!("    {scenario}: {}", places.join(", "));
            if places.is_empty() {
                missing.push(format!("{file}: {scenario}"));
            }
        }
    }
    assert!(missing.is_empty(), "no test names these:\n{}", missing.join("\n"));
}

/// Whether the words stand in the text, and are no part of a longer name.
fn has_words(text: &str, words: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(words)
        .any(|(at, _)| !text[..at].ends_with(is_name) && !text[at + words.len()..].starts_with(is_name))
}

/// The tests of all source files of a folder.
fn collect(folder: &Path, tests: &mut Vec<Test>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("inventory.rs") {
            collect_file(&path, tests);
        }
    }
}

fn collect_file(path: &Path, tests: &mut Vec<Test>) {
    let text = std::fs::read_to_string(path).unwrap();
    let (mut header, mut comment, mut is_test) = (String::new(), String::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("//!") {
            header.push_str(words);
        } else if let Some(words) = line.strip_prefix("///") {
            comment.push_str(words);
        } else if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            if is_test {
                let name = rest.split('(').next().unwrap_or_default();
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                let place = format!("{file} {name}");
                tests.push(Test { comment: std::mem::take(&mut comment), header: header.clone(), place });
            }
            comment.clear();
            is_test = false;
        } else if !line.starts_with("#[") {
            comment.clear();
        }
    }
}
