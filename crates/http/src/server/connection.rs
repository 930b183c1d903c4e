//! One open stream and the task that owns it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use litemesh_proto::{Remote, SyncRequest};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::door::Grant;
use super::queue::{Chunk, FrameQueue};
use super::{Running, Shared};
use crate::counters::{add, sub_one};
use crate::form::StreamForm;
use crate::gzip::StreamEncoder;

/// One open stream.
pub(super) struct Connection {
    pub(super) remote: Remote,
    pub(super) form: StreamForm,
    /// Whose it is, and what that gives.
    pub(super) grant: Grant,
    /// What a Litemesh client calls its process: the same client that lost its stream may replace it at once.
    instance: Option<String>,
    pub(super) queue: FrameQueue,
    /// Held while one POST of this client is read and handled. Fair: who came first is served first.
    pub(super) turn: Arc<Mutex<()>>,
    /// Cancelled when the connection is over, whatever ended it.
    pub(super) end: CancellationToken,
    /// Cancelled when nothing of this connection will be reported any more.
    pub(super) finished: CancellationToken,
    ending: OnceLock<Ending>,
}

/// A response body that comes bit by bit.
pub(super) type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Infallible>> + Send>>;

/// How a connection ended. The first ending counts.
pub(super) enum Ending {
    /// `disconnect` is reported with this reason.
    Reported(String),
    /// We ended it ourselves: nothing is reported.
    Silent,
    /// The peer above did not want it, for this reason: nothing is reported.
    Refused(String),
}

impl Connection {
    pub(super) fn new(
        remote: Remote,
        form: StreamForm,
        grant: Grant,
        instance: Option<String>,
        queue_len: usize,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            remote,
            form,
            grant,
            instance,
            queue: FrameQueue::new(queue_len),
            turn: Arc::default(),
            end: stop.child_token(),
            finished: CancellationToken::new(),
            ending: OnceLock::new(),
        }
    }

    /// Ends the connection, so that `disconnect` is reported.
    ///
    /// Tells whether that is news: whether nothing else had ended it before.
    pub(super) fn lose(&self, reason: impl Into<String>) -> bool {
        self.finish(Ending::Reported(reason.into()))
    }

    /// Ends the connection without a word.
    pub(super) fn close(&self) {
        self.finish(Ending::Silent);
    }

    /// Ends the connection, which the peer above does not want.
    fn refuse(&self, reason: String) {
        self.finish(Ending::Refused(reason));
    }

    fn finish(&self, ending: Ending) -> bool {
        let is_first = self.ending.set(ending).is_ok();
        self.end.cancel();
        is_first
    }

    /// How it ended; `None` while it stands, and where the transport is stopping.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Why it ended, for errors.
    pub(super) fn reason(&self) -> &str {
        match self.ending.get() {
            Some(Ending::Reported(reason) | Ending::Refused(reason)) => reason,
            Some(Ending::Silent) => "closed by this side",
            None => "the transport is stopping",
        }
    }

    /// Whether `instance` is what the client of this stream calls itself.
    pub(super) fn is_of_instance(&self, instance: Option<&str>) -> bool {
        self.instance.is_some() && self.instance.as_deref() == instance
    }

    /// The response body. Dropping it is how the HTTP server says that the client has gone.
    pub(super) fn chunks(self: Arc<Self>, shared: Arc<Shared>, is_gzip: bool) -> Chunks {
        struct Reader {
            connection: Arc<Connection>,
            shared: Arc<Shared>,
            encoder: Option<StreamEncoder>,
        }
        impl Drop for Reader {
            fn drop(&mut self) {
                self.connection.queue.shed();
                self.connection.lose("the client closed the stream");
            }
        }
        let encoder = is_gzip.then(StreamEncoder::new);
        let reader = Reader { connection: self, shared, encoder };
        Box::pin(stream::unfold(reader, |mut reader| async move {
            loop {
                let chunk = reader.connection.queue.next_chunk().await?;
                let bytes = encoded(chunk, reader.encoder.as_mut());
                // An empty chunk would end the body; the encoder may hold back all of a piece.
                if !bytes.is_empty() {
                    add(&reader.shared.counters.bytes_out, bytes.len());
                    return Some((Ok(bytes), reader));
                }
            }
        }))
    }
}

/// A piece as it goes out. What is compressed can be read up to the end of each frame.
pub(crate) fn encoded(chunk: Chunk, encoder: Option<&mut StreamEncoder>) -> Bytes {
    match encoder {
        Some(encoder) => encoder.write(&chunk.bytes, chunk.ends_frame),
        None => chunk.bytes,
    }
}

/// Takes a connection out of the open ones when dropped, also where the peer above panics: its client would be locked out.
struct Owner {
    shared: Arc<Shared>,
    running: Arc<Running>,
    connection: Arc<Connection>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let connection = &self.connection;
        if !connection.end.is_cancelled() {
            connection.lose("its owner failed");
        }
        connection.queue.finish();
        sub_one(&self.shared.counters.streams_open);
        // Not earlier: a newcomer of the same id has to find this one, to wait for its last report.
        self.running.forget(connection);
        connection.finished.cancel();
    }
}

/// Owns a connection from its first to its last report.
///
/// `turn` is the connection's, so that no POST is handled before the peer above knows the connection. `former` is the end
/// of the connection that this one replaces. `resume` is what the client's `Last-Event-ID` asks for.
pub(super) async fn own(
    shared: Arc<Shared>,
    running: Arc<Running>,
    connection: Arc<Connection>,
    turn: OwnedMutexGuard<()>,
    former: Option<CancellationToken>,
    resume: Option<SyncRequest>,
) {
    let owner = Owner { shared, running, connection };
    let Owner { shared, running, connection } = &owner;
    if let Some(former) = former {
        former.cancelled().await;
    }
    let remote = connection.remote;
    let is_accepted = match running.peer.connect(remote, connection.grant.access.clone()).await {
        Ok(()) => {
            info!(remote = %remote.site.fmt_short(), is_litemesh = remote.is_litemesh, "client connected");
            true
        }
        Err(refusal) => {
            info!(remote = %remote.site.fmt_short(), reason = %refusal, "client refused");
            // A socket is closed with the reason.
            if !connection.form.is_socket() {
                connection.queue.try_push(connection.form.error(running.site, &refusal.to_string()));
            }
            connection.refuse(refusal.to_string());
            false
        }
    };
    if let Some(request) = resume.filter(|_| is_accepted) {
        // An error means that the connection is over already, which is told below.
        let _ = running.peer.sync(remote, request).await;
    }
    drop(turn);
    if is_accepted {
        watch(shared, running, connection).await;
    }
    connection.queue.finish();
    // Whatever is being handled for this connection is reported before its end is.
    let _turn = connection.turn.lock().await;
    if is_accepted && !running.stop.is_cancelled() {
        match connection.ending.get() {
            Some(Ending::Reported(reason)) => {
                info!(remote = %remote.site.fmt_short(), reason, "client disconnected");
                running.peer.disconnect(remote, reason.clone()).await;
            }
            Some(Ending::Silent | Ending::Refused(_)) | None => {
                debug!(remote = %remote.site.fmt_short(), "stream closed");
            }
        }
    }
}

/// Sends pings until the connection ends, and ends it where the client takes nothing.
async fn watch(shared: &Shared, running: &Running, connection: &Connection) {
    let interval = shared.options.ping_interval;
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Nothing is lost with a dropped branch: a token stays cancelled, and a tick comes again.
        tokio::select! {
            biased;
            () = connection.end.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if connection.queue.stalled_for() >= shared.options.stall_timeout {
            shared.shed(connection);
            return;
        }
        // Where the queue is full there is enough to read without a ping.
        if connection.queue.try_push(connection.form.ping(running.site)).is_some() {
            add(&shared.counters.messages_out, 1);
        }
    }
}

impl Shared {
    /// Drops a connection whose client takes nothing.
    pub(super) fn shed(&self, connection: &Connection) {
        connection.queue.shed();
        if connection.lose(format!("the client took nothing for {} s", self.options.stall_timeout.as_secs())) {
            warn!(remote = %connection.remote.site.fmt_short(), "client takes nothing and is dropped");
            add(&self.counters.stalled, 1);
        }
    }
}

impl Running {
    /// Takes a connection out of the open ones, unless a newer one has its place.
    fn forget(&self, connection: &Connection) {
        let mut connections = self.connections();
        let site = connection.remote.site;
        if connections.get(&site).is_some_and(|open| open.remote.connection == connection.remote.connection) {
            connections.remove(&site);
        }
    }
}
