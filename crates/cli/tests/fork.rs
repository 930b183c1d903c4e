//! `litemesh fork`: a copied file becomes a site of its own.

mod support;

use serde_json::json;
use support::{Files, litemesh, rows};

#[test]
fn a_copy_gets_a_site_id_and_keeps_everything_else() {
    let files = Files::new();
    let (file, copy) = (files.database("a.db"), files.path("copy.db"));
    litemesh(&["sql", &file, "INSERT INTO todo (id) VALUES ('a'), ('b'); DELETE FROM todo WHERE id = 'b'"]).ok();
    litemesh(&["sql", &file, &format!("VACUUM INTO '{copy}'")]).ok();
    let all = "SELECT * FROM crsql_changes ORDER BY db_version, seq, \"table\", pk, cid";
    let (site, changes) = (litemesh(&["status", &file, "--json"]).json()["site_id"].clone(), rows(&file, all));

    let forked = litemesh(&["fork", &copy, "--json"]).json();
    assert_eq!((&forked["site_id_before"], &forked["version"]), (&site, &json!(2)));
    let status = litemesh(&["status", &copy, "--json"]).json();
    assert_eq!(status["site_id"], forked["site_id"]);
    assert_ne!(status["site_id"], site);
    assert_eq!(rows(&copy, all), changes);
    assert_eq!(rows(&copy, "PRAGMA journal_mode"), json!([{ "journal_mode": "wal" }]));
    litemesh(&["diff", &file, &copy]).ok();
    litemesh(&["doctor", &copy]).ok();
    // The original is what it was.
    assert_eq!(litemesh(&["status", &file, "--json"]).json()["site_id"], site);

    let text = litemesh(&["fork", &copy]).ok();
    assert!(text.contains("is a site of its own") && text.contains(forked["site_id"].as_str().unwrap()), "{text}");
}

#[test]
fn what_is_no_copy_is_not_forked() {
    let files = Files::new();
    let file = files.path("plain.db");
    litemesh::rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let bytes = std::fs::read(&file).unwrap();
    litemesh(&["fork", &file]).fails(3, &["has no site id yet", "nothing to fork"]);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}
