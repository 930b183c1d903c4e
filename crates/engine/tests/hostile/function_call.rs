//! Any SQL function of the engine with any arguments.

use std::cell::RefCell;

use arbitrary::{Arbitrary, Result, Unstructured};
use litemesh_engine::Engine;
use litemesh_engine::rusqlite::types::{ToSqlOutput, Value, ValueRef};
use litemesh_engine::rusqlite::{Connection, ToSql, params_from_iter};

use crate::snapshot::snapshot;

/// One argument. TEXT is bytes: SQLite does not check that it is UTF-8.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    Value(Value),
    Text(Vec<u8>),
}

impl ToSql for Argument {
    fn to_sql(&self) -> litemesh_engine::rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Value(value) => ToSqlOutput::Borrowed(value.into()),
            Self::Text(bytes) => ToSqlOutput::Borrowed(ValueRef::Text(bytes)),
        })
    }
}

fn text(text: &str) -> Argument {
    Argument::Text(text.into())
}

/// What a function may be given by mistake or by malice: each type, the ends of its range, and names that exist.
pub(crate) fn hostile_arguments() -> Vec<Argument> {
    let value = |value: Value| Argument::Value(value);
    let mut arguments = vec![value(Value::Null)];
    arguments.extend([0, 1, -1, 3, i64::MAX, i64::MIN].map(|n| value(n.into())));
    arguments.extend([0.5, -0.0, 1e300, f64::INFINITY, f64::NEG_INFINITY].map(|n| value(n.into())));
    arguments
        .extend([&[][..], &[0], &[1], &[0xff; 17], &[1, 9, 1], &[1, 0x49, 0, 0]].map(|b| value(b.to_vec().into())));
    arguments.extend([
        text(""),
        text("main"),
        text("temp"),
        text("foo"),
        text("FOO"),
        text("a"),
        text("b"),
        text("spot"),
    ]);
    arguments.extend([
        text("-1"),
        text("a "),
        text("a!"),
        text("merge-equal-values"),
        text("crsql_master"),
        text("gone"),
    ]);
    arguments.extend([
        text("'; DROP TABLE foo; --"),
        text("\"x\" 'y' `z` [w] %_"),
        text("nul\0nul"),
        text("\u{1f980}"),
    ]);
    arguments.push(text(
        "CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b, spot TEXT, list); SELECT crsql_as_crr('foo')",
    ));
    arguments.push(Argument::Text(vec![0xff, b'f', 0xc0]));
    arguments.push(Argument::Text(vec![b'x'; 1 << 20]));
    arguments.push(value(vec![7; 1 << 20].into()));
    arguments
}

const SCHEMA: &str = "
    CREATE TABLE foo (a INTEGER PRIMARY KEY NOT NULL, b CHECK (b <> 666), spot TEXT, list);
    SELECT crsql_as_crr('foo');
    SELECT crsql_fract_as_ordered('foo', 'spot', 'list');
    CREATE TABLE pair (x NOT NULL, y NOT NULL, PRIMARY KEY (y, x)) WITHOUT ROWID;
    SELECT crsql_as_crr('pair');
    CREATE TABLE plain (a INTEGER PRIMARY KEY NOT NULL, b);
    INSERT INTO foo VALUES (1, 'x', -1, 'l'), (2, 'y', -1, 'l'), (3, 'z', 'a ', 'l');
    DELETE FROM foo WHERE a = 2;
    INSERT INTO pair VALUES (1, 2);
    INSERT INTO plain VALUES (1, 2);
    INSERT INTO crsql_changes VALUES ('foo', x'010907', 'b', 7, 1, 9, x'00112233445566778899aabbccddeeff', 1, 0)";

/// A database on which functions are called; every call is rolled back.
pub(crate) struct Scene {
    engine: Engine,
    /// Names, and the number of arguments or -1.
    pub(crate) functions: Vec<(String, i64)>,
    before: String,
    version: i64,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let engine = Engine::open_in_memory().expect("a database in memory");
        engine.connection().execute_batch(SCHEMA).expect("the schema is right");
        let functions = "SELECT name, narg FROM pragma_function_list WHERE name GLOB 'crsql_*' OR name GLOB 'litemesh_*' ORDER BY name, narg";
        let functions = {
            let mut statement = engine.connection().prepare(functions).unwrap();
            statement
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap()
                .map(std::result::Result::unwrap)
                .collect()
        };
        let mut scene = Self { engine, functions, before: String::new(), version: 0 };
        scene.version = scene.number("SELECT crsql_db_version()");
        scene.begin();
        scene.before = snapshot(scene.connection());
        scene.connection().execute_batch("ROLLBACK").unwrap();
        scene
    }

    fn connection(&self) -> &Connection {
        self.engine.connection()
    }

    fn number(&self, sql: &str) -> i64 {
        self.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Each call happens in a transaction that has written already: it has something to lose. Asking has the clocks recorded,
    /// which whatever is called would do first.
    fn begin(&self) {
        let begin = "BEGIN; UPDATE foo SET b = 'in the transaction' WHERE a = 1; SELECT crsql_get_seq()";
        self.connection().execute_batch(begin).unwrap();
    }

    /// Calls a function. Gives the message of an error.
    ///
    /// # Panics
    ///
    /// The function panicked; or it failed and changed a row, or ended the transaction.
    pub(crate) fn call(&self, name: &str, arguments: &[Argument]) -> std::result::Result<(), String> {
        self.begin();
        let marks = vec!["?"; arguments.len()].join(", ");
        let result =
            self.connection().query_row(&format!("SELECT {name}({marks})"), params_from_iter(arguments), |row| {
                row.get_ref(0).map(|_| ())
            });
        let call = || format!("{name}({})", describe(arguments));
        if let Err(error) = &result {
            assert!(!error.to_string().contains("unwinding panic"), "{} panicked", call());
            assert!(!self.connection().is_autocommit(), "{} ended the transaction: {error}", call());
            assert!(snapshot(self.connection()) == self.before, "{} failed and changed something: {error}", call());
        }
        // A savepoint that a call left open goes with the transaction; one that ended it would have to be noticed.
        if self.connection().is_autocommit() {
            panic!("{} ended the transaction", call());
        }
        self.connection().execute_batch("ROLLBACK; SELECT crsql_internal_sync_bit(0)").unwrap();
        assert_eq!(self.number("SELECT crsql_db_version()"), self.version, "after {}", call());
        result.map_err(|error| error.to_string())
    }
}

fn describe(arguments: &[Argument]) -> String {
    let short = |argument: &Argument| {
        let text = match argument {
            Argument::Value(value) => format!("{value:?}"),
            Argument::Text(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        };
        if text.len() < 200 {
            text
        } else {
            format!("{} bytes of {}…", text.len(), text.chars().take(20).collect::<String>())
        }
    };
    arguments.iter().map(short).collect::<Vec<_>>().join(", ")
}

/// Most arguments of a random call. SQLite's own limit has a test of its own.
const ARGUMENTS_MAX: usize = 12;

struct Call {
    function: usize,
    arguments: Vec<Argument>,
}

impl Call {
    fn from_bytes(bytes: &mut Unstructured<'_>, scene: &Scene, known: &[Argument]) -> Result<Self> {
        let function = bytes.choose_index(scene.functions.len())?;
        let count = match usize::try_from(scene.functions[function].1) {
            Ok(count) => count,
            Err(_) => bytes.int_in_range(0..=ARGUMENTS_MAX)?,
        };
        let mut arguments = Vec::with_capacity(count);
        for _ in 0..count {
            arguments.push(match bytes.int_in_range(0..=7)? {
                0 => Argument::Value(i64::arbitrary(bytes)?.into()),
                1 => Argument::Value(f64::arbitrary(bytes)?.into()),
                2 => Argument::Text(Vec::arbitrary(bytes)?),
                3 => Argument::Value(Vec::<u8>::arbitrary(bytes)?.into()),
                _ => bytes.choose(known)?.clone(),
            });
        }
        Ok(Self { function, arguments })
    }
}

thread_local! {
    // Made once: a call is rolled back, and `Scene::call` asserts that nothing of it is left.
    static SCENE: RefCell<Option<(Scene, Vec<Argument>)>> = const { RefCell::new(None) };
}

/// A call that the bytes describe.
pub(crate) fn check(bytes: &[u8]) {
    SCENE.with_borrow_mut(|slot| {
        let (scene, known) = slot.get_or_insert_with(|| (Scene::new(), hostile_arguments()));
        let mut bytes = Unstructured::new(bytes);
        while let Ok(call) = Call::from_bytes(&mut bytes, scene, known) {
            let name = scene.functions[call.function].0.clone();
            let _ = scene.call(&name, &call.arguments);
            if bytes.is_empty() {
                break;
            }
        }
    });
}
