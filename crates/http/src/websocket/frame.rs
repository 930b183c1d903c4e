//! The head of a frame, and masking: RFC 6455, 5.2 and 5.3.

use super::Fault;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpCode {
    Continue = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl OpCode {
    fn read(bits: u8) -> Result<Self, Fault> {
        [Self::Continue, Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong]
            .into_iter()
            .find(|opcode| *opcode as u8 == bits)
            .ok_or(Fault::Protocol("an unknown kind of frame"))
    }

    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Bytes of a control frame's payload: RFC 6455, 5.5. More is no WebSocket.
pub(crate) const CONTROL_BYTES_MAX: u64 = 125;

/// The longest head: two bytes, a length of eight, a mask.
pub(crate) const HEADER_BYTES_MAX: usize = 14;

/// The length that says that it stands behind, in two bytes.
const IN_TWO_BYTES: u8 = 126;

/// The length that says that it stands behind, in eight bytes.
const IN_EIGHT_BYTES: u8 = 127;

const IS_LAST: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const IS_MASKED: u8 = 0x80;

/// What stands before the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The last frame of its message.
    pub(crate) is_last: bool,
    pub(crate) opcode: OpCode,
    /// Bytes of the payload.
    pub(crate) length: u64,
    /// How the payload is masked: clients do, servers do not.
    pub(crate) mask: Option<[u8; 4]>,
}

impl Header {
    /// How many bytes a head has of which these are the first: of less than two, two.
    pub(crate) fn len(start: &[u8]) -> usize {
        let Some(second) = start.get(1) else { return 2 };
        let length = match second & !IS_MASKED {
            IN_TWO_BYTES => 2,
            IN_EIGHT_BYTES => 8,
            _ => 0,
        };
        2 + length + if second & IS_MASKED != 0 { 4 } else { 0 }
    }

    /// Reads a whole head.
    pub(crate) fn read(head: &[u8]) -> Result<Self, Fault> {
        let [first, second, rest @ ..] = head else { return Err(Fault::Protocol("half a head")) };
        if first & RESERVED != 0 {
            return Err(Fault::Protocol("an extension that was not agreed on"));
        }
        let (length, rest) = match second & !IS_MASKED {
            IN_TWO_BYTES => number::<2>(rest)?,
            IN_EIGHT_BYTES => number::<8>(rest)?,
            short => (u64::from(short), rest),
        };
        let mask = match second & IS_MASKED {
            0 => None,
            _ => Some(*rest.first_chunk().ok_or(Fault::Protocol("half a head"))?),
        };
        let header = Self { is_last: first & IS_LAST != 0, opcode: OpCode::read(first & OPCODE)?, length, mask };
        if header.opcode.is_control() && (!header.is_last || length > CONTROL_BYTES_MAX) {
            return Err(Fault::Protocol("a control frame that is long, or in pieces"));
        }
        Ok(header)
    }

    /// Writes it to the end of `out`, with the length in as few bytes as it fits.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let is_masked = if self.mask.is_some() { IS_MASKED } else { 0 };
        out.push(self.opcode as u8 | if self.is_last { IS_LAST } else { 0 });
        match (u8::try_from(self.length), u16::try_from(self.length)) {
            (Ok(length), _) if length < IN_TWO_BYTES => out.push(length | is_masked),
            (_, Ok(length)) => {
                out.push(IN_TWO_BYTES | is_masked);
                out.extend(length.to_be_bytes());
            }
            _ => {
                out.push(IN_EIGHT_BYTES | is_masked);
                out.extend(self.length.to_be_bytes());
            }
        }
        out.extend(self.mask.iter().flatten());
    }
}

/// A whole frame, masked where there is a key.
pub(crate) fn frame(opcode: OpCode, is_last: bool, payload: &[u8], mask_key: Option<[u8; 4]>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES_MAX + payload.len());
    Header { is_last, opcode, length: payload.len() as u64, mask: mask_key }.write(&mut frame);
    let start = frame.len();
    frame.extend_from_slice(payload);
    if let Some(key) = mask_key {
        mask(&mut frame[start..], key, 0);
    }
    frame
}

/// A number of so many bytes, and what stands behind it.
fn number<const BYTES: usize>(bytes: &[u8]) -> Result<(u64, &[u8]), Fault> {
    let (number, rest) = bytes.split_at_checked(BYTES).ok_or(Fault::Protocol("half a head"))?;
    Ok((number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)), rest))
}

/// Masks a part of a payload that begins `offset` bytes behind the payload's start, or takes the mask off.
pub(crate) fn mask(part: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut key = mask;
    key.rotate_left(offset % 4);
    let (fours, rest) = part.as_chunks_mut::<4>();
    for four in fours {
        *four = (u32::from_ne_bytes(*four) ^ u32::from_ne_bytes(key)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, u64::MAX] {
            for mask in [None, Some([1, 2, 3, 4])] {
                for opcode in [OpCode::Continue, OpCode::Text, OpCode::Binary] {
                    let header = Header { is_last: length % 2 == 0, opcode, length, mask };
                    let mut written = Vec::new();
                    header.write(&mut written);
                    assert_eq!(Header::read(&written), Ok(header));
                    assert_eq!(Header::len(&written[..2]), written.len());
                    assert!(written.len() <= HEADER_BYTES_MAX);
                    for cut in 0..written.len() {
                        assert!(Header::len(&written[..cut]) > cut && Header::read(&written[..cut]).is_err());
                    }
                }
            }
        }
    }

    #[test]
    fn a_frame_of_the_standard_is_read() {
        // RFC 6455, 5.7: "Hello" from a client.
        let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let header = Header::read(&bytes[..6]).unwrap();
        let key = [0x37, 0xfa, 0x21, 0x3d];
        assert_eq!(header, Header { is_last: true, opcode: OpCode::Text, length: 5, mask: Some(key) });
        let mut payload = bytes[6..].to_vec();
        mask(&mut payload, key, 0);
        assert_eq!(payload, b"Hello");
    }

    #[test]
    fn what_no_frame_begins_with_is_refused() {
        // Extensions, unknown kinds, control frames in pieces or long.
        for head in [&[0xc2, 0][..], &[0x83, 0], &[0x8b, 0], &[0x09, 0], &[0x89, 126, 0, 126]] {
            assert!(matches!(Header::read(head), Err(Fault::Protocol(_))), "{head:?}");
        }
    }

    #[test]
    fn a_payload_is_masked_alike_in_any_pieces() {
        let key = [1, 20, 90, 255];
        let mut whole = (0..100).collect::<Vec<u8>>();
        mask(&mut whole, key, 0);
        for piece in 1..20 {
            let mut pieces = (0..100).collect::<Vec<u8>>();
            let mut offset = 0;
            for part in pieces.chunks_mut(piece) {
                mask(part, key, offset);
                offset += part.len();
            }
            assert_eq!(pieces, whole);
        }
    }
}
