//! The task of a channel that dials: connects, serves the connection to its end, connects again.

use std::io;
use std::sync::Arc;

use litemesh_proto::{BoxFuture, PeerCallbacks, backoff_from};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::connection::{self, Side};
use super::{ChannelError, Shared};

type Read = Box<dyn AsyncRead + Send + Unpin>;
type Write = Box<dyn AsyncWrite + Send + Unpin>;

type Connecting = BoxFuture<'static, io::Result<(Read, Write)>>;

/// How a stream is made.
pub(super) struct Dial(Box<dyn Fn() -> Connecting + Send + Sync>);

impl Dial {
    pub(super) fn new<R, W, F>(connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = io::Result<(R, W)>> + Send + 'static,
    {
        Self(Box::new(move || {
            let connecting = connect();
            Box::pin(async move {
                let (read, write) = connecting.await?;
                Ok((Box::new(read) as Read, Box::new(write) as Write))
            })
        }))
    }
}

/// Dials until the channel is stopped.
pub(super) async fn run(shared: Arc<Shared>, peer: Arc<dyn PeerCallbacks>) {
    let Some(dial) = &shared.dial else { return };
    let mut attempts = 0;
    loop {
        // Nothing is lost with a dropped branch: a stream that nobody uses yet.
        let connected = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            connected = (dial.0)() => connected,
        };
        let error = match connected {
            Ok((read, write)) => {
                let stood = || {
                    attempts = 0;
                    *shared.last_error() = None;
                };
                let nobody = CancellationToken::new();
                connection::run(&shared, &*peer, read, write, Side::Dialler, &nobody, stood).await
            }
            Err(error) => ChannelError::NoStream { reason: error.to_string() },
        };
        if shared.stop.is_cancelled() {
            return;
        }
        let delay = backoff_from(shared.reconnect_delay_min(), attempts, fastrand::f64());
        debug!(transport = shared.name, %error, attempts, ?delay, "not connected, dialling again later");
        *shared.last_error() = Some(error);
        attempts = attempts.saturating_add(1);
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
    }
}
