//! Vectors of `crsqlite-compat.md` that have no better place: each natively and by SQL.
//!
//! The others: packing (2.2) and malformed keys (2.3) alone in `litemesh-proto`, the trace of local writes (4.6) in
//! `capture.rs`, merges (5.7) in `merge.rs`, keys of ordered lists (FR-4) beside `fractional/key.rs`.

mod support;

use litemesh_engine::proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
use litemesh_engine::rusqlite::params_from_iter;
use litemesh_engine::{Engine, MergeProgress};
use support::{INSERT, Parameter, ask, merge_by_sql, value};

fn open(create: &str) -> Engine {
    let engine = Engine::open_in_memory().unwrap();
    engine.connection().execute_batch(create).unwrap();
    engine
}

fn change(key: PackedKey, value: Value) -> Change {
    Change {
        table: "t".into(),
        key,
        column: Column::from("v"),
        value,
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(5),
        site: SiteId::from_bytes([0xaa; 16]),
        causal_length: CausalLength::FIRST,
        seq: Seq::new(0),
    }
}

/// 5.4, CMP-1 and CMP-2: every type against every other, as the value that is held and as the one that comes.
#[test]
fn equal_versions_are_decided_by_type_and_value() {
    let descending = [
        Value::Integer(7),
        Value::Integer(0),
        Value::Real(99.9),
        Value::Real(f64::NEG_INFINITY),
        Value::text("b"),
        Value::text("aa"),
        Value::text("a"),
        Value::text(""),
        Value::blob([1]),
        Value::blob([0, 255]),
        Value::blob([]),
        Value::Null,
    ];
    let check = |held: &Value, incoming: &Value, wins: bool| {
        let before = || {
            let engine = open("CREATE TABLE t (k INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('t')");
            engine.connection().execute("INSERT INTO t VALUES (1, ?1)", [Parameter(held)]).unwrap();
            engine
        };
        let change = change(PackedKey::pack(&[Value::Integer(1)]).unwrap(), incoming.clone());
        let (mut native, by_sql) = (before(), before());
        let merged = native.merge(std::slice::from_ref(&change), &MergeProgress::default()).unwrap();
        assert_eq!(merged.won, usize::from(wins), "{incoming:?} against {held:?}");
        merge_by_sql(by_sql.connection(), &[change]);
        for engine in [&native, &by_sql] {
            let stored =
                engine.connection().query_row("SELECT v FROM t", [], |row| Ok(value(row.get_ref(0)?))).unwrap();
            assert_eq!(&stored, if wins { incoming } else { held }, "{incoming:?} against {held:?}");
        }
    };
    for (i, held) in descending.iter().enumerate() {
        for (j, incoming) in descending.iter().enumerate() {
            check(held, incoming, j < i);
        }
    }
    // Zeros are equal whatever their sign, and 1 is not 1.0.
    check(&Value::Real(0.0), &Value::Real(-0.0), false);
    check(&Value::Real(-0.0), &Value::Real(0.0), false);
    check(&Value::Real(1.0), &Value::Integer(1), true);
    check(&Value::Integer(1), &Value::Real(1.0), false);
}

/// 2.3: each malformed key of a change is refused, and nothing is written; where CRSqlite aborts, or writes to another row.
#[test]
fn malformed_keys_in_changes_are_refused() {
    let create = "CREATE TABLE t (k TEXT NOT NULL, l NOT NULL, v, PRIMARY KEY (k, l)); SELECT crsql_as_crr('t');
                  INSERT INTO t VALUES ('k', 1, 'held')";
    for (bytes, gist) in [
        (&b""[..], "ends early"),
        (&[0x02, 0x49, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x09, 1], "integer of 9 bytes"),
        (&[0x02, 0xf9, 0, 0], "integer of 31 bytes"),
        (&[0x02, 0x0b, 1, b'k'], "ends early"),
        (&[0x02, 0x0b, 200, b'k', 0x09, 1], "ends early"),
        (&[0x02, 0x0b, 1, b'k', 0x08], "unknown tag"),
        (&[0x02, 0x0b, 1, b'k', 0x0e], "unknown tag"),
        (&[0x02, 0x0b, 1, b'k', 0x0f], "unknown tag"),
        (&[0x02, 0x0b, 1, b'k', 0x09, 1, 0], "goes on after its last value"),
        (&[0x00], "2 primary key columns, the change has 0"),
        (&[0x01, 0x0b, 1, b'k'], "2 primary key columns, the change has 1"),
        (&[0x03, 0x0b, 1, b'k', 0x09, 1, 0x09, 1], "2 primary key columns, the change has 3"),
        (&[0x02, 0x0b, 1, b'k', 0x05], "NULL in the primary key"),
    ] {
        let change = change(PackedKey::from_bytes(bytes), Value::text("new"));
        let (mut native, by_sql) = (open(create), open(create));
        let error = native.merge(std::slice::from_ref(&change), &MergeProgress::default()).unwrap_err();
        assert!(error.is_content() && error.to_string().contains(gist), "{bytes:02x?}: {error}");
        let values = [
            Value::text("t"),
            Value::blob(bytes),
            Value::text("v"),
            Value::text("new"),
            Value::Integer(9),
            Value::Integer(9),
            Value::blob([0xaa; 16]),
            Value::Integer(1),
            Value::Integer(0),
        ];
        let error = by_sql.connection().execute(INSERT, params_from_iter(values.iter().map(Parameter))).unwrap_err();
        assert!(error.to_string().contains(gist), "{bytes:02x?}: {error}");
        for engine in [&native, &by_sql] {
            let rows =
                "SELECT group_concat(k || l || v) || (SELECT count(*) FROM t__crsql_pks) || crsql_db_version() FROM t";
            assert_eq!(ask::<String>(engine.connection(), rows), "k1held11", "{bytes:02x?}");
        }
    }
    // NULL instead of bytes.
    let engine = open(create);
    let null = "INSERT INTO crsql_changes VALUES ('t', NULL, 'v', 1, 9, 9, x'aa', 1, 0)";
    assert!(support::refusal(engine.connection(), null).contains("ends early"));
}

/// 2.3 and PK-6: text that is no UTF-8 is a key like any other, and integers may be wider than needed.
#[test]
fn unusual_keys_find_their_rows() {
    let create = "CREATE TABLE t (k TEXT NOT NULL, l NOT NULL, v, PRIMARY KEY (k, l)); SELECT crsql_as_crr('t')";
    let (mut native, by_sql) = (open(create), open(create));
    let narrow = change(PackedKey::from_bytes([0x02, 0x0b, 2, 0xff, b'k', 0x09, 1]), Value::Integer(1));
    let mut wide = change(PackedKey::from_bytes([0x02, 0x13, 0, 2, 0xff, b'k', 0x19, 0, 0, 1]), Value::Integer(2));
    wide.col_version = ColVersion::new(2);
    for change in [&narrow, &wide] {
        native.merge(std::slice::from_ref(change), &MergeProgress::default()).unwrap();
        merge_by_sql(by_sql.connection(), std::slice::from_ref(change));
    }
    for engine in [&native, &by_sql] {
        let rows = "SELECT group_concat(hex(k) || l || v) FROM t";
        assert_eq!(ask::<String>(engine.connection(), rows), "FF6B12");
        let sent = "SELECT group_concat(hex(pk)) FROM crsql_changes";
        assert_eq!(ask::<String>(engine.connection(), sent), "020B02FF6B0901");
    }
}
