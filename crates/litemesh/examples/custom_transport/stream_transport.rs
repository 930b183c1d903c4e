//! [`StreamTransport`]: one connection over any stream of bytes, with one JSON message of wire v1 a line.
//!
//! The contract of transports stands in `litemesh::proto::Transport`; the numbers below are its points.

use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use litemesh::proto::codec::v1::{self, Envelope};
use litemesh::proto::{
    Access, BoxFuture, PeerCallbacks, PeerMessage, Remote, SiteId, SyncRequest, Transport, TransportError,
};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

type Reader = BufReader<Box<dyn AsyncRead + Send + Unpin>>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A transport with a stream that stands already. One that dials would do so in a loop around `read_all` (point 5).
pub(crate) struct StreamTransport {
    /// Taken by `start`.
    reader: SyncMutex<Option<Reader>>,
    /// `None` once the connection is closed.
    writer: Arc<Mutex<Option<Writer>>>,
    /// The task that reads, and our own site id for what is written.
    running: SyncMutex<Option<(JoinHandle<()>, SiteId)>>,
}

impl StreamTransport {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (reader, writer): (Box<dyn AsyncRead + Send + Unpin>, Writer) = (Box::new(reader), Box::new(writer));
        let reader = SyncMutex::new(Some(BufReader::new(reader)));
        Self { reader, writer: Arc::new(Mutex::new(Some(writer))), running: SyncMutex::default() }
    }

    /// Waits while the other end takes nothing: that is the backpressure (point 4).
    async fn write(&self, remote: Remote, json: impl FnOnce(SiteId) -> Vec<u8>) -> Result<(), TransportError> {
        let site = self.running.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, site)| *site);
        let mut writer = self.writer.lock().await;
        match (site, writer.as_mut()) {
            (Some(site), Some(writer)) => {
                write_line(writer, json(site)).await.map_err(|error| TransportError::Lost { reason: error.to_string() })
            }
            _ => Err(TransportError::NotConnected { remote: remote.site }),
        }
    }

    async fn end(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((task, _)) = running {
            task.abort();
            // An error says that it was aborted, as it should be. From here on nothing is reported any more.
            let _ = task.await;
        }
        self.writer.lock().await.take(); // the other end sees the end of the stream
    }
}

impl Transport for StreamTransport {
    fn name(&self) -> &str {
        "stream"
    }

    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
            let reader = reader.ok_or(TransportError::AlreadyStarted)?;
            let (site, writer) = (peer.site(), self.writer.clone());
            // Locked before the task starts: the peer may call `sync` at once, from another thread.
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            *running = Some((tokio::spawn(async move { read_all(reader, &writer, &*peer).await }), site));
            Ok(())
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.write(remote, move |site| v1::sync(site, &request)))
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.write(remote, move |site| v1::data(site, &message)))
    }

    fn close(&self, _remote: Remote) -> BoxFuture<'_, ()> {
        Box::pin(self.end())
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.end())
    }
}

/// Introduces the two peers to each other, then delivers what comes until the stream ends.
async fn read_all(mut reader: Reader, writer: &Mutex<Option<Writer>>, peer: &dyn PeerCallbacks) {
    let Ok(remote) = greet(&mut reader, writer, peer).await else { return };
    // Point 1: `connect` before anything else, `disconnect` after everything else.
    // Point 7: nobody is asked who they are, so everybody may do everything.
    if peer.connect(remote, Access::FULL).await.is_err() {
        return;
    }
    let reason = loop {
        // Point 2: the next line is read after the last one was handled, so messages keep their order.
        match read_line(&mut reader, peer).await {
            Ok(line) => {
                if let Err(reason) = deliver(&line, remote, peer).await {
                    break reason;
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    writer.lock().await.take();
    peer.disconnect(remote, reason).await;
}

async fn greet(
    reader: &mut Reader,
    writer: &Mutex<Option<Writer>>,
    peer: &dyn PeerCallbacks,
) -> Result<Remote, Box<dyn std::error::Error + Send + Sync>> {
    // `true`: we say that we are a Litemesh peer, and may then use what wire v1 alone does not have.
    let hello = v1::connect(peer.site(), true);
    write_line(writer.lock().await.as_mut().ok_or("closed")?, hello).await?;
    let line = read_line(reader, peer).await?;
    let hello = Envelope::parse(&line)?;
    let site = hello.peer_id().ok_or("no peer id")?.parse()?;
    Ok(Remote { site, connection: Remote::next_connection(), is_litemesh: hello.is_litemesh() })
}

/// Hands one message to the peer. An error ends the connection.
async fn deliver(line: &[u8], remote: Remote, peer: &dyn PeerCallbacks) -> Result<(), String> {
    let envelope = Envelope::parse(line).map_err(|error| error.to_string())?;
    match envelope.kind() {
        "sync" => {
            let request = envelope.sync_request().map_err(|error| error.to_string())?;
            peer.sync(remote, request).await.map_err(|refusal| refusal.to_string())
        }
        "data" => match envelope.message() {
            // Point 3: `Ok` means committed. A refusal was noted by the peer, and the connection may go on.
            Ok(message) => peer.receive(remote, message).await.or(Ok(())),
            // What cannot be read is never skipped in silence.
            Err(error) => {
                peer.garbled(remote, error.to_string()).await;
                Ok(())
            }
        },
        _ => Ok(()),
    }
}

/// Reads no more than the peer's limit, whatever the other end sends.
async fn read_line(reader: &mut Reader, peer: &dyn PeerCallbacks) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(peer.limits().message_bytes_max as u64).read_until(b'\n', &mut line).await?;
    if line.ends_with(b"\n") { Ok(line) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

async fn write_line(writer: &mut Writer, mut json: Vec<u8>) -> std::io::Result<()> {
    json.push(b'\n'); // JSON as the codec writes it has none inside
    writer.write_all(&json).await?;
    writer.flush().await
}
