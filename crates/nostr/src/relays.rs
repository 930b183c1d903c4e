//! The relays of one pairing: what is published goes to all of them, and one that takes it is enough.
//!
//! Each relay has a line of its own, so that a dead or slow one costs nothing while another works. Nothing that a relay says is
//! believed: events are signed, and their order is that of the chain. What comes too fast is dropped here and fetched later.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use litemesh_proto::backoff_from;
use nostr::message::MachineReadablePrefix;
use nostr::{Event, Filter, RelayMessage, RelayUrl, SubscriptionId};
use nostr_sdk::pool::RelayLimits;
use nostr_sdk::pool::relay::{self, RelayNotification, ReqExitPolicy};
use nostr_sdk::{Client, ClientOptions, Relay, RelayOptions, RelayStatus, SubscribeOptions};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::PAYLOAD_CHARS_MAX;
use crate::looks::at;
use crate::pauses::Pauses;
use crate::signer::Identity;
use crate::under_way::{WINDOW_MAX, Window};

/// Events that wait for one relay, beside those that are under way: all that a stream has under way at once, so that a relay that takes one
/// at a time is not behind. One that is further behind is left out.
const JOBS_MAX: usize = WINDOW_MAX;

/// Events that came and wait to be looked at.
const HEARD_MAX: usize = 64;

/// What is under way from one relay inside of the client.
const NOTIFICATIONS_MAX: usize = 64;

/// Longest event that is read, in bytes of JSON: one with the longest payload, which only originals send, and some room for its tags.
pub(crate) const EVENT_BYTES_MAX: usize = 3 << 19;

const _: () = assert!(PAYLOAD_CHARS_MAX + 64 * 1024 < EVENT_BYTES_MAX);

/// How long a relay may take to answer what is fetched.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

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
}

struct Line {
    relay: Relay,
    jobs: mpsc::Sender<Job>,
}

struct Job {
    event: Arc<Event>,
    answer: mpsc::Sender<Result<(), String>>,
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
        let client = Client::builder().signer(login).opts(options).build();
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
            let dialler = dial(relay.clone(), ready.clone(), pauses, cancel.clone());
            let pen = Pen { relay: relay.clone(), ready };
            writers.spawn(write(pen, jobs_taken, pauses, cancel.clone()));
            let ear = Ear {
                relay: relay.clone(),
                subscriptions: subscriptions.subscribe(),
                heard: heard_sender.clone(),
                missed: missed.clone(),
                is_ready,
                resubscribe_delay: pauses.of(RESUBSCRIBE_DELAY),
                cancel: cancel.clone(),
            };
            // Before it is dialled: afterwards it could be connected already.
            let notifications = relay.notifications();
            ears.spawn(ear.listen(notifications));
            ears.spawn(dialler);
            lines.push(Line { relay, jobs });
        }
        Ok((Self { client, lines, subscriptions, missed, cancel, writers, ears }, heard))
    }

    /// Publishes to all relays. Returns as soon as one has taken it; the others go on.
    ///
    /// # Errors
    ///
    /// None has; what the last of them said.
    pub(crate) async fn publish(&self, event: &Event) -> Result<(), String> {
        let event = Arc::new(event.clone());
        let (answer, mut answers) = mpsc::channel(self.lines.len().max(1));
        for line in &self.lines {
            // One that is full does not keep up.
            let _ = line.jobs.try_send(Job { event: event.clone(), answer: answer.clone() });
        }
        drop(answer);
        let mut reason = "no relay keeps up".to_owned();
        while let Some(answer) = answers.recv().await {
            match answer {
                Ok(()) => return Ok(()),
                Err(said) => reason = said,
            }
        }
        Err(reason)
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
        let mut asking: FuturesUnordered<_> =
            there.map(|line| fetch_from(line.relay.clone(), filter.clone(), limit)).collect();
        let mut fetched = Fetched::default();
        let mut until = None;
        loop {
            let from_one = tokio::select! {
                from_one = asking.next() => from_one,
                () = at(until) => None,
            };
            let Some(from_one) = from_one else { break };
            fetched.is_answered |= from_one.is_answered;
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

async fn fetch_from(relay: Relay, filter: Filter, limit: usize) -> Fetched {
    let mut fetched = Fetched::default();
    let began = Instant::now();
    let Ok(mut stream) = relay.stream_events(filter, FETCH_TIMEOUT, ReqExitPolicy::ExitOnEOSE).await else {
        return fetched;
    };
    while fetched.events.len() < limit {
        match stream.next().await {
            Some(Ok(event)) => fetched.events.push(event),
            Some(Err(error)) => {
                debug!(relay = %relay.url(), %error, "fetching");
                return fetched;
            }
            None => break,
        }
    }
    // The client does not say whether it was the end of what is stored, or of its patience.
    fetched.is_answered = began.elapsed() < FETCH_TIMEOUT && relay.is_connected();
    fetched
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
        let mut is_open = true;
        while is_open || !sending.is_empty() {
            let has_room = pause.is_none() && sending.len() < window.size();
            // Losing a branch loses nothing: what is being sent stays where it is.
            tokio::select! {
                job = jobs.recv(), if is_open && has_room => match job {
                    Some(job) => sending.push(pen.send(job)),
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

/// Publishes at one relay.
struct Pen {
    relay: Relay,
    ready: watch::Receiver<bool>,
}

impl Pen {
    /// Publishes an event, and says why not.
    async fn send(&self, Job { event, answer }: Job) -> Result<(), MachineReadablePrefix> {
        let relay = &self.relay;
        // Whichever comes first.
        let _ = tokio::time::timeout(DIAL_PATIENCE, self.ready.clone().wait_for(|is_ready| *is_ready)).await;
        let refused = |error: &relay::Error| match error {
            relay::Error::RelayMessage(said) => MachineReadablePrefix::parse(said),
            _ => None,
        };
        let result = match relay.send_event(&event).await {
            // Some refuse what they have.
            Err(error) if refused(&error) == Some(MachineReadablePrefix::Duplicate) => Ok(()),
            result => result.map(drop),
        };
        let why = result.as_ref().err().map(|error| refused(error).unwrap_or(MachineReadablePrefix::Error));
        // Nobody listens any more where another relay was faster.
        let _ = answer.try_send(result.map_err(|error| format!("{}: {error}", relay.url())));
        why.map_or(Ok(()), Err)
    }
}

/// Listens at one relay.
struct Ear {
    relay: Relay,
    subscriptions: watch::Receiver<Subscriptions>,
    heard: mpsc::Sender<Heard>,
    missed: Arc<Notify>,
    /// It is connected, and has heard what we are subscribed to.
    is_ready: watch::Sender<bool>,
    resubscribe_delay: Duration,
    cancel: CancellationToken,
}

impl Ear {
    async fn listen(mut self, mut notifications: broadcast::Receiver<RelayNotification>) {
        let mut again = None;
        loop {
            // Losing a branch loses nothing: notifications stay in their channel.
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                () = at(again) => {
                    again = None;
                    self.subscribe().await;
                }
                changed = self.subscriptions.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.subscribe().await;
                }
                notification = notifications.recv() => match notification {
                    Ok(RelayNotification::Message { message: RelayMessage::Event { subscription_id, event } }) => {
                        self.pass_on(Heard::Event(subscription_id.to_string(), Box::new(event.into_owned())));
                    }
                    Ok(RelayNotification::Message { message: RelayMessage::Closed { message, .. } }) => {
                        debug!(relay = %self.relay.url(), %message, "a subscription was closed");
                        again = Some(Instant::now() + self.resubscribe_delay);
                    }
                    Ok(RelayNotification::RelayStatus { status: RelayStatus::Connected }) => {
                        self.subscribe().await;
                        self.is_ready.send_replace(true);
                        self.pass_on(Heard::Connected);
                    }
                    Ok(RelayNotification::RelayStatus { .. }) => {
                        self.is_ready.send_replace(false);
                    }
                    // It refused what we asked for before.
                    Ok(RelayNotification::Authenticated) => self.subscribe().await,
                    Ok(RelayNotification::Shutdown) | Err(broadcast::error::RecvError::Closed) => return,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        // What was dropped may have said that it is gone, or there again. Then the client has subscribed again; doing so here
                        // would bring even more.
                        self.is_ready.send_replace(self.relay.is_connected());
                        self.missed.notify_one();
                    }
                },
            }
        }
    }

    async fn subscribe(&mut self) {
        let subscriptions = self.subscriptions.borrow_and_update().clone();
        for (name, filter) in subscriptions {
            let subscribing =
                self.relay.subscribe_with_id(SubscriptionId::new(name), filter, SubscribeOptions::default());
            if let Err(error) = subscribing.await {
                // Where it is not connected, we come back when it is.
                debug!(relay = %self.relay.url(), %error, "subscribing");
            }
        }
    }

    fn pass_on(&self, heard: Heard) {
        if self.heard.try_send(heard).is_err() {
            self.missed.notify_one();
        }
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
