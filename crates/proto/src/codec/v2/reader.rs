//! [`Reader`]: a stranger's bytes from front to back. Nothing here panics or allocates.

use crate::DecodeError;

/// What is left of some bytes. `what` names them in errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (byte, rest) = self.rest.split_first().ok_or(DecodeError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(*byte)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Bytes with their number before them.
    pub(super) fn prefixed(&mut self) -> Result<&'a [u8], DecodeError> {
        let count = self.size()?;
        self.bytes(count)
    }

    /// As [`prefixed`](Self::prefixed), to be read under a name of their own.
    pub(super) fn part(&mut self, what: &'static str) -> Result<Self, DecodeError> {
        Ok(Self::new(self.prefixed()?, what))
    }

    /// See [`Writer::unsigned`](super::writer::Writer::unsigned). More bytes than needed are accepted, up to ten.
    pub(super) fn unsigned(&mut self) -> Result<u64, DecodeError> {
        // Most numbers by far.
        if let Some((byte @ 0..0x80, rest)) = self.rest.split_first() {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        self.long_unsigned()
    }

    fn long_unsigned(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        // One bit is left for the tenth byte.
        match self.byte()? {
            byte @ 0..=1 => Ok(number | u64::from(byte) << 63),
            _ => Err(DecodeError::NumberTooLarge { what: self.what }),
        }
    }

    pub(super) fn signed(&mut self) -> Result<i64, DecodeError> {
        let number = self.unsigned()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    pub(super) fn unsigned32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.unsigned()?).map_err(|_| DecodeError::NumberTooLarge { what: self.what })
    }

    /// A number of bytes.
    pub(super) fn size(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(self.unsigned()?).map_err(|_| DecodeError::Truncated { what: self.what })
    }

    /// A number of things that follow, of at least `bytes_each` bytes: never more than there is room for, so that space can be
    /// reserved for all of them.
    pub(super) fn count(&mut self, bytes_each: usize) -> Result<usize, DecodeError> {
        let count = self.size()?;
        if count > self.remaining() / bytes_each {
            return Err(DecodeError::Truncated { what: self.what });
        }
        Ok(count)
    }

    /// The end of what was to be read.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.is_empty() {
            return Ok(());
        }
        Err(DecodeError::TrailingBytes { what: self.what, bytes: self.remaining() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::{Writer, signed_bytes};
    use super::*;

    #[test]
    fn numbers_read_back_the_same_at_every_width() {
        let edges = (0..64).flat_map(|bit| [(1_i64 << bit).wrapping_sub(1), 1 << bit, (1_i64 << bit).wrapping_neg()]);
        for number in edges.chain([0, i64::MIN, i64::MAX]) {
            let mut writer = Writer::default();
            writer.signed(number);
            assert_eq!(writer.as_bytes().len(), signed_bytes(number), "{number}");
            writer.unsigned(number.cast_unsigned());
            let mut reader = Reader::new(writer.as_bytes(), "test");
            assert_eq!(reader.signed(), Ok(number));
            assert_eq!(reader.unsigned(), Ok(number.cast_unsigned()));
            assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn numbers_that_end_early_or_never_are_errors() {
        let read = |bytes: &[u8]| Reader::new(bytes, "test").unsigned();
        assert_eq!(read(&[]), Err(DecodeError::Truncated { what: "test" }));
        assert_eq!(read(&[0x80; 9]), Err(DecodeError::Truncated { what: "test" }));
        assert_eq!(read(&[0x80; 11]), Err(DecodeError::NumberTooLarge { what: "test" }));
        assert_eq!(read(&[[0xff; 9].as_slice(), &[1]].concat()), Ok(u64::MAX));
        assert_eq!(read(&[[0xff; 9].as_slice(), &[2]].concat()), Err(DecodeError::NumberTooLarge { what: "test" }));
        assert_eq!(read(&[0x81, 0x80, 0]), Ok(1), "more bytes than needed");
    }

    #[test]
    fn no_count_is_beyond_what_follows() {
        assert_eq!(Reader::new(&[3, 0, 0, 0], "test").count(1), Ok(3));
        assert_eq!(Reader::new(&[4, 0, 0, 0], "test").count(1), Err(DecodeError::Truncated { what: "test" }));
        assert_eq!(Reader::new(&[2, 0, 0, 0], "test").count(2), Err(DecodeError::Truncated { what: "test" }));
    }
}
