//! The driver of sessions: carries out what they want, on virtual time.
//!
//! It does what `litemesh`'s `driver`, `engine_thread` and registry of sessions do with tokio, and leaves open, by random
//! delays, what those leave to the scheduler: a session may hear of the commit before it hears of its own merge, and what an
//! older connection ordered may be done after the next one has begun.

use std::time::Duration;

use fastrand::Rng;
use litemesh::PeerError;
use litemesh::simulation::{self, Action, Done, Look, Session, Timer, Work};
use litemesh_engine::proto::codec::v1::Envelope;
use litemesh_engine::proto::codec::v2;
use litemesh_engine::proto::limits::{PING_INTERVAL, RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN};
use litemesh_engine::proto::{DecodeError, Limits, PeerMessage, Refusal, Remote, SyncRequest};

use super::line::Line;
use super::network::{Connection, Frame};
use super::node::{Job, RunningSession, Side};
use super::options::Lossy;
use super::{Event, Simulation};

/// Work that one session may have under way: its opening, a merge and a read (`engine_thread`, `COMMANDS_MAX`).
const JOBS_MAX: usize = 4;

/// How long a session does not hear that another one to its remote ended.
const OTHER_WAYS_DELAY: Duration = Duration::from_micros(500);

/// How long a link may be silent before its ends give it up.
pub(super) const SILENCE_MAX: Duration = PING_INTERVAL.saturating_mul(3);

impl Simulation {
    // Connections.

    pub(super) fn dial_after(&mut self, wire: usize, delay: Duration) {
        if !std::mem::replace(&mut self.wires[wire].is_dial_due, true) {
            self.agenda.after(delay, Event::Dial { wire });
        }
    }

    fn dial_again(&mut self, wire: usize) {
        let tries = self.wires[wire].failed_dials;
        self.wires[wire].failed_dials += 1;
        let delay = RECONNECT_DELAY_MIN.saturating_mul(1 << tries.min(5)).min(RECONNECT_DELAY_MAX);
        let jitter = self.random_delay(500_000);
        self.dial_after(wire, delay + jitter);
    }

    pub(super) fn dial(&mut self, wire: usize) {
        let now = self.agenda.now();
        let link = &mut self.wires[wire];
        link.is_dial_due = false;
        let [dialler, listener] = link.nodes;
        // A peer that starts dials by itself.
        if link.is_removed || link.current[0].is_some() || self.nodes[dialler].running.is_none() {
            return;
        }
        let is_reachable = link.blocked_until.iter().all(|until| *until <= now)
            && self.nodes[listener].suspended_until <= now
            && self.nodes[listener].running.is_some();
        if !is_reachable {
            return self.dial_again(wire);
        }
        if self.nodes[dialler].site == self.nodes[listener].site {
            self.note(format_args!("{dialler} and {listener} have one site id and refuse each other"));
            return self.dial_again(wire);
        }
        self.wires[wire].failed_dials = 0;
        self.connections_made += 1;
        let connection = self.connections_made;
        self.note(format_args!("{dialler} connects to {listener}: connection {connection}"));
        let (sites, carrier) = ([dialler, listener].map(|node| self.nodes[node].site), self.wires[wire].carrier);
        let lines = [0, 1].map(|end| Line::new(carrier, end, sites[end]));
        self.connections.insert(connection, Connection::new(wire, lines));
        for end in [1, 0] {
            self.open_session(wire, connection, end);
        }
    }

    fn open_session(&mut self, wire: usize, connection: u64, end: usize) {
        let link = &self.wires[wire];
        let (node, transport) = (link.nodes[end], link.transport);
        let remote = Remote { site: self.nodes[link.nodes[1 - end]].site, connection, is_litemesh: link.is_litemesh };
        // One session a remote and transport: the newest connection counts.
        let is_older =
            |session: &RunningSession| session.session.remote().site == remote.site && session.transport == transport;
        let running = self.nodes[node].running.as_ref().expect("a peer that runs");
        let older: Vec<u64> = running
            .sessions
            .iter()
            .filter(|(_, session)| is_older(session))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in older {
            self.end_session(node, connection, "replaced by a newer connection");
        }
        self.wires[wire].current[end] = Some(connection);
        if self.nodes[node].original.is_some() {
            return self.open_talk(node, connection, end, transport, remote);
        }
        let running = self.nodes[node].running.as_mut().expect("a peer that runs");
        let rank = self.wires[wire].carrier.rank();
        let (session, opening) = Session::new(remote, rank, &running.process, &Limits::default(), self.pages);
        let session = RunningSession::new(Side::Ours(Box::new(session)), end, transport);
        running.sessions.insert(connection, session);
        self.order(node, connection, opening);
    }

    /// An end gives up its connection; the other learns of it after some of what is under way.
    pub(super) fn end_session(&mut self, node: usize, connection: u64, reason: &str) {
        let Some(end) = self.forget_session(node, connection) else { return };
        self.note(format_args!("{node} ends connection {connection}: {reason}"));
        if !self.connections.contains_key(&connection) {
            // To the other end of a pairing that is nothing.
            return;
        }
        self.lose_tail(connection, end);
        self.push(connection, end, Frame::Close(reason.to_owned()));
    }

    /// Some of the last messages of an end never arrive.
    pub(super) fn lose_tail(&mut self, connection: u64, end: usize) {
        let way = &mut self.connections.get_mut(&connection).expect("a connection that was made").ways[end];
        let kept = self.rng.usize(..=way.frames.len());
        way.cut(kept, &mut self.line_rng);
    }

    /// The same where an end says nothing of it, and its line breaks.
    pub(super) fn break_off(&mut self, connection: u64, end: usize) {
        self.lose_tail(connection, end);
        if let Some(line) = self.line(connection, end) {
            line.is_broken = true;
        }
    }

    /// What an end writes, while somebody reads it.
    fn line(&mut self, connection: u64, end: usize) -> Option<&mut Line> {
        self.connections.get_mut(&connection)?.ways[end].line.as_deref_mut()
    }

    /// A request, as the carrier has it. Of a line that nobody reads it is not known any more.
    pub(super) fn request(&mut self, connection: u64, end: usize, request: &SyncRequest) -> Vec<u8> {
        self.line(connection, end).map(|line| line.sync(request)).unwrap_or_default()
    }

    /// Removes a session, and dials again where this was the end that dials.
    pub(super) fn forget_session(&mut self, node: usize, connection: u64) -> Option<usize> {
        let session = self.nodes[node].running.as_mut()?.sessions.remove(&connection)?;
        if let Side::Ours(session) = &session.session {
            session.end();
        }
        self.tell_other_ways(node);
        if let Some(relayed) = &session.relayed {
            self.close_relayed(connection, relayed, session.end);
            return Some(session.end);
        }
        let wire = self.connections[&connection].wire;
        self.check_bounds(connection, &session);
        if self.wires[wire].current[session.end] == Some(connection) {
            self.wires[wire].current[session.end] = None;
            if session.end == 0 {
                self.dial_again(wire);
            }
        }
        Some(session.end)
    }

    // What is under way.

    /// Sends a frame from an end.
    pub(super) fn push(&mut self, connection: u64, end: usize, frame: Frame) {
        let wire = self.connections[&connection].wire;
        let (delay_max, repeats) = (self.wires[wire].delay_max, self.wires[wire].repeats);
        if let Frame::Data(bytes) | Frame::Sync(bytes) = &frame
            && !self.is_healed
        {
            if repeats && matches!(frame, Frame::Data(_)) && self.rng.u8(..8) == 0 {
                let (bytes, delay) = (bytes.clone(), self.random_delay(3_000_000));
                self.agenda.after(delay, Event::Repeat { connection, end, bytes });
            }
            let may_be_lost = match self.options.lossy {
                Lossy::No => false,
                Lossy::Cut => matches!(frame, Frame::Data(_)),
                // Wire v1 has nothing by which a session could notice.
                Lossy::PassOn => self.wires[wire].is_litemesh || matches!(frame, Frame::Data(_)),
            };
            if may_be_lost && self.rng.u8(..20) == 0 {
                return self.lose(connection, end, frame);
            }
        }
        let delay = delay_max / 4 + delay_max.mul_f64(self.rng.f64() * 0.75);
        let arrival = self.agenda.now() + delay;
        let way = &mut self.connections.get_mut(&connection).expect("a connection that was made").ways[end];
        way.frames.push_back(frame);
        way.last_arrival = way.last_arrival.max(arrival);
        let arrival = way.last_arrival;
        self.agenda.at(arrival, Event::Arrive { connection, end: 1 - end });
    }

    /// The carrier loses a message, or lets the one before it come later.
    fn lose(&mut self, connection: u64, end: usize, frame: Frame) {
        let is_litemesh = self.wires[self.connections[&connection].wire].is_litemesh;
        if self.options.lossy == Lossy::Cut || !is_litemesh {
            return self.cut(connection, "a message was lost");
        }
        let way = &mut self.connections.get_mut(&connection).expect("a connection that was made").ways[end];
        // What is written already cannot be overtaken.
        let is_free = way.line.as_ref().is_none_or(|line| !line.is_broken);
        // The last one is the one that everything waits for; with nothing to overtake, the message is lost.
        if is_free && let Some(overtaken) = way.frames.pop_back() {
            way.frames.extend([frame, overtaken]);
            let arrival = way.last_arrival;
            self.agenda.at(arrival, Event::Arrive { connection, end: 1 - end });
            self.note(format_args!("connection {connection}: a message overtakes another"));
        } else {
            self.note(format_args!("connection {connection}: a message is lost"));
            if matches!(frame, Frame::Data(_)) {
                self.agenda.after(Duration::ZERO, Event::Taken { connection, end, refused: None });
            }
        }
    }

    /// Both ends lose a connection.
    pub(super) fn cut(&mut self, connection: u64, reason: &str) {
        self.note(format_args!("connection {connection} is cut: {reason}"));
        for end in [0, 1] {
            self.break_off(connection, end);
            self.push(connection, end, Frame::Close(reason.to_owned()));
        }
    }

    fn is_open(&self, connection: u64, end: usize) -> bool {
        let node = self.wires[self.connections[&connection].wire].nodes[end];
        self.nodes[node].running.as_ref().is_some_and(|running| running.sessions.contains_key(&connection))
    }

    /// The session of an end, where it is there still.
    fn session(&mut self, connection: u64, end: usize) -> Option<(usize, &mut RunningSession)> {
        let node = self.wires[self.connections.get(&connection)?.wire].nodes[end];
        Some((node, self.nodes[node].running.as_mut()?.sessions.get_mut(&connection)?))
    }

    pub(super) fn arrive(&mut self, connection: u64, end: usize) {
        let wire = self.connections[&connection].wire;
        let until = self.wires[wire].blocked_until[1 - end];
        if until > self.agenda.now() {
            return self.agenda.at(until, Event::Arrive { connection, end });
        }
        let is_open = self.is_open(connection, end);
        let way = &mut self.connections.get_mut(&connection).expect("looked up above").ways[1 - end];
        if !is_open {
            // Nobody reads any more.
            way.line = None;
            way.frames.pop_front();
            return;
        }
        // Messages are taken off the way when the session takes them: until then they are under way, for the window.
        let Some(frame) = self.read_line(connection, end) else { return };
        let (node, session) = self.session(connection, end).expect("looked up above");
        if let Frame::Close(reason) = frame {
            self.forget_session(node, connection);
            return self.note(format_args!("{node} loses connection {connection}: {reason}"));
        }
        session.inbox.push_back(frame);
        self.receive_next(node, connection);
    }

    /// The next message for an end, out of the bytes of its line, or how the connection ends.
    fn read_line(&mut self, connection: u64, end: usize) -> Option<Frame> {
        // What was written cannot be overtaken, so nothing is written before its time where messages overtake each other.
        let reads_ahead = self.options.lossy != Lossy::PassOn;
        let ways = &mut self.connections.get_mut(&connection).expect("a connection that was made").ways;
        let way = &mut ways[1 - end];
        let (line, frame) = (way.line.as_mut()?, way.frames.front()?);
        let (rng, carried) = (&mut self.line_rng, &mut self.counts.carried);
        let read = match frame {
            Frame::Close(reason) => line.end(reason, rng, carried).map(|()| None),
            _ => line.read(&way.frames, reads_ahead, rng, carried).map(Some),
        };
        let frame = way.frames.pop_front();
        let ping = line.take_ping();
        if matches!(frame, Some(Frame::Close(_))) {
            way.line = None;
        }
        if let (Some(ping), Some(back)) = (ping, &mut ways[end].line) {
            back.answer(ping);
        }
        match (read, frame) {
            (Ok(Some(bytes)), Some(Frame::Sync(_))) => Some(Frame::Sync(bytes)),
            (Ok(Some(bytes)), Some(Frame::Data(_))) => Some(Frame::Data(bytes)),
            (Ok(Some(bytes)), Some(Frame::Repeat(_))) => Some(Frame::Repeat(bytes)),
            (Ok(_), frame) => frame,
            (Err(error), _) => {
                let carrier = self.wires[self.connections[&connection].wire].carrier;
                self.fail("bytes", &format!("connection {connection}, from end {}, over {carrier:?}: {error}", 1 - end))
            }
        }
    }

    pub(super) fn repeat(&mut self, connection: u64, end: usize, bytes: Vec<u8>) {
        if self.is_open(connection, end) && self.is_open(connection, 1 - end) && !self.is_healed {
            self.push(connection, end, Frame::Repeat(bytes));
        }
    }

    pub(super) fn silent(&mut self, connection: u64, end: usize) {
        let wire = self.connections[&connection].wire;
        if self.wires[wire].blocked_until[1 - end] > self.agenda.now() {
            let node = self.wires[wire].nodes[end];
            self.end_session(node, connection, "silence");
        }
    }

    /// Gives a session its next message, unless it has one.
    fn receive_next(&mut self, node: usize, connection: u64) {
        let wire = &self.wires[self.connections[&connection].wire];
        // The original passes over what it cannot read, and what was in it is lost.
        let is_original = wire.nodes.iter().any(|node| self.nodes[*node].original.is_some());
        let running = self.nodes[node].running.as_mut().expect("a peer that runs");
        let Some(session) = running.sessions.get_mut(&connection) else { return };
        if session.receiving.is_some() {
            return;
        }
        let Some(frame) = session.inbox.pop_front() else { return };
        let end = session.end;
        let (Frame::Sync(bytes) | Frame::Data(bytes) | Frame::Repeat(bytes)) = &frame else { return };
        let remote = session.session.remote();
        if self.faults.garbled
            && !is_original
            && !self.is_healed
            && !matches!(frame, Frame::Repeat(_))
            && self.rng.u8(..40) == 0
            && let Some(reason) = garble(&mut self.rng, remote, bytes)
        {
            return self.receive_garbled(node, connection, &frame, reason);
        }
        let event = read(remote, bytes).expect("bytes of our own encoder");
        let is_request = matches!(event, simulation::Event::Asked(_));
        if is_request {
            self.connections.get_mut(&connection).expect("a connection that was made").ways[end].answers += 1;
        } else {
            session.receiving = Some(frame);
            self.connections.get_mut(&connection).expect("a connection that was made").ways[1 - end].brought += 1;
        }
        self.feed(node, connection, event);
        if is_request {
            self.receive_next(node, connection);
        }
    }

    /// A message arrives as bytes that cannot be read. The sender hears of it where it waits for the commit.
    fn receive_garbled(&mut self, node: usize, connection: u64, frame: &Frame, reason: String) {
        self.note(format_args!("{node} cannot read a message of connection {connection}: {reason}"));
        let wire = &self.wires[self.connections[&connection].wire];
        let end = wire.nodes.iter().position(|of| *of == node).expect("an end of the connection");
        if matches!(frame, Frame::Data(_)) {
            if wire.waits_for_commit[1 - end] {
                let refused = Some(reason.clone());
                self.agenda.after(Duration::ZERO, Event::Taken { connection, end: 1 - end, refused });
            } else {
                self.make_room(connection, 1 - end);
            }
        }
        self.feed(node, connection, simulation::Event::Garbled(reason));
        self.receive_next(node, connection);
    }

    /// A session answers the message that it received.
    pub(super) fn replied(&mut self, node: usize, connection: u64, result: Result<(), Refusal>) {
        let Some(session) = self.nodes[node].running.as_mut().expect("a peer that runs").sessions.get_mut(&connection)
        else {
            return;
        };
        let (frame, end) = (session.receiving.take(), session.end);
        if let Err(refusal) = &result {
            self.note(format_args!("{node} refuses a message of connection {connection}: {refusal}"));
        }
        let wire = &self.wires[self.connections[&connection].wire];
        if matches!(frame, Some(Frame::Data(_))) {
            if wire.waits_for_commit[1 - end] {
                let delay_max = wire.delay_max;
                let delay = delay_max.mul_f64(self.rng.f64());
                let refused = result.err().map(|refusal| refusal.to_string());
                self.agenda.after(delay, Event::Taken { connection, end: 1 - end, refused });
            } else {
                self.make_room(connection, 1 - end);
            }
        }
        self.receive_next(node, connection);
    }

    /// The carrier of an end has room again.
    fn make_room(&mut self, connection: u64, end: usize) {
        let way = &mut self.connections.get_mut(&connection).expect("a connection that was made").ways[end];
        if std::mem::take(&mut way.is_waiting) {
            self.agenda.after(Duration::ZERO, Event::Taken { connection, end, refused: None });
        }
    }

    pub(super) fn taken(&mut self, connection: u64, end: usize, refused: Option<String>) {
        let wire = self.connections[&connection].wire;
        // The answer to a POST comes the other way.
        let until = self.wires[wire].blocked_until[1 - end];
        if self.wires[wire].waits_for_commit[end] && until > self.agenda.now() {
            return self.agenda.at(until, Event::Taken { connection, end, refused });
        }
        let Some((node, session)) = self.session(connection, end) else { return };
        session.is_sending = false;
        match refused {
            Some(reason) => self.end_session(node, connection, &format!("refused: {reason}")),
            None => self.feed(node, connection, simulation::Event::Sent),
        }
    }

    // Sessions.

    pub(super) fn feed(&mut self, node: usize, connection: u64, event: simulation::Event) {
        let running = self.nodes[node].running.as_mut().expect("a peer that runs");
        let Some(session) = running.sessions.get_mut(&connection) else { return };
        let (end, is_relayed) = (session.end, session.relayed.is_some());
        let actions = match &mut session.session {
            Side::Ours(session) => session.handle(event),
            Side::Original(_) => return self.talk_over(node, connection, event),
        };
        self.note_acknowledged(node, connection);
        for action in actions {
            match action {
                Action::Ask(request) if is_relayed => self.ask_relayed(node, connection, request),
                Action::Send(message) if is_relayed => self.send_relayed(node, connection, &message),
                Action::Note(served) if is_relayed => self.note_elsewhere(node, connection, served),
                // Its carrier keeps nothing.
                Action::Note(_) => {}
                Action::Reply(result) if is_relayed => self.replied_relayed(node, connection, result),
                Action::Ask(request) => {
                    let bytes = self.request(connection, end, &request);
                    self.note(format_args!("{node} asks over {connection}: {} bytes", bytes.len()));
                    self.push(connection, end, Frame::Sync(bytes));
                }
                Action::Send(message) => self.send(node, connection, end, &message),
                Action::Work(work) if work.is_flush() => self.flush(node, connection, work),
                Action::Work(work) => self.order(node, connection, work),
                Action::Wake(timer, delay) => {
                    let boot = self.nodes[node].boot;
                    self.agenda.after(delay, Event::Timer { node, boot, connection, timer });
                }
                Action::EndAfter(delay, reason) => {
                    let boot = self.nodes[node].boot;
                    self.agenda.after(delay, Event::End { node, boot, connection, reason });
                }
                Action::Reply(result) => self.replied(node, connection, result),
                Action::Tell(what) => self.note(format_args!("{node} hears over {connection}: {what}")),
            }
        }
        self.tell_other_ways(node);
    }

    /// Remembers what the remote of a session has promised to hold.
    fn note_acknowledged(&mut self, node: usize, connection: u64) {
        let Some(running) = self.nodes[node].running.as_ref().filter(|_| self.faults.power) else { return };
        let Some(Side::Ours(session)) = running.sessions.get(&connection).map(|session| &session.session) else {
            return;
        };
        let (acknowledged, remote) = (session.acknowledged(), session.remote().site);
        let keeper = self.nodes.iter().position(|node| node.site == remote && !node.is_gone);
        if let (Some(version), Some(keeper)) = (acknowledged, keeper) {
            self.log.acknowledge(node, self.nodes[node].site, version, keeper);
        }
    }

    /// Sessions hear that another one to their remote began or ceased to carry what is written.
    fn tell_other_ways(&mut self, node: usize) {
        let boot = self.nodes[node].boot;
        let Some(running) = &self.nodes[node].running else { return };
        let has_news = |session: &RunningSession| matches!(&session.session, Side::Ours(session) if session.has_news());
        let told = running.sessions.iter().filter(|(_, session)| has_news(session)).map(|(connection, _)| *connection);
        for connection in told.collect::<Vec<_>>() {
            self.agenda.after(OTHER_WAYS_DELAY, Event::OtherWays { node, boot, connection });
        }
    }

    pub(super) fn other_ways(&mut self, node: usize, boot: u64, connection: u64) {
        if self.nodes[node].boot != boot {
            return;
        }
        let session = self.nodes[node].running.as_ref().and_then(|running| running.sessions.get(&connection));
        if session.is_some_and(|session| matches!(&session.session, Side::Ours(session) if session.has_news())) {
            self.feed(node, connection, simulation::Event::OtherWays);
        }
    }

    pub(super) fn send(&mut self, node: usize, connection: u64, end: usize, message: &PeerMessage) {
        let bytes = self.line(connection, end).map(|line| line.message(message)).unwrap_or_default();
        let changes = message.change_count();
        let is_ack = matches!(message, PeerMessage::Ack(_));
        self.note(format_args!("{node} sends over {connection}: {changes} changes, {} bytes", bytes.len()));
        self.counts.messages += usize::from(!is_ack);
        self.counts.changes += changes;
        let (_, session) = self.session(connection, end).expect("a session that sends");
        if std::mem::replace(&mut session.is_sending, true) {
            self.fail("a queue", &format!("{node} sends two messages over connection {connection} at once"));
        }
        let wire = &self.wires[self.connections[&connection].wire];
        let (waits, window) = (wire.waits_for_commit[end], wire.window);
        let way = &mut self.connections.get_mut(&connection).expect("a connection that was made").ways[end];
        way.messages += usize::from(!is_ack);
        way.acks += usize::from(is_ack);
        way.changes += changes;
        if !waits {
            if way.under_way() + 1 < window {
                let delay = self.random_delay(1_000);
                self.agenda.after(delay, Event::Taken { connection, end, refused: None });
            } else {
                way.is_waiting = true;
            }
        }
        self.push(connection, end, Frame::Data(bytes));
    }

    // The engine.

    pub(super) fn order(&mut self, node: usize, connection: u64, work: Work) {
        self.queue(node, Job::Work { connection, work: Box::new(work) });
        let jobs = &self.nodes[node].running.as_ref().expect("a peer that runs").jobs;
        let of_this = |job: &&Job| matches!(job, Job::Work { connection: of, .. } if *of == connection);
        if jobs.iter().filter(of_this).count() > JOBS_MAX {
            self.fail("a queue", &format!("connection {connection} has too much work under way at {node}"));
        }
    }

    /// Beside the engine's work. Where no power is ever lost it takes no time.
    fn flush(&mut self, node: usize, connection: u64, work: Work) {
        if self.faults.power {
            self.nodes[node].flush();
        }
        let running = self.nodes[node].running.as_mut().expect("a peer that runs");
        let result = work.run(&mut running.engine).map_err(|error| error.to_string());
        if self.faults.power {
            let (boot, delay) = (self.nodes[node].boot, self.random_delay(20_000));
            self.agenda.after(delay, Event::Done { node, boot, connection, result });
        } else {
            self.done(node, self.nodes[node].boot, connection, result);
        }
    }

    fn queue(&mut self, node: usize, job: Job) {
        let running = self.nodes[node].running.as_mut().expect("a peer that runs");
        let place = running.jobs.len();
        // The first may be under way.
        let place = if self.options.lanes { self.rng.usize(place.min(1)..=place) } else { place };
        running.jobs.insert(place, job);
        if running.jobs.len() == 1 {
            self.work_soon(node);
        }
    }

    fn work_soon(&mut self, node: usize) {
        let (boot, slowness) = (self.nodes[node].boot, self.nodes[node].slowness);
        let delay = self.random_delay(1_000) * slowness;
        self.agenda.after(delay, Event::Work { node, boot });
    }

    pub(super) fn wake(&mut self, node: usize, boot: u64) {
        if self.nodes[node].original.is_some() {
            return self.check_local_changes(node);
        }
        if self.nodes[node].boot == boot && self.nodes[node].running.is_some() {
            self.queue(node, Job::Look);
        }
    }

    /// Does the next job, and then looks whether the database changed.
    pub(super) fn work(&mut self, node: usize, boot: u64) {
        if self.nodes[node].boot != boot {
            return;
        }
        let Some(running) = &mut self.nodes[node].running else { return };
        // It stays in the queue while it is done, so that the queue is not taken for an empty one.
        if let Some(Job::Work { connection, work }) =
            running.jobs.front_mut().map(|job| std::mem::replace(job, Job::Look))
        {
            let (name, is_merge, is_durable) = (format!("{work:?}"), work.is_merge(), work.is_open());
            let result = work.run(&mut running.engine);
            if is_durable && self.faults.power {
                self.nodes[node].flush();
            }
            if let Err(PeerError::Rewritten { common }) = &result {
                // What the error says is done, by somebody who reads it.
                let delay = self.random_delay(10_000_000);
                let (site, common) = (self.nodes[node].site, *common);
                self.agenda.after(delay, Event::Fork { node, site, common });
            }
            let result = result.map_err(|error| error.to_string());
            let failure = result.as_ref().err().cloned();
            match failure {
                Some(error) => self.note(format_args!("{node} for {connection}: {name}: {error}")),
                None => self.note(format_args!("{node} for {connection}: {name}")),
            }
            if is_merge {
                self.check(node, "after a merge");
            }
            let delay = self.random_delay(1_000);
            self.agenda.after(delay, Event::Done { node, boot, connection, result });
        }
        self.look(node);
        let running = self.nodes[node].running.as_mut().expect("a peer that runs");
        running.jobs.pop_front();
        if !running.jobs.is_empty() {
            self.work_soon(node);
        }
    }

    fn look(&mut self, node: usize) {
        let boot = self.nodes[node].boot;
        let running = self.nodes[node].running.as_mut().expect("a peer that runs");
        // Where it fails, the next look may succeed.
        let Ok(look) = Look::at(&running.engine) else { return };
        if look == running.look {
            return;
        }
        running.look = look;
        running.process.announce(look);
        let mut told = Vec::new();
        for (connection, session) in &mut running.sessions {
            if !std::mem::replace(&mut session.is_announcement_due, true) {
                told.push(*connection);
            }
        }
        for connection in told {
            let delay = self.random_delay(1_000);
            self.agenda.after(delay, Event::Announce { node, boot, connection });
        }
    }

    pub(super) fn announce(&mut self, node: usize, boot: u64, connection: u64) {
        if self.nodes[node].boot != boot {
            return;
        }
        let Some(running) = &mut self.nodes[node].running else { return };
        let Some(session) = running.sessions.get_mut(&connection) else { return };
        session.is_announcement_due = false;
        self.feed(node, connection, simulation::Event::Announced);
    }

    pub(super) fn timer(&mut self, node: usize, boot: u64, connection: u64, timer: Timer) {
        if self.nodes[node].boot == boot && self.nodes[node].running.is_some() {
            self.feed(node, connection, simulation::Event::Woken(timer));
        }
    }

    pub(super) fn done(&mut self, node: usize, boot: u64, connection: u64, result: Result<Done, String>) {
        if self.nodes[node].boot != boot || self.nodes[node].running.is_none() {
            return;
        }
        match result {
            Ok(done) => self.feed(node, connection, simulation::Event::Done(done)),
            Err(reason) => self.end_session(node, connection, &reason),
        }
    }
}

/// Reads wire bytes.
fn read(remote: Remote, bytes: &[u8]) -> Result<simulation::Event, DecodeError> {
    if remote.is_litemesh {
        return Ok(match v2::decode(bytes, &Limits::default())? {
            v2::Frame::Sync(request) => simulation::Event::Asked(request),
            v2::Frame::Message(message) => simulation::Event::Received(message),
            frame => unreachable!("nothing else is sent: {frame:?}"),
        });
    }
    let envelope = Envelope::parse(bytes)?;
    Ok(if envelope.kind() == "sync" {
        simulation::Event::Asked(envelope.sync_request()?)
    } else {
        simulation::Event::Received(envelope.message()?)
    })
}

/// Spoils a message. Gives what its reader says.
///
/// What is cut off or goes on after its end must be refused, and so must flags that nobody knows. Another bit may be a legal
/// message with another meaning; that never passes the checksums of a carrier, so only what the reader notices counts.
fn garble(rng: &mut Rng, remote: Remote, bytes: &[u8]) -> Option<String> {
    let mut garbled = bytes.to_vec();
    let must_be_refused = match rng.u8(..4) {
        0 => {
            garbled.truncate(rng.usize(..bytes.len()));
            true
        }
        // No JSON, whatever follows.
        1 => {
            let more = rng.usize(1..9);
            garbled.extend(std::iter::repeat_with(|| rng.u8(0x80..)).take(more));
            true
        }
        2 if remote.is_litemesh => {
            garbled[1] |= 1 << rng.u8(1..8);
            true
        }
        _ => {
            garbled[rng.usize(..bytes.len())] ^= 1 << rng.u8(..8);
            false
        }
    };
    let result = match remote.is_litemesh {
        true => v2::decode(&garbled, &Limits::default()).map(drop),
        false => read(remote, &garbled).map(drop),
    };
    assert!(result.is_err() || !must_be_refused, "a spoiled message was taken: {garbled:?}");
    result.err().map(|error| error.to_string())
}
