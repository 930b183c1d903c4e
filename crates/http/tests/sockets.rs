//! Limits of sockets: slow heads, silent strangers, too many.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use litemesh_http::{HttpServer, TokenFile};
use litemesh_proto::codec::v2;
use litemesh_proto::{Access, Ack, Limits, PeerMessage};
use support::raw::{EventStream, FRAMES, FrameStream, JSON, Wire, exchange, request_text};
use support::{CLIENT, soon, started};
use tokio::io::AsyncReadExt;

/// Long beside what a busy machine takes for a few requests, short enough to wait for.
const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_head_that_does_not_come_ends_its_socket_and_a_stream_does_not_end() {
    let transport = HttpServer::builder().head_timeout(SHORT).ping_interval(SHORT / 4).build();
    let (server, _peer, _reports) = started(transport, Limits::default()).await;
    let mut stream = EventStream::open(server.address, CLIENT).await;
    // Half a head, a byte at a time would be no better.
    let mut slow = Wire::connect(server.address).await;
    slow.write(b"POST /data HTTP/1.1\r\nHost: x\r\n").await;
    assert_eq!(said(&mut slow).await, (408, "the head of the request did not come in time".to_owned()));
    // A whole request, and then nothing.
    let mut idle = Wire::connect(server.address).await;
    idle.write(request_text("POST", "/data", &[JSON], Some(2)).as_bytes()).await;
    idle.write(b"{}").await;
    assert_eq!(idle.answer().await.0.status(), 400);
    assert!(soon(idle.is_closed()).await);
    // The stream is older than all of that.
    stream.expect("connect").await;
    stream.expect("sync").await;
    for _ in 0..8 {
        stream.expect("ping").await;
    }
}

/// What the server says before it closes a socket.
async fn said(wire: &mut Wire) -> (u16, String) {
    let (head, body) = soon(wire.answer()).await;
    assert_eq!(head.header("connection"), Some("close"));
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["type"], "error");
    assert!(soon(wire.is_closed()).await);
    (head.status(), body["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_stranger_is_told_why_its_request_ends() {
    let transport = HttpServer::builder().strangers(SHORT, 100).build();
    let (server, _peer, _reports) = started(transport, Limits::default()).await;
    let mut slow = Wire::connect(server.address).await;
    slow.write(b"POST /data HTTP/1.1\r\n").await;
    assert_eq!(said(&mut slow).await, (408, "no request that is let in came in time".to_owned()));
    // The next one makes it give way, after two seconds.
    let transport = HttpServer::builder().strangers(60 * SHORT, 1).build();
    let (server, _peer, _reports) = started(transport, Limits::default()).await;
    let mut oldest = Wire::connect(server.address).await;
    oldest.write(b"GET /nowhere HTTP/1.1\r\n").await;
    let _next = Wire::connect(server.address).await;
    let (status, why) = said(&mut oldest).await;
    assert!(status == 503 && why.starts_with("there are too many connections"), "{status} {why}");
}

#[tokio::test]
async fn a_socket_that_says_nothing_is_closed() {
    let transport = HttpServer::builder().strangers(SHORT, 100).build();
    let (server, _peer, _reports) = started(transport, Limits::default()).await;
    let mut silent = Wire::connect(server.address).await;
    assert!(soon(silent.is_closed()).await);
    // The beginning of what could become HTTP/2, which no timeout of HTTP sees.
    let mut undecided = Wire::connect(server.address).await;
    undecided.write(b"PRI * HT").await;
    assert!(soon(undecided.is_closed()).await);
    assert_eq!(server.transport.counters().refused_sockets, 2);
}

/// Who has no token cannot hold a socket, whatever is asked over it; who has one is in no hurry.
#[tokio::test]
async fn only_a_request_that_is_let_in_makes_a_socket_known() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = TokenFile::new(folder.path().join("tokens"));
    let token = tokens.add("test", &Access::FULL).unwrap();
    let transport =
        HttpServer::builder().tokens(tokens).unwrap().strangers(SHORT, 100).ping_interval(SHORT / 4).build();
    let (server, _peer, mut reports) = started(transport, Limits::default()).await;
    let header = format!("Authorization: Bearer {}", token.token);
    let mut stream = EventStream::open_with(server.address, &format!("/stream?peerId={CLIENT}"), &[&header]).await;
    stream.expect("connect").await;
    reports.connect().await;
    // A body that takes longer than a stranger has.
    let body = litemesh_proto::codec::v1::data(CLIENT, &support::changes(vec![support::change(1, "x")]));
    let mut slow = Wire::connect(server.address).await;
    slow.write(request_text("POST", "/data", &[JSON, &header], Some(body.len())).as_bytes()).await;
    slow.write(&body[..50]).await;

    let mut stranger = Wire::connect(server.address).await;
    for text in [
        request_text("GET", "/stream", &[], None),
        request_text("OPTIONS", "/data", &["Origin: https://x", "Access-Control-Request-Method: POST"], None),
        request_text("GET", "/nowhere", &[], None),
    ] {
        stranger.write(text.as_bytes()).await;
        assert!(stranger.answer().await.0.status() != 200);
    }
    assert!(soon(stranger.is_closed()).await);
    for _ in 0..8 {
        while stream.frame().await.unwrap()["type"] != "ping" {}
    }
    slow.write(&body[50..]).await;
    assert_eq!(slow.answer().await.0.status(), 200);
}

#[tokio::test]
async fn sockets_have_a_limit() {
    let transport = HttpServer::builder().sockets_max(2, 2).build();
    let (server, _peer, _reports) = started(transport, Limits::default()).await;
    let first = Wire::connect(server.address).await;
    let mut second = Wire::connect(server.address).await;
    let mut third = Wire::connect(server.address).await;
    assert_eq!(said(&mut third).await, (503, "2 sockets are open, which is the limit".to_owned()));
    assert_eq!(server.transport.counters().refused_sockets, 1);
    // The others are served, and a place that is free is taken.
    second.write(request_text("GET", "/nowhere", &[], None).as_bytes()).await;
    assert_eq!(second.answer().await.0.status(), 404);
    drop(first);
    let mut tries = 0;
    while server.transport.counters().refused_sockets == 1 + tries {
        tries += 1;
        let mut again = Wire::connect(server.address).await;
        again.write_if_open(request_text("GET", "/nowhere", &[], None).as_bytes()).await;
        if !soon(again.is_closed()).await && again.answer().await.0.status() == 404 {
            break;
        }
    }
}

#[tokio::test]
async fn a_head_has_a_limit() {
    let (server, _peer, _reports) = started(HttpServer::new(), Limits::default()).await;
    let long = format!("X-Long: {}", "x".repeat(70 * 1024));
    let (head, _) = exchange(server.address, "GET", "/nowhere", &[&long], None).await;
    assert_eq!(head.status(), 431);
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (head, _) = exchange(server.address, "GET", "/nowhere", &many, None).await;
    assert_eq!(head.status(), 431);
}

/// Requests that wait for their bodies, over one HTTP/2 socket.
#[tokio::test]
async fn requests_over_one_http2_socket_have_a_limit() {
    const REQUESTS_MAX: u32 = 64;
    const SETTINGS: u8 = 4;
    const RESET: u8 = 3;
    const REFUSED_STREAM: u32 = 7;
    let (server, _peer, _reports) = started(HttpServer::new(), Limits::default()).await;
    let mut wire = Wire::connect(server.address).await;
    wire.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    // RFC 9113, 6.5.2: what the server says of itself.
    let (kind, _, settings) = http2_frame(&mut wire).await;
    assert_eq!(kind, SETTINGS);
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let said = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).map(|setting| number(&setting[2..]));
    assert_eq!(said, Some(REQUESTS_MAX));
    // RFC 7541: `:method: POST`, `:scheme: http`, `:path: /data`, `content-type: application/json`.
    let head = [b"\x83\x86\x04\x05/data\x0f\x10\x10".as_slice(), b"application/json"].concat();
    for n in 0..=REQUESTS_MAX {
        let stream = 2 * n + 1;
        let mut frame = vec![0, 0, u8::try_from(head.len()).unwrap(), 1, 4];
        frame.extend(stream.to_be_bytes());
        frame.extend(&head);
        wire.write(&frame).await;
    }
    loop {
        let (kind, stream, payload) = http2_frame(&mut wire).await;
        if kind == RESET {
            assert_eq!((stream, number(&payload)), (2 * REQUESTS_MAX + 1, REFUSED_STREAM));
            return;
        }
    }
}

/// The next frame: its type, its stream, its payload (RFC 9113, 4.1).
async fn http2_frame(wire: &mut Wire) -> (u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    soon(wire.socket.read_exact(&mut head)).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    soon(wire.socket.read_exact(&mut payload)).await.unwrap();
    (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

/// A socket that waits for the next message of a Litemesh client gives way to those that were used since; one of the original,
/// which would not try again, does not.
#[tokio::test]
async fn sockets_that_wait_have_a_limit() {
    let (server, _peer, mut reports) =
        started(HttpServer::builder().idle_sockets_max(1).build(), Limits::default()).await;
    let peer = format!("Litemesh-Peer: {CLIENT}");
    let mut stream = FrameStream::open(server.address, CLIENT, &[]).await;
    stream.frame().await;
    reports.connect().await;
    let ack = v2::framed(&v2::message(&PeerMessage::Ack(Ack { answer: 1, number: 1, until: 9 })));
    let head = request_text("POST", "/data", &[FRAMES, &peer], Some(ack.len()));
    let post = async |wire: &mut Wire| {
        wire.write(head.as_bytes()).await;
        wire.write(&ack).await;
        assert_eq!(wire.answer().await.0.status(), 200);
    };
    let mut original = Wire::connect(server.address).await;
    original.write(request_text("POST", "/data", &[JSON], Some(2)).as_bytes()).await;
    original.write(b"{}").await;
    assert_eq!(original.answer().await.0.status(), 400);
    let (mut first, mut second) = (Wire::connect(server.address).await, Wire::connect(server.address).await);
    post(&mut first).await;
    post(&mut second).await;
    assert!(soon(first.is_closed()).await);
    // One that was idle and is used is idle no more.
    post(&mut second).await;
    let mut third = Wire::connect(server.address).await;
    post(&mut third).await;
    assert!(soon(second.is_closed()).await);
    post(&mut third).await;
    original.write(request_text("POST", "/data", &[JSON], Some(2)).as_bytes()).await;
    original.write(b"{}").await;
    assert_eq!(original.answer().await.0.status(), 400);
    // The stream is no idle socket.
    assert_eq!(server.transport.counters().streams_open, 1);
}
