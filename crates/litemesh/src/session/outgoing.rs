//! Answering, and then sending what is committed: the sender's half of the cursor rule (docs/storage.md).
//!
//! Catch-up and live are the same pump: read a page of what the remote lacks, send it, go on; when nothing is left, wait for
//! the next commit. Nothing is copied into queues for each remote: the database is the queue, and a slow remote holds back
//! only its own place in it. At most one page is being read while one message is being sent and one waits.
//!
//! What is sent to a Litemesh peer is numbered, and no more of it than the remote has room for ([`super::window`]). A transaction
//! that is too large for a message goes in parts, which the remote keeps until it has all of them.

use std::collections::VecDeque;
use std::sync::Arc;

use litemesh_engine::{LocalPage, LocalPlace, Moves, SiteBounds, SitePlan};
use litemesh_proto::limits::SILENCE_LOOK;
use litemesh_proto::{
    Ack, Change, Cursor, DbVersion, Incarnation, Part, PeerMessage, Place, Position, Progress, Remote, Resumed, Served,
    SyncRequest, Terms,
};

use super::claims::{Claims, Room};
use super::window::Window;
use super::{Begin, Claimed, Effect, Notice, Page, Planned, ReadDone, ReadOrder, ReadWhat, Timer};
use crate::ways::Standing;

/// Messages that wait behind the one being sent: one, so that reading and sending overlap.
const QUEUE_MAX: usize = 1;

/// Ranges of local versions that came from the remote itself and are not sent back. Ranges that touch are joined; beyond
/// this many the oldest is forgotten, which costs a repeat and no more.
const ECHOES_MAX: usize = 256;

/// Versions of ours after which a remote that is up to date is told of them, where nothing in them is for it.
///
/// Each merge takes a version of ours. Told at once, each of a hub's N peers would answer every transaction with that news, and
/// the hub pass it on to all others: N² messages for one. Told never, a remote that comes back would have us look at all that was
/// merged since.
const POSITION_NEWS_EVERY: i64 = 1024;

pub(crate) struct Outgoing {
    remote: Remote,
    /// What is kept of what the remote says that it holds.
    claims: Claims,
    /// What it said while a page was read.
    heard: Cursor,
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
    eose: Eose,
    /// What we have to acknowledge; goes before everything else.
    ack: Option<Ack>,
    /// A timer for [`Timer::Silence`] is set.
    is_looking: bool,
    /// Litemesh: another connection to the remote carries what is written here, and has brought it this far.
    standing: Standing,
    /// How far that was when our transport was told last.
    noted: Served,
    /// Litemesh: what lies before this the remote acknowledged over another connection; said with the next message.
    since: Option<Position>,
    /// The same, also when it was said.
    elsewhere: Position,
    /// Litemesh: up to here nothing was for the remote that it did not hold, when nothing was under way last.
    reached: Position,
    /// Litemesh: the remote was up to date over this connection once.
    is_served: bool,
    /// The answer goes on with what was sent before this process was there, all of which the remote may have to read still.
    is_resumed: bool,
}

/// The end of the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Eose {
    /// Not reached.
    Ahead,
    /// In the queue or on its way; to a Litemesh peer under this number.
    Queued(Option<u64>),
    /// Taken by the carrier; a Litemesh peer has acknowledged it.
    Taken,
}

/// In what order the remote is served.
enum Order {
    /// A Litemesh peer: the order of our own versions.
    Local {
        place: LocalPlace,
        /// In which of our lives that is a version.
        incarnation: Incarnation,
        /// What the remote is known to hold beyond what it was told. Shared with the read that is under way.
        covered: Arc<Cursor>,
        /// How often our cursor had moved when the remote was told it last. No entry is told twice: its own would mean to it that what it
        /// has forgotten came back.
        told_cursor: Moves,
        /// What the remote said of its position, until the first page is read.
        claimed: Claimed,
        window: Window,
        /// Up to where the parts lead that were sent of a transaction.
        part: Option<Place>,
        /// The last message said that there is more.
        owes_more: bool,
        /// Where the last page ended of which the remote was told.
        told: DbVersion,
        /// When the last page was read.
        read_at: u64,
    },
    /// A wire v1 peer: site by site.
    Sites {
        sent: Cursor,
        since_local: DbVersion,
        /// The plan under way, and what is reached when it is done.
        plan: Option<(SitePlan, Planned)>,
        is_first: bool,
    },
}

impl Outgoing {
    pub(crate) fn new(remote: Remote, schema_version: i64, room: Room) -> Self {
        Self {
            remote,
            claims: Claims::new(room),
            heard: Cursor::new(),
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
            ack: None,
            is_looking: false,
            standing: Standing::default(),
            noted: Served::default(),
            since: None,
            elsewhere: Position::default(),
            reached: Position::default(),
            is_served: false,
            is_resumed: false,
        }
    }

    /// Whether the remote has read what was sent to it before this process was there. What is behind that in its carrier comes later.
    pub(crate) fn has_read_former(&self) -> bool {
        let has_begun = matches!(&self.order, Some(Order::Local { window, .. }) if window.has_begun());
        !self.is_resumed || has_begun
    }

    pub(crate) fn is_caught_up(&self) -> bool {
        let is_acknowledged = match &self.order {
            Some(Order::Local { window, .. }) => window.is_empty(),
            _ => !self.is_sending,
        };
        // What another connection carries counts there.
        let is_behind = self.is_behind && !self.rests();
        self.eose == Eose::Taken && !is_behind && !self.is_reading && is_acknowledged && self.queue.is_empty()
    }

    pub(crate) fn set_schema_version(&mut self, version: i64) {
        self.schema_version = version;
    }

    /// A sync request: begins again from what the remote says that it holds. `resumed`: what it has got since.
    pub(crate) fn restart(&mut self, request: SyncRequest, resumed: Resumed, effects: &mut Vec<Effect>) {
        // A carrier may repeat a request. Begun anew under the same number, the answer would say other things in messages that
        // the remote takes for those that it has.
        if let (Some(terms), Some(Order::Local { window, .. })) = (&request.terms, &self.order)
            && terms.answer == window.answer()
        {
            return;
        }
        // A page that is being read for the last request comes first: however often a remote asks, one is read at a time.
        self.generation += 1;
        self.is_behind = true;
        self.heard = Cursor::new();
        self.queue.clear();
        self.eose = Eose::Ahead;
        (self.since, self.elsewhere, self.reached) = (None, Position::default(), Position::default());
        self.noted = Served::default();
        self.is_resumed = resumed.written.is_some();
        let claimed = self.claims.begin(request.cursor);
        self.order = Some(match request.terms {
            Some(terms) if self.remote.is_litemesh => local_order(claimed, &terms, resumed.written),
            _ => Order::Sites { sent: claimed, since_local: DbVersion::ZERO, plan: None, is_first: true },
        });
        if let Some(served) = resumed.served {
            self.go_on_behind(served);
        }
        effects.push(Effect::Tell(Notice::Sync));
        self.pump(effects);
    }

    pub(crate) fn waits_for_commits(&self) -> bool {
        !self.is_behind
    }

    pub(crate) fn committed(&mut self, effects: &mut Vec<Effect>) {
        self.is_behind = true;
        self.pump(effects);
    }

    /// Another connection to the remote begins or ceases to carry what is written here: then we go on behind what the remote acknowledged
    /// over that.
    pub(crate) fn stand(&mut self, standing: Standing, effects: &mut Vec<Effect>) {
        let rested = self.rests();
        self.standing = standing;
        if rested && !standing.stands_by && self.go_on_behind(standing.served) {
            // A page that is being read begins before it.
            self.generation += 1;
            self.is_behind = true;
        }
        self.pump(effects);
    }

    /// Goes on where another connection has brought the remote, where that is further. What is sent next says so.
    fn go_on_behind(&mut self, served: Served) -> bool {
        let Some(Order::Local { place, incarnation, claimed, part, .. }) = &mut self.order else { return false };
        if served.reached.version <= place.position() {
            return false;
        }
        *place = LocalPlace::after(served.reached.version);
        (*incarnation, *part) = (served.reached.incarnation, None);
        // Before the first page: this file may have been restored since.
        (claimed.elsewhere, claimed.written) = (Some(served), None);
        (self.elsewhere, self.reached) = (served.acknowledged, served.reached);
        self.since = Some(self.elsewhere);
        true
    }

    /// Says how far another connection has brought the remote, where all that we sent is with our transport: it may have to go on there
    /// when we are gone.
    fn note(&mut self, effects: &mut Vec<Effect>) {
        let served = self.standing.served;
        if !self.rests() || self.is_reading || self.is_sending || !self.queue.is_empty() || served == self.noted {
            return;
        }
        // What our transport remembers of us is how far our messages led.
        if let Some(Order::Local { told, .. }) = &self.order
            && served.reached.version > *told
        {
            self.noted = served;
            effects.push(Effect::Note(served));
        }
    }

    /// Whether nothing is sent while another connection carries what is written. What was begun is ended before.
    fn rests(&self) -> bool {
        let Some(Order::Local { place, part, owes_more, .. }) = &self.order else { return false };
        let is_between = part.is_none() && !owes_more && place.to_inside().is_none();
        self.standing.stands_by && self.eose != Eose::Ahead && is_between
    }

    /// Whether it rests, and everything that was sent is acknowledged.
    pub(crate) fn is_at_rest(&self) -> bool {
        let Some(Order::Local { window, .. }) = &self.order else { return false };
        let is_idle = !self.is_reading && !self.is_sending && self.queue.is_empty() && window.is_empty();
        is_idle && self.eose == Eose::Taken && self.rests()
    }

    /// The remote said by a message of its own that it holds this much.
    pub(crate) fn remote_holds(&mut self, cursor: &Cursor) {
        match &mut self.order {
            // The read has all of it: a copy would cost as much as there are sites.
            Some(Order::Local { .. }) if self.is_reading => drop(self.heard.join(cursor)),
            Some(Order::Local { covered, .. }) => self.claims.add(Arc::make_mut(covered), cursor),
            Some(Order::Sites { sent, .. }) => self.claims.add(sent, cursor),
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

    /// The remote acknowledged what we sent, and has room for more.
    pub(crate) fn remote_acknowledged(&mut self, ack: Ack, effects: &mut Vec<Effect>) {
        let Some(Order::Local { window, .. }) = &mut self.order else { return };
        window.acknowledge(ack);
        if let Eose::Queued(Some(number)) = self.eose
            && window.is_acknowledged(number)
        {
            (self.eose, self.is_served) = (Eose::Taken, true);
            effects.push(Effect::Tell(Notice::Served));
        }
        self.pump(effects);
    }

    /// We acknowledge what came. Only the last acknowledgement counts.
    pub(crate) fn acknowledge(&mut self, ack: Ack, effects: &mut Vec<Effect>) {
        self.ack = Some(ack);
        self.pump(effects);
    }

    /// How far the remote is, once it was up to date over this connection.
    pub(crate) fn served(&self) -> Option<Served> {
        let Some(Order::Local { window, .. }) = &self.order else { return None };
        let acknowledged = Some(window.position()).filter(|position| position.version >= self.elsewhere.version);
        let acknowledged = acknowledged.unwrap_or(self.elsewhere);
        let further = Some(self.reached).filter(|reached| reached.version > acknowledged.version);
        let reached = further.unwrap_or(acknowledged);
        self.is_served.then_some(Served { acknowledged, reached })
    }

    /// Remembers how far the remote is where nothing is under way to it.
    fn look_how_far(&mut self) {
        let Some(Order::Local { place, incarnation, window, part, owes_more, .. }) = &self.order else { return };
        // What waits for more is merely staged there, though it is acknowledged.
        let is_whole = part.is_none() && !owes_more && self.eose == Eose::Taken;
        if is_whole && window.is_empty() && self.queue.is_empty() {
            self.reached = Position { version: place.position(), incarnation: *incarnation };
        }
    }

    /// How far in our versions the remote holds everything, as it said.
    pub(crate) fn acknowledged(&self) -> Option<Position> {
        match &self.order {
            Some(Order::Local { window, .. }) => Some(window.position()),
            _ => None,
        }
    }

    /// Looks whether the remote is silent about what was sent to it.
    pub(crate) fn look(&mut self, effects: &mut Vec<Effect>) {
        self.is_looking = false;
        let Some(Order::Local { window, .. }) = &mut self.order else { return };
        if window.is_empty() {
            window.stop_looking();
            return;
        }
        if window.look() {
            let seconds = SILENCE_LOOK.as_secs();
            let reason = format!("the remote has acknowledged nothing for {seconds} s");
            effects.push(Effect::EndAfter(std::time::Duration::ZERO, reason));
            return;
        }
        self.set_look(effects);
    }

    fn set_look(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.is_looking, true) {
            effects.push(Effect::Wake(Timer::Silence, SILENCE_LOOK));
        }
    }

    fn forget_echoes_until(&mut self, version: DbVersion) {
        while self.echoes.front().is_some_and(|(_, last)| *last <= version) {
            self.echoes.pop_front();
        }
    }

    pub(crate) fn sent(&mut self, effects: &mut Vec<Effect>) {
        self.is_sending = false;
        if std::mem::take(&mut self.is_sending_eose) && self.eose == Eose::Queued(None) {
            self.eose = Eose::Taken;
            effects.push(Effect::Tell(Notice::Served));
        }
        self.pump(effects);
    }

    pub(crate) fn read(&mut self, done: ReadDone, effects: &mut Vec<Effect>) {
        self.is_reading = false;
        let heard = std::mem::take(&mut self.heard);
        self.remote_holds(&heard);
        if done.generation != self.generation {
            self.pump(effects);
            return;
        }
        match done.page {
            Page::Local { page, begin, read_at } => self.take_local(page, begin, read_at),
            Page::Sites { plan, changes, more, planned } => self.take_sites(plan, changes, more, planned),
        }
        self.pump(effects);
    }

    fn take_local(&mut self, page: LocalPage, begin: Begin, now: u64) {
        let Some(Order::Local {
            place,
            incarnation,
            covered,
            told_cursor,
            claimed,
            window,
            part,
            owes_more,
            told,
            read_at,
        }) = &mut self.order
        else {
            return;
        };
        *read_at = now;
        if begin != Begin::There {
            *part = None;
            // It is all sent over this connection.
            (self.elsewhere, self.reached) = (Position::default(), Position::default());
            self.since = (begin == Begin::Anew).then(Position::default);
        }
        let (position, as_of) = (page.position(), page.as_of());
        let inside = page.place.to_inside();
        *place = page.place;
        *incarnation = position.incarnation;
        *claimed = Claimed::default();
        let is_live = self.eose != Eose::Ahead;
        let is_complete = page.complete.is_some();
        let provisional = page.is_provisional && !page.changes.is_empty();
        // The remote takes over our cursor where it then holds everything that we hold, and learns each entry once.
        let news = page.complete.as_ref().map(|cursor| cursor.beyond(covered)).unwrap_or_default();
        if let Some(cursor) = &page.complete {
            *told_cursor = page.moves;
            if page.moves == Moves::NONE {
                // The next page has all of it again.
                Arc::make_mut(covered).join(&news);
            } else {
                let mut beyond = self.claims.beyond(covered, cursor);
                // Our own version is in each page.
                if cursor.contains(&page.site) {
                    beyond.advance(page.site, cursor.get(&page.site));
                }
                *covered = Arc::new(beyond);
            }
        }
        self.is_behind |= !is_complete;
        let is_owed = is_complete && *owes_more;
        let is_far = is_complete && position.version.get().saturating_sub(told.get()) >= POSITION_NEWS_EVERY;
        // Whoever does not hold what another connection carried has to hear of that, also where nothing follows.
        let is_quiet = news.is_empty() && !is_owed && !is_far && self.since.is_none();
        if is_live && page.changes.is_empty() && part.is_none() && is_quiet {
            self.forget_echoes_until(position.version);
            return;
        }
        *told = position.version;
        let news = Some(news).filter(|news| !news.is_empty());
        let mut since = self.since.take();
        let mut progress = |part: Part, cursor: Option<Cursor>| {
            // Inside of a transaction nothing is reached yet. And before all is there that we hold, what is acknowledged is merely
            // staged.
            let position = (!matches!(part, Part::Piece { .. })).then_some(position);
            let number = window.number(position.filter(|_| is_complete));
            *owes_more = !is_complete;
            let (answer, more, since) = (window.answer(), !is_complete, since.take());
            Progress { answer, number, part, more, provisional, since, position, as_of, cursor }
        };
        let schema_version = self.schema_version;
        let mut queue = |changes, progress| {
            self.queue.push_back(PeerMessage::Changes { changes, schema_version, progress: Some(progress) });
        };
        let is_empty = page.changes.is_empty();
        match (part.take(), inside) {
            // Nothing of what was read is for the remote.
            (after, Some(_)) if is_empty => *part = after,
            (after, Some(until)) => {
                *part = Some(until.clone());
                queue(page.changes, progress(Part::Piece { after, until }, None));
            }
            // Before the end of the answer the cursor goes with its last message.
            (Some(after), None) => {
                queue(page.changes, progress(Part::Last { after }, news.clone().filter(|_| is_live)));
            }
            (None, None) if !is_live && !is_empty => queue(page.changes, progress(Part::Whole, None)),
            (None, None) if is_live => {
                queue(page.changes, progress(Part::Whole, news.clone()));
            }
            (None, None) => {}
        }
        if !is_live && is_complete {
            let progress = progress(Part::Whole, news);
            self.eose = Eose::Queued(Some(progress.number));
            self.queue.push_back(PeerMessage::Eose { progress: Some(progress) });
        }
        self.since = since;
        self.forget_echoes_until(position.version);
    }

    fn take_sites(&mut self, plan: SitePlan, changes: Vec<Change>, more: bool, planned: Option<Planned>) {
        let Some(Order::Sites { sent, since_local, plan: current, is_first }) = &mut self.order else { return };
        let is_continued = planned.is_none();
        let before = current.take().map(|(_, planned)| planned);
        let Some(planned) = planned.or(before) else { return };
        let mut reached = None;
        if more {
            *current = Some((plan, planned));
            self.is_behind = true;
        } else {
            let Planned { until, follows, version } = planned;
            sent.join(&until);
            if !follows.is_empty() {
                let lower = |site, version: DbVersion| {
                    if follows.contains(site) { version.min(until.get(site)) } else { version }
                };
                *sent = sent.iter().map(|(site, version)| (*site, lower(site, version))).collect();
            }
            *since_local = version;
            *is_first = false;
            reached = Some(version);
            // What was committed since this plan was made woke reads that only went on with it; and what an answer brought under
            // other numbers follows.
            self.is_behind |= is_continued || !follows.is_empty();
        }
        if !changes.is_empty() {
            let schema_version = self.schema_version;
            self.queue.push_back(PeerMessage::Changes { changes, schema_version, progress: None });
        }
        if let Some(version) = reached {
            self.forget_echoes_until(version);
            if self.eose == Eose::Ahead {
                self.queue.push_back(PeerMessage::Eose { progress: None });
                self.eose = Eose::Queued(None);
            }
        }
    }

    /// Sends what waits, and reads on while there is room.
    fn pump(&mut self, effects: &mut Vec<Effect>) {
        self.look_how_far();
        self.note(effects);
        if !self.is_sending
            && let Some(message) = self.next_message()
        {
            self.is_sending = true;
            self.is_sending_eose = matches!(message, PeerMessage::Eose { .. });
            if message.progress().is_some() {
                self.set_look(effects);
            }
            effects.push(Effect::Send(message));
        }
        if self.is_reading || !self.is_behind || self.queue.len() >= QUEUE_MAX || self.rests() {
            return;
        }
        let echoes = Vec::from(self.echoes.clone());
        let what = match &self.order {
            None => return,
            Some(Order::Local { place, covered, told_cursor, claimed, read_at, .. }) => {
                let (place, covered) = (place.clone(), covered.clone());
                ReadWhat::Local { place, covered, told: *told_cursor, claimed: *claimed, echoes, read_at: *read_at }
            }
            Some(Order::Sites { plan: Some((plan, ..)), .. }) => ReadWhat::Sites(plan.clone()),
            Some(Order::Sites { sent, since_local, is_first, .. }) => ReadWhat::PlanSites(SiteBounds {
                sent: sent.clone(),
                inclusive: *is_first,
                since_local: *since_local,
                until: Cursor::new(),
                version: DbVersion::ZERO,
                echoes,
            }),
        };
        self.is_behind = false;
        self.is_reading = true;
        effects.push(Effect::Read(ReadOrder { generation: self.generation, what }));
    }

    /// What is to be sent now, if anything may be.
    fn next_message(&mut self) -> Option<PeerMessage> {
        if let Some(ack) = self.ack.take() {
            return Some(PeerMessage::Ack(ack));
        }
        let may_send = match (&self.order, self.queue.front()?.progress()) {
            (Some(Order::Local { window, .. }), Some(progress)) => window.may_send(progress.number),
            _ => true,
        };
        if may_send { self.queue.pop_front() } else { None }
    }
}

/// Where the answer to a Litemesh peer begins: inside of a transaction, where it has staged parts of one that lies before
/// us still.
fn local_order(covered: Cursor, terms: &Terms, written: Option<DbVersion>) -> Order {
    let position = terms.position.version;
    let inside = terms.staged.as_ref().and_then(LocalPlace::from_inside).filter(|place| place.position() >= position);
    let part = inside.as_ref().and_then(LocalPlace::to_inside);
    let place = inside.unwrap_or_else(|| LocalPlace::after(position));
    let covered = Arc::new(covered);
    let claimed = Claimed { position: terms.position, as_of: terms.as_of, elsewhere: None, written };
    let window = Window::new(terms);
    let incarnation = terms.position.incarnation;
    Order::Local {
        place,
        incarnation,
        covered,
        told_cursor: Moves::NONE,
        claimed,
        window,
        part,
        owes_more: false,
        told: position,
        read_at: 0,
    }
}
