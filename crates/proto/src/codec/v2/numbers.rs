//! Columns of numbers: one for each row, or for each change of a column.
//!
//! ```text
//! 0             number     all are this one
//! n > 0 bytes   numbers    each for itself, n bytes in all
//! ```

use super::reader::Reader;
use super::writer::Writer;
use crate::DecodeError;

/// Writes the numbers. `scratch` is space to be used again.
pub(super) fn write_numbers(out: &mut Writer, scratch: &mut Writer, numbers: impl Iterator<Item = i64> + Clone) {
    let mut others = numbers.clone();
    let first = others.next().unwrap_or_default();
    if others.all(|number| number == first) {
        out.size(0);
        out.signed(first);
        return;
    }
    scratch.clear();
    numbers.for_each(|number| scratch.signed(number));
    out.prefixed(scratch.as_bytes());
}

/// Gives the numbers one by one.
#[derive(Clone, Debug)]
pub(super) enum Numbers<'a> {
    Constant(i64),
    Each(Reader<'a>),
}

impl<'a> Numbers<'a> {
    pub(super) fn read(from: &mut Reader<'a>, what: &'static str) -> Result<Self, DecodeError> {
        let numbers = from.part(what)?;
        if numbers.is_empty() { Ok(Self::Constant(from.signed()?)) } else { Ok(Self::Each(numbers)) }
    }

    pub(super) fn next(&mut self) -> Result<i64, DecodeError> {
        match self {
            Self::Constant(number) => Ok(*number),
            Self::Each(reader) => reader.signed(),
        }
    }

    /// A number of something in a list; beyond every list where it is negative.
    pub(super) fn next_index(&mut self) -> Result<usize, DecodeError> {
        Ok(usize::try_from(self.next()?).unwrap_or(usize::MAX))
    }

    /// After the last one.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self {
            Self::Constant(_) => Ok(()),
            Self::Each(reader) => reader.finish(),
        }
    }
}
