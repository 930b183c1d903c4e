//! Asking, and merging what comes: the receiver's half of the cursor rule (design.md section 7).
//!
//! - A Litemesh remote says with each message how far it brings us. We store that with the rows, and take over its cursor
//!   only where it says that we now hold everything that it held.
//! - A wire v1 remote sends a gapless history per site, cut anywhere. The cursor follows the changes, except that the newest
//!   version of a site counts as incomplete until something newer of that site, or the end of stored events, proves otherwise.
//!
//! After anything that we could not take, no cursor moves on this connection until we ask again: what was refused, and what
//! came after it, will be asked for. Merging goes on meanwhile, since it is idempotent.

use std::time::Duration;

use litemesh_engine::MergeProgress;
use litemesh_proto::limits::{RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN};
use litemesh_proto::{Cursor, DbVersion, Limits, PeerMessage, Progress, Refusal, Remote, SyncRequest, Unverified};

use super::{Effect, MergeDone, MergeFailure, Notice};

pub(crate) struct Incoming {
    remote: Remote,
    schema_version: i64,
    limits: Limits,
    /// Something was not taken: cursors stand still until we ask again.
    is_frozen: bool,
    /// We are to ask again.
    is_ask_due: bool,
    /// The newest schema that the remote was seen to have, where it is newer than ours.
    outdated: Option<i64>,
    /// How often we asked on this connection.
    asked: u32,
    eose: bool,
    /// v1: the newest version of each site that came, perhaps in part.
    open: Cursor,
    /// The message whose merge is under way.
    pending: Option<Pending>,
}

struct Pending {
    is_eose: bool,
    open: Cursor,
}

impl Incoming {
    pub(crate) fn new(remote: Remote, schema_version: i64, limits: Limits) -> Self {
        Self {
            remote,
            schema_version,
            limits,
            is_frozen: false,
            is_ask_due: false,
            outdated: None,
            asked: 0,
            eose: false,
            open: Cursor::new(),
            pending: None,
        }
    }

    pub(crate) fn is_caught_up(&self) -> bool {
        self.eose && !self.is_frozen
    }

    pub(crate) fn ask(&mut self, cursor: Cursor, position: DbVersion, effects: &mut Vec<Effect>) {
        self.is_frozen = false;
        self.is_ask_due = false;
        self.eose = false;
        self.asked += 1;
        self.open = Cursor::new();
        let position = self.remote.is_litemesh.then_some(position);
        effects.push(Effect::Ask(SyncRequest { cursor, position }));
    }

    /// Takes a message. Gives what the remote thereby says that it holds.
    pub(crate) fn receive(&mut self, message: Unverified, effects: &mut Vec<Effect>) -> Option<Cursor> {
        // A newer schema may have newer rules: nothing else is checked then.
        if message.schema_version() > self.schema_version {
            self.is_frozen = true;
            if self.outdated != Some(message.schema_version()) {
                self.outdated = Some(message.schema_version());
                effects.push(Effect::Tell(Notice::Outdated(message.schema_version())));
            }
            effects.push(Effect::Reply(Ok(())));
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
            PeerMessage::Unknown => {
                effects.push(Effect::Reply(Ok(())));
                return None;
            }
        };
        let mut held: Cursor = changes.iter().map(|change| (change.site, change.db_version)).collect();
        let mut open = self.open.clone();
        let progress = if self.is_frozen {
            MergeProgress::default()
        } else if self.remote.is_litemesh {
            held = progress.cursor.clone().unwrap_or_default();
            self.litemesh_progress(progress)
        } else {
            open.join(&held);
            MergeProgress { cursor: self.v1_cursor(&held, &open, is_eose), position: None }
        };
        let reached = open.clone();
        self.pending = Some(Pending { is_eose, open });
        effects.push(Effect::Merge { changes, progress, reached });
        Some(held)
    }

    fn litemesh_progress(&self, progress: Progress) -> MergeProgress {
        MergeProgress {
            cursor: progress.cursor.unwrap_or_default(),
            position: progress.position.map(|position| (self.remote.site, position)),
        }
    }

    /// What is complete once the message is merged.
    fn v1_cursor(&self, held: &Cursor, open: &Cursor, is_eose: bool) -> Cursor {
        if is_eose {
            return open.clone();
        }
        // Asked twice on one connection, a v1 peer sends live changes between the pages of its second answer
        // (`known-failures.md` A10): then only the end of the answer proves anything.
        if self.asked > 1 && !self.eose {
            return Cursor::new();
        }
        held.iter().map(|(site, _)| (*site, open.get(site).previous())).filter(|(_, v)| *v > DbVersion::ZERO).collect()
    }

    pub(crate) fn merged(&mut self, result: Result<MergeDone, MergeFailure>, effects: &mut Vec<Effect>) {
        let Some(pending) = self.pending.take() else { return };
        match result {
            Ok(_) => {
                self.open = pending.open;
                if pending.is_eose && !self.is_frozen {
                    self.eose = true;
                    effects.push(Effect::Tell(Notice::Eose));
                }
                effects.push(Effect::Reply(Ok(())));
            }
            Err(MergeFailure { message, is_content: true }) => self.refuse_content(message, effects),
            Err(MergeFailure { message, is_content: false }) => {
                self.refuse(Refusal::Unavailable(message), effects);
                self.ask_later(self.ask_delay(), effects);
            }
        }
    }

    pub(crate) fn garbled(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        self.is_frozen = true;
        effects.push(Effect::Tell(Notice::Error(format!("unreadable message: {reason}"))));
        self.ask_later(self.ask_delay(), effects);
    }

    /// One request is due at a time, the first that was ordered.
    fn ask_later(&mut self, delay: Duration, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.is_ask_due, true) {
            effects.push(Effect::AskLater(delay));
        }
    }

    /// Doubles from the second time on: a remote that can send nothing readable must not be asked in a loop.
    fn ask_delay(&self) -> Duration {
        RECONNECT_DELAY_MAX.min(RECONNECT_DELAY_MIN * 2_u32.saturating_pow(self.asked.saturating_sub(1).min(5)))
    }

    /// Bad changes heal when somebody changes a schema, not within seconds; until then the cursor waits.
    fn refuse_content(&mut self, message: String, effects: &mut Vec<Effect>) {
        self.refuse(Refusal::Invalid(message), effects);
        self.ask_later(RECONNECT_DELAY_MAX, effects);
    }

    fn refuse(&mut self, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.is_frozen = true;
        effects.push(Effect::Tell(Notice::Error(refusal.to_string())));
        effects.push(Effect::Reply(Err(refusal)));
    }

    /// After the application's upgrade, what was held back is asked for.
    pub(crate) fn set_schema_version(&mut self, version: i64, effects: &mut Vec<Effect>) {
        let was_outdated = self.outdated.is_some_and(|outdated| outdated > self.schema_version);
        self.schema_version = version;
        if was_outdated && self.outdated.is_some_and(|outdated| outdated <= version) {
            self.outdated = None;
            // At once, also where a later request is due already.
            effects.push(Effect::AskLater(Duration::ZERO));
        }
    }
}
