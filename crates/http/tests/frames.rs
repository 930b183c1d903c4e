//! Wire v2 over HTTP: streams and bodies of frames, by our client and server and byte by byte.
#![allow(clippy::unwrap_used)]

#[path = "../../proto/tests/frames/memory.rs"]
mod memory;
mod support;

use std::sync::Arc;

use litemesh_http::{HttpClient, HttpServer};
use litemesh_proto::codec::v1;
use litemesh_proto::codec::v2::{self, Frame, Hello};
use litemesh_proto::limits::CREDIT_MAX;
use litemesh_proto::{
    Access, Ack, DbVersion, Incarnation, Limits, PeerMessage, Position, Progress, Remote, SyncRequest, Terms,
    Transport, Value,
};
use support::raw::{EventStream, FRAMES, FrameStream, RawServer, V2, exchange};
use support::{CLIENT, OTHER, RecordingPeer, Report, SERVER, change, noise, soon, started};

fn position(version: i64) -> Position {
    Position { version: DbVersion::new(version), incarnation: Incarnation(255) }
}

/// A numbered message, as sessions send them.
fn message(number: u64, text: &str) -> PeerMessage {
    let position = Some(position(number.cast_signed()));
    let progress = Progress { answer: 1, number, position, ..Progress::default() };
    let version = number.cast_signed();
    PeerMessage::Changes { changes: vec![change(version, text)], schema_version: 1, progress: Some(progress) }
}

fn client(address: std::net::SocketAddr, takes_frames: bool) -> HttpClient {
    let http = support::http_client().no_proxy().build().unwrap();
    HttpClient::builder(format!("http://{address}")).http(http).frames(takes_frames).build()
}

async fn greeted(reports: &mut support::Reports) -> Remote {
    let remote = reports.connect().await;
    assert!(matches!(reports.next().await, Report::Sync(from, _) if from == remote));
    remote
}

/// The same either way: messages of any size, in order, with what no JSON carries.
#[tokio::test]
async fn frames_arrive_as_they_are_or_in_events() {
    for takes_frames in [true, false] {
        let (server, _server_peer, mut server_reports) = started(HttpServer::new(), Limits::default()).await;
        let client = client(server.address, takes_frames);
        let (peer, mut reports) = RecordingPeer::new(CLIENT);
        peer.start(Arc::new(client.clone())).await;
        let (to_server, to_client) = (greeted(&mut reports).await, greeted(&mut server_reports).await);
        assert!(to_server.is_litemesh && to_client.is_litemesh);
        let mut odd = change(3, "");
        odd.value = Value::Text(vec![0, 0xff, 0xfe].into());
        let mut real = change(3, "");
        real.value = Value::Real(-0.0);
        let odd = PeerMessage::Changes { changes: vec![odd, real], schema_version: i64::MAX, progress: None };
        let ack = PeerMessage::Ack(Ack { answer: 1, number: 2, until: 18 });
        for message in [message(1, "small"), message(2, &noise(2, 3 << 20)), odd, ack] {
            soon(client.send(to_server, message.clone())).await.unwrap();
            assert_eq!(server_reports.message().await, message);
            soon(server.transport.send(to_client, message.clone())).await.unwrap();
            assert_eq!(reports.message().await, message);
        }
        client.stop().await;
    }
}

#[tokio::test]
async fn a_stream_of_frames_begins_with_a_hello() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let mut stream = FrameStream::open(server.address, CLIENT, &[]).await;
    assert_eq!(stream.stream.head.header("content-type"), Some("application/vnd.litemesh.frames"));
    assert_eq!(stream.stream.head.header("content-encoding"), None);
    assert!(matches!(stream.frame().await, Frame::Hello(Hello { version: 2, site: SERVER, .. })));
    assert!(reports.connect().await.is_litemesh);
    assert!(matches!(stream.frame().await, Frame::Sync(_)));
    // A second client of this id hears why it is not let in, and the first one a ping.
    let mut second = FrameStream::open(server.address, CLIENT, &[]).await;
    assert!(matches!(second.frame().await, Frame::Error(code) if code == "ALREADY_CONNECTED"));
    assert!(matches!(stream.frame().await, Frame::Ping));
}

/// An event stream goes on where it stopped.
#[tokio::test]
async fn the_last_event_id_is_a_request() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let url = format!("/stream?peerId={CLIENT}");
    let mut stream = EventStream::open_with(server.address, &url, &[V2, "Last-Event-ID: 77-ff"]).await;
    assert_eq!(stream.head.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.expect("connect").await["litemesh"]["version"], 2);
    let remote = reports.connect().await;
    let terms = Terms { answer: 0, credit: CREDIT_MAX, position: position(77), ..Terms::default() };
    let request = SyncRequest { terms: Some(terms), ..SyncRequest::default() };
    assert_eq!(reports.next().await, Report::Sync(remote, request));
    // Not where it is no id of ours, and not for a client of the original. What is posted waits for what the id asks for.
    let other =
        EventStream::open_with(server.address, &format!("/stream?peerId={OTHER}"), &[V2, "Last-Event-ID: 7"]).await;
    reports.connect().await;
    let ack = PeerMessage::Ack(Ack { answer: 1, number: 1, until: 1 });
    assert_eq!(post(server.address, &OTHER.to_string(), &v2::framed(&v2::message(&ack))).await.0, 200);
    assert_eq!(reports.message().await, ack);
    drop(other);
    reports.disconnect().await;
    let url = format!("/stream?peerId={OTHER}");
    let _original = EventStream::open_with(server.address, &url, &["Last-Event-ID: 77-ff"]).await;
    reports.connect().await;
    let eose = support::eose();
    assert_eq!(support::raw::post(server.address, "/data", &v1::data(OTHER, &eose)).await.0, 200);
    assert_eq!(reports.message().await, eose);
}

async fn post(address: std::net::SocketAddr, peer: &str, body: &[u8]) -> (u16, String) {
    let headers = [FRAMES, &format!("Litemesh-Peer: {peer}")];
    let (head, body) = exchange(address, "POST", "/data", &headers, Some(body)).await;
    (head.status(), String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn bodies_of_frames_are_taken_from_who_announced_that_it_sends_them() {
    let (server, peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let address = server.address;
    let framed = |message: &PeerMessage| v2::framed(&v2::message(message));
    let one = framed(&message(1, "one"));
    assert_eq!(post(address, &CLIENT.to_string(), &one).await.0, 400, "nobody has connected");
    let _stream = FrameStream::open(address, CLIENT, &[]).await;
    let remote = reports.connect().await;
    // Several in one body, a request among them, one of a kind that is not known here.
    let request = SyncRequest { terms: Some(Terms { answer: 3, ..Terms::default() }), ..SyncRequest::default() };
    let unknown = v2::framed(&[200, 0, 1, 2, 3]);
    let body = [one.clone(), v2::framed(&v2::sync(&request)), unknown, framed(&message(2, "two"))].concat();
    assert_eq!(post(address, &CLIENT.to_string(), &body).await.0, 200);
    assert_eq!(reports.message().await, message(1, "one"));
    assert_eq!(reports.next().await, Report::Sync(remote, request));
    assert_eq!(reports.message().await, message(2, "two"));
    // What cannot be read is reported. What stood before it was taken.
    let cut = &[one.clone(), one[..one.len() - 1].to_vec()].concat();
    let endless = &[one.clone(), vec![0xff; 4]].concat();
    let garbage = &[one.clone(), v2::framed(&[3, 0, 0xff])].concat();
    for body in [cut, endless, garbage] {
        let (status, text) = post(address, &CLIENT.to_string(), body).await;
        assert_eq!(status, 400, "{text}");
        assert_eq!(reports.message().await, message(1, "one"));
        assert!(text.contains(&reports.garbled().await), "{text}");
    }
    // A refusal in the middle ends the body.
    peer.answer_next(litemesh_proto::Refusal::Invalid("not this".to_owned()));
    let (status, text) = post(address, &CLIENT.to_string(), &[one.clone(), one.clone()].concat()).await;
    assert!(status == 500 && text.contains("not this"), "{status} {text}");
    assert_eq!(reports.message().await, message(1, "one"));
    reports.assert_none();
    for sender in ["", "nonsense", &OTHER.to_string()] {
        assert_eq!(post(address, sender, &one).await.0, 400, "{sender:?}");
    }
    let _original = EventStream::open(address, OTHER).await;
    reports.connect().await;
    let (status, text) = post(address, &OTHER.to_string(), &one).await;
    assert!(status == 415 && text.contains("wire v2"), "{status} {text}");
    reports.assert_none();
}

/// A frame that was read takes a hundred times the bytes of a short one, and sixty-four times those of a compressed one.
#[test]
fn a_body_of_many_frames_takes_little_more_memory_than_its_bytes() {
    // What is longer is read on other threads, whose memory is not counted here.
    const BODY_BYTES: usize = 32 << 10;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, _peer, _stream) = runtime.block_on(async {
        let (server, peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
        let stream = FrameStream::open(server.address, CLIENT, &[]).await;
        reports.connect().await;
        (server, peer, stream)
    });
    let ping = v2::framed(&v2::ping());
    let body = ping.repeat(BODY_BYTES / ping.len());
    // Everything, the client and what HTTP needs included, is on this thread. All frames at once took 73 times the body.
    let ((status, _), memory) = memory::peak_of(|| runtime.block_on(post(server.address, &CLIENT.to_string(), &body)));
    assert_eq!(status, 200);
    assert!(memory < 16 * BODY_BYTES, "{memory} bytes of memory for a body of {BODY_BYTES}");
}

/// Frames of a server that are cut anywhere, cannot be read, or never end.
#[tokio::test]
async fn a_client_reads_frames_cut_anywhere_and_gives_up_a_stream_that_is_out_of_step() {
    let server = RawServer::bind().await;
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    let http = support::http_client().no_proxy().build().unwrap();
    let delay = std::time::Duration::from_millis(10);
    let client = HttpClient::builder(server.url()).http(http).reconnect_delay_min(delay).build();
    peer.start(Arc::new(client)).await;
    let open = async || {
        let mut stream = server.expect("GET").await;
        let head =
            b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.litemesh.frames\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.wire.write(head).await;
        stream.chunk(&v2::framed(&v2::hello(&Hello { version: 2, site: SERVER, access: Access::FULL }))).await;
        stream
    };
    let mut stream = open().await;
    assert!(reports.connect().await.is_litemesh);
    server.expect("POST /api/sync").await.succeed().await;
    let bytes = v2::framed(&v2::message(&message(1, "cut")));
    for byte in &bytes {
        stream.chunk(&[*byte]).await;
    }
    assert_eq!(reports.message().await, message(1, "cut"));
    stream.chunk(&[v2::framed(&v2::ping()), v2::framed(&[3, 0, 0xff]), bytes.clone()].concat()).await;
    reports.garbled().await;
    assert_eq!(reports.message().await, message(1, "cut"));
    stream.chunk(&[0xff; 4]).await;
    let (_, reason) = reports.disconnect().await;
    assert!(reason.contains("frame"), "{reason}");
    // It dials again, and takes no stream that begins with something else.
    let mut stream = server.expect("GET").await;
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.litemesh.frames\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.wire.write(head).await;
    stream.chunk(&bytes).await;
    let _stream = open().await;
    assert!(reports.connect().await.is_litemesh);
}

/// A server closes a socket in the moment in which it is used again: frames, which have numbers, are posted once more, and the
/// connection goes on. What has none is not.
#[tokio::test]
async fn a_post_whose_socket_was_closed_is_repeated() {
    for (introduction, is_repeated) in [(support::raw::LITEMESH_CONNECT, true), (support::raw::CONNECT, false)] {
        let server = RawServer::bind().await;
        let (peer, mut reports) = RecordingPeer::new(CLIENT);
        let http = support::http_client().no_proxy().build().unwrap();
        let client = HttpClient::builder(server.url()).http(http).build();
        peer.start(Arc::new(client.clone())).await;
        let (_stream, _) = server.welcome(introduction).await;
        let remote = reports.connect().await;
        let sending = tokio::spawn(async move { client.send(remote, message(1, "twice")).await });
        let first = server.expect("POST /api/data").await;
        let body = first.body.clone();
        drop(first);
        if is_repeated {
            let second = server.expect("POST /api/data").await;
            assert_eq!(second.body, body);
            second.succeed().await;
            assert_eq!(soon(sending).await.unwrap(), Ok(()));
        } else {
            assert!(soon(sending).await.unwrap().is_err());
            reports.disconnect().await;
        }
    }
}

/// A request begins an answer, which must not be begun twice under one number.
#[tokio::test]
async fn a_request_whose_socket_was_closed_is_not_repeated() {
    let server = RawServer::bind().await;
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    let http = support::http_client().no_proxy().build().unwrap();
    let client = HttpClient::builder(server.url()).http(http).build();
    peer.start(Arc::new(client.clone())).await;
    let (_stream, _) = server.welcome(support::raw::LITEMESH_CONNECT).await;
    let remote = reports.connect().await;
    let asking = tokio::spawn(async move { client.sync(remote, SyncRequest::default()).await });
    drop(server.expect("POST /api/sync").await);
    assert!(soon(asking).await.unwrap().is_err());
    reports.disconnect().await;
}
