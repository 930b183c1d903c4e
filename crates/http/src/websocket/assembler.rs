//! [`Assembler`]: messages out of the bytes of a WebSocket, in any pieces.

use super::Farewell;
use super::code;
use super::frame::{HEADER_BYTES_MAX, Header, OpCode, mask};

/// What a message is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Binary,
}

/// What is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message. One of text is UTF-8.
    Message(Kind, Vec<u8>),
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    Pong,
    /// Nothing comes after it.
    Close(Farewell),
}

/// Why what comes is no WebSocket as we speak it. Nothing more can be read then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages explain the fields
pub(crate) enum Fault {
    #[error("no WebSocket: {0}")]
    Protocol(&'static str),
    #[error("a message of text is not UTF-8")]
    NoText,
    #[error("a message has more than {max} bytes")]
    TooLarge { max: usize },
}

impl Fault {
    /// What the other end is told.
    pub(crate) fn farewell(&self) -> Farewell {
        let code = match self {
            Self::Protocol(_) => code::PROTOCOL,
            Self::NoText => code::NO_TEXT,
            Self::TooLarge { .. } => code::TOO_LARGE,
        };
        Farewell::new(code, &self.to_string())
    }
}

/// An incremental reader. It holds at most one unfinished message and one control frame, and of them no more than has come: what a
/// head announces reserves nothing, and between two messages nothing is held.
#[derive(Debug)]
pub(crate) struct Assembler {
    /// Whether the other end masks what it sends: a client does.
    is_masked: bool,
    message_bytes_max: usize,
    head: [u8; HEADER_BYTES_MAX],
    head_bytes: usize,
    /// The frame whose payload is coming.
    frame: Option<Frame>,
    /// What the message is made of that has begun.
    kind: Option<Kind>,
    message: Vec<u8>,
    /// The payload of a control frame, which may come between two frames of a message.
    control: Vec<u8>,
}

/// A frame whose head was read.
#[derive(Debug)]
struct Frame {
    header: Header,
    /// Bytes of the payload that have come.
    come: u64,
}

impl Assembler {
    /// A reader of what a client sends, or else a server.
    pub(crate) fn new(of_client: bool, message_bytes_max: usize) -> Self {
        Self {
            is_masked: of_client,
            message_bytes_max,
            head: [0; HEADER_BYTES_MAX],
            head_bytes: 0,
            frame: None,
            kind: None,
            message: Vec::new(),
            control: Vec::new(),
        }
    }

    /// Bytes held of the message that has begun.
    pub(crate) fn held_bytes(&self) -> usize {
        self.message.len()
    }

    /// Bytes of memory that it has.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn capacity_bytes(&self) -> usize {
        self.message.capacity() + self.control.capacity()
    }

    /// Whether a message has begun and is not complete.
    pub(crate) fn is_inside(&self) -> bool {
        self.kind.is_some()
    }

    /// Gives up what has begun, and its memory. Nothing can be read then.
    pub(crate) fn forget(&mut self) {
        *self = Self::new(self.is_masked, self.message_bytes_max);
    }

    /// Takes bytes off the front of `bytes` up to the end of a message or a control frame, and gives it; `None` when all are taken.
    /// To be called until then, and not again after an error.
    pub(crate) fn feed(&mut self, bytes: &mut &[u8]) -> Result<Option<Event>, Fault> {
        loop {
            let Some(frame) = &mut self.frame else {
                match self.read_head(bytes)? {
                    Some(header) => self.frame = Some(Frame { header, come: 0 }),
                    None => return Ok(None),
                }
                continue;
            };
            let payload = if frame.header.opcode.is_control() { &mut self.control } else { &mut self.message };
            let left = usize::try_from(frame.header.length - frame.come).unwrap_or(usize::MAX);
            let taken = bytes.split_off(..left.min(bytes.len())).unwrap_or_default();
            let before = payload.len();
            payload.extend_from_slice(taken);
            if let Some(key) = frame.header.mask {
                mask(&mut payload[before..], key, (frame.come % 4) as usize);
            }
            frame.come += taken.len() as u64;
            if frame.come < frame.header.length {
                return Ok(None);
            }
            let header = frame.header;
            self.frame = None;
            if let Some(event) = self.complete(header)? {
                return Ok(Some(event));
            }
        }
    }

    /// Reads on in a head; `None` where it goes on.
    fn read_head(&mut self, bytes: &mut &[u8]) -> Result<Option<Header>, Fault> {
        // The first two bytes say how many there are.
        while self.head_bytes < Header::len(&self.head[..self.head_bytes]) {
            let Some(byte) = bytes.split_off_first() else { return Ok(None) };
            self.head[self.head_bytes] = *byte;
            self.head_bytes += 1;
        }
        let header = Header::read(&self.head[..std::mem::take(&mut self.head_bytes)])?;
        if header.mask.is_some() != self.is_masked {
            return Err(Fault::Protocol("clients mask what they send, and servers do not"));
        }
        match (header.opcode, self.kind) {
            (OpCode::Text, None) => self.kind = Some(Kind::Text),
            (OpCode::Binary, None) => self.kind = Some(Kind::Binary),
            (OpCode::Text | OpCode::Binary, Some(_)) => {
                return Err(Fault::Protocol("a message begins inside of another one"));
            }
            (OpCode::Continue, None) => return Err(Fault::Protocol("a message goes on that has not begun")),
            _ => {}
        }
        let held = self.message.len() as u64;
        // Before a byte of it is read.
        if !header.opcode.is_control() && header.length > (self.message_bytes_max as u64).saturating_sub(held) {
            return Err(Fault::TooLarge { max: self.message_bytes_max });
        }
        Ok(Some(header))
    }

    /// What is complete with the end of a frame.
    fn complete(&mut self, header: Header) -> Result<Option<Event>, Fault> {
        Ok(match header.opcode {
            OpCode::Ping => Some(Event::Ping(std::mem::take(&mut self.control))),
            OpCode::Pong => {
                self.control = Vec::new();
                Some(Event::Pong)
            }
            OpCode::Close => Some(Event::Close(closing(&std::mem::take(&mut self.control))?)),
            OpCode::Continue | OpCode::Text | OpCode::Binary if !header.is_last => None,
            OpCode::Continue | OpCode::Text | OpCode::Binary => {
                let message = std::mem::take(&mut self.message);
                let kind = self.kind.take().unwrap_or(Kind::Binary);
                if kind == Kind::Text && std::str::from_utf8(&message).is_err() {
                    return Err(Fault::NoText);
                }
                Some(Event::Message(kind, message))
            }
        })
    }
}

/// What a close frame says.
fn closing(payload: &[u8]) -> Result<Farewell, Fault> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(Farewell::without_reason(None)),
            _ => Err(Fault::Protocol("a close frame with half a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    // The others are for programs to tell each other, and never sent (RFC 6455, 7.4).
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Fault::Protocol("a close frame with a code that there is not"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Fault::NoText)?;
    Ok(Farewell { code: Some(code), reason: reason.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

    /// A frame as a client sends it.
    fn frame(opcode: OpCode, is_last: bool, payload: &[u8]) -> Vec<u8> {
        crate::websocket::frame::frame(opcode, is_last, payload, Some(KEY))
    }

    fn events(stream: &[u8], piece: usize, max: usize) -> (Vec<Event>, Option<Fault>) {
        let mut assembler = Assembler::new(true, max);
        let mut events = Vec::new();
        for mut piece in stream.chunks(piece) {
            loop {
                match assembler.feed(&mut piece) {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(fault) => return (events, Some(fault)),
                }
            }
            assert!(assembler.held_bytes() <= max);
        }
        (events, None)
    }

    #[test]
    fn messages_and_what_comes_between_their_parts_are_told_apart_in_any_pieces() {
        let stream = [
            frame(OpCode::Text, false, b"a mess"),
            frame(OpCode::Ping, true, b"still?"),
            frame(OpCode::Continue, false, b""),
            frame(OpCode::Continue, true, "age ü".as_bytes()),
            frame(OpCode::Pong, true, b"x"),
            frame(OpCode::Binary, true, &[7; 300]),
            frame(OpCode::Binary, true, b""),
            frame(OpCode::Close, true, b"\x03\xe8bye"),
        ]
        .concat();
        let expected = vec![
            Event::Ping(b"still?".to_vec()),
            Event::Message(Kind::Text, "a message ü".as_bytes().to_vec()),
            Event::Pong,
            Event::Message(Kind::Binary, vec![7; 300]),
            Event::Message(Kind::Binary, Vec::new()),
            Event::Close(Farewell::new(1000, "bye")),
        ];
        for piece in [1, 2, 3, 7, 50, stream.len()] {
            assert_eq!(events(&stream, piece, 1000), (expected.clone(), None), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_alone_takes_no_memory_and_one_too_large_is_refused_at_once() {
        let head = |length: u64| {
            let mut head = Vec::new();
            Header { is_last: true, opcode: OpCode::Binary, length, mask: Some(KEY) }.write(&mut head);
            head
        };
        let mut assembler = Assembler::new(true, 1 << 30);
        assert_eq!(assembler.feed(&mut &*head(1 << 30)), Ok(None));
        assert!(assembler.is_inside() && assembler.capacity_bytes() == 0);
        assert_eq!(assembler.feed(&mut &[0; 10][..]), Ok(None));
        assert!(assembler.held_bytes() == 10 && assembler.capacity_bytes() < 100);
        for length in [(1 << 30) + 1, u64::MAX] {
            assert_eq!(Assembler::new(true, 1 << 30).feed(&mut &*head(length)), Err(Fault::TooLarge { max: 1 << 30 }));
        }
    }

    #[test]
    fn the_parts_of_a_message_are_bounded_together_whatever_comes_between() {
        let parts = [
            frame(OpCode::Binary, false, &[0; 60]),
            frame(OpCode::Ping, true, b"?"),
            frame(OpCode::Continue, false, &[0; 60]),
        ];
        let (found, fault) = events(&parts.concat(), 5, 100);
        assert_eq!((found, fault), (vec![Event::Ping(b"?".to_vec())], Some(Fault::TooLarge { max: 100 })));
        // A ping takes nothing off what is held.
        let mut assembler = Assembler::new(true, 100);
        assembler.feed(&mut &*parts[0]).unwrap();
        assembler.feed(&mut &*parts[1]).unwrap();
        assert_eq!(assembler.held_bytes(), 60);
    }

    #[test]
    fn after_a_message_nothing_is_held() {
        let mut assembler = Assembler::new(true, 10_000);
        let bytes = [frame(OpCode::Binary, true, &[0; 9_000]), frame(OpCode::Ping, true, &[0; 100])].concat();
        let mut rest = &*bytes;
        while assembler.feed(&mut rest).unwrap().is_some() {}
        assert_eq!(assembler.capacity_bytes(), 0);
    }

    #[test]
    fn what_makes_no_sense_is_a_fault() {
        let unmasked = [0x82, 0];
        for (stream, fault) in [
            (unmasked.to_vec(), code::PROTOCOL),
            (frame(OpCode::Continue, true, b""), code::PROTOCOL),
            ([frame(OpCode::Text, false, b""), frame(OpCode::Binary, true, b"")].concat(), code::PROTOCOL),
            (frame(OpCode::Text, true, b"\xff"), code::NO_TEXT),
            (frame(OpCode::Close, true, b"\x03"), code::PROTOCOL),
            (frame(OpCode::Close, true, b"\x03\xed"), code::PROTOCOL),
            (frame(OpCode::Close, true, b"\x03\xe8\xff"), code::NO_TEXT),
        ] {
            let (events, found) = events(&stream, 3, 1000);
            assert!(events.is_empty());
            assert_eq!(found.unwrap().farewell().code, Some(fault), "{stream:?}");
        }
    }
}
