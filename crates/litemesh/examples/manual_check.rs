//! Looking for local changes by hand. It is never needed: a peer notices every commit, also those of other programs. It is
//! for code that wants to know *when* a write has been noticed, such as a test.
//!
//! ```text
//! another program wrote to the file
//! checked: changes in {"todo"}
//! ```
//!
//! `cargo run -p litemesh --example manual_check`

use std::error::Error;
use std::time::Duration;

use litemesh::engine::Engine;
use litemesh::{Database, Event, Peer};

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("todo.db");
    let db = Database::open(&path)?;
    db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    db.lock().replicate("todo")?;
    let builder = Peer::builder(db);
    let mut events = builder.events();
    let peer = builder.start().await?;

    // A connection that knows nothing of the peer, as another program would have one: `litemesh sql`, say.
    let other_program = Engine::open(&path)?;
    other_program.connection().execute("INSERT INTO todo VALUES ('a', 'buy milk')", [])?;
    println!("another program wrote to the file");

    // When it resolves, all that was committed before is announced, and on its way to every connected peer.
    peer.check_local_changes().await?;
    match tokio::time::timeout(Duration::ZERO, events.recv()).await?? {
        Event::Change { tables } => println!("checked: changes in {tables:?}"),
        other => return Err(format!("unexpected: {other:?}").into()),
    }

    peer.stop().await;
    Ok(())
}
