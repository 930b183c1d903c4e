//! One peer, two transports at once: a client over HTTP, another over a channel. What one of them writes reaches
//! the other through the peer in the middle.
//!
//! ```text
//! http: connected
//! memory: connected
//! from the HTTP client, at the other end of the channel: buy milk
//! from the other end of the channel, at the HTTP client: write docs
//! ```
//!
//! `cargo run -p litemesh --example several_transports`

use std::error::Error;
use std::time::Duration;

use litemesh::{Database, Event, Events, Peer, channel};
use litemesh_http::{HttpClient, HttpServer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// An example ends with an error rather than wait for longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    // In memory; `ssh`, pipes and Unix sockets do as well.
    let (near, far) = channel::pair();
    let http = HttpServer::new();

    // The peer in the middle.
    let builder = Peer::builder(todo_list()?).transport(http.clone()).transport(near);
    let mut events = builder.events();
    let middle = builder.start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (shutdown, asked) = oneshot::channel::<()>();
    let server = tokio::spawn(async move { http.serve(listener, async { drop(asked.await) }).await });

    // The two others, elsewhere other programs.
    let (db_1, db_2) = (todo_list()?, todo_list()?);
    let builder_1 = Peer::builder(db_1.clone()).transport(HttpClient::new(url));
    let builder_2 = Peer::builder(db_2.clone()).transport(far);
    let (mut events_1, mut events_2) = (builder_1.events(), builder_2.events());
    let (peer_1, peer_2) = (builder_1.start().await?, builder_2.start().await?);

    let mut connected = Vec::new();
    while connected.len() < 2 {
        if let Event::Connect { transport, .. } = tokio::time::timeout(PATIENCE, events.recv()).await?? {
            connected.push(transport);
        }
    }
    connected.sort();
    for transport in connected {
        println!("{transport}: connected");
    }

    db_1.lock().connection().execute("INSERT INTO todo VALUES ('a', 'buy milk')", [])?;
    let title = tokio::time::timeout(PATIENCE, title_of("a", &db_2, &mut events_2)).await??;
    println!("from the HTTP client, at the other end of the stream: {title}");

    db_2.lock().connection().execute("INSERT INTO todo VALUES ('b', 'write docs')", [])?;
    let title = tokio::time::timeout(PATIENCE, title_of("b", &db_1, &mut events_1)).await??;
    println!("from the other end of the channel, at the HTTP client: {title}");

    peer_1.stop().await;
    peer_2.stop().await;
    drop(shutdown);
    server.await??;
    middle.stop().await;
    Ok(())
}

/// Waits until a row is there.
async fn title_of(id: &str, db: &Database, events: &mut Events) -> Result<String, Box<dyn Error>> {
    loop {
        let sql = "SELECT max(title) FROM todo WHERE id = ?";
        let title: Option<String> = db.lock().connection().query_row(sql, [id], |row| row.get(0))?;
        match title {
            Some(title) => return Ok(title),
            None => drop(events.recv().await?),
        }
    }
}

fn todo_list() -> Result<Database, Box<dyn Error>> {
    let db = Database::open_in_memory()?;
    db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    db.lock().replicate("todo")?;
    Ok(db)
}
