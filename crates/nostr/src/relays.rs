//! The relays of one pairing: what is published goes to all of them, and one that takes it is enough.
//!
//! Each relay has a line of its own, so that a dead or slow one costs nothing while another works. Nothing that a relay says is
//! believed: events are signed, and their order is that of the chain. What comes too fast is dropped here and fetched later.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use litemesh_proto::backoff_from;
use nostr::{Event, Filter, RelayMessage, RelayUrl, SubscriptionId};
use nostr_sdk::pool::RelayLimits;
use nostr_sdk::pool::relay::{RelayNotification, ReqExitPolicy};
use nostr_sdk::{Client, ClientOptions, Relay, RelayOptions, RelayStatus, SubscribeOptions};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::signer::Identity;

/// Events that wait for one relay. A relay that is further behind is left out.
const JOBS_MAX: usize = 16;

/// Events that came and wait to be looked at.
const HEARD_MAX: usize = 64;

/// What is under way from one relay inside of the client.
const NOTIFICATIONS_MAX: usize = 64;

/// Longest event of a Litemesh peer, in bytes of JSON: a part of a message, or a request that names half a million sites.
const EVENT_BYTES_MAX: u32 = 1 << 20;

/// Longest event of an original peer: one large value.
const EVENT_BYTES_MAX_V1: u32 = 3 << 19;

/// How long a relay may take to answer what is fetched.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an event waits for a relay that is being dialled.
const DIAL_PATIENCE: Duration = Duration::from_secs(3);

/// How long after a relay gave up a subscription it is asked again.
const RESUBSCRIBE_DELAY: Duration = Duration::from_secs(5);

/// How long slow relays may take to get what others have taken, when we hang up.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// How long a relay may take to answer a dial.
const DIAL_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// Dials all of them. What they say comes out of the receiver.
    pub(crate) async fn connect(
        login: Identity,
        urls: &[RelayUrl],
        is_litemesh: bool,
    ) -> Result<(Self, mpsc::Receiver<Heard>), String> {
        // Relays that ask for it learn that we have the key (NIP-42).
        let options = ClientOptions::new().automatic_authentication(true);
        let client = Client::builder().signer(login).opts(options).build();
        let mut limits = RelayLimits::default();
        limits.messages.max_size = Some(if is_litemesh { EVENT_BYTES_MAX } else { EVENT_BYTES_MAX_V1 });
        // We dial again ourselves: the client's pauses hardly grow, and may be none at all.
        let options = RelayOptions::new().limits(limits).notification_channel_size(NOTIFICATIONS_MAX).reconnect(false);
        let (heard_sender, heard) = mpsc::channel(HEARD_MAX);
        let (subscriptions, _) = watch::channel(Vec::new());
        let missed = Arc::new(Notify::new());
        let cancel = CancellationToken::new();
        let (writers, ears) = (TaskTracker::new(), TaskTracker::new());
        let mut lines = Vec::with_capacity(urls.len());
        for url in urls {
            client.pool().add_relay(url, options.clone()).await.map_err(|error| error.to_string())?;
            let relay = client.pool().relay(url).await.map_err(|error| error.to_string())?;
            let (jobs, jobs_taken) = mpsc::channel(JOBS_MAX);
            let (is_there, _) = watch::channel(false);
            writers.spawn(write(relay.clone(), is_there.subscribe(), jobs_taken, cancel.clone()));
            let dialler = dial(relay.clone(), is_there.subscribe(), cancel.clone());
            let ear = Ear {
                relay: relay.clone(),
                is_there,
                subscriptions: subscriptions.subscribe(),
                heard: heard_sender.clone(),
                missed: missed.clone(),
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

    /// Asks all relays that are there, for at most `limit` events each, until what they have is enough or all have answered.
    pub(crate) async fn fetch(&self, filter: Filter, limit: usize, is_enough: impl Fn(&[Event]) -> bool) -> Fetched {
        let filter = filter.limit(limit);
        let there = self.lines.iter().filter(|line| line.relay.is_connected());
        let mut asking: FuturesUnordered<_> =
            there.map(|line| fetch_from(line.relay.clone(), filter.clone(), limit)).collect();
        let mut fetched = Fetched::default();
        while let Some(from_one) = asking.next().await {
            fetched.is_answered |= from_one.is_answered;
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
    let began = tokio::time::Instant::now();
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
async fn dial(relay: Relay, mut is_there: watch::Receiver<bool>, cancel: CancellationToken) {
    let mut attempts = 0;
    let work = async {
        loop {
            match relay.try_connect(DIAL_TIMEOUT).await {
                Ok(()) => attempts = 0,
                Err(error) => debug!(relay = %relay.url(), %error, attempts, "dialling"),
            }
            // Its status is newer than what we are told of it. The sender lives as long as this: both end together.
            while relay.is_connected() && is_there.changed().await.is_ok() {}
            tokio::time::sleep(backoff_from(DIAL_DELAY, attempts, fastrand::f64())).await;
            attempts = attempts.saturating_add(1);
        }
    };
    // A dropped branch is a connection that nobody needs any more.
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

/// Publishes at one relay, one event after another.
async fn write(
    relay: Relay,
    mut is_there: watch::Receiver<bool>,
    mut jobs: mpsc::Receiver<Job>,
    cancel: CancellationToken,
) {
    let work = async {
        while let Some(Job { event, answer }) = jobs.recv().await {
            if !relay.is_connected() {
                // Whichever comes first.
                let _ = tokio::time::timeout(DIAL_PATIENCE, is_there.wait_for(|is_there| *is_there)).await;
            }
            let result = relay.send_event(&event).await;
            // Nobody listens any more where another relay was faster.
            let _ = answer.try_send(result.map(drop).map_err(|error| format!("{}: {error}", relay.url())));
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

/// Listens at one relay.
struct Ear {
    relay: Relay,
    /// Whether it is connected, for who dials and who publishes.
    is_there: watch::Sender<bool>,
    subscriptions: watch::Receiver<Subscriptions>,
    heard: mpsc::Sender<Heard>,
    missed: Arc<Notify>,
    cancel: CancellationToken,
}

impl Ear {
    async fn listen(mut self, mut notifications: broadcast::Receiver<RelayNotification>) {
        let mut again = None;
        loop {
            let due = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Losing a branch loses nothing: notifications stay in their channel.
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                () = due => {
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
                        again = Some(tokio::time::Instant::now() + RESUBSCRIBE_DELAY);
                    }
                    Ok(RelayNotification::RelayStatus { status: RelayStatus::Connected }) => {
                        self.is_there.send_replace(true);
                        self.subscribe().await;
                        self.pass_on(Heard::Connected);
                    }
                    Ok(RelayNotification::RelayStatus { .. }) => self.look_whether_it_is_there(),
                    // It refused what we asked for before.
                    Ok(RelayNotification::Authenticated) => self.subscribe().await,
                    Ok(RelayNotification::Shutdown) | Err(broadcast::error::RecvError::Closed) => return,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.look_whether_it_is_there();
                        self.missed.notify_one();
                    }
                },
            }
        }
    }

    fn look_whether_it_is_there(&self) {
        self.is_there.send_replace(self.relay.is_connected());
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
