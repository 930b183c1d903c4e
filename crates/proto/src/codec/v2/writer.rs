//! [`Writer`]: bytes that grow at the end. Each method has its counterpart in [`Reader`](super::reader::Reader).

/// Numbers and byte strings, one after the other.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    /// Bytes whose number the reader knows.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes with their number before them.
    pub(super) fn prefixed(&mut self, bytes: &[u8]) {
        self.size(bytes.len());
        self.bytes(bytes);
    }

    /// Seven bits a byte, the low ones first; the high bit says that more follow.
    pub(super) fn unsigned(&mut self, mut number: u64) {
        while number >= 0x80 {
            // The seven low bits, and the mark.
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    pub(super) fn size(&mut self, size: usize) {
        self.unsigned(size as u64);
    }

    /// Small numbers of either sign become small unsigned ones: 0, -1, 1, -2, 2…
    pub(super) fn signed(&mut self, number: i64) {
        self.unsigned(zigzag(number));
    }
}

pub(super) const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

/// How many bytes [`Writer::signed`] takes for it.
pub(super) const fn signed_bytes(number: i64) -> usize {
    // One byte for each seven bits, and one for zero.
    (70 - (zigzag(number) | 1).leading_zeros() as usize) / 7
}
