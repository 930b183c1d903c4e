//! WebSockets: two of ours, clients written by hand, and what lies between them and breaks things.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use litemesh_http::{DialError, HttpClient, HttpServer, TokenFile};
use litemesh_proto::codec::v1;
use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Access, Limits, Refusal, SiteId, SyncRequest, Transport};
use support::raw::exchange;
use support::{CLIENT, RecordingPeer, Report, Reports, SERVER, change, changes, noise, soon, started};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as Fragment;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};

const FIRST_DELAY: Duration = Duration::from_millis(10);

fn client(scheme: &str, address: SocketAddr) -> HttpClient {
    HttpClient::builder(format!("{scheme}://{address}")).reconnect_delay_min(FIRST_DELAY).build()
}

/// A connect and a sync request, in whichever order they come.
async fn greeted(reports: &mut Reports) -> litemesh_proto::Remote {
    let remote = reports.connect().await;
    match reports.next().await {
        Report::Sync(from, _) => assert_eq!(from, remote),
        other => panic!("{other:?}"),
    }
    remote
}

/// A client by hand.
struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(
        address: SocketAddr,
        protocol: Option<&str>,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = format!("ws://{address}/ws?peerId={CLIENT}").into_client_request().unwrap();
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
        let mut socket = Self::open(address, Some("litemesh.v2"), &[("litemesh-version", "2")]).await.unwrap();
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
async fn our_client_takes_the_socket_of_our_hub() {
    for scheme in ["http", "ws"] {
        let (server, _server_peer, mut server_reports) = started(HttpServer::new(), Limits::default()).await;
        let client = client(scheme, server.address);
        let (peer, mut reports) = RecordingPeer::new(CLIENT);
        peer.start(Arc::new(client.clone())).await;
        let to_server = greeted(&mut reports).await;
        let to_client = greeted(&mut server_reports).await;
        assert!(client.is_websocket() && to_server.is_litemesh && to_client.is_litemesh);
        for version in 0..30 {
            // Up to half a megabyte: in pieces, then.
            let message = changes(vec![change(version, noise(version as u64, 1 << (version % 20)))]);
            soon(client.send(to_server, message.clone())).await.unwrap();
            assert_eq!(server_reports.message().await, message);
            soon(server.transport.send(to_client, message.clone())).await.unwrap();
            assert_eq!(reports.message().await, message);
        }
        let counters = server.transport.counters();
        assert_eq!((counters.streams_total, counters.body_bytes_held), (1, 0));
        client.stop().await;
        let (remote, reason) = server_reports.disconnect().await;
        assert_eq!(remote, to_client);
        assert!(reason.contains("closed the socket"), "{reason}");
        reports.assert_none();
    }
}

#[tokio::test]
async fn a_client_comes_back_over_a_socket() {
    let (server, _server_peer, mut server_reports) = started(HttpServer::new(), Limits::default()).await;
    let client = client("http", server.address);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let first = greeted(&mut reports).await;
    let at_server = greeted(&mut server_reports).await;
    server.transport.close(at_server).await;
    let (lost, reason) = reports.disconnect().await;
    assert_eq!(lost, first);
    assert!(reason.contains("closed by this side") && reason.contains("1000"), "{reason}");
    let second = greeted(&mut reports).await;
    greeted(&mut server_reports).await;
    assert!(client.is_websocket() && second != first);
}

/// What lies between breaks sockets in one way or another.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It knows nothing of upgrades, and passes the request on without.
    DropsHeaders,
    /// It answers for itself, with this status.
    Answers(u16),
    /// It agrees to something that was not offered.
    Agrees(&'static str),
    /// It hangs up.
    HangsUp,
    /// It hangs up after the handshake.
    HangsUpLater,
    /// It hangs up after the server has introduced itself.
    HangsUpLast,
}

/// A proxy that has a fault, for so many of the first handshakes.
#[derive(Clone)]
struct Proxy {
    fault: Fault,
    times: usize,
    dials: Arc<AtomicUsize>,
    server: SocketAddr,
    address: SocketAddr,
}

impl Proxy {
    async fn start(server: SocketAddr, fault: Fault, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self { fault, times, dials: Arc::default(), server, address };
        let passing = proxy.clone();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(passing.clone().pass(near));
            }
        });
        proxy
    }

    fn dials(&self) -> usize {
        self.dials.load(Relaxed)
    }

    async fn pass(self, mut near: TcpStream) {
        let Some(mut head) = read_head(&mut near).await else { return };
        let mut far = TcpStream::connect(self.server).await.unwrap();
        if head.starts_with("GET /ws") && self.dials.fetch_add(1, Relaxed) < self.times {
            match self.fault {
                Fault::DropsHeaders => {
                    let is_kept = |line: &&str| !line.starts_with("upgrade") && !line.starts_with("connection");
                    head = head.split_inclusive('\n').filter(is_kept).collect();
                }
                Fault::Answers(status) => {
                    let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
                    let _ = near.write_all(answer.as_bytes()).await;
                    return;
                }
                Fault::HangsUp => return,
                Fault::Agrees(_) | Fault::HangsUpLater | Fault::HangsUpLast => {
                    far.write_all(head.as_bytes()).await.unwrap();
                    let mut answer = read_head(&mut far).await.unwrap();
                    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
                    if let Fault::Agrees(protocol) = self.fault {
                        answer = answer.replace("litemesh.v2", protocol);
                    }
                    near.write_all(answer.as_bytes()).await.unwrap();
                    if self.fault == Fault::HangsUpLater {
                        return;
                    }
                    // A short frame, the hello.
                    let mut hello = vec![0; 2];
                    far.read_exact(&mut hello).await.unwrap();
                    hello.resize(2 + usize::from(hello[1]), 0);
                    far.read_exact(&mut hello[2..]).await.unwrap();
                    near.write_all(&hello).await.unwrap();
                    return;
                }
            }
        }
        far.write_all(head.as_bytes()).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Waits for the connection that works both ways, after others that came and went.
async fn settled(reports: &mut Reports) -> litemesh_proto::Remote {
    let mut last = None;
    loop {
        match reports.next().await {
            Report::Connect(remote) => last = Some(remote),
            Report::Sync(from, _) if Some(from) == last => return from,
            _ => {}
        }
    }
}

/// A server, a proxy before it, a client that has found its way, and how the server ends a connection.
struct Detour {
    server: support::Running,
    proxy: Proxy,
    client: HttpClient,
    reports: Reports,
    server_reports: Reports,
    /// What the server calls the connection that stands.
    remote: Option<litemesh_proto::Remote>,
    _peers: [Arc<RecordingPeer>; 2],
}

impl Detour {
    async fn start(fault: Fault, times: usize) -> Self {
        let (server, server_peer, server_reports) = started(HttpServer::new(), Limits::default()).await;
        let proxy = Proxy::start(server.address, fault, times).await;
        let client = client("http", proxy.address);
        let (peer, reports) = RecordingPeer::new(CLIENT);
        peer.start(Arc::new(client.clone())).await;
        Self { server, proxy, client, reports, server_reports, remote: None, _peers: [server_peer, peer] }
    }

    /// Waits for a connection, and sends something over it.
    async fn settle(&mut self) {
        let remote = settled(&mut self.reports).await;
        let message = changes(vec![change(1, "by some way")]);
        soon(self.client.send(remote, message.clone())).await.unwrap();
        loop {
            if let Report::Receive(remote, received) = self.server_reports.next().await {
                assert_eq!(received, message);
                self.remote = Some(remote);
                return;
            }
        }
    }

    /// Has the server end the connection that stands.
    async fn end_connection(&mut self) {
        let remote = self.remote.take().unwrap();
        self.server.transport.close(remote).await;
    }
}

#[tokio::test]
async fn what_answers_in_place_of_a_socket_is_not_asked_again_for_a_while() {
    let answers = [200, 400, 401, 403, 404, 426, 429, 500, 502, 503].map(Fault::Answers);
    let others = [Fault::DropsHeaders, Fault::Agrees("litemesh.v1"), Fault::Agrees("mqtt")];
    for fault in answers.into_iter().chain(others) {
        let mut detour = Detour::start(fault, usize::MAX).await;
        for _ in 0..3 {
            detour.settle().await;
            assert!(!detour.client.is_websocket(), "{fault:?}");
            detour.end_connection().await;
        }
        detour.settle().await;
        // Several dials later.
        assert_eq!(detour.proxy.dials(), 1, "{fault:?}");
        detour.client.stop().await;
    }
}

#[tokio::test]
async fn a_line_that_breaks_once_or_twice_costs_no_sockets() {
    for fault in [Fault::HangsUp, Fault::HangsUpLater, Fault::HangsUpLast] {
        let mut detour = Detour::start(fault, 2).await;
        for _ in 0..3 {
            detour.settle().await;
            if detour.client.is_websocket() {
                break;
            }
            // By a stream meanwhile.
            assert_ne!(fault, Fault::HangsUpLast);
            detour.end_connection().await;
        }
        assert!(detour.client.is_websocket() && detour.proxy.dials() == 3, "{fault:?}");
        detour.client.stop().await;
    }
}

#[tokio::test]
async fn a_line_that_breaks_each_time_shuts_the_way_of_sockets() {
    for fault in [Fault::HangsUp, Fault::HangsUpLater, Fault::HangsUpLast] {
        let mut detour = Detour::start(fault, usize::MAX).await;
        for _ in 0..6 {
            detour.settle().await;
            assert!(!detour.client.is_websocket(), "{fault:?}");
            detour.end_connection().await;
        }
        detour.settle().await;
        assert_eq!(detour.proxy.dials(), 3, "{fault:?}");
        detour.client.stop().await;
    }
}

/// An endpoint that asks for a socket gets one or nothing.
#[tokio::test]
async fn who_asks_for_a_socket_alone_hears_why_there_is_none() {
    let (server, _server_peer, _reports) = started(HttpServer::new(), Limits::default()).await;
    let proxy = Proxy::start(server.address, Fault::Answers(502), usize::MAX).await;
    let client = client("ws", proxy.address);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let error = soon(async {
        loop {
            if let Some(error) = client.last_error() {
                return error;
            }
            tokio::time::sleep(FIRST_DELAY).await;
        }
    });
    let error = error.await;
    assert!(matches!(error, DialError::Status { status: 502, .. }), "{error}");
    client.stop().await;
    reports.assert_none();
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
    let (status, text) = ask("GET", &url, &with(&["Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: mqtt"])).await;
    assert!(status == 400 && text.contains("litemesh.v2"), "{status} {text}");
    assert_eq!(server.transport.counters().streams_total, 0);
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
    let large = |bytes: usize| Message::binary(vec![0; bytes]);
    for (message, code) in [
        (large(100_001), CloseCode::Size),
        (large(95_000), CloseCode::Again),
        (Message::text("{}"), CloseCode::Unsupported),
    ] {
        let mut socket = Socket::of_frames(server.address).await;
        reports.connect().await;
        // The server may close before all is written.
        let _ = soon(socket.0.send(message)).await;
        assert_eq!(socket.closed().await.code, code);
        reports.disconnect().await;
    }
    let counters = server.transport.counters();
    assert_eq!((counters.refused_too_large, counters.refused_busy, counters.body_bytes_held), (1, 1, 0));
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

#[tokio::test]
async fn tokens_and_tickets_open_sockets_and_end_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = TokenFile::new(folder.path().join("tokens"));
    std::fs::write(file.path(), "").unwrap();
    let token = file.add("test", &Access::FULL).unwrap();
    let transport =
        HttpServer::builder().tokens(file.clone()).unwrap().reload_interval(Duration::from_millis(20)).build();
    let (server, _peer, mut reports) = started(transport, Limits::default()).await;
    let denied = Socket::open(server.address, Some("litemesh.v2"), &[]).await;
    assert!(matches!(denied, Err(Error::Http(response)) if response.status() == 401));
    let bearer = format!("Bearer {}", token.token);
    let headers = [("litemesh-version", "2"), ("authorization", &bearer)];
    let mut socket = Socket::open(server.address, Some("litemesh.v2"), &headers).await.unwrap();
    assert!(matches!(socket.frame().await, Frame::Hello(_)));
    reports.connect().await;
    std::fs::write(file.path(), "").unwrap();
    let frame = socket.closed().await;
    assert!(frame.reason.contains("revoked"), "{frame:?}");
    reports.disconnect().await;
}

#[tokio::test]
async fn only_who_offers_a_socket_is_told_of_one() {
    let (server, ..) = started(HttpServer::new(), Limits::default()).await;
    let site = SiteId::from_bytes([9; 16]);
    let (head, _) = support::raw::exchange(
        server.address,
        "GET",
        &format!("/stream?peerId={site}"),
        &["litemesh-version: 2", "accept: application/vnd.litemesh.frames", "litemesh-websocket: 1"],
        None,
    )
    .await;
    assert_eq!(head.status(), 426);
    let mut stream = support::raw::EventStream::open(server.address, site).await;
    assert_eq!(stream.expect("connect").await["type"], "connect");
}
