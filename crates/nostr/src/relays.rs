//! The relays of one pairing: what is published goes to all of them, and one that takes it is enough.
//!
//! Each relay has a line of its own, so that a dead or slow one costs nothing while another works. Nothing that a relay says is
//! believed: events are signed, and their order is that of the chain. What comes too fast is dropped here and fetched later.

mod ear;
mod gate;
mod questions;
mod sight;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use litemesh_proto::backoff_from;
use nostr::message::MachineReadablePrefix;
use nostr::{ClientMessage, Event, Filter, RelayUrl, SubscriptionId, Url};
use nostr_sdk::pool::RelayLimits;
use nostr_sdk::{Client, ClientOptions, Relay, RelayOptions, RelayStatus};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::ear::{Ear, ask};
use self::gate::{Gate, Gated};
use self::questions::{Answer, Questions, Verdict};
pub use self::sight::RelaySight;
use crate::PAYLOAD_CHARS_MAX;
use crate::looks::at;
use crate::pauses::Pauses;
use crate::signer::Identity;
use crate::under_way::{WINDOW_MAX, Window};

/// Events that wait for one relay, beside those that are under way: all that a stream has under way at once, so that a relay that takes one
/// at a time is not behind. One that is further behind is left out.
const JOBS_MAX: usize = WINDOW_MAX;

/// Events that came and wait to be looked at: a relay that brings more waits. They have 1.5 MiB each at most.
const HEARD_MAX: usize = 64;

/// What is under way from one relay inside of the client: as much as may wait behind it. The gate lets in half (`relays/gate.rs`).
const NOTIFICATIONS_MAX: usize = 64;

/// Longest event that is read, in bytes of JSON: one with the longest payload, which only originals send, and some room for its tags.
pub(crate) const EVENT_BYTES_MAX: usize = 3 << 19;

const _: () = assert!(PAYLOAD_CHARS_MAX + 64 * 1024 < EVENT_BYTES_MAX);

/// How long a relay may take to answer what is fetched: a page of 8 MiB over a line of 1 MB/s. Others are asked meanwhile, so a slow one only
/// counts as having nothing.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of content of what is fetched from one relay. Of more the newest are given up, which relays send first.
const FETCHED_BYTES_MAX: usize = 16 << 20;

/// How long a relay may take to say whether it takes an event, and to let us in: much longer than any takes that works. Events behind it wait
/// so long.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an event is given to a relay whose answer was missed: once more for a line that broke, and once for bad luck.
const TRIES_MAX: usize = 3;

/// How long an event waits for a relay that is being dialled.
const DIAL_PATIENCE: Duration = Duration::from_secs(3);

/// How long after a relay gave up a subscription it is asked again.
const RESUBSCRIBE_DELAY: Duration = Duration::from_secs(5);

/// How long a relay that says that it is given too much is given nothing, at first.
const RATE_PAUSE: Duration = Duration::from_millis(250);

/// How long slow relays may take to get what others have taken, when we hang up.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// How soon a relay that is gone is dialled again, at first.
const DIAL_DELAY: Duration = Duration::from_secs(1);

/// Filters by the name that they go by.
type Subscriptions = Vec<(&'static str, Filter)>;

/// What relays say.
pub(crate) enum Heard {
    /// An event, for the subscription of this name. Its signature is right; everything else is to be checked.
    Event(String, Box<Event>),
    /// A relay is there (again).
    Connected,
}

pub(crate) struct Relays {
    client: Client,
    lines: Vec<Line>,
    subscriptions: watch::Sender<Subscriptions>,
    missed: Arc<Notify>,
    cancel: CancellationToken,
    writers: TaskTracker,
    ears: TaskTracker,
}

/// What relays have of what they were asked for.
#[derive(Default)]
pub(crate) struct Fetched {
    pub(crate) events: Vec<Event>,
    /// One of them has answered: what is not there it does not have.
    pub(crate) is_answered: bool,
    /// One of them sent as many as it was asked for, and may have more.
    pub(crate) is_full: bool,
}

/// No relay has said that it has taken an event.
#[derive(Debug)]
pub(crate) struct Unpublished {
    /// What the last of them said, or did not.
    pub(crate) reason: String,
    /// Of all of them the latest in this order.
    pub(crate) fate: Fate,
}

/// What became of an event that no relay says that it has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// None could be given it now.
    Unsent,
    /// One did not want it.
    Refused,
    /// One may have taken it all the same.
    Unknown,
}

struct Line {
    relay: Relay,
    gate: Arc<Gate>,
    questions: Arc<Questions>,
    jobs: mpsc::Sender<Job>,
}

struct Job {
    event: Arc<Event>,
    answer: mpsc::Sender<Result<(), Unpublished>>,
}

impl Relays {
    /// Dials all of them, and subscribes. What they say comes out of the receiver. Nothing is published before a relay has heard what we
    /// are subscribed to: it would not pass on the answer.
    pub(crate) async fn connect(
        login: Identity,
        urls: &[RelayUrl],
        subscription: (&'static str, Filter),
        pauses: Pauses,
    ) -> Result<(Self, mpsc::Receiver<Heard>), String> {
        // Relays that ask for it learn that we have the key (NIP-42).
        let options = ClientOptions::new().automatic_authentication(true);
        let gates: HashMap<_, Arc<Gate>> = urls.iter().map(|url| (Url::from(url.clone()), Arc::default())).collect();
        let gated = Gated::new(gates.clone());
        let client = Client::builder().signer(login).websocket_transport(gated).opts(options).build();
        let mut limits = RelayLimits::default();
        limits.messages.max_size = Some(EVENT_BYTES_MAX as u32);
        // We dial again ourselves: the client's pauses hardly grow, and may be none at all.
        let options = RelayOptions::new().limits(limits).notification_channel_size(NOTIFICATIONS_MAX).reconnect(false);
        let (heard_sender, heard) = mpsc::channel(HEARD_MAX);
        let (subscriptions, _) = watch::channel(vec![subscription]);
        let missed = Arc::new(Notify::new());
        let cancel = CancellationToken::new();
        let (writers, ears) = (TaskTracker::new(), TaskTracker::new());
        let mut lines = Vec::with_capacity(urls.len());
        for url in urls {
            client.pool().add_relay(url, options.clone()).await.map_err(|error| error.to_string())?;
            let relay = client.pool().relay(url).await.map_err(|error| error.to_string())?;
            let (jobs, jobs_taken) = mpsc::channel(JOBS_MAX);
            let (is_ready, ready) = watch::channel(false);
            let (logins, logged_in) = watch::channel(());
            let questions = Arc::new(Questions::default());
            let gate = gates.get(url.into()).cloned().unwrap_or_default();
            let dialler = dial(relay.clone(), ready.clone(), pauses, cancel.clone());
            let pen = Pen { relay: relay.clone(), questions: questions.clone(), ready, logged_in };
            writers.spawn(write(pen, jobs_taken, pauses, cancel.clone()));
            let ear = Ear {
                relay: relay.clone(),
                gate: gate.clone(),
                questions: questions.clone(),
                subscriptions: subscriptions.subscribe(),
                heard: heard_sender.clone(),
                missed: missed.clone(),
                is_ready,
                logins,
                resubscribe_delay: pauses.of(RESUBSCRIBE_DELAY),
                cancel: cancel.clone(),
            };
            // Before it is dialled: afterwards it could be connected already.
            let notifications = relay.notifications();
            ears.spawn(ear.listen(notifications));
            ears.spawn(dialler);
            lines.push(Line { relay, gate, questions, jobs });
        }
        Ok((Self { client, lines, subscriptions, missed, cancel, writers, ears }, heard))
    }

    /// Publishes to all relays. Returns as soon as one has taken it; the others go on.
    ///
    /// # Errors
    ///
    /// None has said so.
    pub(crate) async fn publish(&self, event: &Event) -> Result<(), Unpublished> {
        let event = Arc::new(event.clone());
        let (answer, mut answers) = mpsc::channel(self.lines.len().max(1));
        for line in &self.lines {
            // One that is full does not keep up.
            let _ = line.jobs.try_send(Job { event: event.clone(), answer: answer.clone() });
        }
        drop(answer);
        let mut unpublished = Unpublished { reason: "no relay keeps up".to_owned(), fate: Fate::Unsent };
        while let Some(answer) = answers.recv().await {
            match answer {
                Ok(()) => return Ok(()),
                Err(Unpublished { reason, fate }) => {
                    unpublished = Unpublished { reason, fate: unpublished.fate.max(fate) };
                }
            }
        }
        Err(unpublished)
    }

    /// Subscribes at all relays, also those that come back later.
    pub(crate) fn subscribe(&self, name: &'static str, filter: Filter) {
        self.subscriptions.send_modify(|subscriptions| {
            subscriptions.retain(|(known, _)| *known != name);
            subscriptions.push((name, filter));
        });
    }

    /// Asks all relays that are there, for at most `limit` events each, until what they have is enough or all have answered. Once one
    /// has answered, the others may take as much longer as `patience` is: one that says nothing must not hold up what others have next.
    pub(crate) async fn fetch(
        &self,
        filter: Filter,
        limit: usize,
        patience: Duration,
        is_enough: impl Fn(&[Event]) -> bool,
    ) -> Fetched {
        let filter = filter.limit(limit);
        let there = self.lines.iter().filter(|line| line.relay.is_connected());
        let mut asking: FuturesUnordered<_> = there.map(|line| fetch_from(line, filter.clone(), limit)).collect();
        let mut fetched = Fetched::default();
        let mut until = None;
        loop {
            let from_one = tokio::select! {
                from_one = asking.next() => from_one,
                () = at(until) => None,
            };
            let Some(from_one) = from_one else { break };
            fetched.is_answered |= from_one.is_answered;
            fetched.is_full |= from_one.is_full;
            if from_one.is_answered {
                until.get_or_insert_with(|| Instant::now() + patience);
            }
            fetched.events.extend(from_one.events);
            if is_enough(&fetched.events) {
                break;
            }
        }
        fetched
    }

    /// Whether one of them is there.
    pub(crate) fn is_connected(&self) -> bool {
        self.lines.iter().any(|line| line.relay.is_connected())
    }

    /// For people who wait for one of them.
    pub(crate) fn sight(&self) -> RelaySight {
        RelaySight::new(self.lines.iter().map(|line| (line.relay.clone(), line.gate.clone())).collect())
    }

    /// Something that came had to be dropped.
    pub(crate) fn missed(&self) -> Arc<Notify> {
        self.missed.clone()
    }

    /// Hangs up, once slow relays have got what others have taken, or after a while.
    pub(crate) async fn close(mut self) {
        self.lines.clear();
        self.writers.close();
        // Whichever comes first.
        let _ = tokio::time::timeout(CLOSE_PATIENCE, self.writers.wait()).await;
        self.cancel.cancel();
        self.client.shutdown().await;
        self.writers.wait().await;
        self.ears.close();
        self.ears.wait().await;
    }
}

async fn fetch_from(line: &Line, filter: Filter, limit: usize) -> Fetched {
    let id = SubscriptionId::generate();
    let mut answers = line.questions.ask(id.clone(), filter.clone(), limit);
    let asked = Asked { line, id };
    let mut events: VecDeque<Event> = VecDeque::new();
    let (mut is_answered, mut count) = (false, 0);
    if ask(&line.relay, &asked.id, &filter) {
        let mut bytes = 0;
        let listening = async {
            while let Some(answer) = answers.recv().await {
                match answer {
                    Answer::Event(event) => {
                        count += 1;
                        bytes += event.content.len();
                        events.push_back(*event);
                        while bytes > FETCHED_BYTES_MAX && events.len() > 1 {
                            bytes -= events.pop_front().map_or(0, |event| event.content.len());
                        }
                    }
                    Answer::End => is_answered = true,
                }
            }
        };
        if tokio::time::timeout(FETCH_TIMEOUT, listening).await.is_err() {
            debug!(relay = %line.relay.url(), "fetching takes too long");
        }
    }
    Fetched { events: events.into(), is_answered, is_full: count >= limit }
}

/// A relay is being asked. It is told when nobody waits for the answer any more, also where it has answered.
struct Asked<'a> {
    line: &'a Line,
    id: SubscriptionId,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.line.questions.forget(&self.id);
        // In vain where it is gone, and then of no use.
        let _ = self.line.relay.send_msg(ClientMessage::Close(Cow::Borrowed(&self.id)));
    }
}

/// Dials one relay, and again whenever it is gone.
async fn dial(relay: Relay, mut ready: watch::Receiver<bool>, pauses: Pauses, cancel: CancellationToken) {
    let mut attempts = 0;
    let work = async {
        loop {
            relay.connect();
            // Its status is newer than what we are told of it.
            while relay.status() != RelayStatus::Terminated {
                if relay.is_connected() {
                    attempts = 0;
                }
                // The sender lives until all of this is cancelled.
                if ready.changed().await.is_err() {
                    return;
                }
            }
            debug!(relay = %relay.url(), attempts, "not connected, dialling again later");
            tokio::time::sleep(backoff_from(pauses.of(DIAL_DELAY), attempts, fastrand::f64())).await;
            attempts = attempts.saturating_add(1);
        }
    };
    // A dropped branch is a connection that nobody needs any more.
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

/// Publishes at one relay, some events at once. One that is asked to slow down gets one event at a time and pauses, and then more again.
async fn write(pen: Pen, mut jobs: mpsc::Receiver<Job>, pauses: Pauses, cancel: CancellationToken) {
    let work = async {
        let (mut window, mut complaints, mut pause) = (Window::new(WINDOW_MAX), 0, None);
        let mut sending = FuturesUnordered::new();
        let (mut ready, mut is_open) = (pen.ready.clone(), true);
        while is_open || !sending.is_empty() {
            let has_room = pause.is_none() && sending.len() < window.size();
            // Losing a branch loses nothing: what is being sent stays where it is.
            tokio::select! {
                job = jobs.recv(), if is_open && has_room => match job {
                    Some(job) => {
                        // Whichever comes first.
                        let _ = tokio::time::timeout(DIAL_PATIENCE, ready.wait_for(|is_ready| *is_ready)).await;
                        // Before the next one is: a relay gets them in the order in which they are published.
                        let given = pen.give(&job.event);
                        sending.push(pen.send(job, given));
                    }
                    None => is_open = false,
                },
                Some(result) = sending.next() => match result {
                    Ok(()) => {
                        complaints = 0;
                        window.taken();
                    }
                    Err(MachineReadablePrefix::RateLimited) => {
                        window.refused();
                        // Each of those that were under way says the same.
                        if pause.is_none() {
                            let delay = backoff_from(pauses.of(RATE_PAUSE), complaints, fastrand::f64());
                            pause = Some(Instant::now() + delay);
                            complaints = complaints.saturating_add(1);
                        }
                    }
                    Err(_) => {}
                },
                () = at(pause) => pause = None,
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

/// An event was given to a relay, which will say whether it takes it; or why it was not.
type Given = Result<oneshot::Receiver<Verdict>, String>;

/// Publishes at one relay.
struct Pen {
    relay: Relay,
    questions: Arc<Questions>,
    ready: watch::Receiver<bool>,
    logged_in: watch::Receiver<()>,
}

impl Pen {
    /// Gives the relay an event. Its verdict is to come.
    fn give(&self, event: &Event) -> Given {
        let verdict = self.questions.await_verdict(event.id);
        if !self.relay.is_connected() {
            return Err("not connected".to_owned());
        }
        let sent = self.relay.send_msg(ClientMessage::Event(Cow::Borrowed(event)));
        sent.map(|()| verdict).map_err(|error| error.to_string())
    }

    /// Publishes an event that the relay was given, and says why not.
    async fn send(&self, Job { event, answer }: Job, given: Given) -> Result<(), MachineReadablePrefix> {
        let judged = self.judged(&event, given).await;
        let refused = |verdict: &Verdict| MachineReadablePrefix::parse(&verdict.message);
        let (result, why) = match judged {
            // Some refuse what they have.
            Ok(verdict) if verdict.is_taken || refused(&verdict) == Some(MachineReadablePrefix::Duplicate) => {
                (Ok(()), Ok(()))
            }
            Ok(verdict) => {
                let why = refused(&verdict).unwrap_or(MachineReadablePrefix::Error);
                let fate = if why == MachineReadablePrefix::RateLimited { Fate::Unsent } else { Fate::Refused };
                (Err(Unpublished { reason: verdict.message, fate }), Err(why))
            }
            Err(unpublished) => (Err(unpublished), Err(MachineReadablePrefix::Error)),
        };
        let url = self.relay.url();
        let result = result.map_err(|Unpublished { reason, fate }| {
            let reason = if reason.is_empty() { "refused, and not said why".to_owned() } else { reason };
            Unpublished { reason: format!("{url}: {reason}"), fate }
        });
        // Nobody listens any more where another relay was faster.
        let _ = answer.try_send(result);
        why
    }

    /// What the relay says of an event. It is given the event again where it wants to know first who we are, and where its answer was
    /// missed.
    async fn judged(&self, event: &Event, mut given: Given) -> Result<Verdict, Unpublished> {
        let mut logged_in = self.logged_in.clone();
        // Logins over earlier connections.
        logged_in.mark_unchanged();
        let (mut has_asked_for_login, mut fate) = (false, Fate::Unsent);
        for _ in 0..TRIES_MAX {
            let verdict = match given {
                Ok(verdict) => tokio::time::timeout(VERDICT_TIMEOUT, verdict).await,
                Err(reason) => return Err(Unpublished { reason, fate }),
            };
            let Ok(verdict) = verdict else {
                return Err(Unpublished { reason: "it does not answer".to_owned(), fate: Fate::Unknown });
            };
            if let Ok(verdict) = verdict {
                let said = MachineReadablePrefix::parse(&verdict.message);
                let wants_login = !verdict.is_taken && said == Some(MachineReadablePrefix::AuthRequired);
                if !wants_login || std::mem::replace(&mut has_asked_for_login, true) {
                    return Ok(verdict);
                }
                // It asks for it itself, and the client answers. It may have done so already.
                if !matches!(tokio::time::timeout(VERDICT_TIMEOUT, logged_in.changed()).await, Ok(Ok(()))) {
                    return Ok(verdict);
                }
            } else {
                fate = Fate::Unknown;
            }
            given = self.give(event);
        }
        Err(Unpublished { reason: "what it said was missed".to_owned(), fate })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use nostr::Keys;
    use nostr::util::BoxedFuture;
    use nostr_relay_builder::builder::{PolicyResult, QueryPolicy};
    use nostr_relay_builder::{LocalRelay, RelayBuilder};

    use super::*;
    use crate::CHANGES_KIND;

    #[derive(Debug)]
    struct Mute;

    impl QueryPolicy for Mute {
        fn admit_query<'a>(&'a self, _: &'a Filter, _: &'a SocketAddr) -> BoxedFuture<'a, PolicyResult> {
            Box::pin(std::future::pending())
        }
    }

    /// `known-failures.md` B2, B6: connected, and says nothing.
    #[tokio::test]
    async fn a_relay_that_answers_nothing_is_waited_for_no_longer_than_is_said() {
        let running = [RelayBuilder::default(), RelayBuilder::default().query_policy(Mute)].map(LocalRelay::new);
        let mut urls = Vec::new();
        for relay in &running {
            relay.run().await.unwrap();
            urls.push(relay.url().await);
        }
        let filter = Filter::new().kind(CHANGES_KIND);
        let (relays, mut heard) =
            Relays::connect(Keys::generate().into(), &urls, ("all", filter.clone()), Pauses::USUAL).await.unwrap();
        for _ in &running {
            assert!(matches!(heard.recv().await, Some(Heard::Connected)));
        }
        let fetch = |patience| relays.fetch(filter.clone(), 1, patience, |_| false);
        let fetched = tokio::select! {
            biased;
            _ = fetch(FETCH_TIMEOUT) => panic!("both have answered"),
            fetched = fetch(Duration::ZERO) => fetched,
        };
        assert!(fetched.is_answered && fetched.events.is_empty());
        relays.close().await;
    }
}
