//! The server against clients played by hand: order, limits, slow and lost clients, the life of a connection.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use litemesh_http::HttpServer;
use litemesh_proto::codec::v1;
use litemesh_proto::limits::BATCH_BYTES_MAX;
use litemesh_proto::{Limits, Refusal, SiteId, Transport, TransportError};
use support::raw::{EventStream, JSON, Wire, exchange, post, request_text};
use support::{CLIENT, OTHER, RecordingPeer, Report, SERVER, change, changes, eose, noise, serve, soon, started};

/// A server with a client whose first two frames were read.
async fn connected() -> (support::Running, Arc<RecordingPeer>, support::Reports, EventStream, litemesh_proto::Remote) {
    let (server, peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let (stream, remote) = join(&server, &mut reports, CLIENT).await;
    (server, peer, reports, stream, remote)
}

async fn join(
    server: &support::Running,
    reports: &mut support::Reports,
    site: SiteId,
) -> (EventStream, litemesh_proto::Remote) {
    let mut stream = EventStream::open(server.address, site).await;
    stream.expect("connect").await;
    let remote = reports.connect().await;
    stream.expect("sync").await;
    (stream, remote)
}

fn data(site: SiteId, text: &str) -> Vec<u8> {
    v1::data(site, &changes(vec![change(1, text)]))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn messages_go_both_ways_and_a_gone_client_is_reported_once() {
    let (server, _peer, mut reports, mut stream, remote) = connected().await;
    assert_eq!((remote.site, remote.is_litemesh), (CLIENT, false));
    server.transport.send(remote, eose()).await.unwrap();
    assert_eq!(
        stream.frame_text().await.unwrap(),
        format!(r#"{{"type":"data","peerId":"{SERVER}","data":{{"type":"eose","data":[]}}}}"#)
    );
    assert_eq!(post(server.address, "/data", &data(CLIENT, "x")).await, (200, "{\"success\":true}".to_owned()));
    assert_eq!(reports.message().await, changes(vec![change(1, "x")]));
    drop(stream);
    assert_eq!(reports.disconnect().await, (remote, "the client closed the stream".to_owned()));
    let lost = server.transport.send(remote, eose()).await;
    assert!(matches!(lost, Err(TransportError::NotConnected { .. })), "{lost:?}");
    server.transport.stop().await;
    reports.assert_none();
    let counters = server.transport.counters();
    assert_eq!((counters.streams_open, counters.streams_total, counters.messages_in), (0, 1, 1));
    assert_eq!((counters.messages_out, counters.bytes_in), (3, data(CLIENT, "x").len() as u64));
}

/// `known-failures.md` E7: who watches a hub can ask it, without a token and without joining it, whether it serves.
#[tokio::test]
async fn a_hub_says_whether_it_serves() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = litemesh_http::TokenFile::new(folder.path().join("tokens"));
    tokens.add("test", &litemesh_proto::Access::FULL).unwrap();
    let transport = HttpServer::builder().tokens(tokens).unwrap().build();
    let server = serve(transport.clone()).await;
    let ask = async |method: &str| soon(exchange(server.address, method, "/health", &[], None)).await;
    let (head, _) = ask("GET").await;
    assert_eq!((head.status(), head.header("retry-after")), (503, Some("1")), "not started");
    let (peer, mut reports) = RecordingPeer::new(SERVER);
    peer.start(Arc::new(transport.clone())).await;
    let (head, body) = ask("GET").await;
    assert_eq!((head.status(), body.as_slice()), (200, &br#"{"success":true}"#[..]));
    assert_eq!(ask("HEAD").await.0.status(), 200);
    assert_eq!(ask("POST").await.0.status(), 404);
    let counters = transport.counters();
    assert_eq!((counters.refused_unauthorized, counters.streams_total), (0, 0));
    transport.stop().await;
    assert_eq!(ask("GET").await.0.status(), 503, "stopped");
    reports.assert_none();
}

#[tokio::test]
async fn a_connection_that_we_close_is_not_reported() {
    let (server, _peer, mut reports, mut stream, remote) = connected().await;
    server.transport.close(remote).await;
    assert_eq!(stream.frame().await, None);
    // Its own id is free again.
    let (_stream, again) = join(&server, &mut reports, CLIENT).await;
    assert_ne!(again.connection, remote.connection);
    // An old handle does not touch the new connection.
    server.transport.close(remote).await;
    server.transport.send(again, eose()).await.unwrap();
}

#[tokio::test]
async fn stopping_ends_streams_without_a_report_and_refuses_what_follows() {
    let (server, peer, mut reports, mut stream, remote) = connected().await;
    server.transport.stop().await;
    reports.assert_none();
    assert_eq!(stream.frame().await, None);
    assert!(server.transport.send(remote, eose()).await.is_err());
    let (status, body) = post(server.address, "/data", &data(CLIENT, "x")).await;
    assert_eq!((status, body.as_str()), (500, r#"{"type":"error","error":"Transport not started"}"#));
    let (head, _) = exchange(server.address, "GET", &format!("/stream?peerId={CLIENT}"), &[], None).await;
    assert_eq!(head.status(), 503);
    let again = server.transport.start(peer).await;
    assert_eq!(again, Err(TransportError::AlreadyStarted));
}

#[tokio::test]
async fn shutting_down_ends_streams_and_the_server() {
    let (server, _peer, mut reports, mut stream, remote) = connected().await;
    server.shutdown.cancel();
    soon(server.task).await.unwrap().unwrap();
    assert_eq!(stream.frame().await, None);
    assert_eq!(reports.disconnect().await.0, remote);
}

/// `known-failures.md` A2: bodies of the original overtake each other.
#[tokio::test]
async fn a_body_that_began_first_is_handled_first() {
    // The large message begins and stops; the small one is sent in whole meanwhile.
    let (server, _peer, mut reports, _stream, _) = connected().await;
    let large = data(CLIENT, &"first".repeat(50_000));
    let mut slow = Wire::connect(server.address).await;
    slow.write(request_text("POST", "/data", &[JSON], Some(large.len())).as_bytes()).await;
    slow.write(&large[..1000]).await;
    while server.transport.counters().bytes_in < 1000 {
        tokio::task::yield_now().await;
    }
    let small = data(CLIENT, "second");
    let mut quick = Wire::connect(server.address).await;
    quick.write(request_text("POST", "/data", &[JSON], Some(small.len())).as_bytes()).await;
    quick.write(&small).await;
    while server.transport.counters().bytes_in < (1000 + small.len()) as u64 {
        tokio::task::yield_now().await;
    }
    reports.assert_none();
    slow.write(&large[1000..]).await;
    assert_eq!(slow.answer().await.0.status(), 200);
    assert_eq!(quick.answer().await.0.status(), 200);
    assert_eq!(reports.message().await, changes(vec![change(1, "first".repeat(50_000))]));
    assert_eq!(reports.message().await, changes(vec![change(1, "second")]));
}

#[tokio::test]
async fn a_stalled_body_holds_up_nobody_else() {
    let (server, _peer, mut reports, _stream, _) = connected().await;
    let (_other, _) = join(&server, &mut reports, OTHER).await;
    let body = data(CLIENT, "x");
    let mut stalled = Wire::connect(server.address).await;
    stalled.write(request_text("POST", "/data", &[JSON], Some(body.len())).as_bytes()).await;
    stalled.write(&body[..body.len() - 1]).await;
    while server.transport.counters().bytes_in < body.len() as u64 - 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(post(server.address, "/data", &data(OTHER, "y")).await.0, 200);
    assert_eq!(reports.message().await, changes(vec![change(1, "y")]));
    stalled.write(&body[body.len() - 1..]).await;
    assert_eq!(stalled.answer().await.0.status(), 200);
}

#[tokio::test]
async fn a_stalled_body_does_not_keep_its_connection_alive() {
    let (server, _peer, mut reports, stream, remote) = connected().await;
    let body = data(CLIENT, "x");
    let mut stalled = Wire::connect(server.address).await;
    stalled.write(request_text("POST", "/data", &[JSON], Some(body.len())).as_bytes()).await;
    stalled.write(&body[..body.len() - 1]).await;
    while server.transport.counters().bytes_in < body.len() as u64 - 1 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    assert_eq!(reports.disconnect().await.0, remote);
    assert_eq!(stalled.answer().await.0.status(), 400);
}

#[tokio::test]
async fn a_body_may_be_cut_anywhere() {
    let (server, _peer, mut reports, _stream, _) = connected().await;
    let body = data(CLIENT, "é");
    let mut wire = Wire::connect(server.address).await;
    for cut in 0..=body.len() {
        // In chunks, so that the server sees exactly these pieces, over one connection that is kept.
        wire.write(request_text("POST", "/data", &[JSON, "Transfer-Encoding: chunked"], None).as_bytes()).await;
        for piece in [&body[..cut], &body[cut..]] {
            if !piece.is_empty() {
                wire.write(format!("{:x}\r\n", piece.len()).as_bytes()).await;
                wire.write(piece).await;
                wire.write(b"\r\n").await;
            }
        }
        wire.write(b"0\r\n\r\n").await;
        assert_eq!(wire.answer().await.0.status(), 200, "cut at {cut}");
        assert_eq!(reports.message().await, changes(vec![change(1, "é")]));
    }
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_reported_as_garbled() {
    let limits = Limits { message_bytes_max: 100_000, ..Limits::default() };
    let (server, _peer, mut reports) = started(HttpServer::new(), limits).await;
    let (_stream, _) = join(&server, &mut reports, CLIENT).await;
    let whole = data(CLIENT, &"x".repeat(200_000));

    // Too large by its own announcement.
    let (status, text) = post(server.address, "/data", &whole).await;
    assert!(status == 413 && text.contains("FST_ERR_CTP_BODY_TOO_LARGE"), "{status} {text}");
    assert_eq!(reports.garbled().await, "a message is larger than 100000 bytes");

    // Too large without one.
    let mut wire = Wire::connect(server.address).await;
    wire.write(request_text("POST", "/data", &[JSON, "Transfer-Encoding: chunked"], None).as_bytes()).await;
    wire.write(&[format!("{:x}\r\n", whole.len()).as_bytes(), &whole, b"\r\n0\r\n\r\n"].concat()).await;
    assert_eq!(wire.answer().await.0.status(), 413);
    assert_eq!(reports.garbled().await, "a message is larger than 100000 bytes");

    // Too large once decompressed.
    let bomb = gzip(&data(CLIENT, &"x".repeat(8 << 20)));
    assert!(bomb.len() < 100_000);
    let headers = [JSON, "Content-Encoding: gzip"];
    let (head, _) = exchange(server.address, "POST", "/data", &headers, Some(&bomb)).await;
    assert_eq!(head.status(), 413);
    assert_eq!(reports.garbled().await, "a message is larger than 100000 bytes");

    // Cut off by the end of the connection.
    let mut wire = Wire::connect(server.address).await;
    wire.write(request_text("POST", "/data", &[JSON], Some(1000)).as_bytes()).await;
    wire.write(&whole[..500]).await;
    drop(wire);
    let reason = reports.garbled().await;
    assert!(reason.starts_with("a message was cut off"), "{reason}");

    // Cut off within the compressed form, and damaged.
    let good = gzip(&data(CLIENT, "x"));
    let (head, _) = exchange(server.address, "POST", "/data", &headers, Some(&good[..good.len() - 4])).await;
    assert_eq!(head.status(), 400);
    reports.garbled().await;

    // Not JSON, and JSON that is no message.
    let cut = data(CLIENT, "x");
    assert_eq!(post(server.address, "/data", &cut[..cut.len() - 1]).await.0, 400);
    reports.garbled().await;
    let no_changes = format!(r#"{{"type":"data","peerId":"{CLIENT}","data":{{"type":"changes","data":7}}}}"#);
    assert_eq!(post(server.address, "/data", no_changes.as_bytes()).await.0, 500);
    reports.garbled().await;

    // A sync request holds no changes that could be missing.
    let sync = format!(r#"{{"type":"sync","peerId":"{CLIENT}","cursor":"#);
    assert_eq!(post(server.address, "/sync", sync.as_bytes()).await.0, 400);
    // The connection is as it was.
    assert_eq!(post(server.address, "/data", &data(CLIENT, "x")).await.0, 200);
    assert_eq!(reports.message().await, changes(vec![change(1, "x")]));
    let counters = server.transport.counters();
    assert_eq!((counters.garbled, counters.refused_too_large, counters.streams_open), (7, 3, 1));
}

#[tokio::test]
async fn strangers_cannot_make_us_collect_anything() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let (status, text) = post(server.address, "/data", &data(OTHER, &"x".repeat(1 << 20))).await;
    assert_eq!((status, text.as_str()), (400, r#"{"type":"error","error":"Connect to /stream first"}"#));
    reports.assert_none();
}

#[tokio::test]
async fn the_sender_may_be_named_last() {
    let (server, _peer, mut reports, _stream, _) = connected().await;
    for text in ["x".to_owned(), "x".repeat(300_000)] {
        let body = String::from_utf8(data(CLIENT, &text)).unwrap();
        let id = format!(r#""peerId":"{CLIENT}","#);
        let body = body.replacen(&id, "", 1);
        let body = format!("{},{}}}", &body[..body.len() - 1], id.trim_end_matches(','));
        assert_eq!(post(server.address, "/data", body.as_bytes()).await.0, 200);
        assert_eq!(reports.message().await, changes(vec![change(1, text)]));
    }
}

#[tokio::test]
async fn compressed_bodies_are_read() {
    let (server, _peer, mut reports, _stream, _) = connected().await;
    let text = noise(1, 500_000);
    let body = gzip(&data(CLIENT, &text));
    let headers = [JSON, "Content-Encoding: gzip"];
    let (head, _) = exchange(server.address, "POST", "/data", &headers, Some(&body)).await;
    assert_eq!(head.status(), 200);
    assert_eq!(reports.message().await, changes(vec![change(1, text)]));
    let (head, _) = exchange(server.address, "POST", "/data", &[JSON, "Content-Encoding: br"], Some(b"x")).await;
    assert_eq!(head.status(), 415);
}

/// `known-failures.md` C7: the original compresses nothing.
#[tokio::test]
async fn a_stream_is_compressed_only_where_that_is_offered() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let url = format!("/stream?peerId={CLIENT}");
    let mut stream = EventStream::open_with(server.address, &url, &["Accept-Encoding: gzip;q=0"]).await;
    assert_eq!(stream.head.header("content-encoding"), None);
    stream.expect("connect").await;
    let remote = reports.connect().await;
    server.transport.close(remote).await;
    while stream.frame().await.is_some() {}

    let mut stream = EventStream::open_with(server.address, &url, &["Accept-Encoding: br, gzip"]).await;
    assert_eq!(stream.head.header("content-encoding"), Some("gzip"));
    stream.expect("connect").await;
    let remote = reports.connect().await;
    stream.expect("sync").await;
    // Each frame can be read before there is another one.
    for text in ["one".to_owned(), "two".repeat(100_000), "three".to_owned()] {
        server.transport.send(remote, changes(vec![change(1, text.clone())])).await.unwrap();
        assert_eq!(stream.expect("data").await["data"]["data"][0]["val"], text);
    }
    assert!(server.transport.counters().bytes_out < 20_000);
}

#[tokio::test]
async fn a_litemesh_client_is_answered_as_one() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let url = format!("/stream?peerId={CLIENT}");
    let mut stream = EventStream::open_with(server.address, &url, &["Litemesh-Version: 2"]).await;
    assert_eq!(stream.expect("connect").await["litemesh"]["version"], 2);
    assert!(reports.connect().await.is_litemesh);
}

/// `known-failures.md` B15: a client of the original is locked out by its own dead stream.
#[tokio::test]
async fn the_first_stream_wins_unless_the_same_process_asks_again() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let url = format!("/stream?peerId={CLIENT}");
    let open = |instance| EventStream::open_with(server.address, &url, instance);
    let mut first = open(&["Litemesh-Instance: abc"]).await;
    first.expect("connect").await;
    let remote = reports.connect().await;
    first.expect("sync").await;
    for stranger in [&[][..], &["Litemesh-Instance: other"]] {
        let mut refused = open(stranger).await;
        assert_eq!(refused.expect("error").await["error"], "ALREADY_CONNECTED");
        assert_eq!(refused.frame().await, None);
        // The try makes TCP look after the old client.
        first.expect("ping").await;
    }
    reports.assert_none();
    let mut second = open(&["Litemesh-Instance: abc"]).await;
    second.expect("connect").await;
    // In order: the old connection is over before the new one begins.
    assert_eq!(reports.disconnect().await.0, remote);
    assert_ne!(reports.connect().await.connection, remote.connection);
    assert_eq!(first.frame().await, None);
    second.expect("sync").await;
}

#[tokio::test]
async fn a_client_may_come_back_as_soon_as_it_has_left() {
    let (server, _peer, mut reports, stream, remote) = connected().await;
    drop(stream);
    assert_eq!(reports.disconnect().await.0, remote);
    join(&server, &mut reports, CLIENT).await;
}

#[tokio::test]
async fn refusals_of_the_peer_have_their_status() {
    let (server, peer, mut reports, _stream, _) = connected().await;
    let body = data(CLIENT, "x");
    let mut try_with = async |refusal: Refusal| {
        peer.answer_next(refusal);
        let (head, text) = exchange(server.address, "POST", "/data", &[JSON], Some(&body)).await;
        reports.message().await;
        (head.status(), head.header("retry-after").map(str::to_owned), String::from_utf8(text).unwrap())
    };
    let answer = |text: &str| format!(r#"{{"type":"error","error":"{text}"}}"#);
    assert_eq!(try_with(Refusal::Invalid("no".to_owned())).await, (500, None, answer("no")));
    let busy = try_with(Refusal::Unavailable("busy".to_owned())).await;
    assert_eq!(busy, (500, Some("1".to_owned()), answer("busy")));
    assert_eq!(try_with(Refusal::UnknownRemote).await, (400, None, answer("Connect to /stream first")));
    assert_eq!(server.transport.counters().refused_by_peer, 3);
}

#[tokio::test]
async fn a_client_that_the_peer_refuses_is_told_and_never_reported() {
    let (server, peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    peer.connect_answers.lock().unwrap().push_back(Err(Refusal::Invalid("not you".to_owned())));
    let mut stream = EventStream::open(server.address, CLIENT).await;
    stream.expect("connect").await;
    assert_eq!(stream.expect("error").await["error"], "not you");
    assert_eq!(stream.frame().await, None);
    join(&server, &mut reports, CLIENT).await;
}

#[tokio::test]
async fn connections_have_a_limit() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let (server, _peer, mut reports) = started(HttpServer::new(), limits).await;
    let (_stream, _) = join(&server, &mut reports, CLIENT).await;
    let (head, body) = exchange(server.address, "GET", &format!("/stream?peerId={OTHER}"), &[], None).await;
    assert_eq!((head.status(), &body[..]), (503, &br#"{"type":"error","error":"Too many connections"}"#[..]));
}

#[tokio::test]
async fn ids_that_are_no_site_are_refused() {
    let (server, _peer, _reports) = started(HttpServer::new(), Limits::default()).await;
    for id in ["abc", "%00", "0x0102030405060708090a0b0c0d0e0f10", "zzc1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1"] {
        let (head, body) = exchange(server.address, "GET", &format!("/stream?peerId={id}"), &[], None).await;
        let body = String::from_utf8(body).unwrap();
        assert!(head.status() == 400 && body.contains("peerId must be 32 hex digits"), "{id}: {body}");
    }
}

#[tokio::test]
async fn pings_come_by_themselves() {
    let transport = HttpServer::builder().ping_interval(Duration::from_millis(20)).build();
    let (server, _peer, mut reports) = started(transport, Limits::default()).await;
    let (mut stream, _) = join(&server, &mut reports, CLIENT).await;
    for _ in 0..3 {
        assert_eq!(stream.frame_text().await.unwrap(), format!(r#"{{"type":"ping","peerId":"{SERVER}"}}"#));
    }
}

/// `known-failures.md` C4: what a client does not read lies in the memory of the original.
#[tokio::test]
async fn a_client_that_does_not_read_is_shed_and_holds_little_memory() {
    // A client that opens its stream and never reads, and a peer that sends for ever.
    let stall = Duration::from_millis(500);
    let transport = HttpServer::builder().stall_timeout(stall).build();
    let (server, _peer, mut reports) = started(transport, Limits::default()).await;
    let (stream, remote) = join(&server, &mut reports, CLIENT).await;
    let message = changes(vec![change(1, noise(2, BATCH_BYTES_MAX))]);
    let mut taken = 0;
    let error = loop {
        match soon(server.transport.send(remote, message.clone())).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, TransportError::Stalled { seconds: stall.as_secs() });
    // The queue, and what the kernel's buffers of both sides took: some megabytes.
    assert!(taken <= 4 + 32, "{taken} messages were taken for a client that reads nothing");
    assert_eq!(reports.disconnect().await.0, remote);
    let counters = server.transport.counters();
    assert_eq!((counters.stalled, counters.streams_open), (1, 0));
    // Another client is served, and this one can come back, while its old socket is still there.
    let (_again, _) = join(&server, &mut reports, CLIENT).await;
    drop(stream);
    server.transport.stop().await;
    reports.assert_none();
}

/// `known-failures.md` D9: in one queue everybody waits for the slowest.
#[tokio::test]
async fn a_slow_client_holds_up_nobody() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let (mut slow, remote) = join(&server, &mut reports, CLIENT).await;
    let (mut quick, other) = join(&server, &mut reports, OTHER).await;
    let text = noise(3, BATCH_BYTES_MAX);
    let sending = tokio::spawn({
        let (transport, text) = (server.transport.clone(), text.clone());
        async move {
            for version in 0..20 {
                transport.send(remote, changes(vec![change(version, text.clone())])).await.unwrap();
            }
        }
    });
    for _ in 0..20 {
        server.transport.send(other, eose()).await.unwrap();
        quick.expect("data").await;
    }
    for version in 0..20 {
        assert_eq!(slow.expect("data").await["data"]["data"][0]["db_version"], version);
    }
    soon(sending).await.unwrap();
    assert_eq!(server.transport.counters().stalled, 0);
}

#[tokio::test]
async fn http2_without_encryption_is_spoken() {
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;
    let http = support::http_client().no_proxy().http2_prior_knowledge().build().unwrap();
    let base = format!("http://{}", server.address);
    let mut stream = http.get(format!("{base}/stream?peerId={CLIENT}")).send().await.unwrap();
    assert_eq!((stream.status().as_u16(), stream.version()), (200, reqwest::Version::HTTP_2));
    assert!(soon(stream.chunk()).await.unwrap().unwrap().starts_with(b"data: {\"type\":\"connect\""));
    reports.connect().await;
    let request = http.post(format!("{base}/data")).header("content-type", "application/json").body(data(CLIENT, "x"));
    assert_eq!(soon(request.send()).await.unwrap().status().as_u16(), 200);
    reports.message().await;
    drop((stream, http));
    assert!(matches!(reports.next().await, Report::Disconnect(..)));
}

#[tokio::test]
async fn streams_that_wait_for_the_start_can_leave() {
    let transport = HttpServer::new();
    let server = serve(transport.clone()).await;
    drop(EventStream::open(server.address, CLIENT).await);
    let mut stays = EventStream::open(server.address, OTHER).await;
    transport.stop().await;
    assert_eq!(stays.frame().await, None);
}

#[tokio::test]
async fn streams_that_wait_for_the_start_have_a_limit() {
    let transport = HttpServer::new();
    let server = serve(transport.clone()).await;
    let site = |n: u8| SiteId::from_bytes([n; 16]);
    let mut waiting = Vec::new();
    for n in 1..=64 {
        waiting.push(EventStream::open(server.address, site(n)).await);
    }
    let more = || exchange(server.address, "GET", "/stream?peerId=ffffffffffffffffffffffffffffffff", &[], None);
    let (head, body) = more().await;
    assert_eq!(head.status(), 503, "{}", String::from_utf8_lossy(&body));
    assert_eq!(transport.counters().refused_streams, 1);
    // Who waited is served.
    let (peer, mut reports) = RecordingPeer::new(SERVER);
    peer.start(Arc::new(transport.clone())).await;
    for stream in &mut waiting {
        stream.expect("connect").await;
        reports.connect().await;
    }
}

/// What all clients send together is bounded, too. Large bodies leave room to small ones, and no client loses anything: the peer
/// above hears that a message is missing.
#[tokio::test]
async fn the_bodies_of_all_clients_have_a_limit() {
    let transport = HttpServer::builder().bodies_bytes_max(1_000_000).build();
    let (server, _peer, mut reports) = started(transport, Limits::default()).await;
    let (_stream, _) = join(&server, &mut reports, CLIENT).await;
    let (_other, _) = join(&server, &mut reports, OTHER).await;
    let held = || server.transport.counters().body_bytes_held;

    let large = data(CLIENT, &"x".repeat(700_000));
    let mut slow = Wire::connect(server.address).await;
    slow.write(request_text("POST", "/data", &[JSON], Some(large.len())).as_bytes()).await;
    slow.write(&large[..700_000]).await;
    while held() < 700_000 {
        tokio::task::yield_now().await;
    }
    let second = data(OTHER, &"y".repeat(200_000));
    let (status, text) = post(server.address, "/data", &second).await;
    assert!(status == 503 && text.contains("try again later"), "{status} {text}");
    assert_eq!(reports.garbled().await, "there was no memory for a message");
    assert_eq!(server.transport.counters().refused_busy, 1);
    // A small one is taken all the same.
    assert_eq!(post(server.address, "/data", &data(OTHER, "small")).await.0, 200);
    assert_eq!(reports.message().await, changes(vec![change(1, "small")]));

    slow.write(&large[700_000..]).await;
    assert_eq!(slow.answer().await.0.status(), 200);
    reports.message().await;
    assert_eq!(post(server.address, "/data", &second).await.0, 200);
    reports.message().await;
    assert_eq!(held(), 0);
}
