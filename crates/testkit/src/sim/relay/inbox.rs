//! What comes to the ends of a pairing: their requests, the events of a stream, and what becomes of them.

use std::time::Duration;

use litemesh::simulation;
use litemesh_engine::proto::{PeerMessage, Progress, Refusal, SyncRequest, Unverified};
use litemesh_nostr::CHANGES_LIFETIME;
use litemesh_nostr::nostr::Timestamp;
use litemesh_nostr::simulation::{self as rules, Reach};

use super::super::network::Frame;
use super::{AHEAD_MAX, Asked, Inbound, PUBLISH_AGAIN, Published, RelayEvent, Simulation, read};

/// How long an event may be missing that others refer to.
const GAP_PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing may come until everything stored counts as read.
const QUIET: Duration = Duration::from_secs(10);

impl Simulation {
    pub(in super::super) fn ask_relayed(&mut self, node: usize, connection: u64, request: SyncRequest) {
        let Some(session) = self.relayed(node, connection) else { return };
        let end = session.end;
        let relayed = session.relayed.as_mut().expect("filtered above");
        let is_first = std::mem::take(&mut relayed.is_first);
        let was_told = !std::mem::take(&mut relayed.was_told_elsewhere)
            && relayed.told.take().is_none_or(|told| told.was_told_by(&request));
        let pairing = relayed.pairing;
        let now = self.wall_clock(node);
        let pair = &mut self.pairings[pairing];
        let is_broken = std::mem::take(&mut pair.is_broken[end]);
        let known = pair.ways[1 - end].inbound.as_ref().filter(|_| is_first && !is_broken && was_told);
        let known = known.filter(|inbound| !rules::is_old(inbound.head_at, inbound.asked_at, CHANGES_LIFETIME, now));
        let asked_at = pair.ways[1 - end].inbound.as_ref().map_or(Timestamp::from_secs(0), |inbound| inbound.asked_at);
        let asked_as = request.terms.as_ref().map_or(0, |terms| terms.answer);
        let inbound = match known.and_then(|inbound| inbound.resumed(&request)) {
            Some(inbound) => inbound,
            None => {
                pair.streams_made += 1;
                let reach = Reach::of(&request);
                let head_at = Timestamp::from_secs(0);
                Inbound { stream: pair.streams_made, request, head: 0, reach, taking: None, asked_at, head_at }
            }
        };
        let (stream, head) = (inbound.stream, inbound.head);
        pair.ways[1 - end].inbound = Some(inbound);
        let had_asked = pair.asked[end].replace(stream).is_some();
        let session = self.relayed(node, connection).expect("looked at above");
        let relayed = session.relayed.as_mut().expect("looked at above");
        relayed.asked_as = asked_as;
        (relayed.number, relayed.next, relayed.acknowledged) = (0, head, head);
        (relayed.holds_back, relayed.is_publishing) = (false, true);
        relayed.unacknowledged.clear();
        self.note(format_args!("{node} asks for stream {stream} after event {head}"));
        if head > 0 {
            self.relay_after(QUIET, pairing, end, RelayEvent::Quiet(connection));
        }
        for what in [RelayEvent::Publish, RelayEvent::Arrive] {
            let delay = self.relay_delay(pairing);
            self.relay_after(delay, pairing, end, what);
        }
        if !had_asked {
            self.go_on_sending(pairing, end, connection);
        }
    }

    /// Who went on with a stream is not told again that it was up to date.
    pub(super) fn end_stored(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        if session.receiving.is_some() {
            return self.relay_after(QUIET, pairing, end, RelayEvent::Quiet(connection));
        }
        relayed.number += 1;
        let progress = Some(Progress { more: true, ..Progress::default() });
        let message = Unverified::new(PeerMessage::Eose { progress }).numbered(relayed.asked_as, relayed.number);
        self.feed(node, connection, simulation::Event::Received(message));
    }

    pub(super) fn publish_request(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        let Some(connection) = self.pairings[pairing].current[end] else { return };
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        if !std::mem::take(&mut relayed.is_publishing) {
            return;
        }
        let acknowledged = relayed.acknowledged;
        let (now, time) = (self.wall_clock(node), self.time());
        let judges_dates = self.pairings[pairing].judges_dates;
        let way = &mut self.pairings[pairing].ways[1 - end];
        let Some(inbound) = &mut way.inbound else { return };
        let asked_at = rules::of_request(inbound.asked_at, now);
        let newest = way.asked.as_ref().map_or(Timestamp::from_secs(0), |asked| asked.asked_at);
        let is_refused = judges_dates && asked_at > time + AHEAD_MAX;
        // Of two of one second relays keep either.
        if is_refused || asked_at <= newest {
            inbound.asked_at = if is_refused { rules::of_refused(asked_at, now) } else { newest };
            let session = self.relayed(node, connection).and_then(|session| session.relayed.as_mut());
            session.expect("looked at above").is_publishing = true;
            self.note(format_args!("{node} asks in vain, as of {asked_at}"));
            return self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Publish);
        }
        inbound.asked_at = asked_at;
        let (stream, request) = (inbound.stream, inbound.request.clone());
        way.asked = Some(Asked { stream, request, acknowledged, asked_at });
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, 1 - end, RelayEvent::ReadRequest);
    }

    pub(super) fn take_event(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        let Some(connection) = self.pairings[pairing].current[end] else { return };
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        if relayed.is_first || session.receiving.is_some() {
            return;
        }
        let (asked_as, next, holds_back) = (relayed.asked_as, relayed.next, relayed.holds_back);
        let answers = self.pairings[pairing].ways[end].outbound.as_ref().map(|outbound| outbound.stream);
        let way = &mut self.pairings[pairing].ways[1 - end];
        let Some(inbound) = &mut way.inbound else { return };
        let events = way.streams.get(&inbound.stream).map_or(&[][..], |events| &events[next.min(events.len())..]);
        let answered = way.outbound.as_ref().filter(|outbound| outbound.stream == inbound.stream);
        let is_refused = answered.is_some_and(|outbound| outbound.refused.iter().any(|refused| refused.event == next));
        let Published { bytes, asked, created_at, .. } = match events.first() {
            None => return,
            // Nothing shows that it is missing, unless something refers to it.
            Some(None) if is_refused && events.iter().all(Option::is_none) => return,
            Some(None) => {
                return self.relay_after(GAP_PATIENCE, pairing, end, RelayEvent::Broken(connection));
            }
            Some(Some(published)) => published.clone(),
        };
        let message = read(&bytes);
        if !holds_back {
            let mut reach = inbound.reach.clone();
            reach.add(message.progress(), message.versions());
            inbound.taking = Some((next + 1, reach));
            inbound.head_at = created_at;
        }
        let session = self.relayed(node, connection).expect("looked at above");
        session.receiving = Some(Frame::Data(bytes));
        let relayed = session.relayed.as_mut().expect("looked at above");
        relayed.next += 1;
        relayed.number += 1;
        relayed.unacknowledged.push_back((relayed.number, relayed.next));
        let message = message.numbered(asked_as, relayed.number);
        // A device that was restored since has lost it, and asks for it.
        let is_early = asked.is_none() || asked != answers;
        let message = if is_early { message.early() } else { message };
        self.feed(node, connection, simulation::Event::Received(message));
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
        self.relay_after(delay, pairing, end, RelayEvent::Arrive);
    }
}
