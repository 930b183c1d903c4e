//! What peers say to each other, as plain enums: no bytes, no transport.

use crate::limits::VERSION_MAX;
use crate::{Change, Cursor, DbVersion, Limits, SiteId, VerifyError};

/// A request for everything that the asker does not hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SyncRequest {
    /// What the asker holds.
    pub cursor: Cursor,
    /// How the answer is to be given. Between Litemesh peers only; `None` for an original peer.
    pub terms: Option<Terms>,
}

/// How a Litemesh peer wants to be answered (docs/protocol.md).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    /// Number of the request; each message of the answer carries it, so that answers to earlier requests are told apart.
    pub answer: u32,
    /// How many messages the asker takes before it has acknowledged any of them.
    pub credit: u32,
    /// How far the asker is in what the answerer has, merged or staged: where a broken catch-up goes on.
    pub position: Position,
    /// The place inside a transaction up to which the asker has staged its parts, as the answerer called it. The transaction is
    /// the one after the position.
    pub staged: Option<Place>,
    /// Where the answerer held more when this was read than came of it: its newest position then ([`Progress::as_of`]).
    pub as_of: Option<Position>,
}

/// How far a peer is in what another one has: everything up to this *local version of the sender* is merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The sender's local version.
    pub version: DbVersion,
    /// Of which life of the sender's database. Zero where it gave none.
    pub incarnation: Incarnation,
}

/// How far in our versions a remote is that was up to date over some connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// It has acknowledged that it holds everything up to here.
    pub acknowledged: Position,
    /// Up to here nothing else is for it: it has what follows from elsewhere, or wrote it. Never less.
    pub reached: Position,
}

/// What a transport whose carrier keeps messages remembers of the answer with which it goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// How far another connection has brought the remote since it asked.
    pub served: Option<Served>,
    /// Of what *we wrote* the remote holds nothing above this, as far as it came over this carrier. `None`: not known.
    pub written: Option<DbVersion>,
}

/// A random number that a database gets whenever it is opened and written to.
///
/// A database that was restored from a backup goes on under another incarnation than the one whose versions others have
/// seen, and so learns that its versions since then mean something else to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// A place inside a transaction, in words that only who gave it understands. At most [`PLACE_BYTES_MAX`] bytes.
///
/// [`PLACE_BYTES_MAX`]: crate::limits::PLACE_BYTES_MAX
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place(pub Box<[u8]>);

/// Where a message stands in an answer, and how far it brings its receiver.
///
/// The receiver stores it in the transaction that merges the message's changes. An original peer neither sends nor reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The number of the answered request: [`Terms::answer`].
    pub answer: u32,
    /// The messages of an answer are numbered from 1 without gaps.
    pub number: u64,
    /// Whether the changes are whole transactions.
    pub part: Part,
    /// Whether the sender held more than what is sent with this message. Until that has come, too, the receiver lets nobody see
    /// these changes: what overwrote a part of one of these transactions may be among the rest.
    pub more: bool,
    /// Whether versions of the changes may be provisional: earlier than their authors gave them, since they came to the sender over wire
    /// v1. Then they come again under their own.
    pub provisional: bool,
    /// The receiver holds everything up to here, as it acknowledged over another connection: what lies between the message before this one
    /// and here is not sent. One that does not hold it asks again. Version zero: the answer begins at the very start, whatever was asked
    /// for, and what is staged of the sender is of a life that it has lost.
    pub since: Option<Position>,
    /// Everything up to here has now been sent.
    pub position: Option<Position>,
    /// With [`more`](Self::more): the sender's newest version when it read this. A sender that was restored to before it no longer has
    /// what overwrote a part of these changes, and begins its answer at the very start.
    pub as_of: Option<Position>,
    /// The sender's cursor, where everything that it held has now been sent: at the end of catch-up, and with every live
    /// batch. Only the entries that the receiver is not known to hold.
    pub cursor: Option<Cursor>,
}

impl Progress {
    fn verify(&self) -> Result<(), VerifyError> {
        for position in [self.since, self.position, self.as_of].into_iter().flatten() {
            verify_version("position", position.version)?;
        }
        if let Some(cursor) = &self.cursor {
            verify_cursor(cursor)?;
        }
        Ok(())
    }
}

fn verify_cursor(cursor: &Cursor) -> Result<(), VerifyError> {
    cursor.iter().try_for_each(|(_, version)| verify_version("version", version))
}

fn verify_version(what: &'static str, version: DbVersion) -> Result<(), VerifyError> {
    if (0..=VERSION_MAX).contains(&version.get()) {
        return Ok(());
    }
    Err(VerifyError::Claim { what, value: version.get(), max: VERSION_MAX })
}

/// Whether the changes of a message are whole transactions of the sender, or a part of one that is too large for a message.
///
/// A part is staged; once the last one is there, all are merged at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Part {
    /// Whole transactions.
    #[default]
    Whole,
    /// A part with which the transaction is not complete.
    Piece {
        /// The place up to which the parts before it lead; `None` for the first.
        after: Option<Place>,
        /// The place up to which this part leads.
        until: Place,
    },
    /// The part that completes the transaction. Whole transactions may follow in the same message.
    Last {
        /// The place up to which the parts before it lead.
        after: Place,
    },
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
        /// See [`Progress`]. `None` from and to an original peer.
        progress: Option<Progress>,
    },
    /// End of stored events: the answer to one sync request is complete.
    Eose {
        /// See [`Progress`]. `None` from and to an original peer. Where it carries none itself, a transport that keeps messages makes
        /// one up when everything that is kept has come; [`Progress::more`] then says that this proves nothing.
        progress: Option<Progress>,
    },
    /// Everything up to this message of an answer is durable here. Between Litemesh peers only.
    Ack(Ack),
    /// A message of a kind that this version does not know. Ignored, not an error.
    Unknown,
}

impl PeerMessage {
    /// Where the message stands in an answer, if it is numbered.
    pub fn progress(&self) -> Option<&Progress> {
        match self {
            Self::Changes { progress, .. } | Self::Eose { progress } => progress.as_ref(),
            Self::Ack(_) | Self::Unknown => None,
        }
    }

    /// The author and the version of each change.
    pub fn versions(&self) -> impl Iterator<Item = (SiteId, DbVersion)> {
        let changes = match self {
            Self::Changes { changes, .. } => changes.as_slice(),
            Self::Eose { .. } | Self::Ack(_) | Self::Unknown => &[],
        };
        changes.iter().map(|change| (change.site, change.db_version))
    }

    /// How many changes the message carries.
    pub fn change_count(&self) -> usize {
        match self {
            Self::Changes { changes, .. } => changes.len(),
            Self::Eose { .. } | Self::Ack(_) | Self::Unknown => 0,
        }
    }
}

/// An acknowledgement: of messages that are durable at who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which answer: [`Terms::answer`].
    pub answer: u32,
    /// All messages of it up to this one.
    pub number: u64,
    /// The number of the last message that may now be sent.
    pub until: u64,
}

/// A message as a stranger sent it: its syntax is right, its content is not checked yet.
///
/// [`verify`](Self::verify) is the only road to the [`PeerMessage`], so nothing can be merged that was not checked.
#[derive(Clone, Debug)]
pub struct Unverified {
    pub(crate) message: PeerMessage,
    /// The first change that broke a rule, if any did. Rare, and so not to make all messages larger.
    pub(crate) invalid: Option<Box<VerifyError>>,
    pub(crate) is_early: bool,
    pub(crate) is_resumed: bool,
}

impl Unverified {
    /// Wraps a message that was built rather than parsed: for transports that carry messages by value, and for tests.
    pub fn new(message: PeerMessage) -> Self {
        Self { message, invalid: None, is_early: false, is_resumed: false }
    }

    /// The sender's schema version. Decided on before anything else is checked: a newer schema may have newer rules.
    pub fn schema_version(&self) -> i64 {
        match &self.message {
            PeerMessage::Changes { schema_version, .. } => *schema_version,
            PeerMessage::Eose { .. } | PeerMessage::Ack(_) | PeerMessage::Unknown => 0,
        }
    }

    /// The acknowledgement, if it is one: there is nothing in it to be checked.
    pub fn ack(&self) -> Option<Ack> {
        match &self.message {
            PeerMessage::Ack(ack) => Some(*ack),
            _ => None,
        }
    }

    /// The number of the answer that the message belongs to, and its own in it. Known before the rest is checked, so that what
    /// belongs to an earlier answer can be left alone.
    pub fn order(&self) -> Option<(u32, u64)> {
        match &self.message {
            PeerMessage::Changes { progress, .. } | PeerMessage::Eose { progress } => {
                progress.as_ref().map(|progress| (progress.answer, progress.number))
            }
            PeerMessage::Ack(_) | PeerMessage::Unknown => None,
        }
    }

    /// Where the message says that it stands in an answer.
    pub fn progress(&self) -> Option<&Progress> {
        self.message.progress()
    }

    /// The message at another place: for a transport that keeps the order itself, over the restarts of both peers, in which numbers
    /// begin anew.
    #[must_use]
    pub fn numbered(mut self, answer: u32, number: u64) -> Self {
        if let PeerMessage::Changes { progress: Some(progress), .. } | PeerMessage::Eose { progress: Some(progress) } =
            &mut self.message
        {
            (progress.answer, progress.number) = (answer, number);
        }
        self
    }

    /// The author and the version of each change, as the stranger wrote them.
    pub fn versions(&self) -> impl Iterator<Item = (SiteId, DbVersion)> {
        self.message.versions()
    }

    /// The table of each change, as the stranger wrote it.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        let changes = match &self.message {
            PeerMessage::Changes { changes, .. } => changes.as_slice(),
            PeerMessage::Eose { .. } | PeerMessage::Ack(_) | PeerMessage::Unknown => &[],
        };
        changes.iter().map(|change| &*change.table)
    }

    /// The same, sent before its sender asked for what it is being sent: for a transport that keeps messages, over which they may come
    /// later than that request. What they bring the sender may have lost since, restored from a backup.
    #[must_use]
    pub fn early(self) -> Self {
        Self { is_early: true, ..self }
    }

    /// Whether it is [`early`](Self::early).
    pub fn is_early(&self) -> bool {
        self.is_early
    }

    /// The same, of an answer that was asked for before the receiver was started: for a transport that keeps messages. What its sender then
    /// took to be held the file may have lost since.
    #[must_use]
    pub fn resumed(self) -> Self {
        Self { is_resumed: true, ..self }
    }

    /// Whether it is [`resumed`](Self::resumed).
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// The message without the cursor that the sender claims; see [`Progress::cursor`].
    #[must_use]
    pub fn without_cursor(mut self) -> Self {
        if let PeerMessage::Changes { progress: Some(progress), .. } | PeerMessage::Eose { progress: Some(progress) } =
            &mut self.message
        {
            progress.cursor = None;
        }
        self
    }

    /// Checks every change: names, packed key, versions, sizes; and the versions that the sender claims. One pass, no I/O.
    ///
    /// # Errors
    ///
    /// The first rule that a change breaks, with the index of the change, or a claim that no database can make true. Nothing of
    /// the message may be used then.
    pub fn verify(self, limits: &Limits) -> Result<PeerMessage, VerifyError> {
        if let Some(invalid) = self.invalid {
            return Err(*invalid);
        }
        if let PeerMessage::Changes { progress: Some(progress), .. } | PeerMessage::Eose { progress: Some(progress) } =
            &self.message
        {
            progress.verify()?;
        }
        if let PeerMessage::Changes { changes, .. } = &self.message {
            for (index, change) in changes.iter().enumerate() {
                crate::verify::verify_change(change, limits)
                    .map_err(|reason| VerifyError::Change { index, reason: reason.to_string() })?;
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
    /// Whether the remote is a Litemesh peer, and so speaks [`Terms`], [`Progress`] and [`Ack`].
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
            let position = Some(Position { version: DbVersion::new(position), incarnation: Incarnation(1) });
            let progress = Some(Progress { position, cursor, ..Progress::default() });
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
