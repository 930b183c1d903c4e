//! Frames that travel in parts: many relays take no event of more than 64 KiB.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;

use crate::StreamId;

/// Bytes of a frame in one event, or of the changes in a message to an original peer: with what stands around them the padded length is
/// 40,960, and the event about 55,000 bytes of JSON.
pub const PART_BYTES_MAX: usize = 40_000;

const FIRST: u8 = 1;
const LAST: u8 = 2;
/// With the first: a byte with the length of a stream's id follows, and the id.
const ASKED: u8 = 4;

/// Cuts a frame into parts of so many of its bytes. Each part begins with a byte that says whether it is the first and whether it is the
/// last. `asked`: the stream that the sender has asked for.
pub(crate) fn split(frame: &[u8], asked: Option<&StreamId>, bytes_max: usize) -> Vec<Vec<u8>> {
    let mut cuts: Vec<&[u8]> = frame.chunks(bytes_max.max(1)).collect();
    if cuts.is_empty() {
        cuts.push(&[]);
    }
    let last = cuts.len() - 1;
    let part = |(index, bytes): (usize, &[u8])| {
        let flags = if index == 0 { FIRST } else { 0 } | if index == last { LAST } else { 0 };
        match asked.map(|stream| stream.as_str().as_bytes()).filter(|_| index == 0) {
            // It is never longer than 64 bytes.
            Some(id) => [&[flags | ASKED, id.len() as u8], id, bytes].concat(),
            None => [&[flags], bytes].concat(),
        }
    };
    cuts.into_iter().enumerate().map(part).collect()
}

/// Why parts do not make a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum PartError {
    #[error("a part of a message is empty")]
    Empty,
    #[error("a part of a message comes without the parts before it")]
    NoBeginning,
    #[error("the first part of a message names no stream that was asked for")]
    NoStream,
    #[error("a message of more than {bytes_max} bytes comes in parts")]
    TooLong { bytes_max: usize },
}

/// A frame that came in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// All parts, one after the other.
    pub frame: Vec<u8>,
    /// The stream that its sender had asked for last when it made this.
    pub asked: Option<StreamId>,
}

/// Puts parts together again.
#[derive(Default)]
pub struct Assembler {
    whole: Option<Whole>,
}

impl Assembler {
    /// Takes the next part; gives the frame that it completes.
    ///
    /// A first part begins anew: who sent the others has forgotten them.
    pub fn add(&mut self, part: &[u8], bytes_max: usize) -> Result<Option<Whole>, PartError> {
        let (flags, mut bytes) = part.split_first().ok_or(PartError::Empty)?;
        if flags & FIRST != 0 {
            let mut whole = Whole::default();
            if flags & ASKED != 0 {
                self.whole = None;
                let (asked, rest) = read_asked(bytes).ok_or(PartError::NoStream)?;
                (whole.asked, bytes) = (Some(asked), rest);
            }
            self.whole = Some(whole);
        }
        let frame = &mut self.whole.as_mut().ok_or(PartError::NoBeginning)?.frame;
        if frame.len() + bytes.len() > bytes_max {
            self.whole = None;
            return Err(PartError::TooLong { bytes_max });
        }
        frame.extend_from_slice(bytes);
        Ok(if flags & LAST != 0 { self.whole.take() } else { None })
    }
}

fn read_asked(bytes: &[u8]) -> Option<(StreamId, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (id, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(id).ok()?.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_any_length_come_whole() {
        for length in [0, 1, PART_BYTES_MAX, PART_BYTES_MAX + 1, 3 * PART_BYTES_MAX + 7] {
            let frame: Vec<u8> = (0..length).map(|index| index as u8).collect();
            let mut assembler = Assembler::default();
            let asked = (length % 2 == 1).then(|| StreamId::from_bytes([7; 16]));
            let parts = split(&frame, asked.as_ref(), PART_BYTES_MAX);
            assert_eq!(parts.len(), length.div_ceil(PART_BYTES_MAX).max(1));
            let (last, others) = parts.split_last().unwrap();
            for part in others {
                assert_eq!(assembler.add(part, length), Ok(None));
            }
            assert_eq!(assembler.add(last, length), Ok(Some(Whole { frame, asked })));
        }
    }

    #[test]
    fn what_makes_no_frame_is_refused() {
        let parts = split(&[0; 3 * PART_BYTES_MAX], None, PART_BYTES_MAX);
        let mut assembler = Assembler::default();
        assert_eq!(assembler.add(&[], 9), Err(PartError::Empty));
        assert_eq!(assembler.add(&parts[1], usize::MAX), Err(PartError::NoBeginning));
        let bytes_max = 2 * PART_BYTES_MAX;
        assert_eq!(assembler.add(&parts[0], bytes_max), Ok(None));
        assert_eq!(assembler.add(&parts[1], bytes_max), Ok(None));
        assert_eq!(assembler.add(&parts[2], bytes_max), Err(PartError::TooLong { bytes_max }));
        // Begun anew, with another frame.
        assert_eq!(assembler.add(&parts[0], bytes_max), Ok(None));
        let other = Whole { frame: b"other".to_vec(), asked: None };
        assert_eq!(assembler.add(&split(b"other", None, PART_BYTES_MAX)[0], bytes_max), Ok(Some(other)));
        for asked in [&[][..], &[0], &[5, b'a'], &[1, 0xff]] {
            assert_eq!(assembler.add(&[&[FIRST | ASKED], asked].concat(), bytes_max), Err(PartError::NoStream));
        }
        assert_eq!(assembler.add(&[LAST], bytes_max), Err(PartError::NoBeginning));
    }
}
