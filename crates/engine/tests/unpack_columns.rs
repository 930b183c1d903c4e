//! `crsql_unpack_columns` (`crsqlite-compat.md` 11.1).

mod support;

use litemesh_engine::Engine;
use litemesh_engine::proto::{PackedKey, Value};
use litemesh_engine::rusqlite::{Connection, ErrorCode};
use litemesh_testkit::for_seeds;
use support::{Parameter, ask, refusal, value};

fn unpack(connection: &Connection, package: &[u8]) -> Vec<Value> {
    let mut statement = connection.prepare("SELECT cell FROM crsql_unpack_columns WHERE package = ?1").unwrap();
    let rows = statement.query_map([package], |row| Ok(value(row.get_ref(0)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// A.2 pack_columns.rs: the documented bytes, and typed cells in their order.
#[test]
fn cells_come_out_as_they_went_in() {
    let engine = Engine::open_in_memory().unwrap();
    let connection = engine.connection();
    let packed = "SELECT hex(crsql_pack_columns(12, 'str', x'010203'))";
    assert_eq!(ask::<String>(connection, packed), "03090C0B037374720C03010203");
    let cells = "SELECT group_concat(rowid || ':' || typeof(cell) || ':' || quote(cell), ' ')
                 FROM crsql_unpack_columns(crsql_pack_columns(12, 'str', x'010203', NULL, 1.5))";
    assert_eq!(ask::<String>(connection, cells), "0:integer:12 1:text:'str' 2:blob:X'010203' 3:null:NULL 4:real:1.5");
    let numbers = [0, 10_000_000, -2_500_000, i64::MAX, i64::MIN].map(Value::Integer);
    assert_eq!(unpack(connection, PackedKey::pack(&numbers).unwrap().as_bytes()), numbers);
    assert_eq!(unpack(connection, &[0]), []);
}

/// pack_columns.rs: there and back.
#[test]
fn pack_and_unpack_are_inverse() {
    let engine = Engine::open_in_memory().unwrap();
    let connection = engine.connection();
    for_seeds(0x9ac6, 200, |rng| {
        let values: Vec<Value> = (0..rng.usize(..6))
            .map(|_| match rng.u8(..6) {
                0 => Value::Null,
                1 => Value::Integer(rng.i64(..) >> rng.u8(..64)),
                2 => Value::Real(rng.f64() * 1e9 - 5e8),
                3 => Value::Text((0..rng.usize(..300)).map(|_| rng.u8(..)).collect()),
                4 => Value::text("ü".repeat(rng.usize(..200))),
                _ => Value::Blob((0..rng.usize(..300)).map(|_| rng.u8(..)).collect()),
            })
            .collect();
        let marks = vec!["?"; values.len()].join(", ");
        let parameters: Vec<_> = values.iter().map(Parameter).collect();
        let packed: Vec<u8> = connection
            .query_row(&format!("SELECT crsql_pack_columns({marks})"), rusqlite::params_from_iter(parameters), |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(packed, PackedKey::pack(&values).unwrap().as_bytes());
        assert_eq!(unpack(connection, &packed), values);
    });
}

use litemesh_engine::rusqlite;

/// UV-2, the FIX: every other constraint works, in joins as well, and `package` can be selected.
#[test]
fn it_is_a_table_like_any_other() {
    let engine = Engine::open_in_memory().unwrap();
    let connection = engine.connection();
    let package = "crsql_pack_columns(12, 13, 12, 'a')";
    let count = |rest: &str| ask::<i64>(connection, &format!("SELECT count(*) FROM crsql_unpack_columns {rest}"));
    assert_eq!(count(&format!("WHERE package = {package} AND cell = 12")), 2);
    assert_eq!(count(&format!("WHERE cell = 12 AND package = {package}")), 2);
    assert_eq!(count(&format!("WHERE package = {package} AND cell > 12")), 2);
    assert_eq!(count(&format!("({package}) WHERE rowid = 3")), 1);
    assert_eq!(count(&format!("({package}) WHERE cell IS NOT 12 OR cell IS NULL")), 2);
    assert_eq!(count(&format!("WHERE package = {package} AND package = x'00'")), 0);
    assert_eq!(count(&format!("WHERE package IN ({package}, x'00', x'010907')")), 5);
    assert_eq!(count("(NULL)"), 0);
    assert_eq!(count("WHERE package = NULL"), 0);
    assert_eq!(ask::<Vec<u8>>(connection, "SELECT package FROM crsql_unpack_columns(x'010907')"), [1, 9, 7]);
    connection
        .execute_batch(
            "CREATE TABLE p (packed); INSERT INTO p VALUES (crsql_pack_columns(1, 2)), (NULL), (crsql_pack_columns(3))",
        )
        .unwrap();
    for from in ["p, crsql_unpack_columns(p.packed)", "crsql_unpack_columns u, p WHERE u.package = p.packed"] {
        assert_eq!(ask::<i64>(connection, &format!("SELECT sum(cell) FROM {from}")), 6, "{from}");
    }
    let left = "SELECT count(*) FROM p LEFT JOIN crsql_unpack_columns u ON u.package = p.packed";
    assert_eq!(ask::<i64>(connection, left), 4);
    let two = "SELECT group_concat(a.cell || b.cell) FROM crsql_unpack_columns(x'0209010902') a, crsql_unpack_columns(x'0209030904') b";
    assert_eq!(ask::<String>(connection, two), "13,14,23,24");
}

/// UV-2: what is missing or malformed is an error, where CRSqlite aborts the process for some of it.
#[test]
fn bad_packages_are_errors() {
    let engine = Engine::open_in_memory().unwrap();
    let check = |sql: &str, gist: &str| {
        let message = refusal(engine.connection(), &format!("SELECT * FROM crsql_unpack_columns{sql}"));
        assert!(message.contains(gist), "{sql}: {message}");
    };
    check("", "Zero args passed to filter");
    check(" WHERE cell = 12", "Zero args passed to filter");
    check(" WHERE package > x'00'", "Zero args passed to filter");
    check("(x'')", "failed to unpack columns: packed key ends early, at byte 0");
    check("(x'01')", "ends early, at byte 1");
    check("(x'0149000000000000000001')", "integer of 9 bytes");
    check("(x'0108')", "unknown tag");
    check("(x'01090100')", "goes on after its last value");
    check("(7)", "must be a blob, not Integer");
    check("(1.5)", "must be a blob, not Real");
    check("('')", "ends early");
    let mut statement = engine.connection().prepare("SELECT * FROM crsql_unpack_columns").unwrap();
    let error = statement.query([]).unwrap().next().unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ApiMisuse));
    for write in ["DELETE FROM crsql_unpack_columns", "INSERT INTO crsql_unpack_columns VALUES (1)"] {
        let error = engine.connection().execute_batch(write).unwrap_err().to_string();
        assert!(error.contains("may not be modified"), "{error}");
    }
}
