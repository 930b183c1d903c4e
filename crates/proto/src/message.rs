//! What peers say to each other, as plain enums: no bytes, no transport.

use crate::limits::VERSION_MAX;
use crate::{Change, Cursor, DbVersion, Limits, SiteId, VerifyError};

/// A request for everything that the asker does not hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SyncRequest {
    /// What the asker holds.
    pub cursor: Cursor,
    /// Up to which of the *answerer's* local versions the asker has merged everything: where a broken catch-up resumes.
    ///
    /// Between Litemesh peers only; `None` for an original peer.
    pub position: Option<DbVersion>,
}

/// How far a message of a Litemesh peer brings its receiver. An original peer neither sends nor reads it.
///
/// The receiver stores it in the transaction that merges the message's changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The sender's local version up to which everything has now been sent.
    pub position: Option<DbVersion>,
    /// The sender's cursor, where everything that it held has now been sent: at the end of catch-up, and with every live
    /// batch. Only the entries that the receiver is not known to hold.
    pub cursor: Option<Cursor>,
}

/// One message between two peers (`wire-protocol.md` 1.4).
#[derive(Clone, Debug, PartialEq)]
pub enum PeerMessage {
    /// Changes, during catch-up or live. May be empty.
    Changes {
        /// The changes, whole rows together.
        changes: Vec<Change>,
        /// The sender's `PRAGMA user_version`.
        schema_version: i64,
        /// See [`Progress`].
        progress: Progress,
    },
    /// End of stored events: the answer to one sync request is complete.
    Eose {
        /// See [`Progress`].
        progress: Progress,
    },
    /// A message of a kind that this version does not know. Ignored, not an error.
    Unknown,
}

impl PeerMessage {
    /// How many changes the message carries.
    pub fn change_count(&self) -> usize {
        match self {
            Self::Changes { changes, .. } => changes.len(),
            Self::Eose { .. } | Self::Unknown => 0,
        }
    }
}

/// A message as a stranger sent it: its syntax is right, its content is not checked yet.
///
/// [`verify`](Self::verify) is the only road to the [`PeerMessage`], so nothing can be merged that was not checked.
#[derive(Clone, Debug)]
pub struct Unverified {
    pub(crate) message: PeerMessage,
    /// The first change that broke a rule, if any did.
    pub(crate) invalid: Option<VerifyError>,
}

impl Unverified {
    /// Wraps a message that was built rather than parsed: for transports that carry messages by value, and for tests.
    pub fn new(message: PeerMessage) -> Self {
        Self { message, invalid: None }
    }

    /// The sender's schema version. Decided on before anything else is checked: a newer schema may have newer rules.
    pub fn schema_version(&self) -> i64 {
        match &self.message {
            PeerMessage::Changes { schema_version, .. } => *schema_version,
            PeerMessage::Eose { .. } | PeerMessage::Unknown => 0,
        }
    }

    /// The table of each change, as the stranger wrote it.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        let changes = match &self.message {
            PeerMessage::Changes { changes, .. } => changes.as_slice(),
            PeerMessage::Eose { .. } | PeerMessage::Unknown => &[],
        };
        changes.iter().map(|change| &*change.table)
    }

    /// The message without the cursor that the sender claims; see [`Progress::cursor`].
    #[must_use]
    pub fn without_cursor(mut self) -> Self {
        if let PeerMessage::Changes { progress, .. } | PeerMessage::Eose { progress } = &mut self.message {
            progress.cursor = None;
        }
        self
    }

    /// Checks every change: names, packed key, versions, sizes; and the versions that the sender claims. One pass, no I/O.
    ///
    /// # Errors
    ///
    /// The first rule that a change breaks, with the index of the change, or a claim that no database can make true. Nothing of the message may be used then.
    pub fn verify(self, limits: &Limits) -> Result<PeerMessage, VerifyError> {
        if let Some(invalid) = self.invalid {
            return Err(invalid);
        }
        if let PeerMessage::Changes { changes, .. } = &self.message {
            for (index, change) in changes.iter().enumerate() {
                crate::verify::verify_change(change, limits)
                    .map_err(|reason| VerifyError::Change { index, reason: reason.to_string() })?;
            }
        }
        if let PeerMessage::Changes { progress, .. } | PeerMessage::Eose { progress } = &self.message {
            let versions = progress.cursor.iter().flat_map(Cursor::iter).map(|(_, version)| ("version", version));
            let claims = versions.chain(progress.position.map(|position| ("position", position)));
            for (what, value) in claims.map(|(what, version)| (what, version.get())) {
                if value > VERSION_MAX {
                    return Err(VerifyError::Claim { what, value, max: VERSION_MAX });
                }
            }
        }
        Ok(self.message)
    }
}

/// One connection to a remote peer, as a transport made it.
///
/// A peer that connects again gets another `connection`, so that nothing of an old connection can be taken for the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Remote {
    /// The remote's site id.
    pub site: SiteId,
    /// Tells apart the connections of one process. From [`Remote::next_connection`].
    pub connection: u64,
    /// Whether the remote is a Litemesh peer, and so speaks [`Progress`].
    pub is_litemesh: bool,
}

impl Remote {
    /// A number that no other connection of this process has.
    pub fn next_connection() -> u64 {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beyond it nobody could write any more, and JSON of others would round it (`known-failures.md` C3).
    #[test]
    fn claims_beyond_the_last_version_are_refused() {
        let site = SiteId::from_bytes([7; 16]);
        let claim = |version: i64, position: i64| {
            let cursor = Some([(site, DbVersion::new(version))].into_iter().collect());
            let progress = Progress { position: Some(DbVersion::new(position)), cursor };
            let changes = PeerMessage::Changes { changes: Vec::new(), schema_version: 0, progress: progress.clone() };
            let verified = [changes, PeerMessage::Eose { progress }].map(|message| {
                Unverified::new(message).verify(&Limits::default()).map(drop).map_err(|error| error.to_string())
            });
            assert_eq!(verified[0], verified[1]);
            verified[0].clone()
        };
        assert_eq!(claim(VERSION_MAX, VERSION_MAX), Ok(()));
        for (version, position) in [(VERSION_MAX + 1, 0), (i64::MAX, 0), (0, VERSION_MAX + 1), (0, i64::MAX)] {
            let refused = claim(version, position).unwrap_err();
            assert!(refused.contains("is claimed, at most 9007199254740991"), "{refused}");
        }
    }
}
