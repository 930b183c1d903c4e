//! Asking, and merging what comes: the receiver's half of the cursor rule (docs/storage.md).
//!
//! - A Litemesh remote says with each message how far it brings us. We store that with the rows, and take over its cursor
//!   only where it says that we now hold everything that it held.
//! - A wire v1 remote sends a gapless history per site, cut anywhere. The cursor follows the changes, except that the newest
//!   version of a site counts as incomplete until something newer of that site, or the end of stored events, proves otherwise.
//!
//! After anything that we could not take, no cursor moves on this connection any more, and merging goes on, since it is
//! idempotent. What was refused, and what came after it, is asked for over the next connection; we end this one to get it.
//! Asking again over the same one would not do: messages of the first answer may still be under way, its end among them,
//! and nothing in wire v1 tells them from those of the second.

use std::time::Duration;

use litemesh_engine::MergeProgress;
use litemesh_proto::limits::{RECONNECT_DELAY_MAX, RECONNECT_DELAY_MIN};
use litemesh_proto::{Cursor, DbVersion, Limits, PeerMessage, Progress, Refusal, Remote, SyncRequest, Unverified};

use super::{Effect, MergeDone, MergeFailure, Notice};

pub(crate) struct Incoming {
    remote: Remote,
    schema_version: i64,
    limits: Limits,
    /// Something was not taken: cursors stand still on this connection.
    is_frozen: bool,
    /// The connection is to be ended.
    is_end_due: bool,
    /// The newest schema that the remote was seen to have, where it is newer than ours.
    outdated: Option<i64>,
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
            is_end_due: false,
            outdated: None,
            eose: false,
            open: Cursor::new(),
            pending: None,
        }
    }

    pub(crate) fn is_caught_up(&self) -> bool {
        self.eose && !self.is_frozen
    }

    pub(crate) fn ask(&self, cursor: Cursor, position: DbVersion, effects: &mut Vec<Effect>) {
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
        // What the remote thereby says that it holds. A Litemesh peer's changes come with holes in its versions, so only its
        // cursor says that; those of a v1 peer come without.
        let held: Cursor = if self.remote.is_litemesh {
            progress.cursor.clone().unwrap_or_default()
        } else {
            changes.iter().map(|change| (change.site, change.db_version)).collect()
        };
        let mut open = self.open.clone();
        let progress = if self.is_frozen {
            MergeProgress::default()
        } else if self.remote.is_litemesh {
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
                self.end_after(RECONNECT_DELAY_MIN, "our database could not take a message", effects);
            }
        }
    }

    pub(crate) fn garbled(&mut self, reason: &str, effects: &mut Vec<Effect>) {
        self.is_frozen = true;
        effects.push(Effect::Tell(Notice::Error(format!("unreadable message: {reason}"))));
        self.end_after(RECONNECT_DELAY_MIN, "a message could not be read", effects);
    }

    /// Bad changes heal when somebody changes a schema, not within seconds; until then the connection serves for the rest.
    fn refuse_content(&mut self, message: String, effects: &mut Vec<Effect>) {
        self.refuse(Refusal::Invalid(message), effects);
        self.end_after(RECONNECT_DELAY_MAX, "a message was refused", effects);
    }

    /// The first order counts.
    fn end_after(&mut self, delay: Duration, what: &str, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.is_end_due, true) {
            effects.push(Effect::EndAfter(delay, format!("{what}: asking for it again over a new connection")));
        }
    }

    /// Takes nothing of a message. Asking for it again is left to whoever calls.
    pub(crate) fn refuse(&mut self, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.is_frozen = true;
        effects.push(Effect::Tell(Notice::Error(refusal.to_string())));
        effects.push(Effect::Reply(Err(refusal)));
    }

    /// After the application's upgrade, or once a missing table is there, what was held back is asked for.
    pub(crate) fn schema_changed(&mut self, version: i64, effects: &mut Vec<Effect>) {
        self.schema_version = version;
        let is_outdated = self.outdated.is_some_and(|outdated| outdated > version);
        if self.is_frozen && !is_outdated {
            // At once, also where the end is due later already.
            let reason = "the schema was changed: asking for what was held back over a new connection";
            effects.push(Effect::EndAfter(Duration::ZERO, reason.to_owned()));
        }
    }
}
