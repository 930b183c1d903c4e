//! The column of packed keys: of each what is new in it against the one before.
//!
//! ```text
//! n bytes   heads      for each key: how many bytes it shares with the front of the one before, how many follow
//! n bytes   suffixes   those that follow, one after the other
//! ```
//!
//! Heads and suffixes lie apart because heads repeat, and zstd finds longer repetitions where nothing lies between them.

use std::sync::Arc;

use super::reader::Reader;
use super::writer::Writer;
use crate::limits::KEY_SHARED_BYTES_MAX;
use crate::{DecodeError, PackedKey};

pub(super) fn write_keys<'a>(
    out: &mut Writer,
    [heads, suffixes]: &mut [Writer; 2],
    keys: impl Iterator<Item = &'a PackedKey>,
) {
    heads.clear();
    suffixes.clear();
    let mut previous: &[u8] = &[];
    for key in keys.map(PackedKey::as_bytes) {
        let shared = previous.iter().zip(key).take(KEY_SHARED_BYTES_MAX).take_while(|(a, b)| a == b).count();
        heads.size(shared);
        heads.size(key.len() - shared);
        suffixes.bytes(&key[shared..]);
        previous = key;
    }
    out.prefixed(heads.as_bytes());
    out.prefixed(suffixes.as_bytes());
}

/// Gives the keys one by one.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    heads: Reader<'a>,
    suffixes: Reader<'a>,
    key: Vec<u8>,
}

impl<'a> Keys<'a> {
    /// Reads `count` keys: at least two bytes of heads each.
    pub(super) fn read(from: &mut Reader<'a>, count: usize) -> Result<Self, DecodeError> {
        let heads = from.part("keys")?;
        if heads.remaining() / 2 < count {
            return Err(DecodeError::Truncated { what: "keys" });
        }
        Ok(Self { heads, suffixes: from.part("keys")?, key: Vec::new() })
    }

    pub(super) fn next(&mut self) -> Result<PackedKey, DecodeError> {
        let shared = self.heads.size()?;
        let max = self.key.len().min(KEY_SHARED_BYTES_MAX);
        if shared > max {
            return Err(DecodeError::TooLong { what: "shared part of a key", bytes: shared, max });
        }
        let suffix_bytes = self.heads.size()?;
        self.key.truncate(shared);
        self.key.extend_from_slice(self.suffixes.bytes(suffix_bytes)?);
        Ok(PackedKey::from_bytes(Arc::<[u8]>::from(self.key.as_slice())))
    }

    /// After the last one.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        self.heads.finish()?;
        self.suffixes.finish()
    }
}
