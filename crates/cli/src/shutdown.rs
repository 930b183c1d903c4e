//! [`Shutdown`]: the wish of the user, or of whoever runs us, that we end.

use std::io;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// SIGINT and SIGTERM (elsewhere Ctrl-C), which do not kill the process from [`listen`](Self::listen) on.
pub(crate) struct Shutdown {
    #[cfg(unix)]
    interrupt: Signal,
    #[cfg(unix)]
    terminate: Signal,
}

impl Shutdown {
    /// Begins to listen. Called first, so that whoever reads our first line may stop us at once.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Self::register().map_err(|error| Failure::internal(format!("cannot listen to signals: {error}")))
    }

    #[cfg(unix)]
    fn register() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(not(unix))]
    fn register() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Resolves when a signal came.
    ///
    /// *Cancel safety*: no signal is lost when the future is dropped.
    pub(crate) async fn requested(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        drop(tokio::signal::ctrl_c().await);
    }
}
