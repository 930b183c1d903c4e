//! Merging: the golden vectors of `crsqlite-compat.md` 5.7, by plain SQL and by the native way, and what both must refuse.

mod support;

use litemesh_engine::proto::limits::{VERSION_JUMP_MAX, VERSION_STEP_MAX};
use litemesh_engine::proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
use litemesh_engine::{Engine, MergeError, MergeProgress, Witness};
use support::{ask, refusal};

const AUTHOR: SiteId = SiteId::from_bytes([0xaa; 16]);

fn foo() -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b)").unwrap();
    engine.replicate("foo").unwrap();
    engine
}

/// `(cid, val, col_version, db_version, cl, seq)` for the row 1.
type Incoming = (&'static str, Option<i64>, i64, i64, i64, i64);

fn change((cid, val, col_version, db_version, cl, seq): Incoming) -> Change {
    Change {
        table: "foo".into(),
        key: PackedKey::pack(&[Value::Integer(1)]).unwrap(),
        column: Column::from(cid),
        value: val.map_or(Value::Null, Value::Integer),
        col_version: ColVersion::new(col_version),
        db_version: DbVersion::new(db_version),
        site: AUTHOR,
        causal_length: CausalLength::new(cl),
        seq: Seq::new(seq),
    }
}

fn merge_by_sql(engine: &Engine, change: &Change) -> i64 {
    let value: rusqlite::types::Value = match change.value {
        Value::Integer(value) => value.into(),
        _ => rusqlite::types::Value::Null,
    };
    engine
        .connection()
        .execute(
            "INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                &*change.table,
                change.key.as_bytes(),
                change.column.as_str(),
                value,
                change.col_version.get(),
                change.db_version.get(),
                change.site.as_bytes(),
                change.causal_length.get(),
                change.seq.get(),
            ),
        )
        .unwrap();
    engine.connection().last_insert_rowid()
}

use litemesh_engine::rusqlite;

type Clock = (i64, String, i64, i64, i64, i64);

fn clocks(engine: &Engine) -> Vec<Clock> {
    let mut statement = engine.connection().prepare("SELECT * FROM foo__crsql_clock ORDER BY key, col_name").unwrap();
    let rows =
        statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn row(engine: &Engine) -> Option<Option<i64>> {
    engine.connection().query_row("SELECT b FROM foo WHERE a = 1", [], |r| r.get(0)).ok()
}

struct Step {
    incoming: Incoming,
    clocks: &'static [(i64, &'static str, i64, i64, i64, i64)],
    row: Option<Option<i64>>,
    version: i64,
    rowid: i64,
}

fn check(before: &str, steps: &[Step]) {
    let (by_sql, mut native) = (foo(), foo());
    by_sql.connection().execute_batch(before).unwrap();
    native.connection().execute_batch(before).unwrap();
    for step in steps {
        let change = change(step.incoming);
        let rowid = merge_by_sql(&by_sql, &change);
        assert_eq!(rowid, step.rowid, "rowid after {:?}", step.incoming);
        let merged = native.merge(&[change], &MergeProgress::default()).unwrap();
        assert_eq!(merged.won > 0, step.rowid != 0, "{:?}", step.incoming);
        for engine in [&by_sql, &native] {
            let expected: Vec<Clock> =
                step.clocks.iter().map(|(k, n, c, d, s, q)| (*k, (*n).to_owned(), *c, *d, *s, *q)).collect();
            assert_eq!(clocks(engine), expected, "after {:?}", step.incoming);
            assert_eq!(row(engine), step.row, "after {:?}", step.incoming);
            assert_eq!(engine.db_version().unwrap().get(), step.version, "after {:?}", step.incoming);
        }
    }
}

const INSERT: &str = "INSERT INTO foo VALUES (1, 2)";

#[test]
fn golden_vectors_of_a_new_row() {
    check(
        "",
        &[Step {
            incoming: ("b", Some(7), 1, 9, 1, 4),
            clocks: &[(1, "b", 1, 9, 1, 4)],
            row: Some(Some(7)),
            version: 9,
            rowid: 1,
        }],
    );
    check(
        "",
        &[Step {
            incoming: ("b", Some(7), 4, 4, 3, 6),
            clocks: &[(1, "-1", 3, 4, 1, 6), (1, "b", 4, 4, 1, 6)],
            row: Some(Some(7)),
            version: 4,
            rowid: 1,
        }],
    );
    check(
        "",
        &[
            Step {
                incoming: ("-1", None, 1, 5, 1, 0),
                clocks: &[(1, "-1", 1, 5, 1, 0)],
                row: Some(None),
                version: 5,
                rowid: 1,
            },
            Step {
                incoming: ("b", Some(3), 1, 5, 1, 1),
                clocks: &[(1, "-1", 1, 5, 1, 0), (1, "b", 1, 6, 1, 1)],
                row: Some(Some(3)),
                version: 6,
                rowid: 1,
            },
        ],
    );
}

#[test]
fn golden_vectors_of_lives() {
    check(
        INSERT,
        &[Step {
            incoming: ("b", Some(7), 4, 4, 3, 6),
            clocks: &[(1, "-1", 3, 4, 1, 6), (1, "b", 4, 4, 1, 6)],
            row: Some(Some(7)),
            version: 4,
            rowid: 1,
        }],
    );
    check(
        INSERT,
        &[
            Step {
                incoming: ("-1", None, 3, 1, 3, 2),
                clocks: &[(1, "-1", 3, 2, 1, 2), (1, "b", 0, 2, 0, 0)],
                row: Some(Some(2)),
                version: 2,
                rowid: 1,
            },
            Step {
                incoming: ("b", Some(5), 1, 1, 3, 3),
                clocks: &[(1, "-1", 3, 2, 1, 2), (1, "b", 1, 3, 1, 3)],
                row: Some(Some(5)),
                version: 3,
                rowid: 1,
            },
        ],
    );
    check(
        "INSERT INTO foo VALUES (1, 2); DELETE FROM foo",
        &[Step {
            incoming: ("b", Some(5), 1, 1, 3, 3),
            clocks: &[(1, "-1", 3, 3, 1, 3), (1, "b", 1, 3, 1, 3)],
            row: Some(Some(5)),
            version: 3,
            rowid: 1,
        }],
    );
    let dead: &[_] = &[(1, "-1", 2, 2, 1, 0)];
    let step = |incoming, rowid| Step { incoming, clocks: dead, row: None, version: 2, rowid };
    check(
        INSERT,
        &[step(("-1", None, 2, 1, 2, 0), 1), step(("-1", None, 2, 5, 2, 0), 0), step(("b", Some(9), 9, 9, 1, 0), 0)],
    );
    check(
        "",
        &[Step {
            incoming: ("-1", None, 2, 5, 2, 0),
            clocks: &[(1, "-1", 2, 5, 1, 0)],
            row: None,
            version: 5,
            rowid: 1,
        }],
    );
}

#[test]
fn golden_vectors_of_ties() {
    check(
        INSERT,
        &[
            Step {
                incoming: ("b", Some(2), 1, 5, 1, 0),
                clocks: &[(1, "b", 1, 1, 0, 0)],
                row: Some(Some(2)),
                version: 1,
                rowid: 0,
            },
            Step {
                incoming: ("b", Some(1), 1, 5, 1, 0),
                clocks: &[(1, "b", 1, 1, 0, 0)],
                row: Some(Some(2)),
                version: 1,
                rowid: 0,
            },
            Step {
                incoming: ("b", Some(3), 1, 5, 1, 0),
                clocks: &[(1, "b", 1, 5, 1, 0)],
                row: Some(Some(3)),
                version: 5,
                rowid: 1,
            },
            Step {
                incoming: ("b", Some(0), 2, 3, 1, 1),
                clocks: &[(1, "b", 2, 6, 1, 1)],
                row: Some(Some(0)),
                version: 6,
                rowid: 1,
            },
        ],
    );
}

/// VER-4 [V]: several remote versions in one SQL transaction.
#[test]
fn sql_merges_of_one_transaction_share_the_rising_version() {
    let engine = foo();
    engine.connection().execute_batch("INSERT INTO foo VALUES (90, 1); INSERT INTO foo VALUES (91, 1); BEGIN").unwrap();
    for (key, version) in [(1, 1), (2, 7), (3, 3), (4, 50), (5, 8)] {
        let mut change = change(("b", Some(1), 1, version, 1, 0));
        change.key = PackedKey::pack(&[Value::Integer(key)]).unwrap();
        merge_by_sql(&engine, &change);
    }
    engine.connection().execute_batch("INSERT INTO foo VALUES (6, 6); COMMIT").unwrap();
    let mut statement = engine
        .connection()
        .prepare("SELECT c.db_version FROM foo__crsql_clock c JOIN foo__crsql_pks k ON k.__crsql_key = c.key WHERE k.a < 90 ORDER BY k.a")
        .unwrap();
    let versions: Vec<i64> = statement.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(versions, [3, 7, 7, 50, 50, 50]);
    // Every stamp of a foreign site has its origin; where versions share one, the highest is kept.
    let mut statement =
        engine.connection().prepare("SELECT local_version, version FROM litemesh_origin ORDER BY 1").unwrap();
    let origins: Vec<(i64, i64)> =
        statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
    assert_eq!(origins, [(3, 1), (7, 7), (50, 50)]);
}

fn refuse(edit: impl Fn(&mut Change)) -> MergeError {
    let mut engine = foo();
    let good = change(("b", Some(7), 1, 9, 1, 4));
    let mut bad = change(("b", Some(8), 2, 10, 1, 4));
    edit(&mut bad);
    let error = engine.merge(&[good, bad], &MergeProgress::default()).unwrap_err();
    assert_eq!(row(&engine), None, "nothing of the batch may be applied");
    assert_eq!(clocks(&engine), []);
    assert_eq!(engine.db_version().unwrap().get(), 0);
    assert!(error.to_string().contains("Invalid change at index 1"), "{error}");
    assert!(error.is_content());
    error
}

/// `known-failures.md` C3: one change with the last version there is stops an original for good.
#[test]
fn bad_changes_are_refused_whole_and_named() {
    assert!(matches!(refuse(|c| c.table = "nope".into()), MergeError::UnknownTable { .. }));
    assert!(matches!(refuse(|c| c.column = Column::from("nope")), MergeError::UnknownColumn { .. }));
    assert!(matches!(refuse(|c| c.column = Column::from("a")), MergeError::UnknownColumn { .. }));
    assert!(matches!(refuse(|c| c.key = PackedKey::from_bytes([])), MergeError::Key { .. }));
    assert!(matches!(refuse(|c| c.key = PackedKey::from_bytes([0])), MergeError::KeyArity { .. }));
    assert!(matches!(
        refuse(|c| c.key = PackedKey::pack(&[Value::Integer(1), Value::Integer(2)]).unwrap()),
        MergeError::KeyArity { .. }
    ));
    assert!(matches!(refuse(|c| c.key = PackedKey::pack(&[Value::Null]).unwrap()), MergeError::NullKey { .. }));
    assert!(matches!(refuse(|c| c.db_version = DbVersion::new(i64::MAX)), MergeError::AbsurdVersion { .. }));
    assert!(matches!(refuse(|c| c.col_version = ColVersion::new(1 << 53)), MergeError::AbsurdCount { .. }));
    assert!(matches!(refuse(|c| c.causal_length = CausalLength::new(i64::MAX)), MergeError::AbsurdCount { .. }));
    assert!(matches!(refuse(|c| c.seq = Seq::new(i64::MAX)), MergeError::AbsurdCount { .. }));
    assert!(matches!(refuse(|c| c.key = PackedKey::pack(&[Value::text("x")]).unwrap()), MergeError::Constraint { .. }));
}

/// MRG-11: a change that loses, and one that deletes, does not need its column.
#[test]
fn an_unknown_column_is_no_fault_of_a_change_that_writes_none() {
    let mut engine = foo();
    engine
        .connection()
        .execute_batch("INSERT INTO foo VALUES (1, 2); DELETE FROM foo; INSERT INTO foo VALUES (1, 2)")
        .unwrap();
    let version = engine.db_version().unwrap();
    let (lost, deleting) = (change(("nope", Some(7), 9, 9, 1, 0)), change(("nope", None, 4, 9, 4, 0)));
    engine.merge(&[lost], &MergeProgress::default()).unwrap();
    assert_eq!((row(&engine), engine.db_version().unwrap()), (Some(Some(2)), version));
    engine.merge(&[deleting], &MergeProgress::default()).unwrap();
    assert_eq!(row(&engine), None);
}

/// MRG-14 and MRG-15: SQLite undoes a failing statement of one row, inside a transaction, only as far as it wrote itself. So
/// nothing is written before what can fail.
#[test]
fn a_merge_that_fails_inside_a_transaction_leaves_nothing() {
    let engine = Engine::open_in_memory().unwrap();
    let connection = engine.connection();
    connection.execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b NOT NULL DEFAULT 0)").unwrap();
    engine.replicate("foo").unwrap();
    connection.execute_batch("BEGIN").unwrap();
    let merge = "INSERT INTO crsql_changes VALUES ('foo', x'010901', 'b', NULL, 1, 9, x'00112233445566778899aabbccddeeff', 3, 0)";
    assert!(refusal(connection, merge).contains("NOT NULL constraint failed"));
    for table in ["foo", "foo__crsql_pks", "foo__crsql_clock", "litemesh_origin", "crsql_site_id WHERE ordinal > 0"] {
        assert_eq!(ask::<i64>(connection, &format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
    assert_eq!(ask::<i64>(connection, "SELECT crsql_next_db_version()"), 1);
    connection.execute_batch("INSERT INTO foo VALUES (1, 1); COMMIT").unwrap();
    assert_eq!(clocks(&engine), [(1, "b".to_owned(), 1, 1, 0, 0)], "recorded, under the first version");
}

/// BUG-16: a key of another type is the same row, as it is for SQLite.
#[test]
fn key_affinity_is_applied_before_the_lookup() {
    let mut engine = foo();
    engine.connection().execute_batch(INSERT).unwrap();
    let mut by_text = change(("b", Some(9), 5, 3, 1, 0));
    by_text.key = PackedKey::pack(&[Value::text("1")]).unwrap();
    engine.merge(&[by_text], &MergeProgress::default()).unwrap();
    assert_eq!(row(&engine), Some(Some(9)));
    let keys: i64 = engine.connection().query_row("SELECT count(*) FROM foo__crsql_pks", [], |r| r.get(0)).unwrap();
    assert_eq!(keys, 1);
}

/// MRG-13 and MRG-15: triggers of the user run during merges, ours do not; an error leaves tracking on.
#[test]
fn sync_bit_is_set_only_while_merging() {
    let mut engine = foo();
    engine
        .connection()
        .execute_batch(
            "CREATE TABLE log (bit); CREATE TRIGGER t AFTER INSERT ON foo BEGIN
             INSERT INTO log VALUES (crsql_internal_sync_bit()); END;
             CREATE TRIGGER u BEFORE UPDATE ON foo WHEN NEW.b = 666 BEGIN SELECT raise(ABORT, 'no'); END;",
        )
        .unwrap();
    engine.merge(&[change(("b", Some(7), 1, 9, 1, 4))], &MergeProgress::default()).unwrap();
    let error = engine.merge(&[change(("b", Some(666), 2, 10, 1, 4))], &MergeProgress::default()).unwrap_err();
    assert!(matches!(error, MergeError::Constraint { .. }), "{error}");
    engine.connection().execute_batch("INSERT INTO foo VALUES (2, 2)").unwrap();
    let mut statement = engine.connection().prepare("SELECT bit FROM log").unwrap();
    let bits: Vec<i64> = statement.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(bits, [1, 0]);
    assert_eq!(clocks(&engine).len(), 2);
}

/// Claims of sites that nobody has heard of fill no disk, and leave us a cursor that remotes still take.
#[test]
fn claims_of_more_sites_than_a_cursor_may_name_are_left_out() {
    use litemesh_engine::proto::limits::CURSOR_SITES_MAX;
    let mut engine = foo();
    let fill = format!(
        "WITH RECURSIVE n(i) AS (VALUES (2) UNION ALL SELECT i + 1 FROM n WHERE i < {CURSOR_SITES_MAX})
         INSERT INTO litemesh_cursor (site_id, version) SELECT randomblob(16), 1 FROM n"
    );
    engine.connection().execute_batch(&fill).unwrap();
    let mut claim = |sites: &[u8], version: i64| {
        let cursor = sites.iter().map(|site| (SiteId::from_bytes([*site; 16]), DbVersion::new(version))).collect();
        engine.merge(&[], &MergeProgress { cursor, ..MergeProgress::default() }).unwrap();
    };
    claim(&[1], 5);
    claim(&[1, 2, 3], 6);
    let count: i64 = ask(engine.connection(), "SELECT count(*) FROM litemesh_cursor");
    assert_eq!(count, i64::try_from(CURSOR_SITES_MAX).unwrap());
    let held = engine.cursor().unwrap();
    assert_eq!(held.get(&SiteId::from_bytes([1; 16])), DbVersion::new(6), "who is known goes on");
    assert!(!held.contains(&SiteId::from_bytes([2; 16])));
}

/// All that a remote forges takes a small part of the versions, and never the last of them; who is honest goes on meanwhile
/// (`known-failures.md` C3).
#[test]
fn a_version_jumps_so_far_and_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    let open = || Engine::open(&file).unwrap();
    let mut written = 0;
    let mut merge = |engine: &mut Engine, version: i64| {
        written += 1;
        let result = engine.merge(&[change(("b", Some(1), written, version, 1, 0))], &MergeProgress::default());
        match result {
            Ok(_) => {
                assert_eq!(engine.db_version().unwrap().get(), version);
                true
            }
            Err(MergeError::AbsurdVersion { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    };
    let mut engine = open();
    engine.connection().execute_batch("CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b)").unwrap();
    engine.replicate("foo").unwrap();
    engine.connection().execute_batch("INSERT INTO foo VALUES (2, 2)").unwrap();
    engine = open();
    for opening in 1..4 {
        let opened = engine.db_version().unwrap().get();
        assert!(!merge(&mut engine, opened + VERSION_JUMP_MAX + 1));
        assert!(merge(&mut engine, opened + VERSION_JUMP_MAX), "opening {opening}");
        // Not once more, but as far as an honest writer comes while away.
        for _ in 0..3 {
            let known = engine.db_version().unwrap().get();
            assert!(!merge(&mut engine, known + VERSION_JUMP_MAX) && !merge(&mut engine, known + VERSION_STEP_MAX + 1));
            assert!(merge(&mut engine, known + VERSION_STEP_MAX));
            engine.connection().execute_batch("UPDATE foo SET b = b + 1 WHERE a = 2").unwrap();
        }
        engine = open();
    }
}

/// What remotes claim to have seen of us raises our version once, and not with each claim again.
#[test]
fn claims_of_our_own_versions_use_up_one_jump_however_many_there_are() {
    let mut engine = foo();
    let opened = engine.db_version().unwrap().get();
    let mut claim = |seen: i64| {
        let seen = DbVersion::new(seen);
        engine.raise_version(Witness { remote: AUTHOR, seen, written: seen, newest: seen }).unwrap()
    };
    assert!(!claim(opened + VERSION_JUMP_MAX + 1));
    // One after the other, as remotes come that have seen more.
    assert!(claim(opened + 5) && claim(opened + VERSION_JUMP_MAX - 1) && claim(opened + VERSION_JUMP_MAX));
    assert!(!claim(opened + VERSION_JUMP_MAX + 1) && !claim(opened + 2 * VERSION_JUMP_MAX));
    assert_eq!(engine.db_version().unwrap().get(), opened + VERSION_JUMP_MAX);
    engine.connection().execute_batch("INSERT INTO foo VALUES (2, 2)").unwrap();
}
