//! [`Value`]: SQLite's five storage classes, and the total order that breaks ties.

use std::cmp::Ordering;
use std::fmt;

/// One SQLite value, exactly as stored.
///
/// TEXT is bytes: SQLite does not check that it is UTF-8, so neither may a copy of it.
#[derive(Clone, PartialEq, Default)]
pub enum Value {
    /// NULL.
    #[default]
    Null,
    /// INTEGER, 64 bits.
    Integer(i64),
    /// REAL, never NaN (SQLite stores NaN as NULL).
    Real(f64),
    /// TEXT, usually UTF-8.
    Text(Box<[u8]>),
    /// BLOB.
    Blob(Box<[u8]>),
}

impl Value {
    /// TEXT from a string.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into().into_bytes().into_boxed_slice())
    }

    /// BLOB from bytes.
    pub fn blob(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Blob(bytes.into().into_boxed_slice())
    }

    /// The text, where this is TEXT and valid UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Bytes of payload: the length of TEXT and BLOB, 8 for numbers, 0 for NULL.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Integer(_) | Self::Real(_) => 8,
            Self::Text(bytes) | Self::Blob(bytes) => bytes.len(),
        }
    }

    /// The order in which concurrent writes of one cell win: the larger value wins.
    ///
    /// By type first, INTEGER > REAL > TEXT > BLOB > NULL; then numerically or by unsigned bytes. No collation, no affinity:
    /// `1` beats `1.0`, and `0` beats `99.9`. Source: `crsqlite-compat.md` 5.4, CMP-1 and CMP-2.
    ///
    /// ```
    /// use std::cmp::Ordering;
    /// use litemesh_proto::Value;
    ///
    /// assert_eq!(Value::Integer(0).merge_cmp(&Value::Real(99.9)), Ordering::Greater);
    /// assert_eq!(Value::text("ab").merge_cmp(&Value::text("b")), Ordering::Less);
    /// assert_eq!(Value::Real(-0.0).merge_cmp(&Value::Real(0.0)), Ordering::Equal);
    /// ```
    pub fn merge_cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            // NaN cannot be stored; should one arrive all the same, it ties with everything and the held value stays.
            (Self::Real(a), Self::Real(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
            (Self::Text(a), Self::Text(b)) | (Self::Blob(a), Self::Blob(b)) => a.cmp(b),
            _ => self.type_rank().cmp(&other.type_rank()),
        }
    }

    const fn type_rank(&self) -> u8 {
        match self {
            Self::Integer(_) => 4,
            Self::Real(_) => 3,
            Self::Text(_) => 2,
            Self::Blob(_) => 1,
            Self::Null => 0,
        }
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        if value.is_nan() { Self::Null } else { Self::Real(value) }
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::text(value)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Real(value) => write!(f, "{value:?}"),
            Self::Text(bytes) => write!(f, "{:?}", String::from_utf8_lossy(bytes)),
            Self::Blob(bytes) => write!(f, "x'{}'", const_hex::encode(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CMP-1: the full matrix of types.
    #[test]
    fn types_rank_integer_real_text_blob_null() {
        let descending = [Value::Integer(-5), Value::Real(9e9), Value::text("z"), Value::blob([255]), Value::Null];
        for (i, a) in descending.iter().enumerate() {
            for (j, b) in descending.iter().enumerate() {
                assert_eq!(a.merge_cmp(b), j.cmp(&i), "{a:?} against {b:?}");
            }
        }
    }

    /// CMP-2.
    #[test]
    fn equal_types_compare_numerically_or_by_bytes() {
        let check = |a: Value, b: Value, expected| assert_eq!(a.merge_cmp(&b), expected, "{a:?} against {b:?}");
        check(Value::Integer(2), Value::Integer(10), Ordering::Less);
        check(Value::Real(2.5), Value::Real(-1.0), Ordering::Greater);
        check(Value::text("2"), Value::text("10"), Ordering::Greater);
        check(Value::text("a"), Value::text("ab"), Ordering::Less);
        check(Value::blob([1]), Value::blob([0, 255]), Ordering::Greater);
        check(Value::Null, Value::Null, Ordering::Equal);
        check(Value::Integer(1), Value::Real(1.0), Ordering::Greater);
    }
}
