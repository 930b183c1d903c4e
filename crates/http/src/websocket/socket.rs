//! The two halves of a WebSocket over any stream of bytes: one reads, the other writes, and each in its own time. What they make of
//! bytes is pure: [`Intake`] and [`Framer`].
//!
//! What the reader learns and the writer has to say, the answer to a ping and how the socket is closed, lies between them, in a place
//! for one of each.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::frame::{OpCode, frame};
use super::{Assembler, Event, Farewell, Fault, Kind};
use crate::DRAINED_BYTES_MAX;

/// Bytes that are read at a time. They lie on the stack of who polls, so that a silent socket holds no buffer.
const PIECE_BYTES: usize = 16 * 1024;

/// The halves of a WebSocket whose handshake is done. Towards a client we are the server.
pub(crate) fn split<S: AsyncRead + AsyncWrite>(
    stream: S,
    of_client: bool,
    message_bytes_max: usize,
) -> (SocketReader<S>, SocketWriter<S>) {
    let (reading, writing) = tokio::io::split(stream);
    let (pings, pinged) = watch::channel(Bytes::new());
    let farewell = Arc::new(OnceLock::new());
    let reader = SocketReader {
        stream: reading,
        intake: Intake::new(of_client, message_bytes_max),
        rest: Bytes::new(),
        pings,
        farewell: farewell.clone(),
    };
    let (is_client, framer) = (!of_client, Framer::default());
    (reader, SocketWriter { stream: writing, is_client, pinged, framer, farewell, patience: Duration::MAX })
}

/// Does something that may go on for a while after `end`, and is then dropped.
pub(crate) async fn until_after<T>(
    end: &CancellationToken,
    patience: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let enough = async {
        end.cancelled().await;
        tokio::time::sleep(patience).await;
    };
    // What is lost with the work, its caller knows.
    tokio::select! {
        biased;
        done = work => Some(done),
        () = enough => None,
    }
}

/// What comes, as bytes that somebody else reads.
#[derive(Debug)]
pub(crate) struct Intake {
    assembler: Assembler,
    /// The last ping that nobody has looked at yet.
    pinged: Option<Vec<u8>>,
    /// The other end answered a ping, and nobody has looked yet.
    is_answered: bool,
}

impl Intake {
    /// Of what a client sends, or else a server.
    pub(crate) fn new(of_client: bool, message_bytes_max: usize) -> Self {
        Self { assembler: Assembler::new(of_client, message_bytes_max), pinged: None, is_answered: false }
    }

    /// Takes bytes off the front of a piece, up to the end of a message.
    pub(crate) fn take(&mut self, piece: &mut &[u8]) -> Result<Option<(Kind, Vec<u8>)>, End> {
        while let Some(event) = self.assembler.feed(piece)? {
            match event {
                Event::Message(kind, message) => return Ok(Some((kind, message))),
                // In place of the one before, if that has not been answered yet: one answer is for all of them.
                Event::Ping(payload) => self.pinged = Some(payload),
                Event::Pong => self.is_answered = true,
                Event::Close(said) => return Err(End::Closed(said)),
            }
        }
        Ok(None)
    }

    /// What the other end pinged with since the last call.
    pub(crate) fn take_ping(&mut self) -> Option<Vec<u8>> {
        self.pinged.take()
    }

    /// Whether the other end answered a ping since the last call.
    pub(crate) fn take_answer(&mut self) -> bool {
        std::mem::take(&mut self.is_answered)
    }

    /// Bytes held of the message that has begun.
    pub(crate) fn held_bytes(&self) -> usize {
        self.assembler.held_bytes()
    }
}

/// What comes.
pub(crate) struct SocketReader<S> {
    stream: ReadHalf<S>,
    intake: Intake,
    /// What came behind the end of the last message.
    rest: Bytes,
    pings: watch::Sender<Bytes>,
    farewell: Arc<OnceLock<Farewell>>,
}

/// A piece of what comes.
#[derive(Debug)]
pub(crate) struct Read {
    /// Bytes that came from the network. None where what was read before held another message.
    pub(crate) bytes: usize,
    /// The message that they complete.
    pub(crate) message: Option<(Kind, Vec<u8>)>,
}

/// Why nothing more comes.
#[derive(Debug)]
pub(crate) enum End {
    /// The other end closed the socket, and said so.
    Closed(Farewell),
    /// It hung up.
    HungUp,
    Fault(Fault),
    Broken(io::Error),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl End {
    /// Why, in words; `who` is the other end.
    pub(crate) fn reason(&self, who: &str) -> String {
        match self {
            Self::Closed(said) => format!("{who} closed the socket: {said}"),
            Self::HungUp => format!("{who} closed the socket without a word"),
            Self::Fault(fault) => fault.to_string(),
            Self::Broken(error) => format!("the socket cannot be read: {error}"),
        }
    }
}

impl<S: AsyncRead> SocketReader<S> {
    /// Bytes held of the message that has begun.
    pub(crate) fn held_bytes(&self) -> usize {
        self.intake.held_bytes()
    }

    /// Whether a message has begun and is not complete.
    pub(crate) fn is_inside(&self) -> bool {
        self.intake.assembler.is_inside()
    }

    /// Whether the other end answered a ping since the last call.
    pub(crate) fn take_answer(&mut self) -> bool {
        self.intake.take_answer()
    }

    /// Has the writer close the socket with these words. The first ones count.
    pub(crate) fn say(&self, farewell: Farewell) {
        // The other end or a fault was first.
        let _ = self.farewell.set(farewell);
    }

    /// Waits for a piece of what comes, and takes it in. Not to be called after an error.
    ///
    /// *Cancel safety*: a dropped call has taken nothing.
    pub(crate) async fn read(&mut self) -> Result<Read, End> {
        let read = if self.rest.is_empty() { self.read_stream().await } else { self.read_rest() };
        match &read {
            // With its own code, which is how one agrees.
            Err(End::Closed(said)) => self.say(Farewell::without_reason(said.code)),
            Err(End::Fault(fault)) => self.say(fault.farewell()),
            _ => {}
        }
        read
    }

    async fn read_stream(&mut self) -> Result<Read, End> {
        poll_fn(|context| {
            let mut space = [const { MaybeUninit::uninit() }; PIECE_BYTES];
            let mut piece = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece))?;
            let mut piece = piece.filled();
            let bytes = piece.len();
            if bytes == 0 {
                return Poll::Ready(Err(End::HungUp));
            }
            let message = self.take(&mut piece)?;
            self.rest = Bytes::copy_from_slice(piece);
            Poll::Ready(Ok(Read { bytes, message }))
        })
        .await
    }

    fn read_rest(&mut self) -> Result<Read, End> {
        let bytes = std::mem::take(&mut self.rest);
        let mut piece = &*bytes;
        let message = self.take(&mut piece)?;
        self.rest = if piece.is_empty() { Bytes::new() } else { bytes.slice_ref(piece) };
        Ok(Read { bytes: 0, message })
    }

    /// Takes bytes off the front of a piece, up to the end of a message, and has the writer answer a ping among them.
    fn take(&mut self, piece: &mut &[u8]) -> Result<Option<(Kind, Vec<u8>)>, End> {
        let taken = self.intake.take(piece);
        if let Some(payload) = self.intake.take_ping() {
            self.pings.send_replace(payload.into());
        }
        taken
    }

    /// Reads on for nothing, within limits, until the other end has hung up: see [`DRAINED_BYTES_MAX`].
    pub(crate) async fn drain(&mut self) {
        // It would be held as long, and counts nowhere any more.
        self.intake.assembler.forget();
        self.rest = Bytes::new();
        let mut left = DRAINED_BYTES_MAX;
        while left > 0 {
            let read = poll_fn(|context| {
                let mut space = [const { MaybeUninit::uninit() }; PIECE_BYTES];
                let mut piece = ReadBuf::uninit(&mut space);
                ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece))?;
                Poll::Ready(io::Result::Ok(piece.filled().len()))
            });
            match read.await {
                Ok(0) | Err(_) => return,
                Ok(bytes) => left = left.saturating_sub(bytes),
            }
        }
    }
}

/// The frames of what goes. A mask key is for one frame, and for clients alone.
#[derive(Debug, Default)]
pub(crate) struct Framer {
    /// A message has gone out in part.
    is_inside: bool,
}

impl Framer {
    /// A part of a message.
    pub(crate) fn part(&mut self, kind: Kind, part: &[u8], ends_message: bool, mask_key: Option<[u8; 4]>) -> Vec<u8> {
        let opcode = match kind {
            _ if self.is_inside => OpCode::Continue,
            Kind::Text => OpCode::Text,
            Kind::Binary => OpCode::Binary,
        };
        self.is_inside = !ends_message;
        frame(opcode, ends_message, part, mask_key)
    }

    pub(crate) fn ping(&self, payload: &[u8], mask_key: Option<[u8; 4]>) -> Vec<u8> {
        frame(OpCode::Ping, true, payload, mask_key)
    }

    pub(crate) fn pong(&self, payload: &[u8], mask_key: Option<[u8; 4]>) -> Vec<u8> {
        frame(OpCode::Pong, true, payload, mask_key)
    }

    pub(crate) fn close(&self, farewell: &Farewell, mask_key: Option<[u8; 4]>) -> Vec<u8> {
        frame(OpCode::Close, true, &farewell.payload(), mask_key)
    }
}

/// What goes.
pub(crate) struct SocketWriter<S> {
    stream: WriteHalf<S>,
    /// Clients mask what they send.
    is_client: bool,
    pinged: watch::Receiver<Bytes>,
    framer: Framer,
    farewell: Arc<OnceLock<Farewell>>,
    patience: Duration,
}

impl<S: AsyncWrite> SocketWriter<S> {
    /// How long the other end may take nothing of what is written; without it, for ever.
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Writes a part of a message, as a frame of its own.
    ///
    /// *Cancel safety*: none. Once a call was dropped, the socket is of no more use.
    pub(crate) async fn write(&mut self, kind: Kind, part: &[u8], ends_message: bool) -> io::Result<()> {
        let mask_key = self.mask_key()?;
        let frame = self.framer.part(kind, part, ends_message, mask_key);
        self.write_frame(&frame).await
    }

    /// Waits until the other end asks whether we are alive.
    ///
    /// *Cancel safety*: nothing is lost with a dropped call.
    pub(crate) async fn pinged(&mut self) -> Bytes {
        match self.pinged.changed().await {
            Ok(()) => self.pinged.borrow_and_update().clone(),
            // Nothing is read any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks the other end whether it is alive.
    ///
    /// *Cancel safety*: none, as of [`write`](Self::write).
    pub(crate) async fn ping(&mut self) -> io::Result<()> {
        let frame = self.framer.ping(&[], self.mask_key()?);
        self.write_frame(&frame).await
    }

    /// Answers a ping; without one, says that we are alive.
    ///
    /// *Cancel safety*: none, as of [`write`](Self::write).
    pub(crate) async fn pong(&mut self, payload: &[u8]) -> io::Result<()> {
        let frame = self.framer.pong(payload, self.mask_key()?);
        self.write_frame(&frame).await
    }

    /// Closes the socket: with what the reader has to say, else with this. An error says that nobody is there to hear it.
    pub(crate) async fn close(mut self, otherwise: Farewell) -> io::Result<()> {
        let mask_key = self.mask_key()?;
        let frame = self.framer.close(self.farewell.get_or_init(|| otherwise), mask_key);
        self.write_frame(&frame).await?;
        // The other direction stays open, for what the other end still writes.
        self.stream.shutdown().await
    }

    fn mask_key(&self) -> io::Result<Option<[u8; 4]>> {
        self.is_client.then(random_mask).transpose()
    }

    /// In one write, and one packet where it is short.
    async fn write_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        let patience = self.patience;
        let mut left = frame;
        while !left.is_empty() {
            let taken = within(patience, self.stream.write(left)).await?;
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            left = &left[taken..];
        }
        within(patience, self.stream.flush()).await
    }
}

async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let stalled = || io::Error::new(io::ErrorKind::TimedOut, format!("nothing is taken for {} s", patience.as_secs()));
    tokio::time::timeout(patience, work).await.map_err(|_| stalled())?
}

/// Nobody who chooses what we send may guess it (RFC 6455, 10.3).
fn random_mask() -> io::Result<[u8; 4]> {
    let mut key = [0; 4];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn pair() -> (
        SocketReader<tokio::io::DuplexStream>,
        SocketWriter<tokio::io::DuplexStream>,
        SocketReader<tokio::io::DuplexStream>,
        SocketWriter<tokio::io::DuplexStream>,
    ) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (client_reader, client_writer) = split(near, false, 1 << 20);
        let (server_reader, server_writer) = split(far, true, 1 << 20);
        (client_reader, client_writer, server_reader, server_writer)
    }

    async fn message<S: AsyncRead>(reader: &mut SocketReader<S>) -> (Kind, Vec<u8>) {
        loop {
            if let Some(message) = reader.read().await.unwrap().message {
                return message;
            }
        }
    }

    #[tokio::test]
    async fn messages_go_both_ways_in_parts() {
        let (mut client_reader, mut client_writer, mut server_reader, mut server_writer) = pair();
        for (reader, writer) in [(&mut server_reader, &mut client_writer), (&mut client_reader, &mut server_writer)] {
            writer.write(Kind::Text, b"in ", false).await.unwrap();
            writer.pong(b"").await.unwrap();
            writer.write(Kind::Text, b"parts", true).await.unwrap();
            writer.write(Kind::Binary, &[1; 100_000], true).await.unwrap();
            assert_eq!(message(reader).await, (Kind::Text, b"in parts".to_vec()));
            assert_eq!(message(reader).await, (Kind::Binary, vec![1; 100_000]));
            assert!(reader.rest.is_empty() && !reader.is_inside());
        }
    }

    /// A flood of pings leaves one answer behind, however slowly that is taken.
    #[tokio::test]
    async fn only_the_last_of_many_pings_is_answered() {
        let (_client_reader, mut client_writer, mut server_reader, mut server_writer) = pair();
        for number in 0..10_000_u16 {
            let ping = client_writer.framer.ping(&number.to_be_bytes(), Some([7; 4]));
            client_writer.write_frame(&ping).await.unwrap();
        }
        client_writer.write(Kind::Text, b"after", true).await.unwrap();
        assert_eq!(message(&mut server_reader).await.1, b"after");
        assert_eq!(*server_writer.pinged().await, 9_999_u16.to_be_bytes());
        let again = tokio::time::timeout(Duration::ZERO, server_writer.pinged()).await;
        assert!(again.is_err(), "there is one answer");
    }

    #[tokio::test]
    async fn who_closes_is_answered_with_the_same_code() {
        let (mut client_reader, client_writer, mut server_reader, server_writer) = pair();
        client_writer.close(Farewell::new(3000, "enough")).await.unwrap();
        match server_reader.read().await {
            Err(End::Closed(said)) => assert_eq!(said, Farewell::new(3000, "enough")),
            other => panic!("{other:?}"),
        }
        server_writer.close(Farewell::new(1001, "something else")).await.unwrap();
        match client_reader.read().await {
            Err(End::Closed(said)) => assert_eq!(said, Farewell::without_reason(Some(3000))),
            other => panic!("{other:?}"),
        }
        // Both have said all they have to say, although each could still read.
        let both = async { tokio::join!(server_reader.drain(), client_reader.drain()) };
        tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    }

    /// As long as something of it is taken it goes on, however slowly.
    #[tokio::test(start_paused = true)]
    async fn patience_is_with_who_takes_nothing() {
        let (near, far) = tokio::io::duplex(1000);
        let patience = Duration::from_secs(10);
        let mut writer = split(near, false, 100).1.with_patience(patience);
        let (mut reading, _writing) = tokio::io::split(far);
        let slowly = async {
            for _ in 0..5 {
                tokio::time::sleep(patience / 2).await;
                reading.read_exact(&mut [0; 1000]).await.unwrap();
            }
        };
        let started = tokio::time::Instant::now();
        let (written, ()) = tokio::join!(writer.write(Kind::Binary, &[0; 5000], true), slowly);
        written.unwrap();
        assert_eq!(started.elapsed(), patience / 2 * 5);
        let stalled = writer.write(Kind::Binary, &[0; 5000], true).await.unwrap_err();
        assert_eq!((stalled.kind(), started.elapsed()), (io::ErrorKind::TimedOut, patience / 2 * 5 + patience));
    }

    #[tokio::test]
    async fn who_reads_for_nothing_holds_nothing() {
        let (_client_reader, mut client_writer, mut server_reader, _server_writer) = pair();
        client_writer.write(Kind::Binary, &[7; 10_000], false).await.unwrap();
        while server_reader.held_bytes() < 10_000 {
            assert_eq!(server_reader.read().await.unwrap().message, None);
        }
        let drained = tokio::time::timeout(Duration::ZERO, server_reader.drain()).await;
        assert!(drained.is_err(), "the client is there");
        assert_eq!((server_reader.held_bytes(), server_reader.intake.assembler.capacity_bytes()), (0, 0));
    }

    #[tokio::test]
    async fn a_fault_is_told_and_hanging_up_is_none() {
        let (near, far) = tokio::io::duplex(1000);
        let (mut reader, writer) = split(far, true, 100);
        let (mut near_reader, mut near_writer) = split(near, false, 100);
        near_writer.write(Kind::Binary, &[0; 101], true).await.unwrap();
        assert!(matches!(reader.read().await, Err(End::Fault(Fault::TooLarge { max: 100 }))));
        writer.close(Farewell::new(1001, "")).await.unwrap();
        match near_reader.read().await {
            Err(End::Closed(said)) => assert_eq!(said.code, Some(1009)),
            other => panic!("{other:?}"),
        }
        drop((reader, near_reader, near_writer));
        let (near, far) = tokio::io::duplex(1000);
        let (mut reader, _writer) = split(far, true, 100);
        drop(near);
        assert!(matches!(reader.read().await, Err(End::HungUp)));
    }
}
