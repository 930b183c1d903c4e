//! [`Failure`]: why a command ended without doing what it was asked, by class.

use std::fmt;
use std::io;
use std::path::Path;

use litemesh::engine::{OpenError, ReplicateError, StorageError};
use litemesh::rusqlite::{self, ErrorCode};
use litemesh::{PeerError, StartError};

use crate::exit_code::ExitCode;

/// What happened, and what the user can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    what: String,
    advice: String,
}

impl Report {
    pub(crate) fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), advice: advice.into() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, ": {}", self.advice) }
    }
}

/// Why a command failed: one variant for each exit code, so that the class cannot be forgotten.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(Report),
    /// A file or SQL failed.
    #[error("{0}")]
    Database(Report),
    /// Tables break the rules of replication.
    #[error("{0}")]
    CannotReplicate(Report),
    /// No listening, no connection.
    #[error("{0}")]
    Network(Report),
    /// One side does not take what the other sends.
    #[error("{0}")]
    Refused(Report),
    /// Our own mistake.
    #[error("{0}")]
    Internal(Report),
    /// Whoever read our output is gone, as in `litemesh sql .. | head`. Nobody is told.
    #[error("the output was closed")]
    BrokenPipe,
}

impl Failure {
    pub(crate) fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Usage(Report::new(what, advice))
    }

    pub(crate) fn database(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Database(Report::new(what, advice))
    }

    pub(crate) fn cannot_replicate(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::CannotReplicate(Report::new(what, advice))
    }

    pub(crate) fn network(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Network(Report::new(what, advice))
    }

    pub(crate) fn refused(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Refused(Report::new(what, advice))
    }

    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::Internal(Report::new(what, "this is a mistake in litemesh, please report it"))
    }

    /// SQLite failed on `file`.
    pub(crate) fn sqlite(file: &Path, error: &rusqlite::Error) -> Self {
        Self::database(format!("{}: {}", file.display(), message(error)), advice(error))
    }

    /// The engine could not open `file`.
    pub(crate) fn open(file: &Path, error: &OpenError) -> Self {
        match error {
            OpenError::Storage(StorageError(error)) => Self::sqlite(file, error),
            // The other texts say what to do.
            other => Self::database(format!("{}: {other}", file.display()), ""),
        }
    }

    /// A table of `file` could not be made replicated.
    pub(crate) fn replicate(file: &Path, error: &ReplicateError) -> Self {
        match error {
            ReplicateError::Storage(StorageError(error)) => Self::sqlite(file, error),
            ReplicateError::NoSuchTable { table } => Self::cannot_replicate(
                format!("{}: Table {table} does not exist", file.display()),
                "`litemesh sql FILE .tables` lists those that do; --schema can make it",
            ),
            other => Self::cannot_replicate(format!("{}: {other}", file.display()), other.advice()),
        }
    }

    /// A running peer of `file` failed.
    pub(crate) fn peer(file: &Path, error: &PeerError) -> Self {
        match error {
            PeerError::Storage(StorageError(error)) => Self::sqlite(file, error),
            other => Self::internal(format!("{}: {other}", file.display())),
        }
    }

    /// A peer of `file` could not start.
    pub(crate) fn start(file: &Path, error: &StartError) -> Self {
        match error {
            StartError::Open(error) => Self::open(file, error),
            StartError::Peer(error) => Self::peer(file, error),
            StartError::Transport { transport, source } if transport == "nostr" => Self::database(
                source.to_string(),
                "one `litemesh sync FILE nostr:` at a time syncs with everyone who is paired",
            ),
            StartError::Transport { source, .. } => Self::usage(
                source.to_string(),
                "give the URL as `litemesh serve` prints it, http://HOST:PORT, and with --ca a PEM file",
            ),
            other => Self::internal(other.to_string()),
        }
    }

    /// The exit code of the class.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::Usage,
            Self::Database(_) => ExitCode::Database,
            Self::CannotReplicate(_) => ExitCode::CannotReplicate,
            Self::Network(_) => ExitCode::Network,
            Self::Refused(_) => ExitCode::Refused,
            Self::Internal(_) => ExitCode::Internal,
            // What was written before was what the reader wanted.
            Self::BrokenPipe => ExitCode::Ok,
        }
    }
}

/// Only output is written without a file name at hand.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::database(format!("cannot write the output: {error}"), "make room, or write elsewhere")
    }
}

/// SQLite's own words, on one line and without the statement, which the user knows.
pub(crate) fn message(error: &rusqlite::Error) -> String {
    let text = match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn advice(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => "check the path, or make a new file with `litemesh init`",
        Some(ErrorCode::CannotOpen) => "check that the path exists and that you may read and write it",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program holds the file: try again when it has finished writing"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => "make the file and its folder writable",
        Some(ErrorCode::DiskFull) => "make room on the disk, nothing was lost",
        Some(ErrorCode::DatabaseCorrupt) => "restore a backup, or run `PRAGMA integrity_check` on a copy",
        Some(ErrorCode::SystemIoFailure) => "check the disk and the folder's permissions",
        Some(ErrorCode::ConstraintViolation) => "the statement was rolled back",
        _ => "correct the statement; `.schema` shows the tables",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_advice() {
        let failure = Failure::network("no hub at x", "start one");
        assert_eq!(failure.to_string(), "no hub at x: start one");
        assert_eq!(failure.exit_code(), ExitCode::Network);
    }

    #[test]
    fn a_broken_pipe_is_silent_success() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(failure, Failure::BrokenPipe));
        assert_eq!(failure.exit_code(), ExitCode::Ok);
    }

    #[test]
    fn messages_of_sqlite_stand_on_one_line() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let error = connection.prepare("SELECT\n  a\nFROM nowhere").unwrap_err();
        assert_eq!(message(&error), "no such table: nowhere");
    }
}
