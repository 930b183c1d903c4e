//! [`Carrier`]: one WebSocket and the connection that goes over it.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use litemesh_proto::Refusal;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::debug;

use super::super::connection::{Connection, Ending};
use super::super::queue::Chunk;
use super::super::{Running, Shared, content};
use super::inbound::{Inbound, Over, next_message};
use crate::FAREWELL_TIMEOUT;
use crate::counters::add;
use crate::form::StreamForm;
use crate::websocket::{Farewell, Kind, SocketReader, SocketWriter, code, split, until_after};

/// Dropping it is how the connection hears that the client has gone, as when the body of a stream is dropped; or that carrying it
/// came to an end by a panic of the peer above.
pub(super) struct Carrier {
    shared: Arc<Shared>,
    running: Arc<Running>,
    connection: Arc<Connection>,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.connection.queue.shed();
        let is_panic = std::thread::panicking();
        self.connection.lose(if is_panic { "a task of the server failed" } else { "the client closed the socket" });
    }
}

/// For a client whose connection comes to nothing: it hears why.
pub(super) async fn turn_away(upgrade: OnUpgrade, form: StreamForm, message: &[u8]) {
    let farewell = async {
        let Ok(upgraded) = upgrade.await else { return };
        let (mut reader, mut writer) = split(TokioIo::new(upgraded), true, 0);
        let said = async {
            writer.write(kind(form), message, true).await?;
            writer.close(Farewell::new(code::POLICY, "refused")).await
        };
        // An error means that nobody is there any more.
        if said.await.is_ok() {
            reader.drain().await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
}

/// What messages are made of.
fn kind(form: StreamForm) -> Kind {
    if form == StreamForm::SocketJson { Kind::Text } else { Kind::Binary }
}

impl Carrier {
    pub(super) fn new(shared: Arc<Shared>, running: Arc<Running>, connection: Arc<Connection>) -> Self {
        Self { shared, running, connection }
    }

    /// Carries until the connection has ended, and the client has heard of it, which takes [`FAREWELL_TIMEOUT`] at most.
    pub(super) async fn run(self, upgrade: OnUpgrade) {
        let connection = &self.connection;
        // A connection that ended before it began, because the peer above does not want it, has something to say as well.
        match until_after(&connection.end, FAREWELL_TIMEOUT, upgrade).await {
            Some(Ok(upgraded)) => self.carry(TokioIo::new(upgraded)).await,
            Some(Err(error)) => debug!(remote = %connection.remote.site.fmt_short(), %error, "no WebSocket"),
            None => {}
        }
    }

    async fn carry(&self, stream: impl AsyncRead + AsyncWrite + Send) {
        let (reader, writer) = split(stream, true, self.running.peer.limits().message_bytes_max);
        // What ends one of them ends the connection, and with that the other.
        tokio::join!(self.read_all(reader), self.write_all(writer));
    }

    /// Writes what waits until the connection ends, then what waits still, and how it ended.
    async fn write_all(&self, writer: SocketWriter<impl AsyncWrite>) {
        let connection = &self.connection;
        match until_after(&connection.end, FAREWELL_TIMEOUT, self.write_queue(writer)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                connection.queue.shed();
                connection.lose(format!("the client's socket cannot be written: {error}"));
            }
            None => connection.queue.shed(),
        }
    }

    async fn write_queue(&self, mut writer: SocketWriter<impl AsyncWrite>) -> io::Result<()> {
        let connection = &self.connection;
        let interval = self.shared.options.ping_interval;
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Nothing is lost with a dropped branch: what was not taken waits.
            tokio::select! {
                chunk = connection.queue.next_chunk() => {
                    // A frame goes out in pieces, so that a client that takes a large one slowly is seen to move.
                    let Some(Chunk { bytes, ends_frame }) = chunk else { break };
                    writer.write(kind(connection.form), &bytes, ends_frame).await?;
                    add(&self.shared.counters.bytes_out, bytes.len());
                }
                payload = writer.pinged() => writer.pong(&payload).await?,
                // Whoever is still there answers, a browser by itself.
                _ = ticks.tick() => writer.ping().await?,
            }
        }
        // The queue has ended because the connection has, or is about to.
        connection.end.cancelled().await;
        writer.close(self.farewell()).await
    }

    /// What a client is told whose connection was ended here.
    fn farewell(&self) -> Farewell {
        let code = match self.connection.ending() {
            Some(Ending::Silent) => code::NORMAL,
            Some(Ending::Refused(_)) => code::POLICY,
            Some(Ending::Reported(_)) | None => code::GOING_AWAY,
        };
        Farewell::new(code, self.connection.reason())
    }

    /// Takes messages, one after another, until the connection ends; then reads on for nothing until the client has hung up.
    async fn read_all(&self, mut reader: SocketReader<impl AsyncRead>) {
        let connection = &self.connection;
        if let Err(over) = self.take_all(&mut reader).await {
            // Nobody is there any more, or there is a reason to tell, which has to get through in the time that it has: behind what
            // waits a slow client would not hear it, and send the same again.
            connection.queue.shed();
            let reason = over.note(&self.shared, &reader);
            debug!(remote = %connection.remote.site.fmt_short(), reason, "a WebSocket ended");
            connection.lose(reason);
        }
        // What waits, an error as a rule, still goes out.
        connection.queue.finish();
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, reader.drain()).await;
    }

    /// An error says why there is no next message; otherwise the connection has ended.
    async fn take_all(&self, reader: &mut SocketReader<impl AsyncRead>) -> Result<(), Over> {
        loop {
            // A message that is dropped half read belongs to a connection that has ended.
            let message = tokio::select! {
                biased;
                () = self.connection.end.cancelled() => return Ok(()),
                message = next_message(&self.shared, reader) => message?,
            };
            // Not dropped: what is being handled when the connection ends is finished first.
            if self.take(message, reader).await.is_break() {
                return Ok(());
            }
        }
    }

    async fn take(&self, message: Inbound<'_>, reader: &mut SocketReader<impl AsyncRead>) -> ControlFlow<()> {
        let connection = &self.connection;
        let Inbound { kind, bytes, held: _held } = message;
        let content = match (kind, connection.form) {
            (Kind::Binary, StreamForm::SocketFrames) => content::of_frame(bytes, self.running.peer.limits()).await,
            (Kind::Text, StreamForm::SocketJson) => content::of_json(bytes).await,
            _ => {
                add(&self.shared.counters.refused_malformed, 1);
                return self.end(
                    reader,
                    code::UNSUPPORTED,
                    "messages are text in litemesh.v1 and binary in litemesh.v2",
                );
            }
        };
        // Not before the peer above knows the connection.
        let _turn = connection.turn.lock().await;
        if connection.end.is_cancelled() {
            return ControlFlow::Break(());
        }
        let refused = match content {
            Ok(None) => return ControlFlow::Continue(()),
            Ok(Some(content)) => self.shared.deliver(&self.running, connection, content).await,
            Err(unreadable) => {
                add(&self.shared.counters.refused_malformed, 1);
                if unreadable.may_hold_changes {
                    self.shared.report_garbled(&self.running, connection, unreadable.reason.clone()).await;
                }
                Err(Refusal::Invalid(unreadable.reason))
            }
        };
        let Err(refusal) = refused else { return ControlFlow::Continue(()) };
        let reason = refusal.to_string();
        match refusal {
            // Taking the next message would leave a hole (A4); over a new connection it is asked for again.
            Refusal::Unavailable(_) | Refusal::UnknownRemote => self.end(reader, code::TRY_AGAIN, &reason),
            // Sent again it would be refused again, and no cursor moves over it. Whether to go on is for the client to say.
            _ => {
                // Where the queue is full it goes unsaid: what was refused is asked for again anyway.
                connection.queue.try_push(connection.form.error(self.running.site, &reason));
                ControlFlow::Continue(())
            }
        }
    }

    /// Ends the connection, and has the client told why.
    fn end(&self, reader: &SocketReader<impl AsyncRead>, code: u16, reason: &str) -> ControlFlow<()> {
        reader.say(Farewell::new(code, reason));
        self.connection.lose(reason);
        ControlFlow::Break(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::HeaderMap;
    use bytes::Bytes;
    use litemesh_proto::{Limits, SiteId, Transport};

    use super::super::super::stream::{Opened, Wish, open};
    use super::super::super::tests::Quiet;
    use super::*;
    use crate::HttpServer;
    use crate::websocket::End;

    /// A connection that begins, with a queue of four frames, and what carries it.
    async fn carrier(message_bytes_max: usize) -> (Carrier, Arc<Connection>) {
        let server = HttpServer::new();
        server.start(Arc::new(Quiet(Limits { message_bytes_max, ..Limits::default() }))).await.unwrap();
        let (shared, running) = (server.shared.clone(), server.shared.running().unwrap());
        let grant = shared.door.identify(&HeaderMap::new()).unwrap();
        let (site, form) = (SiteId::from_bytes([0xc1; 16]), StreamForm::SocketFrames);
        let wish = Wish { site, grant, form, instance: None, is_gzip: false, resume: None };
        let Opened::Connection { connection, .. } = open(&shared, &running, wish) else { panic!("it is not let in") };
        (Carrier::new(shared, running, connection.clone()), connection)
    }

    /// A browser answers pings by itself; who does not is gone, also where TCP has not noticed.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_gives_no_sign_of_life_is_dropped() {
        let (carrier, connection) = carrier(1 << 20).await;
        let (near, far) = tokio::io::duplex(1 << 20);
        let (mut reader, mut writer) = split(near, false, 1 << 20);
        let started = Instant::now();
        // Takes everything, and answers nothing.
        let taking = async {
            loop {
                match reader.read().await {
                    Ok(_) => {}
                    Err(End::Closed(said)) => return (said.code, started.elapsed()),
                    Err(other) => panic!("{other:?}"),
                }
            }
        };
        let carrying = async {
            carrier.carry(far).await;
            drop(carrier);
        };
        let ((code, after), ()) = tokio::join!(taking, carrying);
        assert_eq!((code, after), (Some(code::POLICY), Duration::from_secs(60)));
        assert_eq!(connection.reason(), "no sign of life for 60 s");
        assert!(tokio::time::timeout(Duration::ZERO, writer.pinged()).await.is_ok(), "it was asked");
    }

    /// Of what waited for it a slow client gets no more, and so the reason in time.
    #[tokio::test(start_paused = true)]
    async fn a_slow_client_hears_that_its_message_is_too_large() {
        let (carrier, connection) = carrier(100_000).await;
        for _ in 0..3 {
            connection.queue.try_push(Bytes::from(vec![0; 700_000])).unwrap();
        }
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mut reader, mut writer) = split(near, false, 1 << 20);
        let taking = async {
            loop {
                // 16 KiB at a time: all that waits would take 13 s.
                tokio::time::sleep(Duration::from_millis(100)).await;
                match reader.read().await {
                    Ok(_) => {}
                    Err(End::Closed(said)) => return said.code,
                    Err(other) => panic!("{other:?}"),
                }
            }
        };
        let sending = async { writer.write(Kind::Binary, &[0; 100_001], true).await.unwrap() };
        let carrying = async {
            carrier.carry(far).await;
            drop(carrier);
        };
        let (code, (), ()) = tokio::join!(taking, sending, carrying);
        assert_eq!(code, Some(code::TOO_LARGE));
        assert_eq!(connection.reason(), "a message has more than 100000 bytes");
    }
}
