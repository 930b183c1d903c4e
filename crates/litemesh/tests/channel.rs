//! Peers over streams of bytes.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use litemesh::channel::{self, Channel, ChannelError};
use litemesh::proto::codec::v2;
use litemesh::proto::{Access, Rights};
use litemesh::{Database, Event, Peer, SiteId};
use support::{PATIENCE, database};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

struct Node {
    db: Database,
    peer: Peer,
    events: litemesh::Events,
}

impl Node {
    async fn start(db: Database, channel: Channel) -> Self {
        let builder = Peer::builder(db.clone()).transport(channel);
        let events = builder.events();
        Self { db, peer: builder.start().await.unwrap(), events }
    }

    fn execute(&self, sql: &str) {
        self.db.lock().connection().execute_batch(sql).unwrap();
    }

    fn titles(&self) -> Vec<String> {
        let engine = self.db.lock();
        let mut statement = engine.connection().prepare("SELECT title FROM todo ORDER BY id").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    async fn wait(&mut self, what: &str, found: impl Fn(&Event) -> bool) {
        let wait = async { while !found(&self.events.recv().await.unwrap()) {} };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no event: {what}"));
    }

    async fn wait_for_titles(&mut self, titles: &[&str]) {
        let wait = async {
            while self.titles() != titles {
                self.events.recv().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{titles:?}: {:?}", self.titles()));
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this should have happened by now")
}

#[tokio::test]
async fn two_peers_in_one_process() {
    let (near, far) = channel::pair();
    let (mut a, mut b) = (Node::start(database(), near).await, Node::start(database(), far).await);
    a.execute("INSERT INTO todo VALUES ('1', 'from a', 0)");
    b.execute("INSERT INTO todo VALUES ('2', 'from b', 0)");
    for node in [&mut a, &mut b] {
        node.wait_for_titles(&["from a", "from b"]).await;
    }
    // More than one message, and one that is larger than what the stream holds.
    a.execute("INSERT INTO todo SELECT value + 10, hex(zeroblob(20000)), 0 FROM json_each('[1,2,3,4,5,6,7,8,9,10]')");
    soon(async {
        while b.titles().len() < 12 {
            b.events.recv().await.unwrap();
        }
    })
    .await;
    a.peer.stop().await;
    b.wait("the end", |event| matches!(event, Event::Disconnect { .. })).await;
    b.peer.stop().await;
}

/// A stream may break anywhere; the next one goes on (`known-failures.md` B14).
#[tokio::test]
async fn a_stream_that_breaks_is_made_again() {
    let far = Channel::new();
    let broken = Arc::new(AtomicU64::new(0));
    let near = {
        let (far, broken) = (far.clone(), broken.clone());
        Channel::dialling("breaking", move || {
            let (far, number) = (far.clone(), broken.fetch_add(1, Relaxed));
            async move {
                let (ours, theirs) = duplex(1024);
                let (middle_near, middle_far) = duplex(1024);
                // The first two streams end after so many bytes from the far end: a hello fits, the change does not.
                let bytes_max = if number < 2 { 40 + 40 * number } else { u64::MAX };
                tokio::spawn(async move {
                    let (mut from_far, mut to_far) = split(middle_far);
                    let (from_near, mut to_near) = split(theirs);
                    let up = async { drop(tokio::io::copy(&mut { from_near }, &mut to_far).await) };
                    let down =
                        async { drop(tokio::io::copy(&mut (&mut from_far).take(bytes_max), &mut to_near).await) };
                    tokio::select! { () = up => {} () = down => {} }
                });
                let (read, write) = split(middle_near);
                tokio::spawn(async move { far.accept(read, write, Access::FULL).await });
                Ok(split(ours))
            }
        })
    };
    let (mut a, b) = (Node::start(database(), near).await, Node::start(database(), far).await);
    // Nothing that compression could make short.
    let mut rng = fastrand::Rng::with_seed(1);
    let title: String = (0..400).map(|_| rng.alphanumeric()).collect();
    b.execute(&format!("INSERT INTO todo VALUES ('1', '{title}', 0)"));
    a.wait_for_titles(&[&title]).await;
    let streams = broken.load(Relaxed);
    assert!(streams >= 3, "{streams}");
}

#[tokio::test]
async fn who_accepts_says_what_the_other_may_do() {
    let listener = Channel::new();
    let near = {
        let listener = listener.clone();
        Channel::dialling("reader", move || {
            let listener = listener.clone();
            async move {
                let (ours, theirs) = duplex(1 << 16);
                let (read, write) = split(theirs);
                tokio::spawn(async move { listener.accept(read, write, Access::new(Rights::Read)).await });
                Ok(split(ours))
            }
        })
    };
    let (mut reader, hub) = (Node::start(database(), near).await, Node::start(database(), listener).await);
    reader.execute("INSERT INTO todo VALUES ('1', 'stays here', 0)");
    hub.execute("INSERT INTO todo VALUES ('2', 'is read', 0)");
    reader.wait_for_titles(&["stays here", "is read"]).await;
    assert_eq!(hub.titles(), ["is read"]);
}

#[tokio::test]
async fn a_copy_of_a_file_is_refused_and_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let (file, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
    {
        let db = Database::open(&file).unwrap();
        db.lock().connection().execute_batch(support::SCHEMA).unwrap();
        db.lock().replicate("todo").unwrap();
        db.lock().connection().execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    }
    let (near, far) = channel::pair();
    let a = Node::start(Database::open(&file).unwrap(), near.clone()).await;
    let _b = Node::start(Database::open(&copy).unwrap(), far).await;
    soon(async {
        while !matches!(near.last_error(), Some(ChannelError::Refused { reason }) if reason.contains("site id")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(a.peer.status().is_empty());
}

/// Whatever is at the other end, it is refused with a reason, and the channel serves the next stream.
#[tokio::test]
async fn strangers_are_refused() {
    let channel = Channel::new();
    let node = Node::start(database(), channel.clone()).await;
    let too_long = [0xff, 0xff, 0xff, 0x7f, 1, 2, 3];
    for (bytes, reason) in [
        (b"Welcome to Debian\r\n".as_slice(), "frame"),
        (&too_long, "frame"),
        (&v2::framed(&v2::ping()), "did not begin with a hello"),
        (&v2::framed(b"\x01\x00\x02"), ""),
        (&[3, 0, 0, 0, 1], "ended inside of a frame"),
        (b"", "closed the stream"),
    ] {
        let (mut ours, theirs) = duplex(1 << 16);
        ours.write_all(bytes).await.unwrap();
        ours.shutdown().await.unwrap();
        let (read, write) = split(theirs);
        match soon(channel.accept(read, write, Access::FULL)).await {
            ChannelError::NoPeer { reason: given } => {
                assert!(given.contains(reason), "{bytes:?}: {given}");
                // Our hello, and then the same.
                let mut all = Vec::new();
                soon(ours.read_to_end(&mut all)).await.unwrap();
                assert!(all.ends_with(&v2::framed(&v2::error(&given))), "{bytes:?}: {all:?}");
            }
            other => panic!("{bytes:?}: {other:?}"),
        }
    }
    // One that introduces itself, and goes on with what is no frame.
    let (mut ours, theirs) = duplex(1 << 16);
    let hello = v2::Hello { version: 2, site: SiteId::from_bytes([9; 16]), access: Access::FULL };
    ours.write_all(&v2::framed(&v2::hello(&hello))).await.unwrap();
    ours.write_all(&v2::framed(&[3, 0, 0xff, 0xff])).await.unwrap();
    ours.shutdown().await.unwrap();
    let (read, write) = split(theirs);
    let ended = soon(channel.accept(read, write, Access::FULL)).await;
    assert_eq!(ended, ChannelError::Ended { reason: "the other end closed the stream".to_owned() });
    let mut all = Vec::new();
    soon(ours.read_to_end(&mut all)).await.unwrap();
    assert!(all.len() > 20, "our own hello and request");
    node.peer.stop().await;
    let (read, write) = split(duplex(64).0);
    assert_eq!(soon(channel.accept(read, write, Access::FULL)).await, ChannelError::Stopped);
}

/// A stop in the middle of everything ends everything, and reports nothing afterwards.
#[tokio::test]
async fn a_stop_while_much_is_under_way_ends() {
    let (near, far) = channel::pair();
    let (a, b) = (Node::start(database(), near).await, Node::start(database(), far).await);
    for n in 0..40 {
        a.execute(&format!("INSERT INTO todo VALUES ('{n}', hex(zeroblob(50000)), 0)"));
        tokio::task::yield_now().await;
    }
    soon(b.peer.stop()).await;
    soon(a.peer.stop()).await;
    assert!(a.peer.status().is_empty() && b.peer.status().is_empty());
}
