//! [`Programs`]: a transport each of whose connections is a program, which serves its standard input and output as `litemesh stdio` does.
//!
//! The peer is in the process of the test all the same. What a program's channel calls, and what it is called for, goes over a
//! [`Line`] of its own.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use litemesh::channel::Channel;
use litemesh::proto::codec::v2::{self, Frame};
use litemesh::proto::{
    Access, BoxFuture, Limits, PeerCallbacks, PeerMessage, Refusal, Remote, SiteId, SyncRequest, Transport,
    TransportError, Unverified,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{OUTPUT, impatient, run_test};
use crate::commands::stdio;

/// Tells a program where its line to the peer is, and of which site that is.
const PEER_VARIABLE: &str = "LITEMESH_TEST_PEER";

/// What one process wants of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Connect,
    Sync,
    Receive,
    Garbled,
    Disconnect,
    Send,
    Close,
    Stop,
    /// The answers to all of them.
    Done,
    Failed,
}

impl Call {
    const ALL: [Self; 10] = [
        Self::Connect,
        Self::Sync,
        Self::Receive,
        Self::Garbled,
        Self::Disconnect,
        Self::Send,
        Self::Close,
        Self::Stop,
        Self::Done,
        Self::Failed,
    ];
}

type Answer = Result<(), String>;

/// Calls of both processes, and their answers: each a length, a number, what it is, and what belongs to it.
struct Line {
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    ended: CancellationToken,
}

impl Line {
    fn new(stream: TcpStream) -> (Arc<Self>, OwnedReadHalf) {
        // A call has several parts, and is answered by itself: each would wait for what the other process has to say.
        stream.set_nodelay(true).unwrap();
        let (read, write) = stream.into_split();
        let line = Self {
            write: tokio::sync::Mutex::new(write),
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
            ended: CancellationToken::new(),
        };
        (Arc::new(line), read)
    }

    /// Resolves with what the other process says.
    async fn call(&self, call: Call, content: &[u8]) -> Answer {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(number, sender);
        if self.ended.is_cancelled() || self.write(number, call, content).await.is_err() {
            self.waiting.lock().unwrap().remove(&number);
            return Err("the other process is gone".to_owned());
        }
        answer.await.unwrap_or_else(|_| Err("the other process is gone".to_owned()))
    }

    async fn write(&self, number: u64, call: Call, content: &[u8]) -> io::Result<()> {
        let mut write = self.write.lock().await;
        write.write_u32(u32::try_from(content.len()).unwrap()).await?;
        write.write_u64(number).await?;
        write.write_u8(call as u8).await?;
        write.write_all(content).await
    }

    /// Does what the other process wants, each call in a task of its own, until that is gone.
    async fn serve(self: Arc<Self>, mut read: OwnedReadHalf, handle: impl Handle) {
        while let Ok((number, call, content)) = next(&mut read).await {
            if let Call::Done | Call::Failed = call {
                let text = String::from_utf8(content).unwrap();
                let answer = if call == Call::Done { Ok(()) } else { Err(text) };
                if let Some(waiting) = self.waiting.lock().unwrap().remove(&number) {
                    let _ = waiting.send(answer);
                }
                continue;
            }
            let (line, handling) = (self.clone(), handle(call, content));
            tokio::spawn(async move {
                let (call, text) = match handling.await {
                    Ok(()) => (Call::Done, String::new()),
                    Err(text) => (Call::Failed, text),
                };
                // An error means that nobody waits for it any more.
                let _ = line.write(number, call, text.as_bytes()).await;
            });
        }
        self.ended.cancel();
        self.waiting.lock().unwrap().clear();
    }
}

trait Handle: Fn(Call, Vec<u8>) -> BoxFuture<'static, Answer> {}

impl<H: Fn(Call, Vec<u8>) -> BoxFuture<'static, Answer>> Handle for H {}

async fn next(read: &mut OwnedReadHalf) -> io::Result<(u64, Call, Vec<u8>)> {
    let length = read.read_u32().await?;
    let number = read.read_u64().await?;
    let call = Call::ALL[usize::from(read.read_u8().await?)];
    let mut content = vec![0; usize::try_from(length).unwrap()];
    read.read_exact(&mut content).await?;
    Ok((number, call, content))
}

fn request_of(frame: &[u8]) -> SyncRequest {
    match v2::decode(frame, &Limits::default()).unwrap() {
        Frame::Sync(request) => request,
        other => panic!("{other:?} is no request"),
    }
}

fn message_of(frame: &[u8]) -> Unverified {
    match v2::decode(frame, &Limits::default()).unwrap() {
        Frame::Message(message) => message,
        other => panic!("{other:?} is no message"),
    }
}

/// The transport, in the process of the test.
pub(super) struct Programs(Arc<Shared>);

struct Shared {
    peer: watch::Sender<Option<Arc<dyn PeerCallbacks>>>,
    /// Of the connections that stand.
    lines: Mutex<HashMap<u64, Arc<Line>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Programs {
    /// A transport that is not started, and where a connection of TCP becomes the standard input and output of a program.
    pub(super) async fn listen() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            peer: watch::Sender::new(None),
            lines: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let accepting = shared.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepting.tasks.spawn(accepting.clone().connection(stream));
            }
        });
        (Self(shared), address)
    }

    fn line(&self, remote: Remote) -> Result<Arc<Line>, TransportError> {
        let line = self.0.lines.lock().unwrap().get(&remote.connection).cloned();
        line.ok_or(TransportError::NotConnected { remote: remote.site })
    }

    async fn call(&self, remote: Remote, call: Call, content: &[u8]) -> Result<(), TransportError> {
        let answer = self.line(remote)?.call(call, content).await;
        answer.map_err(|reason| TransportError::Lost { reason })
    }
}

impl Shared {
    /// One program, from its start to its end.
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let mut peers = self.peer.subscribe();
        let peer = tokio::select! {
            () = self.stop.cancelled() => return,
            peer = peers.wait_for(Option::is_some) => peer.unwrap().clone().unwrap(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut program = Command::new("sh")
            .args(["-c", &run_test(module_path!(), "serves_its_input_and_output")])
            .env(PEER_VARIABLE, format!("{} {}", listener.local_addr().unwrap(), peer.site()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        tokio::spawn(join(stream, input, output));
        let stream = tokio::select! {
            () = self.stop.cancelled() => return,
            stream = listener.accept() => stream.unwrap().0,
        };
        let (line, read) = Line::new(stream);
        let (shared, called) = (self.clone(), line.clone());
        let remote = Arc::new(Mutex::new(None));
        let handle =
            move |call, content| shared.clone().called(called.clone(), peer.clone(), remote.clone(), call, content);
        let stopping = async {
            self.stop.cancelled().await;
            // It may have ended by itself.
            let _ = line.call(Call::Stop, &[]).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = line.clone().serve(read, handle) => {}
            () = stopping => {}
        }
        program.wait().await.unwrap();
    }

    /// What a program has to tell the peer.
    fn called(
        self: Arc<Self>,
        line: Arc<Line>,
        peer: Arc<dyn PeerCallbacks>,
        known: Arc<Mutex<Option<Remote>>>,
        call: Call,
        content: Vec<u8>,
    ) -> BoxFuture<'static, Answer> {
        let remote = *known.lock().unwrap();
        Box::pin(async move {
            let text = || String::from_utf8(content.clone()).unwrap();
            let refused = |refusal: Refusal| refusal.to_string();
            match (call, remote) {
                (Call::Connect, None) => {
                    let site = SiteId::from_bytes(content.try_into().unwrap());
                    let remote = Remote { site, connection: Remote::next_connection(), is_litemesh: true };
                    *known.lock().unwrap() = Some(remote);
                    self.lines.lock().unwrap().insert(remote.connection, line);
                    let connected = peer.connect(remote, Access::FULL).await;
                    if connected.is_err() {
                        self.lines.lock().unwrap().remove(&remote.connection);
                    }
                    connected.map_err(refused)
                }
                (Call::Sync, Some(remote)) => peer.sync(remote, request_of(&content)).await.map_err(refused),
                (Call::Receive, Some(remote)) => peer.receive(remote, message_of(&content)).await.map_err(refused),
                (Call::Garbled, Some(remote)) => {
                    peer.garbled(remote, text()).await;
                    Ok(())
                }
                (Call::Disconnect, Some(remote)) => {
                    self.lines.lock().unwrap().remove(&remote.connection);
                    peer.disconnect(remote, text()).await;
                    Ok(())
                }
                other => panic!("{other:?} is not for a peer"),
            }
        })
    }
}

/// Joins a connection to the input and output of a program, as the other end of `ssh` does: once the program writes no more it is over.
async fn join(stream: TcpStream, mut input: ChildStdin, mut output: ChildStdout) {
    let (mut from, mut to) = stream.into_split();
    let inward = async {
        // An error ends it, as the end does.
        let _ = tokio::io::copy(&mut from, &mut input).await;
        drop(input);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = inward => {}
        _ = tokio::io::copy(&mut output, &mut to) => {}
    }
}

impl Transport for Programs {
    fn name(&self) -> &'static str {
        "stdio"
    }

    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        self.0.peer.send_replace(Some(peer));
        Box::pin(async { Ok(()) })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.call(remote, Call::Sync, &v2::sync(&request)).await })
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.call(remote, Call::Send, &v2::message(&message)).await })
    }

    fn close(&self, remote: Remote) -> BoxFuture<'_, ()> {
        let line = self.0.lines.lock().unwrap().remove(&remote.connection);
        Box::pin(async move {
            if let Some(line) = line {
                // It may have ended by itself.
                let _ = line.call(Call::Close, &[]).await;
            }
        })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.stop.cancel();
            self.0.tasks.close();
            self.0.tasks.wait().await;
        })
    }
}

/// The peer, as a program has it.
struct FarPeer {
    site: SiteId,
    limits: Limits,
    line: Arc<Line>,
    remote: Mutex<Option<Remote>>,
}

impl PeerCallbacks for FarPeer {
    fn site(&self) -> SiteId {
        self.site
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn connect(&self, remote: Remote, _access: Access) -> BoxFuture<'_, Result<(), Refusal>> {
        *self.remote.lock().unwrap() = Some(remote);
        Box::pin(async move {
            let connected = self.line.call(Call::Connect, remote.site.as_bytes()).await;
            connected.map_err(Refusal::Unavailable)
        })
    }

    fn sync(&self, _remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move { self.line.call(Call::Sync, &v2::sync(&request)).await.map_err(Refusal::Unavailable) })
    }

    fn receive(&self, _remote: Remote, message: Unverified) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            let invalid = |reason: String| Refusal::Invalid(reason);
            let message = message.verify(&self.limits).map_err(|error| invalid(error.to_string()))?;
            self.line.call(Call::Receive, &v2::message(&message)).await.map_err(invalid)
        })
    }

    fn garbled(&self, _remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // Where the other process is gone nobody hears of it.
            let _ = self.line.call(Call::Garbled, reason.as_bytes()).await;
        })
    }

    fn disconnect(&self, _remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let _ = self.line.call(Call::Disconnect, reason.as_bytes()).await;
        })
    }
}

#[test]
fn serves_its_input_and_output() {
    let Ok(peer) = std::env::var(PEER_VARIABLE) else { return };
    let (address, site) = peer.split_once(' ').unwrap();
    // From here on the harness has nothing to say.
    rustix::stdio::dup2_stdout(File::options().write(true).open(OUTPUT).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(serve(address, site.parse().unwrap()));
    // Before the harness says how the test went. A read of standard input cannot be interrupted either.
    std::process::exit(0);
}

async fn serve(address: &str, site: SiteId) {
    let (line, read) = Line::new(TcpStream::connect(address).await.unwrap());
    let remote = Mutex::default();
    let peer = Arc::new(FarPeer { site, limits: Limits::default(), line: line.clone(), remote });
    let channel = impatient(Channel::new());
    channel.start(peer.clone()).await.unwrap();
    let called = channel.clone();
    let handle = move |call, content: Vec<u8>| -> BoxFuture<'static, Answer> {
        let (channel, remote) = (called.clone(), *peer.remote.lock().unwrap());
        Box::pin(async move {
            let done = match (call, remote) {
                (Call::Sync, Some(remote)) => channel.sync(remote, request_of(&content)).await,
                (Call::Send, Some(remote)) => {
                    let message = message_of(&content).verify(&Limits::default()).unwrap();
                    channel.send(remote, message).await
                }
                (Call::Close, Some(remote)) => {
                    channel.close(remote).await;
                    Ok(())
                }
                (Call::Stop, _) => {
                    channel.stop().await;
                    Ok(())
                }
                other => panic!("{other:?} is not for a channel"),
            };
            done.map_err(|error| error.to_string())
        })
    };
    tokio::spawn(line.serve(read, handle));
    // Once it has ended its peer has heard of that.
    stdio::serve(&channel, Access::FULL).await;
}
