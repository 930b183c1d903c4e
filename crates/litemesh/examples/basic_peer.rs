//! The smallest peer: it joins a hub, catches up, and what it writes arrives there.
//!
//! ```text
//! started with id 5f1c8a0e6d3b4f7295ad10c2b7e8d934
//! in the copy: buy milk
//! at the hub: buy milk, write docs
//! ```
//!
//! `cargo run -p litemesh --example basic_peer`

use std::error::Error;
use std::time::Duration;

use litemesh::{Database, Event, Peer};
use litemesh_http::{HttpClient, HttpServer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// An example ends with an error rather than wait for longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    // The hub, elsewhere another program: `litemesh serve`, or the example `server`.
    let hub_db = todo_list()?;
    hub_db.lock().connection().execute("INSERT INTO todo VALUES ('a', 'buy milk')", [])?;
    let transport = HttpServer::new();
    let hub = Peer::builder(hub_db.clone()).transport(transport.clone()).start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (shutdown, asked) = oneshot::channel::<()>();
    let server = tokio::spawn(async move { transport.serve(listener, async { drop(asked.await) }).await });

    // The peer.
    let db = todo_list()?;
    let builder = Peer::builder(db.clone()).transport(HttpClient::new(url));
    let mut events = builder.events();
    let peer = builder.start().await?;
    println!("started with id {}", peer.id());

    // Eose: all that the hub held is here. Served: all that we held is there.
    while !matches!(tokio::time::timeout(PATIENCE, events.recv()).await??, Event::Eose { .. }) {}
    println!("in the copy: {}", titles(&db)?);

    // An ordinary write. Nobody needs to be told of it.
    let mut hub_events = hub.events();
    db.lock().connection().execute("INSERT INTO todo VALUES ('b', 'write docs')", [])?;
    while titles(&hub_db)? != titles(&db)? {
        tokio::time::timeout(PATIENCE, hub_events.recv()).await??;
    }
    println!("at the hub: {}", titles(&hub_db)?);

    peer.stop().await;
    drop(shutdown);
    server.await??;
    hub.stop().await;
    Ok(())
}

/// A real program opens a file: `Database::open("todo.db")`.
fn todo_list() -> Result<Database, Box<dyn Error>> {
    let db = Database::open_in_memory()?;
    db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    db.lock().replicate("todo")?;
    Ok(db)
}

fn titles(db: &Database) -> litemesh::rusqlite::Result<String> {
    let sql = "SELECT coalesce(group_concat(title, ', '), '') FROM (SELECT title FROM todo ORDER BY id)";
    db.lock().connection().query_row(sql, [], |row| row.get(0))
}
