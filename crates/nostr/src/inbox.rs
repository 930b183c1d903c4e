//! What comes from a remote: asks for a stream, takes its events in the order of the chain, and says how far it came.
//!
//! The chain is the order and the completeness. Where the next event does not come by itself it is fetched by the event before it, at
//! once where others show that something is missing, and now and then where nothing does: a relay may not have delivered the last of
//! them. A link that no relay has is a broken stream, and another is asked for, from what the database holds.
//!
//! What relays are asked and told meanwhile never holds up what comes: one that does not answer costs nothing.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Ack, BoxFuture, Limits, PeerMessage, Progress, Refusal, SyncRequest, Unverified};
use nostr::{Event, EventId, Timestamp};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tracing::debug;

use crate::chain::{Chain, Forked};
use crate::dates;
use crate::link::{CHANGES, Ending, Ends, Handle};
use crate::looks::{LOOK_MAX, Looks, at, pending};
use crate::messages::{self, Read};
use crate::parts::{Assembler, Whole};
use crate::receipts::UNACKNOWLEDGED_MAX;
use crate::relays::{Fate, Unpublished};
use crate::search::{self, Found, Pace};
use crate::store::{Inbound, Stand, Taking, Told};
use crate::{BuildError, CHANGES_KIND, CHANGES_LIFETIME, ChangesTags, EncryptError, Store, StreamId, filter};

/// Least time between two acknowledgements: each is an event.
const ACK_EVERY: Duration = Duration::from_secs(2);

/// How long a relay may take to take the last one when we hang up. Slower ones get it while they are being closed.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// How soon a request is published again that no relay took.
const PUBLISH_AGAIN: Duration = Duration::from_secs(2);

/// Sites that a request names in any case: an event of so many is as long as that of a part of a message.
const SITES_NAMED_MIN: usize = 400;

/// How long nothing may come from an original peer until everything stored counts as read.
const QUIET: Duration = Duration::from_secs(2);

/// The same before anything came.
const QUIET_AT_FIRST: Duration = Duration::from_secs(10);

/// From this size on a frame is decoded outside of the runtime's threads: it may become a hundred times as long.
const INLINE_DECODE_BYTES_MAX: usize = 32 * 1024;

pub(crate) struct Inbox<'a> {
    ends: &'a Ends,
    handle: &'a Handle,
    /// What the remote had been told before this connection.
    told: Option<Told>,
    requests: mpsc::Receiver<SyncRequest>,
    events: mpsc::Receiver<Event>,
    acks: watch::Receiver<Option<Ack>>,
    wake: &'a Notify,
    /// Nothing was asked for yet over this connection.
    is_first: bool,
    /// The stream as it is stored.
    state: Option<Inbound>,
    chain: Chain,
    assembler: Assembler,
    /// The number of the peer's request, and of the last message that it was given.
    answer: u32,
    number: u64,
    /// The stream was asked for before this process was there.
    is_resumed: bool,
    /// A message was not taken: what is stored stands still.
    holds_back: bool,
    /// Messages that are not acknowledged, and the event that each ended with.
    unacknowledged: VecDeque<(u64, EventId)>,
    acknowledged: Option<EventId>,
    /// When the next request or acknowledgement is published.
    cursor_due: Option<Instant>,
    /// The last one that was made.
    asked: Option<EventId>,
    /// Sites that it may name at most, where relays have refused more.
    sites_max: usize,
    /// What is being published of that.
    asking: Option<BoxFuture<'a, Result<(), Unpublished>>>,
    looks: Looks,
    /// What relays are being asked.
    looking: Option<BoxFuture<'a, Looked>>,
    pace: Pace,
    gap: Option<Instant>,
    /// When everything stored by an original peer counts as read.
    quiet_due: Option<Instant>,
    /// A Litemesh peer said that it had sent everything before its stream was gone on with, and does not say so again.
    owes_end: bool,
}

/// What relays have.
struct Looked {
    /// After the head.
    found: Found,
    /// The newest request of ours, where one of them has said what it has.
    request: Option<Option<Event>>,
}

impl<'a> Inbox<'a> {
    pub(crate) fn new(
        ends: &'a Ends,
        handle: &'a Handle,
        told: Option<Told>,
        requests: mpsc::Receiver<SyncRequest>,
        events: mpsc::Receiver<Event>,
        acks: watch::Receiver<Option<Ack>>,
        wake: &'a Notify,
    ) -> Self {
        Self {
            ends,
            handle,
            told,
            requests,
            events,
            acks,
            wake,
            is_first: true,
            state: None,
            chain: Chain::after(None, Timestamp::from_secs(0)),
            assembler: Assembler::default(),
            answer: 0,
            number: 0,
            is_resumed: false,
            holds_back: false,
            unacknowledged: VecDeque::new(),
            acknowledged: None,
            cursor_due: None,
            asked: None,
            sites_max: usize::MAX,
            asking: None,
            looks: Looks::new(LOOK_MAX, ends.shared.pauses),
            looking: None,
            pace: Pace::START,
            gap: None,
            quiet_due: None,
            owes_end: false,
        }
    }

    pub(crate) async fn run(mut self) -> Ending {
        if let Err(ending) = self.work().await {
            return ending;
        }
        if self.handle.closed.is_cancelled() || self.ends.shared.stop.is_cancelled() {
            let _ = tokio::time::timeout(LEAVE_PATIENCE, self.take_leave()).await;
        }
        Ending::Lost
    }

    /// Says how much has come: a sender that waits to hear it would wait until we are back.
    async fn take_leave(&mut self) {
        self.acknowledge();
        if self.cursor_due.is_some() && self.publish_cursor().await.is_err() {
            return;
        }
        if let Some(asking) = self.asking.take() {
            let _ = asking.await;
        }
    }

    async fn work(&mut self) -> Result<(), Ending> {
        loop {
            if self.handle.lost.is_cancelled() {
                return Ok(());
            }
            // No more than it takes: what waits here needs no room in the chain.
            while !self.chain.has_next()
                && let Ok(event) = self.events.try_recv()
            {
                self.offer(event)?;
            }
            if let Ok(request) = self.requests.try_recv() {
                self.ask(request).await?;
            } else if let Some(event) = self.chain.next(Timestamp::now()) {
                if self.looks.is_on_trail()
                    && !self.chain.has_next()
                    && self.events.is_empty()
                    && self.looking.is_none()
                {
                    self.look();
                }
                self.take_meanwhile(event).await?;
                self.gap = None;
                self.looks.begin();
            } else {
                self.wait().await?;
            }
        }
    }

    /// Waits for something to do, and does it.
    async fn wait(&mut self) -> Result<(), Ending> {
        if self.chain.has_gap() && self.gap.is_none() {
            self.gap = Some(Instant::now());
            self.looks.missing();
        }
        // Losing a branch loses nothing: everything stays where it is.
        tokio::select! {
            () = self.handle.lost.cancelled() => {}
            Some(request) = self.requests.recv() => self.ask(request).await?,
            Some(event) = self.events.recv() => self.offer(event)?,
            Ok(()) = self.acks.changed() => self.acknowledge(),
            () = self.wake.notified() => self.looks.at_once(),
            looked = pending(&mut self.looking) => self.looked(looked).await?,
            () = at(self.looks.due()), if self.looking.is_none() => self.look(),
            asked = pending(&mut self.asking) => self.asked(asked),
            () = at(self.cursor_due), if self.asking.is_none() => self.publish_cursor().await?,
            () = at(self.quiet_due) => self.end_stored().await?,
        }
        Ok(())
    }

    /// The peer asks. The first time over a connection it goes on with the stream that is stored, where it stands where that has
    /// brought it; otherwise, and later, it begins another one.
    async fn ask(&mut self, request: SyncRequest) -> Result<(), Ending> {
        let is_broken = self.ends.is_broken.swap(false, Ordering::Relaxed);
        let is_first = std::mem::take(&mut self.is_first);
        if is_first {
            self.state = self.ends.stored(Store::inbound).await?;
        }
        // A file that has lost what it sent would never be sent it on a stream whose sender knows of that.
        let may_have_lost = self.told.take().is_some_and(|told| told.may_be_lost_to(&request));
        let may_go_on = is_first && !is_broken && !may_have_lost;
        let goes_on = self.state.as_ref().filter(|state| may_go_on && !self.is_old(state));
        let state = match goes_on.and_then(|state| state.resumed(&request)) {
            Some(state) => state,
            None => {
                let asked_at = self.state.as_ref().map_or(Timestamp::from_secs(0), |state| state.stand.asked_at);
                let stream = new_stream()?;
                self.ends.asked().begun = Some(stream.clone());
                Inbound { stand: Stand::begun(stream, request.clone(), asked_at), taking: None }
            }
        };
        debug!(stream = %state.stand.stream, goes_on = state.stand.head.is_some(), "asking for a stream");
        self.answer = request.terms.as_ref().map_or(1, |terms| terms.answer);
        self.number = 0;
        self.chain = Chain::after(state.stand.head, state.stand.head_at);
        self.assembler = Assembler::default();
        self.holds_back = false;
        self.unacknowledged.clear();
        self.acknowledged = state.stand.head;
        (self.gap, self.looking, self.asking) = (None, None, None);
        let since = Some(state.stand.head_at).filter(|at| at.as_secs() > 0);
        let since = since.map(|head_at| dates::since(head_at, Timestamp::now()));
        self.ends.relays.subscribe(CHANGES, filter::changes(self.ends.pairing.peer_key, &state.stand.stream, since));
        // From here on what we send is of the life that asks.
        self.is_resumed = {
            let mut asked = self.ends.asked();
            asked.by_us = Some(state.stand.stream.clone());
            asked.begun != asked.by_us
        };
        self.state = Some(state);
        self.save().await?;
        // Known already where it asks again.
        let _ = self.ends.has_asked.set(());
        self.cursor_due = Some(Instant::now());
        self.looks.begin();
        self.looks.at_once();
        self.quiet_due = (!self.handle.remote.is_litemesh).then(|| Instant::now() + QUIET_AT_FIRST);
        self.owes_end = self.handle.remote.is_litemesh && self.chain.head().is_some();
        Ok(())
    }

    /// Puts an event into the chain, if it belongs to the stream.
    fn offer(&mut self, event: Event) -> Result<(), Ending> {
        let Some(state) = &self.state else { return Ok(()) };
        // A relay may send another event under an id that it has sent before; the client does not look twice.
        let is_ours =
            event.kind == CHANGES_KIND && event.pubkey == self.ends.pairing.peer_key && event.verify().is_ok();
        if let Ok(tags) = ChangesTags::of(&event)
            && is_ours
            && tags.stream_id == state.stand.stream
        {
            self.chain
                .offer(tags.previous, event, Timestamp::now())
                .map_err(|Forked| self.broken("its sender has forgotten what it sent"))?;
        }
        Ok(())
    }

    /// Takes an event while relays are asked for the one after it.
    async fn take_meanwhile(&mut self, event: Event) -> Result<(), Ending> {
        let (mut looking, mut looked) = (self.looking.take(), None);
        {
            let mut taking = std::pin::pin!(self.take(event));
            loop {
                // Neither is dropped before it has ended, but for a look that goes on below.
                tokio::select! {
                    taken = &mut taking => break taken?,
                    found = pending(&mut looking) => (looking, looked) = (None, Some(found)),
                }
            }
        }
        self.looking = looking;
        match looked {
            Some(looked) => self.looked(looked).await,
            None => Ok(()),
        }
    }

    /// Takes the next event of the stream.
    async fn take(&mut self, event: Event) -> Result<(), Ending> {
        if self.quiet_due.is_some() {
            self.quiet_due = Some(Instant::now() + QUIET);
        }
        let (ends, limits) = (self.ends, self.ends.peer.limits());
        let message = match messages::read(&ends.envelope, &event, ends.pairing.peer, &mut self.assembler, limits) {
            Err(reason) => return Err(self.broken(&reason)),
            Ok(Read::Part) => return Ok(()),
            Ok(Read::Message(message)) => message,
            Ok(Read::Frame(Whole { frame, asked })) => match decode(frame, limits).await {
                Ok(Frame::Message(message)) => {
                    let is_early = messages::is_early(asked.as_ref(), ends.asked().by_remote.as_ref());
                    if is_early { message.early() } else { message }
                }
                // Of a later version.
                Ok(_) => return Ok(()),
                Err(reason) => {
                    ends.break_stream();
                    self.holds_back = true;
                    let _turn = ends.turn.lock().await;
                    ends.peer.garbled(self.handle.remote, reason).await;
                    return Ok(());
                }
            },
        };
        self.deliver(message, &event).await
    }

    async fn deliver(&mut self, message: Unverified, event: &Event) -> Result<(), Ending> {
        self.number += 1;
        let message = message.numbered(self.answer, self.number);
        let message = if self.is_resumed { message.resumed() } else { message };
        let Some(state) = &mut self.state else { return Ok(()) };
        if !self.holds_back {
            let mut reach = state.stand.reach.clone();
            reach.add(message.progress(), message.versions());
            state.taking = Some(Taking { head: event.id, head_at: event.created_at, reach });
            self.save().await?;
        }
        let taken = {
            let _turn = self.ends.turn.lock().await;
            self.ends.peer.receive(self.handle.remote, message).await
        };
        if self.unacknowledged.len() == UNACKNOWLEDGED_MAX {
            self.unacknowledged.pop_front();
        }
        self.unacknowledged.push_back((self.number, event.id));
        match taken {
            // Stored with the next one.
            Ok(()) => {
                if let Some(state) = self.state.as_mut().filter(|_| !self.holds_back) {
                    state.taken();
                }
                Ok(())
            }
            Err(Refusal::UnknownRemote) => Err(Ending::Closed),
            // The session has taken note of it, and asks for it again over another connection.
            Err(_) => {
                self.holds_back = true;
                Ok(())
            }
        }
    }

    /// Our peer says what is durable here; its sender is told with the next request of the same stream.
    fn acknowledge(&mut self) {
        let Some(ack) = *self.acks.borrow_and_update() else { return };
        if ack.answer != self.answer {
            return;
        }
        while let Some((number, event)) = self.unacknowledged.front().copied()
            && number <= ack.number
        {
            self.unacknowledged.pop_front();
            self.acknowledged = Some(event);
            self.cursor_due.get_or_insert_with(|| Instant::now() + ACK_EVERY);
        }
    }

    /// Says what we ask for, and how much of it has come.
    async fn publish_cursor(&mut self) -> Result<(), Ending> {
        self.cursor_due = None;
        let Some(state) = &mut self.state else { return Ok(()) };
        let asked_at = dates::of_request(state.stand.asked_at, Timestamp::now());
        let event = loop {
            let sites = state.stand.request.cursor.len().min(self.sites_max);
            match self.ends.writer().request(state, self.acknowledged, self.sites_max, asked_at) {
                Ok(event) => break event,
                Err(BuildError::Encrypt(EncryptError::PlaintextSize { .. })) if sites > 1 => self.sites_max = sites / 2,
                Err(error) => return Err(Ending::Broken(error.to_string())),
            }
        };
        // Stored first: the next one must be later than all that relays may have seen.
        state.stand.asked_at = asked_at;
        self.save().await?;
        self.asked = Some(event.id);
        let ends = self.ends;
        self.asking = Some(Box::pin(async move { ends.relays.publish(&event).await }));
        Ok(())
    }

    /// A relay has taken our request, or none.
    fn asked(&mut self, asked: Result<(), Unpublished>) {
        self.asking = None;
        if let Err(Unpublished { reason, fate }) = asked {
            debug!(reason, "a request was not published");
            // Our clock was ahead once, perhaps, and relays take nothing of the future.
            if let Some(state) = &mut self.state {
                state.stand.asked_at = dates::of_refused(state.stand.asked_at, Timestamp::now());
            }
            let sites = self.state.as_ref().map_or(0, |state| state.stand.request.cursor.len()).min(self.sites_max);
            if fate == Fate::Refused && sites > SITES_NAMED_MIN {
                // It may be too large for them.
                self.sites_max = sites / 2;
            }
            self.cursor_due = Some(Instant::now() + self.ends.shared.pauses.of(PUBLISH_AGAIN));
        }
    }

    /// Looks for the event after the head, and where nothing seems to be missing whether relays still have our request: one that nobody
    /// can read is never answered.
    fn look(&mut self) {
        let patience = self.looks.looked();
        let Some(state) = &self.state else { return };
        let (ends, stream, head, asked) = (self.ends, state.stand.stream.clone(), self.chain.head(), self.asked);
        let pace = self.pace;
        let is_published = self.gap.is_none() && self.asking.is_none() && self.cursor_due.is_none();
        self.looking = Some(Box::pin(async move {
            let found = search::find_next(ends, &stream, head, pace, patience).await;
            let mut request = None;
            if is_published && found.events.is_empty() {
                let own = ends.envelope.local();
                let is_it = |events: &[Event]| events.iter().any(|event| Some(event.id) == asked);
                let fetched = ends.relays.fetch(filter::latest_cursor(own), 1, patience, is_it).await;
                let by_us = fetched.events.into_iter().filter(|event| event.pubkey == own);
                let newest = by_us.max_by_key(|event| (Some(event.id) == asked, event.created_at));
                request = fetched.is_answered.then_some(newest);
            }
            Looked { found, request }
        }));
    }

    async fn looked(&mut self, looked: Looked) -> Result<(), Ending> {
        self.looking = None;
        let Found { events, is_answered, pace } = looked.found;
        self.pace = pace;
        let has_more = !events.is_empty();
        for event in events {
            self.offer(event)?;
        }
        // Nothing else counts: a relay that answers with whatever it likes would keep us looking. What comes next was signed by the remote.
        if self.chain.has_next() {
            self.looks.found();
        }
        if let Some(request) = looked.request
            && self.asking.is_none()
            && self.asked.is_some()
            && self.asked != request.as_ref().map(|request| request.id)
        {
            debug!("no relay has our request");
            if let (Some(state), Some(request)) = (&mut self.state, request) {
                // A file that was restored does not know of the latest, and relays keep that.
                state.stand.asked_at = state.stand.asked_at.max(request.created_at);
            }
            self.cursor_due.get_or_insert_with(Instant::now);
        }
        if !self.chain.has_gap() {
            self.gap = None;
        } else if let Some(since) = self.gap {
            if !is_answered {
                // Nobody could be asked.
                self.gap = Some(Instant::now());
            } else if since.elapsed() > self.ends.shared.gap_patience {
                return Err(self.broken("an event is missing that later ones refer to"));
            }
        }
        if is_answered
            && !has_more
            && !self.chain.has_gap()
            && !self.chain.has_next()
            && std::mem::take(&mut self.owes_end)
        {
            self.end_stored().await?;
        }
        Ok(())
    }

    /// Relays have no more: nothing came for a while of an original peer, which does not say when it is at an end, or they say so.
    async fn end_stored(&mut self) -> Result<(), Ending> {
        self.quiet_due = None;
        // It proves nothing: the other half of a transaction may still come.
        let progress = Some(Progress { more: true, ..Progress::default() });
        let mut end = Unverified::new(PeerMessage::Eose { progress });
        if self.handle.remote.is_litemesh {
            self.number += 1;
            end = end.numbered(self.answer, self.number);
        }
        let _turn = self.ends.turn.lock().await;
        match self.ends.peer.receive(self.handle.remote, end).await {
            Err(Refusal::UnknownRemote) => Err(Ending::Closed),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether relays may have forgotten what follows the head: then its absence says nothing.
    fn is_old(&self, state: &Inbound) -> bool {
        // What we are set to is what the remote is likely to be set to.
        let lifetime = self.ends.shared.lifetime.min(CHANGES_LIFETIME);
        dates::is_old(state.stand.head_at, state.stand.asked_at, lifetime, Timestamp::now())
    }

    fn broken(&self, reason: &str) -> Ending {
        self.ends.break_stream();
        Ending::Broken(format!("{reason}: asking for another stream"))
    }

    async fn save(&mut self) -> Result<(), Ending> {
        let Some(state) = self.state.clone() else { return Ok(()) };
        self.ends.stored(move |store, pairing| store.set_inbound(pairing, &state)).await
    }
}

fn new_stream() -> Result<StreamId, Ending> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Ending::Broken(format!("there are no random bytes: {error}")))?;
    Ok(StreamId::from_bytes(bytes))
}

async fn decode(frame: Vec<u8>, limits: &Limits) -> Result<Frame, String> {
    if frame.len() <= INLINE_DECODE_BYTES_MAX {
        return v2::decode(&frame, limits).map_err(|error| error.to_string());
    }
    let limits = limits.clone();
    let decoding = tokio::task::spawn_blocking(move || v2::decode(&frame, &limits));
    decoding.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
