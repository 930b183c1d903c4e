//! [`PackedKey`]: the bytes of a primary key, as CRSqlite packs them (`crsqlite-compat.md` section 2, PK-1 to PK-6).

use std::fmt;
use std::sync::Arc;

use crate::Value;

const TYPE_INTEGER: u8 = 1;
const TYPE_REAL: u8 = 2;
const TYPE_TEXT: u8 = 3;
const TYPE_BLOB: u8 = 4;
const TYPE_NULL: u8 = 5;

/// The primary key of a row as bytes: a count, then each value with a tag.
///
/// Made by [`pack`](Self::pack); the bytes of a stranger are opaque until [`unpack`](Self::unpack) accepts them. Cheap to
/// clone: each change of a row has the row's key.
///
/// ```
/// use litemesh_proto::{PackedKey, Value};
///
/// let key = PackedKey::pack(&[Value::Integer(12), Value::text("str")])?;
/// assert_eq!(key.as_bytes(), [2, 0x09, 12, 0x0b, 3, b's', b't', b'r']);
/// assert_eq!(key.unpack()?, [Value::Integer(12), Value::text("str")]);
/// # Ok::<(), litemesh_proto::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PackedKey(Arc<[u8]>);

impl PackedKey {
    /// Packs values in PRIMARY KEY order, each in the fewest bytes.
    ///
    /// # Errors
    ///
    /// [`KeyError::TooManyValues`] above 255 values (PK-5).
    pub fn pack(values: &[Value]) -> Result<Self, KeyError> {
        let mut out = Vec::with_capacity(1 + values.iter().map(|v| 10 + v.payload_bytes()).sum::<usize>());
        Self::pack_from(values.iter().map(KeyValue::from), &mut out)
    }

    /// As [`pack`](Self::pack), of values that lie elsewhere; `scratch` is space to be used again for the next key.
    ///
    /// ```
    /// use litemesh_proto::{KeyValue, PackedKey, Value};
    ///
    /// let key = PackedKey::pack_from([KeyValue::Integer(12), KeyValue::Text(b"str")], &mut Vec::new())?;
    /// assert_eq!(key, PackedKey::pack(&[Value::Integer(12), Value::text("str")])?);
    /// # Ok::<(), litemesh_proto::KeyError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`pack`](Self::pack).
    pub fn pack_from<'a>(
        values: impl IntoIterator<Item = KeyValue<'a>>,
        scratch: &mut Vec<u8>,
    ) -> Result<Self, KeyError> {
        scratch.clear();
        scratch.push(0);
        let mut count = 0;
        for value in values {
            count += 1;
            match value {
                KeyValue::Null => scratch.push(TYPE_NULL),
                KeyValue::Integer(value) => push_tagged(scratch, TYPE_INTEGER, value.cast_unsigned()),
                KeyValue::Real(value) => {
                    scratch.push(TYPE_REAL);
                    scratch.extend_from_slice(&value.to_be_bytes());
                }
                KeyValue::Text(bytes) => push_bytes(scratch, TYPE_TEXT, bytes),
                KeyValue::Blob(bytes) => push_bytes(scratch, TYPE_BLOB, bytes),
            }
        }
        scratch[0] = u8::try_from(count).map_err(|_| KeyError::TooManyValues { count })?;
        Ok(Self(Arc::from(scratch.as_slice())))
    }

    /// Wraps bytes from elsewhere, unchecked: [`unpack`](Self::unpack) checks them.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The packed bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The values, in PRIMARY KEY order.
    ///
    /// Accepts integers in more bytes than needed (PK-6). Allocates no more than a constant times the input.
    ///
    /// # Errors
    ///
    /// Every malformed input of `crsqlite-compat.md` 2.3 has its [`KeyError`]; nothing here can panic.
    pub fn unpack(&self) -> Result<Vec<Value>, KeyError> {
        let mut values = Vec::with_capacity(self.0.first().map_or(0, |count| usize::from(*count).min(self.0.len())));
        self.read_values(|value| values.push(value.into()))?;
        Ok(values)
    }

    /// Checks the bytes without copying anything, and gives the number of values.
    ///
    /// # Errors
    ///
    /// As [`unpack`](Self::unpack).
    pub fn check(&self) -> Result<usize, KeyError> {
        let mut count = 0;
        self.read_values(|_| count += 1)?;
        Ok(count)
    }

    /// Gives the values one by one, without copying anything. Some may have been given when an error is found.
    ///
    /// # Errors
    ///
    /// As [`unpack`](Self::unpack).
    pub fn read_values<'a>(&'a self, mut each: impl FnMut(KeyValue<'a>)) -> Result<(), KeyError> {
        let mut reader = Reader { bytes: &self.0, at: 0 };
        for _ in 0..reader.byte()? {
            each(reader.value()?);
        }
        if reader.at != self.0.len() {
            return Err(KeyError::TrailingBytes { offset: reader.at });
        }
        Ok(())
    }
}

impl fmt::Debug for PackedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&const_hex::encode(&self.0))
    }
}

fn push_bytes(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    push_tagged(out, kind, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A tag `(n << 3) | kind`, then the integer in its `n` low bytes, big endian, as few as hold it (PK-2).
fn push_tagged(out: &mut Vec<u8>, kind: u8, integer: u64) {
    let width = 8 - (integer.leading_zeros() / 8) as usize;
    // A width is at most 8, so the shift stays in the byte.
    out.push(((width as u8) << 3) | kind);
    out.extend_from_slice(&integer.to_be_bytes()[8 - width..]);
}

/// One value of a key, borrowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyValue<'a> {
    /// NULL.
    Null,
    /// INTEGER.
    Integer(i64),
    /// REAL.
    Real(f64),
    /// TEXT.
    Text(&'a [u8]),
    /// BLOB.
    Blob(&'a [u8]),
}

impl<'a> From<&'a Value> for KeyValue<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Integer(value) => Self::Integer(*value),
            Value::Real(value) => Self::Real(*value),
            Value::Text(bytes) => Self::Text(bytes),
            Value::Blob(bytes) => Self::Blob(bytes),
        }
    }
}

impl From<KeyValue<'_>> for Value {
    fn from(value: KeyValue<'_>) -> Self {
        match value {
            KeyValue::Null => Self::Null,
            KeyValue::Integer(value) => Self::Integer(value),
            KeyValue::Real(value) => Self::from(value),
            KeyValue::Text(bytes) => Self::Text(bytes.into()),
            KeyValue::Blob(bytes) => Self::Blob(bytes.into()),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], KeyError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or(KeyError::Truncated { offset: self.at })?;
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, KeyError> {
        Ok(self.take(1)?[0])
    }

    fn value(&mut self) -> Result<KeyValue<'a>, KeyError> {
        let offset = self.at;
        let tag = self.byte()?;
        let (kind, width) = (tag & 7, usize::from(tag >> 3));
        match kind {
            TYPE_INTEGER => Ok(KeyValue::Integer(self.integer(offset, width)?.cast_signed())),
            TYPE_REAL if width == 0 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(self.take(8)?);
                let real = f64::from_be_bytes(bytes);
                // What SQLite makes of it.
                Ok(if real.is_nan() { KeyValue::Null } else { KeyValue::Real(real) })
            }
            TYPE_TEXT => Ok(KeyValue::Text(self.payload(offset, width)?)),
            TYPE_BLOB => Ok(KeyValue::Blob(self.payload(offset, width)?)),
            TYPE_NULL if width == 0 => Ok(KeyValue::Null),
            _ => Err(KeyError::UnknownTag { tag, offset }),
        }
    }

    /// Zero-extending, never sign-extending: 128 is the one byte `80` (PK-3).
    fn integer(&mut self, offset: usize, width: usize) -> Result<u64, KeyError> {
        if width > 8 {
            return Err(KeyError::IntegerTooWide { bytes: width, offset });
        }
        Ok(self.take(width)?.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
    }

    fn payload(&mut self, offset: usize, width: usize) -> Result<&'a [u8], KeyError> {
        let length = self.integer(offset, width)?;
        self.take(usize::try_from(length).map_err(|_| KeyError::Truncated { offset })?)
    }
}

/// A packed key that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum KeyError {
    #[error("a packed key holds at most 255 values, got {count}")]
    TooManyValues { count: usize },
    #[error("packed key ends early, at byte {offset}")]
    Truncated { offset: usize },
    #[error("packed key has an integer of {bytes} bytes at byte {offset}, at most 8 are allowed")]
    IntegerTooWide { bytes: usize, offset: usize },
    #[error("packed key has the unknown tag {tag:#04x} at byte {offset}")]
    UnknownTag { tag: u8, offset: usize },
    #[error("packed key goes on after its last value, at byte {offset}")]
    TrailingBytes { offset: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[Value], hex: &str) {
        let key = PackedKey::pack(values).unwrap();
        assert_eq!(const_hex::encode_upper(key.as_bytes()), hex.replace(' ', ""), "{values:?}");
        assert_eq!(key.unpack().unwrap(), values);
    }

    /// The worked examples of 2.2, produced by CRSqlite.
    #[test]
    fn packs_as_crsqlite_does() {
        for (value, hex) in [
            (0, "01 01"),
            (1, "01 09 01"),
            (127, "01 09 7F"),
            (128, "01 09 80"),
            (255, "01 09 FF"),
            (256, "01 11 0100"),
            (65535, "01 11 FFFF"),
            (65536, "01 19 010000"),
            (16777216, "01 21 01000000"),
            (2147483648, "01 21 80000000"),
            (4294967296, "01 29 0100000000"),
            (1099511627775, "01 29 FFFFFFFFFF"),
            (i64::MAX, "01 41 7FFFFFFFFFFFFFFF"),
            (-1, "01 41 FFFFFFFFFFFFFFFF"),
            (-128, "01 41 FFFFFFFFFFFFFF80"),
            (i64::MIN, "01 41 8000000000000000"),
        ] {
            check(&[Value::Integer(value)], hex);
        }
        check(&[Value::Null], "01 05");
        check(&[Value::Real(0.0)], "01 02 0000000000000000");
        check(&[Value::Real(1.5)], "01 02 3FF8000000000000");
        check(&[Value::Real(-0.0)], "01 02 8000000000000000");
        check(&[Value::Real(f64::INFINITY)], "01 02 7FF0000000000000");
        check(&[Value::text("")], "01 03");
        check(&[Value::text("a")], "01 0B 01 61");
        check(&[Value::text("héllo")], "01 0B 06 68C3A96C6C6F");
        check(&[Value::blob([])], "01 04");
        check(&[Value::blob([0, 255])], "01 0C 02 00FF");
        check(&[Value::Integer(1), Value::Integer(2)], "02 0901 0902");
        check(&[Value::text("a"), Value::Null, Value::Integer(3)], "03 0B0161 05 0903");
        check(&[Value::Integer(12), Value::text("str"), Value::blob([1, 2, 3])], "03 090C 0B03737472 0C03010203");
        check(&[Value::text("x".repeat(128))], &format!("01 0B 80 {}", "78".repeat(128)));
        check(&[Value::text("x".repeat(300))], &format!("01 13 012C {}", "78".repeat(300)));
        check(&[Value::blob(vec![7; 70000])], &format!("01 1C 011170 {}", "07".repeat(70000)));
    }

    #[test]
    fn accepts_integers_wider_than_needed() {
        assert_eq!(PackedKey::from_bytes([1, 0x11, 0, 1]).unpack(), Ok(vec![Value::Integer(1)]));
    }

    /// 2.3: what aborts CRSqlite, or corrupts another row there, is an error here.
    #[test]
    fn malformed_keys_are_errors() {
        let refuse = |bytes: &[u8], expected: KeyError| {
            assert_eq!(PackedKey::from_bytes(bytes).unpack(), Err(expected), "{bytes:02x?}");
        };
        refuse(&[], KeyError::Truncated { offset: 0 });
        refuse(&[1], KeyError::Truncated { offset: 1 });
        refuse(&[1, 0x49, 0, 0, 0, 0, 0, 0, 0, 0, 1], KeyError::IntegerTooWide { bytes: 9, offset: 1 });
        refuse(&[1, 0x0b, 5, b'a'], KeyError::Truncated { offset: 3 });
        refuse(&[1, 0x43, 255, 255, 255, 255, 255, 255, 255, 255], KeyError::Truncated { offset: 10 });
        refuse(&[1, 0x08], KeyError::UnknownTag { tag: 0x08, offset: 1 });
        refuse(&[1, 0x0e], KeyError::UnknownTag { tag: 0x0e, offset: 1 });
        refuse(&[1, 0x0d, 0], KeyError::UnknownTag { tag: 0x0d, offset: 1 });
        refuse(&[1, 0x09, 1, 0], KeyError::TrailingBytes { offset: 3 });
        assert_eq!(PackedKey::pack(&vec![Value::Null; 256]), Err(KeyError::TooManyValues { count: 256 }));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(values) = PackedKey::from_bytes(bytes).unpack() {
                let packed = PackedKey::pack(&values).unwrap();
                proptest::prop_assert_eq!(packed.unpack().unwrap(), values);
            }
        }
    }
}
