//! Errors of the engine: one enum for each family of operations.

use litemesh_proto::KeyError;

/// SQLite itself failed: busy, full, corrupt, read-only, interrupted.
#[derive(Debug, thiserror::Error)]
#[error("SQLite: {0}")]
pub struct StorageError(#[from] pub rusqlite::Error);

impl StorageError {
    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.sqlite_error_code(),
            Some(
                rusqlite::ErrorCode::DatabaseBusy
                    | rusqlite::ErrorCode::DatabaseLocked
                    | rusqlite::ErrorCode::OperationInterrupted
            )
        )
    }
}

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum OpenError {
    /// TX-3.
    #[error(
        "opening a db created with version {version} of CRSqlite is not supported: its layout is older than 0.16. Copy its \
         tables into a new file and replicate them there"
    )]
    OldLayout { version: i64 },
    /// TX-4: recognised by its tables, whatever number it carries.
    #[error(
        "table {table} has the layout of another CRSqlite version ({found}): 0.16 is the one that is read. The file was left \
         as it is; copy its tables into a new file and replicate them there"
    )]
    ForeignLayout { table: String, found: &'static str },
    #[error("this connection has CRSqlite, or another copy of Litemesh, loaded already: load one of them only")]
    OtherEngine,
    #[error(
        "the database is in UTF-16: replicated tables need UTF-8. Copy its tables into a new file, which is in UTF-8 unless \
         told otherwise"
    )]
    Utf16,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(StorageError(error))
    }
}

/// Why a table cannot replicate (CRR-2). The message says what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum ReplicateError {
    #[error("Table {table} does not exist{}", schema_hint(table))]
    NoSuchTable { table: String },
    #[error("{table} is a view or a virtual table; only ordinary tables can replicate")]
    NotATable { table: String },
    #[error("Table {table} is temporary; only tables of the main database can replicate")]
    Temporary { table: String },
    #[error("schema {schema} is not supported: only tables of the main database can replicate")]
    OtherSchema { schema: String },
    #[error(
        "Table {table} has unique indices besides the primary key, not allowed for CRRs: two peers could each insert a row \
         that the other's index refuses. Drop {index}, or make its columns the primary key"
    )]
    UniqueIndex { table: String, index: String },
    /// The text is CRSqlite's, literally.
    #[error("Table {table} has no primary key or primary key is nullable. CRRs must have a non nullable primary key")]
    NoPrimaryKey { table: String, is_autoincrement: bool },
    #[error("Table {table} has a composite primary key part of which is nullable: declare {column} NOT NULL")]
    NullablePrimaryKey { table: String, column: String },
    #[error(
        "Table {table} has an auto-increment primary key: two peers would give the same key to different rows. Use \
         INTEGER PRIMARY KEY NOT NULL with random values, or a TEXT key such as a UUIDv7"
    )]
    Autoincrement { table: String },
    #[error(
        "Table {table} has checked foreign key constraints (to {other}), not allowed for CRRs: rows of one transaction may \
         arrive before those they refer to. Leave out the REFERENCES clause"
    )]
    ForeignKey { table: String, other: String },
    #[error(
        "Table {table} has a NOT NULL column without a DEFAULT VALUE: {column}. Peers with an older or newer schema could not \
         insert into it. Write {column} ... NOT NULL DEFAULT ..."
    )]
    NotNullWithoutDefault { table: String, column: String },
    #[error("Table {table} has a column named {column}, which the engine uses itself: rename it")]
    ReservedColumn { table: String, column: String },
    #[error(
        "Table {table} has the primary key column {column} with a collation other than BINARY: keys that it takes as equal \
         would replicate as different rows. Declare it without COLLATE"
    )]
    KeyCollation { table: String, column: String },
    #[error(
        "Table {table} has {columns} columns; at most {columns_max} can replicate here. Split it, or raise SQLite's limit of \
         columns"
    )]
    TooWide { table: String, columns: i64, columns_max: i64 },
    #[error("Table {table} has a primary key of {keys} columns; at most 255 can replicate")]
    TooManyKeys { table: String, keys: i64 },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A dot can be part of a name, but seldom is.
fn schema_hint(table: &str) -> String {
    match table.split_once('.') {
        Some((schema, table)) => {
            format!(". If {schema} is its schema, give that as an argument of its own: ('{schema}', '{table}')")
        }
        None => String::new(),
    }
}

impl ReplicateError {
    /// What to write instead, where the message does not say it: the text of one is CRSqlite's, to the letter.
    pub fn advice(&self) -> &'static str {
        match self {
            // With NOT NULL alone it would be refused again, as `Autoincrement`.
            Self::NoPrimaryKey { is_autoincrement: true, .. } => {
                "AUTOINCREMENT cannot stay either, since two peers would give the same key to different rows; use \
                 `id INTEGER PRIMARY KEY NOT NULL` with random values, or a TEXT key such as a UUIDv7"
            }
            Self::NoPrimaryKey { .. } => "declare one that is NOT NULL, such as `id TEXT PRIMARY KEY NOT NULL`",
            _ => "",
        }
    }
}

impl From<rusqlite::Error> for ReplicateError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(StorageError(error))
    }
}

/// Why a schema change failed. In every case the table is what it was when its window was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum AlterError {
    #[error(
        "failed compacting tables post alteration of {table}: there is no crsql_begin_alter('{table}') in this transaction. If \
         its triggers are gone, crsql_as_crr('{table}') makes them again"
    )]
    NotBegun { table: String },
    #[error(
        "failed compacting tables post alteration of {table}: its primary key changed, so its clocks cannot be kept as they \
         are. Leave out the last argument"
    )]
    KeysChanged { table: String },
    #[error("failed compacting tables post alteration of {table}, which can no longer replicate: {source}")]
    Refused { table: String, source: ReplicateError },
    #[error("failed compacting tables post alteration of {table}: {source}")]
    Failed { table: String, source: StorageError },
    #[error("{0}")]
    Begin(#[source] ReplicateError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl AlterError {
    pub(crate) fn failed(table: &str, error: rusqlite::Error) -> Self {
        Self::Failed { table: table.to_owned(), source: StorageError(error) }
    }
}

impl From<rusqlite::Error> for AlterError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(StorageError(error))
    }
}

/// Why a schema was not migrated to. In every case the database is what it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum MigrateError {
    #[error("the schema cannot be made in an empty database: {0}")]
    Schema(#[source] rusqlite::Error),
    #[error("the schema must not contain {keyword}: the whole migration is one transaction")]
    Transaction { keyword: String },
    #[error("the cleanup of the private database failed: {0}")]
    Cleanup(#[source] rusqlite::Error),
    #[error(
        "the primary key of table {table} would change (column {column}): that takes a new table. Make it between \
         crsql_begin_alter('{table}') and crsql_commit_alter('{table}')"
    )]
    PrimaryKey { table: String, column: String },
    #[error("could not {step}: {source}")]
    Step { step: String, source: rusqlite::Error },
    #[error("could not run the schema: {0}. What is there already must be made IF NOT EXISTS")]
    Run(#[source] rusqlite::Error),
    #[error("could not migrate {table}, which would no longer replicate: {source}")]
    Refused { table: String, source: ReplicateError },
    #[error(transparent)]
    Alter(#[from] AlterError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<rusqlite::Error> for MigrateError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(StorageError(error))
    }
}

/// Why changes were refused. In every case the merge transaction was rolled back and nothing of the batch applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum MergeError {
    #[error("Invalid change at index {index}: could not find the schema information for table {table}")]
    UnknownTable { index: usize, table: String },
    #[error("Invalid change at index {index}: table {table} has no replicated column {column}")]
    UnknownColumn { index: usize, table: String, column: String },
    #[error("Invalid change at index {index}: primary key of table {table}: {source}")]
    Key { index: usize, table: String, source: KeyError },
    #[error(
        "Invalid change at index {index}: table {table} has {expected} primary key columns, the change has {found}"
    )]
    KeyArity { index: usize, table: String, expected: usize, found: usize },
    #[error("Invalid change at index {index}: NULL in the primary key of table {table}")]
    NullKey { index: usize, table: String },
    #[error("Invalid change at index {index}: db_version {version} is absurd, at most {max} is accepted now")]
    AbsurdVersion { index: usize, version: i64, max: i64 },
    /// Counted on from there, it would leave its range, and nobody could write to the row again.
    #[error("Invalid change at index {index}: {field} {value} is absurd, at most {max} is accepted")]
    AbsurdCount { index: usize, field: &'static str, value: i64, max: i64 },
    #[error("Invalid change at index {index}: table {table}: {source}")]
    Constraint { index: usize, table: String, source: rusqlite::Error },
    /// What came before is not here: it came over another connection meanwhile, or was forgotten.
    #[error("the messages that this one completes are not staged here")]
    NotStaged,
    /// What came before it, over another connection, is not here.
    #[error("what this one goes on after is not here")]
    NotHeld,
    /// A staged message is damaged. To be [forgotten](crate::Engine::forget_staged), and asked for again.
    #[error("a staged message cannot be read: {reason}")]
    StagedUnreadable { reason: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl MergeError {
    /// Whether the change itself is at fault: sending it again will fail again.
    pub fn is_content(&self) -> bool {
        !matches!(self, Self::Storage(_) | Self::NotStaged | Self::NotHeld | Self::StagedUnreadable { .. })
    }
}

/// Why a message was not staged. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum StageError {
    /// To be asked for again, from what is staged.
    #[error("the message does not go on where those before it ended")]
    Gap,
    #[error("a transaction of more than {max} bytes is not taken: {bytes} bytes have come")]
    TooLarge { bytes: u64, max: u64 },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<rusqlite::Error> for StageError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(StorageError(error))
    }
}

impl From<rusqlite::Error> for MergeError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(StorageError(error))
    }
}

/// An engine error as SQLite sees it, inside a SQL function or a virtual table.
pub(crate) fn to_sql(error: impl std::fmt::Display) -> rusqlite::Error {
    rusqlite::Error::ModuleError(error.to_string())
}
