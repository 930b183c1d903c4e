//! The checks, one function each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use litemesh_proto::{
    CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, PeerMessage, Progress, Remote, Seq, SiteId,
    Transport, TransportError, Value,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::peer::{Side, request};
use super::{Kind, Proxy};
use crate::proxy::{Ending, Line, Way};

const NEAR: SiteId = SiteId::from_bytes([0xa1; 16]);
const FAR: SiteId = SiteId::from_bytes([0xf2; 16]);

/// Long beside what a loopback takes, and nothing depends on that: what is to be absent would be late on a slow machine.
const A_WHILE: Duration = Duration::from_millis(300);

/// Two ends and the line between them.
struct Scene {
    proxy: Proxy,
    address: SocketAddr,
    near: Side,
    far: Side,
}

impl Scene {
    /// Both ends, not started.
    async fn new(kind: &dyn Kind) -> Self {
        let (far, address) = kind.listen().await;
        let proxy = Proxy::start();
        proxy.lead_to(Some(address));
        let near = kind.dial(proxy.address());
        Self { address, near: Side::new(NEAR, near), far: Side::new(FAR, far), proxy }
    }

    async fn connected(kind: &dyn Kind) -> (Self, Remote, Remote) {
        let mut scene = Self::new(kind).await;
        scene.far.start().await;
        scene.near.start().await;
        let (to_far, to_near) = scene.meet().await;
        (scene, to_far, to_near)
    }

    /// Waits for the next connection: what the near end calls it, and what the far end does. Each has asked, too.
    async fn meet(&mut self) -> (Remote, Remote) {
        let to_far = self.near.connect().await;
        let to_near = self.far.connect().await;
        assert_eq!((to_far.site, to_near.site), (FAR, NEAR), "each knows who the other is");
        assert_eq!(self.far.request(to_near).await, request(NEAR, to_far), "the request of the near end");
        assert_eq!(self.near.request(to_far).await, request(FAR, to_near), "the request of the far end");
        (to_far, to_near)
    }

    async fn end(self) {
        self.near.check();
        self.far.check();
        self.near.stop().await;
        self.far.stop().await;
        self.near.check();
        self.far.check();
    }
}

/// The `number`th message, with a value of so many bytes; without changes where there are none.
fn message(remote: Remote, number: usize, bytes: usize) -> PeerMessage {
    let number_of_message = u64::try_from(number).unwrap_or_default() + 1;
    let change = Change {
        table: "todo".into(),
        key: PackedKey::pack(&[Value::Integer(number_of_message.cast_signed())])
            .unwrap_or_else(|error| panic!("{error}")),
        column: Column::from("title"),
        value: Value::text(noise(number_of_message, bytes)),
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(number_of_message.cast_signed()),
        site: FAR,
        causal_length: CausalLength::FIRST,
        seq: Seq::ZERO,
    };
    let progress = Progress { answer: 3, number: number_of_message, ..Progress::default() };
    PeerMessage::Changes {
        changes: if bytes == 0 { Vec::new() } else { vec![change] },
        schema_version: 0,
        progress: remote.is_litemesh.then_some(progress),
    }
}

/// Text that does not shrink much.
fn noise(seed: u64, bytes: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.alphanumeric()).take(bytes).collect()
}

async fn send(transport: &Arc<dyn Transport>, remote: Remote, message: PeerMessage) -> Result<(), TransportError> {
    transport.send(remote, message).await
}

async fn carry_one(from: &Side, to: &mut Side, (there, back): (Remote, Remote), number: usize, bytes: usize) {
    let sent = message(there, number, bytes);
    send(&from.transport, there, sent.clone()).await.unwrap_or_else(|error| panic!("{bytes} bytes: {error}"));
    assert_eq!(to.message(back).await, sent, "{bytes} bytes");
}

pub(super) async fn introduces(kind: &dyn Kind) {
    let (scene, to_far, to_near) = Scene::connected(kind).await;
    assert_eq!(to_far.is_litemesh, to_near.is_litemesh, "both speak the same");
    scene.end().await;
}

pub(super) async fn carries(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    let largest = scene.near.transport.message_bytes_max(to_far).min(scene.far.transport.message_bytes_max(to_near));
    let sizes = [0, 1, 100, 5_000, 70_000, 300_000, largest / 10 * 9];
    for (number, bytes) in sizes.into_iter().enumerate() {
        carry_one(&scene.near, &mut scene.far, (to_far, to_near), number, bytes).await;
        carry_one(&scene.far, &mut scene.near, (to_near, to_far), number, bytes).await;
    }
    // Both ways at once.
    let (near, far) = (scene.near.transport.clone(), scene.far.transport.clone());
    let up = tokio::spawn(async move {
        for number in 0..50 {
            send(&near, to_far, message(to_far, number, 2_000)).await.unwrap_or_else(|error| panic!("{error}"));
        }
    });
    for number in 0..50 {
        send(&far, to_near, message(to_near, number, 2_000)).await.unwrap_or_else(|error| panic!("{error}"));
    }
    up.await.unwrap_or_else(|error| panic!("{error}"));
    for number in 0..50 {
        assert_eq!(scene.far.message(to_near).await, message(to_far, number, 2_000));
        assert_eq!(scene.near.message(to_far).await, message(to_near, number, 2_000));
    }
    scene.end().await;
}

pub(super) async fn waits(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    scene.far.close_gate();
    let near = scene.near.transport.clone();
    let sending = tokio::spawn(async move {
        for number in 0..3 {
            send(&near, to_far, message(to_far, number, 10)).await.unwrap_or_else(|error| panic!("{error}"));
        }
    });
    assert_eq!(scene.far.message(to_near).await, message(to_far, 0, 10));
    tokio::time::sleep(A_WHILE).await;
    assert!(scene.far.is_silent(), "a message came while the one before was being taken");
    scene.far.open_gate();
    for number in 1..3 {
        assert_eq!(scene.far.message(to_near).await, message(to_far, number, 10));
    }
    sending.await.unwrap_or_else(|error| panic!("{error}"));
    scene.end().await;
}

pub(super) async fn holds_back(kind: &dyn Kind) {
    const BYTES: usize = 256 * 1024;
    // What sockets and queues of both ends may hold: 64 MiB.
    const MESSAGES_MAX: usize = 256;
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    scene.far.close_gate();
    let near = scene.near.transport.clone();
    let (sender, mut sent) = tokio::sync::watch::channel(0);
    let sending = tokio::spawn(async move {
        for number in 0..2 * MESSAGES_MAX {
            if send(&near, to_far, message(to_far, number, BYTES)).await.is_err() {
                return;
            }
            sender.send_replace(number + 1);
        }
    });
    // Until nothing has moved for a while.
    while tokio::time::timeout(A_WHILE, sent.changed()).await.is_ok() {
        let count = *sent.borrow();
        assert!(count <= MESSAGES_MAX, "{count} messages are under way, and nobody has taken one");
    }
    scene.far.open_gate();
    for number in 0..20 {
        assert_eq!(scene.far.message(to_near).await, message(to_far, number, BYTES));
    }
    sending.abort();
    scene.end().await;
}

pub(super) async fn comes_back(kind: &dyn Kind) {
    let (mut scene, mut to_far, mut to_near) = Scene::connected(kind).await;
    for ending in [Ending::Reset, Ending::Close, Ending::Reset] {
        scene.proxy.end_all(ending);
        scene.near.disconnect(to_far).await;
        let (old_far, old_near) = (to_far, to_near);
        scene.far.disconnect(to_near).await;
        (to_far, to_near) = scene.meet().await;
        assert!(to_far != old_far && to_near != old_near, "a connection has a number of its own");
        let late = send(&scene.near.transport, old_far, message(old_far, 0, 1)).await;
        assert!(late.is_err(), "an old connection takes nothing");
        carry_one(&scene.near, &mut scene.far, (to_far, to_near), 1, 100).await;
        carry_one(&scene.far, &mut scene.near, (to_near, to_far), 1, 100).await;
    }
    scene.end().await;
}

pub(super) async fn is_cut(kind: &dyn Kind) {
    const MESSAGES: usize = 20;
    let (mut scene, mut to_far, mut to_near) = Scene::connected(kind).await;
    for way in [Way::Up, Way::Down] {
        for after in [1, 10, 100, 1_000, 20_000, 100_000] {
            scene.proxy.cut_after(way, after, if after % 3 == 0 { Ending::Reset } else { Ending::Close });
            let (from, there, to, back) = match way {
                Way::Up => (&scene.near, to_far, &mut scene.far, to_near),
                Way::Down => (&scene.far, to_near, &mut scene.near, to_far),
            };
            for number in 0..MESSAGES {
                if send(&from.transport, there, message(there, number, 20_000)).await.is_err() {
                    break;
                }
            }
            to.disconnect(back).await;
            let (messages, _) = to.taken(back);
            let expected: Vec<PeerMessage> = (0..messages.len()).map(|number| message(there, number, 20_000)).collect();
            assert!(messages == expected, "cut after {after} bytes: something is missing, or came in part");
            match way {
                Way::Up => scene.near.disconnect(to_far).await,
                Way::Down => scene.far.disconnect(to_near).await,
            }
            scene.proxy.leave_whole();
            (to_far, to_near) = scene.meet().await;
        }
    }
    scene.end().await;
}

pub(super) async fn dials_on(kind: &dyn Kind) {
    // More in this time would be no waiting at all.
    const DIALS_MAX: u64 = 100;
    let mut scene = Scene::new(kind).await;
    scene.proxy.set_line(Line::Down);
    scene.far.start().await;
    scene.near.start().await;
    let started = tokio::time::Instant::now();
    while scene.proxy.connections() < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "it does not dial again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(A_WHILE).await;
    let (dials, waited) = (scene.proxy.connections(), started.elapsed());
    assert!(dials <= DIALS_MAX.max(waited.as_secs() * DIALS_MAX), "{dials} dials in {waited:?}");
    scene.proxy.set_line(Line::Clear);
    let (to_far, to_near) = scene.meet().await;
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 10).await;
    scene.end().await;
}

pub(super) async fn notices_silence(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    scene.proxy.silence_those_that_stand();
    scene.near.disconnect(to_far).await;
    scene.far.disconnect(to_near).await;
    let (to_far, to_near) = scene.meet().await;
    carry_one(&scene.far, &mut scene.near, (to_near, to_far), 0, 10).await;
    scene.end().await;
}

pub(super) async fn is_patient(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    scene.proxy.set_line(Line::Slow { bytes_per_second: 400_000 });
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 600_000).await;
    carry_one(&scene.far, &mut scene.near, (to_near, to_far), 0, 600_000).await;
    scene.proxy.set_line(Line::Late(Duration::from_millis(20)));
    for number in 1..20 {
        carry_one(&scene.near, &mut scene.far, (to_far, to_near), number, 10).await;
        carry_one(&scene.far, &mut scene.near, (to_near, to_far), number, 10).await;
    }
    scene.end().await;
}

pub(super) async fn closes(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    scene.far.transport.close(to_near).await;
    scene.near.disconnect(to_far).await;
    let (to_far, to_near) = scene.meet().await;
    scene.near.transport.close(to_far).await;
    scene.far.disconnect(to_near).await;
    assert!(send(&scene.near.transport, to_far, message(to_far, 0, 1)).await.is_err());
    // Closing again, or what is unknown, does nothing.
    scene.near.transport.close(to_far).await;
    scene.far.transport.close(to_far).await;
    let (to_far, to_near) = scene.meet().await;
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 10).await;
    assert!(scene.near.is_silent() && scene.far.is_silent(), "who closes is told nothing more");
    scene.end().await;
}

pub(super) async fn stops(kind: &dyn Kind) {
    // Not started at all.
    let scene = Scene::new(kind).await;
    scene.near.stop().await;
    scene.far.stop().await;
    // While it sends, and nobody takes.
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    scene.far.close_gate();
    let near = scene.near.transport.clone();
    let sending = tokio::spawn(async move {
        let mut number = 0;
        while send(&near, to_far, message(to_far, number, 100_000)).await.is_ok() {
            number += 1;
        }
    });
    scene.far.message(to_near).await;
    scene.near.stop().await;
    sending.await.unwrap_or_else(|error| panic!("{error}"));
    scene.far.open_gate();
    scene.far.disconnect(to_near).await;
    tokio::time::sleep(A_WHILE).await;
    scene.near.check();
    // While it dials in vain.
    let scene = Scene::new(kind).await;
    scene.proxy.set_line(Line::Held);
    scene.near.start().await;
    scene.near.stop().await;
    // While the other end sends.
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    let far = scene.far.transport.clone();
    let sending = tokio::spawn(async move {
        let mut number = 0;
        while send(&far, to_near, message(to_near, number, 1_000)).await.is_ok() {
            number += 1;
        }
    });
    scene.near.message(to_far).await;
    scene.far.stop().await;
    sending.await.unwrap_or_else(|error| panic!("{error}"));
    scene.near.disconnect(to_far).await;
    scene.near.check();
    scene.far.check();
    scene.near.stop().await;
}

pub(super) async fn serves_many(kind: &dyn Kind) {
    const MANY: u8 = 12;
    let (transport, address) = kind.listen().await;
    let mut far = Side::new(FAR, transport);
    far.start().await;
    let mut nears = Vec::new();
    for number in 0..MANY {
        let near = Side::new(SiteId::from_bytes([number + 1; 16]), kind.dial(address));
        near.start().await;
        nears.push(near);
    }
    let mut met = Vec::new();
    for near in &mut nears {
        let to_far = near.connect().await;
        let site = near.site;
        let to_near = far
            .find("a connection of each", |report| match report {
                super::peer::Report::Connect(remote) if remote.site == site => Some(*remote),
                _ => None,
            })
            .await;
        met.push((to_far, to_near));
    }
    for (near, (to_far, to_near)) in nears.iter_mut().zip(&met) {
        carry_one(near, &mut far, (*to_far, *to_near), 0, 5_000).await;
        carry_one(&far, near, (*to_near, *to_far), 0, 5_000).await;
    }
    for (near, (_, to_near)) in nears.iter().zip(&met) {
        near.stop().await;
        near.check();
        far.disconnect(*to_near).await;
    }
    far.stop().await;
    far.check();
}

pub(super) async fn survives_strangers(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    let noise = noise(1, 100_000).into_bytes();
    for garbage in [&b""[..], b"\0", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[0; 4096], &noise] {
        let mut stranger = TcpStream::connect(scene.address).await.unwrap_or_else(|error| panic!("{error}"));
        // It may be hung up on meanwhile.
        let _ = stranger.write_all(garbage).await;
        let _ = stranger.shutdown().await;
    }
    // One that says nothing at all stands beside.
    let _silent = TcpStream::connect(scene.address).await.unwrap_or_else(|error| panic!("{error}"));
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 1_000).await;
    carry_one(&scene.far, &mut scene.near, (to_near, to_far), 0, 1_000).await;
    assert!(scene.far.is_silent(), "a stranger is no peer");
    scene.end().await;
}

pub(super) async fn is_refused(kind: &dyn Kind) {
    let mut scene = Scene::new(kind).await;
    scene.far.refuse(2);
    scene.near.refuse(1);
    scene.far.start().await;
    scene.near.start().await;
    // The near end may have been told of connections that the far end did not want: each has ended again.
    let to_near = scene.far.connect().await;
    let mut to_far = scene.near.connect().await;
    loop {
        let asked = scene.far.request(to_near);
        if let Ok(request_of_near) = tokio::time::timeout(A_WHILE, asked).await {
            assert_eq!(request_of_near, request(NEAR, to_far));
            break;
        }
    }
    while let Ok(next) = tokio::time::timeout(A_WHILE, scene.near.connect()).await {
        scene.near.disconnect(to_far).await;
        to_far = next;
    }
    carry_one(&scene.far, &mut scene.near, (to_near, to_far), 0, 10).await;
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 10).await;
    scene.end().await;
}
