//! What the ends of a pairing send: requests that are read, answers, and what relays have not taken.

use std::collections::BTreeSet;
use std::time::Duration;

use litemesh::simulation;
use litemesh_engine::proto::{Limits, PeerMessage, Resumed, Served, SyncRequest, Unverified};
use litemesh_nostr::nostr::{Event as NostrEvent, EventId, Timestamp};
use litemesh_nostr::simulation::{self as rules, Outbound, Stand, Wire, Written};
use litemesh_nostr::{ChangesTags, CursorContent, StreamId};

use super::{Kept, PUBLISH_AGAIN, RelayEvent, Simulation, short, told_of};

/// Least time between two acknowledgements.
const ACK_EVERY: Duration = Duration::from_secs(2);

/// How soon an end stores how far another connection has brought the other one.
const ELSEWHERE_EVERY: Duration = Duration::from_secs(1);

/// Events that are kept until it is known that the other end or the relay has them.
const RECENT_MAX: usize = 64;

impl Simulation {
    /// Goes on with what is stored of the stream, once the peer has asked itself in this process: until then it may be all that shows
    /// that its file has lost something.
    pub(super) fn go_on_sending(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let own = self.nodes[node].site;
        if let Some(Outbound { stand, last, elsewhere, .. }) = self.pairings[pairing].ways[end].outbound.clone() {
            let onwards = stand.reach.onwards(&stand.request, 1);
            let written = stand.reach.written(&stand.request, own).filter(|_| elsewhere.is_none());
            if let Some(relayed) = self.ways_of(node, connection) {
                // Nobody knows whether these were published.
                relayed.under_way.add(last, None);
            }
            self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Check(connection));
            self.answer_relayed(node, connection, onwards, Some(Resumed { served: elsewhere, written }));
            self.launch(pairing, end, connection);
        }
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::ReadRequest);
    }

    pub(super) fn answer_relayed(
        &mut self,
        node: usize,
        connection: u64,
        request: SyncRequest,
        resumed: Option<Resumed>,
    ) {
        let Some(relayed) = self.ways_of(node, connection) else { return };
        relayed.answers_as += 1;
        relayed.receipts.begin();
        let terms = request.terms.map(|terms| litemesh_engine::proto::Terms { answer: relayed.answers_as, ..terms });
        let request = SyncRequest { terms, ..request };
        let event = match resumed {
            Some(resumed) => simulation::Event::Resumed(request, resumed),
            None => simulation::Event::Asked(request),
        };
        self.feed(node, connection, event);
    }

    pub(super) fn read_request(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        let Some(connection) = self.pairings[pairing].current[end] else { return };
        if self.pairings[pairing].asked[end].is_none() {
            return;
        }
        let (now, peer) = (self.wall_clock(node), self.site_of_other(pairing, end));
        let pair = &mut self.pairings[pairing];
        let way = &mut pair.ways[end];
        let Some(event) = way.asked.clone() else { return };
        let asked_at = way.outbound.as_ref().map_or(Timestamp::from_secs(0), |outbound| outbound.stand.asked_at);
        if rules::is_overtaken(event.created_at, asked_at, now) {
            return;
        }
        let content = match pair.envelopes[end].read_cursor(&event, peer) {
            Ok(content) => content,
            Err(error) => self.fail("bytes", &format!("{node} reads a request: {error}")),
        };
        let acknowledged = content.litemesh.as_ref().and_then(|terms| terms.ack);
        match &mut way.outbound {
            Some(Outbound { stand, .. }) if stand.stream == content.stream_id => {
                stand.asked_at = event.created_at;
                if let Some(acknowledged) = acknowledged {
                    self.note(format_args!("{node} reads that {} has arrived", short(acknowledged)));
                    self.heed_relayed(node, connection, acknowledged);
                }
            }
            _ => self.begin_stream(pairing, end, connection, event.created_at, &content),
        }
    }

    /// The other end asks for another stream.
    fn begin_stream(
        &mut self,
        pairing: usize,
        end: usize,
        connection: u64,
        asked_at: Timestamp,
        content: &CursorContent,
    ) {
        let node = self.pairings[pairing].nodes[end];
        let request = match rules::read_request(content, &Limits::default()) {
            Ok(Some(request)) => request,
            other => self.fail("bytes", &format!("{node} reads a request: {other:?}")),
        };
        let mut stand = Stand::begun(content.stream_id.clone(), request.clone(), asked_at);
        stand.reach = rules::Reach::answering(&request);
        let onwards = stand.reach.onwards(&request, 1);
        let way = &mut self.pairings[pairing].ways[end];
        // Nobody asks for the others any more.
        way.kept.retain(|kept| kept.stream == stand.stream);
        way.outbound = Some(Outbound { stand, taken_at: Timestamp::from_secs(0), last: Vec::new(), elsewhere: None });
        let Some(relayed) = self.ways_of(node, connection) else { return };
        relayed.under_way.clear();
        relayed.flights.clear();
        relayed.is_pausing = false;
        relayed.receipts.begin();
        relayed.recent.clear();
        if relayed.answers_as > 0 && self.nodes[node].original.is_none() {
            // What it asks for may be what it sent us over this connection.
            return self.end_session(node, connection, "the remote asks for another stream");
        }
        self.drop_outbox(node, connection);
        self.answer_relayed(node, connection, onwards, None);
    }

    /// The other end has everything up to this event.
    fn heed_relayed(&mut self, node: usize, connection: u64, acknowledged: EventId) {
        let Some(relayed) = self.ways_of(node, connection) else { return };
        if let Some(index) = relayed.recent.iter().position(|event| event.id == acknowledged) {
            relayed.recent.drain(..=index);
        }
        if relayed.receipts.confirm(acknowledged) {
            self.tell_relayed(node, connection);
        }
    }

    /// Tells the session what the other end has, and that the relay takes more.
    pub(super) fn tell_relayed(&mut self, node: usize, connection: u64) {
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_ref().expect("filtered above");
        let ack = relayed.receipts.to_ack(relayed.answers_as);
        // It waits for its turn, and is answered at once.
        let receiving = session.receiving.take();
        self.feed(node, connection, simulation::Event::Received(Unverified::new(PeerMessage::Ack(ack))));
        if let Some(session) = self.relayed(node, connection) {
            session.receiving = receiving;
        }
    }

    pub(in super::super) fn send_relayed(&mut self, node: usize, connection: u64, message: &PeerMessage) {
        let Some(session) = self.relayed(node, connection) else { return };
        let end = session.end;
        session.is_sending = true;
        let relayed = session.relayed.as_mut().expect("filtered above");
        let pairing = relayed.pairing;
        if let PeerMessage::Ack(ack) = message {
            let (is_of_this, mut has_news) = (ack.answer == relayed.asked_as, false);
            while let Some((number, event)) = relayed.unacknowledged.front().copied()
                && is_of_this
                && number <= ack.number
            {
                relayed.unacknowledged.pop_front();
                (relayed.acknowledged, has_news) = (Some(event), true);
            }
            if has_news && !std::mem::replace(&mut relayed.is_publishing, true) {
                self.relay_after(ACK_EVERY, pairing, end, RelayEvent::Publish);
            }
            return self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Ready(connection));
        }
        let progress = message.progress();
        let number = progress.map_or(relayed.receipts.published() + 1, |progress| progress.number);
        let (answers_as, has_given_up) = (relayed.answers_as, std::mem::take(&mut relayed.has_given_up));
        self.counts.messages += 1;
        self.counts.changes += message.change_count();
        self.pairings[pairing].changes += message.change_count();
        let now = self.wall_clock(node);
        let outbound = self.pairings[pairing].ways[end].outbound.as_ref();
        let Some(mut outbound) =
            outbound.filter(|_| progress.is_none_or(|progress| progress.answer == answers_as)).cloned()
        else {
            // What still comes for the last request.
            return self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Ready(connection));
        };
        if has_given_up {
            outbound.stand.head_at = rules::of_again(outbound.stand.head_at, outbound.taken_at, now);
        }
        let pair = &self.pairings[pairing];
        let wire = if pair.is_litemesh { Wire::Frames(pair.asked[end].as_ref()) } else { Wire::Json };
        let written = self.writer(pairing, end).message(&mut outbound.stand, message, wire, now);
        let Written { events, .. } = written.expect("a message that is short");
        let is_told = progress.is_some_and(|progress| progress.since.is_some());
        // The stream itself leads there now.
        outbound.elsewhere = outbound.elsewhere.filter(|_| !is_told);
        let relayed = self.ways_of(node, connection).expect("looked at above");
        // Stored before it is published, and published again after a crash.
        if !events.is_empty() {
            outbound.last = relayed.under_way.events().chain(&events).cloned().collect();
        }
        relayed.elsewhere = relayed.elsewhere.take().filter(|_| !is_told);
        relayed.recent.extend(events.iter().cloned());
        while relayed.recent.len() > RECENT_MAX {
            relayed.recent.pop_front();
        }
        let (stream, head) = (outbound.stand.stream.clone(), outbound.stand.head);
        self.counts.carried.relay_parts += usize::from(events.len() > 1);
        let (count, known) = (events.len(), told_of(self.nodes[node].site, message));
        let way = &mut self.pairings[pairing].ways[end];
        way.known.extend(events.iter().map(|event| (event.id, known)));
        way.outbound = Some(outbound);
        self.note(format_args!(
            "{node} sends {} changes as {count} events of stream {stream}, up to {}",
            message.change_count(),
            head.map_or_else(|| "its beginning".to_owned(), short)
        ));
        let relayed = self.ways_of(node, connection).expect("looked at above");
        relayed.under_way.add(events, head.map(|head| (number, head)));
        relayed.is_full = !relayed.under_way.has_room();
        if !relayed.is_full {
            self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Ready(connection));
        }
        self.launch(pairing, end, connection);
    }

    /// Takes the next message of a session.
    pub(super) fn relay_ready(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let Some(session) = self.relayed(node, connection) else { return };
        session.is_sending = false;
        self.feed(node, connection, simulation::Event::Sent);
    }

    /// Gives the relay as much as may be under way.
    fn launch(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let now = self.wall_clock(node);
        let Some(relayed) = self.ways_of(node, connection) else { return };
        if relayed.under_way.give_up(now) {
            relayed.has_given_up = true;
            self.note(format_args!("{node} gives up what the relay of connection {connection} refuses for its date"));
            self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Check(connection));
        }
        while let Some(relayed) = self.ways_of(node, connection).filter(|relayed| !relayed.is_pausing)
            && let Some(event) = relayed.under_way.next_out()
        {
            let id = event.id;
            relayed.flights.insert(id);
            self.pairings[pairing].ways[end].flying.push(event);
            let delay = self.relay_delay(pairing);
            self.relay_after(delay, pairing, end, RelayEvent::Give(connection, id));
        }
        self.settle(pairing, end, connection);
    }

    /// An event reaches the relay.
    pub(super) fn give_relay(&mut self, pairing: usize, end: usize, connection: u64, id: EventId) {
        let way = &mut self.pairings[pairing].ways[end];
        let Some(index) = way.flying.iter().position(|event| event.id == id) else { return };
        let event = way.flying.swap_remove(index);
        if self.pairings[pairing].current[end] != Some(connection) && self.relay_rng.bool() {
            // It was not written when the connection ended.
            return;
        }
        let is_taken = self.is_taken(pairing, &event);
        if is_taken {
            self.counts.carried.relay_events += 1;
            self.note(format_args!("the relay has {}", short(id)));
            self.keep(pairing, end, event);
        } else {
            self.counts.carried.relay_refusals += 1;
            self.note(format_args!("{} is of {}, and the relay refuses it", short(id), event.created_at));
        }
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::Landed(connection, id, is_taken));
    }

    /// The relay keeps an event, and brings it to the other end.
    fn keep(&mut self, pairing: usize, end: usize, event: NostrEvent) {
        let id = event.id;
        let tags = ChangesTags::of(&event).expect("tags of ours");
        let way = &mut self.pairings[pairing].ways[end];
        if way.kept.iter().all(|kept| kept.event.id != id) {
            way.kept.push(Kept { event, stream: tags.stream_id, previous: tags.previous });
        }
        let Some(receiver) = self.connection_of(pairing, 1 - end) else { return };
        if let Some(found) = self.until_found() {
            return self.relay_after(found, pairing, 1 - end, RelayEvent::Look(receiver));
        }
        let is_repeated = self.faults.repeats && !self.is_healed && self.relay_rng.u8(..4) == 0;
        for _ in 0..1 + usize::from(is_repeated) {
            let delay = self.relay_delay(pairing);
            self.relay_after(delay, pairing, 1 - end, RelayEvent::Hear(receiver, id));
        }
    }

    /// The relay has answered.
    pub(super) fn landed(&mut self, pairing: usize, end: usize, connection: u64, id: EventId, is_taken: bool) {
        let node = self.pairings[pairing].nodes[end];
        let Some(relayed) = self.ways_of(node, connection) else { return };
        if !relayed.flights.remove(&id) {
            return;
        }
        if is_taken {
            let taken = relayed.under_way.events().find(|event| event.id == id).map(|event| event.created_at);
            if let (Some(taken), Some(outbound)) = (taken, &mut self.pairings[pairing].ways[end].outbound) {
                outbound.taken_at = outbound.taken_at.max(taken);
            }
            let relayed = self.ways_of(node, connection).expect("looked at above");
            relayed.under_way.taken(id);
        } else {
            relayed.under_way.refused(id);
        }
        let relayed = self.ways_of(node, connection).expect("looked at above");
        let is_pausing = !is_taken && !std::mem::replace(&mut relayed.is_pausing, true);
        let window = relayed.under_way.window().clone();
        // For the next connection, too.
        self.pairings[pairing].windows[end] = window;
        if is_pausing {
            self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Again(connection));
        }
        self.launch(pairing, end, connection);
    }

    pub(super) fn publish_again(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        if let Some(relayed) = self.ways_of(node, connection) {
            relayed.is_pausing = false;
            self.launch(pairing, end, connection);
        }
    }

    /// The relay has taken messages.
    fn settle(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let is_litemesh = self.pairings[pairing].is_litemesh;
        let Some(relayed) = self.ways_of(node, connection) else { return };
        let (before, mut last) = (relayed.receipts.published(), None);
        while let Some((message, events)) = relayed.under_way.finished() {
            let Some((number, event)) = message else { continue };
            relayed.receipts.taken(number, is_litemesh.then_some(event));
            last = Some(events).filter(|events| !events.is_empty() && relayed.under_way.is_empty());
        }
        let has_news = is_litemesh && relayed.receipts.published() > before;
        let is_ready = relayed.is_full && relayed.under_way.has_room();
        relayed.is_full &= !is_ready;
        if let (Some(last), Some(outbound)) = (last, &mut self.pairings[pairing].ways[end].outbound) {
            outbound.last = last;
        }
        if is_ready {
            self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Ready(connection));
        }
        if has_news {
            self.tell_relayed(node, connection);
        }
    }

    /// Of events that no relay has, the other end may never learn: of the last one nobody says that it is there. What is of no use any
    /// more is said again.
    pub(super) fn check_last(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let now = self.wall_clock(node);
        let Some(relayed) = self.ways_of(node, connection) else { return };
        if !relayed.under_way.is_empty() {
            return self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Check(connection));
        }
        let way = &self.pairings[pairing].ways[end];
        let Some(mut outbound) = way.outbound.clone() else { return };
        let kept: BTreeSet<EventId> = way.kept.iter().map(|kept| kept.event.id).collect();
        let relayed = self.ways_of(node, connection).expect("looked at above");
        let events = if relayed.recent.is_empty() { outbound.last.clone() } else { relayed.recent.clone().into() };
        let mut missing: Vec<NostrEvent> = events.into_iter().filter(|event| !kept.contains(&event.id)).collect();
        relayed.recent.retain(|event| !kept.contains(&event.id));
        let (confirmed, has_given_up) = (relayed.receipts.confirmed(), relayed.has_given_up);
        let Some(head) = outbound.stand.head.filter(|head| confirmed != Some(*head)) else { return };
        if outbound.last.iter().any(|event| !kept.contains(&event.id)) {
            // It looks again, for what it has not looked for now.
            self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Check(connection));
        }
        if missing.is_empty() {
            return;
        }
        if rules::is_useless(&outbound.last, has_given_up, now) {
            self.writer(pairing, end).again(&mut outbound, now).expect("events of ours");
            let last = outbound.stand.head.expect("said again");
            missing.clone_from(&outbound.last);
            self.counts.carried.relay_repeats += missing.len();
            self.note(format_args!("{node} says again what it said up to {}, up to {}", short(head), short(last)));
            let way = &mut self.pairings[pairing].ways[end];
            let known = way.known.get(&head).copied().unwrap_or_default();
            way.known.extend(missing.iter().map(|event| (event.id, known)));
            way.outbound = Some(outbound);
            let relayed = self.ways_of(node, connection).expect("looked at above");
            relayed.has_given_up = false;
            relayed.recent.clear();
            relayed.receipts.said_again(head, last);
        } else {
            self.counts.carried.relay_losses += missing.len();
            self.note(format_args!("{node} publishes again what the relay of connection {connection} has not"));
        }
        let relayed = self.ways_of(node, connection).expect("looked at above");
        relayed.under_way.add(missing, None);
        self.launch(pairing, end, connection);
    }

    /// A session says how far another connection has brought the other end.
    pub(in super::super) fn note_elsewhere(&mut self, node: usize, connection: u64, served: Served) {
        let Some(session) = self.relayed(node, connection) else { return };
        let (end, pairing) = (session.end, session.relayed.as_ref().expect("filtered above").pairing);
        let Some(outbound) = &self.pairings[pairing].ways[end].outbound else { return };
        let stream = outbound.stand.stream.clone();
        let Some(relayed) = self.ways_of(node, connection) else { return };
        if relayed.elsewhere.replace((stream, served)).is_none() {
            self.relay_after(ELSEWHERE_EVERY, pairing, end, RelayEvent::Keep(connection));
        }
    }

    pub(super) fn keep_elsewhere(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        if let Some(relayed) = self.ways_of(node, connection) {
            let elsewhere = relayed.elsewhere.take();
            self.store_elsewhere(pairing, end, elsewhere);
        }
    }

    pub(super) fn store_elsewhere(&mut self, pairing: usize, end: usize, elsewhere: Option<(StreamId, Served)>) {
        let Some((stream, served)) = elsewhere else { return };
        let outbound = self.pairings[pairing].ways[end].outbound.as_mut();
        if let Some(outbound) = outbound.filter(|outbound| outbound.stand.stream == stream) {
            outbound.elsewhere = Some(served);
        }
    }
}
