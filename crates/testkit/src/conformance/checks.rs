//! The checks, one function each. Those of carriers that keep messages are in `kept.rs`.

use std::time::Duration;

use litemesh_proto::{PeerMessage, Remote, SiteId};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::peer::{PATIENCE, Report, Side, request};
use super::scene::{A_WHILE, FAR, FIRST_PAUSE, NEAR, Scene, carry_one, message, noise};
use super::{Kind, Proxy};
use crate::proxy::{Ending, Line, Way};

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
    let (near, far) = (scene.near.sender(), scene.far.sender());
    let up = tokio::spawn(async move {
        for number in 0..50 {
            near.send(to_far, message(to_far, number, 2_000)).await.unwrap_or_else(|error| panic!("{error}"));
        }
    });
    for number in 0..50 {
        far.send(to_near, message(to_near, number, 2_000)).await.unwrap_or_else(|error| panic!("{error}"));
    }
    up.await.unwrap_or_else(|error| panic!("{error}"));
    for number in 0..50 {
        assert_eq!(scene.far.message(to_near).await, scene.far.as_taken(message(to_far, number, 2_000)));
        assert_eq!(scene.near.message(to_far).await, scene.near.as_taken(message(to_near, number, 2_000)));
    }
    scene.end().await;
}

pub(super) async fn waits(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    scene.far.close_gate();
    let near = scene.near.sender();
    let sending = tokio::spawn(async move {
        for number in 0..3 {
            near.send(to_far, message(to_far, number, 10)).await.unwrap_or_else(|error| panic!("{error}"));
        }
    });
    assert_eq!(scene.far.message(to_near).await, scene.far.as_taken(message(to_far, 0, 10)));
    tokio::time::sleep(A_WHILE).await;
    assert!(scene.far.is_silent(), "a message came while the one before was being taken");
    scene.far.open_gate();
    for number in 1..3 {
        assert_eq!(scene.far.message(to_near).await, scene.far.as_taken(message(to_far, number, 10)));
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
    let near = scene.near.sender();
    let (sender, mut sent) = tokio::sync::watch::channel(0);
    let sending = tokio::spawn(async move {
        for number in 0..2 * MESSAGES_MAX {
            if let Err(error) = near.send(to_far, message(to_far, number, BYTES)).await {
                panic!("message {number} does not leave: {error}");
            }
            sender.send_replace(number + 1);
        }
    });
    // Until nothing has moved for a while.
    while let Ok(moved) = tokio::time::timeout(A_WHILE, sent.changed()).await {
        assert!(moved.is_ok(), "who sends is not held back, but cut off");
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
        let late = scene.near.sender().send(old_far, message(old_far, 0, 1)).await;
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
                if from.sender().send(there, message(there, number, 20_000)).await.is_err() {
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
    let mut scene = Scene::new(kind).await;
    scene.proxy.set_line(Line::Down);
    scene.far.start().await;
    scene.near.start().await;
    scene.dial_in_vain(3).await;
    scene.proxy.set_line(Line::Clear);
    let (to_far, to_near) = scene.meet().await;
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 10).await;
    scene.end().await;
}

pub(super) async fn backs_off(kind: &dyn Kind) {
    const DIALLERS: u8 = 8;
    // Pauses that double are three times as long after two, and later on a machine that stretches the first.
    const PAUSES_MAX: usize = 12;
    // Between the longest and the shortest pause of eight diallers, as a share of it. Where a pause is spread over a quarter of itself
    // and more, one of a million times all are closer together. A slow machine only draws them apart.
    const SPREAD_SHARE: u32 = 40;
    let (far, _) = kind.listen().await;
    let mut diallers = Vec::new();
    for number in 0..DIALLERS {
        let site = SiteId::from_bytes([number + 1; 16]);
        // It leads nowhere: whoever dials is reset.
        let line = Proxy::start();
        kind.pair(site, FAR);
        let near = Side::new(site, kind.dial(line.address()));
        near.start().await;
        diallers.push((near, line));
    }
    let started = tokio::time::Instant::now();
    for (_, line) in &diallers {
        while !has_grown(&line.pauses()) {
            let pauses = line.pauses();
            assert!(pauses.len() < PAUSES_MAX, "the pauses between dials do not grow: {pauses:?}");
            assert!(started.elapsed() < PATIENCE, "it does not dial again: {pauses:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let pauses: Vec<Vec<Duration>> = diallers.iter().map(|(_, line)| line.pauses()).collect();
    let last = pauses.iter().map(Vec::len).min().unwrap_or_default() - 1;
    let of_last = || pauses.iter().map(|of_one| of_one[last]);
    let (shortest, longest) = (of_last().min().unwrap_or_default(), of_last().max().unwrap_or_default());
    assert!(longest - shortest > shortest / SPREAD_SHARE, "all dial at the same time, without jitter: {pauses:?}");
    for (near, _line) in &diallers {
        near.stop().await;
    }
    far.stop().await;
}

/// Whether one pause was three times as long as another. Those that are shorter than a first pause should be count as that long.
fn has_grown(pauses: &[Duration]) -> bool {
    let shortest = pauses.iter().min().copied().unwrap_or_default().max(FIRST_PAUSE);
    pauses.iter().any(|pause| *pause >= 3 * shortest)
}

pub(super) async fn is_overtaken(kind: &dyn Kind) {
    const BEHIND: Duration = Duration::from_millis(50);
    let mut scene = Scene::new(kind).await;
    scene.proxy.set_line(Line::Overtaking(BEHIND));
    scene.far.start().await;
    scene.near.start().await;
    let (to_far, to_near) = scene.meet().await;
    exchange(&mut scene, to_far, to_near).await;
    scene.proxy.set_line(Line::Clear);
    // What was said over a connection is heard after the next one stands.
    scene.far.write_down();
    let late = message(to_far, 10, 2_000);
    scene.proxy.keep_those_that_stand();
    let sending = tokio::spawn({
        let (near, late) = (scene.near.sender(), late.clone());
        // Whether it goes nobody can know.
        async move { near.send(to_far, late).await.is_ok() }
    });
    scene.keep_something().await;
    scene.proxy.hang_up();
    scene.near.disconnect(to_far).await;
    sending.await.unwrap_or_else(|error| panic!("{error}"));
    let old = to_near;
    let (to_far, to_near) = scene.meet().await;
    let mut sent = Vec::new();
    for number in 11..20 {
        let next = message(to_far, number, 1_000);
        sent.push(next.clone());
        scene.near.sender().send(to_far, next.clone()).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(scene.far.this_message(&next).await, to_near);
        carry_one(&scene.far, &mut scene.near, (to_near, to_far), number, 1_000).await;
        if number == 11 {
            scene.proxy.set_line(Line::Clear);
            scene.far.disconnect(old).await;
        }
    }
    // Of which connection the late one was is for those to tell who number their messages.
    let mut taken = scene.far.written_down().remove(&to_near.connection).unwrap_or_default();
    taken.retain(|message| *message != late);
    check_order(&taken, &sent);
    scene.end().await;
}

/// Ten messages in each direction, at once.
async fn exchange(scene: &mut Scene, to_far: Remote, to_near: Remote) {
    let near = scene.near.sender();
    let up = tokio::spawn(async move {
        for number in 0..10 {
            near.send(to_far, message(to_far, number, 1_000)).await.unwrap_or_else(|error| panic!("{error}"));
        }
    });
    for number in 0..10 {
        carry_one(&scene.far, &mut scene.near, (to_near, to_far), number, 1_000).await;
    }
    for number in 0..10 {
        assert_eq!(scene.far.message(to_near).await, scene.far.as_taken(message(to_far, number, 1_000)));
    }
    up.await.unwrap_or_else(|error| panic!("{error}"));
}

/// A message comes after those that were sent before it. It may come again, at any time.
fn check_order(taken: &[PeerMessage], sent: &[PeerMessage]) {
    let mut newest = None;
    for (index, message) in taken.iter().enumerate() {
        let place = sent.iter().position(|sent| sent == message);
        assert!(place.is_some(), "nobody has sent this: {message:?}");
        let is_repeat = taken[..index].contains(message);
        assert!(is_repeat || newest < place, "message {place:?} came after {newest:?}");
        newest = newest.max(place);
    }
}

pub(super) async fn is_repeated(kind: &dyn Kind) {
    const MESSAGES: usize = 5;
    let mut scene = Scene::new(kind).await;
    scene.proxy.record();
    scene.far.write_down();
    scene.near.write_down();
    scene.far.start().await;
    scene.near.start().await;
    let (mut to_far, mut to_near) = scene.meet().await;
    for number in 0..MESSAGES {
        carry_one(&scene.near, &mut scene.far, (to_far, to_near), number, 1_000).await;
        carry_one(&scene.far, &mut scene.near, (to_near, to_far), number, 1_000).await;
    }
    scene.proxy.repeat().await;
    // Who says what the near end has said may have taken its place, for as long as that dials again.
    let number = find_each_other(&mut scene, &mut to_far, &mut to_near, MESSAGES).await;
    // What comes twice comes in the order in which it was sent.
    for (side, remote) in [(&scene.far, to_far), (&scene.near, to_near)] {
        let sent: Vec<PeerMessage> = (0..=number).map(|number| side.as_taken(message(remote, number, 1_000))).collect();
        for taken in side.written_down().values() {
            check_order(taken, &sent);
        }
    }
    scene.end().await;
}

/// Sends messages from this number on until one has gone each way over one connection, this one or a later one. Gives its number.
async fn find_each_other(scene: &mut Scene, to_far: &mut Remote, to_near: &mut Remote, first: usize) -> usize {
    const TRIES_MAX: usize = 100;
    for number in first..first + TRIES_MAX {
        if let Some(back) = goes_there(scene, *to_far, number).await {
            *to_near = back;
            let sent = message(back, number, 1_000);
            let goes = scene.far.sender().send(back, sent.clone()).await.is_ok();
            let wanted = scene.near.as_taken(sent);
            if goes && scene.near.message_or_end(*to_far, &wanted).await {
                return number;
            }
            if !goes {
                scene.near.disconnect(*to_far).await;
            }
        }
        *to_far = scene.near.connect().await;
    }
    panic!("no connection lasts")
}

/// Sends a message up, and tells over which connection it came; none where its own has ended before.
async fn goes_there(scene: &mut Scene, to_far: Remote, number: usize) -> Option<Remote> {
    let sent = message(to_far, number, 1_000);
    if scene.near.sender().send(to_far, sent.clone()).await.is_err() {
        scene.near.disconnect(to_far).await;
        return None;
    }
    let wanted = scene.far.as_taken(sent);
    // Reports that one branch has seen stay.
    tokio::select! {
        () = scene.near.disconnect(to_far) => None,
        back = scene.far.this_message(&wanted) => Some(back),
    }
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
    // Beside messages carriers that keep them carry much else.
    let bytes = if kind.keeps_messages() { 200_000 } else { 600_000 };
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, bytes).await;
    carry_one(&scene.far, &mut scene.near, (to_near, to_far), 0, bytes).await;
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
    assert!(scene.near.sender().send(to_far, message(to_far, 0, 1)).await.is_err());
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
    let near = scene.near.sender();
    let sending = tokio::spawn(async move {
        let mut number = 0;
        while near.send(to_far, message(to_far, number, 100_000)).await.is_ok() {
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
    let far = scene.far.sender();
    let sending = tokio::spawn(async move {
        let mut number = 0;
        while far.send(to_near, message(to_near, number, 1_000)).await.is_ok() {
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
        let site = SiteId::from_bytes([number + 1; 16]);
        kind.pair(site, FAR);
        let near = Side::new(site, kind.dial(address));
        near.start().await;
        nears.push(near);
    }
    let mut met = Vec::new();
    for near in &mut nears {
        let to_far = near.connect().await;
        let site = near.site;
        let to_near = far
            .find("a connection of each", |report| match report {
                Report::Connect(remote) if remote.site == site => Some(*remote),
                _ => None,
            })
            .await;
        near.request(to_far).await;
        far.request(to_near).await;
        met.push((to_far, to_near));
    }
    for (near, (to_far, to_near)) in nears.iter_mut().zip(&met) {
        carry_one(near, &mut far, (*to_far, *to_near), 0, 5_000).await;
        carry_one(&far, near, (*to_near, *to_far), 0, 5_000).await;
    }
    for (near, (_, to_near)) in nears.iter().zip(&met) {
        near.stop().await;
        near.check();
        // Connections of carriers that keep messages stand, whoever is there.
        if !kind.keeps_messages() {
            far.disconnect(*to_near).await;
        }
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

/// Who has introduced itself may be anybody all the same, and a line anything.
pub(super) async fn survives_nonsense(kind: &dyn Kind) {
    const BESIDE: SiteId = SiteId::from_bytes([0x33; 16]);
    // Numbers that no message of the others has.
    const OF_BESIDE: usize = 10_000;
    let (mut scene, mut to_far, mut to_near) = Scene::connected(kind).await;
    kind.pair(BESIDE, FAR);
    let mut beside = Side::new(BESIDE, kind.dial(scene.address));
    beside.start().await;
    let (from_beside, to_beside) = (beside.connect().await, scene.far.connect().await);
    scene.far.write_down();
    scene.near.write_down();
    let noise = noise(2, 100_000).into_bytes();
    let mut number = 0;
    for way in [Way::Up, Way::Down] {
        for nonsense in [&[0xff; 64][..], b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], &noise] {
            scene.proxy.slip_in(way, nonsense);
            number = find_each_other(&mut scene, &mut to_far, &mut to_near, number).await + 1;
            carry_one(&beside, &mut scene.far, (from_beside, to_beside), OF_BESIDE + number, 1_000).await;
            carry_one(&scene.far, &mut beside, (to_beside, from_beside), OF_BESIDE + number, 1_000).await;
        }
    }
    let mut at_far = scene.far.written_down();
    at_far.remove(&to_beside.connection);
    for (side, taken, remote) in [(&scene.far, at_far, to_far), (&scene.near, scene.near.written_down(), to_near)] {
        let sent: Vec<PeerMessage> = (0..number).map(|number| side.as_taken(message(remote, number, 1_000))).collect();
        for taken in taken.values() {
            check_order(taken, &sent);
        }
    }
    assert!(beside.stands(from_beside) && scene.far.stands(to_beside), "who is beside it was disturbed");
    beside.check();
    beside.stop().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_that_double_grow_and_equal_ones_do_not() {
        let grow = |pauses: &[u64]| {
            let pauses: Vec<Duration> = pauses.iter().map(|pause| Duration::from_millis(*pause)).collect();
            has_grown(&pauses)
        };
        assert!(grow(&[100, 200, 400]) && grow(&[125, 200, 500]) && grow(&[900, 250, 400, 850]));
        assert!(!grow(&[]) && !grow(&[100]) && !grow(&[100, 125, 110, 250]) && !grow(&[1, 20, 250]));
    }

    fn taken(numbers: &[usize]) {
        let remote = Remote { site: FAR, connection: 1, is_litemesh: true };
        let of = |numbers: &[usize]| -> Vec<PeerMessage> {
            numbers.iter().map(|number| message(remote, *number, 10)).collect()
        };
        check_order(&of(numbers), &of(&[0, 1, 2, 3]));
    }

    #[test]
    fn repeats_are_in_order() {
        taken(&[]);
        taken(&[0, 1, 0, 1, 1, 2, 0, 3]);
        taken(&[1, 3, 1]);
    }

    #[test]
    #[should_panic(expected = "came after")]
    fn what_was_overtaken_is_not() {
        taken(&[0, 2, 1]);
    }

    #[test]
    #[should_panic(expected = "nobody has sent this")]
    fn what_nobody_has_sent_is_not() {
        taken(&[0, 4]);
    }
}
