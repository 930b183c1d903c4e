//! Our side.

use litemesh_engine::rusqlite::config::DbConfig;
use litemesh_engine::rusqlite::types::ValueRef;
use litemesh_engine::rusqlite::{Connection, Error};
use litemesh_engine::{Engine as LitemeshEngine, rusqlite};

use crate::Result;
use crate::engine::{Engine, Literal, Outcome, Row, blob_literal, real_literal, text_literal};

/// A Litemesh database in memory.
pub(crate) struct Ours {
    pub(crate) engine: LitemeshEngine,
}

impl Ours {
    pub(crate) fn open(site: [u8; 16]) -> Result<Self> {
        let connection = Connection::open_in_memory()?;
        connection.execute_batch("CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY)")?;
        connection.execute("INSERT INTO crsql_site_id VALUES (?1, 0)", [site])?;
        Self::attach(connection)
    }

    pub(crate) fn attach(connection: Connection) -> Result<Self> {
        // As CRSqlite's SQLite is built: a column that is not there is an error, and not a text.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
        Ok(Self { engine: LitemeshEngine::attach(connection)? })
    }

    fn rows(&self, text: &str) -> rusqlite::Result<Vec<Row>> {
        let mut statement = self.engine.connection().prepare(text)?;
        let width = statement.column_count();
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push((0..width).map(|column| row.get_ref(column).map(literal)).collect::<rusqlite::Result<Row>>()?);
        }
        Ok(all)
    }
}

fn literal(value: ValueRef<'_>) -> Literal {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(value) => value.to_string(),
        ValueRef::Real(value) => real_literal(value),
        ValueRef::Text(bytes) => text_literal(bytes),
        ValueRef::Blob(bytes) => blob_literal(bytes),
    }
}

impl Engine for Ours {
    fn run(&mut self, texts: &[String]) -> Result<Vec<Outcome>> {
        let outcome = |text: &String| match self.rows(text) {
            Ok(rows) => Outcome::Rows(rows),
            Err(error) => {
                let code = match &error {
                    Error::SqliteFailure(failure, _) | Error::SqlInputError { error: failure, .. } => {
                        failure.extended_code & 0xff
                    }
                    _ => rusqlite::ffi::SQLITE_ERROR,
                };
                Outcome::Error { code, message: error.to_string() }
            }
        };
        Ok(texts.iter().map(outcome).collect())
    }

    fn is_autocommit(&self) -> bool {
        self.engine.connection().is_autocommit()
    }
}
