//! What a simulation needs of this crate: messages turned into the bytes of a connection, and back, without sockets, tasks or a clock.
//!
//! The client and the server do the same with what is called here, and the network in between. What belongs to hyper and reqwest, the
//! heads of requests and answers and where a body ends, is the caller's.

use bytes::Bytes;
use fastrand::Rng;
use litemesh_proto::{Access, Limits, PeerMessage, SiteId, SyncRequest};

use crate::client::{Received, StreamIntake, V1_BODY_BYTES_SAFE, bodies, body, introduction};
use crate::form::StreamForm;
use crate::gzip::{BodyBuffer, StreamEncoder};
use crate::server::{FrameQueue, Route, Sender, encoded, read_message, sender, split_frame};
use crate::websocket::{End, Farewell, Framer, Intake, Kind, code};

/// How a client and a server talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A stream of wire v2 frames, and POSTs.
    Frames,
    /// Server-sent events with a wire v2 frame each, and POSTs.
    Events {
        /// The stream is compressed.
        is_gzip: bool,
    },
    /// Server-sent events of wire v1, and POSTs.
    Json {
        /// The stream is compressed.
        is_gzip: bool,
    },
    /// A WebSocket with a wire v2 frame in each message.
    SocketFrames,
    /// A WebSocket with a message of wire v1 in each.
    SocketJson,
}

impl Form {
    fn stream_form(self) -> StreamForm {
        match self {
            Self::Frames => StreamForm::Frames,
            Self::Events { .. } => StreamForm::Events,
            Self::Json { .. } => StreamForm::Json,
            Self::SocketFrames => StreamForm::SocketFrames,
            Self::SocketJson => StreamForm::SocketJson,
        }
    }

    fn is_gzip(self) -> bool {
        matches!(self, Self::Events { is_gzip: true } | Self::Json { is_gzip: true })
    }

    fn is_litemesh(self) -> bool {
        self.stream_form().is_litemesh()
    }

    /// Whether what an end writes has no end of its own, unlike the bodies that a client posts.
    pub fn is_stream(self, of_client: bool) -> bool {
        !of_client || self.stream_form().is_socket()
    }
}

/// One end of a connection, as far as it writes.
pub struct Writer {
    site: SiteId,
    form: Form,
    is_client: bool,
    way: WayOut,
}

enum WayOut {
    Bodies,
    Stream { queue: FrameQueue, encoder: Option<Box<StreamEncoder>> },
    Socket(Framer),
}

impl Writer {
    /// That of a client or of a server with this site.
    pub fn new(form: Form, is_client: bool, site: SiteId) -> Self {
        let way = if form.stream_form().is_socket() {
            WayOut::Socket(Framer::default())
        } else if is_client {
            WayOut::Bodies
        } else {
            let encoder = form.is_gzip().then(|| Box::new(StreamEncoder::new()));
            WayOut::Stream { queue: FrameQueue::new(1), encoder }
        };
        Self { site, form, is_client, way }
    }

    /// What a server says first. What a client says stands in the head of its request.
    pub fn introduction(&self) -> Option<Vec<u8>> {
        let form = self.form.stream_form();
        (!self.is_client).then(|| form.connect(self.site, &Access::FULL).into())
    }

    /// A request.
    pub fn sync(&self, request: &SyncRequest) -> Vec<u8> {
        if self.is_client {
            self.body(crate::client::sync(self.form.is_litemesh(), self.site, request))
        } else {
            self.form.stream_form().sync(self.site, request).into()
        }
    }

    /// A message; `None` where it does not fit a body.
    pub fn message(&self, message: &PeerMessage) -> Option<Vec<u8>> {
        if !self.is_client {
            return Some(self.form.stream_form().message(self.site, message).into());
        }
        if self.form.is_litemesh() {
            return Some(self.body(litemesh_proto::codec::v2::message(message)));
        }
        let mut bodies = bodies(self.site, message.clone(), V1_BODY_BYTES_SAFE).ok()?;
        bodies.pop().filter(|_| bodies.is_empty())
    }

    fn body(&self, message: Vec<u8>) -> Vec<u8> {
        if matches!(self.way, WayOut::Bodies) { body(self.form.is_litemesh(), message) } else { message }
    }

    /// A sign of life as a message, which a stream has. A WebSocket has [`ping`](Self::ping).
    pub fn sign_of_life(&self) -> Option<Vec<u8>> {
        matches!(self.way, WayOut::Stream { .. }).then(|| self.form.stream_form().ping(self.site).into())
    }

    /// The bytes of a message that was made here. Over a WebSocket it goes in parts of so many bytes, and in front of each, as `rng`
    /// has it, a ping.
    pub fn write(&mut self, message: &[u8], part_bytes: usize, rng: &mut Rng) -> Vec<u8> {
        let kind = self.kind();
        match &mut self.way {
            WayOut::Bodies => message.to_vec(),
            WayOut::Stream { queue, encoder } => {
                let is_taken = queue.try_push(Bytes::copy_from_slice(message)).is_some();
                debug_assert!(is_taken, "nothing waits in the queue");
                let chunks = std::iter::from_fn(|| queue.try_next_chunk());
                chunks.flat_map(|chunk| encoded(chunk, encoder.as_deref_mut())).collect()
            }
            WayOut::Socket(framer) => {
                let mut parts = message.chunks(part_bytes.max(1)).peekable();
                let mut bytes = Vec::new();
                while let Some(part) = parts.next() {
                    if rng.u8(..16) == 0 {
                        bytes.extend(framer.ping(&[rng.u8(..)], key(self.is_client, rng)));
                    }
                    bytes.extend(framer.part(kind, part, parts.peek().is_none(), key(self.is_client, rng)));
                }
                bytes
            }
        }
    }

    /// The bytes of a pong, over a WebSocket.
    pub fn pong(&self, payload: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
        let WayOut::Socket(framer) = &self.way else { return None };
        Some(framer.pong(payload, key(self.is_client, rng)))
    }

    /// The bytes by which an end says that it goes, over a WebSocket.
    pub fn close(&self, reason: &str, rng: &mut Rng) -> Option<Vec<u8>> {
        let WayOut::Socket(framer) = &self.way else { return None };
        Some(framer.close(&Farewell::new(code::GOING_AWAY, reason), key(self.is_client, rng)))
    }

    fn kind(&self) -> Kind {
        if self.form.is_litemesh() { Kind::Binary } else { Kind::Text }
    }
}

fn key(is_client: bool, rng: &mut Rng) -> Option<[u8; 4]> {
    is_client.then(|| rng.u32(..).to_ne_bytes())
}

/// One end of a connection, as far as it reads.
pub struct Reader {
    limits: Limits,
    kind: Kind,
    is_introduced: bool,
    way: WayIn,
}

enum WayIn {
    Bodies {
        buffer: BodyBuffer,
        /// Complete bodies that were not read yet.
        whole: Bytes,
    },
    Stream(Box<StreamIntake>),
    Socket {
        intake: Intake,
        rest: Bytes,
    },
}

impl Reader {
    /// Of what a client or a server sends.
    pub fn new(form: Form, of_client: bool, limits: &Limits) -> Self {
        let max = limits.message_bytes_max;
        let way = if form.stream_form().is_socket() {
            WayIn::Socket { intake: Intake::new(of_client, max), rest: Bytes::new() }
        } else if of_client {
            WayIn::Bodies { buffer: BodyBuffer::new(false, max), whole: Bytes::new() }
        } else {
            WayIn::Stream(Box::new(StreamIntake::new(form == Form::Frames, form.is_gzip(), limits)))
        };
        let kind = if form.is_litemesh() { Kind::Binary } else { Kind::Text };
        Self { limits: limits.clone(), kind, is_introduced: of_client, way }
    }

    /// Takes the next bytes, once [`next`](Self::next) has given all messages of the last ones.
    ///
    /// # Errors
    ///
    /// A body is too large.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        match &mut self.way {
            WayIn::Bodies { buffer, .. } => buffer.push(bytes).map_err(|error| format!("{error:?}"))?,
            WayIn::Stream(intake) => intake.feed(Bytes::copy_from_slice(bytes)),
            WayIn::Socket { rest, .. } => *rest = Bytes::copy_from_slice(bytes),
        }
        Ok(())
    }

    /// A body that a client posted is complete, as HTTP says. `site`: the client's.
    ///
    /// # Errors
    ///
    /// It is none of that client, or cannot be read.
    pub fn end_body(&mut self, is_sync: bool, site: SiteId) -> Result<(), String> {
        let WayIn::Bodies { buffer, whole } = &mut self.way else { return Ok(()) };
        let complete = std::mem::replace(buffer, BodyBuffer::new(false, self.limits.message_bytes_max));
        let body = complete.finish().map_err(|error| format!("{error:?}"))?;
        if self.kind == Kind::Text {
            let route = if is_sync { Route::Sync } else { Route::Data };
            let message = read_message(route, &body).map_err(|complaint| format!("{complaint:?}"))?;
            message.content.map_err(|error| error.to_string())?;
            // What the server goes by before the body is complete, and afterwards.
            if sender(&body) != Sender::Known(site) || message.peer_id != site.to_string() {
                return Err(format!("a message of {} came as one of {site}", message.peer_id));
            }
        }
        *whole = body.into();
        Ok(())
    }

    /// The next message, a frame of wire v2 or JSON of wire v1; `None` where it takes more bytes. A server's first one says who it is,
    /// which is looked at here, and not given.
    ///
    /// # Errors
    ///
    /// Nothing more can be read, or one message cannot. Where the other end closed a WebSocket, the reason is what it said.
    pub fn next(&mut self, site: SiteId) -> Result<Option<Vec<u8>>, String> {
        let Some(received) = self.next_received()? else { return Ok(None) };
        if !std::mem::replace(&mut self.is_introduced, true) {
            let (remote, _) = introduction(&received, &self.limits).map_err(|error| error.to_string())?;
            if remote.site != site {
                return Err(format!("{site} introduces itself as {}", remote.site));
            }
            return self.next(site);
        }
        match received {
            Received::Json(bytes) | Received::Frame(bytes) => Ok(Some(bytes)),
        }
    }

    fn next_received(&mut self) -> Result<Option<Received>, String> {
        match &mut self.way {
            WayIn::Bodies { whole, .. } if self.kind == Kind::Text => {
                let body = std::mem::take(whole);
                Ok((!body.is_empty()).then(|| Received::Json(body.into())))
            }
            WayIn::Bodies { whole, .. } => Ok(split_frame(whole, &self.limits)?.map(Received::Frame)),
            WayIn::Stream(intake) => intake.next()?.transpose(),
            WayIn::Socket { intake, rest } => {
                let bytes = std::mem::take(rest);
                let mut piece = &*bytes;
                let taken = intake.take(&mut piece).map_err(|end| match end {
                    End::Closed(said) => said.reason,
                    end => end.reason("the other end"),
                })?;
                *rest = bytes.slice_ref(piece);
                match taken {
                    Some((kind, _)) if kind != self.kind => Err("a message of another kind".to_owned()),
                    Some((Kind::Binary, message)) => Ok(Some(Received::Frame(message))),
                    Some((Kind::Text, message)) => Ok(Some(Received::Json(message))),
                    None => Ok(None),
                }
            }
        }
    }

    /// What the other end of a WebSocket pinged with since the last call.
    pub fn take_ping(&mut self) -> Option<Vec<u8>> {
        match &mut self.way {
            WayIn::Socket { intake, .. } => intake.take_ping(),
            _ => None,
        }
    }

    /// Whether the other end of a WebSocket answered a ping since the last call.
    pub fn take_answer(&mut self) -> bool {
        match &mut self.way {
            WayIn::Socket { intake, .. } => intake.take_answer(),
            _ => false,
        }
    }

    /// Bytes held of what is not complete.
    pub fn held_bytes(&self) -> usize {
        match &self.way {
            WayIn::Bodies { buffer, .. } => buffer.bytes().len(),
            WayIn::Stream(intake) => intake.held_bytes(),
            WayIn::Socket { intake, .. } => intake.held_bytes(),
        }
    }
}
