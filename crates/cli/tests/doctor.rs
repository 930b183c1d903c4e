//! `litemesh doctor`: faults are found, repaired where that needs no decision, and told by the exit code.

mod support;

use litemesh::engine::proto::{Cursor, Place, Position};
use litemesh::engine::{Engine, Reach};
use serde_json::{Value, json};
use support::{Done, Files, litemesh, rows};

/// Runs SQL that the triggers do not record.
fn past_triggers(file: &str, sql: &str) {
    litemesh(&["sql", file, &format!("SELECT crsql_internal_sync_bit(1); {sql}")]).ok();
}

/// The report, and the exit code.
#[track_caller]
fn report(done: &Done) -> (Value, Option<i32>) {
    assert_eq!(done.stderr, "");
    (serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}")), done.code)
}

#[test]
fn a_sound_file_is_called_so_and_not_written_to() {
    let files = Files::new();
    let file = files.database("a.db");
    litemesh(&["sql", &file, "INSERT INTO todo (id) VALUES ('a'), ('b'); DELETE FROM todo WHERE id = 'b'"]).ok();
    litemesh(&["sql", &file, "PRAGMA wal_checkpoint(TRUNCATE)"]).ok();
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(litemesh(&["doctor", &file]).ok(), format!("{file} is sound\n"));
    let (found, code) = report(&litemesh(&["doctor", &file, "--repair", "--json"]));
    assert_eq!((&found["sound"], &found["integrity"], &found["groups"]), (&json!(true), &json!([]), &json!([])));
    assert_eq!(code, Some(0));
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn faults_are_found_and_repaired() {
    let files = Files::new();
    let file = files.database("a.db");
    past_triggers(&file, "INSERT INTO todo (id) VALUES ('a'), ('b'), ('c \u{1b}[2J'); DROP TRIGGER tag__crsql_dtrig");
    let (found, code) = report(&litemesh(&["doctor", &file, "--json", "--limit", "2"]));
    assert_eq!((&found["sound"], code), (&json!(false), Some(1)));
    let groups = found["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2);
    assert_eq!((&groups[0]["kind"], &groups[0]["table"]), (&json!("missing-trigger"), &json!("tag")));
    let unknown = &groups[1];
    assert_eq!((&unknown["kind"], &unknown["severity"]), (&json!("row-without-clocks"), &json!("error")));
    assert_eq!((&unknown["count"], unknown["findings"].as_array().unwrap().len()), (&json!(3), 2));
    assert_eq!(unknown["findings"][0]["pk"], "010b0161");
    // The same in SQL.
    assert_eq!(rows(&file, "SELECT count(*) AS n FROM crsql_check()"), json!([{ "n": 4 }]));

    let text = litemesh(&["doctor", &file]);
    assert_eq!(text.code, Some(1));
    for words in ["missing-trigger in table tag", "3 findings (BUG-18)", "'c \\u{1b}[2J'", "--repair` mends"] {
        assert!(text.stdout.contains(words), "{words}: {text:?}");
    }
    let (found, code) = report(&litemesh(&["doctor", &file, "--repair", "--json"]));
    assert_eq!((&found["sound"], code), (&json!(true), Some(0)));
    let repaired = json!([
        { "kind": "missing-trigger", "table": "tag", "count": 1 },
        { "kind": "row-without-clocks", "table": "todo", "count": 3 },
    ]);
    assert_eq!(found["repaired"], repaired);
    assert_eq!(rows(&file, "SELECT count(DISTINCT pk) AS n FROM crsql_changes"), json!([{ "n": 3 }]));
    assert_eq!(litemesh(&["doctor", &file]).ok(), format!("{file} is sound\n"));
}

#[test]
fn what_takes_a_decision_is_left() {
    let files = Files::new();
    let file = files.database("a.db");
    litemesh(&["sql", &file, "INSERT INTO todo (id) VALUES ('a'), ('b')"]).ok();
    past_triggers(&file, "DELETE FROM todo WHERE id = 'a'");
    let done = litemesh(&["doctor", &file, "--repair"]);
    assert_eq!(done.code, Some(1));
    for words in ["clock-without-row in table todo: 1 finding", "by hand: ", "--bury", "takes a decision"] {
        assert!(done.stdout.contains(words), "{words}: {done:?}");
    }
    let text = litemesh(&["doctor", &file, "--repair", "--bury"]).ok();
    assert!(text.contains("repaired clock-without-row in table todo: 1") && text.contains("is sound"), "{text}");
    let deleted = rows(&file, "SELECT cl FROM crsql_changes WHERE cid = '-1'");
    assert_eq!(deleted, json!([{ "cl": 2 }]));
}

#[test]
fn notes_are_no_faults() {
    let files = Files::new();
    let file = files.database("a.db");
    past_triggers(&file, "INSERT INTO todo__crsql_pks (id) VALUES ('lost')");
    let text = litemesh(&["doctor", &file]).ok();
    assert!(text.contains("info     key-without-clocks in table todo") && text.contains("is sound"), "{text}");
}

/// What came of a catch-up whose sender is gone for good is not hidden for ever.
#[test]
fn what_is_staged_can_be_brought_out() {
    let files = Files::new();
    let (from, file) = (files.database("a.db"), files.database("b.db"));
    litemesh(&["sql", &from, "INSERT INTO todo (id) VALUES ('a')"]).ok();
    let sender = Engine::open(&from).unwrap();
    let changes = sender.changes_since(&Cursor::new()).next().unwrap().unwrap().changes;
    let site = sender.site().unwrap();
    let position = Position { version: sender.db_version().unwrap(), ..Position::default() };
    let mut engine = Engine::open(&file).unwrap();
    let whole = Reach { position, ..Reach::default() };
    engine.stage(site, &Reach::default(), &whole, &changes, u64::MAX).unwrap();
    // And of another transaction a part.
    let part = Reach { place: Some(Place([1].into())), ..whole.clone() };
    engine.stage(site, &whole, &part, &changes, u64::MAX).unwrap();
    drop(engine);
    let text = litemesh(&["doctor", &file, "--repair"]).ok();
    for words in ["info     staged-changes", &site.to_string(), "--merge-staged", "is sound"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(rows(&file, "SELECT id FROM todo"), json!([]));
    let text = litemesh(&["doctor", &file, "--merge-staged"]).ok();
    assert!(text.contains("info     staged-changes"), "the part stays: {text}");
    assert_eq!(rows(&file, "SELECT id FROM todo"), json!([{ "id": "a" }]));
    let text = litemesh(&["doctor", &file, "--forget-staged"]).ok();
    assert!(text.contains("repaired staged-changes: 1"), "{text}");
    assert_eq!(rows(&file, "SELECT id FROM todo"), json!([{ "id": "a" }]));
    assert_eq!(Engine::open(&file).unwrap().position(site).unwrap(), position, "sent again from where it was merged");
    assert_eq!(litemesh(&["doctor", &file]).ok(), format!("{file} is sound\n"));
}

#[test]
fn a_damaged_file_is_not_repaired() {
    let files = Files::new();
    let file = files.database("a.db");
    let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000)
                  INSERT INTO todo SELECT 'row ' || i, 'title', 0 FROM n";
    litemesh(&["sql", &file, insert]).ok();
    past_triggers(&file, "INSERT INTO todo (id) VALUES ('x')");
    // An index entry that is gone: the rows of the table are whole, the file is not.
    let damage = "PRAGMA writable_schema = 1; CREATE INDEX i ON todo (title);
        UPDATE sqlite_master SET sql = 'CREATE INDEX i ON todo (done)' WHERE name = 'i'";
    litemesh(&["sql", &file, damage]).ok();
    let (found, code) = report(&litemesh(&["doctor", &file, "--repair", "--json"]));
    assert_eq!((code, &found["sound"], &found["repaired"]), (Some(1), &json!(false), &json!([])));
    assert!(found["integrity"][0].as_str().unwrap().contains("index i"), "{found}");
    assert_eq!(found["groups"][0]["kind"], "row-without-clocks");
    let text = litemesh(&["doctor", &file]).stdout;
    assert!(text.contains("the file is damaged") && text.contains("restore a backup"), "{text}");
}
