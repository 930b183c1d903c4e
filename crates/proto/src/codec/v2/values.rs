//! The column of values: the values of one column of rows that have the same columns.
//!
//! ```text
//! byte      encoding   low bits: the type of all values, or 0 where each has its own; 8: integers as differences
//! bytes     types      with 0 alone: one for each value
//! n bytes   heads      of an INTEGER the number, of TEXT and BLOB the length
//! n bytes   payload    of a REAL its 8 bytes, low ones first; of TEXT and BLOB their bytes
//! ```
//!
//! Each value takes at least one byte: a column of NULLs spells out its types. This is what bounds the memory that a frame
//! can cost.

use super::reader::Reader;
use super::writer::{Writer, signed_bytes};
use crate::{DecodeError, Value};

const EACH_ITS_OWN: u8 = 0;
const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
const NULL: u8 = 5;

/// Added to the encoding: each integer is its difference from the one before it in the column, the first from 0.
const DIFFERENCES: u8 = 8;

fn type_of(value: &Value) -> u8 {
    match value {
        Value::Integer(_) => INTEGER,
        Value::Real(_) => REAL,
        Value::Text(_) => TEXT,
        Value::Blob(_) => BLOB,
        Value::Null => NULL,
    }
}

pub(super) fn write_values<'a>(
    out: &mut Writer,
    [heads, payload]: &mut [Writer; 2],
    values: impl Iterator<Item = &'a Value> + Clone,
) {
    let (encoding, differences) = choose_encoding(values.clone());
    out.byte(if differences { encoding | DIFFERENCES } else { encoding });
    if encoding == EACH_ITS_OWN {
        values.clone().for_each(|value| out.byte(type_of(value)));
    }
    heads.clear();
    payload.clear();
    let mut previous = 0;
    for value in values {
        match value {
            Value::Null => {}
            Value::Integer(value) => {
                heads.signed(value.wrapping_sub(previous));
                previous = if differences { *value } else { 0 };
            }
            Value::Real(value) => payload.bytes(&value.to_le_bytes()),
            Value::Text(bytes) | Value::Blob(bytes) => {
                heads.size(bytes.len());
                payload.bytes(bytes);
            }
        }
    }
    out.prefixed(heads.as_bytes());
    out.prefixed(payload.as_bytes());
}

/// The type of all values, if they have the same; and whether integers are shorter as differences.
fn choose_encoding<'a>(values: impl Iterator<Item = &'a Value>) -> (u8, bool) {
    let mut encoding = None;
    let (mut plain_bytes, mut difference_bytes, mut previous) = (0, 0, 0_i64);
    for value in values {
        let kind = type_of(value);
        if *encoding.get_or_insert(kind) != kind {
            encoding = Some(EACH_ITS_OWN);
        }
        if let Value::Integer(value) = value {
            plain_bytes += signed_bytes(*value);
            difference_bytes += signed_bytes(value.wrapping_sub(previous));
            previous = *value;
        }
    }
    let encoding = encoding.filter(|encoding| *encoding != NULL).unwrap_or(EACH_ITS_OWN);
    (encoding, difference_bytes < plain_bytes)
}

/// Gives the values one by one.
#[derive(Debug)]
pub(super) struct Values<'a> {
    uniform: u8,
    types: Reader<'a>,
    heads: Reader<'a>,
    payload: Reader<'a>,
    differences: bool,
    previous: i64,
}

const WHAT: &str = "values";

impl<'a> Values<'a> {
    /// Reads `count` values: at least one byte each.
    pub(super) fn read(from: &mut Reader<'a>, count: usize) -> Result<Self, DecodeError> {
        let encoding = from.byte()?;
        let differences = encoding & DIFFERENCES != 0;
        let uniform = encoding & !DIFFERENCES;
        // Every value has a byte of its own in one of the three parts.
        let types = if uniform == EACH_ITS_OWN { from.bytes(count)? } else { &[] };
        let heads = from.part(WHAT)?;
        let payload = from.part(WHAT)?;
        let room = match uniform {
            EACH_ITS_OWN => count,
            INTEGER | TEXT | BLOB => heads.remaining(),
            REAL => payload.remaining() / size_of::<f64>(),
            // NULLs would take no bytes.
            _ => return Err(DecodeError::UnknownType { byte: encoding }),
        };
        if room < count {
            return Err(DecodeError::Truncated { what: WHAT });
        }
        Ok(Self { uniform, types: Reader::new(types, WHAT), heads, payload, differences, previous: 0 })
    }

    pub(super) fn next(&mut self) -> Result<Value, DecodeError> {
        let kind = if self.uniform == EACH_ITS_OWN { self.types.byte()? } else { self.uniform };
        match kind {
            INTEGER => {
                let value = self.heads.signed()?.wrapping_add(self.previous);
                if self.differences {
                    self.previous = value;
                }
                Ok(Value::Integer(value))
            }
            // NaN becomes NULL, as in SQLite.
            REAL => Ok(Value::from(f64::from_le_bytes(self.payload.array()?))),
            TEXT => Ok(Value::Text(self.string()?)),
            BLOB => Ok(Value::Blob(self.string()?)),
            NULL => Ok(Value::Null),
            byte => Err(DecodeError::UnknownType { byte }),
        }
    }

    fn string(&mut self) -> Result<Box<[u8]>, DecodeError> {
        let length = self.heads.size()?;
        Ok(self.payload.bytes(length)?.into())
    }

    /// After the last one.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        self.types.finish()?;
        self.heads.finish()?;
        self.payload.finish()
    }
}
