//! What the ends of a pairing send: requests that are read, answers, and what relays have not taken.

use std::time::Duration;

use litemesh::simulation;
use litemesh_engine::proto::codec::v2;
use litemesh_engine::proto::limits::CREDIT_MAX;
use litemesh_engine::proto::{Ack, PeerMessage, Served, SyncRequest, Unverified};
use litemesh_nostr::CHANGES_LIFETIME;
use litemesh_nostr::simulation::{self as rules, Reach};

use super::{Outbound, PUBLISH_AGAIN, Published, Refused, RelayEvent, Simulation};

/// Least time between two acknowledgements.
const ACK_EVERY: Duration = Duration::from_secs(2);

/// How soon an end stores how far another connection has brought the other one.
const ELSEWHERE_EVERY: Duration = Duration::from_secs(1);

impl Simulation {
    /// Goes on with what is stored of the stream, once the peer has asked itself in this process: until then it may be all that shows
    /// that its file has lost something.
    pub(super) fn go_on_sending(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        if let Some(outbound) = &self.pairings[pairing].ways[end].outbound {
            let (onwards, elsewhere) = (outbound.reach.onwards(&outbound.request, 1), outbound.elsewhere);
            self.answer_relayed(node, connection, onwards, elsewhere);
        }
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::ReadRequest);
        if self.pairings[pairing].ways[end].outbound.as_ref().is_some_and(|outbound| !outbound.refused.is_empty()) {
            self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Again);
        }
    }

    pub(super) fn answer_relayed(
        &mut self,
        node: usize,
        connection: u64,
        request: SyncRequest,
        elsewhere: Option<Served>,
    ) {
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        relayed.answers_as += 1;
        (relayed.published, relayed.heeded) = (0, 0);
        relayed.unheeded.clear();
        let terms = request.terms.map(|terms| litemesh_engine::proto::Terms { answer: relayed.answers_as, ..terms });
        let request = SyncRequest { terms, ..request };
        let event = match elsewhere {
            Some(served) => simulation::Event::Resumed(request, served),
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
        let now = self.wall_clock(node);
        let way = &mut self.pairings[pairing].ways[end];
        let Some(asked) = way.asked.clone() else { return };
        if let Some(outbound) = &mut way.outbound {
            if rules::is_overtaken(asked.asked_at, outbound.asked_at, now) {
                return;
            }
            outbound.asked_at = asked.asked_at;
        }
        if way.outbound.as_ref().is_none_or(|outbound| outbound.stream != asked.stream) {
            let reach = Reach::answering(&asked.request);
            let onwards = reach.onwards(&asked.request, 1);
            way.outbound = Some(Outbound {
                stream: asked.stream,
                request: asked.request,
                reach,
                asked_at: asked.asked_at,
                head_at: None,
                refused: Vec::new(),
                elsewhere: None,
            });
            // Nobody asks for the others any more.
            way.streams.retain(|stream, _| *stream >= asked.stream);
            let session = self.relayed(node, connection).and_then(|session| session.relayed.as_ref());
            if session.is_some_and(|relayed| relayed.answers_as > 0) {
                // What it asks for may be what it sent us over this connection.
                return self.end_session(node, connection, "the remote asks for another stream");
            }
            return self.answer_relayed(node, connection, onwards, None);
        }
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        let before = relayed.unheeded.len();
        while let Some((number, event)) = relayed.unheeded.front().copied()
            && event <= asked.acknowledged
        {
            relayed.unheeded.pop_front();
            relayed.heeded = number;
        }
        if relayed.unheeded.len() < before {
            self.tell_relayed(node, connection);
        }
    }

    /// Tells the session what the other end has, and that the relay takes more.
    pub(super) fn tell_relayed(&mut self, node: usize, connection: u64) {
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_ref().expect("filtered above");
        let until = relayed.published + u64::from(CREDIT_MAX);
        let ack = Ack { answer: relayed.answers_as, number: relayed.heeded, until };
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
                (relayed.acknowledged, has_news) = (event, true);
            }
            if has_news && !std::mem::replace(&mut relayed.is_publishing, true) {
                self.relay_after(ACK_EVERY, pairing, end, RelayEvent::Publish);
            }
            return self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Taken(connection, None));
        }
        let answers_as = relayed.answers_as;
        let progress = message.progress().expect("between Litemesh peers");
        self.counts.messages += 1;
        self.counts.changes += message.change_count();
        self.pairings[pairing].changes += message.change_count();
        let (asked, now) = (self.pairings[pairing].asked[end], self.wall_clock(node));
        let way = &mut self.pairings[pairing].ways[end];
        let Some(outbound) = way.outbound.as_mut().filter(|_| progress.answer == answers_as) else {
            // What still comes for the last request.
            return self.relay_after(Duration::ZERO, pairing, end, RelayEvent::Taken(connection, None));
        };
        // Stored before it is published, and published again after a crash.
        outbound.reach.add(Some(progress), message.versions());
        // The stream itself leads there now.
        let is_told = progress.since.is_some();
        outbound.elsewhere = outbound.elsewhere.filter(|_| !is_told);
        let created_at = rules::of_next(outbound.head_at, now);
        outbound.head_at = Some(created_at);
        let published =
            Published { bytes: v2::message(message), asked, created_at, expires_at: now + CHANGES_LIFETIME };
        let (stream, count, is_taken) = self.give_relay(pairing, end, published, connection, progress.number);
        let session = self.relayed(node, connection).expect("looked at above");
        let relayed = session.relayed.as_mut().expect("looked at above");
        relayed.unheeded.push_back((progress.number, count));
        relayed.elsewhere = relayed.elsewhere.filter(|_| !is_told);
        self.note(format_args!(
            "{node} publishes event {count} of stream {stream}: {} changes",
            message.change_count()
        ));
        if !is_taken {
            self.note(format_args!("its date is {created_at}, and the relay refuses it"));
            return self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Again);
        }
        let delay = self.relay_delay(pairing);
        self.relay_after(delay, pairing, end, RelayEvent::Taken(connection, Some(progress.number)));
        let delay = delay + self.relay_delay(pairing);
        self.relay_after(delay, pairing, 1 - end, RelayEvent::Arrive);
    }

    /// Gives the relay the next event of a stream. Says of which, how many events it has then, and whether this one was taken.
    pub(super) fn give_relay(
        &mut self,
        pairing: usize,
        end: usize,
        published: Published,
        connection: u64,
        number: u64,
    ) -> (u64, usize, bool) {
        let is_taken = self.is_taken(pairing, published.created_at, published.expires_at);
        let way = &mut self.pairings[pairing].ways[end];
        let outbound = way.outbound.as_mut().expect("a stream that was asked for");
        let events = way.streams.entry(outbound.stream).or_default();
        if is_taken {
            events.push(Some(published));
        } else {
            outbound.refused.push(Refused { event: events.len(), published, connection, number });
            events.push(None);
        }
        (outbound.stream, events.len(), is_taken)
    }

    /// What the relay takes now. What it refuses for a date that is wrong by our clock, which was ahead or far behind, is said again.
    pub(super) fn publish_again(&mut self, pairing: usize, end: usize) {
        let node = self.pairings[pairing].nodes[end];
        if self.pairings[pairing].current[end].is_none() {
            return;
        }
        let now = self.wall_clock(node);
        let Some(outbound) = &mut self.pairings[pairing].ways[end].outbound else { return };
        let stream = outbound.stream;
        for Refused { event, published, connection, number } in std::mem::take(&mut outbound.refused) {
            let is_taken = self.is_taken(pairing, published.created_at, published.expires_at);
            let way = &mut self.pairings[pairing].ways[end];
            let outbound = way.outbound.as_mut().expect("looked at above");
            if is_taken {
                way.streams.get_mut(&stream).expect("a stream with events")[event] = Some(published);
            } else if rules::is_ahead(published.created_at, now) || published.expires_at < now {
                let created_at = rules::of_again(outbound.head_at.unwrap_or(now), now);
                outbound.head_at = Some(created_at);
                let again = Published { created_at, expires_at: now + CHANGES_LIFETIME, ..published };
                let (_, count, is_taken) = self.give_relay(pairing, end, again, connection, number);
                self.note(format_args!(
                    "{node} says again what event {} of stream {stream} said, as event {count}",
                    event + 1
                ));
                let session = self.relayed(node, connection).and_then(|session| session.relayed.as_mut());
                let unheeded = session.into_iter().flat_map(|relayed| &mut relayed.unheeded);
                unheeded.filter(|(of, _)| *of == number).for_each(|(_, event)| *event = count);
                if !is_taken {
                    continue;
                }
            } else {
                outbound.refused.push(Refused { event, published, connection, number });
                continue;
            }
            let delay = self.relay_delay(pairing);
            self.relay_after(delay, pairing, end, RelayEvent::Taken(connection, Some(number)));
            self.relay_after(delay, pairing, 1 - end, RelayEvent::Arrive);
        }
        let outbound = self.pairings[pairing].ways[end].outbound.as_ref();
        if outbound.is_some_and(|outbound| !outbound.refused.is_empty()) {
            self.relay_after(PUBLISH_AGAIN, pairing, end, RelayEvent::Again);
        }
    }

    /// A session says how far another connection has brought the other end.
    pub(in super::super) fn note_elsewhere(&mut self, node: usize, connection: u64, served: Served) {
        let Some(session) = self.relayed(node, connection) else { return };
        let (end, pairing) = (session.end, session.relayed.as_ref().expect("filtered above").pairing);
        let Some(outbound) = &self.pairings[pairing].ways[end].outbound else { return };
        let stream = outbound.stream;
        let Some(session) = self.relayed(node, connection) else { return };
        let relayed = session.relayed.as_mut().expect("filtered above");
        if relayed.elsewhere.replace((stream, served)).is_none() {
            self.relay_after(ELSEWHERE_EVERY, pairing, end, RelayEvent::Keep(connection));
        }
    }

    pub(super) fn keep_elsewhere(&mut self, pairing: usize, end: usize, connection: u64) {
        let node = self.pairings[pairing].nodes[end];
        if let Some(session) = self.relayed(node, connection) {
            let elsewhere = session.relayed.as_mut().expect("filtered above").elsewhere.take();
            self.store_elsewhere(pairing, end, elsewhere);
        }
    }

    pub(super) fn store_elsewhere(&mut self, pairing: usize, end: usize, elsewhere: Option<(u64, Served)>) {
        let Some((stream, served)) = elsewhere else { return };
        if let Some(outbound) = self.pairings[pairing].ways[end].outbound.as_mut().filter(|out| out.stream == stream) {
            outbound.elsewhere = Some(served);
        }
    }

    pub(super) fn relay_took(&mut self, pairing: usize, end: usize, connection: u64, number: Option<u64>) {
        let node = self.pairings[pairing].nodes[end];
        let Some(session) = self.relayed(node, connection) else { return };
        session.is_sending = false;
        let relayed = session.relayed.as_mut().expect("filtered above");
        relayed.published = number.map_or(relayed.published, |number| relayed.published.max(number));
        self.feed(node, connection, simulation::Event::Sent);
        if number.is_some() {
            self.tell_relayed(node, connection);
        }
    }
}
