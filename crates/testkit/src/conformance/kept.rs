//! The checks of carriers that keep messages, where their contract is another one: connections stand while nobody is there, silence
//! says nothing, and what was sent arrives whatever becomes of the line between an end and the carrier.

use super::scene::{A_WHILE, Scene, carry_one, message};
use super::{Kind, Proxy};
use crate::proxy::{Ending, Line, Way};

/// Takes the near end away from the carrier.
fn take_away(proxy: &Proxy) {
    proxy.set_line(Line::Down);
    proxy.end_all(Ending::Reset);
}

pub(super) async fn holds_back(kind: &dyn Kind) {
    const BYTES: usize = 100_000;
    // What sockets and queues may hold: 25 MB.
    const MESSAGES_MAX: usize = 256;
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    take_away(&scene.proxy);
    let near = scene.near.sender();
    let (sender, mut sent) = tokio::sync::watch::channel(0);
    let sending = tokio::spawn(async move {
        for number in 0..20 {
            near.send(to_far, message(to_far, number, BYTES)).await.unwrap_or_else(|error| panic!("{error}"));
            sender.send_replace(number + 1);
        }
        for number in 20..2 * MESSAGES_MAX {
            if near.send(to_far, message(to_far, number, BYTES)).await.is_err() {
                return;
            }
            sender.send_replace(number + 1);
        }
    });
    while let Ok(moved) = tokio::time::timeout(A_WHILE, sent.changed()).await {
        assert!(moved.is_ok(), "who sends is not held back, but cut off");
        let count = *sent.borrow();
        assert!(count <= MESSAGES_MAX, "{count} messages are under way, and the carrier has taken none");
    }
    // Then it takes them, and nobody the first one: they are kept meanwhile.
    scene.far.close_gate();
    scene.proxy.set_line(Line::Clear);
    scene.far.message(to_near).await;
    tokio::time::sleep(A_WHILE).await;
    assert!(scene.far.is_silent(), "a message came while the one before was being taken");
    scene.far.open_gate();
    for number in 1..20 {
        assert_eq!(scene.far.message(to_near).await, scene.far.as_taken(message(to_far, number, BYTES)));
    }
    sending.abort();
    scene.end().await;
}

pub(super) async fn goes_on(kind: &dyn Kind) {
    const MESSAGES: usize = 10;
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    for way in [Way::Up, Way::Down] {
        for after in [100, 50_001] {
            scene.proxy.cut_after(way, after, if after % 10 == 0 { Ending::Reset } else { Ending::Close });
            for number in 0..MESSAGES {
                let (from, to, ends) = match way {
                    Way::Up => (&scene.near, &mut scene.far, (to_far, to_near)),
                    Way::Down => (&scene.far, &mut scene.near, (to_near, to_far)),
                };
                carry_one(from, to, ends, number, 20_000).await;
            }
            assert!(!scene.proxy.leave_whole(), "cut after {after} bytes: it went another way");
        }
    }
    assert!(scene.near.is_silent() && scene.far.is_silent(), "nobody is told of lines to the carrier");
    scene.end().await;
}

pub(super) async fn keeps(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    take_away(&scene.proxy);
    let far = scene.far.sender();
    for number in 0..5 {
        far.send(to_near, message(to_near, number, 5_000)).await.unwrap_or_else(|error| panic!("{error}"));
    }
    tokio::time::sleep(A_WHILE).await;
    assert!(scene.near.is_silent() && scene.far.is_silent(), "who is away is still connected");
    scene.proxy.set_line(Line::Clear);
    for number in 0..5 {
        assert_eq!(scene.near.message(to_far).await, scene.near.as_taken(message(to_near, number, 5_000)));
    }
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 5, 10).await;
    scene.end().await;
}

pub(super) async fn dials_on(kind: &dyn Kind) {
    let mut scene = Scene::new(kind).await;
    scene.proxy.set_line(Line::Down);
    scene.far.start().await;
    scene.near.start().await;
    // Each is connected to the other, and neither is there.
    let (to_far, to_near) = (scene.near.connect().await, scene.far.connect().await);
    scene.dial_in_vain(1).await;
    scene.proxy.set_line(Line::Clear);
    scene.hear_requests(to_far, to_near).await;
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 10).await;
    carry_one(&scene.far, &mut scene.near, (to_near, to_far), 0, 10).await;
    scene.end().await;
}

pub(super) async fn is_overtaken(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    let late = message(to_far, 0, 2_000);
    scene.proxy.keep_those_that_stand();
    scene.near.sender().send(to_far, late.clone()).await.unwrap_or_else(|error| panic!("{error}"));
    scene.keep_something().await;
    scene.proxy.hang_up();
    // Said again over the next connection, and then heard a second time.
    assert_eq!(scene.far.message(to_near).await, scene.far.as_taken(late));
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 1, 1_000).await;
    scene.proxy.set_line(Line::Clear);
    for number in 2..10 {
        carry_one(&scene.near, &mut scene.far, (to_far, to_near), number, 1_000).await;
        carry_one(&scene.far, &mut scene.near, (to_near, to_far), number, 1_000).await;
    }
    assert!(scene.near.is_silent() && scene.far.is_silent(), "nobody is told of lines to the carrier");
    scene.end().await;
}

pub(super) async fn closes(kind: &dyn Kind) {
    let (mut scene, to_far, to_near) = Scene::connected(kind).await;
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 10).await;
    scene.near.transport.close(to_far).await;
    // The next one goes on for who has closed it. The other end has not heard of it.
    let old = to_far;
    let to_far = scene.near.connect().await;
    assert!(to_far != old, "a connection has a number of its own");
    scene.near.request(to_far).await;
    assert!(scene.near.sender().send(old, message(old, 0, 1)).await.is_err(), "an old connection takes nothing");
    // Closing again, or what is unknown, does nothing.
    scene.near.transport.close(old).await;
    scene.far.transport.close(to_far).await;
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 1, 10).await;
    carry_one(&scene.far, &mut scene.near, (to_near, to_far), 1, 10).await;
    assert!(scene.near.is_silent() && scene.far.is_silent(), "nobody is told of the end");
    scene.end().await;
}

pub(super) async fn stops(kind: &dyn Kind) {
    // Not started at all.
    let scene = Scene::new(kind).await;
    scene.near.stop().await;
    scene.far.stop().await;
    // While it dials in vain.
    let scene = Scene::new(kind).await;
    scene.proxy.set_line(Line::Held);
    scene.near.start().await;
    scene.near.stop().await;
    scene.near.check();
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
    assert!(scene.near.stands(to_far), "who is away is still connected");
    // While it sends, and the carrier takes nothing.
    take_away(&scene.proxy);
    let near = scene.near.sender();
    let sending = tokio::spawn(async move {
        let mut number = 0;
        while near.send(to_far, message(to_far, number, 100_000)).await.is_ok() {
            number += 1;
        }
    });
    tokio::time::sleep(A_WHILE).await;
    scene.near.stop().await;
    sending.await.unwrap_or_else(|error| panic!("{error}"));
    tokio::time::sleep(A_WHILE).await;
    scene.near.check();
    scene.far.check();
}

pub(super) async fn is_refused(kind: &dyn Kind) {
    let mut scene = Scene::new(kind).await;
    scene.far.refuse(1);
    scene.near.refuse(1);
    scene.far.start().await;
    scene.near.start().await;
    // Each by itself: neither hears what the other refuses.
    let (to_far, to_near) = scene.meet().await;
    carry_one(&scene.far, &mut scene.near, (to_near, to_far), 0, 10).await;
    carry_one(&scene.near, &mut scene.far, (to_far, to_near), 0, 10).await;
    scene.end().await;
}
