//! Sync by hand, without a peer: cursors, changesets, JSON and merging. For programs that carry changes their own way, in
//! files or by mail; and to see what a peer does.
//!
//! ```text
//! 1. A asks with its cursor: {"peers":{"24d1…":1}}
//! 2. B has more than A: true
//! 3. B sends 1 change, 158 bytes
//! 4. A merges: 1 won, in {"todo"}
//! 5. the same message again: 0 won
//! ```
//!
//! `cargo run -p litemesh --example low_level_flow`

use std::error::Error;

use litemesh::engine::{Engine, MergeProgress};
use litemesh::proto::codec::v1;
use litemesh::proto::{Change, PeerMessage};
use litemesh::{Cursor, Limits};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let (mut a, b) = (todo_list()?, todo_list()?);
    a.connection().execute("INSERT INTO todo VALUES ('a', 'buy milk')", [])?;
    b.connection().execute("INSERT INTO todo VALUES ('b', 'write docs')", [])?;

    // 1. A says what it holds. `request` is what would travel.
    let request = v1::serialize_cursor(&a.cursor()?);
    println!("1. A asks with its cursor: {}", String::from_utf8_lossy(&request));

    // 2. B reads the cursor, which is bytes of a stranger, and compares.
    let held_by_a: Cursor = v1::deserialize_cursor(&request)?;
    println!("2. B has more than A: {}", held_by_a.is_older_than(&b.cursor()?));

    // 3. B answers with all that the cursor does not cover, whole transactions, oldest first. (A peer also cuts long
    //    answers into messages, and says with each how far it brings the receiver.)
    let mut changes: Vec<Change> = Vec::new();
    for changeset in b.changes_since(&held_by_a) {
        changes.extend(changeset?.changes);
    }
    let answer = v1::serialize_changes(&changes);
    println!("3. B sends {} change, {} bytes", changes.len(), answer.len());

    // 4. A reads, checks and merges them. Rows and cursor move in one transaction: after a crash both did or neither.
    let PeerMessage::Changes { changes, .. } = v1::deserialize_changes(&answer)?.verify(&Limits::default())? else {
        unreachable!("a list of changes was read");
    };
    let mut news = changes;
    let held = a.cursor()?;
    news.retain(|change| held.accepts(&change.site, change.db_version)); // the seed's filterChanges
    let mut reached = Cursor::new();
    reached.update(news.iter().map(|change| (change.site, change.db_version))); // the seed's updateCursor
    // This is right only because the answer was complete. Of a part, the cursor must not take over the last version.
    let merged = a.merge(&news, &MergeProgress { cursor: reached, ..MergeProgress::default() })?;
    println!("4. A merges: {} won, in {:?}", merged.won, merged.tables);
    assert!(!a.cursor()?.is_older_than(&b.cursor()?));

    // 5. Repeats are harmless.
    println!("5. the same message again: {} won", a.merge(&news, &MergeProgress::default())?.won);
    let count: i64 = a.connection().query_row("SELECT count(*) FROM todo", [], |row| row.get(0))?;
    assert_eq!(count, 2);
    Ok(())
}

fn todo_list() -> Result<Engine, Box<dyn Error>> {
    let engine = Engine::open_in_memory()?;
    engine.connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    engine.replicate("todo")?;
    Ok(engine)
}
