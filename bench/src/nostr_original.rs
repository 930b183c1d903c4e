//! A Litemesh peer and an original one over a relay, both ways. The original is played: it has no database, reads every event of its
//! stream, and publishes messages as the original cuts them, one after another.

use std::time::{Duration, Instant};

use litemesh::proto::{Change, Cursor, Limits, PeerMessage, SiteId};
use litemesh::{Database, Event, Peer};
use litemesh_nostr::nostr::{Keys, RelayUrl, Timestamp};
use litemesh_nostr::{
    Batch, CHANGES_KIND, CHANGES_LIFETIME, ChainHead, CursorContent, Envelope, Incoming, Outgoing, Pairing, Store,
    StreamId, filter,
};
use nostr_relay_builder::prelude::{MemoryDatabase, NostrDatabase};
use nostr_sdk::{Client, RelayPoolNotification};
use serde_json::{Value, json};

use crate::nostr::transport;
use crate::{Error, workload};

const ORIGINAL: SiteId = SiteId::from_bytes([0xA5; 16]);

/// Longer than any of the two takes where it works.
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn run(rows: usize, relay: &str, memory: &MemoryDatabase) -> Result<Value, Error> {
    let (changes, sent) = to_original(rows, relay).await?;
    let received = from_original(rows, changes, relay, memory).await?;
    let pace = |took: Duration| (3.0 * rows as f64 / took.as_secs_f64()).round();
    Ok(json!({ "changes": 3 * rows, "to_original_per_second": pace(sent), "from_original_per_second": pace(received) }))
}

/// Until the original has read all that a Litemesh peer has. Gives it, and how long that took.
async fn to_original(rows: usize, relay: &str) -> Result<(Vec<Change>, Duration), Error> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("full.db");
    let db = Database::open(&file)?;
    workload::create(&db)?;
    workload::fill(db.lock().connection(), rows, 1000)?;
    let (envelope, client) = pair(&db, &file, relay).await?;
    let peer = Peer::builder(db.clone()).transport(transport(&file)?).start().await?;
    let stream = StreamId::from_bytes([1; 16]);
    let mut heard = client.notifications();
    client.subscribe(filter::changes(envelope.remote(), &stream, None), None).await?;
    let content = CursorContent { peer_id: ORIGINAL, stream_id: stream, cursor: Cursor::new(), litemesh: None };
    let started = Instant::now();
    client.send_event(&envelope.cursor(&content, Timestamp::now())?).await?;
    let mut changes = Vec::new();
    while changes.len() < 3 * rows {
        let notification = tokio::time::timeout(PATIENCE, heard.recv()).await??;
        let RelayPoolNotification::Event { event, .. } = notification else { continue };
        if event.kind != CHANGES_KIND || event.pubkey != envelope.remote() {
            continue;
        }
        let Incoming::Message(message) = envelope.read_changes(&event, peer.id())?.content else {
            return Err("an original got frames".into());
        };
        if let PeerMessage::Changes { changes: more, .. } = message.verify(&Limits::default())? {
            changes.extend(more);
        }
    }
    let took = started.elapsed();
    peer.stop().await;
    client.shutdown().await;
    Ok((changes, took))
}

/// Until a Litemesh peer without rows has all that an original has.
async fn from_original(
    rows: usize,
    changes: Vec<Change>,
    relay: &str,
    memory: &MemoryDatabase,
) -> Result<Duration, Error> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("empty.db");
    let db = Database::open(&file)?;
    workload::create(&db)?;
    let (envelope, client) = pair(&db, &file, relay).await?;
    let builder = Peer::builder(db.clone()).transport(transport(&file)?);
    let mut events = builder.events();
    let started = Instant::now();
    let peer = builder.start().await?;
    let asked = loop {
        let cursors = memory.query(filter::cursors(envelope.remote())).await?;
        match cursors.first() {
            Some(cursor) => break envelope.read_cursor(cursor, peer.id())?,
            None if started.elapsed() > PATIENCE => return Err("the peer asks for nothing".into()),
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let mut head = None;
    for batch in Batch::cut(changes, 0) {
        let content = Outgoing::Batch(&batch);
        let event = envelope.changes(ORIGINAL, content, &asked.stream_id, head, CHANGES_LIFETIME, Timestamp::now())?;
        head = Some(ChainHead::of(&event));
        client.send_event(&event).await?;
    }
    while workload::count(db.lock().connection())? < rows {
        while !matches!(tokio::time::timeout(PATIENCE, events.recv()).await??, Event::Change { .. }) {}
    }
    let took = started.elapsed();
    peer.stop().await;
    client.shutdown().await;
    Ok(took)
}

/// Pairs a database with an original, as if long ago. Gives the original's side.
async fn pair(db: &Database, file: &std::path::Path, relay: &str) -> Result<(Envelope, Client), Error> {
    let (ours, theirs) = (Keys::generate(), Keys::generate());
    let pairing = Pairing {
        site: db.lock().site()?,
        local_key: theirs.public_key(),
        peer: ORIGINAL,
        peer_key: ours.public_key(),
        device: "an original".to_owned(),
        relays: vec![RelayUrl::parse(relay)?],
        paired_at: Timestamp::now(),
        is_litemesh: false,
    };
    Store::open(&Store::path_beside(file))?.pair(&pairing, Some(theirs.secret_key()))?;
    let client = Client::default();
    client.add_relay(relay).await?;
    client.connect().await;
    client.wait_for_connection(PATIENCE).await;
    Ok((Envelope::new(ours, theirs.public_key())?, client))
}
