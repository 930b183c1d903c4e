//! Any parts in any order: the body of the fuzz target `nostr_parts`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // to panic is what it is for

use super::{Assembler, FIRST, LAST, PART_BYTES_MAX, PartError, split};

/// The first byte says how long a frame may be; then each byte says how long the part after it is.
///
/// A frame is what came since its first part and is no longer than it may be, and so is what is held. What is cut comes whole, whatever
/// came before it.
pub fn parts(bytes: &[u8]) {
    let Some((max, mut rest)) = bytes.split_first() else { return };
    let bytes_max = 2 * usize::from(*max);
    let mut assembler = Assembler::default();
    let mut expected: Option<Vec<u8>> = None;
    while let Some((length, after)) = rest.split_first() {
        let (part, after) = after.split_at(usize::from(length % 64).min(after.len()));
        rest = after;
        check_part(&mut assembler, &mut expected, part, bytes_max);
    }
    check_cut(assembler, bytes);
}

fn check_part(assembler: &mut Assembler, expected: &mut Option<Vec<u8>>, part: &[u8], bytes_max: usize) {
    let added = assembler.add(part, bytes_max);
    let Some((flags, bytes)) = part.split_first() else { return assert_eq!(added, Err(PartError::Empty)) };
    if flags & FIRST != 0 {
        *expected = Some(Vec::new());
    }
    if let Some(expected) = expected {
        expected.extend_from_slice(bytes);
    }
    match added {
        Ok(None) => assert!(expected.is_some() && flags & LAST == 0),
        Ok(Some(frame)) => assert!(expected.take() == Some(frame) && flags & LAST != 0),
        Err(PartError::NoBeginning) => assert_eq!(*expected, None),
        Err(PartError::TooLong { .. }) => assert!(expected.take().is_some_and(|frame| frame.len() > bytes_max)),
        Err(PartError::Empty) => panic!("it is not"),
    }
    assert_eq!(assembler.frame, *expected);
    assert!(
        assembler.frame.as_ref().is_none_or(|frame| frame.len() <= bytes_max && frame.capacity() <= 2 * bytes_max + 8)
    );
}

/// The bytes over and over are a frame, up to a length of their own.
fn check_cut(mut assembler: Assembler, bytes: &[u8]) {
    let length = 2 * bytes.iter().rev().take(2).fold(0, |length, byte| 256 * length + usize::from(*byte));
    let frame: Vec<u8> = bytes.iter().copied().cycle().take(length).collect();
    let parts = split(&frame);
    let (last, others) = parts.split_last().expect("at least one");
    for part in others {
        assert_eq!(part.len(), 1 + PART_BYTES_MAX);
        assert_eq!(assembler.add(part, length), Ok(None));
    }
    assert!(last.len() <= 1 + PART_BYTES_MAX);
    assert!(assembler.add(last, length) == Ok(Some(frame)));
}
