//! Errors of this floor: what is wrong with a remote's bytes, and what went wrong on the way to it.

/// Bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum DecodeError {
    #[error("not valid JSON: {reason}")]
    Json { reason: String },
    #[error("the key __proto__ is refused")]
    ForbiddenKey,
    #[error("{what} must be {expected}")]
    Shape { what: &'static str, expected: &'static str },
    #[error("a cursor may name at most {max} sites, this one names {sites}")]
    CursorTooLarge { sites: usize, max: usize },
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
    /// We could not store it now; the same message may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The remote may not do this; sending it again will fail again.
    #[error("{0}")]
    Forbidden(String),
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
