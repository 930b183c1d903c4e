//! Why no event was made, and why one was not read.

use litemesh_proto::{DecodeError, SiteId};

use crate::{DecryptError, EncryptError};

/// Why no event was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum BuildError {
    /// The content is too long, most of all; see [`PLAINTEXT_BYTES_MAX`](crate::PLAINTEXT_BYTES_MAX).
    #[error("cannot encrypt the content: {0}")]
    Encrypt(#[from] EncryptError),
    /// Our key is not there, or not to be used.
    #[error("cannot sign the event: {reason}")]
    Sign { reason: String },
}

/// Why an event was not read. Checks run in this order, so an event with a right signature but wrong content is known to be its
/// author's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum ReadError {
    /// A relay sent what nobody asked for.
    #[error("expected an event of kind {expected}, got kind {got}")]
    Kind { expected: u16, got: u16 },
    /// Of somebody else than the other side of the pairing.
    #[error("the event is by another author than the one paired with")]
    Author,
    /// The id is not that of the content, or the signature not that of the author: a relay made it up.
    #[error("the id or the signature of the event is wrong")]
    Signature,
    /// A tag is missing, or what stands in it cannot be read.
    #[error("the tag {tag} of the event is missing or malformed")]
    Tag { tag: &'static str },
    /// Encrypted for another pairing.
    #[error("cannot decrypt the event: {0}")]
    Decrypt(#[from] DecryptError),
    /// What was encrypted has another form. The reason quotes nothing of it.
    #[error("the content is no {what}: {reason}")]
    Malformed { what: &'static str, reason: String },
    /// The site id is not the one that was stored when the two were paired.
    #[error("the event is by site {got}, the pairing is with site {expected}")]
    Peer { expected: SiteId, got: SiteId },
    /// The cursor or the message inside cannot be read.
    #[error("the content cannot be read: {0}")]
    Content(#[from] DecodeError),
    /// The listener does not want to be paired.
    #[error("the other side refused to be paired")]
    Rejected,
}
