//! [`Deframer`]: frames out of a stream of bytes, in any pieces.

use crate::{DecodeError, Limits};

/// A frame with its length before it, as 4 bytes with the low ones first: how frames follow each other in a stream.
///
/// ```
/// use litemesh_proto::codec::v2;
///
/// assert_eq!(v2::framed(&v2::ping()), [2, 0, 0, 0, 6, 0]);
/// ```
pub fn framed(frame: &[u8]) -> Vec<u8> {
    // No frame has 4 GiB: batches are bounded, and so is the longest value of SQLite.
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes(), frame].concat()
}

/// An incremental reader of frames that follow each other. It holds at most one unfinished frame, and of it no more than has
/// come: a length alone reserves nothing.
///
/// A frame beyond [`Limits::message_bytes_max`] ends the stream, and every later call says so again. To skip it would mean to
/// trust a length that is more likely no length at all, and to read up to 4 GiB for nothing; who sends such frames does
/// not keep the protocol. Carriers close the connection.
///
/// ```
/// use litemesh_proto::Limits;
/// use litemesh_proto::codec::v2::{self, Deframer};
///
/// let stream = [v2::framed(&v2::ping()), v2::framed(&v2::error("BUSY"))].concat();
/// let mut deframer = Deframer::new(&Limits::default());
/// let mut frames = Vec::new();
/// for mut piece in stream.chunks(3) {
///     while let Some(frame) = deframer.feed(&mut piece)? {
///         frames.push(frame);
///     }
/// }
/// assert_eq!(frames, [v2::ping(), v2::error("BUSY")]);
/// assert!(deframer.is_between_frames());
/// # Ok::<(), litemesh_proto::DecodeError>(())
/// ```
#[derive(Debug)]
pub struct Deframer {
    frame_bytes_max: usize,
    /// Of the length before the frame: its bytes, and how many have come.
    length: [u8; 4],
    length_bytes: usize,
    frame: Vec<u8>,
}

impl Deframer {
    /// A reader at the start of a stream.
    pub fn new(limits: &Limits) -> Self {
        Self { frame_bytes_max: limits.message_bytes_max, length: [0; 4], length_bytes: 0, frame: Vec::new() }
    }

    /// Takes bytes off the front of `bytes` up to the end of one frame, and gives it; `None` when all bytes are taken and the
    /// frame goes on. To be called until then.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooLong`], for good.
    pub fn feed(&mut self, bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
        let taken = take(bytes, self.length.len() - self.length_bytes);
        self.length[self.length_bytes..][..taken.len()].copy_from_slice(taken);
        self.length_bytes += taken.len();
        if self.length_bytes < self.length.len() {
            return Ok(None);
        }
        let length = u32::from_le_bytes(self.length) as usize;
        if length > self.frame_bytes_max {
            return Err(DecodeError::TooLong { what: "frame", bytes: length, max: self.frame_bytes_max });
        }
        self.frame.extend_from_slice(take(bytes, length - self.frame.len()));
        if self.frame.len() < length {
            return Ok(None);
        }
        self.length_bytes = 0;
        Ok(Some(std::mem::take(&mut self.frame)))
    }

    /// Whether a stream that ends here is whole.
    pub fn is_between_frames(&self) -> bool {
        self.length_bytes == 0
    }
}

/// At most so many bytes, off the front.
fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_the_same_in_pieces_of_any_size() {
        let frames = [vec![], vec![1], vec![7; 300], vec![], vec![2; 5]];
        let stream: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
        for size in 1..=stream.len() {
            let mut deframer = Deframer::new(&Limits::default());
            let mut found = Vec::new();
            for mut piece in stream.chunks(size) {
                while let Some(frame) = deframer.feed(&mut piece).unwrap() {
                    found.push(frame);
                }
                assert!(piece.is_empty());
            }
            assert_eq!(found, frames, "pieces of {size}");
            assert!(deframer.is_between_frames());
        }
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_else_than_between_frames_shows() {
        let stream = framed(&[1, 2, 3]);
        for end in 1..stream.len() {
            let mut deframer = Deframer::new(&Limits::default());
            assert_eq!(deframer.feed(&mut &stream[..end]), Ok(None));
            assert!(!deframer.is_between_frames(), "{end}");
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_ends_the_stream_for_good() {
        let mut deframer = Deframer::new(&Limits { message_bytes_max: 3, ..Limits::default() });
        assert_eq!(deframer.feed(&mut &framed(&[1; 3])[..]), Ok(Some(vec![1; 3])));
        let refused = Err(DecodeError::TooLong { what: "frame", bytes: 4, max: 3 });
        assert_eq!(deframer.feed(&mut &framed(&[1; 4])[..]), refused);
        assert_eq!(deframer.feed(&mut &framed(&[1])[..]), refused);
    }
}
