//! Any parts in any order: the body of the fuzz target `nostr_parts`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // to panic is what it is for

use super::{ASKED, Assembler, FIRST, LAST, PART_BYTES_MAX, PartError, Whole, read_asked, split};
use crate::StreamId;

/// The first byte says how long a frame may be; then each byte says how long the part after it is.
///
/// A frame is what came since its first part and is no longer than it may be, and so is what is held. What is cut comes whole, whatever
/// came before it.
pub fn parts(bytes: &[u8]) {
    let Some((max, mut rest)) = bytes.split_first() else { return };
    let bytes_max = 2 * usize::from(*max);
    let mut assembler = Assembler::default();
    let mut expected: Option<Whole> = None;
    while let Some((length, after)) = rest.split_first() {
        let (part, after) = after.split_at(usize::from(length % 64).min(after.len()));
        rest = after;
        check_part(&mut assembler, &mut expected, part, bytes_max);
    }
    check_cut(assembler, bytes);
}

fn check_part(assembler: &mut Assembler, expected: &mut Option<Whole>, part: &[u8], bytes_max: usize) {
    let added = assembler.add(part, bytes_max);
    let Some((flags, mut bytes)) = part.split_first() else { return assert_eq!(added, Err(PartError::Empty)) };
    if flags & FIRST != 0 {
        *expected = Some(Whole::default());
        if flags & ASKED != 0 {
            let Some((asked, rest)) = read_asked(bytes) else {
                *expected = None;
                return assert_eq!(added, Err(PartError::NoStream));
            };
            (*expected, bytes) = (Some(Whole { frame: Vec::new(), asked: Some(asked) }), rest);
        }
    }
    if let Some(expected) = expected {
        expected.frame.extend_from_slice(bytes);
    }
    match added {
        Ok(None) => assert!(expected.is_some() && flags & LAST == 0),
        Ok(Some(whole)) => assert!(expected.take() == Some(whole) && flags & LAST != 0),
        Err(PartError::NoBeginning) => assert_eq!(*expected, None),
        Err(PartError::TooLong { .. }) => assert!(expected.take().is_some_and(|whole| whole.frame.len() > bytes_max)),
        Err(PartError::Empty | PartError::NoStream) => panic!("it is neither"),
    }
    assert_eq!(assembler.whole, *expected);
    let is_bounded = |whole: &Whole| whole.frame.len() <= bytes_max && whole.frame.capacity() <= 2 * bytes_max + 8;
    assert!(assembler.whole.as_ref().is_none_or(is_bounded));
}

/// The bytes over and over are a frame, up to a length of their own.
fn check_cut(mut assembler: Assembler, bytes: &[u8]) {
    let length = 2 * bytes.iter().rev().take(2).fold(0, |length, byte| 256 * length + usize::from(*byte));
    let frame: Vec<u8> = bytes.iter().copied().cycle().take(length).collect();
    let asked = (length % 4 == 0).then(|| StreamId::from_bytes([7; 16]));
    let parts = split(&frame, asked.as_ref(), PART_BYTES_MAX);
    let (last, others) = parts.split_last().expect("at least one");
    let head = asked.as_ref().map_or(0, |asked| 1 + asked.as_str().len());
    for (index, part) in others.iter().enumerate() {
        assert_eq!(part.len(), 1 + PART_BYTES_MAX + if index == 0 { head } else { 0 });
        assert_eq!(assembler.add(part, length), Ok(None));
    }
    assert!(last.len() <= 1 + PART_BYTES_MAX + head);
    assert!(assembler.add(last, length) == Ok(Some(Whole { frame, asked })));
}
