//! [`SiteId`]: who wrote a change.

use std::fmt;
use std::str::FromStr;

/// One writing database: 16 random bytes, ordered bytewise.
///
/// As text it is 32 lower-case hex digits; that text is also the *peer id* of the wire (`docs/protocol.md`, "Ids").
///
/// ```
/// use litemesh_proto::SiteId;
///
/// let site: SiteId = "0102030405060708090a0b0c0d0e0f10".parse()?;
/// assert_eq!(site.to_string(), "0102030405060708090a0b0c0d0e0f10");
/// assert_eq!(site.fmt_short().to_string(), "01020304");
/// # Ok::<(), litemesh_proto::ParseSiteIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SiteId([u8; 16]);

impl SiteId {
    /// Wraps 16 bytes as they stand in `crsql_site_id`.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Takes the bytes of a BLOB; `None` unless there are exactly 16.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The first eight hex digits, for logs and tables.
    pub fn fmt_short(&self) -> impl fmt::Display + use<> {
        let bytes = self.0;
        fmt::from_fn(move |f| f.write_str(&const_hex::encode(&bytes[..4])))
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(const_hex::Buffer::<16>::new().format(&self.0))
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.fmt_short(), f)
    }
}

impl FromStr for SiteId {
    type Err = ParseSiteIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        // `decode_to_slice` would accept a `0x` prefix; the length check leaves no room for one.
        if text.len() != 32 || const_hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(ParseSiteIdError { length: text.len() });
        }
        Ok(Self(bytes))
    }
}

/// The text is not a site id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a site id is 32 hex digits, got {length} bytes of something else")]
pub struct ParseSiteIdError {
    /// Bytes of the text that was refused.
    pub length: usize,
}
