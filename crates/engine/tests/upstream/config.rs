//! `test_config.py`.

use litemesh_engine::Engine;

use crate::{check, run};

/// test_config.py: set returns the value, stores it under a `config.` key, get returns it; it survives a reconnect. And
/// CFG-3, the FIX: a connection that is open already sees it, too.
#[test]
fn settings_are_kept_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (engine, other) = (Engine::open(&path).unwrap(), Engine::open(&path).unwrap());
    const GET: &str = "SELECT crsql_config_get('merge-equal-values')";
    check(&engine, GET, &["0"]);
    check(&engine, "SELECT crsql_config_set('merge-equal-values', 1)", &["1"]);
    check(&engine, GET, &["1"]);
    check(&engine, "SELECT value FROM crsql_master WHERE key = 'config.merge-equal-values'", &["1"]);
    check(&other, GET, &["1"]);
    drop(engine);
    check(&Engine::open(&path).unwrap(), GET, &["1"]);
    run(&other, "SELECT crsql_config_set('merge-equal-values', 0)");
    check(&Engine::open(&path).unwrap(), GET, &["0"]);
}
