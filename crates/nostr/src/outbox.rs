//! What goes to a remote: answers what it asks for, and publishes the answer as a stream of events, each naming the one before it.
//!
//! Before a message is published it is stored, with its events, so that a process that ends in between publishes the same ones again:
//! published anew, they would be others, and the chain would fork. Several messages are under way at once, and all of them are stored. When a
//! relay has taken one the peer may send another; that the remote has it, it says with its requests.
//!
//! How far another connection has brought the remote meanwhile is stored, too, a little later: after a restart the stream goes on there. What is
//! lost of it is sent once more.
//!
//! What relays say is not believed. Now and then they are asked whether they have the last event, unless the remote has said that it has
//! it, and what the remote asks for: a relay may not have delivered that.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use litemesh_proto::{BoxFuture, Change, PeerMessage, Refusal, Resumed, Served, SyncRequest, Unverified, backoff_from};
use nostr::{Event, EventId, Filter, Timestamp};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tracing::debug;

use crate::dates;
use crate::link::{Ending, Ends, Handle};
use crate::looks::{LOOK_MAX, Looks, at, pending};
use crate::messages::{self, Wire, Written};
use crate::reach::Reach;
use crate::receipts::Receipts;
use crate::relays::{EVENT_BYTES_MAX, Unpublished};
use crate::store::{Outbound, Stand};
use crate::under_way::UnderWay;
use crate::{CursorContent, CursorTerms, PLAINTEXT_BYTES_MAX, Store, filter};

/// How soon an event is published again that no relay took, at first.
const PUBLISH_AGAIN: Duration = Duration::from_millis(250);

/// Attempts after which it is said that no relay takes an event: some seconds.
const REFUSED_OFTEN: u32 = 6;

/// How long relays may take for the last messages when a connection ends: a program that ends waits for it. What is not taken is sent again
/// the next time.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);

/// Least time between two times that it is stored how far another connection has brought the remote.
const ELSEWHERE_EVERY: Duration = Duration::from_secs(1);

/// Events that are kept until it is known that the remote or a relay has them: four times as many as are under way.
const RECENT_MAX: usize = 64;
/// Bytes of them: one of the longest. The last one is kept in any case.
const RECENT_BYTES_MAX: usize = EVENT_BYTES_MAX;

/// Most time between two looks for the last event, which is downloaded each time: up to a megabyte and a half, for something that a relay loses
/// once in a long time.
const HEAD_LOOK_MAX: Duration = Duration::from_secs(60 * 60);

pub(crate) struct Outbox<'a> {
    ends: &'a Ends,
    handle: &'a Handle,
    messages: mpsc::Receiver<PeerMessage>,
    /// The newest request of the remote.
    cursors: watch::Receiver<Option<Event>>,
    /// How far another connection has brought it, and when that is stored.
    elsewhere: watch::Receiver<Option<Served>>,
    elsewhere_due: Option<Instant>,
    wake: &'a Notify,
    state: Option<Outbound>,
    /// The number of the request that our peer is answering.
    answer: u32,
    receipts: Receipts,
    /// What is being published. Each message: its number and its last event; none for what was published before.
    under_way: UnderWay<Option<(u64, EventId)>>,
    /// Events of that which relays have been given.
    flights: FuturesUnordered<BoxFuture<'a, (EventId, Result<(), Unpublished>)>>,
    /// The head of the chain may be one that no relay took, and for its date.
    has_given_up: bool,
    /// When others may follow, where some were refused.
    publish_due: Option<Instant>,
    cursor_looks: Looks,
    looking: Option<BoxFuture<'a, Option<Event>>>,
    head_looks: Looks,
    /// The newest events that may not have arrived anywhere.
    recent: VecDeque<Event>,
    checking: Option<BoxFuture<'a, Checked>>,
}

/// What relays have of the newest events.
struct Checked {
    /// The head of the stream when they were asked.
    head: EventId,
    present: Vec<EventId>,
    missing: Vec<Event>,
}

impl<'a> Outbox<'a> {
    pub(crate) fn new(
        ends: &'a Ends,
        handle: &'a Handle,
        messages: mpsc::Receiver<PeerMessage>,
        cursors: watch::Receiver<Option<Event>>,
        elsewhere: watch::Receiver<Option<Served>>,
        wake: &'a Notify,
    ) -> Self {
        Self {
            ends,
            handle,
            messages,
            cursors,
            elsewhere,
            elsewhere_due: None,
            wake,
            state: None,
            answer: 0,
            receipts: Receipts::default(),
            under_way: UnderWay::new(ends.window().clone()),
            flights: FuturesUnordered::new(),
            has_given_up: false,
            publish_due: None,
            cursor_looks: Looks::new(LOOK_MAX, ends.shared.pauses),
            looking: None,
            head_looks: Looks::new(HEAD_LOOK_MAX, ends.shared.pauses),
            recent: VecDeque::new(),
            checking: None,
        }
    }

    pub(crate) async fn run(mut self) -> Ending {
        match self.work().await {
            Ok(()) => Ending::Lost,
            Err(ending) => ending,
        }
    }

    async fn work(&mut self) -> Result<(), Ending> {
        let ended = self.serve().await;
        // Who is away may come back only after we have gone, so relays get what our peer has handed over, also where it takes nothing more
        // itself. In vain it is stored, and published the next time.
        if matches!(ended, Ok(()) | Err(Ending::Closed))
            && let Ok(Err(ending)) = tokio::time::timeout(FAREWELL_TIMEOUT, self.drain()).await
        {
            return Err(ending);
        }
        // The next connection begins where it is known then that the remote is. To another stream it means nothing.
        if matches!(ended, Err(Ending::Anew | Ending::Changed { .. })) {
            return ended;
        }
        let kept = self.keep_elsewhere().await;
        ended.and(kept)
    }

    async fn serve(&mut self) -> Result<(), Ending> {
        tokio::select! {
            () = self.handle.lost.cancelled() => return Ok(()),
            _ = self.ends.has_asked.wait() => {}
        }
        self.state = self.ends.stored(Store::outbound).await?;
        if let Some(state) = self.state.clone() {
            self.ends.asked().by_remote = Some(state.stand.stream.clone());
            // Nobody knows whether these were published.
            self.under_way.add(state.last, None);
            self.head_looks.begin();
            let Stand { reach, request, .. } = &state.stand;
            let written = reach.written(request, self.ends.peer.site());
            let resumed = Resumed { served: state.elsewhere, written: written.filter(|_| state.elsewhere.is_none()) };
            self.answer(|answer| reach.onwards(request, answer), Some(resumed)).await?;
        }
        self.cursor_looks.begin();
        loop {
            self.launch();
            self.settle().await?;
            let (is_publishing, has_room) = (!self.under_way.is_empty(), self.under_way.has_room());
            // Losing a branch loses nothing: what is being published stays where it is.
            tokio::select! {
                () = self.handle.lost.cancelled() => return Ok(()),
                Ok(()) = self.cursors.changed() => {
                    let event = self.cursors.borrow_and_update().clone();
                    self.found(event).await?;
                }
                Some((id, result)) = self.flights.next() => self.landed(id, result),
                () = at(self.publish_due) => self.publish_due = None,
                Some(message) = self.messages.recv(), if has_room => self.send(message).await?,
                Ok(()) = self.elsewhere.changed(), if self.elsewhere_due.is_none() => {
                    self.elsewhere_due = Some(Instant::now() + self.ends.shared.pauses.of(ELSEWHERE_EVERY));
                }
                () = at(self.elsewhere_due) => self.keep_elsewhere().await?,
                () = self.wake.notified() => self.cursor_looks.at_once(),
                event = pending(&mut self.looking) => {
                    self.looking = None;
                    self.found(event).await?;
                }
                () = at(self.cursor_looks.due()), if self.looking.is_none() => self.look(),
                checked = pending(&mut self.checking) => self.checked(checked).await?,
                () = at(self.head_looks.due()), if self.checking.is_none() && !is_publishing => self.check(),
            }
        }
    }

    async fn drain(&mut self) -> Result<(), Ending> {
        loop {
            self.launch();
            while self.under_way.finished().is_some() {}
            if self.under_way.has_room()
                && let Ok(message) = self.messages.try_recv()
            {
                self.send(message).await?;
                continue;
            }
            if self.under_way.is_empty() {
                return Ok(());
            }
            tokio::select! {
                Some((id, result)) = self.flights.next() => self.landed(id, result),
                () = at(self.publish_due) => self.publish_due = None,
            }
        }
    }

    /// Asks relays for the newest request of the remote.
    fn look(&mut self) {
        let patience = self.cursor_looks.looked();
        let ends = self.ends;
        self.looking = Some(Box::pin(async move {
            let author = ends.pairing.peer_key;
            // Of all of them: one may lag behind.
            let fetched = ends.relays.fetch(filter::latest_cursor(author), 1, patience, |_| false).await;
            let by_remote = |event: &Event| event.pubkey == author && event.verify().is_ok();
            fetched.events.into_iter().filter(by_remote).max_by_key(|event| event.created_at)
        }));
    }

    async fn found(&mut self, cursor: Option<Event>) -> Result<(), Ending> {
        match cursor {
            Some(cursor) => self.hear(&cursor).await,
            None => Ok(()),
        }
    }

    /// Asks relays for the last events of the stream.
    fn check(&mut self) {
        let patience = self.head_looks.looked();
        let Some(state) = &self.state else { return };
        let Some(head) = state.stand.head.filter(|head| self.receipts.confirmed() != Some(*head)) else { return };
        let events: Vec<Event> = if self.recent.is_empty() { state.last.clone() } else { self.recent.clone().into() };
        let ends = self.ends;
        self.checking = Some(Box::pin(async move {
            let filter = Filter::new().ids(events.iter().map(|event| event.id));
            let is_in = |found: &[Event], event: &Event| found.iter().any(|found| found.id == event.id);
            let are_all = |found: &[Event]| events.iter().all(|event| is_in(found, event));
            let fetched = ends.relays.fetch(filter, events.len(), patience, are_all).await;
            let (present, missing): (Vec<Event>, Vec<Event>) =
                events.iter().cloned().partition(|event| is_in(&fetched.events, event));
            Checked {
                head,
                present: present.iter().map(|event| event.id).collect(),
                missing: if fetched.is_answered { missing } else { Vec::new() },
            }
        }));
    }

    /// Of events that no relay has, the remote may never learn: of the last one nobody says that it is there.
    async fn checked(&mut self, checked: Checked) -> Result<(), Ending> {
        self.checking = None;
        let Checked { head, present, mut missing } = checked;
        self.recent.retain(|event| !present.contains(&event.id));
        let is_head = self.state.as_ref().is_some_and(|state| state.stand.head == Some(head));
        if missing.is_empty() || !is_head || self.receipts.confirmed() == Some(head) || !self.under_way.is_empty() {
            return Ok(());
        }
        debug!(count = missing.len(), "no relay has the last events");
        let Some(state) = &mut self.state else { return Ok(()) };
        let now = Timestamp::now();
        if messages::is_useless(&state.last, self.has_given_up, now) {
            self.has_given_up = false;
            self.ends.writer().again(state, now).map_err(|error| Ending::Broken(error.to_string()))?;
            if let Some(last) = state.stand.head {
                self.receipts.said_again(head, last);
            }
            missing.clone_from(&state.last);
            self.recent.clear();
            self.save().await?;
        }
        self.under_way.add(missing, None);
        Ok(())
    }

    /// The remote asks for a stream, or says how much of it has come.
    async fn hear(&mut self, event: &Event) -> Result<(), Ending> {
        let asked_at = self.state.as_ref().map_or(self.ends.heard_until, |state| state.stand.asked_at);
        if dates::is_overtaken(event.created_at, asked_at, Timestamp::now()) {
            // A relay lags behind.
            return Ok(());
        }
        let content = match self.ends.envelope.read_cursor(event, self.ends.pairing.peer) {
            Ok(content) => content,
            Err(error) => {
                debug!(%error, "a request cannot be read");
                return Ok(());
            }
        };
        let is_litemesh = content.litemesh.as_ref().is_some_and(CursorTerms::speaks_ours);
        if is_litemesh != self.ends.pairing.is_litemesh {
            return Err(Ending::Changed { is_litemesh, heard_until: event.created_at });
        }
        if is_litemesh && content.litemesh.as_ref().is_some_and(|terms| terms.sync.is_none()) {
            // It takes us for an original peer, until it has read a request of ours.
            return Ok(());
        }
        match &mut self.state {
            Some(state) if state.stand.stream == content.stream_id => {
                state.stand.asked_at = event.created_at;
                match content.litemesh.and_then(|terms| terms.ack) {
                    Some(acknowledged) => {
                        if let Some(index) = self.recent.iter().position(|event| event.id == acknowledged) {
                            self.recent.drain(..=index);
                        }
                        self.heed(acknowledged).await
                    }
                    None => Ok(()),
                }
            }
            _ => self.begin(event.created_at, &content).await,
        }
    }

    /// Begins a stream.
    async fn begin(&mut self, asked_at: Timestamp, content: &CursorContent) -> Result<(), Ending> {
        let Some(request) = self.read_request(content) else { return Ok(()) };
        debug!(stream = %content.stream_id, "asked for a stream");
        // What is being published belongs to another one.
        self.under_way.clear();
        self.flights.clear();
        (self.publish_due, self.checking) = (None, None);
        self.receipts.begin();
        self.recent.clear();
        let mut stand = Stand::begun(content.stream_id.clone(), request, asked_at);
        stand.reach = Reach::answering(&stand.request);
        let state = Outbound { stand, taken_at: Timestamp::from_secs(0), last: Vec::new(), elsewhere: None };
        let (reach, request) = (state.stand.reach.clone(), state.stand.request.clone());
        self.ends.asked().by_remote = Some(state.stand.stream.clone());
        self.state = Some(state);
        self.save().await?;
        if self.answer > 0 {
            // Nothing tells the messages of one answer to an original peer from those of the next. And a file that was restored from a
            // backup asks for what it has sent us over this connection, too, which our peer does not send back over it.
            return Err(Ending::Anew);
        }
        self.answer(|answer| reach.onwards(&request, answer), None).await
    }

    fn read_request(&self, content: &CursorContent) -> Option<SyncRequest> {
        messages::read_request(content, self.ends.peer.limits()).unwrap_or_else(|error| {
            debug!(error, "a request cannot be read");
            None
        })
    }

    /// Lets our peer answer. `resumed`: what the remote has got since it asked.
    async fn answer(
        &mut self,
        request: impl FnOnce(u32) -> SyncRequest,
        resumed: Option<Resumed>,
    ) -> Result<(), Ending> {
        self.answer += 1;
        self.receipts.begin();
        let (peer, remote, request) = (&self.ends.peer, self.handle.remote, request(self.answer));
        let _turn = self.ends.turn.lock().await;
        let answered = match resumed {
            Some(resumed) => peer.resume(remote, request, resumed).await,
            None => peer.sync(remote, request).await,
        };
        match answered {
            Ok(()) => Ok(()),
            Err(Refusal::UnknownRemote) => Err(Ending::Closed),
            Err(refusal) => Err(Ending::Broken(refusal.to_string())),
        }
    }

    /// Stores a message as events, which then are under way.
    ///
    /// To an original peer nothing can carry a value that does not fit into one event. It is left out, the application is told, and what
    /// follows goes on. The remote's cursor then moves over it: until somebody writes to this cell again it has another value there, or
    /// none.
    async fn send(&mut self, message: PeerMessage) -> Result<(), Ending> {
        // What still comes for the last request is not for this stream.
        if let Some(progress) = message.progress()
            && progress.answer != self.answer
        {
            return Ok(());
        }
        let Some(state) = &mut self.state else { return Ok(()) };
        let number = message.progress().map_or(self.receipts.published() + 1, |progress| progress.number);
        if std::mem::take(&mut self.has_given_up) {
            state.stand.head_at = dates::of_again(state.stand.head_at, state.taken_at, Timestamp::now());
        }
        let asked = self.ends.asked().by_us.clone();
        let wire = if self.ends.pairing.is_litemesh { Wire::Frames(asked.as_ref()) } else { Wire::Json };
        let written = self.ends.writer().message(&mut state.stand, &message, wire, Timestamp::now());
        let Written { events, left_out } = written.map_err(|error| Ending::Broken(error.to_string()))?;
        if message.progress().is_some_and(|progress| progress.since.is_some()) {
            // The stream itself leads there now.
            state.elsewhere = None;
            self.elsewhere_due = None;
            self.elsewhere.mark_unchanged();
        }
        let last = state.stand.head;
        if !events.is_empty() {
            state.last = self.under_way.events().chain(&events).cloned().collect();
        }
        self.save().await?;
        for change in &left_out {
            let _turn = self.ends.turn.lock().await;
            self.ends.peer.trouble(self.handle.remote, describe_left_out(change)).await;
        }
        self.head_looks.begin();
        self.remember(&events);
        self.under_way.add(events, last.map(|last| (number, last)));
        Ok(())
    }

    fn remember(&mut self, events: &[Event]) {
        self.recent.extend(events.iter().cloned());
        let mut bytes: usize = self.recent.iter().map(|event| event.content.len()).sum();
        while self.recent.len() > RECENT_MAX || bytes > RECENT_BYTES_MAX && self.recent.len() > 1 {
            bytes -= self.recent.pop_front().map_or(0, |event| event.content.len());
        }
    }

    /// Gives relays as much as may be under way.
    fn launch(&mut self) {
        if self.under_way.give_up(Timestamp::now()) {
            self.has_given_up = true;
            self.head_looks.begin();
        }
        while self.publish_due.is_none()
            && let Some(event) = self.under_way.next_out()
        {
            let ends = self.ends;
            self.flights.push(Box::pin(async move { (event.id, ends.relays.publish(&event).await) }));
        }
    }

    /// A relay has taken an event, or none.
    fn landed(&mut self, id: EventId, result: Result<(), Unpublished>) {
        let Err(Unpublished { reason, .. }) = result else {
            let taken = self.under_way.events().find(|event| event.id == id);
            if let (Some(event), Some(state)) = (taken, &mut self.state) {
                // Stored with the next message.
                state.taken_at = state.taken_at.max(event.created_at);
            }
            self.under_way.taken(id);
            self.ends.window().clone_from(self.under_way.window());
            return;
        };
        debug!(reason, "an event was not published");
        let refusals = self.under_way.refused(id);
        // For the next connection, too: there what was refused comes again, and would go along with what follows it.
        self.ends.window().clone_from(self.under_way.window());
        if refusals == REFUSED_OFTEN {
            self.ends.shared.report(format!("no relay takes an event: {reason}"));
        }
        let pause = self.ends.shared.pauses.of(PUBLISH_AGAIN);
        let pause = backoff_from(pause, refusals.saturating_sub(1), fastrand::f64());
        self.publish_due = Some(Instant::now() + pause);
    }

    /// Relays have taken messages.
    async fn settle(&mut self) -> Result<(), Ending> {
        let is_litemesh = self.ends.pairing.is_litemesh;
        let before = self.receipts.published();
        while let Some((message, events)) = self.under_way.finished() {
            let Some((number, last)) = message else { continue };
            self.receipts.taken(number, is_litemesh.then_some(last));
            if let Some(state) = self.state.as_mut().filter(|_| !events.is_empty() && self.under_way.is_empty()) {
                state.last = events;
            }
        }
        if self.receipts.published() > before && is_litemesh { self.tell().await } else { Ok(()) }
    }

    /// The remote has everything up to this event.
    async fn heed(&mut self, acknowledged: EventId) -> Result<(), Ending> {
        if self.receipts.confirm(acknowledged) { self.tell().await } else { Ok(()) }
    }

    /// Tells our peer what the remote has, and that there is room for more: relays keep what it has not read yet.
    async fn tell(&mut self) -> Result<(), Ending> {
        let ack = self.receipts.to_ack(self.answer);
        let _turn = self.ends.turn.lock().await;
        match self.ends.peer.receive(self.handle.remote, Unverified::new(PeerMessage::Ack(ack))).await {
            Err(Refusal::UnknownRemote) => Err(Ending::Closed),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Stores how far another connection has brought the remote, where that is news.
    async fn keep_elsewhere(&mut self) -> Result<(), Ending> {
        let is_news = self.elsewhere_due.take().is_some() || self.elsewhere.has_changed().unwrap_or(false);
        let Some(state) = self.state.as_mut().filter(|_| is_news) else { return Ok(()) };
        state.elsewhere = *self.elsewhere.borrow_and_update();
        let (stream, elsewhere) = (state.stand.stream.clone(), state.elsewhere);
        self.ends.stored(move |store, pairing| store.set_elsewhere(pairing, &stream, elsewhere)).await
    }

    async fn save(&mut self) -> Result<(), Ending> {
        let Some(state) = self.state.clone() else { return Ok(()) };
        self.ends.stored(move |store, pairing| store.set_outbound(pairing, &state)).await
    }
}

/// Names a change that is too long for the remote, and not what it says.
fn describe_left_out(change: &Change) -> String {
    let key = const_hex::encode(change.key.as_bytes());
    let (table, column) = (&change.table, change.column.as_str());
    format!(
        "the value in table {table}, column {column}, key {key} is too long for an original peer, which takes {PLAINTEXT_BYTES_MAX} \
         bytes of JSON over relays: it is left out"
    )
}
