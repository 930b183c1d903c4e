//! Compression, one piece at a time and with a bound on what comes out.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder};

/// Level 1: on sync messages it already shrinks 17 times (`known-failures.md` D5), and costs a third of the default.
const LEVEL: Compression = Compression::fast();

/// Compressed bytes that are decoded at a time. Deflate expands 1032 times at most, so one step yields about 1 MiB.
pub(crate) const DECODE_STEP_BYTES: usize = 1024;

/// Whether an `Accept-Encoding` header takes gzip: it is named with a weight above zero, or `*` is and gzip is not.
pub(crate) fn accepts_gzip(header: &str) -> bool {
    let mut any = false;
    for offer in header.split(',') {
        let mut parts = offer.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let is_taken = weight.is_none_or(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0));
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            return is_taken;
        }
        any |= coding == "*" && is_taken;
    }
    any
}

/// Compresses a stream; what was written up to the end of a frame can be read by the other side.
pub(crate) struct StreamEncoder(GzEncoder<Vec<u8>>);

impl StreamEncoder {
    pub(crate) fn new() -> Self {
        Self(GzEncoder::new(Vec::new(), LEVEL))
    }

    /// Compresses a piece. The output may be empty: the encoder holds back what may still shrink.
    pub(crate) fn write(&mut self, piece: &[u8], flush: bool) -> Bytes {
        let result = self.0.write_all(piece).and_then(|()| if flush { self.0.flush() } else { Ok(()) });
        if let Err(error) = result {
            unreachable!("writing to memory does not fail: {error}");
        }
        std::mem::take(self.0.get_mut()).into()
    }
}

/// Decompresses a stream piece by piece.
pub(crate) struct StreamDecoder(GzDecoder<Vec<u8>>);

impl StreamDecoder {
    pub(crate) fn new() -> Self {
        Self(GzDecoder::new(Vec::new()))
    }

    /// Decodes a piece of at most [`DECODE_STEP_BYTES`], and gives everything that can be known by now.
    pub(crate) fn write(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        debug_assert!(piece.len() <= DECODE_STEP_BYTES, "a larger piece could yield any amount");
        self.0.write_all(piece)?;
        self.0.flush()?;
        Ok(std::mem::take(self.0.get_mut()))
    }
}

/// Collects a request body up to a limit, decoding it where it is compressed.
pub(crate) enum BodyBuffer {
    Plain(Bounded),
    Gzip(Box<GzDecoder<Bounded>>),
}

/// Why a body cannot be collected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyError {
    TooLarge,
    Corrupt(String),
}

impl BodyBuffer {
    pub(crate) fn new(is_gzip: bool, bytes_max: usize) -> Self {
        let bounded = Bounded { bytes: Vec::new(), bytes_max, overflowed: false };
        if is_gzip { Self::Gzip(Box::new(GzDecoder::new(bounded))) } else { Self::Plain(bounded) }
    }

    fn bounded(&self) -> &Bounded {
        match self {
            Self::Plain(bounded) => bounded,
            Self::Gzip(decoder) => decoder.get_ref(),
        }
    }

    /// What was collected so far, decoded.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bounded().bytes
    }

    /// Adds a piece. Nothing beyond the limit is ever held, whatever a compressed piece expands to.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), BodyError> {
        let result = match self {
            Self::Plain(bounded) => bounded.write_all(piece),
            // Flushed, because the decoder holds back up to 32 KiB, and the sender's id is among the first bytes.
            Self::Gzip(decoder) => decoder.write_all(piece).and_then(|()| decoder.flush()),
        };
        result.map_err(|error| self.explain(&error))
    }

    /// The whole body; a compressed one must have its end.
    pub(crate) fn finish(self) -> Result<Vec<u8>, BodyError> {
        match self {
            Self::Plain(bounded) => Ok(bounded.bytes),
            Self::Gzip(mut decoder) => {
                if let Err(error) = decoder.try_finish() {
                    let explained = BodyError::Corrupt(error.to_string());
                    let bounded = decoder.get_ref();
                    return Err(if bounded.overflowed { BodyError::TooLarge } else { explained });
                }
                Ok(std::mem::take(&mut decoder.get_mut().bytes))
            }
        }
    }

    fn explain(&self, error: &io::Error) -> BodyError {
        if self.bounded().overflowed { BodyError::TooLarge } else { BodyError::Corrupt(error.to_string()) }
    }
}

/// A `Vec` that refuses to grow beyond its bound.
pub(crate) struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
    overflowed: bool,
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let needed = self.bytes.len() + piece.len();
        if needed > self.bytes_max {
            self.overflowed = true;
            return Err(io::Error::other("the body is larger than the limit"));
        }
        if needed > self.bytes.capacity() {
            // Doubling alone would allocate up to twice the limit.
            let capacity = (2 * self.bytes.capacity()).max(needed).min(self.bytes_max);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compress(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), LEVEL);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_is_used_only_where_it_is_offered() {
        for yes in ["gzip", "br, gzip;q=0.5", "GZIP", "*", "deflate;q=0, *;q=0.1", "gzip; q=1"] {
            assert!(accepts_gzip(yes), "{yes}");
        }
        for no in ["", "identity", "gzip;q=0", "gzip;q=0.000, *", "br", "*;q=0", "gzip;q=x"] {
            assert!(!accepts_gzip(no), "{no}");
        }
    }

    #[test]
    fn a_stream_can_be_read_up_to_every_flush() {
        let (mut encoder, mut decoder) = (StreamEncoder::new(), StreamDecoder::new());
        for frame in ["data: one\n\n", "data: two\n\n", "data: three\n\n"] {
            let compressed = encoder.write(frame.as_bytes(), true);
            // Byte by byte, the worst way in which a network can cut it.
            let decoded: Vec<u8> = compressed.iter().flat_map(|byte| decoder.write(&[*byte]).unwrap()).collect();
            assert_eq!(decoded, frame.as_bytes());
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let bomb = compress(&vec![0; 8 << 20]);
        assert!(bomb.len() < 256 * 1024);
        let mut body = BodyBuffer::new(true, 1 << 20);
        assert_eq!(body.push(&bomb), Err(BodyError::TooLarge));
        assert!(body.bounded().bytes.capacity() <= 1 << 20);
    }

    #[test]
    fn the_limit_itself_still_fits_and_allocates_no_more() {
        for is_gzip in [false, true] {
            let whole = vec![b'x'; 100_000];
            let sent = if is_gzip { compress(&whole) } else { whole.clone() };
            let mut body = BodyBuffer::new(is_gzip, whole.len());
            sent.chunks(700).for_each(|piece| body.push(piece).unwrap());
            assert!(body.bounded().bytes.capacity() <= whole.len());
            assert_eq!(body.finish(), Ok(whole));
        }
    }

    #[test]
    fn a_cut_or_damaged_body_is_noticed() {
        let whole = compress(b"{\"type\":\"sync\"}");
        for cut in 0..whole.len() {
            let mut body = BodyBuffer::new(true, 1000);
            body.push(&whole[..cut]).unwrap();
            assert!(matches!(body.finish(), Err(BodyError::Corrupt(_))), "cut at {cut}");
        }
        let mut damaged = whole.clone();
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 1;
        let mut body = BodyBuffer::new(true, 1000);
        let result = body.push(&damaged).and_then(|()| body.finish());
        assert!(matches!(result, Err(BodyError::Corrupt(_))));
    }
}
