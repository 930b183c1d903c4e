//! What goes over a WebSocket: ours at both ends, and clients written by hand.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo};
use litemesh_http::{DialError, HttpClient, HttpServer, TokenFile};
use litemesh_proto::codec::v1;
use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Access, Limits, Refusal, SiteId, SyncRequest, Transport};
use support::raw::exchange;
use support::{
    CLIENT, FIRST_DELAY, RecordingPeer, Report, Reports, SERVER, change, changes, client, greeted, noise, soon,
    started, until,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::frame::Frame as Fragment;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// A client by hand.
struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(
        address: SocketAddr,
        protocol: Option<&str>,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        Self::open_at(address, &format!("peerId={CLIENT}"), protocol, headers).await
    }

    async fn open_at(
        address: SocketAddr,
        query: &str,
        protocol: Option<&str>,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = format!("ws://{address}/ws?{query}").into_client_request().unwrap();
        let protocol = protocol.map(|protocol| ("sec-websocket-protocol", protocol));
        for (name, value) in headers.iter().copied().chain(protocol) {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, response) = soon(tokio_tungstenite::client_async(request, stream)).await?;
        let chosen = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap());
        assert_eq!(chosen, protocol.map(|(_, protocol)| protocol));
        Ok(Self(socket))
    }

    async fn of_frames(address: SocketAddr) -> Self {
        Self::of_frames_as(address, CLIENT).await
    }

    async fn of_frames_as(address: SocketAddr, site: SiteId) -> Self {
        let query = format!("peerId={site}");
        let mut socket = Self::open_at(address, &query, Some("litemesh.v2"), &[]).await.unwrap();
        assert!(matches!(socket.frame().await, Frame::Hello(hello) if hello.site == SERVER));
        socket
    }

    async fn next(&mut self) -> Message {
        soon(self.0.next()).await.unwrap().unwrap()
    }

    async fn frame(&mut self) -> Frame {
        let Message::Binary(frame) = self.next().await else { panic!("a frame is binary") };
        v2::decode(&frame, &Limits::default()).unwrap()
    }

    async fn json(&mut self) -> serde_json::Value {
        let Message::Text(json) = self.next().await else { panic!("JSON is text") };
        serde_json::from_str(&json).unwrap()
    }

    async fn send(&mut self, message: impl Into<Message>) {
        soon(self.0.send(message.into())).await.unwrap();
    }

    /// How the server ends it, after whatever it still says.
    async fn closed(&mut self) -> CloseFrame {
        loop {
            if let Message::Close(frame) = self.next().await {
                return frame.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn json_is_spoken_where_frames_are_not_asked_for() {
    for protocol in [Some("litemesh.v1"), None] {
        let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
        let mut socket = Socket::open(server.address, protocol, &[]).await.unwrap();
        assert_eq!(socket.json().await["type"], "connect");
        assert_eq!(socket.json().await["type"], "sync");
        let remote = reports.connect().await;
        assert!(!remote.is_litemesh);
        let text = |json: Vec<u8>| Message::text(String::from_utf8(json).unwrap());
        socket.send(text(v1::sync(CLIENT, &SyncRequest::default()))).await;
        assert!(matches!(reports.next().await, Report::Sync(..)));
        let message = changes(vec![change(1, "x")]);
        socket.send(text(v1::data(CLIENT, &message))).await;
        assert_eq!(reports.message().await, message);
        soon(server.transport.send(remote, message)).await.unwrap();
        assert_eq!(socket.json().await["type"], "data");
        // What cannot be read, and what is refused, is told; the connection goes on.
        socket.send(Message::text("{")).await;
        reports.garbled().await;
        assert_eq!(socket.json().await["type"], "error");
        socket.send(Message::Ping("still?".into())).await;
        assert_eq!(socket.next().await, Message::Pong("still?".into()));
        socket.send(Message::Close(None)).await;
        assert_eq!(reports.disconnect().await.0, remote);
    }
}

#[tokio::test]
async fn a_message_may_come_in_pieces_and_a_refusal_is_told() {
    let (server, peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let mut socket = Socket::of_frames(server.address).await;
    reports.connect().await;
    assert!(matches!(socket.frame().await, Frame::Sync(_)));
    let message = changes(vec![change(1, "in pieces")]);
    let frame = v2::message(&message);
    let (begin, end) = frame.split_at(7);
    for (part, data, is_last) in [(begin, Data::Binary, false), (end, Data::Continue, true)] {
        socket.send(Message::Frame(Fragment::message(part.to_vec(), OpCode::Data(data), is_last))).await;
    }
    assert_eq!(reports.message().await, message);
    peer.answer_next(Refusal::Forbidden("not yours".to_owned()));
    socket.send(Message::binary(frame.clone())).await;
    assert_eq!(reports.message().await, message);
    assert!(matches!(socket.frame().await, Frame::Error(text) if text.contains("not yours")));
    socket.send(Message::binary(frame)).await;
    assert_eq!(reports.message().await, message);
}

#[tokio::test]
async fn handshakes_that_cannot_be_are_refused() {
    let (server, ..) = started(HttpServer::new(), Limits::default()).await;
    let url = format!("/ws?peerId={CLIENT}");
    let ask = async |method: &str, url: &str, headers: &[&str]| {
        let (head, body) = exchange(server.address, method, url, headers, None).await;
        (head.status(), String::from_utf8(body).unwrap())
    };
    let upgrade =
        ["Connection: keep-alive, Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="];
    let with = |more: &[&'static str]| [&upgrade[..], more].concat();
    assert_eq!(ask("POST", &url, &[]).await.0, 404);
    assert_eq!(ask("GET", &url, &[]).await.0, 426);
    assert_eq!(ask("GET", &url, &with(&["Sec-WebSocket-Version: 8"])).await.0, 426);
    assert_eq!(ask("GET", "/ws", &with(&["Sec-WebSocket-Version: 13"])).await.0, 400);
    let keyless = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
    assert_eq!(ask("GET", &url, &keyless).await.0, 400);
    for key in ["", "AAAA", "dGhlIHNhbXBsZSBub25jZQ", "!!!!!!!!!!!!!!!!!!!!!!=="] {
        let key = format!("Sec-WebSocket-Key: {key}");
        let (status, text) = ask("GET", &url, &[&keyless[..], &[&*key]].concat()).await;
        assert!(status == 400 && text.contains("sec-websocket-key"), "{key}: {status} {text}");
    }
    // Names of subprotocols are compared to the letter.
    for protocol in ["Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: LITEMESH.V2, Litemesh.v1"] {
        let (status, text) = ask("GET", &url, &with(&["Sec-WebSocket-Version: 13", protocol])).await;
        assert!(status == 400 && text.contains("litemesh.v2"), "{status} {text}");
    }
    assert_eq!(server.transport.counters().streams_total, 0);
}

/// What is known before the handshake is answered is said by its answer.
#[tokio::test]
async fn sockets_beyond_the_limit_and_before_the_start_are_no_sockets() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let (server, _peer, mut reports) = started(HttpServer::new(), limits).await;
    let _first = Socket::of_frames(server.address).await;
    reports.connect().await;
    let early = support::serve(HttpServer::new()).await;
    for address in [server.address, early.address] {
        let query = format!("peerId={}", support::OTHER);
        let refused = Socket::open_at(address, &query, Some("litemesh.v2"), &[]).await;
        assert!(matches!(refused, Err(Error::Http(response)) if response.status() == 503));
    }
    assert_eq!(server.transport.counters().streams_total, 1);
}

#[tokio::test]
async fn a_second_connection_of_a_site_hears_that_it_is_one() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let _first = Socket::of_frames(server.address).await;
    reports.connect().await;
    let headers = [("litemesh-version", "2")];
    let mut second = Socket::open(server.address, Some("litemesh.v2"), &headers).await.unwrap();
    assert!(matches!(second.frame().await, Frame::Error(code) if code == "ALREADY_CONNECTED"));
    assert_eq!(second.closed().await.code, CloseCode::Policy);
    // Our own client says so.
    let client = client("ws", server.address);
    let (peer, _reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let refused = soon(async {
        while client.last_error() != Some(DialError::AlreadyConnected) {
            tokio::time::sleep(FIRST_DELAY).await;
        }
    });
    refused.await;
    client.stop().await;
}

/// Messages have limits, each and all together, and a message of the wrong kind is no message.
#[tokio::test]
async fn what_is_too_much_or_makes_no_sense_closes_the_socket_with_a_reason() {
    let limits = Limits { message_bytes_max: 100_000, ..Limits::default() };
    let transport = HttpServer::builder().bodies_bytes_max(120_000).build();
    let (server, _peer, mut reports) = started(transport, limits).await;
    let part =
        |bytes: usize, data, is_last| Message::Frame(Fragment::message(vec![0; bytes], OpCode::Data(data), is_last));
    for (messages, code) in [
        (vec![Message::binary(vec![0; 100_001])], CloseCode::Size),
        (vec![part(60_000, Data::Binary, false), part(60_000, Data::Continue, false)], CloseCode::Size),
        (vec![Message::binary(vec![0; 95_000])], CloseCode::Again),
        // What comes between the parts of a message takes nothing off what they hold.
        (
            vec![
                part(50_000, Data::Binary, false),
                Message::Ping("?".into()),
                part(44_000, Data::Continue, false),
                Message::Ping("?".into()),
            ],
            CloseCode::Again,
        ),
        (vec![Message::text("{}")], CloseCode::Unsupported),
        (vec![part(0, Data::Continue, true)], CloseCode::Protocol),
    ] {
        let mut socket = Socket::of_frames(server.address).await;
        reports.connect().await;
        for message in messages {
            // The server may close before all is written.
            let _ = soon(socket.0.send(message)).await;
        }
        assert_eq!(socket.closed().await.code, code);
        reports.disconnect().await;
    }
    let counters = server.transport.counters();
    assert_eq!((counters.refused_too_large, counters.refused_busy, counters.body_bytes_held), (2, 2, 0));
    assert_eq!(counters.refused_malformed, 2);
}

/// Frames are compressed already: who offers `permessage-deflate` gets a socket without it, and is taken at that word.
#[tokio::test]
async fn compression_of_sockets_is_not_agreed_to() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let offer = ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits");
    // The three bits that extensions may give a meaning.
    for bits in [0x40, 0x20, 0x10] {
        let mut request = format!("ws://{}/ws?peerId={CLIENT}", server.address).into_client_request().unwrap();
        for (name, value) in [offer, ("sec-websocket-protocol", "litemesh.v2")] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (socket, response) = soon(tokio_tungstenite::client_async(request, stream)).await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers().get(offer.0)), (101, None));
        let mut socket = Socket(socket);
        reports.connect().await;
        assert!(matches!(socket.frame().await, Frame::Hello(_)));
        // A whole message, but for the bit.
        let ping = v2::ping();
        let head = [0x82 | bits, 0x80 | u8::try_from(ping.len()).unwrap(), 0, 0, 0, 0];
        soon(socket.0.get_mut().write_all(&[&head[..], &ping].concat())).await.unwrap();
        let frame = socket.closed().await;
        assert_eq!(frame.code, CloseCode::Protocol);
        assert!(frame.reason.contains("extension"), "{frame:?}");
        reports.disconnect().await;
    }
    assert_eq!(server.transport.counters().refused_malformed, 3);
}

/// The head of a frame of so many bytes, as a client sends it.
fn announced(bytes: u64) -> Vec<u8> {
    [&[0x82, 0xff][..], &bytes.to_be_bytes(), &[0; 4]].concat()
}

/// Announcing a large message takes no memory of others: what counts is what comes.
#[tokio::test]
async fn who_announces_much_and_sends_nothing_holds_nothing() {
    let transport = HttpServer::builder().bodies_bytes_max(1 << 20).build();
    let (server, _peer, mut reports) = started(transport, Limits::default()).await;
    let mut sockets = Vec::new();
    for number in 0..50 {
        let mut socket = Socket::of_frames_as(server.address, SiteId::from_bytes([number + 1; 16])).await;
        let bytes_max = Limits::default().message_bytes_max as u64;
        soon(socket.0.get_mut().write_all(&announced(bytes_max))).await.unwrap();
        soon(socket.0.get_mut().write_all(&[0; 10])).await.unwrap();
        reports.connect().await;
        sockets.push(socket);
    }
    until(|| server.transport.counters().body_bytes_held >= 10 * sockets.len() as u64).await;
    let mut socket = Socket::of_frames(server.address).await;
    reports.connect().await;
    let message = changes(vec![change(1, noise(1, 500_000))]);
    socket.send(Message::binary(v2::message(&message))).await;
    assert_eq!(reports.message().await, message);
    assert_eq!(server.transport.counters().body_bytes_held, 10 * sockets.len() as u64);
    // One byte too many is refused before any of it comes.
    drop(socket);
    reports.disconnect().await;
    let mut socket = Socket::of_frames(server.address).await;
    soon(socket.0.get_mut().write_all(&announced(Limits::default().message_bytes_max as u64 + 1))).await.unwrap();
    assert_eq!(socket.closed().await.code, CloseCode::Size);
}

/// However many pings come, and whether their answers are read or not: messages go through, and nothing is held.
#[tokio::test]
async fn a_flood_of_pings_holds_up_nothing() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let mut socket = Socket::of_frames(server.address).await;
    reports.connect().await;
    // Of 125 bytes each, as a client sends them: 13 MB, of which nothing is read back meanwhile.
    let ping = [&[0x89, 0xfd][..], &[0; 4], &[b'x'; 125]].concat().repeat(1000);
    for _ in 0..100 {
        soon(socket.0.get_mut().write_all(&ping)).await.unwrap();
    }
    let message = changes(vec![change(1, "after")]);
    socket.send(Message::binary(v2::message(&message))).await;
    assert_eq!(reports.message().await, message);
    // At least one of them is answered.
    loop {
        if let Message::Pong(payload) = socket.next().await {
            assert_eq!(payload, "x".repeat(125));
            break;
        }
    }
    assert_eq!(server.transport.counters().body_bytes_held, 0);
}

/// What a client still sends when its connection ends is read, so that no reset overtakes the reason.
#[tokio::test]
async fn who_is_closed_while_sending_much_hears_why() {
    let limits = Limits { message_bytes_max: 100_000, ..Limits::default() };
    let (server, _peer, mut reports) = started(HttpServer::new(), limits).await;
    for _ in 0..10 {
        let mut socket = Socket::of_frames(server.address).await;
        reports.connect().await;
        socket.send(Message::binary(vec![0; 1_000_000])).await;
        let frame = socket.closed().await;
        assert_eq!(frame.code, CloseCode::Size);
        assert!(frame.reason.contains("100000 bytes"), "{frame:?}");
        // Then the end, and no reset.
        assert!(soon(socket.0.next()).await.is_none());
        reports.disconnect().await;
    }
}

/// A server that takes less than its client sends says so once: the next try is smaller.
#[tokio::test]
async fn a_client_sends_less_to_a_server_that_takes_less() {
    let limits = Limits { message_bytes_max: 2_000_000, ..Limits::default() };
    let (server, _server_peer, mut server_reports) = started(HttpServer::new(), limits).await;
    let client = client("ws", server.address);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let mut remote = greeted(&mut reports).await;
    greeted(&mut server_reports).await;
    let first = client.message_bytes_max(remote);
    // Until a message of the size that the client says fits.
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries < 5, "it sends the same for ever");
        let bytes = client.message_bytes_max(remote);
        let message = changes(vec![change(tries, noise(1, bytes))]);
        soon(client.send(remote, message.clone())).await.unwrap();
        match server_reports.next().await {
            Report::Receive(_, received) => break assert_eq!(received, message),
            Report::Disconnect(..) => {}
            other => panic!("{other:?}"),
        }
        let (lost, reason) = reports.disconnect().await;
        assert!(lost == remote && reason.contains("1009"), "{reason}");
        remote = greeted(&mut reports).await;
        greeted(&mut server_reports).await;
    }
    assert!(tries > 1 && client.message_bytes_max(remote) < first);
}

/// Who is not wanted hears it, although its connection has ended before the handshake has.
#[tokio::test]
async fn who_is_refused_hears_why() {
    let (server, peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    for _ in 0..20 {
        let refusal = Refusal::Unavailable("it is closing time".to_owned());
        peer.connect_answers.lock().unwrap().push_back(Err(refusal));
        let mut socket = Socket::of_frames(server.address).await;
        let frame = socket.closed().await;
        assert!(frame.code == CloseCode::Policy && frame.reason.contains("closing time"), "{frame:?}");
        until(|| server.transport.counters().streams_open == 0).await;
    }
    reports.assert_none();
}

/// A message that could not be taken for now is not passed over: the next one would leave a hole.
#[tokio::test]
async fn a_message_that_cannot_be_taken_now_ends_the_connection() {
    let (server, peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let mut socket = Socket::of_frames(server.address).await;
    let remote = reports.connect().await;
    peer.answer_next(Refusal::Unavailable("the disk is full".to_owned()));
    let frame = v2::message(&changes(vec![change(1, "x")]));
    socket.send(Message::binary(frame.clone())).await;
    socket.send(Message::binary(frame)).await;
    reports.message().await;
    let (lost, reason) = reports.disconnect().await;
    assert!(lost == remote && reason.contains("disk is full"), "{reason}");
    let frame = socket.closed().await;
    assert!(frame.code == CloseCode::Again && frame.reason.contains("disk is full"), "{frame:?}");
    reports.assert_none();
}

/// As by the answer to a POST: the peer above hears what was refused, and the next connection asks again for what is missing.
#[tokio::test]
async fn our_client_ends_a_connection_over_which_a_message_was_refused() {
    let (server, server_peer, mut server_reports) = started(HttpServer::new(), Limits::default()).await;
    for builder in [HttpClient::builder(format!("ws://{}", server.address)), {
        HttpClient::builder(format!("ws://{}", server.address)).announce(false)
    }] {
        let client = builder.reconnect_delay_min(FIRST_DELAY).jitter(false).build();
        let (peer, mut reports) = RecordingPeer::new(CLIENT);
        peer.start(Arc::new(client.clone())).await;
        let mut remote = greeted(&mut reports).await;
        greeted(&mut server_reports).await;
        // Each time it waits longer.
        for refusals in 0..5 {
            server_peer.answer_next(Refusal::Invalid("there is no such table".to_owned()));
            soon(client.send(remote, changes(vec![change(1, "x")]))).await.unwrap();
            server_reports.message().await;
            let refused_at = Instant::now();
            match reports.next().await {
                Report::Refused(by, reason) => assert!(by == remote && reason.contains("no such table"), "{reason}"),
                other => panic!("{other:?}"),
            }
            assert_eq!(reports.disconnect().await.0, remote);
            server_reports.disconnect().await;
            remote = greeted(&mut reports).await;
            greeted(&mut server_reports).await;
            assert!(refused_at.elapsed() >= FIRST_DELAY * 2_u32.pow(refusals), "{refusals}");
        }
        client.stop().await;
        server_reports.disconnect().await;
    }
}

#[tokio::test]
async fn a_close_is_answered_and_hanging_up_is_nothing_malformed() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let mut socket = Socket::of_frames(server.address).await;
    let remote = reports.connect().await;
    socket.send(Message::Close(Some(CloseFrame { code: CloseCode::Iana(3001), reason: "enough".into() }))).await;
    assert_eq!(socket.closed().await.code, CloseCode::Iana(3001));
    let (lost, reason) = reports.disconnect().await;
    assert!(lost == remote && reason.contains("enough") && reason.contains("3001"), "{reason}");
    for is_inside in [false, true] {
        let mut socket = Socket::of_frames(server.address).await;
        let remote = reports.connect().await;
        if is_inside {
            soon(socket.0.get_mut().write_all(&announced(100_000))).await.unwrap();
        }
        drop(socket);
        assert_eq!(reports.disconnect().await.0, remote);
    }
    let counters = server.transport.counters();
    assert_eq!((counters.refused_malformed, counters.garbled, counters.body_bytes_held), (0, 0, 0));
}

/// However a line ends while the server writes, it is told once.
#[tokio::test]
async fn a_line_that_breaks_under_a_write_is_told_once() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    for _ in 0..10 {
        let socket = Socket::of_frames(server.address).await;
        let remote = reports.connect().await;
        let message = changes(vec![change(1, noise(1, 1 << 20))]);
        for _ in 0..3 {
            soon(server.transport.send(remote, message.clone())).await.unwrap();
        }
        // With bytes unread this is a reset.
        drop(socket);
        while server.transport.send(remote, message.clone()).await.is_ok() {}
        assert_eq!(reports.disconnect().await.0, remote);
        reports.assert_none();
    }
}

/// A request that cannot be read holds no changes that could be missing.
#[tokio::test]
async fn an_unreadable_request_is_told_and_not_garbled() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let mut socket = Socket::open(server.address, Some("litemesh.v1"), &[]).await.unwrap();
    assert_eq!(socket.json().await["type"], "connect");
    assert_eq!(socket.json().await["type"], "sync");
    reports.connect().await;
    let request = format!(r#"{{"type":"sync","peerId":"{CLIENT}","cursor":"nonsense"}}"#);
    socket.send(Message::text(request)).await;
    assert_eq!(socket.json().await["type"], "error");
    socket.send(Message::Close(None)).await;
    reports.disconnect().await;

    let mut socket = Socket::of_frames(server.address).await;
    assert!(matches!(socket.frame().await, Frame::Sync(_)));
    reports.connect().await;
    let request = v2::sync(&SyncRequest::default());
    socket.send(Message::binary(request[..1].to_vec())).await;
    assert!(matches!(socket.frame().await, Frame::Error(_)));
    let message = v2::message(&changes(vec![change(1, "x")]));
    socket.send(Message::binary(message[..message.len() - 1].to_vec())).await;
    reports.garbled().await;
    let counters = server.transport.counters();
    assert_eq!((counters.garbled, counters.refused_malformed), (1, 3));
}

/// Large messages go out in frames of moderate size, so that whoever receives them may bound frames.
#[tokio::test]
async fn our_client_sends_large_messages_in_parts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client("ws", listener.local_addr().unwrap());
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let (stream, _) = soon(listener.accept()).await.unwrap();
    let mut config = WebSocketConfig::default();
    config.max_frame_size = Some(64 << 10);
    #[allow(clippy::result_large_err)] // the library's
    let agree = |_: &Request, mut response: Response| {
        response.headers_mut().insert("sec-websocket-protocol", "litemesh.v2".parse().unwrap());
        Ok(response)
    };
    let accepted = tokio_tungstenite::accept_hdr_async_with_config(stream, agree, Some(config));
    let mut socket = soon(accepted).await.unwrap();
    let hello = v2::Hello { version: v2::VERSION, site: SERVER, access: Access::FULL };
    socket.send(Message::binary(v2::hello(&hello))).await.unwrap();
    let remote = reports.connect().await;
    let message = changes(vec![change(1, noise(1, 1 << 20))]);
    soon(client.send(remote, message.clone())).await.unwrap();
    let limits = Limits::default();
    loop {
        // Its request comes first, and signs of life between.
        let Message::Binary(frame) = soon(socket.next()).await.unwrap().unwrap() else { continue };
        if let Frame::Message(received) = v2::decode(&frame, &limits).unwrap() {
            assert_eq!(received.verify(&limits).unwrap(), message);
            break;
        }
    }
}

/// What a peer's panic leaves behind is cleared away: the socket ends, and its site is not locked out.
#[tokio::test]
async fn a_peer_that_panics_locks_nobody_out() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let mut socket = Socket::of_frames(server.address).await;
    reports.connect().await;
    // From here on the peer panics at each call, for want of somebody to report to.
    drop(reports);
    socket.send(Message::binary(v2::message(&changes(vec![change(1, "x")])))).await;
    while let Some(Ok(_)) = soon(socket.0.next()).await {}
    for _ in 0..2 {
        until(|| server.transport.counters().streams_open == 0).await;
        let mut socket = Socket::of_frames(server.address).await;
        while let Some(Ok(_)) = soon(socket.0.next()).await {}
    }
    soon(server.transport.stop()).await;
}

/// Nothing stands of a client whose peer panics: what writes would say for ever that it is alive.
#[tokio::test]
async fn a_client_whose_peer_panics_hangs_up() {
    for is_websocket in [true, false] {
        let (server, _server_peer, mut server_reports) = started(HttpServer::new(), Limits::default()).await;
        let client = HttpClient::builder(format!("http://{}", server.address)).websocket(is_websocket).build();
        let (peer, mut reports) = RecordingPeer::new(CLIENT);
        peer.start(Arc::new(client.clone())).await;
        greeted(&mut reports).await;
        let to_client = greeted(&mut server_reports).await;
        assert_eq!(client.is_websocket(), is_websocket);
        drop(reports);
        soon(server.transport.send(to_client, changes(vec![change(1, "x")]))).await.unwrap();
        assert_eq!(server_reports.disconnect().await.0, to_client);
        assert!(!client.is_sse_connected());
        soon(client.stop()).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_shed() {
    let transport = HttpServer::builder().stall_timeout(Duration::from_millis(300)).build();
    let (server, _peer, mut reports) = started(transport, Limits::default()).await;
    let _socket = Socket::of_frames(server.address).await;
    let remote = reports.connect().await;
    let message = changes(vec![change(1, noise(1, 1 << 20))]);
    // What the sockets hold goes; then it stalls.
    let stalled = async { while server.transport.send(remote, message.clone()).await.is_ok() {} };
    soon(stalled).await;
    let (lost, reason) = reports.disconnect().await;
    assert_eq!(lost, remote);
    assert!(reason.contains("took nothing"), "{reason}");
    assert_eq!(server.transport.counters().stalled, 1);
}

#[tokio::test]
async fn a_server_that_ends_says_so() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let mut socket = Socket::of_frames(server.address).await;
    reports.connect().await;
    server.shutdown.cancel();
    let frame = socket.closed().await;
    assert_eq!((frame.code, &*frame.reason), (CloseCode::Away, "the server is shutting down"));
    soon(server.task).await.unwrap().unwrap();
}

/// What is being handled when the server shuts down is waited for, as the answer to a POST is.
#[tokio::test]
async fn a_server_that_ends_waits_for_what_came_over_sockets() {
    let transport = HttpServer::new();
    let (peer, mut reports) = RecordingPeer::with(SERVER, Limits::default(), true);
    peer.start(Arc::new(transport.clone())).await;
    let mut server = support::serve(transport).await;
    let mut socket = Socket::of_frames(server.address).await;
    reports.connect().await;
    socket.send(Message::binary(v2::message(&changes(vec![change(1, "the last")])))).await;
    until(|| server.transport.counters().body_bytes_held > 0).await;
    server.shutdown.cancel();
    assert_eq!(socket.closed().await.code, CloseCode::Away);
    drop(socket);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut server.task).await;
    assert!(early.is_err(), "a message is still being handled");
    peer.open_gate(1);
    reports.message().await;
    soon(server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn tokens_open_sockets_and_end_them() {
    let hub = Hub::start().await;
    let denied = Socket::open(hub.server.address, Some("litemesh.v2"), &[]).await;
    assert!(matches!(denied, Err(Error::Http(response)) if response.status() == 401));
    let headers = [("litemesh-version", "2"), ("authorization", &*hub.bearer)];
    let mut socket = Socket::open(hub.server.address, Some("litemesh.v2"), &headers).await.unwrap();
    assert!(matches!(socket.frame().await, Frame::Hello(_)));
    let mut reports = hub.reports;
    reports.connect().await;
    std::fs::write(hub.tokens.path(), "").unwrap();
    let frame = socket.closed().await;
    assert!(frame.reason.contains("revoked"), "{frame:?}");
    reports.disconnect().await;
}

/// A browser's WebSocket sends no headers of its own but subprotocols.
#[tokio::test]
async fn a_ticket_opens_one_socket_in_place_of_a_token() {
    let mut hub = Hub::start().await;
    let authorization = format!("Authorization: {}", hub.bearer);
    let (head, answer) = exchange(hub.server.address, "POST", "/ticket", &[&authorization], Some(b"")).await;
    assert_eq!(head.status(), 200);
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    let query = format!("peerId={CLIENT}&ticket={}", answer["ticket"].as_str().unwrap());
    let mut socket = Socket::open_at(hub.server.address, &query, Some("litemesh.v1"), &[]).await.unwrap();
    assert_eq!(socket.json().await["type"], "connect");
    hub.reports.connect().await;
    socket.send(Message::Close(None)).await;
    hub.reports.disconnect().await;
    // It is good once.
    for query in [query, format!("peerId={CLIENT}&ticket=x"), format!("peerId={CLIENT}&ticket=")] {
        let denied = Socket::open_at(hub.server.address, &query, Some("litemesh.v1"), &[]).await;
        assert!(matches!(denied, Err(Error::Http(response)) if response.status() == 401), "{query}");
    }
}

/// A server that asks for tokens.
struct Hub {
    server: support::Running,
    reports: Reports,
    tokens: TokenFile,
    bearer: String,
    _peer: Arc<RecordingPeer>,
    _folder: tempfile::TempDir,
}

impl Hub {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = TokenFile::new(folder.path().join("tokens"));
        std::fs::write(tokens.path(), "").unwrap();
        let bearer = format!("Bearer {}", tokens.add("test", &Access::FULL).unwrap().token);
        let transport = HttpServer::builder().tokens(tokens.clone()).unwrap();
        let transport = transport.reload_interval(Duration::from_millis(20)).build();
        let (server, peer, reports) = started(transport, Limits::default()).await;
        Self { server, reports, tokens, bearer, _peer: peer, _folder: folder }
    }
}

#[tokio::test]
async fn only_who_offers_a_socket_is_told_of_one() {
    let (server, ..) = started(HttpServer::new(), Limits::default()).await;
    let site = SiteId::from_bytes([9; 16]);
    // Also who takes no frames of a stream, since something breaks those.
    for accept in ["accept: application/vnd.litemesh.frames", "accept: text/event-stream"] {
        let headers = ["litemesh-version: 2", accept, "litemesh-websocket: 1"];
        let (head, _) = exchange(server.address, "GET", &format!("/stream?peerId={site}"), &headers, None).await;
        assert_eq!((head.status(), head.header("upgrade")), (426, Some("websocket")));
        assert!(head.header("connection").is_some_and(|words| words.contains("upgrade")), "{head:?}");
    }
    let mut stream = support::raw::EventStream::open(server.address, site).await;
    assert_eq!(stream.expect("connect").await["type"], "connect");
}

/// A browser that has a connection of HTTP/2 opens its WebSockets over that.
#[tokio::test]
async fn a_stream_of_http2_can_be_a_socket() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut requests, connection) = soon(handshake).await.unwrap();
    tokio::spawn(connection);
    let base = format!("http://{}", server.address);
    // By the time of its answer the server's settings have come.
    let first = hyper::Request::get(format!("{base}/ws?peerId={CLIENT}")).body(String::new()).unwrap();
    let answer = soon(requests.send_request(first)).await.unwrap();
    assert_eq!(answer.status(), 426);
    assert!(!answer.headers().contains_key("connection"));
    let connect = |protocol: &'static str| {
        hyper::Request::connect(format!("{base}/ws?peerId={CLIENT}"))
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "litemesh.v2")
            .extension(hyper::ext::Protocol::from_static(protocol))
            .body(String::new())
            .unwrap()
    };
    assert_eq!(soon(requests.send_request(connect("connect-udp"))).await.unwrap().status(), 404);
    let answer = soon(requests.send_request(connect("websocket"))).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["sec-websocket-protocol"] == "litemesh.v2"), (200, true));
    let upgraded = TokioIo::new(soon(hyper::upgrade::on(answer)).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    reports.connect().await;
    let message = changes(vec![change(1, noise(1, 200_000))]);
    soon(socket.send(Message::binary(v2::message(&message)))).await.unwrap();
    assert_eq!(reports.message().await, message);
    soon(socket.close(None)).await.unwrap();
    reports.disconnect().await;
    // It goes on until the other end has answered.
    while let Some(Ok(_)) = soon(socket.next()).await {}
}
