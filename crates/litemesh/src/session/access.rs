//! Who may what: the only place where the rights of a remote are enforced, whatever the transport.
//!
//! - *Incoming*: a change to a table outside of the remote's access refuses its message. Of a remote that may not write
//!   nothing is asked, and what it sends and claims moves nothing here.
//! - *Outgoing*: changes of other tables are left out of what is read for the remote.
//! - *Cursors*: who is sent some tables only must never be told a cursor, since it would claim to hold what it was not sent,
//!   here and towards everybody else; and its own claims are made of as little. Positions say only how far was read, so they
//!   are exchanged, but each belongs to one list of tables: see [`Gate::position_key`].
//! - *Wire v1* remotes take every change for a claim, so one with a list of tables is refused ([`check_remote`]).

use litemesh_proto::{Access, Cursor, Refusal, Remote, SiteId, SyncRequest, Unverified};

use super::Page;

/// What one remote may do here.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    access: Access,
}

/// Whether a remote can be served at all with this access.
pub(crate) fn check_remote(remote: Remote, access: &Access) -> Result<(), Refusal> {
    if access.is_restricted() && !remote.is_litemesh {
        let message = "access to some tables only needs a Litemesh peer: one of wire v1 takes what it is sent for all that \
                       there is, and would claim to hold the rest";
        return Err(Refusal::Forbidden(message.to_owned()));
    }
    Ok(())
}

impl Gate {
    pub(crate) fn new(access: Access) -> Self {
        Self { access }
    }

    /// Whether the remote is sent changes.
    pub(crate) fn is_reader(&self) -> bool {
        self.access.may_read()
    }

    /// Whether the remote's changes are merged, and so asked for.
    pub(crate) fn is_writer(&self) -> bool {
        self.access.may_write()
    }

    /// What of a message is taken: `None` where there is nothing in it that could move anything.
    pub(crate) fn admit(&self, message: Unverified) -> Result<Option<Unverified>, Refusal> {
        if !self.is_writer() {
            return match message.tables().next() {
                None => Ok(None),
                Some(_) => Err(Refusal::Forbidden("changes are refused: this access is to read only".to_owned())),
            };
        }
        if !self.access.is_restricted() {
            return Ok(Some(message));
        }
        let refused = message.tables().enumerate().find(|(_, table)| !self.access.covers(table));
        if let Some((index, _)) = refused {
            // Without the name: the sender knows it, and it may be long.
            let message = format!("change at index {index} is refused: this access does not cover its table");
            return Err(Refusal::Forbidden(message));
        }
        Ok(Some(message.without_cursor()))
    }

    /// The remote's request, where it may make one.
    pub(crate) fn heed(&self, request: SyncRequest) -> Option<SyncRequest> {
        self.is_reader().then_some(request)
    }

    /// Takes out of a page what the remote is not to be sent.
    pub(crate) fn narrow(&self, page: &mut Page) {
        if !self.access.is_restricted() {
            return;
        }
        let (Page::Local { page: litemesh_engine::LocalPage { changes, .. }, .. } | Page::Sites { changes, .. }) = page;
        changes.retain(|change| self.access.covers(&change.table));
        if let Page::Local { page, .. } = page {
            // Complete it is, but of no cursor.
            page.complete = page.complete.take().map(|_| Cursor::new());
        }
    }

    /// The id under which a position in what `site` has is kept.
    ///
    /// A position says that everything below it was read, of the tables of its time. If it stood for another list, too, a
    /// table that is added to a remote's access later would lack all that was written before. So each list has a position of
    /// its own, under the site id mixed with the list (FNV-1a of 128 bits: it tells lists apart, it protects nothing).
    pub(crate) fn position_key(&self, site: SiteId) -> SiteId {
        const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let Some(tables) = self.access.tables() else { return site };
        // No name has a zero byte, which so ends each of them.
        let bytes = tables.iter().flat_map(|table| table.bytes().chain([0]));
        let mixed = bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
        SiteId::from_bytes((u128::from_be_bytes(*site.as_bytes()) ^ mixed).to_be_bytes())
    }

    /// Of which site nothing counts that the remote's cursor says of it: of `us`, or none.
    ///
    /// A writer that claims later versions of ours than there are has seen what this file lost, and makes ours go on above
    /// them. A reader must not move our clock; so nothing that it claims of us counts, and its position alone says what it is
    /// sent.
    pub(crate) fn doubts(&self, us: SiteId) -> Option<SiteId> {
        (!self.is_writer()).then_some(us)
    }
}

#[cfg(test)]
mod tests {
    use litemesh_engine::{LocalPage, LocalPlace, Moves};
    use litemesh_proto::{
        CausalLength, Change, ColVersion, Column, DbVersion, Incarnation, PackedKey, PeerMessage, Position, Progress,
        Rights, Seq, Value,
    };

    use super::super::Begin;
    use super::*;

    const SITE: SiteId = SiteId::from_bytes([9; 16]);
    const OTHER: SiteId = SiteId::from_bytes([7; 16]);

    fn gate(rights: Rights, tables: Option<&[&str]>) -> Gate {
        let access = Access::new(rights);
        Gate::new(match tables {
            Some(tables) => access.only(tables).unwrap(),
            None => access,
        })
    }

    fn change(table: &str) -> Change {
        Change {
            table: table.into(),
            key: PackedKey::pack(&[Value::Integer(1)]).unwrap(),
            column: Column::from("c"),
            value: Value::Integer(1),
            col_version: ColVersion::new(1),
            db_version: DbVersion::new(1),
            site: OTHER,
            causal_length: CausalLength::FIRST,
            seq: Seq::ZERO,
        }
    }

    fn cursor() -> Cursor {
        [(SITE, DbVersion::new(5)), (OTHER, DbVersion::new(6))].into_iter().collect()
    }

    fn progress(cursor: Option<Cursor>) -> Progress {
        let position = Some(Position { version: DbVersion::new(3), incarnation: Incarnation(1) });
        Progress { answer: 1, number: 1, position, cursor, ..Progress::default() }
    }

    fn message(tables: &[&str]) -> Unverified {
        let changes = tables.iter().map(|table| change(table)).collect();
        Unverified::new(PeerMessage::Changes { changes, schema_version: 0, progress: Some(progress(Some(cursor()))) })
    }

    /// What is left of the progress of a message that is taken.
    fn admitted(gate: &Gate, message: Unverified) -> Option<Progress> {
        let message = gate.admit(message).unwrap()?;
        match message.verify(&litemesh_proto::Limits::default()).unwrap() {
            PeerMessage::Changes { progress, .. } | PeerMessage::Eose { progress } => progress,
            PeerMessage::Ack(_) | PeerMessage::Unknown => None,
        }
    }

    #[test]
    fn a_reader_moves_nothing() {
        let gate = gate(Rights::Read, None);
        assert!(matches!(gate.admit(message(&["t"])), Err(Refusal::Forbidden(_))));
        assert_eq!(admitted(&gate, message(&[])), None);
        let eose = PeerMessage::Eose { progress: Some(progress(Some(cursor()))) };
        assert_eq!(admitted(&gate, Unverified::new(eose)), None);
    }

    #[test]
    fn a_writer_of_some_tables_changes_no_other_and_claims_no_cursor() {
        let gate = gate(Rights::ReadWrite, Some(&["a", "b"]));
        for tables in [&["c"][..], &["a", "c"], &["a", "b", "sqlite_master"], &[""]] {
            assert!(matches!(gate.admit(message(tables)), Err(Refusal::Forbidden(_))), "{tables:?}");
        }
        assert_eq!(admitted(&gate, message(&["a", "B"])), Some(progress(None)));
        let full = self::gate(Rights::ReadWrite, None);
        assert_eq!(admitted(&full, message(&["c"])).unwrap().cursor, Some(cursor()));
    }

    #[test]
    fn a_reader_of_some_tables_is_sent_no_other_and_no_cursor() {
        let page = || {
            let changes = vec![change("a"), change("c"), change("A")];
            let (place, incarnation) = (LocalPlace::after(DbVersion::new(8)), Incarnation(1));
            Page::Local {
                page: LocalPage {
                    site: SITE,
                    changes,
                    place,
                    incarnation,
                    newest: DbVersion::new(8),
                    is_provisional: false,
                    complete: Some(cursor()),
                    moves: Moves::NONE,
                },
                begin: Begin::There,
                read_at: 0,
            }
        };
        let narrowed = |tables: Option<&[&str]>| {
            let mut page = page();
            gate(Rights::Read, tables).narrow(&mut page);
            let Page::Local { page, .. } = page else { panic!("{page:?}") };
            assert_eq!(page.place.position(), DbVersion::new(8));
            (page.changes.len(), page.complete)
        };
        assert_eq!(narrowed(Some(&["a"])), (2, Some(Cursor::new())));
        assert_eq!(narrowed(Some(&[])), (0, Some(Cursor::new())));
        assert_eq!(narrowed(None), (3, Some(cursor())));
    }

    #[test]
    fn each_list_of_tables_has_a_position_of_its_own() {
        let key = |tables: Option<&[&str]>| gate(Rights::Read, tables).position_key(SITE);
        let keys = [key(None), key(Some(&[])), key(Some(&["a"])), key(Some(&["a", "b"])), key(Some(&["ab"]))];
        assert_eq!(keys[0], SITE);
        for (n, key) in keys.iter().enumerate() {
            assert!(!keys[..n].contains(key), "{n}");
        }
        assert_eq!(key(Some(&["B", "a"])), keys[3]);
        assert_ne!(gate(Rights::Read, Some(&["a"])).position_key(OTHER), keys[2]);
    }

    #[test]
    fn what_a_reader_claims_of_us_does_not_count() {
        assert_eq!(gate(Rights::Read, None).doubts(SITE), Some(SITE));
        assert_eq!(gate(Rights::ReadWrite, None).doubts(SITE), None);
    }

    #[test]
    fn a_v1_remote_has_all_tables_or_none() {
        let remote = |is_litemesh| Remote { site: SITE, connection: 1, is_litemesh };
        let some = Access::new(Rights::Read).only(["a"]).unwrap();
        assert!(matches!(check_remote(remote(false), &some), Err(Refusal::Forbidden(_))));
        assert_eq!(check_remote(remote(true), &some), Ok(()));
        assert_eq!(check_remote(remote(false), &Access::new(Rights::Read)), Ok(()));
    }
}
