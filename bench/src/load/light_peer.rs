//! A peer without a database. To the hub it is like any other: it asks, acknowledges, answers and writes by docs/protocol.md.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use litemesh::Limits;
use litemesh::proto::limits::{ACK_DELAY, CREDIT_MAX};
use litemesh::proto::{
    Access, Ack, BoxFuture, Change, Cursor, PeerCallbacks, PeerMessage, Position, Refusal, Remote, SiteId, SyncRequest,
    Terms, Transport, Unverified, Value,
};
use litemesh_http::HttpClient;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::outgoing::Outgoing;
use super::seen::Seen;
use crate::{Error, process};

pub struct LightPeer {
    inner: Arc<Inner>,
    task: JoinHandle<Result<(), Error>>,
}

struct Inner {
    site: SiteId,
    limits: Limits,
    transport: HttpClient,
    seen: Arc<Seen>,
    state: Mutex<State>,
    changed: Notify,
}

/// What a peer holds of the hub: as if it had stored it.
#[derive(Clone, Default)]
pub struct Held {
    pub position: Position,
    pub cursor: Cursor,
}

#[derive(Default)]
struct State {
    remote: Option<Remote>,
    held: Held,
    is_request_due: bool,
    is_in_sync: bool,
    /// Which request is being answered; messages of it that came, and that were acknowledged.
    answer: u32,
    came: u64,
    told: u64,
    /// When an acknowledgement is due.
    ack_at: Option<Instant>,
    outgoing: Outgoing,
}

/// When a peer writes.
#[derive(Clone, Copy)]
pub struct Schedule {
    pub first: Instant,
    pub every: Duration,
    pub until: Instant,
}

impl LightPeer {
    /// `held`: what it holds already. `writes`: when it writes, if it does.
    pub async fn start(
        number: usize,
        transport: HttpClient,
        seen: Arc<Seen>,
        held: Held,
        writes: tokio::sync::watch::Receiver<Option<Schedule>>,
    ) -> Result<Self, Error> {
        let mut id = *b"a light peer    ";
        id[12..].copy_from_slice(&u32::try_from(number)?.to_be_bytes());
        // Spread over all 32 bits, so that ids are as different at their front as random ones are.
        id[..4].copy_from_slice(&u32::try_from(number)?.wrapping_mul(0x9E37_79B9).to_be_bytes());
        let state = State { held, ..State::default() };
        let inner = Arc::new(Inner {
            site: SiteId::from_bytes(id),
            limits: Limits::default(),
            transport,
            seen,
            state: Mutex::new(state),
            changed: Notify::new(),
        });
        inner.transport.start(Arc::new(Callbacks(inner.clone()))).await?;
        Ok(Self { task: tokio::spawn(inner.clone().run(writes)), inner })
    }

    pub fn is_in_sync(&self) -> bool {
        self.inner.lock().is_in_sync
    }

    pub fn held(&self) -> Held {
        self.inner.lock().held.clone()
    }

    pub async fn stop(self) {
        self.task.abort();
        self.inner.transport.stop().await;
    }
}

/// What is to be sent next.
enum Next {
    Request(SyncRequest),
    Message(PeerMessage),
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is due, one after another.
    async fn run(self: Arc<Self>, mut writes: tokio::sync::watch::Receiver<Option<Schedule>>) -> Result<(), Error> {
        let mut write_at: Option<Instant> = None;
        let mut can_change = true;
        loop {
            let ack_at = self.lock().ack_at;
            // Losing a branch loses nothing: what is due is looked for afterwards.
            tokio::select! {
                () = self.changed.notified() => {}
                changed = writes.changed(), if can_change => {
                    can_change = changed.is_ok();
                    write_at = writes.borrow_and_update().map(|schedule| schedule.first);
                }
                () = at(ack_at) => {}
                () = at(write_at) => {}
            }
            while let Some(time) = write_at.filter(|time| *time <= Instant::now()) {
                // The time at which it was to be written: what is late counts as late.
                let late = u64::try_from(time.elapsed().as_nanos())?;
                self.lock().outgoing.write(process::nanos_now()? - late);
                self.seen.writes.fetch_add(1, Relaxed);
                let schedule = *writes.borrow();
                write_at = schedule
                    .map(|schedule| (time + schedule.every, schedule.until))
                    .filter(|(next, until)| next < until)
                    .map(|(next, _)| next);
            }
            while let Some((remote, next)) = self.next()? {
                // An error is the end of the connection, which is told by itself.
                let _ = match next {
                    Next::Request(request) => self.transport.sync(remote, request).await,
                    Next::Message(message) => self.transport.send(remote, message).await,
                };
            }
        }
    }

    fn next(&self) -> Result<Option<(Remote, Next)>, Error> {
        let mut state = self.lock();
        let Some(remote) = state.remote else { return Ok(None) };
        if std::mem::take(&mut state.is_request_due) {
            let terms =
                Terms { answer: state.answer, credit: CREDIT_MAX, position: state.held.position, ..Terms::default() };
            let request = SyncRequest { cursor: state.held.cursor.clone(), terms: Some(terms) };
            return Ok(Some((remote, Next::Request(request))));
        }
        if state.ack_at.is_some_and(|time| time <= Instant::now()) {
            state.ack_at = None;
            state.told = state.came;
            self.seen.acks.fetch_add(1, Relaxed);
            let ack = Ack { answer: state.answer, number: state.came, until: state.came + u64::from(CREDIT_MAX) };
            return Ok(Some((remote, Next::Message(PeerMessage::Ack(ack)))));
        }
        let Some((message, writes)) = state.outgoing.next(self.site)? else { return Ok(None) };
        self.seen.posts.fetch_add(u64::from(writes > 0), Relaxed);
        Ok(Some((remote, Next::Message(message))))
    }

    fn receive(&self, message: Unverified) -> Result<(), Refusal> {
        let now = process::nanos_now().map_err(|error| Refusal::Unavailable(error.to_string()))?;
        let mut state = self.lock();
        if let Some(ack) = message.ack() {
            state.outgoing.acknowledged(ack);
            drop(state);
            self.changed.notify_one();
            return Ok(());
        }
        let message = message.verify(&self.limits).map_err(|error| Refusal::Invalid(error.to_string()))?;
        let Some(progress) = message.progress() else { return Ok(()) };
        if progress.answer != state.answer {
            return Ok(());
        }
        if progress.number != state.came + 1 {
            self.seen.faults.fetch_add(1, Relaxed);
            return Ok(());
        }
        state.came += 1;
        self.seen.messages.fetch_add(1, Relaxed);
        self.seen.empty_messages.fetch_add(u64::from(message.change_count() == 0), Relaxed);
        if let Some(position) = progress.position {
            state.held.position = position;
        }
        if let Some(cursor) = &progress.cursor {
            state.held.cursor.join(cursor);
        }
        let is_eose = matches!(message, PeerMessage::Eose { .. });
        if is_eose && !std::mem::replace(&mut state.is_in_sync, true) {
            self.seen.in_sync.fetch_add(1, Relaxed);
        }
        let is_due = is_eose || state.came - state.told >= u64::from(CREDIT_MAX / 2);
        if is_due || state.ack_at.is_none() {
            state.ack_at = Some(Instant::now() + if is_due { Duration::ZERO } else { ACK_DELAY });
            self.changed.notify_one();
        }
        drop(state);
        if let PeerMessage::Changes { changes, .. } = &message {
            changes.iter().for_each(|change| self.note(change, now));
        }
        Ok(())
    }

    fn note(&self, change: &Change, now: u64) {
        let Value::Text(_) = &change.value else { return };
        let text = change.value.as_str().unwrap_or_default();
        match text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()) {
            Some(nanos @ 1..) => self.seen.note(now.saturating_sub(nanos)),
            _ => drop(self.seen.untimed_changes.fetch_add(1, Relaxed)),
        }
    }
}

/// Waits for a moment; for ever where there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

struct Callbacks(Arc<Inner>);

impl PeerCallbacks for Callbacks {
    fn site(&self) -> SiteId {
        self.0.site
    }

    fn limits(&self) -> &Limits {
        &self.0.limits
    }

    fn connect(&self, remote: Remote, _: Access) -> BoxFuture<'_, Result<(), Refusal>> {
        let mut state = self.0.lock();
        state.remote = Some(remote);
        state.answer += 1;
        (state.came, state.told, state.ack_at, state.is_request_due) = (0, 0, None, true);
        drop(state);
        self.0.seen.note_connect();
        self.0.changed.notify_one();
        Box::pin(async { Ok(()) })
    }

    fn sync(&self, _: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>> {
        self.0.lock().outgoing.asked(&request);
        self.0.changed.notify_one();
        Box::pin(async { Ok(()) })
    }

    fn receive(&self, _: Remote, message: Unverified) -> BoxFuture<'_, Result<(), Refusal>> {
        let result = self.0.receive(message);
        Box::pin(async { result })
    }

    fn garbled(&self, _: Remote, _: String) -> BoxFuture<'_, ()> {
        self.0.seen.faults.fetch_add(1, Relaxed);
        Box::pin(async {})
    }

    fn disconnect(&self, _: Remote, _: String) -> BoxFuture<'_, ()> {
        let mut state = self.0.lock();
        state.remote = None;
        state.outgoing.disconnected();
        if std::mem::take(&mut state.is_in_sync) {
            self.0.seen.in_sync.fetch_sub(1, Relaxed);
        }
        drop(state);
        self.0.seen.disconnects.fetch_add(1, Relaxed);
        Box::pin(async {})
    }
}
