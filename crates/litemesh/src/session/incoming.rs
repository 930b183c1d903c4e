//! Asking, and merging what comes: the receiver's half of the cursor rule (docs/storage.md).
//!
//! - A Litemesh remote says with each message how far it brings us. We store that with the rows, and take over its cursor
//!   only where it says that we now hold everything that it held. What is stored is acknowledged. Its messages are numbered:
//!   where one is missing, everything from there on is asked for again, over the same connection.
//! - A wire v1 remote sends a gapless history per site, cut anywhere. The cursor follows the changes, except that the newest
//!   version of a site counts as incomplete until something newer of that site, or the end of stored events, proves otherwise.
//!
//! After anything that we could not take, no cursor moves on this connection any more, and merging goes on, since it is
//! idempotent. What was refused, and what came after it, is asked for over the next connection; we end this one to get it.
//! For a v1 remote, asking again over the same one would not do: messages of the first answer may still be under way, its end
//! among them, and nothing in wire v1 tells them from those of the second.

use std::time::Duration;

use litemesh_engine::{MergeProgress, Reach, Staged};
use litemesh_proto::limits::{
    ACK_DELAY, CATCH_UP_BYTES_MAX, CATCH_UP_MESSAGES_MAX, CREDIT_MAX, CURSOR_SITES_MAX, RECONNECT_DELAY_MAX,
    RECONNECT_DELAY_MIN, SILENCE_LOOK, STAND_BY,
};
use litemesh_proto::{
    Ack, Change, Cursor, DbVersion, Limits, Part, PeerMessage, Position, Progress, Refusal, Remote, SiteId,
    SyncRequest, Terms, Unverified,
};

use super::receipt::{Due, Receipt, Settled, Standing};
use super::{Effect, Fault, MergeDone, MergeFailure, Notice, Timer};

pub(crate) struct Incoming {
    remote: Remote,
    /// Under which id our position in what the remote has is kept.
    key: SiteId,
    schema_version: i64,
    limits: Limits,
    /// Something was not taken: cursors stand still on this connection.
    is_frozen: bool,
    /// The connection is to be ended.
    is_end_due: bool,
    /// Litemesh: nothing more is taken over this connection, which ends soon: without what could not be read or stored, the rest of a
    /// catch-up would show half of a transaction. What is staged stays.
    is_deaf: bool,
    /// The newest schema that the remote was seen to have, where it is newer than ours.
    outdated: Option<i64>,
    eose: bool,
    /// Litemesh: the carrier that keeps messages has no more of a stream that was gone on with.
    has_all_kept: bool,
    /// v1: requests of ours whose answer has not ended.
    unanswered: u32,
    /// The remote has read everything of ours that is older than this process.
    has_read: bool,
    /// v1: the newest version of each site that came, perhaps in part.
    open: Cursor,
    /// v1: our own site, and up to where the remote said that it holds what it wrote.
    us: SiteId,
    holds_of_us: Cursor,
    /// The message whose merge is under way.
    pending: Option<Pending>,
    /// Litemesh: what came of the remote, merged or staged.
    staged: Staged,
    /// Litemesh: some of what is staged was there before we asked, or was sent before the remote did.
    has_old_chain: bool,
    /// Litemesh: which messages of the answer came.
    receipt: Receipt,
    /// Litemesh: an acknowledgement is due.
    is_ack_due: bool,
    /// Litemesh: a timer for [`Timer::Answer`] is set.
    is_looking: bool,
    /// Litemesh: we are about to ask again; what comes meanwhile belongs to the last answer.
    is_asking: bool,
    /// Litemesh: the same, as soon as the message under way is merged. Counted as one of the next answer, it would stand for one that
    /// never came.
    is_opening_due: bool,
    /// Another session of the remote is being caught up.
    is_standing_by: bool,
}

#[derive(Default)]
struct Pending {
    is_eose: bool,
    open: Cursor,
    /// Litemesh: up to where the remote's changes are here when it is merged.
    reach: Option<Reach>,
}

impl Incoming {
    pub(crate) fn new(remote: Remote, key: SiteId, schema_version: i64, limits: Limits) -> Self {
        Self {
            remote,
            key,
            schema_version,
            limits,
            is_frozen: false,
            is_end_due: false,
            is_deaf: false,
            outdated: None,
            eose: false,
            has_all_kept: false,
            unanswered: 0,
            has_read: true,
            open: Cursor::new(),
            us: remote.site,
            holds_of_us: Cursor::new(),
            pending: None,
            staged: Staged::default(),
            has_old_chain: false,
            receipt: Receipt::of_connection(remote.connection),
            is_ack_due: false,
            is_looking: false,
            is_asking: true,
            is_opening_due: false,
            is_standing_by: false,
        }
    }

    pub(crate) fn key(&self) -> SiteId {
        self.key
    }

    pub(crate) fn is_caught_up(&self) -> bool {
        self.eose && !self.is_frozen
    }

    /// The remote said what it holds.
    pub(crate) fn remote_asked(&mut self, cursor: &Cursor) {
        if !self.remote.is_litemesh {
            self.holds_of_us = cursor.clone();
        }
    }

    pub(crate) fn ask(&mut self, us: SiteId, cursor: Cursor, staged: Staged, effects: &mut Vec<Effect>) {
        if self.pending.is_some() && self.remote.is_litemesh {
            (self.is_asking, self.is_opening_due) = (true, true);
            return;
        }
        self.is_asking = false;
        self.us = us;
        self.has_old_chain = staged.messages > 0;
        self.staged = staged;
        let terms = self.remote.is_litemesh.then(|| {
            self.is_frozen = self.is_end_due || self.outdated.is_some();
            self.is_ack_due = false;
            let Reach { position, place, as_of } = self.staged.reach.clone();
            Terms { answer: self.receipt.begin(), credit: CREDIT_MAX, position, staged: place, as_of }
        });
        let is_numbered = terms.is_some();
        self.unanswered += u32::from(!is_numbered);
        effects.push(Effect::Ask(SyncRequest { cursor, terms }));
        if is_numbered {
            self.set_look(effects);
        }
    }

    fn set_look(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.is_looking, true) {
            effects.push(Effect::Wake(Timer::Answer, SILENCE_LOOK));
        }
    }

    /// Another session of the remote has what comes.
    pub(crate) fn stand_by(&mut self, effects: &mut Vec<Effect>) {
        (self.is_asking, self.is_standing_by) = (true, true);
        effects.push(Effect::Wake(Timer::StandBy, STAND_BY));
    }

    /// Tries again to ask.
    pub(crate) fn end_stand_by(&mut self, effects: &mut Vec<Effect>) {
        if std::mem::take(&mut self.is_standing_by) {
            effects.push(Effect::Open { key: self.key });
        }
    }

    /// Looks whether the request was answered, or a carrier lost it.
    pub(crate) fn look(&mut self, effects: &mut Vec<Effect>) {
        self.is_looking = false;
        if self.pending.is_some() {
            // The first message of the answer is being taken.
            self.set_look(effects);
        } else if self.receipt.is_unanswered() {
            self.ask_again(effects);
        }
    }

    /// Something is missing: asks again for everything that is not stored here.
    fn ask_again(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.is_asking, true) {
            effects.push(Effect::Open { key: self.key });
        }
    }

    /// Takes a message. Gives what the remote thereby says that it holds. `has_read`: the remote may have nothing of ours to read any more
    /// that is older than this process.
    pub(crate) fn receive(&mut self, message: Unverified, has_read: bool, effects: &mut Vec<Effect>) -> Option<Cursor> {
        self.has_read = has_read;
        if let Some(order) = message.order()
            && self.remote.is_litemesh
        {
            let standing = if self.is_asking { Standing::Stale } else { self.receipt.standing(order) };
            if standing != Standing::Next {
                match standing {
                    Standing::Gap => self.ask_again(effects),
                    // It came again because nobody said that it had come.
                    Standing::Known => self.is_ack_due = true,
                    Standing::Next | Standing::Stale => {}
                }
                effects.push(Effect::Reply(Ok(())));
                return None;
            }
        }
        let (is_early, is_resumed) = (message.is_early(), message.is_resumed());
        if self.is_deaf {
            self.taken(false, false, effects);
            effects.push(Effect::Reply(Ok(())));
            return None;
        }
        // A newer schema may have newer rules: nothing else is checked then.
        if message.schema_version() > self.schema_version {
            self.freeze(effects);
            if self.outdated != Some(message.schema_version()) {
                self.outdated = Some(message.schema_version());
                effects.push(Effect::Tell(Notice::Outdated(message.schema_version())));
            }
            self.taken(false, false, effects);
            effects.push(Effect::Reply(Err(Refusal::Outdated(message.schema_version()))));
            return None;
        }
        let message = match message.verify(&self.limits) {
            Ok(message) => message,
            Err(error) => {
                self.refuse_content(error.to_string(), effects);
                return None;
            }
        };
        let (changes, progress, is_eose) = match message {
            PeerMessage::Changes { changes, progress, .. } => (changes, progress, false),
            PeerMessage::Eose { progress } => (Vec::new(), progress, true),
            PeerMessage::Ack(_) | PeerMessage::Unknown => {
                effects.push(Effect::Reply(Ok(())));
                return None;
            }
        };
        if self.remote.is_litemesh {
            let Some(progress) = progress else {
                self.refuse_content("a message of a Litemesh peer has no number".to_owned(), effects);
                return None;
            };
            let held = self.take_numbered(changes, progress, is_eose, (is_early, is_resumed), effects);
            return (!is_early).then_some(held);
        }
        // One that came again ends nothing: live changes follow the answer, and the last may be there in part.
        if is_eose && self.unanswered == 0 {
            effects.push(Effect::Reply(Ok(())));
            return None;
        }
        // A v1 peer's changes come without holes in its versions, so they say what it holds.
        let held: Cursor = changes.iter().map(|change| (change.site, change.db_version)).collect();
        // An end that the carrier made up is the end of what it keeps: the other half of a transaction may not be written yet.
        let is_complete = is_eose && !progress.is_some_and(|progress| progress.more);
        let mut open = self.open.clone();
        let mut progress = MergeProgress { is_provisional: true, ..MergeProgress::default() };
        if !self.is_frozen {
            open.join_within(&held, CURSOR_SITES_MAX);
            progress.cursor = self.v1_cursor(&held, &open, is_complete);
        }
        let reached = open.clone();
        self.pending = Some(Pending { is_eose, open, reach: None });
        effects.push(Effect::Merge { changes, progress, reached, echoes: true, is_resumed: false });
        Some(held)
    }

    /// Takes the next message of an answer. A Litemesh peer's changes come with holes in its versions, so only its cursor says
    /// what it holds.
    fn take_numbered(
        &mut self,
        changes: Vec<Change>,
        progress: Progress,
        is_eose: bool,
        (is_early, is_resumed): (bool, bool),
        effects: &mut Vec<Effect>,
    ) -> Cursor {
        let held = progress.cursor.clone().unwrap_or_default();
        // A carrier that keeps messages has no more of a stream that was gone on with. That proves nothing, and completes nothing.
        if is_eose && progress.more {
            self.taken(!self.is_frozen, false, effects);
            self.has_all_kept = true;
            self.look_for_end(effects);
            effects.push(Effect::Reply(Ok(())));
            return held;
        }
        if self.is_frozen {
            match progress.part {
                Part::Whole => {
                    self.pending = Some(Pending { is_eose, ..Pending::default() });
                    let (progress, reached) = (MergeProgress::default(), Cursor::new());
                    effects.push(Effect::Merge { changes, progress, reached, echoes: !is_early, is_resumed });
                }
                // Staged, it would say that everything before it is here; merged, it would show half of a transaction.
                Part::Piece { .. } | Part::Last { .. } => {
                    self.taken(false, false, effects);
                    effects.push(Effect::Reply(Ok(())));
                }
            }
            return held;
        }
        let Some((after, until)) = self.lead(&progress) else {
            self.ask_again(effects);
            effects.push(Effect::Reply(Ok(())));
            return held;
        };
        // The sender was restored from a backup, and begins before what it has sent: of what that lost, the rest is here at best.
        let went_back = progress.position.is_some_and(|position| position.version < self.staged.reach.position.version);
        let (key, is_staged) = (self.key, self.staged.messages > 0 && !went_back && !is_anew(&progress));
        let waits = until.place.is_some() || progress.more && self.has_room(changes.len());
        self.pending = Some(Pending { is_eose, open: Cursor::new(), reach: Some(until.clone()) });
        // What an earlier connection brought the remote may have lost since, and asks for; and so what it sent before it asked.
        self.has_old_chain |= is_early;
        if waits {
            effects.push(Effect::Stage { key, changes, after, until });
            return held;
        }
        let progress = MergeProgress {
            cursor: progress.cursor.unwrap_or_default(),
            position: progress.position.map(|position| (key, position)),
            completes: is_staged.then_some((key, after)),
            since: progress.since.map(|since| (key, since)),
            as_of: until.as_of,
            is_provisional: progress.provisional,
            // What it has to read may be what this file has forgotten, and the answer is older.
            ends_answer: is_eose && self.has_read,
        };
        let echoes = !(is_early || is_staged && self.has_old_chain);
        effects.push(Effect::Merge { changes, progress, reached: Cursor::new(), echoes, is_resumed });
        held
    }

    /// What a carrier kept has come, and none of it waits for more: the remote's answer ended at some time before.
    fn look_for_end(&mut self, effects: &mut Vec<Effect>) {
        let is_end = self.has_all_kept && !self.is_frozen && self.staged.messages == 0;
        if is_end && !std::mem::replace(&mut self.eose, true) {
            effects.push(Effect::Tell(Notice::Eose));
        }
    }

    /// From where to where the next message leads; `None` where it does not go on from what is here.
    fn lead(&self, progress: &Progress) -> Option<(Reach, Reach)> {
        // What another connection brought; whether it did, the engine looks. The very start is before whatever is staged.
        let since = progress.since.map(|position| Reach { position, ..Reach::default() });
        if since.is_some() && !is_anew(progress) && self.staged.messages > 0 {
            return None;
        }
        let here = since.as_ref().unwrap_or(&self.staged.reach);
        let after = match &progress.part {
            // What is here of a transaction that is begun anew is forgotten.
            Part::Whole | Part::Piece { after: None, .. } => Reach { position: here.position, ..Reach::default() },
            Part::Piece { after, .. } if *after == here.place => here.clone(),
            Part::Last { after } if Some(after) == here.place.as_ref() => here.clone(),
            Part::Piece { .. } | Part::Last { .. } => return None,
        };
        let as_of = progress.as_of;
        let until = match &progress.part {
            Part::Piece { until, .. } => Reach { position: after.position, place: Some(until.clone()), as_of },
            _ => Reach { position: progress.position.unwrap_or(after.position), place: None, as_of },
        };
        Some((after, until))
    }

    /// Whether a message may wait for the end of a catch-up.
    fn has_room(&self, changes: usize) -> bool {
        self.staged.changes.saturating_add(changes as u64) <= self.limits.catch_up_changes_max
            && self.limits.catch_up_changes_max > 0
            && self.staged.bytes < CATCH_UP_BYTES_MAX
            && self.staged.messages < CATCH_UP_MESSAGES_MAX
    }

    /// What is complete once the message is merged.
    fn v1_cursor(&self, held: &Cursor, open: &Cursor, is_complete: bool) -> Cursor {
        if is_complete {
            // Also what it holds of us, though this file may have forgotten it: what is left of that has come now.
            let mut cursor = open.clone();
            let of_us = self.holds_of_us.iter().filter(|(site, _)| **site == self.us);
            cursor.join(&of_us.map(|(site, version)| (*site, version)).collect());
            return cursor;
        }
        held.iter().map(|(site, _)| (*site, open.get(site).previous())).filter(|(_, v)| *v > DbVersion::ZERO).collect()
    }

    pub(crate) fn merged(&mut self, result: Result<MergeDone, MergeFailure>, effects: &mut Vec<Effect>) {
        let Some(pending) = self.pending.take() else { return };
        if std::mem::take(&mut self.is_opening_due) {
            effects.push(Effect::Open { key: self.key });
        }
        match result {
            Ok(MergeDone { staged, .. }) => {
                self.open = pending.open;
                match (staged, pending.reach) {
                    (Some(staged), _) => self.staged = staged,
                    (None, Some(reach)) => {
                        self.staged = Staged { reach, ..Staged::default() };
                        self.has_old_chain = false;
                    }
                    (None, None) => {}
                }
                self.taken(!self.is_frozen, pending.is_eose, effects);
                self.unanswered = self.unanswered.saturating_sub(u32::from(pending.is_eose));
                if pending.is_eose && !self.is_frozen {
                    self.eose = true;
                    effects.push(Effect::Tell(Notice::Eose));
                }
                self.look_for_end(effects);
                effects.push(Effect::Reply(Ok(())));
            }
            Err(MergeFailure { message, fault: Fault::Content }) => self.refuse_content(message, effects),
            Err(MergeFailure { message, fault: Fault::Database }) => {
                self.taken(false, false, effects);
                self.refuse(Refusal::Unavailable(message), effects);
                self.be_deaf();
                self.end_after(RECONNECT_DELAY_MIN, "our database could not take a message", effects);
            }
            Err(MergeFailure { fault: Fault::Gap, .. }) => {
                self.ask_again(effects);
                effects.push(Effect::Reply(Ok(())));
            }
        }
    }

    /// A numbered message came, and is committed here or not.
    fn taken(&mut self, is_committed: bool, is_eose: bool, effects: &mut Vec<Effect>) {
        if !self.remote.is_litemesh {
            return;
        }
        match self.receipt.take(is_committed, is_eose) {
            Due::Now => self.is_ack_due = true,
            Due::SetTimer => effects.push(Effect::Wake(Timer::Acknowledge, ACK_DELAY)),
            Due::Later => {}
        }
    }

    pub(crate) fn woken(&mut self) {
        self.is_ack_due |= self.receipt.timer();
    }

    /// The disk has what was committed.
    pub(crate) fn flushed(&mut self, effects: &mut Vec<Effect>) -> Option<Ack> {
        let settled = self.receipt.flushed();
        Self::settled(settled, effects)
    }

    /// The acknowledgement that is to be sent now. What it would name and the disk does not have is flushed first.
    pub(crate) fn take_ack(&mut self, effects: &mut Vec<Effect>) -> Option<Ack> {
        let is_due = std::mem::take(&mut self.is_ack_due);
        is_due.then(|| self.receipt.settle()).and_then(|settled| Self::settled(settled, effects))
    }

    fn settled(settled: Settled, effects: &mut Vec<Effect>) -> Option<Ack> {
        if settled.is_flush {
            effects.push(Effect::Flush);
        }
        settled.ack
    }

    /// Something was not taken. What is staged was to wait for what comes after it, which is not merged now as it came; it would
    /// hide from everybody.
    fn freeze(&mut self, effects: &mut Vec<Effect>) {
        self.is_frozen = true;
        if std::mem::take(&mut self.staged).messages > 0 {
            effects.push(Effect::MergeStaged { key: self.key });
        }
    }

    pub(crate) fn garbled(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        effects.push(Effect::Tell(Notice::Error(format!("unreadable message: {reason}"))));
        self.is_frozen = true;
        self.be_deaf();
        self.end_after(RECONNECT_DELAY_MIN, "a message could not be read", effects);
    }

    /// The connection is about to end.
    fn be_deaf(&mut self) {
        if self.remote.is_litemesh && !std::mem::replace(&mut self.is_deaf, true) {
            // Soon, also where the end is due later already.
            self.is_end_due = false;
        }
    }

    /// Bad changes heal when somebody changes a schema, not within seconds; until then the connection serves for the rest.
    fn refuse_content(&mut self, message: String, effects: &mut Vec<Effect>) {
        self.freeze(effects);
        self.taken(false, false, effects);
        self.refuse(Refusal::Invalid(message), effects);
        self.end_after(RECONNECT_DELAY_MAX, "a message was refused", effects);
    }

    /// The first order counts.
    fn end_after(&mut self, delay: Duration, what: &str, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.is_end_due, true) {
            effects.push(Effect::EndAfter(delay, format!("{what}: asking for it again over a new connection")));
        }
    }

    /// The remote may not do that. Other rights take another connection, and over that one it is asked for again.
    pub(crate) fn forbid(&mut self, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.freeze(effects);
        self.taken(false, false, effects);
        self.refuse(refusal, effects);
    }

    fn refuse(&mut self, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.is_frozen = true;
        effects.push(Effect::Tell(Notice::Error(refusal.to_string())));
        effects.push(Effect::Reply(Err(refusal)));
    }

    /// After the application's upgrade, or once a missing table is there, what was held back is asked for.
    pub(crate) fn schema_changed(&mut self, version: i64, effects: &mut Vec<Effect>) {
        self.schema_version = version;
        let is_outdated = self.outdated.is_some_and(|outdated| outdated > version);
        if self.is_frozen && !is_outdated && self.remote.is_litemesh && !self.is_end_due {
            self.outdated = None;
            self.ask_again(effects);
        } else if self.is_frozen && !is_outdated {
            // At once, also where the end is due later already.
            let reason = "the schema was changed: asking for what was held back over a new connection";
            effects.push(Effect::EndAfter(Duration::ZERO, reason.to_owned()));
        }
    }
}

/// Whether the answer begins at the very start: what is staged is of a life that the sender has lost.
fn is_anew(progress: &Progress) -> bool {
    progress.since == Some(Position::default())
}
