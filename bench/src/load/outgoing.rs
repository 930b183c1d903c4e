//! What a light peer sends: the answer to the hub's request, and then its writes as their time comes.

use litemesh::proto::{
    Ack, CausalLength, Change, ColVersion, Column, Cursor, DbVersion, Incarnation, PackedKey, PeerMessage, Position,
    Progress, Seq, SiteId, SyncRequest, Value,
};

use crate::Error;

#[derive(Default)]
pub struct Outgoing {
    answer: Option<u32>,
    /// The number of the last message.
    number: u64,
    /// The number of the last message that may be sent.
    allowed: u64,
    is_eose_due: bool,
    /// Our own version: one for each write.
    version: i64,
    /// When the writes that wait were to be made, in nanoseconds of the wall clock.
    waiting: Vec<u64>,
}

impl Outgoing {
    pub fn asked(&mut self, request: &SyncRequest) {
        let Some(terms) = &request.terms else { return };
        self.answer = Some(terms.answer);
        (self.number, self.allowed, self.is_eose_due) = (0, u64::from(terms.credit), true);
    }

    pub fn disconnected(&mut self) {
        self.answer = None;
    }

    pub fn acknowledged(&mut self, ack: Ack) {
        if Some(ack.answer) == self.answer {
            self.allowed = self.allowed.max(ack.until);
        }
    }

    pub fn write(&mut self, nanos: u64) {
        self.waiting.push(nanos);
    }

    /// The next message, and how many writes it carries. Writes that had to wait go together, as from a database.
    pub fn next(&mut self, site: SiteId) -> Result<Option<(PeerMessage, usize)>, Error> {
        let Some(answer) = self.answer else { return Ok(None) };
        if self.number >= self.allowed {
            return Ok(None);
        }
        if std::mem::take(&mut self.is_eose_due) {
            let progress = self.progress(answer, site);
            return Ok(Some((PeerMessage::Eose { progress: Some(progress) }, 0)));
        }
        if self.waiting.is_empty() {
            return Ok(None);
        }
        let mut changes = Vec::with_capacity(self.waiting.len());
        for nanos in std::mem::take(&mut self.waiting) {
            self.version += 1;
            changes.push(Change {
                table: "message".into(),
                key: PackedKey::pack(&[Value::text(format!("{}-{}", site.fmt_short(), self.version))])?,
                column: Column::from("body"),
                value: Value::text(format!("{nanos} is when this was said")),
                col_version: ColVersion::new(1),
                db_version: DbVersion::new(self.version),
                site,
                causal_length: CausalLength::FIRST,
                seq: Seq::ZERO,
            });
        }
        let (count, progress) = (changes.len(), Some(self.progress(answer, site)));
        Ok(Some((PeerMessage::Changes { changes, schema_version: 0, progress }, count)))
    }

    fn progress(&mut self, answer: u32, site: SiteId) -> Progress {
        self.number += 1;
        let version = DbVersion::new(self.version);
        Progress {
            answer,
            number: self.number,
            position: Some(Position { version, incarnation: Incarnation(1) }),
            // A database that was never written to holds nothing of its own.
            cursor: (version > DbVersion::ZERO).then(|| Cursor::from_iter([(site, version)])),
            ..Progress::default()
        }
    }
}
