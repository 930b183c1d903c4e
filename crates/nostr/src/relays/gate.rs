//! Lets in no more of what a relay says than its ear has room for.
//!
//! The client gives what it reads to a channel that forgets the oldest where there is no room. So it reads no further until there is;
//! the relay then waits as TCP lets it. An ear never waits for anybody, so a gate that is shut opens again.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use nostr::Url;
use nostr::util::BoxedFuture;
use nostr_sdk::pool::ConnectionMode;
use nostr_sdk::pool::transport::error::TransportError;
use nostr_sdk::pool::transport::websocket::{
    DefaultWebsocketTransport, WebSocketSink, WebSocketStream, WebSocketTransport,
};
use tokio::sync::Notify;

use super::NOTIFICATIONS_MAX;

/// Notifications that are made of one message at most: an event that the client has not seen before is told twice.
const NOTIFICATIONS_EACH: usize = 2;

/// Notifications that may wait: half of all. The rest is for what is counted late, and for what the client says by itself.
const WAITING_MAX: usize = NOTIFICATIONS_MAX / 2;

#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Notifications that wait, or soon will: not of each message there are some.
    waiting: AtomicUsize,
    reader: AtomicWaker,
    shut: Notify,
    /// How the last dial ended.
    dialled: Mutex<Option<Result<(), String>>>,
}

impl Gate {
    /// The ear has counted.
    pub(super) fn set_waiting(&self, count: usize) {
        self.waiting.store(count, Ordering::SeqCst);
        self.reader.wake();
    }

    /// The gate is shut: the ear is to count.
    pub(super) async fn shut(&self) {
        self.shut.notified().await;
    }

    /// Why the relay is not there, where it is not.
    pub(super) fn dialled(&self) -> String {
        match &*self.dialled.lock().unwrap_or_else(PoisonError::into_inner) {
            None => "it does not answer".to_owned(),
            Some(Ok(())) => "it has hung up".to_owned(),
            Some(Err(reason)) => reason.clone(),
        }
    }

    fn set_dialled(&self, dialled: Result<(), String>) {
        *self.dialled.lock().unwrap_or_else(PoisonError::into_inner) = Some(dialled);
    }

    fn is_shut(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) >= WAITING_MAX
    }
}

/// The client's own transport, behind a gate for each relay.
#[derive(Debug)]
pub(super) struct Gated {
    gates: HashMap<Url, Arc<Gate>>,
}

impl Gated {
    pub(super) fn new(gates: HashMap<Url, Arc<Gate>>) -> Self {
        Self { gates }
    }
}

impl WebSocketTransport for Gated {
    fn support_ping(&self) -> bool {
        DefaultWebsocketTransport.support_ping()
    }

    fn connect<'a>(
        &'a self,
        url: &'a Url,
        mode: &'a ConnectionMode,
        timeout: Duration,
    ) -> BoxedFuture<'a, Result<(WebSocketSink, WebSocketStream), TransportError>> {
        Box::pin(async move {
            let connected = DefaultWebsocketTransport.connect(url, mode, timeout).await;
            let Some(gate) = self.gates.get(url) else { return connected };
            gate.set_dialled(connected.as_ref().map(drop).map_err(ToString::to_string));
            let (sink, stream) = connected?;
            Ok((sink, Box::pin(Passing { stream, gate: gate.clone() })))
        })
    }
}

struct Passing<S> {
    stream: S,
    gate: Arc<Gate>,
}

impl<S: Stream + Unpin> Stream for Passing<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if self.gate.is_shut() {
            // Before looking again: the ear may have counted in between.
            self.gate.reader.register(context.waker());
            self.gate.shut.notify_one();
            if self.gate.is_shut() {
                return Poll::Pending;
            }
        }
        let polled = Pin::new(&mut self.stream).poll_next(context);
        if let Poll::Ready(Some(_)) = &polled {
            self.gate.waiting.fetch_add(NOTIFICATIONS_EACH, Ordering::SeqCst);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};

    use super::*;

    #[test]
    fn who_reads_waits_until_the_ear_has_room() {
        let gate = Arc::new(Gate::default());
        let mut passing = Passing { stream: stream::iter(0..1_000), gate: gate.clone() };
        let mut pass = || std::iter::from_fn(|| passing.next().now_or_never()).count();
        assert_eq!(pass(), WAITING_MAX / NOTIFICATIONS_EACH);
        assert!(gate.shut().now_or_never().is_some(), "the ear is asked to count");
        // Nothing came of some messages.
        gate.set_waiting(WAITING_MAX - 1);
        assert_eq!(pass(), 1);
        gate.set_waiting(0);
        assert_eq!(pass(), WAITING_MAX / NOTIFICATIONS_EACH);
    }
}
