//! What a peer logs says which peer, which session and which merge it is about, and nothing of the content.
//!
//! A test binary of its own, with one test: the subscriber is the whole process's, since a peer works on several threads.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use litemesh::{Database, Event, Peer};
use litemesh_testkit::{Link, MemoryTransport, connect};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `known-failures.md` C7: and none has what is in a row, unlike the original's.
#[tokio::test]
async fn every_line_of_a_session_names_it() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_env_filter("litemesh=trace")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();

    let start = async |sql: &str| {
        let db = Database::open_in_memory().unwrap();
        db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)").unwrap();
        db.lock().replicate("todo").unwrap();
        db.lock().connection().execute_batch(sql).unwrap();
        let transport = MemoryTransport::new();
        let builder = Peer::builder(db).transport(transport.clone());
        let events = builder.events();
        (builder.start().await.unwrap(), events, transport)
    };
    let (here, mut events, at_here) = start("INSERT INTO todo VALUES ('key-of-a-row', 'secret-value')").await;
    let (there, mut there_events, at_there) = start("").await;
    connect(&at_here, &at_there, Link::Litemesh).await.unwrap();
    let caught_up = async {
        while !matches!(there_events.recv().await.unwrap(), Event::Eose { .. }) {}
        while !matches!(events.recv().await.unwrap(), Event::Served { .. }) {}
    };
    tokio::time::timeout(Duration::from_secs(60), caught_up).await.unwrap();
    let (here_site, there_site) = (here.id().fmt_short().to_string(), there.id().fmt_short().to_string());
    here.stop().await;
    there.stop().await;

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    // The outer spans first.
    let session = format!("peer{{site={there_site}}}:session{{remote={here_site} transport=memory}}:");
    let merge = format!("{session}merge{{remote={here_site} changes=1}}: litemesh::work: merged");
    assert!(log.contains(&merge), "{merge} is not in\n{log}");
    let ended = format!("{session} litemesh::driver: session ended");
    assert!(log.contains(&ended), "{ended} is not in\n{log}");
    assert!(!log.contains("secret-value") && !log.contains("key-of-a-row"), "{log}");
}
