//! What one relay was asked and told, until it has answered.
//!
//! All answers come through the one ear that listens to the relay. Where it missed something, which answer that was nobody knows: then
//! all questions that are open count as not answered, and who asked may ask again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nostr::message::MachineReadablePrefix;
use nostr::{Event, EventId, Filter, SubscriptionId};
use tokio::sync::{mpsc, oneshot};

#[derive(Default)]
pub(super) struct Questions {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    fetches: HashMap<SubscriptionId, Fetch>,
    /// The same event may be published twice at a time.
    publications: HashMap<EventId, Vec<oneshot::Sender<Verdict>>>,
}

struct Fetch {
    filter: Filter,
    answers: mpsc::Sender<Answer>,
    /// The relay wants to know first who we are.
    waits_for_login: bool,
}

/// What a relay says of what is fetched. Where no end comes, it has not answered.
pub(super) enum Answer {
    Event(Box<Event>),
    End,
}

/// What a relay says of an event that it was given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) is_taken: bool,
    pub(super) message: String,
}

impl Questions {
    /// Opens a question. `events_max`: as many as are asked for.
    pub(super) fn ask(&self, id: SubscriptionId, filter: Filter, events_max: usize) -> mpsc::Receiver<Answer> {
        // And the end.
        let (answers, receiver) = mpsc::channel(events_max + 1);
        self.open().fetches.insert(id, Fetch { filter, answers, waits_for_login: false });
        receiver
    }

    /// Nobody waits for the answer any more.
    pub(super) fn forget(&self, id: &SubscriptionId) {
        self.open().fetches.remove(id);
    }

    /// Waits for the verdict on an event. It comes to nothing where it cannot be known any more.
    pub(super) fn await_verdict(&self, id: EventId) -> oneshot::Receiver<Verdict> {
        let (sender, receiver) = oneshot::channel();
        let mut open = self.open();
        // Those who have given up leave theirs behind.
        open.publications.retain(|_, waiting| {
            waiting.retain(|waiting| !waiting.is_closed());
            !waiting.is_empty()
        });
        open.publications.entry(id).or_default().push(sender);
        receiver
    }

    pub(super) fn event(&self, id: &SubscriptionId, event: Event) {
        let mut open = self.open();
        let Some(fetch) = open.fetches.get(id) else { return };
        // A relay that sends more than it was asked for has said what it has.
        if fetch.answers.capacity() == 1 || fetch.answers.try_send(Answer::Event(Box::new(event))).is_err() {
            end(&mut open, id);
        }
    }

    pub(super) fn end(&self, id: &SubscriptionId) {
        end(&mut self.open(), id);
    }

    /// The relay gives up a question. Says whether it is one of these.
    pub(super) fn closed(&self, id: &SubscriptionId, message: &str) -> bool {
        let mut open = self.open();
        let Some(fetch) = open.fetches.get_mut(id) else { return false };
        match MachineReadablePrefix::parse(message) {
            Some(MachineReadablePrefix::AuthRequired) if !fetch.waits_for_login => fetch.waits_for_login = true,
            Some(_) => drop(open.fetches.remove(id)),
            // No failure: it will have nothing more.
            None => end(&mut open, id),
        }
        true
    }

    /// The relay knows who we are. Gives what it is to be asked again.
    pub(super) fn logged_in(&self) -> Vec<(SubscriptionId, Filter)> {
        let open = self.open();
        let waiting = open.fetches.iter().filter(|(_, fetch)| fetch.waits_for_login);
        waiting.map(|(id, fetch)| (id.clone(), fetch.filter.clone())).collect()
    }

    pub(super) fn judged(&self, id: &EventId, verdict: impl Fn() -> Verdict) {
        for waiting in self.open().publications.remove(id).into_iter().flatten() {
            let _ = waiting.send(verdict());
        }
    }

    /// The relay is gone, or something of what it said was missed.
    pub(super) fn lost(&self) {
        *self.open() = Open::default();
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing in here panics halfway.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(open: &mut Open, id: &SubscriptionId) {
    if let Some(fetch) = open.fetches.remove(id) {
        // There is room: one place is left for it.
        let _ = fetch.answers.try_send(Answer::End);
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind};

    use super::*;

    fn event() -> Event {
        EventBuilder::new(Kind::Custom(4680), "").sign_with_keys(&Keys::generate()).unwrap()
    }

    fn counts(answers: &mut mpsc::Receiver<Answer>) -> (usize, usize) {
        let (mut events, mut ends) = (0, 0);
        while let Ok(answer) = answers.try_recv() {
            match answer {
                Answer::Event(_) => events += 1,
                Answer::End => ends += 1,
            }
        }
        (events, ends)
    }

    #[test]
    fn a_relay_that_sends_more_than_was_asked_for_is_at_its_end() {
        let questions = Questions::default();
        let id = SubscriptionId::new("one");
        let mut answers = questions.ask(id.clone(), Filter::new(), 2);
        for _ in 0..5 {
            questions.event(&id, event());
        }
        assert_eq!(counts(&mut answers), (2, 1));
        assert!(answers.is_closed());
    }

    #[test]
    fn what_was_missed_is_no_answer() {
        let questions = Questions::default();
        let id = SubscriptionId::new("one");
        let mut answers = questions.ask(id.clone(), Filter::new(), 2);
        let mut verdict = questions.await_verdict(EventId::all_zeros());
        questions.event(&id, event());
        questions.lost();
        questions.end(&id);
        assert_eq!(counts(&mut answers), (1, 0));
        assert!(verdict.try_recv().is_err());
    }

    #[test]
    fn a_question_waits_once_until_we_have_logged_in() {
        let questions = Questions::default();
        let id = SubscriptionId::new("one");
        let mut answers = questions.ask(id.clone(), Filter::new(), 1);
        assert!(questions.logged_in().is_empty());
        assert!(questions.closed(&id, "auth-required: who are you"));
        assert_eq!(questions.logged_in().len(), 1);
        assert!(questions.closed(&id, "auth-required: who are you"));
        assert!(!questions.closed(&id, ""), "it is over");
        assert_eq!(counts(&mut answers), (0, 0));
    }

    #[test]
    fn all_who_publish_the_same_event_hear_of_it() {
        let questions = Questions::default();
        let waiting = [(); 2].map(|()| questions.await_verdict(EventId::all_zeros()));
        let verdict = || Verdict { is_taken: true, message: String::new() };
        questions.judged(&EventId::all_zeros(), verdict);
        for mut waiting in waiting {
            assert_eq!(waiting.try_recv(), Ok(verdict()));
        }
    }
}
