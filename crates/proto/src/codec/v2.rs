//! Wire v2: compact binary frames between Litemesh peers. docs/protocol.md, "Frames", specifies them byte by byte.
//!
//! A frame is a kind, flags, and a body; each kind has its own function here that writes it, and [`decode`] reads all. How
//! frames follow each other in a stream: [`framed`] and [`Deframer`].
//!
//! Values are exact: every BLOB, every integer of 64 bits, every real bit for bit, and text that is no UTF-8. Only a NaN, which
//! SQLite cannot hold, becomes NULL. The order of changes is kept, whatever it is.
//!
//! *Memory*. What [`decode`] gives and what it needs meanwhile is at most 200 bytes for each byte of the frame after
//! decompression, which is at most [`FRAME_EXPANSION_MAX`] times as long as before; and a frame has at most
//! [`FRAME_CHANGES_MAX`] changes. zstd itself takes 160 KiB.
//!
//! ```
//! use litemesh_proto::codec::v2::{self, Frame};
//! use litemesh_proto::{Ack, Limits, PeerMessage};
//!
//! let limits = Limits::default();
//! let ack = PeerMessage::Ack(Ack { answer: 1, number: 17, until: 33 });
//! let Frame::Message(unverified) = v2::decode(&v2::message(&ack), &limits)? else { panic!("another kind") };
//! assert_eq!(unverified.verify(&limits), Ok(ack));
//! # Ok::<(), litemesh_proto::DecodeError>(())
//! ```
//!
//! [`FRAME_EXPANSION_MAX`]: crate::limits::FRAME_EXPANSION_MAX
//! [`FRAME_CHANGES_MAX`]: crate::limits::FRAME_CHANGES_MAX

mod access;
mod changes;
mod compression;
mod deframer;
mod interner;
mod keys;
mod numbers;
mod progress;
mod reader;
#[cfg(test)]
mod tests;
mod values;
mod writer;

pub use deframer::{Deframer, framed};

use crate::limits::ERROR_BYTES_MAX;
use crate::{Access, Change, DecodeError, Limits, PeerMessage, SiteId, SyncRequest, Unverified};
use reader::Reader;
use writer::Writer;

/// The version of the language that is described here.
pub const VERSION: u32 = 2;

/// One frame, as a stranger sent it.
#[derive(Clone, Debug)]
pub enum Frame {
    /// The first frame of a connection.
    Hello(Hello),
    /// A request for what the sender lacks.
    Sync(SyncRequest),
    /// A message of an answer, or an acknowledgement.
    Message(Unverified),
    /// A sign of life.
    Ping,
    /// Why the sender gives up, as a word for programs or a sentence for a log.
    Error(String),
    /// A kind that this version does not know. Ignored, not an error.
    Unknown,
}

/// Who is there. Fields that later versions add stand behind these, and are not read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The newest version that the sender speaks. Both sides speak the older one of the two.
    pub version: u32,
    /// The sender.
    pub site: SiteId,
    /// What the sender lets the receiver do.
    pub access: Access,
}

mod kind {
    /// What a [`PeerMessage::Unknown`](crate::PeerMessage::Unknown) is sent as. No version gives it a meaning.
    pub(super) const UNKNOWN: u8 = 0;
    pub(super) const HELLO: u8 = 1;
    pub(super) const SYNC: u8 = 2;
    pub(super) const CHANGES: u8 = 3;
    pub(super) const EOSE: u8 = 4;
    pub(super) const ACK: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const ERROR: u8 = 7;
}

/// The body is compressed.
const COMPRESSED: u8 = 1;

/// The first frame of a connection.
///
/// ```
/// use litemesh_proto::codec::v2::{self, Frame, Hello};
/// use litemesh_proto::{Access, Limits, SiteId};
///
/// let hello = Hello { version: v2::VERSION, site: SiteId::from_bytes([7; 16]), access: Access::FULL };
/// assert!(matches!(v2::decode(&v2::hello(&hello), &Limits::default())?, Frame::Hello(read) if read == hello));
/// # Ok::<(), litemesh_proto::DecodeError>(())
/// ```
pub fn hello(hello: &Hello) -> Vec<u8> {
    frame(kind::HELLO, |out| {
        out.unsigned(u64::from(hello.version));
        out.bytes(hello.site.as_bytes());
        access::write_access(out, &hello.access);
    })
}

/// A request for what the sender lacks.
///
/// ```
/// use litemesh_proto::codec::v2::{self, Frame};
/// use litemesh_proto::{Limits, SyncRequest, Terms};
///
/// let terms = Terms { answer: 1, credit: 16, ..Terms::default() };
/// let request = SyncRequest { terms: Some(terms), ..SyncRequest::default() };
/// assert!(matches!(v2::decode(&v2::sync(&request), &Limits::default())?, Frame::Sync(read) if read == request));
/// # Ok::<(), litemesh_proto::DecodeError>(())
/// ```
pub fn sync(request: &SyncRequest) -> Vec<u8> {
    frame(kind::SYNC, |out| progress::write_sync(out, request))
}

/// A message. Receivers refuse one of more than [`FRAME_CHANGES_MAX`](crate::limits::FRAME_CHANGES_MAX) changes.
pub fn message(message: &PeerMessage) -> Vec<u8> {
    match message {
        PeerMessage::Changes { changes, schema_version, progress } => frame(kind::CHANGES, |out| {
            out.signed(*schema_version);
            progress::write_progress(out, progress.as_ref());
            changes::write_changes(out, changes);
        }),
        PeerMessage::Eose { progress } => frame(kind::EOSE, |out| progress::write_progress(out, progress.as_ref())),
        PeerMessage::Ack(ack) => frame(kind::ACK, |out| progress::write_ack(out, ack)),
        PeerMessage::Unknown => frame(kind::UNKNOWN, |_| {}),
    }
}

/// A sign of life.
pub fn ping() -> Vec<u8> {
    frame(kind::PING, |_| {})
}

/// Whether a frame, be it readable or not, says that it is a request for what its sender lacks: then no change is lost with it.
///
/// ```
/// use litemesh_proto::SyncRequest;
/// use litemesh_proto::codec::v2;
///
/// let frame = v2::sync(&SyncRequest::default());
/// assert!(v2::is_sync(&frame) && v2::is_sync(&frame[..1]));
/// assert!(!v2::is_sync(&v2::ping()) && !v2::is_sync(&[]));
/// ```
pub fn is_sync(frame: &[u8]) -> bool {
    frame.first() == Some(&kind::SYNC)
}

/// Why we give up. Cut to [`ERROR_BYTES_MAX`].
///
/// ```
/// use litemesh_proto::Limits;
/// use litemesh_proto::codec::v2::{self, Frame};
///
/// let frame = v2::decode(&v2::error("BUSY"), &Limits::default())?;
/// assert!(matches!(frame, Frame::Error(text) if text == "BUSY"));
/// # Ok::<(), litemesh_proto::DecodeError>(())
/// ```
pub fn error(text: &str) -> Vec<u8> {
    let cut = text.floor_char_boundary(ERROR_BYTES_MAX);
    frame(kind::ERROR, |out| out.bytes(&text.as_bytes()[..cut]))
}

fn frame(kind: u8, write_body: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut plain = Writer::default();
    plain.byte(kind);
    plain.byte(0);
    write_body(&mut plain);
    let mut compressed = Writer::default();
    compressed.byte(kind);
    compressed.byte(COMPRESSED);
    if compression::compress(&mut compressed, &plain.as_bytes()[2..]) { compressed } else { plain }.into_bytes()
}

/// Reads one whole frame.
///
/// # Errors
///
/// Longer than the limits allow, or against the layout. Rules about the content of changes are not checked yet: see
/// [`Unverified::verify`].
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Frame, DecodeError> {
    if bytes.len() > limits.message_bytes_max {
        return Err(DecodeError::TooLong { what: "frame", bytes: bytes.len(), max: limits.message_bytes_max });
    }
    let mut reader = Reader::new(bytes, "frame");
    let kind = reader.byte()?;
    if !(kind::HELLO..=kind::ERROR).contains(&kind) {
        return Ok(Frame::Unknown);
    }
    match reader.byte()? {
        0 => read_body(kind, reader),
        COMPRESSED => read_body(kind, Reader::new(&compression::decompress(&mut reader, limits)?, "frame")),
        flags => Err(DecodeError::UnknownFlags { what: "frame", flags }),
    }
}

fn read_body(kind: u8, mut body: Reader<'_>) -> Result<Frame, DecodeError> {
    let frame = match kind {
        kind::HELLO => {
            let (version, site) = (body.unsigned32()?, SiteId::from_bytes(body.array()?));
            let hello = Hello { version, site, access: access::read_access(&mut body)? };
            // What follows is of a later version.
            return Ok(Frame::Hello(hello));
        }
        kind::SYNC => Frame::Sync(progress::read_sync(&mut body)?),
        kind::CHANGES => Frame::Message(Unverified::new(PeerMessage::Changes {
            schema_version: body.signed()?,
            progress: progress::read_progress(&mut body)?,
            changes: changes::read_changes(&mut body)?,
        })),
        kind::EOSE => {
            Frame::Message(Unverified::new(PeerMessage::Eose { progress: progress::read_progress(&mut body)? }))
        }
        kind::ACK => Frame::Message(Unverified::new(PeerMessage::Ack(progress::read_ack(&mut body)?))),
        kind::PING => Frame::Ping,
        kind::ERROR => Frame::Error(read_error(&mut body)?),
        _ => return Ok(Frame::Unknown),
    };
    body.finish()?;
    Ok(frame)
}

fn read_error(body: &mut Reader<'_>) -> Result<String, DecodeError> {
    let text = body.bytes(body.remaining())?;
    if text.len() > ERROR_BYTES_MAX {
        return Err(DecodeError::TooLong { what: "text of an error", bytes: text.len(), max: ERROR_BYTES_MAX });
    }
    match std::str::from_utf8(text) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(DecodeError::NotUtf8 { what: "text of an error" }),
    }
}

/// A list of changes alone, uncompressed, as it stands in the body of a message: for keeping them on disk.
///
/// ```
/// use litemesh_proto::codec::v2;
/// # use litemesh_proto::{CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, Seq, SiteId, Value};
/// # let change = Change {
/// #     table: "todo".into(), key: PackedKey::pack(&[Value::Integer(1)])?, column: Column::from("title"),
/// #     value: Value::text("bread"), col_version: ColVersion::new(1), db_version: DbVersion::new(1),
/// #     site: SiteId::from_bytes([7; 16]), causal_length: CausalLength::FIRST, seq: Seq::ZERO,
/// # };
/// let changes = vec![change.clone(), change];
/// assert_eq!(v2::decode_changes(&v2::encode_changes(&changes))?, changes);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn encode_changes(changes: &[Change]) -> Vec<u8> {
    let mut out = Writer::default();
    changes::write_changes(&mut out, changes);
    out.into_bytes()
}

/// Reads what [`encode_changes`] wrote.
///
/// # Errors
///
/// Against the layout, or more than [`FRAME_CHANGES_MAX`](crate::limits::FRAME_CHANGES_MAX) changes.
pub fn decode_changes(bytes: &[u8]) -> Result<Vec<Change>, DecodeError> {
    let mut reader = Reader::new(bytes, "changes");
    let changes = changes::read_changes(&mut reader)?;
    reader.finish()?;
    Ok(changes)
}
