//! A hub inside a web server of your own: the routes of sync stand under a prefix, beside the application's.
//!
//! ```text
//! sync server on http://127.0.0.1:40123/api/worker
//! GET /health: HTTP/1.0 200 OK
//! from the client: buy milk
//! shut down
//! ```
//!
//! `cargo run -p litemesh --example server`

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use litemesh::{Database, Peer};
use litemesh_http::{HttpClient, HttpServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// An example ends with an error rather than wait for longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let db = todo_list()?;
    let transport = HttpServer::new();
    let peer = Peer::builder(db.clone()).transport(transport.clone()).start().await?;

    // Whoever reaches the routes can read and write the database: put your authentication around them, as a layer. The
    // example `custom_http_client` does.
    let app = Router::new().route("/health", get(|| async { "ok" })).nest("/api/worker", transport.routes());

    // Port 0 takes a free one. A real server ends at `tokio::signal::ctrl_c()` instead.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (shutdown, asked) = oneshot::channel::<()>();
    let server = tokio::spawn(async move { transport.serve_router(app, listener, async { drop(asked.await) }).await });
    println!("sync server on http://{address}/api/worker");

    // Somebody looks at a route of the application.
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await??;
    assert!(answer.ends_with("ok"));
    println!("GET /health: {}", answer.lines().next().unwrap_or_default());

    // A client, elsewhere another program.
    let mut events = peer.events();
    let client_db = todo_list()?;
    client_db.lock().connection().execute("INSERT INTO todo VALUES ('a', 'buy milk')", [])?;
    let http = HttpClient::new(format!("http://{address}/api/worker"));
    let client = Peer::builder(client_db).transport(http).start().await?;
    let arrival = async {
        loop {
            if let Some(title) = first_title(&db)? {
                return Ok::<_, Box<dyn Error>>(title);
            }
            events.recv().await?;
        }
    };
    println!("from the client: {}", tokio::time::timeout(PATIENCE, arrival).await??);
    client.stop().await;

    // First the server, which lets answers under way finish; then the peer.
    drop(shutdown);
    server.await??;
    peer.stop().await;
    println!("shut down");
    Ok(())
}

fn todo_list() -> Result<Database, Box<dyn Error>> {
    let db = Database::open_in_memory()?;
    db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    db.lock().replicate("todo")?;
    Ok(db)
}

fn first_title(db: &Database) -> litemesh::rusqlite::Result<Option<String>> {
    db.lock().connection().query_row("SELECT min(title) FROM todo", [], |row| row.get(0))
}
