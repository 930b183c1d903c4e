//! [`StreamId`]: which answer a CHANGES event belongs to.

use std::fmt;
use std::str::FromStr;

/// Names one stream of changes. Who asks makes it up, and makes a new one whenever it starts over.
///
/// A text of 1 to [`StreamId::BYTES_MAX`] bytes, compared verbatim, as in the original, whose ids have 32 hex digits.
///
/// ```
/// use litemesh_nostr::StreamId;
///
/// let stream: StreamId = "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e".parse()?;
/// assert_eq!(stream.as_str(), "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e");
/// assert!("".parse::<StreamId>().is_err());
/// # Ok::<(), litemesh_nostr::ParseStreamIdError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(Box<str>);

impl StreamId {
    /// Longest id that is read, in bytes: twice what the original makes. It is stored, and goes into filters.
    pub const BYTES_MAX: usize = 64;

    /// An id as the original makes it, from 16 random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(const_hex::encode(bytes).into())
    }

    /// The text as it stands in the tag `r`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for StreamId {
    type Err = ParseStreamIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if (1..=Self::BYTES_MAX).contains(&text.len()) {
            Ok(Self(text.into()))
        } else {
            Err(ParseStreamIdError { length: text.len() })
        }
    }
}

/// The text is no stream id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stream id has 1 to {} bytes, this one has {length}", StreamId::BYTES_MAX)]
pub struct ParseStreamIdError {
    /// Bytes of the text that was refused.
    pub length: usize,
}
