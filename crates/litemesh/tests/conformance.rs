//! What every transport owes a peer, of channels, and of the example of a transport of one's own.

// Its `main` is run by `cargo run --example`.
#[allow(dead_code)]
#[cfg(unix)]
#[path = "../examples/custom_transport.rs"]
mod custom_transport;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use litemesh::channel::Channel;
use litemesh::proto::{Access, BoxFuture, Transport};
use litemesh_testkit::conformance::{self, Kind};
use tokio::net::{TcpListener, TcpStream};

const PING_INTERVAL: Duration = Duration::from_millis(500);
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);

/// As impatient as the checks want it.
fn impatient(channel: Channel) -> Channel {
    channel.ping_interval(PING_INTERVAL).reconnect_delay_min(RECONNECT_DELAY_MIN)
}

struct OverTcp;

impl Kind for OverTcp {
    fn listen(&self) -> BoxFuture<'_, (Arc<dyn Transport>, SocketAddr)> {
        Box::pin(async {
            let channel = impatient(Channel::new());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let accepting = channel.clone();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (channel, (read, write)) = (accepting.clone(), stream.into_split());
                    tokio::spawn(async move { channel.accept(read, write, Access::FULL).await });
                }
            });
            (Arc::new(channel) as _, address)
        })
    }

    fn dial(&self, address: SocketAddr) -> Arc<dyn Transport> {
        let connect = move || async move { Ok(TcpStream::connect(address).await?.into_split()) };
        Arc::new(impatient(Channel::dialling("tcp", connect)))
    }
}

#[tokio::test]
async fn channels_keep_the_contract() {
    conformance::check(&OverTcp).await;
}

/// Unix sockets, each joined to a TCP connection, so that the line between them can fail.
#[cfg(unix)]
struct Unix(tempfile::TempDir, std::sync::atomic::AtomicUsize);

#[cfg(unix)]
impl Unix {
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join(self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string())
    }
}

#[cfg(unix)]
impl Kind for Unix {
    fn listen(&self) -> BoxFuture<'_, (Arc<dyn Transport>, SocketAddr)> {
        Box::pin(async {
            let path = self.path();
            let transport = custom_transport::UnixSockets::listen(path.clone()).unwrap().with(impatient);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                loop {
                    let (mut near, _) = listener.accept().await.unwrap();
                    let path = path.clone();
                    tokio::spawn(async move {
                        // An error ends both.
                        let Ok(mut far) = tokio::net::UnixStream::connect(path).await else { return };
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    });
                }
            });
            (Arc::new(transport) as _, address)
        })
    }

    fn dial(&self, address: SocketAddr) -> Arc<dyn Transport> {
        let path = self.path();
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(address).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Arc::new(custom_transport::UnixSockets::dial(path).with(impatient))
    }
}

#[cfg(unix)]
#[tokio::test]
async fn the_example_keeps_the_contract() {
    conformance::check(&Unix(tempfile::tempdir().unwrap(), std::sync::atomic::AtomicUsize::new(0))).await;
}
