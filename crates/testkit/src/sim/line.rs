//! One direction of a connection as bytes: the code of a transport writes them and reads them, and between the two they are cut
//! anywhere.
//!
//! When what arrives is decided by messages (`network`, `carry`), and no choice of those depends on what is drawn here. So bytes of the
//! next messages may be read beforehand, as part of one piece with the last one, and wait in the reader; and where a connection breaks,
//! the messages that still arrive are followed by a part of the next one.

use std::collections::VecDeque;

use fastrand::Rng;
use litemesh::simulation::Rank;
use litemesh_engine::proto::codec::v1;
use litemesh_engine::proto::codec::v2::{self, Deframer, Hello};
use litemesh_engine::proto::{Access, Limits, PeerMessage, SiteId, SyncRequest};
use litemesh_http::simulation::{Form, Reader, Writer};

use super::network::Frame;

/// What a reader holds at most. Messages here are smaller, and one that is larger has to be refused.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Pieces into which what comes at once is cut at most, as long as they are short.
const PIECES_MAX: usize = 24;

/// Bytes at the end of what was compressed without which it may be complete: the end of a block, and the mark of a flush.
const FLUSH_BYTES_MAX: u64 = 9;

/// A transport between two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// A stream of wire v2 frames both ways, as over standard input and output.
    Channel,
    Http(Form),
}

impl Carrier {
    /// One for a wire: an answer to a POST comes after the commit, and nothing of the kind over the others.
    pub(super) fn draw(rng: &mut Rng, is_litemesh: bool, waits_for_commit: [bool; 2], originals: [bool; 2]) -> Self {
        let (is_gzip, number) = (rng.bool(), rng.u8(..));
        let http = match is_litemesh {
            // The original compresses nothing.
            false => Form::Json { is_gzip: is_gzip && !originals[1] },
            true if number.is_multiple_of(2) => Form::Frames,
            true => Form::Events { is_gzip },
        };
        // The original knows nothing else.
        if waits_for_commit == [true, false] || originals != [false, false] {
            return Self::Http(http);
        }
        match number / 2 % if waits_for_commit == [false, false] { 2 } else { 3 } {
            0 if is_litemesh => Self::Channel,
            0 | 1 => Self::Http(if is_litemesh { Form::SocketFrames } else { Form::SocketJson }),
            _ => Self::Http(http),
        }
    }

    /// What kind of way it is to a session.
    pub(super) fn rank(self) -> Rank {
        match self {
            Self::Channel | Self::Http(Form::SocketFrames | Form::SocketJson) => Rank::LINE,
            Self::Http(_) => Rank::SPLIT,
        }
    }
}

/// What was carried as bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub struct Carried {
    /// Messages, by how they went: over a channel, in each form of a stream, in POSTs of either wire, and over either WebSocket.
    pub channel: usize,
    pub frames: usize,
    pub events: usize,
    pub events_gzip: usize,
    pub json: usize,
    pub json_gzip: usize,
    pub frame_bodies: usize,
    pub json_bodies: usize,
    pub socket_frames: usize,
    pub socket_json: usize,
    /// Messages that had come whole with one before them, and messages of which only a part came.
    pub together: usize,
    pub cut: usize,
    /// Messages that were too large, and refused.
    pub too_large: usize,
    /// Signs of life between messages, answers to those of a WebSocket, and WebSockets that were closed with a word.
    pub signs_of_life: usize,
    pub pongs: usize,
    pub farewells: usize,
    /// Events that relays took, messages that went in several, events that were refused for their date, were forgotten and published
    /// again, and were said again.
    pub relay_events: usize,
    pub relay_parts: usize,
    pub relay_refusals: usize,
    pub relay_losses: usize,
    pub relay_repeats: usize,
    /// Events that came before one that they follow, and streams that were given up for one that did not come.
    pub relay_gaps: usize,
    pub relay_breaks: usize,
}

impl Carried {
    fn of(&mut self, carrier: Carrier, of_client: bool) -> &mut usize {
        let Carrier::Http(form) = carrier else { return &mut self.channel };
        match form {
            Form::SocketFrames => &mut self.socket_frames,
            Form::SocketJson => &mut self.socket_json,
            Form::Frames | Form::Events { .. } if of_client => &mut self.frame_bodies,
            Form::Json { .. } if of_client => &mut self.json_bodies,
            Form::Frames => &mut self.frames,
            Form::Events { is_gzip: false } => &mut self.events,
            Form::Events { is_gzip: true } => &mut self.events_gzip,
            Form::Json { is_gzip: false } => &mut self.json,
            Form::Json { is_gzip: true } => &mut self.json_gzip,
        }
    }

    /// Adds what another run carried.
    pub fn add(&mut self, mut other: Self) {
        for ((_, sum), (_, more)) in self.each_mut().into_iter().zip(other.each_mut()) {
            *sum += *more;
        }
    }

    /// What was never met.
    pub fn missing(mut self) -> Vec<&'static str> {
        self.each_mut().into_iter().filter(|(_, count)| **count == 0).map(|(name, _)| name).collect()
    }

    fn each_mut(&mut self) -> [(&'static str, &mut usize); 23] {
        [
            ("channel", &mut self.channel),
            ("frames", &mut self.frames),
            ("events", &mut self.events),
            ("events_gzip", &mut self.events_gzip),
            ("json", &mut self.json),
            ("json_gzip", &mut self.json_gzip),
            ("frame_bodies", &mut self.frame_bodies),
            ("json_bodies", &mut self.json_bodies),
            ("socket_frames", &mut self.socket_frames),
            ("socket_json", &mut self.socket_json),
            ("together", &mut self.together),
            ("cut", &mut self.cut),
            ("too_large", &mut self.too_large),
            ("signs_of_life", &mut self.signs_of_life),
            ("pongs", &mut self.pongs),
            ("farewells", &mut self.farewells),
            ("relay_events", &mut self.relay_events),
            ("relay_parts", &mut self.relay_parts),
            ("relay_refusals", &mut self.relay_refusals),
            ("relay_losses", &mut self.relay_losses),
            ("relay_repeats", &mut self.relay_repeats),
            ("relay_gaps", &mut self.relay_gaps),
            ("relay_breaks", &mut self.relay_breaks),
        ]
    }
}

pub(super) struct Line {
    carrier: Carrier,
    of_client: bool,
    /// Who writes.
    site: SiteId,
    out: Out,
    incoming: In,
    /// Written, and not read yet.
    bytes: VecDeque<u8>,
    /// How many were written and read, and where among them each message ends that was written and not taken.
    written: u64,
    fed: u64,
    ends: VecDeque<u64>,
    /// Where the last message ended that was taken.
    taken: u64,
    /// Messages that were read and not taken.
    read: VecDeque<Vec<u8>>,
    signs_of_life: usize,
    pongs: usize,
    /// What is to be answered to a ping of the other end.
    pong: Option<Vec<u8>>,
    /// It ends within a message, and nothing is written any more.
    is_cut: bool,
    /// It ends without a word.
    pub(super) is_broken: bool,
}

enum Out {
    Channel,
    Http(Box<Writer>),
}

enum In {
    Channel { deframer: Deframer, is_introduced: bool },
    Http(Reader),
}

impl Line {
    /// What the peer at an end writes over a new connection: 0 has dialled.
    pub(super) fn new(carrier: Carrier, end: usize, site: SiteId) -> Self {
        let limits = Limits { message_bytes_max: MESSAGE_BYTES_MAX, ..Limits::default() };
        let of_client = end == 0;
        let (out, incoming) = match carrier {
            Carrier::Channel => (Out::Channel, In::Channel { deframer: Deframer::new(&limits), is_introduced: false }),
            Carrier::Http(form) => (
                Out::Http(Box::new(Writer::new(form, of_client, site))),
                In::Http(Reader::new(form, of_client, &limits)),
            ),
        };
        Self {
            carrier,
            of_client,
            site,
            out,
            incoming,
            bytes: VecDeque::new(),
            written: 0,
            fed: 0,
            ends: VecDeque::new(),
            taken: 0,
            read: VecDeque::new(),
            signs_of_life: 0,
            pongs: 0,
            pong: None,
            is_cut: false,
            is_broken: false,
        }
    }

    pub(super) fn sync(&self, request: &SyncRequest) -> Vec<u8> {
        match &self.out {
            Out::Channel => v2::framed(&v2::sync(request)),
            Out::Http(writer) => writer.sync(request),
        }
    }

    pub(super) fn message(&self, message: &PeerMessage) -> Vec<u8> {
        match &self.out {
            Out::Channel => v2::framed(&v2::message(message)),
            Out::Http(writer) => writer.message(message).expect("messages of simulations are small"),
        }
    }

    /// The other end is owed an answer.
    pub(super) fn answer(&mut self, ping: Vec<u8>) {
        self.pong = Some(ping);
    }

    pub(super) fn take_ping(&mut self) -> Option<Vec<u8>> {
        match &mut self.incoming {
            In::Http(reader) => reader.take_ping(),
            In::Channel { .. } => None,
        }
    }

    fn is_stream(&self) -> bool {
        match self.carrier {
            Carrier::Channel => true,
            Carrier::Http(form) => form.is_stream(self.of_client),
        }
    }

    fn is_gzip(&self) -> bool {
        !self.of_client
            && matches!(self.carrier, Carrier::Http(Form::Events { is_gzip: true } | Form::Json { is_gzip: true }))
    }

    // What is written.

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.written += bytes.len() as u64;
    }

    /// Writes the introduction, where nothing was written before.
    fn begin(&mut self, rng: &mut Rng) {
        if self.written > 0 {
            return;
        }
        let introduction = match &self.out {
            Out::Channel => {
                let hello = Hello { version: v2::VERSION, site: self.site, access: Access::FULL };
                Some(v2::framed(&v2::hello(&hello)))
            }
            Out::Http(writer) => writer.introduction(),
        };
        if let Some(introduction) = introduction {
            self.write_message(&introduction, rng);
        }
    }

    fn write_message(&mut self, message: &[u8], rng: &mut Rng) {
        let bytes = match &mut self.out {
            Out::Channel => message.to_vec(),
            Out::Http(writer) => {
                let part_bytes =
                    if rng.u8(..4) == 0 { rng.usize(message.len() / 8 + 1..=message.len() + 1) } else { usize::MAX };
                writer.write(message, part_bytes, rng)
            }
        };
        self.put(&bytes);
    }

    /// Writes a message, and in front of it what else goes over such a line.
    fn write(&mut self, message: &[u8], rng: &mut Rng) {
        self.begin(rng);
        if let (Some(payload), Out::Http(writer)) = (self.pong.take(), &self.out)
            && let Some(pong) = writer.pong(&payload, rng)
        {
            self.put(&pong);
        }
        if rng.u8(..16) == 0 {
            let sign_of_life = match &self.out {
                Out::Channel => Some(v2::framed(&v2::ping())),
                Out::Http(writer) => writer.sign_of_life(),
            };
            if let Some(sign_of_life) = sign_of_life {
                self.write_message(&sign_of_life, rng);
            }
        }
        self.write_message(message, rng);
        self.ends.push_back(self.written);
    }

    /// Writes so many of the messages that are under way, up to the end of the connection.
    fn write_first(&mut self, frames: &VecDeque<Frame>, count: usize, rng: &mut Rng) {
        while self.ends.len() < count
            && !self.is_cut
            && let Some(Frame::Sync(bytes) | Frame::Data(bytes) | Frame::Repeat(bytes)) = frames.get(self.ends.len())
        {
            self.write(bytes, rng);
        }
    }

    // What is read.

    /// Reads the first of the messages that are under way.
    pub(super) fn read(
        &mut self,
        frames: &VecDeque<Frame>,
        reads_ahead: bool,
        rng: &mut Rng,
        carried: &mut Carried,
    ) -> Result<Vec<u8>, String> {
        self.write_first(frames, 1, rng);
        let Some(end) = self.ends.front().copied() else { return Err("a message of a broken line".to_owned()) };
        if self.is_stream() {
            let mut until = end;
            if reads_ahead && rng.bool() {
                self.write_first(frames, rng.usize(2..5), rng);
                until = rng.u64(end..=self.written);
            }
            self.feed_until(until, rng)?;
        } else {
            self.feed_until(end, rng)?;
            let is_sync = matches!(frames.front(), Some(Frame::Sync(_)));
            let In::Http(reader) = &mut self.incoming else { unreachable!("a channel is a stream") };
            reader.end_body(is_sync, self.site)?;
            self.take_in()?;
        }
        self.ends.pop_front();
        self.taken = end;
        let message = self.read.pop_front().ok_or("a message came whole and was not read")?;
        if self.read.len() > self.ends.len() {
            return Err("more was read than was written".to_owned());
        }
        *carried.of(self.carrier, self.of_client) += 1;
        carried.together += usize::from(!self.read.is_empty());
        carried.signs_of_life += std::mem::take(&mut self.signs_of_life);
        carried.pongs += std::mem::take(&mut self.pongs);
        Ok(message)
    }

    /// Gives the reader bytes up to a place, in pieces of any sizes.
    fn feed_until(&mut self, until: u64, rng: &mut Rng) -> Result<(), String> {
        let mut left = usize::try_from(until.saturating_sub(self.fed)).expect("bytes in memory");
        let piece_max = match rng.u8(..4) {
            0 => left,
            1 => 1 + rng.usize(..16),
            2 => 1 + rng.usize(..1024),
            _ => 1 + rng.usize(..left.max(1)),
        };
        for number in 0.. {
            if left == 0 {
                break;
            }
            let piece = if number < PIECES_MAX { rng.usize(1..=piece_max.max(1)).min(left) } else { left };
            let bytes: Vec<u8> = self.bytes.drain(..piece).collect();
            left -= piece;
            self.fed += piece as u64;
            self.feed(&bytes)?;
        }
        Ok(())
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        if let In::Channel { .. } = self.incoming {
            return self.take_in_frames(bytes);
        }
        let In::Http(reader) = &mut self.incoming else { unreachable!("looked at above") };
        reader.feed(bytes)?;
        if self.is_stream() { self.take_in() } else { Ok(()) }
    }

    fn take_in_frames(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        let In::Channel { deframer, is_introduced } = &mut self.incoming else { return Ok(()) };
        while let Some(frame) = deframer.feed(&mut bytes).map_err(|error| error.to_string())? {
            if std::mem::replace(is_introduced, true) {
                match frame == v2::ping() {
                    true => self.signs_of_life += 1,
                    false => self.read.push_back(frame),
                }
                continue;
            }
            match v2::decode(&frame, &Limits::default()) {
                Ok(v2::Frame::Hello(hello)) if hello.site == self.site && hello.version >= v2::VERSION => {}
                other => return Err(format!("no introduction of {}: {other:?}", self.site)),
            }
        }
        Ok(())
    }

    /// Takes the messages that are complete.
    fn take_in(&mut self) -> Result<(), String> {
        let In::Http(reader) = &mut self.incoming else { return Ok(()) };
        while let Some(message) = reader.next(self.site)? {
            match is_sign_of_life(&message, self.site) {
                true => self.signs_of_life += 1,
                false => self.read.push_back(message),
            }
        }
        self.pongs += usize::from(reader.take_answer());
        let held = reader.held_bytes();
        if held > 2 * MESSAGE_BYTES_MAX {
            return Err(format!("{held} bytes are held"));
        }
        Ok(())
    }

    // How it ends.

    /// Nothing behind the first messages is written, but a part of the next one.
    pub(super) fn cut(&mut self, frames: &VecDeque<Frame>, kept: usize, rng: &mut Rng) {
        if kept >= frames.len() {
            return;
        }
        self.write_first(frames, kept + 1, rng);
        (self.is_cut, self.is_broken) = (true, true);
        let Some(end) = self.ends.get(kept).copied() else { return };
        let kept_until = kept.checked_sub(1).map_or(self.fed, |last| self.ends[last]);
        self.cut_between(kept_until, end, rng);
        self.ends.truncate(kept);
        // What came with others and was not looked at is dropped with its connection.
        self.read.truncate(kept);
    }

    /// What is written ends somewhere in a message that has its end there.
    fn cut_between(&mut self, start: u64, end: u64, rng: &mut Rng) {
        // One that is whole without its last bytes would be read.
        let end = if self.is_gzip() { end.saturating_sub(FLUSH_BYTES_MAX) } else { end };
        let start = start.max(self.fed);
        self.written = if start < end { rng.u64(start..end) } else { start };
        self.bytes.truncate(usize::try_from(self.written - self.fed).expect("bytes in memory"));
    }

    /// Nothing more is written or read.
    pub(super) fn break_off(&mut self) {
        (self.is_cut, self.is_broken) = (true, true);
        self.written = self.fed;
        self.bytes.clear();
        self.ends.clear();
        self.read.clear();
    }

    /// The connection ends: a part of a message is not read as one, and over a WebSocket an end may say why.
    pub(super) fn end(&mut self, reason: &str, rng: &mut Rng, carried: &mut Carried) -> Result<(), String> {
        let before = self.read.len();
        if self.is_broken && !self.is_cut {
            // Something that it had begun to say.
            self.begin(rng);
            let start = self.written;
            self.write_message(&self.sync(&SyncRequest::default()), rng);
            self.cut_between(start, self.written, rng);
        }
        self.feed_until(self.written, rng)?;
        if self.read.len() > before {
            return Err("a part of a message was read as one".to_owned());
        }
        carried.cut += usize::from(self.fed > self.taken);
        if !self.is_stream() && self.fed > 0 && self.is_broken {
            // Where a proxy takes the end of the line for the end of the body.
            return self.end_body_early();
        }
        if self.is_broken {
            return Ok(());
        }
        if rng.u8(..32) == 0 {
            return self.say_too_much(rng, carried);
        }
        let Out::Http(writer) = &self.out else { return Ok(()) };
        let Some(bytes) = writer.close(reason, rng) else { return Ok(()) };
        self.begin(rng);
        self.put(&bytes);
        match self.feed_until(self.written, rng) {
            Err(said) if !said.is_empty() && reason.starts_with(&said) => {
                carried.farewells += 1;
                Ok(())
            }
            other => Err(format!("a socket was closed because of {reason:?}, and its reader says {other:?}")),
        }
    }

    fn end_body_early(&mut self) -> Result<(), String> {
        let In::Http(reader) = &mut self.incoming else { return Ok(()) };
        if reader.held_bytes() == 0 || reader.end_body(false, self.site).is_err() {
            return Ok(());
        }
        match reader.next(self.site) {
            Err(_) => Ok(()),
            Ok(message) => Err(format!("a part of a body was read as {message:?}")),
        }
    }

    fn say_too_much(&mut self, rng: &mut Rng, carried: &mut Carried) -> Result<(), String> {
        let frame = vec![b'x'; MESSAGE_BYTES_MAX + 1];
        let message = match self.carrier {
            Carrier::Http(Form::Events { .. } | Form::Json { .. }) if !self.of_client => {
                [b"data: ".as_slice(), &frame, &frame, b"\n\n"].concat()
            }
            Carrier::Channel | Carrier::Http(Form::Frames | Form::Events { .. }) => v2::framed(&frame),
            Carrier::Http(_) => frame,
        };
        let before = self.read.len();
        self.begin(rng);
        self.write_message(&message, rng);
        match self.feed_until(self.written, rng) {
            Err(_) if self.read.len() == before => {
                carried.too_large += 1;
                Ok(())
            }
            other => Err(format!("{} bytes at once, and the reader says {other:?}", message.len())),
        }
    }
}

fn is_sign_of_life(message: &[u8], site: SiteId) -> bool {
    message == v2::ping() || message == v1::ping(site)
}
