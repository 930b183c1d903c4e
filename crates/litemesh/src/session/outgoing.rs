//! Answering, and then sending what is committed: the sender's half of the cursor rule (docs/storage.md).
//!
//! Catch-up and live are the same pump: read a page of what the remote lacks, send it, go on; when nothing is left, wait for
//! the next commit. Nothing is copied into queues for each remote: the database is the queue, and a slow remote holds back
//! only its own place in it. At most one page is being read while one message is being sent and one waits.

use std::collections::VecDeque;

use litemesh_engine::{LocalPage, LocalPlace, SiteBounds, SitePlan};
use litemesh_proto::{Change, Cursor, DbVersion, PeerMessage, Progress, Remote, SyncRequest};

use super::{Effect, Notice, Page, ReadDone, ReadOrder, ReadWhat};

/// Messages that wait behind the one being sent: one, so that reading and sending overlap.
const QUEUE_MAX: usize = 1;

/// Ranges of local versions that came from the remote itself and are not sent back. Ranges that touch are joined; beyond
/// this many the oldest is forgotten, which costs a repeat and no more.
const ECHOES_MAX: usize = 256;

pub(crate) struct Outgoing {
    remote: Remote,
    schema_version: i64,
    /// Counts requests; a page read for an older one is dropped.
    generation: u64,
    order: Option<Order>,
    echoes: VecDeque<(DbVersion, DbVersion)>,
    /// Something may be there to be read.
    is_behind: bool,
    is_reading: bool,
    is_sending: bool,
    /// The message being sent ends the answer.
    is_sending_eose: bool,
    queue: VecDeque<PeerMessage>,
    /// The end of the answer: not reached, in the queue, taken.
    eose: Eose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Eose {
    Ahead,
    Queued,
    Taken,
}

/// In what order the remote is served.
enum Order {
    /// A Litemesh peer: the order of our own versions.
    Local { place: LocalPlace, covered: Cursor },
    /// A wire v1 peer: site by site.
    Sites {
        sent: Cursor,
        since_local: DbVersion,
        /// The plan under way, and what is reached when it is done.
        plan: Option<(SitePlan, Cursor, DbVersion)>,
        is_first: bool,
    },
}

impl Outgoing {
    pub(crate) fn new(remote: Remote, schema_version: i64) -> Self {
        Self {
            remote,
            schema_version,
            generation: 0,
            order: None,
            echoes: VecDeque::new(),
            is_behind: false,
            is_reading: false,
            is_sending: false,
            is_sending_eose: false,
            queue: VecDeque::new(),
            eose: Eose::Ahead,
        }
    }

    pub(crate) fn is_caught_up(&self) -> bool {
        self.eose == Eose::Taken && !self.is_behind && !self.is_reading && !self.is_sending && self.queue.is_empty()
    }

    pub(crate) fn set_schema_version(&mut self, version: i64) {
        self.schema_version = version;
    }

    /// A sync request: begins again from what the remote says that it holds.
    pub(crate) fn restart(&mut self, request: SyncRequest, effects: &mut Vec<Effect>) {
        self.generation += 1;
        self.is_reading = false;
        self.is_behind = true;
        self.queue.clear();
        self.eose = Eose::Ahead;
        self.order = Some(if self.remote.is_litemesh {
            let place = LocalPlace::after(request.position.unwrap_or_default());
            Order::Local { place, covered: request.cursor }
        } else {
            Order::Sites { sent: request.cursor, since_local: DbVersion::ZERO, plan: None, is_first: true }
        });
        effects.push(Effect::Tell(Notice::Sync));
        self.pump(effects);
    }

    pub(crate) fn committed(&mut self, effects: &mut Vec<Effect>) {
        self.is_behind = true;
        self.pump(effects);
    }

    /// The remote said by a message of its own that it holds this much.
    pub(crate) fn remote_holds(&mut self, cursor: &Cursor) {
        match &mut self.order {
            Some(Order::Local { covered, .. }) => drop(covered.join(cursor)),
            Some(Order::Sites { sent, .. }) => drop(sent.join(cursor)),
            None => {}
        }
    }

    /// These local versions were merged from the remote.
    pub(crate) fn add_echo(&mut self, (first, last): (DbVersion, DbVersion)) {
        match self.echoes.back_mut() {
            Some(range) if range.1.next() >= first => range.1 = range.1.max(last),
            _ => self.echoes.push_back((first, last)),
        }
        if self.echoes.len() > ECHOES_MAX {
            self.echoes.pop_front();
        }
    }

    fn forget_echoes_until(&mut self, version: DbVersion) {
        while self.echoes.front().is_some_and(|(_, last)| *last <= version) {
            self.echoes.pop_front();
        }
    }

    pub(crate) fn sent(&mut self, effects: &mut Vec<Effect>) {
        self.is_sending = false;
        if std::mem::take(&mut self.is_sending_eose) && self.eose == Eose::Queued {
            self.eose = Eose::Taken;
            effects.push(Effect::Tell(Notice::Served));
        }
        self.pump(effects);
    }

    pub(crate) fn read(&mut self, done: ReadDone, effects: &mut Vec<Effect>) {
        if done.generation != self.generation {
            return;
        }
        self.is_reading = false;
        match done.page {
            Page::Local(page) => self.take_local(page),
            Page::Sites { plan, changes, more, planned } => self.take_sites(plan, changes, more, planned),
        }
        self.pump(effects);
    }

    fn take_local(&mut self, page: LocalPage) {
        let Some(Order::Local { place, covered }) = &mut self.order else { return };
        let position = page.place.position();
        *place = page.place;
        let is_live = self.eose != Eose::Ahead;
        let is_complete = page.complete.is_some();
        // The remote takes over our cursor where it then holds everything that we hold, and learns each entry once.
        let news = page.complete.map(|cursor| cursor.beyond(covered)).unwrap_or_default();
        self.is_behind |= !is_complete;
        covered.join(&news);
        let has_news = !news.is_empty();
        let progress = Progress { position: Some(position), cursor: has_news.then_some(news) };
        match (is_live, page.changes.is_empty()) {
            // Before the end of the answer the cursor goes with its last message.
            (false, is_empty) => {
                if !is_empty {
                    let progress = Progress { position: Some(position), cursor: None };
                    self.queue_changes(page.changes, progress);
                }
                if is_complete {
                    self.queue.push_back(PeerMessage::Eose { progress });
                    self.eose = Eose::Queued;
                }
            }
            (true, false) => self.queue_changes(page.changes, progress),
            (true, true) if has_news => self.queue_changes(Vec::new(), progress),
            (true, true) => {}
        }
        self.forget_echoes_until(position);
    }

    fn take_sites(&mut self, plan: SitePlan, changes: Vec<Change>, more: bool, planned: Option<(Cursor, DbVersion)>) {
        let Some(Order::Sites { sent, since_local, plan: current, is_first }) = &mut self.order else { return };
        let is_continued = planned.is_none();
        let (until, version) = match (planned, current.take()) {
            (Some(planned), _) => planned,
            (None, Some((_, until, version))) => (until, version),
            (None, None) => return,
        };
        let mut reached = None;
        if more {
            *current = Some((plan, until, version));
            self.is_behind = true;
        } else {
            sent.join(&until);
            *since_local = version;
            *is_first = false;
            reached = Some(version);
            // What was committed since this plan was made woke reads that only went on with it.
            self.is_behind |= is_continued;
        }
        if !changes.is_empty() {
            self.queue_changes(changes, Progress::default());
        }
        if let Some(version) = reached {
            self.forget_echoes_until(version);
            if self.eose == Eose::Ahead {
                self.queue.push_back(PeerMessage::Eose { progress: Progress::default() });
                self.eose = Eose::Queued;
            }
        }
    }

    fn queue_changes(&mut self, changes: Vec<Change>, progress: Progress) {
        self.queue.push_back(PeerMessage::Changes { changes, schema_version: self.schema_version, progress });
    }

    /// Sends what waits, and reads on while there is room.
    fn pump(&mut self, effects: &mut Vec<Effect>) {
        if !self.is_sending
            && let Some(message) = self.queue.pop_front()
        {
            self.is_sending = true;
            self.is_sending_eose = matches!(message, PeerMessage::Eose { .. });
            effects.push(Effect::Send(message));
        }
        if self.is_reading || !self.is_behind || self.queue.len() >= QUEUE_MAX {
            return;
        }
        let echoes = Vec::from(self.echoes.clone());
        let what = match &self.order {
            None => return,
            Some(Order::Local { place, covered }) => {
                ReadWhat::Local { place: place.clone(), covered: covered.clone(), echoes }
            }
            Some(Order::Sites { plan: Some((plan, ..)), .. }) => ReadWhat::Sites(plan.clone()),
            Some(Order::Sites { sent, since_local, is_first, .. }) => ReadWhat::PlanSites(SiteBounds {
                sent: sent.clone(),
                inclusive: *is_first,
                since_local: *since_local,
                until: Cursor::new(),
                echoes,
            }),
        };
        self.is_behind = false;
        self.is_reading = true;
        effects.push(Effect::Read(ReadOrder { generation: self.generation, what }));
    }
}
