//! A transport of your own, over Unix sockets (docs/transports.md): `over a Unix socket: buy milk`.
//!
//! A carrier that is a stream of bytes needs little: a [`Channel`] speaks the protocol over any stream, dials again and notices
//! silence. What is left is where streams come from. `cargo run -p litemesh --example custom_transport`

use std::sync::{Arc, Mutex};
use std::{path::PathBuf, time::Duration};

use litemesh::channel::Channel;
use litemesh::proto::{Access, BoxFuture, PeerCallbacks, PeerMessage, Remote, SyncRequest, Transport, TransportError};
use litemesh::{Database, Event, Peer};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One end: it listens at a path, or dials one.
pub(crate) struct UnixSockets {
    channel: Channel,
    /// Where it listens, until it is started.
    listener: Mutex<Option<UnixListener>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl UnixSockets {
    pub(crate) fn listen(path: PathBuf) -> std::io::Result<Self> {
        Ok(Self::new(Channel::new(), Some(UnixListener::bind(path)?)))
    }

    pub(crate) fn dial(path: PathBuf) -> Self {
        let connect = move || {
            let path = path.clone();
            async move { Ok(UnixStream::connect(path).await?.into_split()) }
        };
        Self::new(Channel::dialling("unix", connect), None)
    }

    fn new(channel: Channel, listener: Option<UnixListener>) -> Self {
        Self { channel, listener: Mutex::new(listener), tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    /// With other options of the channel below.
    pub(crate) fn with(self, set: impl FnOnce(Channel) -> Channel) -> Self {
        Self { channel: set(self.channel), ..self }
    }
}

impl Transport for UnixSockets {
    fn name(&self) -> &str {
        "unix"
    }

    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async {
            self.channel.start(peer).await?;
            let listener = self.listener.lock().ok().and_then(|mut listener| listener.take());
            if let Some(listener) = listener {
                let (channel, tasks, stop) = (self.channel.clone(), self.tasks.clone(), self.stop.clone());
                self.tasks.spawn(async move {
                    while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                        let channel = channel.clone();
                        // Who may open the socket, the file system decides.
                        let serve = async move {
                            let (read, write) = stream.into_split();
                            channel.accept(read, write, Access::FULL).await
                        };
                        tasks.spawn(serve);
                    }
                });
            }
            Ok(())
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        self.channel.sync(remote, request)
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        self.channel.send(remote, message)
    }

    fn close(&self, remote: Remote) -> BoxFuture<'_, ()> {
        self.channel.close(remote)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.stop.cancel();
        self.tasks.close();
        Box::pin(async {
            self.channel.stop().await;
            self.tasks.wait().await;
        })
    }
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("litemesh.sock");
    let (one, other) = (todo_list()?, todo_list()?);
    one.lock().connection().execute_batch("INSERT INTO todo VALUES ('a', 'buy milk')")?;
    let listening = Peer::builder(one).transport(UnixSockets::listen(path.clone())?).start().await?;
    let transport = UnixSockets::dial(path).with(|channel| channel.ping_interval(Duration::from_secs(10)));
    let builder = Peer::builder(other.clone()).transport(transport);
    let (mut events, dialling) = (builder.events(), builder.start().await?);
    let caught_up = async { while !matches!(events.recv().await, Ok(Event::Eose { .. }) | Err(_)) {} };
    tokio::time::timeout(Duration::from_secs(30), caught_up).await?;
    let title: String = other.lock().connection().query_one("SELECT title FROM todo", [], |row| row.get(0))?;
    println!("over a Unix socket: {title}");
    tokio::join!(dialling.stop(), listening.stop());
    Ok(())
}

fn todo_list() -> Result<Database, Box<dyn std::error::Error>> {
    let db = Database::open_in_memory()?;
    db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    db.lock().replicate("todo")?;
    Ok(db)
}
