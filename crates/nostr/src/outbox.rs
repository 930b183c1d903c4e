//! What goes to a remote: answers what it asks for, and publishes the answer as a stream of events, each naming the one before it.
//!
//! Before a message is published it is stored, with its events, so that a process that ends in between publishes the same ones again:
//! published anew, they would be others, and the chain would fork. When a relay has taken a message the peer may send the next one; that
//! the remote has it, it says with its requests.

use std::collections::VecDeque;
use std::time::Duration;

use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::limits::CREDIT_MAX;
use litemesh_proto::{Ack, BoxFuture, PeerMessage, Refusal, SyncRequest, Unverified, backoff_from};
use nostr::{Event, EventId, Timestamp};
use tokio::sync::mpsc;
use tracing::debug;

use crate::link::{Ending, Ends, Handle};
use crate::parts;
use crate::reach::Reach;
use crate::store::Outbound;
use crate::{Batch, ChainHead, CursorContent, CursorTerms, Outgoing, Store};

/// How soon an event is published again that no relay took, at first.
const PUBLISH_AGAIN: Duration = Duration::from_millis(250);

/// How long relays may take for the last messages when a connection ends.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) struct Outbox<'a> {
    ends: &'a Ends,
    handle: &'a Handle,
    messages: mpsc::Receiver<PeerMessage>,
    cursors: mpsc::Receiver<Event>,
    state: Option<Outbound>,
    /// The number of the request that our peer is answering.
    answer: u32,
    /// The number of the last message that a relay has taken, and of the last that the remote has.
    published: u64,
    acknowledged: u64,
    /// Messages that the remote has not acknowledged, and the event that each ended with.
    unacknowledged: VecDeque<(u64, EventId)>,
    /// The message that is being published.
    publishing: Option<Publishing<'a>>,
}

struct Publishing<'a> {
    work: BoxFuture<'a, ()>,
    /// Its number and its last event; none for what was stored before.
    message: Option<(u64, EventId)>,
}

impl<'a> Outbox<'a> {
    pub(crate) fn new(
        ends: &'a Ends,
        handle: &'a Handle,
        messages: mpsc::Receiver<PeerMessage>,
        cursors: mpsc::Receiver<Event>,
    ) -> Self {
        Self {
            ends,
            handle,
            messages,
            cursors,
            state: None,
            answer: 0,
            published: 0,
            acknowledged: 0,
            unacknowledged: VecDeque::new(),
            publishing: None,
        }
    }

    pub(crate) async fn run(mut self) -> Ending {
        match self.work().await {
            Ok(()) => Ending::Lost,
            Err(ending) => ending,
        }
    }

    async fn work(&mut self) -> Result<(), Ending> {
        self.state = self.ends.stored(Store::outbound).await?;
        if let Some(state) = self.state.clone() {
            // Nobody knows whether these were published.
            self.publish(state.last, None);
            self.answer(|answer| state.reach.onwards(&state.request, answer)).await?;
        }
        loop {
            let is_publishing = self.publishing.is_some();
            // Losing a branch loses nothing: what is being published stays where it is.
            tokio::select! {
                () = self.handle.lost.cancelled() => break,
                Some(event) = self.cursors.recv() => self.hear(&event).await?,
                message = done(&mut self.publishing), if is_publishing => self.published(message).await?,
                Some(message) = self.messages.recv(), if !is_publishing => self.send(message).await?,
            }
        }
        // Who is away may come back only after we have gone, so relays get what our peer has handed over. In vain it is stored, and
        // published the next time.
        match tokio::time::timeout(FAREWELL_TIMEOUT, self.drain()).await {
            Ok(drained) => drained,
            Err(_) => Ok(()),
        }
    }

    async fn drain(&mut self) -> Result<(), Ending> {
        loop {
            if let Some(Publishing { work, .. }) = &mut self.publishing {
                work.await;
                self.publishing = None;
            }
            match self.messages.try_recv() {
                Ok(message) => self.send(message).await?,
                Err(_) => return Ok(()),
            }
        }
    }

    /// The remote asks for a stream, or says how much of it has come.
    async fn hear(&mut self, event: &Event) -> Result<(), Ending> {
        if self.state.as_ref().is_some_and(|state| event.created_at < state.asked_at) {
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
            return Err(Ending::Changed { is_litemesh });
        }
        match &mut self.state {
            Some(state) if state.stream == content.stream_id => {
                state.asked_at = event.created_at;
                match content.litemesh.and_then(|terms| terms.ack) {
                    Some(acknowledged) => self.heed(acknowledged).await,
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
        self.publishing = None;
        self.unacknowledged.clear();
        let state = Outbound {
            stream: content.stream_id.clone(),
            reach: Reach::of(&request),
            request,
            asked_at,
            last: Vec::new(),
            head: None,
            head_at: Timestamp::from_secs(0),
        };
        let (reach, request) = (state.reach.clone(), state.request.clone());
        self.state = Some(state);
        self.save().await?;
        if self.answer > 0 && !self.ends.pairing.is_litemesh {
            // Nothing tells the messages of one answer from those of the next.
            return Err(Ending::Anew);
        }
        self.answer(|answer| reach.onwards(&request, answer)).await
    }

    fn read_request(&self, content: &CursorContent) -> Option<SyncRequest> {
        let Some(frame) = content.litemesh.as_ref().and_then(|terms| terms.sync.as_ref()) else {
            return Some(SyncRequest { cursor: content.cursor.clone(), terms: None });
        };
        match v2::decode(frame, self.ends.peer.limits()) {
            Ok(Frame::Sync(request)) if request.terms.is_some() => Some(request),
            Ok(_) => None,
            Err(error) => {
                debug!(%error, "a request cannot be read");
                None
            }
        }
    }

    /// Lets our peer answer.
    async fn answer(&mut self, request: impl FnOnce(u32) -> SyncRequest) -> Result<(), Ending> {
        self.answer += 1;
        (self.published, self.acknowledged) = (0, 0);
        let _turn = self.ends.turn.lock().await;
        match self.ends.peer.sync(self.handle.remote, request(self.answer)).await {
            Ok(()) => Ok(()),
            Err(Refusal::UnknownRemote) => Err(Ending::Closed),
            Err(refusal) => Err(Ending::Broken(refusal.to_string())),
        }
    }

    /// Stores a message as events, and begins to publish them.
    async fn send(&mut self, message: PeerMessage) -> Result<(), Ending> {
        // What still comes for the last request is not for this stream.
        if let Some(progress) = message.progress()
            && progress.answer != self.answer
        {
            return Ok(());
        }
        let Some(state) = &mut self.state else { return Ok(()) };
        let number = message.progress().map_or(self.published + 1, |progress| progress.number);
        let mut head = state.head.map(|id| ChainHead { id, created_at: state.head_at });
        let mut events = Vec::new();
        let mut add = |content: Outgoing<'_>| {
            let site = self.ends.peer.site();
            let (envelope, lifetime) = (&self.ends.envelope, self.ends.lifetime);
            let event = envelope.changes(site, content, &state.stream, head, lifetime, Timestamp::now());
            let event = event.map_err(|error| Ending::Broken(error.to_string()))?;
            head = Some(ChainHead::of(&event));
            events.push(event);
            Ok(())
        };
        if self.ends.pairing.is_litemesh {
            for part in parts::split(&v2::message(&message)) {
                add(Outgoing::Frames(&part))?;
            }
        } else if let PeerMessage::Changes { changes, schema_version, .. } = &message {
            for batch in Batch::cut(changes.clone(), *schema_version) {
                add(Outgoing::Batch(&batch))?;
            }
        }
        state.reach.add(message.progress(), message.versions());
        if let Some(head) = head {
            (state.head, state.head_at) = (Some(head.id), head.created_at);
        }
        let last = state.head;
        state.last.clone_from(&events);
        self.save().await?;
        self.publish(events, last.map(|last| (number, last)));
        Ok(())
    }

    fn publish(&mut self, events: Vec<Event>, message: Option<(u64, EventId)>) {
        let ends = self.ends;
        let work = async move {
            for event in &events {
                let mut attempts = 0;
                while let Err(reason) = ends.relays.publish(event).await {
                    debug!(reason, "an event was not published");
                    tokio::time::sleep(backoff_from(PUBLISH_AGAIN, attempts, fastrand::f64())).await;
                    attempts = attempts.saturating_add(1);
                }
            }
        };
        self.publishing = Some(Publishing { work: Box::pin(work), message });
    }

    /// A relay has taken a message.
    async fn published(&mut self, message: Option<(u64, EventId)>) -> Result<(), Ending> {
        self.publishing = None;
        let Some((number, last)) = message else { return Ok(()) };
        self.published = number;
        if !self.ends.pairing.is_litemesh {
            return Ok(());
        }
        self.unacknowledged.push_back((number, last));
        self.tell().await
    }

    /// The remote has everything up to this event.
    async fn heed(&mut self, acknowledged: EventId) -> Result<(), Ending> {
        // One of an earlier life of ours says nothing to our peer, which has forgotten these messages.
        if !self.unacknowledged.iter().any(|(_, event)| *event == acknowledged) {
            return Ok(());
        }
        while let Some((number, event)) = self.unacknowledged.pop_front() {
            self.acknowledged = number;
            if event == acknowledged {
                break;
            }
        }
        self.tell().await
    }

    /// Tells our peer what the remote has, and that there is room for more: relays keep what it has not read yet.
    async fn tell(&mut self) -> Result<(), Ending> {
        let until = self.published + u64::from(CREDIT_MAX);
        let ack = Ack { answer: self.answer, number: self.acknowledged, until };
        let _turn = self.ends.turn.lock().await;
        match self.ends.peer.receive(self.handle.remote, Unverified::new(PeerMessage::Ack(ack))).await {
            Err(Refusal::UnknownRemote) => Err(Ending::Closed),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn save(&mut self) -> Result<(), Ending> {
        let Some(state) = self.state.clone() else { return Ok(()) };
        self.ends.stored(move |store, pairing| store.set_outbound(pairing, &state)).await
    }
}

/// Resolves when what is being published is. Dropping the future loses nothing.
async fn done(publishing: &mut Option<Publishing<'_>>) -> Option<(u64, EventId)> {
    match publishing {
        Some(Publishing { work, message }) => {
            work.await;
            *message
        }
        None => std::future::pending().await,
    }
}
