//! A transport of your own: `stream_transport.rs` beside this file carries sync over any stream of bytes.
//!
//! ```text
//! caught up with 3b9ac0d1 over stream
//! here: buy milk
//! ```
//!
//! `cargo run -p litemesh --example custom_transport`

mod stream_transport;

use std::error::Error;
use std::time::Duration;

use litemesh::{Database, Event, Peer};
use stream_transport::StreamTransport;

/// An example ends with an error rather than wait for longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    // Two ends of one stream: a Unix socket, a serial line or the pipes of a child process would do as well.
    let (left, right) = tokio::io::duplex(64 * 1024);

    let there = todo_list()?;
    there.lock().connection().execute("INSERT INTO todo VALUES ('a', 'buy milk')", [])?;
    let remote = Peer::builder(there).transport(StreamTransport::new(left)).start().await?;

    let here = todo_list()?;
    let builder = Peer::builder(here.clone()).transport(StreamTransport::new(right));
    let mut events = builder.events();
    let peer = builder.start().await?;
    loop {
        if let Event::Eose { peer, transport } = tokio::time::timeout(PATIENCE, events.recv()).await?? {
            println!("caught up with {} over {transport}", peer.fmt_short());
            break;
        }
    }
    let title: String = here.lock().connection().query_row("SELECT title FROM todo", [], |row| row.get(0))?;
    println!("here: {title}");

    peer.stop().await;
    remote.stop().await;
    Ok(())
}

fn todo_list() -> Result<Database, Box<dyn Error>> {
    let db = Database::open_in_memory()?;
    db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    db.lock().replicate("todo")?;
    Ok(db)
}
