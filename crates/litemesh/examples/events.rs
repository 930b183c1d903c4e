//! What an application hears of, and what it does when its schema is too old.
//!
//! The hub's application was upgraded already, ours was not. Its changes are then neither merged nor skipped: after our
//! upgrade they come by themselves.
//!
//! ```text
//! connected to 80f2d7c4
//! 80f2d7c4 asked for what it lacks
//! 80f2d7c4 needs schema 2: upgrading
//! 80f2d7c4 has all that it asked for
//! changed: {"todo"}
//! caught up with 80f2d7c4
//! stopped
//! ```
//!
//! (The order differs from run to run: the two directions do not wait for each other.)
//!
//! `cargo run -p litemesh --example events`

use std::error::Error;
use std::time::Duration;

use litemesh::{Database, Event, EventError, Peer};
use litemesh_http::{HttpClient, HttpServer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// An example ends with an error rather than wait for longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    // The hub, elsewhere another program.
    let hub_db = todo_list(2)?;
    hub_db.lock().connection().execute("INSERT INTO todo VALUES ('a', 'buy milk')", [])?;
    let transport = HttpServer::new();
    let hub = Peer::builder(hub_db).transport(transport.clone()).start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (shutdown, asked) = oneshot::channel::<()>();
    let server = tokio::spawn(async move { transport.serve(listener, async { drop(asked.await) }).await });

    let db = todo_list(1)?;
    let builder = Peer::builder(db.clone()).transport(HttpClient::new(url));
    let mut events = builder.events(); // made before the start, so that it misses nothing
    let peer = builder.start().await?;

    let mut is_caught_up = false;
    // This program has seen enough when it holds the row and heard of the end of the stored events.
    while !(is_caught_up && title(&db)?.is_some()) {
        match tokio::time::timeout(PATIENCE, events.recv()).await? {
            Ok(Event::Connect { peer, .. }) => println!("connected to {}", peer.fmt_short()),
            Ok(Event::Sync { peer, .. }) => println!("{} asked for what it lacks", peer.fmt_short()),
            Ok(Event::Served { peer, .. }) => println!("{} has all that it asked for", peer.fmt_short()),
            // Here a program would refresh what it shows.
            Ok(Event::Change { tables }) => println!("changed: {tables:?}"),
            Ok(Event::Outdated { schema_version, peer: remote, .. }) => {
                println!("{} needs schema {schema_version}: upgrading", remote.fmt_short());
                // Here a program would migrate its tables, or ask its user to install the new version.
                db.lock().connection().pragma_update(None, "user_version", schema_version)?;
                // A schema version is no change of a row: this makes the peer look at once.
                peer.check_local_changes().await?;
            }
            Ok(Event::Eose { peer, .. }) => {
                println!("caught up with {}", peer.fmt_short());
                is_caught_up = true;
            }
            Ok(Event::Disconnect { reason, .. }) => println!("disconnected, dialling again: {reason}"),
            Ok(Event::Error { message, .. }) => println!("refused or failed: {message}"),
            Ok(_) => {} // events that a later version may add
            // Nothing waits for a slow listener: it looks at the database itself, then goes on.
            Err(EventError::Lagged(count)) => println!("missed {count} events"),
            Err(EventError::Closed) => break,
        }
    }
    peer.stop().await;
    println!("stopped");

    drop(shutdown);
    server.await??;
    hub.stop().await;
    Ok(())
}

fn todo_list(schema_version: i64) -> Result<Database, Box<dyn Error>> {
    let db = Database::open_in_memory()?;
    db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    db.lock().connection().pragma_update(None, "user_version", schema_version)?;
    db.lock().replicate("todo")?;
    Ok(db)
}

fn title(db: &Database) -> litemesh::rusqlite::Result<Option<String>> {
    db.lock().connection().query_row("SELECT max(title) FROM todo", [], |row| row.get(0))
}
