//! One connection over a stream: both introduce themselves, then frames go both ways until it ends.

use std::time::Duration;

use litemesh_proto::codec::v2::{self, Deframer, Frame, Hello};
use litemesh_proto::{Access, Limits, PeerCallbacks, Refusal, Remote};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{ChannelError, FRAMES_MAX, Link, Shared};

/// How long the other end may take to introduce itself: `ssh` may ask for a password first.
const HELLO_TIMEOUT: Duration = Duration::from_secs(120);

/// Pings that may be missing before a connection counts as dead: one may be late on a busy machine, and three are not.
const SILENT_PINGS_MAX: u32 = 3;

/// How long the other end may take to hear why it is not wanted, and we to hear why it closed the stream: a frame or two over any line that
/// works. Whoever takes none would keep us from ending.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a connection ends whose acceptor was dropped.
const ABANDONED: &str = "nobody waits for this connection any more";

/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// From this size on a frame is decoded outside of the runtime's threads: it may become a hundred times as long.
const INLINE_DECODE_BYTES_MAX: usize = 32 * 1024;

/// Who says what the other may do.
pub(super) enum Side {
    /// We let the other end do this much.
    Listener(Access),
    /// As the other end says.
    Dialler,
}

/// Refusals that wait to be told. Another one meanwhile goes unsaid: what was refused is asked for again anyway.
const REFUSALS_MAX: usize = 1;

/// Refusals that are heard over one connection: the application hears of each. An honest end refuses a few, and then asks anew over another
/// connection.
const REFUSALS_HEARD_MAX: usize = 64;

/// Runs a connection to its end, or until nobody waits for it any more. `stood` is called when our peer took a first message.
pub(super) async fn run(
    shared: &Shared,
    peer: &dyn PeerCallbacks,
    read: impl AsyncRead + Send + Unpin,
    mut write: impl AsyncWrite + Send + Unpin,
    side: Side,
    abandoned: &CancellationToken,
    stood: impl FnOnce(),
) -> ChannelError {
    let mut frames = FrameReader::new(read, peer.limits());
    let greeting = async {
        let access = match &side {
            Side::Listener(access) => access.clone(),
            Side::Dialler => Access::FULL,
        };
        let hello = Hello { version: v2::VERSION, site: peer.site(), access };
        let written = write_frame(&mut write, &v2::hello(&hello)).await;
        // Who closes the stream at once may have said why.
        frames.next(HELLO_TIMEOUT).await.map_err(|reason| written.err().unwrap_or(reason))
    };
    // Nothing is lost with a dropped branch: nobody was told of the connection yet.
    let greeted = tokio::select! {
        biased;
        () = shared.stop.cancelled() => return ChannelError::Stopped,
        () = abandoned.cancelled() => return ChannelError::Ended { reason: ABANDONED.to_owned() },
        greeted = tokio::time::timeout(HELLO_TIMEOUT, greeting) => greeted,
    };
    let greeted = match greeted {
        Err(_) => Err(format!("it said nothing for {} s", HELLO_TIMEOUT.as_secs())),
        Ok(Err(reason)) => Err(reason),
        Ok(Ok(frame)) => match v2::decode(&frame, peer.limits()) {
            Ok(Frame::Hello(hello)) if hello.version >= v2::VERSION => Ok(hello),
            Ok(Frame::Error(reason)) => return ChannelError::Refused { reason },
            Ok(_) => Err("the stream did not begin with a hello".to_owned()),
            Err(error) => Err(error.to_string()),
        },
    };
    let hello = match greeted {
        Ok(hello) => hello,
        Err(reason) => {
            say_why(&mut write, &reason).await;
            return ChannelError::NoPeer { reason };
        }
    };
    let remote = Remote { site: hello.site, connection: Remote::next_connection(), is_litemesh: true };
    let access = match side {
        Side::Listener(access) => access,
        Side::Dialler => hello.access.mirrored(),
    };
    let (sender, outbox) = mpsc::channel(FRAMES_MAX);
    let link = Link { remote, frames: sender, closed: CancellationToken::new(), lost: CancellationToken::new() };
    // Before the peer hears of the connection, since it sends its request from within the call.
    shared.links().insert(remote.connection, link.clone());
    let reason = exchange(shared, peer, &link, access, frames, (write, outbox), (abandoned, stood)).await;
    link.lost.cancel();
    shared.links().remove(&remote.connection);
    reason
}

async fn exchange(
    shared: &Shared,
    peer: &dyn PeerCallbacks,
    link: &Link,
    access: Access,
    mut frames: FrameReader<impl AsyncRead + Send + Unpin>,
    (mut write, outbox): (impl AsyncWrite + Send + Unpin, mpsc::Receiver<Vec<u8>>),
    (abandoned, stood): (&CancellationToken, impl FnOnce()),
) -> ChannelError {
    let remote = link.remote;
    let ending = {
        let (refusals, refused) = mpsc::channel(REFUSALS_MAX);
        // What the peer sends from within `connect` is written meanwhile.
        let writing = write_all(&mut write, outbox, refused, shared.ping_interval());
        let talking = async {
            if let Err(refusal) = peer.connect(remote, access).await {
                return Ending::Refused(refusal.to_string());
            }
            info!(remote = %remote.site.fmt_short(), transport = shared.name, "connected");
            receive_all(shared, peer, link, &mut frames, &refusals, (abandoned, stood)).await
        };
        tokio::pin!(writing, talking);
        tokio::select! {
            ending = &mut talking => ending,
            reason = &mut writing => {
                // What came before is heard still: it may say why the other end closed the stream.
                match tokio::time::timeout(FAREWELL_TIMEOUT, &mut talking).await {
                    Ok(ending) => ending,
                    Err(_) => {
                        // The callback under way is finished first, so that nothing is reported after the end.
                        link.lost.cancel();
                        match talking.await {
                            Ending::Lost(_) => Ending::Lost(reason),
                            other => other,
                        }
                    }
                }
            }
        }
    };
    match ending {
        Ending::Refused(reason) => {
            say_why(&mut write, &reason).await;
            ChannelError::Refused { reason }
        }
        Ending::Closed => ChannelError::Ended { reason: "closed by this side".to_owned() },
        Ending::Stopped => ChannelError::Stopped,
        Ending::Rejected(reason) => {
            peer.disconnect(remote, reason.clone()).await;
            ChannelError::Refused { reason }
        }
        Ending::Lost(reason) => {
            debug!(remote = %remote.site.fmt_short(), reason, "disconnected");
            peer.disconnect(remote, reason.clone()).await;
            ChannelError::Ended { reason }
        }
    }
}

/// The other end learns why the connection ends, if it reads.
async fn say_why(write: &mut (impl AsyncWrite + Send + Unpin), reason: &str) {
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, write_frame(write, &v2::error(reason))).await;
}

/// How a connection ends.
enum Ending {
    /// By our own peer, before it stood.
    Refused(String),
    /// By our own peer: it is told nothing more.
    Closed,
    Stopped,
    /// By the other peer, before anything was exchanged.
    Rejected(String),
    /// By the carrier or the other end.
    Lost(String),
}

/// Gives the peer what comes, one after another.
async fn receive_all(
    shared: &Shared,
    peer: &dyn PeerCallbacks,
    link: &Link,
    frames: &mut FrameReader<impl AsyncRead + Send + Unpin>,
    refusals: &mpsc::Sender<String>,
    (abandoned, stood): (&CancellationToken, impl FnOnce()),
) -> Ending {
    let (mut stood, mut refusals_heard) = (Some(stood), 0);
    let silence_max = shared.ping_interval().saturating_mul(SILENT_PINGS_MAX);
    loop {
        // Losing a branch loses nothing but the connection, which has ended then.
        let frame = tokio::select! {
            biased;
            () = link.closed.cancelled() => return Ending::Closed,
            () = shared.stop.cancelled() => return Ending::Stopped,
            () = link.lost.cancelled() => return Ending::Lost("the stream ended".to_owned()),
            () = abandoned.cancelled() => return Ending::Lost(ABANDONED.to_owned()),
            frame = frames.next(silence_max) => frame,
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(reason) => return Ending::Lost(reason),
        };
        let result = match decode(frame, peer.limits()).await {
            Ok(Frame::Sync(request)) => peer.sync(link.remote, request).await,
            Ok(Frame::Message(message)) => peer.receive(link.remote, message).await,
            Ok(Frame::Error(reason)) if stood.is_some() => return Ending::Rejected(reason),
            Ok(Frame::Error(reason)) if refusals_heard < REFUSALS_HEARD_MAX => {
                refusals_heard += 1;
                // Whether to go on is for the other end to say.
                peer.refused(link.remote, reason).await;
                continue;
            }
            Ok(Frame::Error(_)) => return Ending::Lost("the other end refuses too much".to_owned()),
            Ok(Frame::Hello(_) | Frame::Ping | Frame::Unknown) => continue,
            Err(reason) => {
                peer.garbled(link.remote, reason.clone()).await;
                Err(Refusal::Invalid(reason))
            }
        };
        match result {
            Ok(()) => {
                if let Some(stood) = stood.take() {
                    stood();
                }
            }
            Err(Refusal::UnknownRemote) => return Ending::Closed,
            // The session has taken note of it. Sent again it may be taken.
            Err(Refusal::Unavailable(_)) => {}
            Err(refusal) => drop(refusals.try_send(refusal.to_string())),
        }
    }
}

async fn decode(frame: Vec<u8>, limits: &Limits) -> Result<Frame, String> {
    if frame.len() <= INLINE_DECODE_BYTES_MAX {
        return v2::decode(&frame, limits).map_err(|error| error.to_string());
    }
    let limits = limits.clone();
    let decoding = tokio::task::spawn_blocking(move || v2::decode(&frame, &limits));
    decoding.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Writes what waits, and pings where nothing does. Gives why it cannot go on.
async fn write_all(
    write: &mut (impl AsyncWrite + Unpin),
    mut outbox: mpsc::Receiver<Vec<u8>>,
    mut refused: mpsc::Receiver<String>,
    ping_interval: Duration,
) -> String {
    loop {
        // Losing a branch loses nothing: what was not taken waits.
        let next = async {
            tokio::select! {
                Some(reason) = refused.recv() => Some(v2::error(&reason)),
                frame = outbox.recv() => frame,
            }
        };
        let frame = match tokio::time::timeout(ping_interval, next).await {
            Ok(Some(frame)) => frame,
            // The other sender belongs to who awaits this, so it cannot come to that.
            Ok(None) => return "closed".to_owned(),
            Err(_) => v2::ping(),
        };
        if let Err(reason) = write_frame(write, &frame).await {
            return reason;
        }
    }
}

async fn write_frame(write: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<(), String> {
    let write = async {
        write.write_all(&v2::framed(frame)).await?;
        write.flush().await
    };
    write.await.map_err(|error| format!("the stream cannot be written: {error}"))
}

/// Cuts a stream into frames.
struct FrameReader<R> {
    read: R,
    deframer: Deframer,
    buffer: Vec<u8>,
    /// What of the buffer was not looked at yet.
    pending: std::ops::Range<usize>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    fn new(read: R, limits: &Limits) -> Self {
        Self { read, deframer: Deframer::new(limits), buffer: vec![0; READ_BYTES], pending: 0..0 }
    }

    /// The next frame; an error is the end, also where no byte comes for so long. Dropping the future loses nothing.
    async fn next(&mut self, silence_max: Duration) -> Result<Vec<u8>, String> {
        loop {
            let mut bytes = &self.buffer[self.pending.clone()];
            let frame = self.deframer.feed(&mut bytes).map_err(|error| error.to_string())?;
            self.pending.start = self.pending.end - bytes.len();
            if let Some(frame) = frame {
                return Ok(frame);
            }
            let read = tokio::time::timeout(silence_max, self.read.read(&mut self.buffer)).await;
            match read.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                Ok(0) if self.deframer.is_between_frames() => return Err("the other end closed the stream".to_owned()),
                Ok(0) => return Err("the stream ended inside of a frame".to_owned()),
                Ok(bytes) => self.pending = 0..bytes,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    return Err(format!("nothing came for {} s", silence_max.as_secs()));
                }
                Err(error) => return Err(format!("the stream cannot be read: {error}")),
            }
        }
    }
}
