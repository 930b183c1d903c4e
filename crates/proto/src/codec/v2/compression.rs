//! Bodies of frames through zstd.
//!
//! ```text
//! n      how many bytes the body has after decompression
//! rest   one zstd frame, and skippable frames of zstd after it
//! ```

#[cfg(feature = "compress")]
pub(super) use with_zstd::{compress, decompress};
#[cfg(not(feature = "compress"))]
pub(super) use without_zstd::{compress, decompress};

#[cfg(feature = "compress")]
mod with_zstd {
    use std::cell::RefCell;

    use super::super::reader::Reader;
    use super::super::writer::Writer;
    use crate::limits::FRAME_EXPANSION_MAX;
    use crate::{DecodeError, Limits};

    /// Shorter bodies are sent as they are: zstd's own frame takes a dozen bytes, and its tables half a megabyte of memory.
    const COMPRESSED_BYTES_MIN: usize = 256;

    /// The fastest level with entropy coding. Higher ones gain little on columns of differences.
    const LEVEL: i32 = 1;

    /// What zstd ignores: this, a length of four bytes with the low ones first, and as many bytes (RFC 8878, 3.1.2).
    const SKIPPABLE: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();

    thread_local! {
        /// Its tables take up to a megabyte; made anew for each frame, they would cost more than the compression of a small one.
        static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    }

    fn compressed(body: &[u8]) -> std::io::Result<Vec<u8>> {
        COMPRESSOR.with_borrow_mut(|kept| {
            let compressor = match kept {
                Some(compressor) => compressor,
                None => kept.insert(zstd::bulk::Compressor::new(LEVEL)?),
            };
            compressor.compress(body)
        })
    }

    /// Appends the body in compressed form; `false` where that would not be shorter, and nothing was appended.
    pub(in super::super) fn compress(out: &mut Writer, body: &[u8]) -> bool {
        if body.len() < COMPRESSED_BYTES_MIN {
            return false;
        }
        // Compression of what lies in memory fails only for want of memory; then it goes as it is.
        let Ok(compressed) = compressed(body) else { return false };
        // A body that shrinks further than receivers accept is padded: that is still far shorter than uncompressed.
        let padding = body.len().div_ceil(FRAME_EXPANSION_MAX).saturating_sub(compressed.len());
        if compressed.len() + padding + 8 >= body.len() {
            return false;
        }
        out.size(body.len());
        out.bytes(&compressed);
        if let (1.., Ok(length)) = (padding, u32::try_from(padding)) {
            out.bytes(&SKIPPABLE);
            out.bytes(&length.to_le_bytes());
            out.bytes(&vec![0; padding]);
        }
        true
    }

    /// The body, from all that is left.
    pub(in super::super) fn decompress(from: &mut Reader<'_>, limits: &Limits) -> Result<Vec<u8>, DecodeError> {
        let raw = from.size()?;
        let compressed = from.remaining();
        let compressed_bytes = from.bytes(compressed)?;
        if raw > limits.message_bytes_max {
            return Err(DecodeError::TooLong { what: "frame", bytes: raw, max: limits.message_bytes_max });
        }
        if raw > compressed.saturating_mul(FRAME_EXPANSION_MAX) {
            return Err(DecodeError::Expansion { compressed, raw, ratio: FRAME_EXPANSION_MAX });
        }
        let zstd_error = |error: std::io::Error| DecodeError::Zstd { reason: error.to_string() };
        let mut body = Vec::with_capacity(raw);
        let mut decompressor = zstd::bulk::Decompressor::new().map_err(zstd_error)?;
        decompressor.decompress_to_buffer(compressed_bytes, &mut body).map_err(zstd_error)?;
        if body.len() != raw {
            return Err(DecodeError::Zstd { reason: format!("{} bytes instead of {raw}", body.len()) });
        }
        Ok(body)
    }
}

#[cfg(not(feature = "compress"))]
mod without_zstd {
    use super::super::reader::Reader;
    use super::super::writer::Writer;
    use crate::{DecodeError, Limits};

    pub(in super::super) fn compress(_: &mut Writer, _: &[u8]) -> bool {
        false
    }

    pub(in super::super) fn decompress(_: &mut Reader<'_>, _: &Limits) -> Result<Vec<u8>, DecodeError> {
        Err(DecodeError::Compressed)
    }
}
