//! When a client takes server-sent events: what lies between it and the hub breaks WebSockets, and streams of frames, too.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use litemesh_http::{DialError, HttpClient, HttpServer};
use litemesh_proto::{Limits, Remote, Transport};
use support::{
    CLIENT, FIRST_DELAY, RecordingPeer, Report, Reports, SERVER, change, changes, settled, soon, started, until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a proxy does to a stream of frames. To none does it pass on a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It answers for itself, with this status.
    Answers(u16),
    /// It gives what it does not know another type.
    Retypes,
    /// It collects what it does not know until it has all of it.
    Collects,
    /// The same, and with its head.
    Withholds,
    /// It passes on the head, and hangs up.
    HangsUp,
    /// What comes after the first message is something else.
    Garbles,
}

impl Fault {
    /// Whether one look is enough. What else may have been an accident is looked at three times.
    fn is_plain(self) -> bool {
        matches!(self, Self::Answers(_) | Self::Retypes)
    }

    /// Whether it shows in nothing but silence.
    fn is_silent(self) -> bool {
        matches!(self, Self::Collects | Self::Withholds)
    }
}

#[derive(Clone)]
struct Proxy {
    fault: Fault,
    /// How often it was asked for frames, and for events.
    frames: Arc<AtomicUsize>,
    events: Arc<AtomicUsize>,
    sockets: Arc<AtomicUsize>,
    server: SocketAddr,
    address: SocketAddr,
}

impl Proxy {
    async fn start(server: SocketAddr, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (frames, events, sockets) = Default::default();
        let proxy = Self { fault, frames, events, sockets, server, address };
        let passing = proxy.clone();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(passing.clone().pass(near));
            }
        });
        proxy
    }

    /// How often it was asked for frames, for events, and for a socket.
    fn asked(&self) -> [usize; 3] {
        [&self.frames, &self.events, &self.sockets].map(|count| count.load(Relaxed))
    }

    async fn pass(self, mut near: TcpStream) {
        let Some(head) = read_head(&mut near).await else { return };
        let is_of_frames = head.starts_with("GET /stream") && head.contains("accept: application/vnd.litemesh.frames");
        if head.starts_with("GET /ws") {
            self.sockets.fetch_add(1, Relaxed);
            let _ = near.write_all(&answer(502)).await;
            return;
        }
        if head.starts_with("GET /stream") {
            if is_of_frames { &self.frames } else { &self.events }.fetch_add(1, Relaxed);
        }
        // What comes next comes over another connection, so that its head is seen here.
        let mut asked = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        let offer = "litemesh-websocket: 1\r\n";
        let offers_socket = is_of_frames && asked.contains(offer);
        if is_of_frames && !offers_socket && self.answers(&mut near).await {
            return;
        }
        asked = asked.replace("\r\nconnection: keep-alive", "");
        let mut far = TcpStream::connect(self.server).await.unwrap();
        far.write_all(asked.as_bytes()).await.unwrap();
        if !is_of_frames || offers_socket {
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            return;
        }
        if self.fault == Fault::Withholds {
            let _ = far.read_to_end(&mut Vec::new()).await;
            return;
        }
        let head = read_head(&mut far).await.unwrap();
        assert!(head.contains("content-type: application/vnd.litemesh.frames"), "{head}");
        let retyped = head.replace("vnd.litemesh.frames", "octet-stream");
        near.write_all(if self.fault == Fault::Retypes { &retyped } else { &head }.as_bytes()).await.unwrap();
        match self.fault {
            Fault::Answers(_) | Fault::Withholds | Fault::HangsUp => return,
            Fault::Retypes => {}
            Fault::Collects => {
                let _ = far.read_to_end(&mut Vec::new()).await;
                return;
            }
            Fault::Garbles => {
                // The introduction, which is one chunk.
                let hello = read_line(&mut far).await;
                let bytes = usize::from_str_radix(hello.trim(), 16).unwrap();
                let mut chunk = vec![0; bytes + 2];
                far.read_exact(&mut chunk).await.unwrap();
                near.write_all(&[hello.as_bytes(), &chunk, b"8\r\n\xff\xff\xff\xff\xff\xff\xff\xff\r\n"].concat())
                    .await
                    .unwrap();
            }
        }
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    }

    async fn answers(&self, near: &mut TcpStream) -> bool {
        let Fault::Answers(status) = self.fault else { return false };
        let _ = near.write_all(&answer(status)).await;
        true
    }
}

fn answer(status: u16) -> Vec<u8> {
    format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

async fn read_line(stream: &mut TcpStream) -> String {
    let mut line = String::new();
    while !line.ends_with("\r\n") {
        line.push(char::from(stream.read_u8().await.unwrap()));
    }
    line
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// How long a silent stream is listened to.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// A server, a proxy before it, and a client.
struct Detour {
    server: support::Running,
    proxy: Proxy,
    client: HttpClient,
    reports: Reports,
    server_reports: Reports,
    _peers: [Arc<RecordingPeer>; 2],
}

impl Detour {
    async fn start(fault: Fault, websocket: bool) -> Self {
        let transport = HttpServer::builder().ping_interval(Duration::from_millis(100)).build();
        let (server, server_peer, server_reports) = started(transport, Limits::default()).await;
        let proxy = Proxy::start(server.address, fault).await;
        let builder = HttpClient::builder(format!("http://{}", proxy.address)).websocket(websocket);
        let mut builder = builder.reconnect_delay_min(FIRST_DELAY);
        if fault.is_silent() {
            builder = builder.idle_timeout(SILENCE_MAX);
        }
        let client = builder.build();
        let (peer, reports) = RecordingPeer::new(CLIENT);
        peer.start(Arc::new(client.clone())).await;
        Self { server, proxy, client, reports, server_reports, _peers: [server_peer, peer] }
    }

    /// Waits for a connection that carries both ways; what the server calls it. `before`: connections that the server has heard the client
    /// over and that came to nothing.
    async fn settle(&mut self, before: usize) -> Remote {
        let to_server = settled(&mut self.reports).await;
        for _ in 0..before {
            while !matches!(self.server_reports.next().await, Report::Connect(_)) {}
        }
        let to_client = settled(&mut self.server_reports).await;
        assert_eq!((to_server.site, to_server.is_litemesh, to_client.is_litemesh), (SERVER, true, true));
        let message = changes(vec![change(1, "over events")]);
        soon(self.client.send(to_server, message.clone())).await.unwrap();
        soon(self.server.transport.send(to_client, message.clone())).await.unwrap();
        for reports in [&mut self.server_reports, &mut self.reports] {
            // The server may learn only now that an earlier one is gone.
            while !matches!(reports.next().await, Report::Receive(_, received) if received == message) {}
        }
        to_client
    }
}

#[tokio::test]
async fn where_frames_do_not_get_through_events_are_taken_in_the_same_dial() {
    let answers = [403, 406, 415, 500, 502, 504].map(Fault::Answers);
    for fault in answers.into_iter().chain([Fault::Retypes, Fault::HangsUp]) {
        let mut detour = Detour::start(fault, false).await;
        for number in 1..=5 {
            let remote = detour.settle(0).await;
            let frames = if fault.is_plain() { 1 } else { number.min(3) };
            assert_eq!(detour.proxy.asked(), [frames, number, 0], "{fault:?}");
            detour.server.transport.close(remote).await;
        }
        detour.client.stop().await;
    }
}

/// Silence may be the machine's: how often it is listened to is not counted here, but it comes to an end.
#[tokio::test]
async fn where_frames_are_collected_events_are_taken_in_the_same_dial() {
    let check = async |fault| {
        let mut detour = Detour::start(fault, false).await;
        let mut last = 0;
        loop {
            let remote = detour.settle(0).await;
            let frames = detour.proxy.asked()[0];
            if frames == last {
                break;
            }
            last = frames;
            detour.server.transport.close(remote).await;
        }
        assert!(last >= 3, "{fault:?}: once or twice may be an accident");
        detour.client.stop().await;
    };
    tokio::join!(check(Fault::Collects), check(Fault::Withholds));
}

/// Both are broken: each is tried, and left alone once that was no accident.
#[tokio::test]
async fn where_neither_sockets_nor_frames_get_through_events_are_taken() {
    for fault in [Fault::Answers(406), Fault::Retypes] {
        let mut detour = Detour::start(fault, true).await;
        for number in 1..=3 {
            let remote = detour.settle(0).await;
            assert!(!detour.client.is_websocket(), "{fault:?}");
            let [_, events, sockets] = detour.proxy.asked();
            assert_eq!((events, sockets), (number, 1), "{fault:?}");
            detour.server.transport.close(remote).await;
        }
        detour.client.stop().await;
    }
}

/// The first message is whole, so it takes a few connections to know.
#[tokio::test]
async fn where_frames_come_as_something_else_events_are_taken_in_the_end() {
    let mut detour = Detour::start(Fault::Garbles, false).await;
    // It dials on for ever where it does not learn.
    let remote = soon(detour.settle(3)).await;
    assert_eq!(detour.proxy.asked(), [3, 1, 0]);
    detour.server.transport.close(remote).await;
    detour.settle(0).await;
    assert_eq!(detour.proxy.asked(), [3, 2, 0]);
    detour.client.stop().await;
}

/// What the server says itself is not asked again in another form.
#[tokio::test]
async fn a_server_that_refuses_is_asked_once_a_dial() {
    for status in [400, 401, 404, 429, 503] {
        let (server, _peer, _reports) = started(HttpServer::new(), Limits::default()).await;
        let proxy = Proxy::start(server.address, Fault::Answers(status)).await;
        let builder = HttpClient::builder(format!("http://{}", proxy.address)).websocket(false);
        let client = builder.reconnect_delay_min(FIRST_DELAY).build();
        let (peer, _reports) = RecordingPeer::new(CLIENT);
        peer.start(Arc::new(client.clone())).await;
        until(|| proxy.asked()[0] >= 3).await;
        let error = client.last_error().unwrap();
        assert!(matches!(error, DialError::Status { status: said, .. } if said == status), "{error}");
        client.stop().await;
        assert_eq!(proxy.asked()[1], 0, "{status}");
    }
}
