//! `test_site_id_lookaside.py`: sites are kept once, and clocks name them by number.

use litemesh_engine::Engine;

use crate::{FOO, check, check_clocks, replica, run};

fn merge(engine: &Engine, key: u8, site: u8) {
    run(
        engine,
        &format!(
            "INSERT INTO crsql_changes VALUES ('foo', x'0109{key:02x}', 'b', 1, 1, 1, x'{}', 1, 0)",
            format!("{site:02x}").repeat(16)
        ),
    );
}

/// test_site_id_lookaside.py: a remote insert stores ordinal 1 and the id in the site table, and gives it back.
#[test]
fn a_remote_site_gets_the_first_ordinal() {
    let engine = replica(1, FOO);
    merge(&engine, 1, 0xab);
    check_clocks(&engine, &["1 b 1 1 1 0"]);
    check(&engine, "SELECT substr(site_id, 1, 1), ordinal FROM crsql_site_id ORDER BY 2", &["01 0", "ab 1"]);
    check(&engine, "SELECT DISTINCT site_id FROM crsql_changes", &[&"ab".repeat(16)]);
}

/// test_site_id_lookaside.py: filter by site id; local rows return the own id, 3 of 4.
#[test]
fn changes_can_be_asked_for_by_their_author() {
    let engine = replica(1, &format!("{FOO}INSERT INTO foo VALUES (7, 1), (8, 1), (9, 1);"));
    merge(&engine, 1, 0xab);
    let by = |site: &str| format!("SELECT pk FROM crsql_changes WHERE site_id = {site}");
    check(&engine, &by(&format!("x'{}'", "ab".repeat(16))), &["010901"]);
    check(&engine, &by("crsql_site_id()"), &["010907", "010908", "010909"]);
    check(&engine, &by("x'00'"), &[]);
}

/// test_site_id_lookaside.py: ordinals are stable: two remote ids have 1 and 2, and there are no others.
#[test]
fn a_site_keeps_its_ordinal() {
    let engine = replica(1, FOO);
    for (key, site) in [(1, 0xab), (2, 0xcd), (3, 0xab), (4, 0xcd), (5, 0x01)] {
        merge(&engine, key, site);
    }
    check(&engine, "SELECT key, site_id FROM foo__crsql_clock", &["1 1", "2 2", "3 1", "4 2", "5 0"]);
    check(&engine, "SELECT ordinal FROM crsql_site_id ORDER BY 1", &["0", "1", "2"]);
}
