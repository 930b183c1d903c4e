//! The one who listens to a relay: subscribes there, passes on what comes, and hands answers to who asked.
//!
//! The client keeps a bounded number of what the relay said. Where that was not enough, though the [`Gate`] keeps it from that, something
//! is missing, and may have been anything: nothing that is open counts as answered, and the relay is subscribed to again.

use std::sync::Arc;
use std::time::Duration;

use nostr::{ClientMessage, Filter, RelayMessage, SubscriptionId};
use nostr_sdk::pool::relay::RelayNotification;
use nostr_sdk::{Relay, RelayStatus, SubscribeOptions};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::gate::Gate;
use super::questions::{Questions, Verdict};
use super::{Heard, Subscriptions};
use crate::looks::at;

pub(super) struct Ear {
    pub(super) relay: Relay,
    pub(super) gate: Arc<Gate>,
    pub(super) questions: Arc<Questions>,
    pub(super) subscriptions: watch::Receiver<Subscriptions>,
    pub(super) heard: mpsc::Sender<Heard>,
    pub(super) missed: Arc<Notify>,
    /// It is connected, and has heard what we are subscribed to.
    pub(super) is_ready: watch::Sender<bool>,
    /// Changes whenever the relay has let us in.
    pub(super) logins: watch::Sender<()>,
    pub(super) resubscribe_delay: Duration,
    pub(super) cancel: CancellationToken,
}

/// How much of what is stored a subscription begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// As the filter says.
    All,
    /// The newest event, which shows whether something is missing. All of it would bring even more, where too much came already.
    Newest,
}

impl Ear {
    pub(super) async fn listen(mut self, mut notifications: broadcast::Receiver<RelayNotification>) {
        let (mut closed, mut lagged) = (None, None);
        loop {
            self.gate.set_waiting(notifications.len());
            // Losing a branch loses nothing: notifications stay in their channel.
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                () = at(closed) => {
                    closed = None;
                    self.subscribe(Stored::All).await;
                }
                () = at(lagged) => {
                    lagged = None;
                    self.subscribe(Stored::Newest).await;
                }
                changed = self.subscriptions.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.subscribe(Stored::All).await;
                }
                () = self.gate.shut() => {}
                notification = notifications.recv() => match notification {
                    Ok(RelayNotification::Message { message }) => {
                        if self.hear(message) {
                            closed = Some(Instant::now() + self.resubscribe_delay);
                        }
                    }
                    Ok(RelayNotification::RelayStatus { status: RelayStatus::Connected }) => {
                        self.subscribe(Stored::All).await;
                        self.is_ready.send_replace(true);
                        self.pass_on(Heard::Connected);
                    }
                    Ok(RelayNotification::RelayStatus { status }) => {
                        self.is_ready.send_replace(false);
                        if matches!(status, RelayStatus::Disconnected | RelayStatus::Terminated) {
                            self.questions.lost();
                        }
                    }
                    Ok(RelayNotification::Authenticated) => {
                        // It refused what we asked for before.
                        self.subscribe(Stored::All).await;
                        for (id, filter) in self.questions.logged_in() {
                            ask(&self.relay, &id, &filter);
                        }
                        self.logins.send_replace(());
                    }
                    Ok(RelayNotification::Shutdown) | Err(broadcast::error::RecvError::Closed) => return,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(count)) => {
                        debug!(relay = %self.relay.url(), count, "what a relay said was missed");
                        // It may have been that the relay is gone, or there again, or gives up a subscription.
                        self.is_ready.send_replace(self.relay.is_connected());
                        self.questions.lost();
                        self.missed.notify_one();
                        lagged.get_or_insert_with(|| Instant::now() + self.resubscribe_delay);
                    }
                },
            }
        }
    }

    /// Says whether a subscription was given up.
    fn hear(&self, message: RelayMessage<'static>) -> bool {
        match message {
            RelayMessage::Event { subscription_id, event } => {
                let id = subscription_id.as_ref();
                if self.is_subscribed(id) {
                    self.pass_on(Heard::Event(id.to_string(), Box::new(event.into_owned())));
                } else {
                    self.questions.event(id, event.into_owned());
                }
            }
            RelayMessage::EndOfStoredEvents(id) => self.questions.end(&id),
            RelayMessage::Ok { event_id, status, message } => {
                let verdict = || Verdict { is_taken: status, message: message.as_ref().to_owned() };
                self.questions.judged(&event_id, verdict);
            }
            RelayMessage::Closed { subscription_id, message } => {
                debug!(relay = %self.relay.url(), %message, "a subscription was closed");
                return !self.questions.closed(&subscription_id, &message) && self.is_subscribed(&subscription_id);
            }
            _ => {}
        }
        false
    }

    fn is_subscribed(&self, id: &SubscriptionId) -> bool {
        self.subscriptions.borrow().iter().any(|(name, _)| *name == id.as_str())
    }

    async fn subscribe(&mut self, stored: Stored) {
        let subscriptions = self.subscriptions.borrow_and_update().clone();
        for (name, filter) in subscriptions {
            let filter = if stored == Stored::Newest { filter.limit(1) } else { filter };
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

/// Asks a relay. Says whether it could be asked.
pub(super) fn ask(relay: &Relay, id: &SubscriptionId, filter: &Filter) -> bool {
    let asked = relay.send_msg(ClientMessage::req(id.clone(), [filter.clone()]));
    if let Err(error) = &asked {
        debug!(relay = %relay.url(), %error, "asking");
    }
    asked.is_ok()
}

#[cfg(test)]
mod tests {
    use nostr::{EventId, Kind};
    use nostr_sdk::{Client, RelayStatus};

    use super::super::questions::Answer;
    use super::*;

    /// An ear at a relay that nobody dials, and what it hears.
    async fn ear() -> (Ear, mpsc::Receiver<Heard>, watch::Sender<Subscriptions>) {
        let client = Client::default();
        client.add_relay("ws://127.0.0.1:9").await.unwrap();
        let relay = client.relay("ws://127.0.0.1:9").await.unwrap();
        let (subscriptions, subscribed) = watch::channel(vec![("all", Filter::new().kind(Kind::Custom(4680)))]);
        let (heard, hears) = mpsc::channel(8);
        let ear = Ear {
            relay,
            gate: Arc::default(),
            questions: Arc::default(),
            subscriptions: subscribed,
            heard,
            missed: Arc::default(),
            is_ready: watch::Sender::new(true),
            logins: watch::Sender::default(),
            resubscribe_delay: Duration::ZERO,
            cancel: CancellationToken::new(),
        };
        (ear, hears, subscriptions)
    }

    /// Else what a relay has would count as what it has not, and what it took as what it did not take.
    #[tokio::test]
    async fn after_something_was_missed_nothing_counts_as_answered() {
        let (ear, _hears, _subscriptions) = ear().await;
        let (questions, missed, is_ready) = (ear.questions.clone(), ear.missed.clone(), ear.is_ready.subscribe());
        let id = SubscriptionId::new("one");
        let mut answers = questions.ask(id.clone(), Filter::new(), 10);
        let verdict = questions.await_verdict(EventId::all_zeros());
        let (said, notifications) = broadcast::channel(2);
        let message = |message| RelayNotification::Message { message };
        for _ in 0..3 {
            said.send(message(RelayMessage::notice("what is it"))).unwrap();
        }
        said.send(message(RelayMessage::eose(id))).unwrap();
        let listening = tokio::spawn(ear.listen(notifications));
        missed.notified().await;
        assert!(answers.recv().await.is_none(), "neither an event nor the end");
        assert!(verdict.await.is_err());
        assert!(!*is_ready.borrow(), "what the relay is now counts, not what was said of it");
        said.send(RelayNotification::Shutdown).unwrap();
        listening.await.unwrap();
    }

    #[tokio::test]
    async fn answers_go_to_who_asked_and_events_to_who_is_subscribed() {
        let (ear, mut hears, _subscriptions) = ear().await;
        let questions = ear.questions.clone();
        let id = SubscriptionId::new("one");
        let mut answers = questions.ask(id.clone(), Filter::new(), 10);
        let verdict = questions.await_verdict(EventId::all_zeros());
        let event = nostr::EventBuilder::new(Kind::Custom(4680), "").sign_with_keys(&nostr::Keys::generate()).unwrap();
        let (said, notifications) = broadcast::channel(16);
        for message in [
            RelayMessage::event(id.clone(), event.clone()),
            RelayMessage::event(SubscriptionId::new("all"), event.clone()),
            RelayMessage::event(SubscriptionId::new("of somebody else"), event),
            RelayMessage::ok(EventId::all_zeros(), false, "blocked: no"),
            RelayMessage::eose(id),
        ] {
            said.send(RelayNotification::Message { message }).unwrap();
        }
        said.send(RelayNotification::RelayStatus { status: RelayStatus::Disconnected }).unwrap();
        said.send(RelayNotification::Shutdown).unwrap();
        ear.listen(notifications).await;
        assert!(matches!(answers.recv().await, Some(Answer::Event(_))));
        assert!(matches!(answers.recv().await, Some(Answer::End)));
        assert_eq!(verdict.await, Ok(Verdict { is_taken: false, message: "blocked: no".to_owned() }));
        assert!(matches!(hears.recv().await, Some(Heard::Event(name, _)) if name == "all"));
        assert!(hears.recv().await.is_none());
    }
}
