//! Who is measured: plain SQLite, Litemesh, or another engine given as a loadable extension.

use std::path::{Path, PathBuf};

use litemesh_engine::Engine;
use rusqlite::Connection;

use crate::Error;

/// How writes of rows are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notices {
    Nothing,
    /// By triggers, which note nothing.
    ByTriggers,
    /// By SQLite's pre-update hook, with notes of keys.
    ByHook,
    /// By the same, which reads all values before and after, and notes nothing.
    ByIdleHook,
}

/// An engine under test.
#[derive(Clone, Debug)]
pub enum Subject {
    Plain,
    Litemesh,
    /// The layout of CRSqlite without an engine: see [`floor`](crate::floor).
    Floor,
    /// The same, written all at once: see [`bulk_floor`](crate::bulk_floor).
    BulkFloor(Notices),
    Extension(PathBuf),
}

impl Subject {
    pub fn parse(text: &str) -> Self {
        match text {
            "plain" => Self::Plain,
            "litemesh" => Self::Litemesh,
            "floor" => Self::Floor,
            "bulk_floor" => Self::BulkFloor(Notices::Nothing),
            "bulk_floor_with_triggers" => Self::BulkFloor(Notices::ByTriggers),
            "bulk_floor_with_hook" => Self::BulkFloor(Notices::ByHook),
            "bulk_floor_with_idle_hook" => Self::BulkFloor(Notices::ByIdleHook),
            path => Self::Extension(path.into()),
        }
    }

    pub fn name(&self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::Litemesh => "litemesh".to_owned(),
            Self::Floor => "floor".to_owned(),
            Self::BulkFloor(Notices::Nothing) => "bulk_floor".to_owned(),
            Self::BulkFloor(Notices::ByTriggers) => "bulk_floor_with_triggers".to_owned(),
            Self::BulkFloor(Notices::ByHook) => "bulk_floor_with_hook".to_owned(),
            Self::BulkFloor(Notices::ByIdleHook) => "bulk_floor_with_idle_hook".to_owned(),
            Self::Extension(path) => path.display().to_string(),
        }
    }

    /// Opens a file: WAL, `synchronous=NORMAL` and a cache of 8 MiB (what [`Engine::open`] sets), for everybody alike.
    pub fn open(&self, file: &Path, memory_temp_store: bool) -> Result<Store, Error> {
        let store = match self {
            Self::Litemesh => Store::Native(Engine::open(file)?),
            Self::Plain | Self::Floor | Self::BulkFloor(_) => Store::Sql(Connection::open(file)?),
            Self::Extension(path) => {
                let connection = Connection::open(file)?;
                // SAFETY: whoever runs the benchmark names the library that is to be measured.
                unsafe {
                    connection.load_extension_enable()?;
                    connection.load_extension(path, None::<&str>)?;
                    connection.load_extension_disable()?;
                }
                Store::Extension(connection)
            }
        };
        let connection = store.connection();
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "cache_size", -8192)?;
        if memory_temp_store {
            connection.pragma_update(None, "temp_store", "MEMORY")?;
        }
        Ok(store)
    }
}

/// An open database of a subject.
pub enum Store {
    Sql(Connection),
    Native(Engine),
    /// Of the layout, without an engine.
    Bare {
        connection: Connection,
        is_bulk: bool,
    },
    Extension(Connection),
}

impl Store {
    pub fn connection(&self) -> &Connection {
        match self {
            Self::Sql(connection) | Self::Bare { connection, .. } | Self::Extension(connection) => connection,
            Self::Native(engine) => engine.connection(),
        }
    }

    pub fn replicate(&self, table: &str) -> Result<(), Error> {
        match self {
            Self::Sql(_) | Self::Bare { .. } => {}
            Self::Native(engine) => engine.replicate(table)?,
            Self::Extension(connection) => connection.query_row("SELECT crsql_as_crr(?1)", [table], |_| Ok(()))?,
        }
        Ok(())
    }

    pub fn close(self) -> Result<(), Error> {
        if let Self::Extension(connection) = &self {
            connection.query_row("SELECT crsql_finalize()", [], |_| Ok(()))?;
        }
        Ok(())
    }
}
