//! The client against a server played by hand: dialling again, order, limits, and what happens when a connection is lost.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use litemesh_http::{DialError, HttpClient};
use litemesh_proto::codec::{v1, v2};
use litemesh_proto::limits::{BATCH_BYTES_MAX, V1_BODY_BYTES_MAX};
use litemesh_proto::{
    DbVersion, Incarnation, Limits, PeerMessage, Position, Progress, Refusal, Remote, Transport, TransportError,
};
use support::raw::{Asked, CONNECT, LITEMESH_CONNECT, RawServer};
use support::{CLIENT, RecordingPeer, Report, Reports, SERVER, change, changes, eose, noise, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const FIRST_DELAY: Duration = Duration::from_millis(10);

fn client(server: &RawServer) -> HttpClient {
    // The machine's proxy has no business on the loopback.
    let http = support::http_client().no_proxy().build().unwrap();
    HttpClient::builder(server.url() + "/").http(http).reconnect_delay_min(FIRST_DELAY).jitter(false).build()
}

/// A started client, its peer, and the stream that the server holds.
struct Connected {
    server: RawServer,
    client: HttpClient,
    peer: Arc<RecordingPeer>,
    reports: Reports,
    stream: Asked,
    remote: Remote,
}

async fn connected(introduction: &str) -> Connected {
    connected_with(introduction, false, client).await
}

async fn connected_with(introduction: &str, is_gated: bool, client: impl Fn(&RawServer) -> HttpClient) -> Connected {
    let server = RawServer::bind().await;
    let client = client(&server);
    let (peer, mut reports) = RecordingPeer::with(CLIENT, Limits::default(), is_gated);
    peer.start(Arc::new(client.clone())).await;
    let (stream, _) = server.welcome(introduction).await;
    let remote = reports.connect().await;
    Connected { server, client, peer, reports, stream, remote }
}

fn data(text: &str) -> String {
    String::from_utf8(v1::data(SERVER, &changes(vec![change(1, text)]))).unwrap()
}

#[tokio::test]
async fn it_introduces_itself_and_asks_as_an_original_client_does() {
    let server = RawServer::bind().await;
    let client = client(&server);
    assert!(!client.is_sse_connected());
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let mut stream = server.expect(&format!("GET /api/stream?peerId={CLIENT} HTTP/1.1")).await;
    assert_eq!(stream.head.header("accept"), Some("application/vnd.litemesh.frames, text/event-stream"));
    assert_eq!(stream.head.header("litemesh-version"), Some("2"));
    assert_eq!(stream.head.header("accept-encoding"), Some("gzip"));
    assert_eq!(stream.head.header("litemesh-instance").map(str::len), Some(32));
    stream.begin_stream(&[]).await;
    stream.frame(CONNECT).await;
    let remote = reports.connect().await;
    assert_eq!((remote.site, remote.is_litemesh), (SERVER, false));
    let sync = server.expect("POST /api/sync HTTP/1.1").await;
    assert_eq!(sync.head.header("content-type"), Some("application/json"));
    let expected = format!(r#"{{"type":"sync","peerId":"{CLIENT}","cursor":{{"peers":{{"{CLIENT}":1}}}}}}"#);
    assert_eq!(String::from_utf8(sync.body.clone()).unwrap(), expected);
    sync.succeed().await;
    assert!(client.is_sse_connected());
    assert_eq!((client.remote_peer_id(), client.reconnect_attempts()), (Some(SERVER), 0));
    let again = client.start(peer).await;
    assert_eq!(again, Err(TransportError::AlreadyStarted));
    client.stop().await;
    assert!(!client.is_sse_connected() && client.remote_peer_id().is_none());
    reports.assert_none();
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_is_refused_at_start() {
    let (peer, _reports) = RecordingPeer::new(CLIENT);
    let refused = HttpClient::new("not a url").start(peer).await;
    assert!(matches!(refused, Err(TransportError::Endpoint { .. })), "{refused:?}");
}

#[tokio::test]
async fn it_dials_again_after_doubling_delays_until_a_connect_frame() {
    let server = RawServer::bind().await;
    let client = client(&server);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let mut last = Instant::now();
    // Every way to fail before the connect frame counts the same.
    for attempt in 0..6_u32 {
        let mut stream = server.expect("GET").await;
        assert_eq!(client.reconnect_attempts(), attempt);
        let waited = last.elapsed();
        assert!(attempt == 0 || waited >= FIRST_DELAY * 2_u32.pow(attempt - 1), "{attempt}: {waited:?}");
        // Before the answer, so that the delay cannot begin earlier.
        last = Instant::now();
        // Written before the next dial.
        let error = client.last_error();
        let is_expected = match (&error, attempt) {
            (None, 0) => true,
            (Some(DialError::Status { status: 503, reason }), 1) => reason == "Service Unavailable",
            (Some(DialError::Unreachable { .. }), 2) => true,
            (Some(DialError::AlreadyConnected), 3) => true,
            (Some(DialError::NoStream { .. }), 4 | 5) => true,
            _ => false,
        };
        assert!(is_expected, "{attempt}: {error:?}");
        match attempt {
            0 => stream.respond("503 Service Unavailable", "").await,
            1 => drop(stream),
            2 => {
                stream.begin_stream(&[]).await;
                stream.frame(&format!(r#"{{"type":"error","peerId":"{SERVER}","error":"ALREADY_CONNECTED"}}"#)).await;
            }
            3 => {
                stream.begin_stream(&[]).await;
                stream.frame(r#"{"type":"ping"}"#).await;
            }
            4 => {
                stream.begin_stream(&["Content-Encoding: br"]).await;
            }
            _ => {
                stream.begin_stream(&[]).await;
                stream.chunk(b"data: nonsense\n\n").await;
            }
        }
    }
    reports.assert_none();
    let (stream, _) = server.welcome(CONNECT).await;
    let remote = reports.connect().await;
    assert_eq!((client.reconnect_attempts(), client.last_error()), (0, None));
    drop(stream);
    let (lost, reason) = reports.disconnect().await;
    assert_eq!(lost, remote, "{reason}");
    let (_stream, _) = server.welcome(CONNECT).await;
    assert_ne!(reports.connect().await.connection, remote.connection);
    client.stop().await;
}

/// Dials `endpoint` until that has failed; the client is the one that the transport makes itself.
async fn failed_dial(endpoint: &str) -> DialError {
    let client = HttpClient::builder(endpoint).reconnect_delay_min(FIRST_DELAY).build();
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    // The delay after the first failure ends with a count; there is no event to wait for.
    let error = soon(async {
        loop {
            if let Some(error) = client.last_error() {
                return error;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    client.stop().await;
    reports.assert_none();
    error
}

#[tokio::test]
async fn the_reason_of_a_failed_dial_has_a_type() {
    // A port that was free a moment ago.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(failed_dial(&format!("http://{free}")).await, DialError::ConnectionRefused);

    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", plain.local_addr().unwrap());
    let answer = async {
        let (mut socket, _) = soon(plain.accept()).await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        // Until the client has seen it, and closes.
        let _ = socket.read_to_end(&mut Vec::new()).await;
    };
    let (error, ()) = tokio::join!(failed_dial(&endpoint), answer);
    assert!(matches!(error, DialError::Tls { .. }), "{error:?}");

    let server = RawServer::bind().await;
    let answer = async {
        let body = r#"{"message":"Route GET:/api/stream not found","error":"Not Found","statusCode":404}"#;
        server.accept().await.respond("404 Not Found", body).await;
    };
    let url = server.url();
    let (error, ()) = tokio::join!(failed_dial(&url), answer);
    assert_eq!(error, DialError::Status { status: 404, reason: "Route GET:/api/stream not found".to_owned() });
}

/// `known-failures.md` B16: the original takes a dead line for a quiet one.
#[tokio::test]
async fn silence_ends_a_connection() {
    let idle = Duration::from_secs(1);
    let quick = |server: &RawServer| {
        let http = support::http_client().no_proxy().build().unwrap();
        HttpClient::builder(server.url()).http(http).reconnect_delay_min(FIRST_DELAY).idle_timeout(idle).build()
    };
    let mut all = connected_with(CONNECT, false, quick).await;
    let (remote, reason) = all.reports.disconnect().await;
    assert_eq!(remote, all.remote);
    assert!(reason.starts_with("no sign of life"), "{reason}");
    // A server that takes the connection and says nothing at all is given up, too.
    let _silent = all.server.expect("GET").await;
    all.server.welcome(CONNECT).await;
    all.reports.connect().await;
}

#[tokio::test]
async fn frames_are_handled_one_after_another() {
    let mut all = connected_with(CONNECT, true, client).await;
    all.stream.frame(&data("one")).await;
    all.stream.frame(r#"{"type":"sync","peerId":"5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e","cursor":{"peers":{}}}"#).await;
    all.stream.frame(&data("two")).await;
    // The first is held up; what comes after it waits, although a sync request would not have to.
    all.peer.open_gate(1);
    assert_eq!(all.reports.message().await, changes(vec![change(1, "one")]));
    assert!(matches!(all.reports.next().await, Report::Sync(..)));
    all.peer.open_gate(1);
    assert_eq!(all.reports.message().await, changes(vec![change(1, "two")]));
}

#[tokio::test]
async fn frames_may_be_cut_anywhere() {
    let mut all = connected(CONNECT).await;
    let text = noise(4, 2000);
    // One byte in one packet: every boundary there is.
    for byte in format!(": comment\r\ndata: {}\r\n\r\n", data(&text)).into_bytes() {
        all.stream.chunk(&[byte]).await;
    }
    assert_eq!(all.reports.message().await, changes(vec![change(1, text)]));
}

/// `known-failures.md` A4: the original goes on with the next message.
#[tokio::test]
async fn a_refused_message_ends_nothing_and_one_that_cannot_be_stored_does() {
    let mut all = connected(CONNECT).await;
    all.peer.answer_next(Refusal::Invalid("no such table".to_owned()));
    all.stream.frame(&data("one")).await;
    all.reports.message().await;
    all.stream.frame(&data("two")).await;
    all.reports.message().await;
    all.peer.answer_next(Refusal::Unavailable("disk full".to_owned()));
    all.stream.frame(&data("three")).await;
    all.stream.frame(&data("four")).await;
    assert_eq!(all.reports.message().await, changes(vec![change(1, "three")]));
    // The one after it would leave a hole.
    let (remote, reason) = all.reports.disconnect().await;
    assert_eq!((remote, reason.as_str()), (all.remote, "a message could not be taken: disk full"));
    all.server.welcome(CONNECT).await;
    all.reports.connect().await;
}

#[tokio::test]
async fn frames_that_cannot_be_read_are_reported_and_others_ignored() {
    let mut all = connected(CONNECT).await;
    all.stream.frame("{\"type\":\"data\",\"peerId\":").await;
    all.reports.garbled().await;
    all.stream.frame(r#"{"type":"data","data":{"type":"changes"}}"#).await;
    all.reports.garbled().await;
    for ignored in [r#"{"type":"ping"}"#, r#"{"type":"later"}"#, r#"{"type":"error","error":"X"}"#, "7"] {
        all.stream.frame(ignored).await;
    }
    all.stream.chunk(b"event: other\ndata: nonsense\n\n").await;
    all.stream.frame(&data("one")).await;
    all.reports.message().await;
}

#[tokio::test]
async fn an_event_beyond_the_limit_is_reported_and_the_next_is_read() {
    let server = RawServer::bind().await;
    let client = client(&server);
    let limits = Limits { message_bytes_max: 1000, ..Limits::default() };
    let (peer, mut reports) = RecordingPeer::with(CLIENT, limits, false);
    peer.start(Arc::new(client)).await;
    let (mut stream, _) = server.welcome(CONNECT).await;
    reports.connect().await;
    stream.frame(&data(&"x".repeat(100_000))).await;
    stream.frame(&data("small")).await;
    reports.garbled().await;
    assert_eq!(reports.message().await, changes(vec![change(1, "small")]));
}

/// `known-failures.md` A2: the original posts all at once.
#[tokio::test]
async fn messages_are_posted_one_at_a_time() {
    let all = connected(CONNECT).await;
    let send = |text: &'static str| {
        let (client, remote) = (all.client.clone(), all.remote);
        tokio::spawn(async move { client.send(remote, changes(vec![change(1, text)])).await })
    };
    let first = send("one");
    let asked = all.server.expect("POST /api/data").await;
    assert_eq!(asked.body, v1::data(CLIENT, &changes(vec![change(1, "one")])));
    let second = send("two");
    // The second does not arrive while the first waits for its answer.
    assert!(tokio::time::timeout(Duration::from_millis(50), all.server.accept()).await.is_err());
    asked.succeed().await;
    soon(first).await.unwrap().unwrap();
    all.server.expect("POST /api/data").await.succeed().await;
    soon(second).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failed_post_ends_the_connection_once() {
    let mut all = connected(CONNECT).await;
    let (client, remote) = (all.client.clone(), all.remote);
    let sending = tokio::spawn(async move { client.send(remote, eose()).await });
    let asked = all.server.expect("POST /api/data").await;
    asked.respond("500 Internal Server Error", r#"{"type":"error","error":"busy"}"#).await;
    let error = soon(sending).await.unwrap().unwrap_err();
    assert_eq!(error, TransportError::Refused { status: 500, reason: "busy".to_owned() });
    assert_eq!(all.reports.disconnect().await.0, remote);
    assert!(all.client.send(remote, eose()).await.is_err());
    all.server.welcome(CONNECT).await;
    assert_ne!(all.reports.connect().await.connection, remote.connection);
}

/// `known-failures.md` B19: a burst that is never taken would be sent with every second.
#[tokio::test]
async fn who_is_refused_again_and_again_waits_longer_and_longer() {
    let mut all = connected(CONNECT).await;
    for refusals in 0..6_u32 {
        let (client, remote) = (all.client.clone(), all.remote);
        let sending = tokio::spawn(async move { client.send(remote, eose()).await });
        let asked = all.server.expect("POST /api/data").await;
        let refused_at = Instant::now();
        asked.respond("400 Bad Request", r#"{"type":"error","error":"no such table"}"#).await;
        soon(sending).await.unwrap().unwrap_err();
        all.reports.disconnect().await;
        (all.stream, _) = all.server.welcome(CONNECT).await;
        let (waited, expected) = (refused_at.elapsed(), FIRST_DELAY * 2_u32.pow(refusals));
        assert!(waited >= expected, "after {refusals} refusals: {waited:?}");
        all.remote = all.reports.connect().await;
        assert_eq!(all.client.reconnect_attempts(), 0);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_ends_the_connection() {
    let mut all = connected(CONNECT).await;
    let (client, remote) = (all.client.clone(), all.remote);
    let sending = tokio::spawn(async move { client.send(remote, eose()).await });
    drop(all.server.expect("POST /api/data").await);
    // A proxy or the HTTP client itself may try a request again that got no answer at all; it is harmless.
    assert!(matches!(soon(sending).await.unwrap(), Err(TransportError::Lost { .. })));
    assert_eq!(all.reports.disconnect().await.0, remote);
}

#[tokio::test]
async fn a_send_that_is_dropped_on_its_way_ends_the_connection() {
    let mut all = connected(CONNECT).await;
    let (client, remote) = (all.client.clone(), all.remote);
    let sending = tokio::spawn(async move { client.send(remote, eose()).await });
    let _asked = all.server.expect("POST /api/data").await;
    sending.abort();
    assert_eq!(all.reports.disconnect().await, (remote, "a message was abandoned on its way".to_owned()));
}

#[tokio::test]
async fn closing_while_busy_reports_nothing_and_dials_again() {
    let mut all = connected(CONNECT).await;
    let (client, remote) = (all.client.clone(), all.remote);
    let sending = tokio::spawn(async move { client.send(remote, eose()).await });
    let _asked = all.server.expect("POST /api/data").await;
    all.client.close(remote).await;
    assert!(matches!(soon(sending).await.unwrap(), Err(TransportError::Lost { .. })));
    all.server.welcome(CONNECT).await;
    assert_ne!(all.reports.connect().await.connection, remote.connection);
}

#[tokio::test]
async fn stopping_while_busy_waits_for_the_callback_and_for_nothing_else() {
    let mut all = connected_with(CONNECT, true, client).await;
    all.stream.frame(&data("one")).await;
    let (client, remote) = (all.client.clone(), all.remote);
    let sending = tokio::spawn(async move { client.send(remote, eose()).await });
    let _asked = all.server.expect("POST /api/data").await;
    let stopping = tokio::spawn({
        let client = all.client.clone();
        async move { client.stop().await }
    });
    assert!(matches!(soon(sending).await.unwrap(), Err(TransportError::Lost { .. })));
    all.peer.open_gate(1);
    soon(stopping).await.unwrap();
    all.reports.message().await;
    all.reports.assert_none();
}

/// `known-failures.md` A1: what an original server answers with 413 is lost.
#[tokio::test]
async fn bodies_for_an_original_server_stay_below_its_limit() {
    // One message of 3 MB, as a peer would make of a large transaction.
    let all = connected(CONNECT).await;
    assert_eq!(all.client.message_bytes_max(all.remote), BATCH_BYTES_MAX);
    let sent: Vec<_> = (0..300).map(|version| change(version, noise(version as u64, 10_000))).collect();
    let sending = tokio::spawn({
        let (client, remote, message) = (all.client.clone(), all.remote, changes(sent.clone()));
        async move { client.send(remote, message).await }
    });
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let asked = all.server.expect("POST /api/data").await;
        assert!(asked.body.len() <= V1_BODY_BYTES_MAX);
        assert_eq!(asked.head.header("content-encoding"), None);
        let message = v1::Envelope::parse(&asked.body).unwrap().message().unwrap();
        let PeerMessage::Changes { changes, .. } = message.verify(&Limits::default()).unwrap() else { panic!() };
        received.extend(changes);
        asked.succeed().await;
    }
    soon(sending).await.unwrap().unwrap();
    assert_eq!(received, sent);
    // One change that is too large cannot be carried; the connection is not to blame.
    let too_large = all.client.send(all.remote, changes(vec![change(1, noise(1, 2 << 20))])).await;
    assert!(matches!(too_large, Err(TransportError::TooLarge { .. })), "{too_large:?}");
    assert!(all.client.is_sse_connected());
}

#[tokio::test]
async fn a_litemesh_server_gets_frames_of_any_size() {
    let all = connected(LITEMESH_CONNECT).await;
    assert!(all.remote.is_litemesh && all.client.message_bytes_max(all.remote) > BATCH_BYTES_MAX);
    let position = Some(Position { version: DbVersion::new(7), incarnation: Incarnation(1) });
    let progress = Progress { answer: 1, number: 1, position, ..Progress::default() };
    for text in [noise(7, 3 << 20), "small".to_owned()] {
        let changes = vec![change(1, text)];
        let message = PeerMessage::Changes { changes, schema_version: 1, progress: Some(progress.clone()) };
        let sending = tokio::spawn({
            let (client, remote, message) = (all.client.clone(), all.remote, message.clone());
            async move { client.send(remote, message).await }
        });
        let asked = all.server.expect("POST /api/data").await;
        assert_eq!(asked.head.header("content-type"), Some("application/vnd.litemesh.frames"));
        assert_eq!(asked.head.header("litemesh-peer"), Some(&*CLIENT.to_string()));
        assert_eq!(asked.body, v2::framed(&v2::message(&message)));
        asked.succeed().await;
        soon(sending).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_litemesh_server_with_a_smaller_limit_is_sent_nothing_above_it() {
    let mut all = connected(LITEMESH_CONNECT).await;
    let message = changes((0..40).map(|version| change(version, noise(version as u64, 100_000))).collect());
    let send = |all: &Connected| {
        let (client, remote, message) = (all.client.clone(), all.remote, message.clone());
        tokio::spawn(async move { client.send(remote, message).await })
    };
    let sending = send(&all);
    let whole = all.server.expect("POST /api/data").await;
    let bytes = whole.body.len();
    whole.respond("413 Payload Too Large", "{}").await;
    assert!(matches!(soon(sending).await.unwrap(), Err(TransportError::Refused { status: 413, .. })));
    all.reports.disconnect().await;
    let (_stream, _) = all.server.welcome(LITEMESH_CONNECT).await;
    all.remote = all.reports.connect().await;
    // The peer is told, and makes smaller ones; one that is as large is not even tried.
    assert!(all.client.message_bytes_max(all.remote) < bytes / 2);
    let refused = soon(send(&all)).await.unwrap();
    assert!(matches!(refused, Err(TransportError::TooLarge { max, .. }) if max == bytes / 2), "{refused:?}");
}

#[tokio::test]
async fn a_compressed_stream_is_read_frame_by_frame() {
    let server = RawServer::bind().await;
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client(&server))).await;
    let mut stream = server.expect("GET").await;
    stream.begin_stream(&["Content-Encoding: gzip"]).await;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let mut frame = |json: &str| {
        write!(encoder, "data: {json}\n\n").unwrap();
        encoder.flush().unwrap();
        std::mem::take(encoder.get_mut())
    };
    stream.chunk(&frame(CONNECT)).await;
    reports.connect().await;
    server.expect("POST /api/sync").await.succeed().await;
    // Each is handed up before the next is made.
    for text in ["one".to_owned(), "two".repeat(1 << 20), noise(5, 300_000), "three".to_owned()] {
        stream.chunk(&frame(&data(&text))).await;
        assert_eq!(reports.message().await, changes(vec![change(1, text)]));
    }
    // And cut anywhere.
    for byte in frame(&data("four")) {
        stream.chunk(&[byte]).await;
    }
    assert_eq!(reports.message().await, changes(vec![change(1, "four")]));
}

#[tokio::test]
async fn a_server_that_the_peer_refuses_is_tried_later() {
    let server = RawServer::bind().await;
    let client = client(&server);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.connect_answers.lock().unwrap().push_back(Err(Refusal::Invalid("not you".to_owned())));
    peer.start(Arc::new(client.clone())).await;
    let mut stream = server.expect("GET").await;
    stream.begin_stream(&[]).await;
    stream.frame(CONNECT).await;
    let mut again = server.expect("GET").await;
    assert_eq!(client.last_error(), Some(DialError::RefusedByPeer { reason: "not you".to_owned() }));
    again.begin_stream(&[]).await;
    again.frame(CONNECT).await;
    reports.connect().await;
}
