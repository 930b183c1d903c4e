//! [`StreamTransport`]: one connection over any stream of bytes, in frames of wire v2.
//!
//! The contract of transports stands in `litemesh::proto::Transport`; the numbers below are its points.

use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use litemesh::proto::codec::v1::LITEMESH_VERSION;
use litemesh::proto::codec::v2::{self, Deframer, Frame, Hello};
use litemesh::proto::{Access, BoxFuture, PeerCallbacks, PeerMessage, Remote, SyncRequest, Transport, TransportError};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
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
    /// The task that reads.
    running: SyncMutex<Option<JoinHandle<()>>>,
}

impl StreamTransport {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (reader, writer): (Box<dyn AsyncRead + Send + Unpin>, Writer) = (Box::new(reader), Box::new(writer));
        let reader = SyncMutex::new(Some(BufReader::new(reader)));
        Self { reader, writer: Arc::new(Mutex::new(Some(writer))), running: SyncMutex::default() }
    }

    /// Waits while the other end takes nothing: that is the backpressure (point 4).
    async fn write(&self, remote: Remote, frame: Vec<u8>) -> Result<(), TransportError> {
        match self.writer.lock().await.as_mut() {
            Some(writer) => {
                write_frame(writer, &frame).await.map_err(|error| TransportError::Lost { reason: error.to_string() })
            }
            None => Err(TransportError::NotConnected { remote: remote.site }),
        }
    }

    async fn end(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = running {
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
            let writer = self.writer.clone();
            // Locked before the task starts: the peer may call `sync` at once, from another thread.
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            *running = Some(tokio::spawn(async move { read_all(reader, &writer, &*peer).await }));
            Ok(())
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.write(remote, v2::sync(&request)))
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.write(remote, v2::message(&message)))
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
    let mut deframer = Deframer::new(peer.limits());
    let Ok(remote) = greet(&mut reader, &mut deframer, writer, peer).await else { return };
    // Point 1: `connect` before anything else, `disconnect` after everything else.
    // Point 7: nobody is asked who they are, so everybody may do everything.
    if peer.connect(remote, Access::FULL).await.is_err() {
        return;
    }
    let reason = loop {
        // Point 2: the next frame is read after the last one was handled, so messages keep their order.
        match read_frame(&mut reader, &mut deframer).await {
            Ok(frame) => {
                if let Err(reason) = deliver(&frame, remote, peer).await {
                    break reason;
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    writer.lock().await.take();
    peer.disconnect(remote, reason).await;
}

/// Why there is nothing more to be read.
type ReadError = Box<dyn std::error::Error + Send + Sync>;

async fn greet(
    reader: &mut Reader,
    deframer: &mut Deframer,
    writer: &Mutex<Option<Writer>>,
    peer: &dyn PeerCallbacks,
) -> Result<Remote, ReadError> {
    let hello = v2::hello(&Hello { version: LITEMESH_VERSION, site: peer.site(), access: Access::FULL });
    write_frame(writer.lock().await.as_mut().ok_or("closed")?, &hello).await?;
    match v2::decode(&read_frame(reader, deframer).await?, peer.limits())? {
        Frame::Hello(hello) => {
            Ok(Remote { site: hello.site, connection: Remote::next_connection(), is_litemesh: true })
        }
        _ => Err("the other end did not say hello".into()),
    }
}

/// Hands one message to the peer. An error ends the connection.
async fn deliver(frame: &[u8], remote: Remote, peer: &dyn PeerCallbacks) -> Result<(), String> {
    match v2::decode(frame, peer.limits()) {
        Ok(Frame::Sync(request)) => peer.sync(remote, request).await.map_err(|refusal| refusal.to_string()),
        // Point 3: `Ok` means committed. A refusal was noted by the peer, and the connection may go on.
        Ok(Frame::Message(message)) => peer.receive(remote, message).await.or(Ok(())),
        Ok(_) => Ok(()),
        // What cannot be read is never skipped in silence.
        Err(error) => {
            peer.garbled(remote, error.to_string()).await;
            Ok(())
        }
    }
}

/// Reads no more than the peer's limit, whatever the other end sends.
async fn read_frame(reader: &mut Reader, deframer: &mut Deframer) -> Result<Vec<u8>, ReadError> {
    loop {
        let mut bytes = reader.fill_buf().await?;
        let came = bytes.len();
        if came == 0 {
            return Err("the stream ended".into());
        }
        let frame = deframer.feed(&mut bytes)?;
        let taken = came - bytes.len();
        reader.consume(taken);
        if let Some(frame) = frame {
            return Ok(frame);
        }
    }
}

async fn write_frame(writer: &mut Writer, frame: &[u8]) -> std::io::Result<()> {
    writer.write_all(&v2::framed(frame)).await?;
    writer.flush().await
}
