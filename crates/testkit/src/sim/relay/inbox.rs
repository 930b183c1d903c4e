//! What comes to the ends of a pairing: their requests, the events of a stream, and what becomes of them.

use std::time::Duration;

use litemesh::simulation;
use litemesh_engine::proto::codec::v2::{self, Frame as WireFrame};
use litemesh_engine::proto::{Limits, PeerMessage, Progress, Refusal, SyncRequest, Unverified};
use litemesh_nostr::nostr::{Event as NostrEvent, EventId, Timestamp};
use litemesh_nostr::simulation::{self as rules, Assembler, Chain, Forked, Inbound, Read, Stand, Taking, Whole};
use litemesh_nostr::{CHANGES_LIFETIME, CursorContent, StreamId};

use super::super::network::Frame;
use super::{AHEAD_MAX, PUBLISH_AGAIN, RelayEvent, Simulation, short};

/// How long an event may be missing that others refer to.
const GAP_PATIENCE: Duration = Duration::from_secs(30);

/// How soon the event after the last one that was taken is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long nothing may come until everything stored counts as read.
const QUIET: Duration = Duration::from_secs(10);

impl Simulation {
    pub(in super::super) fn ask_relayed(&mut self, node: usize, connection: u64, request: SyncRequest) {
        let new_stream = StreamId::from_bytes(std::array::from_fn(|_| self.relay_rng.u8(..)));
        let now = self.wall_clock(node);
        let Some(session) = self.relayed(node, connection) else { return };
        let end = session.end;
        let relayed = session.relayed.as_mut().expect("filtered above");
        let is_first = std::mem::take(&mut relayed.is_first);
        let may_have_lost = relayed.told.take().is_some_and(|told| told.may_be_lost_to(&request));
        let pairing = relayed.pairing;
        let pair = &mut self.pairings[pairing];
        let is_broken = std::mem::take(&mut pair.is_broken[end]);
        let may_go_on = is_first && !is_broken && !may_have_lost;
        let stored = pair.ways[1 - end].inbound.as_ref();
        let is_old =
            |Stand { head_at, asked_at, .. }: &Stand| rules::is_old(*head_at, *asked_at, CHANGES_LIFETIME, now);
        let known = stored.filter(|inbound| may_go_on && !is_old(&inbound.stand));
        let asked_as = request.terms.as_ref().map_or(1, |terms| terms.answer);
        let inbound = known.and_then(|inbound| inbound.resumed(&request)).unwrap_or_else(|| {
            let asked_at = stored.map_or(Timestamp::from_secs(0), |inbound| inbound.stand.asked_at);
            pair.begun[end] = Some(new_stream.clone());
            Inbound { stand: Stand::begun(new_stream, request, asked_at), taking: None }
        });
        let Stand { stream, head, head_at, .. } = inbound.stand.clone();
        let is_resumed = pair.begun[end].as_ref() != Some(&stream);
        pair.ways[1 - end].inbound = Some(inbound);
        let had_asked = pair.asked[end].replace(stream.clone()).is_some();
        let relayed = self.ways_of(node, connection).expect("looked at above");
        (relayed.asked_as, relayed.number, relayed.acknowledged) = (asked_as, 0, head);
        (relayed.chain, relayed.assembler) = (Chain::after(head, head_at), Assembler::default());
        relayed.is_resumed = is_resumed;
        (relayed.holds_back, relayed.is_publishing, relayed.gap) = (false, true, None);
        relayed.heard.clear();
        relayed.unacknowledged.clear();
        let after = head.map_or_else(|| "its beginning".to_owned(), short);
        self.note(format_args!("{node} asks for stream {stream} after {after}"));
        let is_original = self.nodes[node].original.is_some();
        if !self.pairings[pairing].is_litemesh && !is_original {
            self.ways_of(node, connection).expect("looked at above").quiet_at = Some(self.agenda.now() + QUIET);
            self.relay_after(QUIET, pairing, end, RelayEvent::Quiet(connection));
        } else if head.is_some() && !is_original {
            self.relay_after(QUIET, pairing, end, RelayEvent::Quiet(connection));
        }
        self.subscribe(pairing, end, connection, &stream, rules::since(head_at, now));
        for what in [RelayEvent::Publish, RelayEvent::Look(connection)] {
            let delay = self.relay_delay(pairing);
            self.relay_after(delay, pairing, end, what);
        }
        if !had_asked {
            self.go_on_sending(pairing, end, connection);
        }
    }

    /// The relay brings what it has of a stream from this time on, in any order.
    fn subscribe(&mut self, pairing: usize, end: usize, connection: u64, stream: &StreamId, since: Timestamp) {
        let kept = self.pairings[pairing].ways[1 - end].kept.iter();
        let kept = kept.filter(|kept| kept.stream == *stream && kept.event.created_at >= since);
        for id in kept.map(|kept| kept.event.id).collect::<Vec<_>>() {
            let delay = self.relay_delay(pairing);
            self.relay_after(delay, pairing, end, RelayEvent::Hear(connection, id));
        }
    }

    /// Who went on with a stream is not told again that it was up to date, and an original never says so.
    pub(super) fn end_stored(&mut self, pairing: usize, end: usize, connection: u64) {
        let (node, now) = (self.pairings[pairing].nodes[end], self.agenda.now());
        let Some(session) = self.relayed(node, connection) else { return };
        let is_receiving = session.receiving.is_some();
        let relayed = session.relayed.as_mut().expect("filtered above");
        if is_receiving || relayed.quiet_at.is_some_and(|at| at > now) {
            return self.relay_after(QUIET, pairing, end, RelayEvent::Quiet(connection));
        }
        let progress = Some(Progress { more: true, ..Progress::default() });
        let mut message = Unverified::new(PeerMessage::Eose { progress });
        if relayed.quiet_at.take().is_none() {
            relayed.number += 1;
            message = message.numbered(relayed.asked_as, relayed.number);
        }
        // One message at a time.
        session.receiving = Some(Frame::Data(Vec::new()));
        self.feed(node, connection, simulation::Event::Received(message));
    }

    pub(super) fn publish_request(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        let Some(connection) = self.pairings[pairing].current[end] else { return };
        let (now, time) = (self.wall_clock(node), self.time());
        let Some(relayed) = self.ways_of(node, connection) else { return };
        if !std::mem::take(&mut relayed.is_publishing) {
            return;
        }
        let acknowledged = relayed.acknowledged;
        let way = &self.pairings[pairing].ways[1 - end];
        let Some(inbound) = &way.inbound else { return };
        let asked_at = rules::of_request(inbound.stand.asked_at, now);
        let event = if self.nodes[node].original.is_some() {
            let Stand { stream, request, .. } = &inbound.stand;
            let (peer_id, stream_id, cursor) = (self.nodes[node].site, stream.clone(), request.cursor.clone());
            let content = CursorContent { peer_id, stream_id, cursor, litemesh: None };
            self.pairings[pairing].envelopes[end].cursor(&content, asked_at)
        } else {
            self.writer(pairing, end).request(inbound, acknowledged, usize::MAX, asked_at)
        };
        let event = event.expect("a request that is short");
        let newest = way.asked.as_ref().map_or(Timestamp::from_secs(0), |asked| asked.created_at);
        let is_refused = self.pairings[pairing].judges_dates && asked_at > time + AHEAD_MAX;
        let way = &mut self.pairings[pairing].ways[1 - end];
        let stand = &mut way.inbound.as_mut().expect("looked at above").stand;
        // Of two of one second relays keep either.
        if is_refused || asked_at <= newest {
            stand.asked_at = if is_refused { rules::of_refused(asked_at, now) } else { newest };
            self.ways_of(node, connection).expect("looked at above").is_publishing = true;
            self.note(format_args!("{node} asks in vain, as of {asked_at}"));
            return self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Publish);
        }
        stand.asked_at = asked_at;
        way.asked = Some(event);
        let found = self.until_found();
        let delay = self.relay_delay(pairing);
        self.relay_after(found.unwrap_or(delay), pairing, 1 - end, RelayEvent::ReadRequest);
    }

    /// The relay brings an event, if it has that still.
    pub(super) fn hear(&mut self, pairing: usize, end: usize, connection: u64, id: EventId) {
        let kept = self.pairings[pairing].ways[1 - end].kept.iter().find(|kept| kept.event.id == id);
        let found = kept.map(|kept| (kept.stream.clone(), kept.previous, kept.event.clone()));
        if let Some((stream, previous, event)) = found {
            self.offer(pairing, end, connection, &stream, previous, event);
            self.take_events(pairing, end, connection);
        }
    }

    /// Looks for the event after the head.
    pub(super) fn look_for_next(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let Some(head) = self.ways_of(node, connection).map(|relayed| relayed.chain.head()) else { return };
        let way = &self.pairings[pairing].ways[1 - end];
        let Some(stream) = way.inbound.as_ref().map(|inbound| inbound.stand.stream.clone()) else { return };
        let found = way.kept.iter().filter(|kept| kept.stream == stream && kept.previous == head);
        for event in found.map(|kept| kept.event.clone()).collect::<Vec<_>>() {
            self.offer(pairing, end, connection, &stream, head, event);
        }
        self.take_events(pairing, end, connection);
    }

    /// Puts an event into the chain, if it belongs to the stream.
    fn offer(
        &mut self,
        pairing: usize,
        end: usize,
        connection: u64,
        stream: &StreamId,
        previous: Option<EventId>,
        event: NostrEvent,
    ) {
        let node = self.pairings[pairing].nodes[end];
        let now = self.wall_clock(node);
        let inbound = self.pairings[pairing].ways[1 - end].inbound.as_ref();
        if inbound.is_none_or(|inbound| inbound.stand.stream != *stream) {
            return;
        }
        let Some(relayed) = self.ways_of(node, connection).filter(|relayed| !relayed.is_first) else { return };
        let id = event.id;
        relayed.heard.insert(id);
        self.note(format_args!("{node} is brought {}", short(id)));
        let relayed = self.ways_of(node, connection).expect("looked at above");
        if relayed.chain.offer(previous, event, now) == Err(Forked) {
            // Its sender stores what it publishes before it does.
            self.fail(
                "a fork",
                &format!("{node} hears {}, and the event before it was followed by another", short(id)),
            );
        }
    }

    /// Takes the next events of the stream, up to one that ends a message.
    fn take_events(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let (now, this_moment) = (self.wall_clock(node), self.agenda.now());
        let mut has_taken = false;
        loop {
            let Some(session) = self.relayed(node, connection).filter(|session| session.receiving.is_none()) else {
                return;
            };
            let relayed = session.relayed.as_mut().expect("filtered above");
            let Some(event) = relayed.chain.next(now) else {
                if has_taken {
                    // The relay may have brought the next one before, to nobody.
                    self.relay_after(LOOK_AGAIN, pairing, end, RelayEvent::Look(connection));
                }
                return self.notice_gap(pairing, end, connection);
            };
            has_taken = true;
            relayed.heard.remove(&event.id);
            relayed.gap = None;
            relayed.quiet_at = relayed.quiet_at.map(|_| this_moment + QUIET);
            if let Some(message) = self.read_event(pairing, end, connection, &event) {
                self.deliver(pairing, end, connection, message, &event);
            }
        }
    }

    /// Reads an event: the message that it completes.
    fn read_event(&mut self, pairing: usize, end: usize, connection: u64, event: &NostrEvent) -> Option<Unverified> {
        let node = self.pairings[pairing].nodes[end];
        let (peer, limits) = (self.site_of_other(pairing, end), Limits::default());
        let envelope = self.pairings[pairing].envelopes[end].clone();
        let relayed = self.ways_of(node, connection)?;
        let read = match rules::read(&envelope, event, peer, &mut relayed.assembler, &limits) {
            Ok(read) => read,
            Err(reason) => self.fail("bytes", &format!("{node} reads {}: {reason}", short(event.id))),
        };
        match read {
            Read::Part => None,
            Read::Message(message) => Some(message),
            Read::Frame(Whole { frame, asked }) => match v2::decode(&frame, &limits) {
                Ok(WireFrame::Message(message)) => {
                    let answers = self.pairings[pairing].ways[end].outbound.as_ref();
                    let answers = answers.map(|outbound| &outbound.stand.stream);
                    let is_early = rules::is_early(asked.as_ref(), answers);
                    Some(if is_early { message.early() } else { message })
                }
                other => self.fail("bytes", &format!("{node} decodes a message up to {}: {other:?}", short(event.id))),
            },
        }
    }

    fn deliver(&mut self, pairing: usize, end: usize, connection: u64, message: Unverified, event: &NostrEvent) {
        let node = self.pairings[pairing].nodes[end];
        let Some(session) = self.relayed(node, connection) else { return };
        // It waits until it is answered; nobody reads it once more.
        session.receiving = Some(Frame::Data(Vec::new()));
        let relayed = session.relayed.as_mut().expect("filtered above");
        relayed.number += 1;
        relayed.unacknowledged.push_back((relayed.number, event.id));
        let message = message.numbered(relayed.asked_as, relayed.number);
        let message = if relayed.is_resumed { message.resumed() } else { message };
        let holds_back = relayed.holds_back;
        let inbound = self.pairings[pairing].ways[1 - end].inbound.as_mut();
        if let Some(Inbound { stand, taking }) = inbound.filter(|_| !holds_back) {
            let mut reach = stand.reach.clone();
            reach.add(message.progress(), message.versions());
            *taking = Some(Taking { head: event.id, head_at: event.created_at, reach });
        }
        self.feed(node, connection, simulation::Event::Received(message));
    }

    /// Where later events wait for one that did not come, that one is looked for, and another stream asked for where it is nowhere.
    fn notice_gap(&mut self, pairing: usize, end: usize, connection: u64) {
        let (node, now) = (self.pairings[pairing].nodes[end], self.agenda.now());
        let Some(relayed) = self.ways_of(node, connection) else { return };
        if !relayed.chain.has_gap() {
            relayed.gap = None;
            return;
        }
        if relayed.gap.is_some() {
            return;
        }
        relayed.gap = Some(now);
        self.counts.carried.relay_gaps += 1;
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::Look(connection));
        if self.nodes[node].original.is_none() {
            // An original waits.
            self.relay_after(GAP_PATIENCE, pairing, end, RelayEvent::Broken(connection));
        }
    }

    pub(super) fn end_gap(&mut self, pairing: usize, end: usize, connection: u64) {
        self.look_for_next(pairing, end, connection);
        let (node, now) = (self.pairings[pairing].nodes[end], self.agenda.now());
        let Some(relayed) = self.ways_of(node, connection) else { return };
        // Of a later gap another event tells.
        if relayed.gap.is_some_and(|since| now - since >= GAP_PATIENCE) && relayed.chain.has_gap() {
            self.pairings[pairing].is_broken[end] = true;
            self.counts.carried.relay_breaks += 1;
            self.end_session(node, connection, "an event is missing that later ones refer to");
        }
    }

    /// A session answers the message that it received, if that was one and no acknowledgement.
    pub(in super::super) fn replied_relayed(&mut self, node: usize, connection: u64, result: Result<(), Refusal>) {
        let Some(session) = self.relayed(node, connection) else { return };
        if session.receiving.take().is_none() {
            return;
        }
        let end = session.end;
        let relayed = session.relayed.as_mut().expect("filtered above");
        let pairing = relayed.pairing;
        match result {
            Ok(()) if relayed.holds_back => {}
            Ok(()) => {
                if let Some(inbound) = &mut self.pairings[pairing].ways[1 - end].inbound {
                    inbound.taken();
                }
            }
            Err(refusal) => {
                relayed.holds_back = true;
                self.note(format_args!("{node} refuses a message of connection {connection}: {refusal}"));
            }
        }
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::Look(connection));
    }
}
