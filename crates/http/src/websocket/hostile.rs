//! Any bytes as what comes over a WebSocket, from either end: the body of the fuzz target `socket`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // to panic is what it is for

use super::frame::{OpCode, frame};
use super::{Assembler, Event, Fault, Kind};

/// The first byte says who sends and how much a message may hold, the second how the rest is cut; the rest is a stream.
///
/// However it is cut, a stream gives the same messages and the same end; what is held is bounded, and is what has come; what is
/// understood is understood again when written as we write.
pub fn socket(bytes: &[u8]) {
    let [first, piece, stream @ ..] = bytes else { return };
    let (of_client, max) = (first % 2 == 0, usize::from(first / 2) * 8);
    let expected = events(stream, of_client, max, stream.len().max(1));
    assert_eq!(events(stream, of_client, max, 1 + usize::from(*piece)), expected, "in pieces of {piece} and one");
    assert_eq!(events(stream, of_client, max, 1), expected, "byte by byte");
    let (found, end) = expected;
    let last = found.last();
    assert!(found.iter().all(|event| !matches!(event, Event::Close(_)) || Some(event) == last));
    for key in [None, Some([piece.wrapping_add(1), 2, 3, *first])] {
        let written: Vec<u8> = found.iter().flat_map(|event| write(event, key, 1 + usize::from(*piece))).collect();
        assert_eq!(events(&written, key.is_some(), max, 7), (found.clone(), None));
    }
    if let Some(fault) = end {
        assert!(fault.to_string().len() <= 200 && fault.farewell().code.is_some());
    }
}

/// What a stream gives, up to the end that it names itself.
fn events(stream: &[u8], of_client: bool, max: usize, piece: usize) -> (Vec<Event>, Option<Fault>) {
    let mut assembler = Assembler::new(of_client, max);
    let (mut events, mut come) = (Vec::new(), 0);
    for mut piece in stream.chunks(piece) {
        come += piece.len();
        loop {
            match assembler.feed(&mut piece) {
                Ok(Some(event)) => {
                    check_event(&event, max);
                    let is_end = matches!(event, Event::Close(_));
                    events.push(event);
                    if is_end {
                        return (events, None);
                    }
                }
                Ok(None) => break,
                Err(fault) => return (events, Some(fault)),
            }
        }
        assert!(piece.is_empty() && assembler.held_bytes() <= max.min(come));
        assert!(assembler.capacity_bytes() <= 2 * come + 256, "{} of {come}", assembler.capacity_bytes());
    }
    (events, None)
}

fn check_event(event: &Event, max: usize) {
    match event {
        Event::Message(kind, bytes) => {
            assert!(bytes.len() <= max && (*kind == Kind::Binary || std::str::from_utf8(bytes).is_ok()));
        }
        Event::Ping(payload) => assert!(payload.len() <= 125),
        Event::Pong => {}
        Event::Close(said) => assert!(said.reason.len() <= 123 && said.code.is_none_or(|code| code >= 1000)),
    }
}

/// Writes it again, a message in parts of so many bytes.
fn write(event: &Event, key: Option<[u8; 4]>, part: usize) -> Vec<u8> {
    let frame = |opcode, is_last, payload: &[u8]| frame(opcode, is_last, payload, key);
    match event {
        Event::Message(kind, bytes) => {
            let opcode = if *kind == Kind::Text { OpCode::Text } else { OpCode::Binary };
            let mut frames = frame(opcode, bytes.is_empty(), &bytes[..bytes.len().min(part)]);
            if bytes.is_empty() {
                return frames;
            }
            for part in bytes[bytes.len().min(part)..].chunks(part) {
                frames.extend(frame(OpCode::Continue, false, part));
            }
            frames.extend(frame(OpCode::Continue, true, &[]));
            frames
        }
        Event::Ping(payload) => frame(OpCode::Ping, true, payload),
        Event::Pong => frame(OpCode::Pong, true, &[]),
        Event::Close(said) => frame(OpCode::Close, true, &said.payload()),
    }
}
