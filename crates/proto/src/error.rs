//! Errors of this floor: what is wrong with a remote's bytes, and what went wrong on the way to it.

/// Bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum DecodeError {
    #[error("not valid JSON: {reason}")]
    Json { reason: String },
    #[error("JSON may be nested {max} deep, this is deeper")]
    TooDeep { max: usize },
    #[error("the key __proto__ is refused")]
    ForbiddenKey,
    #[error("{what} must be {expected}")]
    Shape { what: &'static str, expected: &'static str },
    #[error("a cursor may name at most {max} sites, this one names {sites}")]
    CursorTooLarge { sites: usize, max: usize },
    #[error("bytes end early, inside the {what}")]
    Truncated { what: &'static str },
    #[error("{bytes} bytes too many after the {what}")]
    TrailingBytes { what: &'static str, bytes: usize },
    #[error("a number in the {what} is larger than its field")]
    NumberTooLarge { what: &'static str },
    #[error("{what} number {number} is asked for, there are {count}")]
    NotThere { what: &'static str, number: usize, count: usize },
    #[error("a {what} has {bytes} bytes, at most {max} are accepted")]
    TooLong { what: &'static str, bytes: usize, max: usize },
    #[error("a frame may have at most {max} changes, this one has {changes}")]
    TooManyChanges { changes: usize, max: usize },
    #[error("a row without changes")]
    EmptyRow,
    #[error("a {what} is not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("{byte:#04x} is no type of a value")]
    UnknownType { byte: u8 },
    #[error("a {what} has flags that are not known here: {flags:#04x}")]
    UnknownFlags { what: &'static str, flags: u8 },
    #[error("changes in layout {layout}, only layout {known} is known here")]
    UnknownLayout { layout: u8, known: u8 },
    #[error("a compressed frame, and this program was built without decompression")]
    Compressed,
    #[error("{compressed} bytes of zstd may not hold {raw} bytes, at most {ratio} times as many are accepted")]
    Expansion { compressed: usize, raw: usize, ratio: usize },
    #[error("cannot decompress: {reason}")]
    Zstd { reason: String },
}

/// A message whose content breaks a rule. Nothing of it was used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum VerifyError {
    #[error("Invalid change at index {index}: {reason}")]
    Change { index: usize, reason: String },
    #[error("the {what} {value} is claimed, at most {max} is accepted")]
    Claim { what: &'static str, value: i64, max: i64 },
}

/// Why a peer refused what a remote sent. The text goes back to the remote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The content is wrong; sending it again will fail again.
    #[error("{0}")]
    Invalid(String),
    /// It has the receiver's own site id: their changes would hide each other.
    #[error(
        "peer id {site} is our own site id: one of the two databases is a copy of the other. Make the copy a site of its own with \
         `litemesh fork`, then connect again"
    )]
    SameSite {
        /// Of both.
        site: crate::SiteId,
    },
    /// We could not store it now; the same message may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The remote may not do this; sending it again will fail again.
    #[error("{0}")]
    Forbidden(String),
    /// It was made with a newer schema than ours: the same message will be taken after the application's upgrade.
    #[error("the message is of schema version {0}, which is newer than this database's")]
    Outdated(i64),
    /// The connection is not known (any more): connect again.
    #[error("Peer not found")]
    UnknownRemote,
}

/// Why a transport could not start, or not carry a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum TransportError {
    #[error("the transport was started already")]
    AlreadyStarted,
    #[error("not connected to {remote}")]
    NotConnected { remote: crate::SiteId },
    #[error("connection lost: {reason}")]
    Lost { reason: String },
    #[error("the remote took nothing for {seconds} s and was dropped")]
    Stalled { seconds: u64 },
    #[error("the remote answered {status}: {reason}")]
    Refused { status: u16, reason: String },
    #[error("a change of {bytes} bytes in table {table} does not fit the remote's limit of {max} bytes a message")]
    TooLarge { table: String, bytes: usize, max: usize },
    #[error("cannot use {endpoint}: {reason}")]
    Endpoint { endpoint: String, reason: String },
}

impl TransportError {
    /// Whether the remote, or a proxy before it, has no room now: the same message may be taken later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Refused { status: 429 | 502 | 503 | 504, .. })
    }

    /// What is said of a message of `bytes` that no remote with a limit of `max` will take.
    pub fn too_large(message: &crate::PeerMessage, bytes: usize, max: usize) -> Self {
        use crate::PeerMessage::{Ack, Changes, Eose, Unknown};
        let table = match message {
            Changes { changes, .. } => changes.first().map(|change| change.table.to_string()),
            Eose { .. } | Ack(_) | Unknown => None,
        };
        Self::TooLarge { table: table.unwrap_or_default(), bytes, max }
    }
}
