//! A peer that keeps the rules of the original, `@app/sync` in TypeScript: how it asks, what it answers and passes on, and how its
//! cursor moves. Only its database is ours.
//!
//! It has a log of every change that it saw, answers a request out of that, asks with `>` and filters with `>=`, acknowledges
//! nothing, and passes on what is new to it to everybody else, without a look at what came from there. What it loses by its
//! own faults is in docs/testing.md, "Simulation".

use std::collections::VecDeque;

use litemesh::simulation;
use litemesh_engine::proto::Value;
use litemesh_engine::proto::{Change, Cursor, Limits, PeerMessage, Refusal, Remote, SyncRequest, Unverified};
use litemesh_engine::rusqlite::{self, Connection, params, types::Value as Sql};

use super::Simulation;
use super::database::own_changes_since;
use super::network::Frame;
use super::node::{RunningSession, SCHEMA_VERSION, Side};

/// Rows of a page of an answer.
const PAGE_ROWS: usize = 10_000;

/// Changes that it applies in one transaction.
const CHUNK: usize = 2_000;

/// What it has on disk beside the tables: `all_peers` and `crsql_change_history`.
#[derive(Default)]
pub(super) struct Original {
    cursor: Cursor,
    history: Vec<Change>,
}

/// What it knows of one remote while that is connected.
pub(super) struct Talk {
    pub(super) remote: Remote,
    /// What it believes that the remote has.
    cursor: Cursor,
    is_active: bool,
    /// What came up while the answer was under way.
    pending: Vec<Change>,
    outbox: VecDeque<PeerMessage>,
}

impl Talk {
    pub(super) fn new(remote: Remote) -> Self {
        Self { remote, cursor: Cursor::new(), is_active: false, pending: Vec::new(), outbox: VecDeque::new() }
    }

    pub(super) fn is_caught_up(&self) -> bool {
        self.is_active && self.outbox.is_empty() && self.pending.is_empty()
    }
}

fn advance<'a>(cursor: &mut Cursor, changes: impl IntoIterator<Item = &'a Change>) {
    cursor.join(&changes.into_iter().map(|change| (change.site, change.db_version)).collect());
}

fn filter(changes: &[Change], cursor: &Cursor) -> Vec<Change> {
    changes.iter().filter(|change| change.db_version >= cursor.get(&change.site)).cloned().collect()
}

fn apply(connection: &Connection, changes: &[Change]) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let insert = || {
        let mut insert =
            connection.prepare_cached("INSERT INTO crsql_changes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
        for change in changes {
            let value = match &change.value {
                Value::Null => Sql::Null,
                Value::Integer(value) => Sql::Integer(*value),
                Value::Real(value) => Sql::Real(*value),
                Value::Text(text) => Sql::Text(String::from_utf8_lossy(text).into_owned()),
                Value::Blob(bytes) => Sql::Blob(bytes.to_vec()),
            };
            insert.execute(params![
                &*change.table,
                change.key.as_bytes(),
                change.column.as_str(),
                value,
                change.col_version.get(),
                change.db_version.get(),
                change.site.as_bytes(),
                change.causal_length.get(),
                change.seq.get(),
            ])?;
        }
        Ok(())
    };
    let result: rusqlite::Result<()> = insert();
    connection.execute_batch(if result.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    result
}

impl Simulation {
    fn original(&mut self, node: usize) -> &mut Original {
        self.nodes[node].original.as_mut().expect("a peer with the rules of the original")
    }

    fn talk(&mut self, node: usize, connection: u64) -> Option<&mut Talk> {
        match &mut self.nodes[node].running.as_mut()?.sessions.get_mut(&connection)?.session {
            Side::Original(talk) => Some(talk),
            Side::Ours(_) => None,
        }
    }

    /// A remote connected: it is asked with what is held.
    pub(super) fn open_talk(&mut self, node: usize, connection: u64, end: usize, transport: usize, remote: Remote) {
        let session = RunningSession::new(Side::Original(Box::new(Talk::new(remote))), end, transport);
        self.nodes[node].running.as_mut().expect("a peer that runs").sessions.insert(connection, session);
        let request = self.request_of_original(node);
        let bytes = self.request(connection, end, &request);
        self.push(connection, end, Frame::Sync(bytes));
    }

    /// What was to go on the last stream goes nowhere.
    pub(super) fn drop_outbox(&mut self, node: usize, connection: u64) {
        if let Some(talk) = self.talk(node, connection) {
            talk.outbox.clear();
        }
    }

    pub(super) fn request_of_original(&mut self, node: usize) -> SyncRequest {
        SyncRequest { cursor: self.original(node).cursor.clone(), terms: None }
    }

    /// Something happened to a remote.
    pub(super) fn talk_over(&mut self, node: usize, connection: u64, event: simulation::Event) {
        match event {
            simulation::Event::Asked(request) | simulation::Event::Resumed(request, _) => {
                self.answer(node, connection, request.cursor);
            }
            simulation::Event::Received(message) => {
                let result = self.take(node, connection, message);
                if self.relayed(node, connection).is_some() {
                    self.replied_relayed(node, connection, result);
                } else {
                    self.replied(node, connection, result);
                }
            }
            // The rest concerns sessions of ours.
            _ => {}
        }
        self.talk_on(node, connection);
    }

    /// Sends the next message, if none is under way.
    fn talk_on(&mut self, node: usize, connection: u64) {
        let Some(running) = &mut self.nodes[node].running else { return };
        let Some(session) = running.sessions.get_mut(&connection) else { return };
        let Side::Original(talk) = &mut session.session else { return };
        if session.is_sending {
            return;
        }
        let (end, is_relayed) = (session.end, session.relayed.is_some());
        let Some(message) = talk.outbox.pop_front() else { return };
        if is_relayed {
            self.send_relayed(node, connection, &message);
        } else {
            self.send(node, connection, end, &message);
        }
    }

    fn schema_of(&self, node: usize) -> i64 {
        SCHEMA_VERSION + i64::from(self.nodes[node].is_upgraded)
    }

    fn answer(&mut self, node: usize, connection: u64, asked: Cursor) {
        let schema_version = self.schema_of(node);
        let mut rows: Vec<Change> = self.original(node).history.clone();
        rows.retain(|change| change.db_version > asked.get(&change.site));
        rows.sort_by_key(|change| (change.site, change.db_version));
        let Some(talk) = self.talk(node, connection) else { return };
        talk.cursor = asked;
        advance(&mut talk.cursor, &rows);
        // Without a row, or with whole pages only, the last page is an empty one.
        for page in rows.chunks(PAGE_ROWS).chain(rows.len().is_multiple_of(PAGE_ROWS).then_some(&[][..])) {
            talk.outbox.push_back(PeerMessage::Changes { changes: page.to_vec(), schema_version, progress: None });
        }
        talk.outbox.push_back(PeerMessage::Eose { progress: None });
        if !talk.pending.is_empty() {
            let changes = std::mem::take(&mut talk.pending);
            talk.outbox.push_back(PeerMessage::Changes { changes, schema_version, progress: None });
        }
        talk.is_active = true;
    }

    fn take(&mut self, node: usize, connection: u64, message: Unverified) -> Result<(), Refusal> {
        if message.schema_version() > self.schema_of(node) {
            return Ok(());
        }
        let message = message.verify(&Limits::default()).expect("a message of ours or of the original");
        let PeerMessage::Changes { changes, .. } = message else { return Ok(()) };
        let new = filter(&changes, &self.original(node).cursor);
        if let Some(talk) = self.talk(node, connection) {
            advance(&mut talk.cursor, &new);
        }
        for chunk in new.chunks(CHUNK) {
            let connection = self.nodes[node].engine().expect("a peer that runs").connection();
            if let Err(error) = apply(connection, chunk) {
                return Err(Refusal::Unavailable(error.to_string()));
            }
            self.original(node).history.extend_from_slice(chunk);
        }
        if !new.is_empty() {
            advance(&mut self.original(node).cursor, &new);
            self.note(format_args!("{node} takes {} changes as the original does", new.len()));
            self.broadcast(node, &new, Some(connection));
        }
        Ok(())
    }

    /// `checkLocalChanges`.
    pub(super) fn check_local_changes(&mut self, node: usize) {
        let since = self.nodes[node]
            .original
            .as_ref()
            .map_or_else(Default::default, |original| original.cursor.get(&self.nodes[node].site));
        let Some(engine) = self.nodes[node].engine() else { return };
        let changes = own_changes_since(engine.connection(), since);
        if !changes.is_empty() {
            let original = self.original(node);
            advance(&mut original.cursor, &changes);
            original.history.extend_from_slice(&changes);
            self.broadcast(node, &changes, None);
        }
    }

    fn broadcast(&mut self, node: usize, changes: &[Change], except: Option<u64>) {
        let schema_version = self.schema_of(node);
        let running = self.nodes[node].running.as_mut().expect("a peer that runs");
        let mut told = Vec::new();
        for (connection, session) in &mut running.sessions {
            let Side::Original(talk) = &mut session.session else { continue };
            if Some(*connection) == except {
                continue;
            }
            if talk.is_active {
                // Also where nothing is left of it.
                let changes = filter(changes, &talk.cursor);
                talk.outbox.push_back(PeerMessage::Changes { changes, schema_version, progress: None });
                told.push(*connection);
            } else {
                talk.pending.extend_from_slice(changes);
            }
        }
        for connection in told {
            self.talk_on(node, connection);
        }
    }
}
