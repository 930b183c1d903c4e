//! When a client takes a WebSocket, and when a stream: what lies between it and the hub and breaks things.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use litemesh_http::{DialError, HttpClient, HttpServer};
use litemesh_proto::{Limits, Remote, Transport};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use support::{
    CLIENT, FIRST_DELAY, RecordingPeer, Report, Reports, change, changes, client, greeted, noise, settled, soon,
    started, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

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
    /// It puts something else into the answer of the server: in place of the first the second.
    Says(&'static str, &'static str),
    /// It hangs up.
    HangsUp,
    /// It hangs up after the handshake.
    HangsUpLater,
    /// It hangs up after the server has introduced itself.
    HangsUpLast,
    /// It agrees for the server, and passes on nothing of it.
    Swallows,
    /// It passes on what the server says, and nothing of what the client does.
    Deafens,
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
                Fault::Says(..) | Fault::HangsUpLater | Fault::HangsUpLast | Fault::Swallows | Fault::Deafens => {
                    far.write_all(head.as_bytes()).await.unwrap();
                    let mut answer = read_head(&mut far).await.unwrap();
                    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
                    if let Fault::Says(before, after) = self.fault {
                        assert!(answer.contains(before), "{answer}");
                        answer = answer.replace(before, after);
                    }
                    near.write_all(answer.as_bytes()).await.unwrap();
                    match self.fault {
                        Fault::HangsUpLater => return,
                        Fault::Swallows => return std::future::pending().await,
                        Fault::Deafens => {
                            let _ = tokio::io::copy(&mut far, &mut near).await;
                            return;
                        }
                        _ => {}
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
        if !head.starts_with("GET /ws") {
            // What comes next comes over another connection, so that its head is seen here.
            head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
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

/// A server, a proxy before it, a client that has found its way, and how the server ends a connection.
struct Detour {
    server: support::Running,
    proxy: Proxy,
    client: HttpClient,
    reports: Reports,
    server_reports: Reports,
    /// What the server calls the connection that stands.
    remote: Option<Remote>,
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
    let agreements = [
        Fault::Says("litemesh.v2", "litemesh.v1"),
        Fault::Says("litemesh.v2", "mqtt"),
        Fault::Says("litemesh.v2", "Litemesh.v2"),
        Fault::Says("upgrade: websocket", "upgrade: tls/1.0"),
        Fault::Says("upgrade: websocket", "x-upgrade: websocket"),
        Fault::Says("connection: upgrade", "connection: close"),
        Fault::Says("sec-websocket-accept: ", "sec-websocket-accept: x"),
        Fault::Says("sec-websocket-accept: ", "sec-websocket-extensions: permessage-deflate\r\nsec-websocket-accept: "),
    ];
    for fault in answers.into_iter().chain([Fault::DropsHeaders]).chain(agreements) {
        let mut detour = Detour::start(fault, usize::MAX).await;
        for _ in 0..3 {
            detour.settle().await;
            assert!(!detour.client.is_websocket(), "{fault:?}");
            detour.end_connection().await;
        }
        detour.settle().await;
        // Several dials later. Who is busy is asked again.
        let expected = if matches!(fault, Fault::Answers(429 | 503)) { 3 } else { 1 };
        assert_eq!(detour.proxy.dials(), expected, "{fault:?}");
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

/// A stream is taken in place of a socket that stands and stays silent.
#[tokio::test]
async fn what_swallows_a_socket_is_not_waited_for() {
    let transport = HttpServer::builder().ping_interval(Duration::from_millis(100)).build();
    let (server, _server_peer, mut server_reports) = started(transport, Limits::default()).await;
    let proxy = Proxy::start(server.address, Fault::Swallows, usize::MAX).await;
    let client = HttpClient::builder(format!("http://{}", proxy.address)).idle_timeout(Duration::from_secs(1)).build();
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    settled(&mut reports).await;
    settled(&mut server_reports).await;
    assert!(!client.is_websocket() && proxy.dials() >= 1);
    client.stop().await;
}

/// What comes over a socket does not mean that anything arrives.
#[tokio::test]
async fn a_socket_over_which_nothing_arrives_is_left_for_a_stream() {
    let (interval, patience) = (Duration::from_millis(200), Duration::from_secs(1));
    let transport = HttpServer::builder().ping_interval(interval).stall_timeout(patience).build();
    let (server, _server_peer, mut server_reports) = started(transport, Limits::default()).await;
    let proxy = Proxy::start(server.address, Fault::Deafens, usize::MAX).await;
    let builder = HttpClient::builder(format!("http://{}", proxy.address)).reconnect_delay_min(FIRST_DELAY);
    let client = builder.idle_timeout(patience).build();
    let (peer, _reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    // What the client asks for arrives.
    soon(settled(&mut server_reports)).await;
    assert!(!client.is_websocket() && proxy.dials() >= 3);
    client.stop().await;
}

/// What lies between speaks TLS, and HTTP/2 alone, so that no socket can be dialled. The certificate that it shows.
async fn http2_proxy(server: SocketAddr) -> (SocketAddr, String) {
    // An error means that another test of this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(vec![certified.cert.der().clone()], key.into()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok(mut near) = tls.accept(near).await else { return };
                let mut far = TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, certified.cert.pem())
}

#[tokio::test]
async fn a_socket_that_cannot_be_dialled_leaves_the_stream() {
    let (server, _server_peer, mut server_reports) = started(HttpServer::new(), Limits::default()).await;
    let (proxy, ca) = http2_proxy(server.address).await;
    let builder = HttpClient::builder(format!("https://localhost:{}", proxy.port())).ca(ca);
    let client = builder.reconnect_delay_min(FIRST_DELAY).build();
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    // Each time, until it is not tried any more and after.
    for _ in 0..5 {
        settled(&mut reports).await;
        assert!(!client.is_websocket() && client.last_error().is_none());
        server.transport.close(settled(&mut server_reports).await).await;
    }
    client.stop().await;
    // Who asks for a socket alone hears why there is none.
    let (proxy, ca) = http2_proxy(server.address).await;
    let client = HttpClient::builder(format!("wss://localhost:{}", proxy.port())).ca(ca).build();
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let error = failure(&client).await;
    assert!(matches!(error, DialError::Tls { .. }), "{error}");
    client.stop().await;
    reports.assert_none();
}

/// Why the last dial failed, once one has.
async fn failure(client: &HttpClient) -> DialError {
    until(|| client.last_error().is_some()).await;
    client.last_error().unwrap()
}

/// An endpoint that asks for a socket gets one or nothing.
#[tokio::test]
async fn who_asks_for_a_socket_alone_hears_why_there_is_none() {
    let (server, _server_peer, _reports) = started(HttpServer::new(), Limits::default()).await;
    let proxy = Proxy::start(server.address, Fault::Answers(502), usize::MAX).await;
    let client = client("ws", proxy.address);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let error = failure(&client).await;
    assert!(matches!(error, DialError::Status { status: 502, .. }), "{error}");
    client.stop().await;
    reports.assert_none();
}
