//! The answers of the original server, byte for byte.
//!
//! These cases run against a peer without a database, which checks messages by the rules of the protocol and commits
//! nothing. So 50 and 51, where the schema decides, and 61, where the content does, are for a test with a real peer.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use litemesh_http::HttpServer;
use litemesh_proto::Limits;
use litemesh_proto::limits::V1_BODY_BYTES_MAX;
use support::raw::{EventStream, exchange};
use support::replay::{HEAD_REQUEST, NOT_STARTED, NOT_STARTED_STREAM, replay, transcript};
use support::{CLIENT, RecordingPeer, SERVER, serve, soon, started};

/// Unknown table and unknown column: only a database can refuse them.
const NEEDS_SCHEMA: [usize; 2] = [50, 51];

fn limits() -> Limits {
    Limits { message_bytes_max: V1_BODY_BYTES_MAX, ..Limits::default() }
}

fn of_transport() -> impl Iterator<Item = usize> {
    (0..HEAD_REQUEST).filter(|case| !NEEDS_SCHEMA.contains(case))
}

#[tokio::test]
async fn answers_are_those_of_the_original() {
    assert_eq!(transcript().len(), NOT_STARTED_STREAM + 1);
    let (server, _peer, _reports) = started(HttpServer::new(), limits()).await;
    replay(server.address, "", &SERVER.to_string(), of_transport()).await;
}

#[tokio::test]
async fn answers_are_those_of_the_original_under_a_prefix() {
    let transport = HttpServer::new();
    let (peer, _reports) = RecordingPeer::with(SERVER, limits(), false);
    peer.start(Arc::new(transport.clone())).await;
    let app = axum::Router::new().nest("/api/worker", transport.routes());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { transport.serve_router(app, listener, std::future::pending()).await });
    replay(address, "/api/worker", &SERVER.to_string(), of_transport()).await;
}

#[tokio::test]
async fn before_the_start_messages_are_refused_and_a_stream_waits() {
    let transport = HttpServer::new();
    let server = serve(transport.clone()).await;
    replay(server.address, "", &SERVER.to_string(), NOT_STARTED..NOT_STARTED_STREAM).await;

    let url = format!("/stream?peerId={CLIENT}");
    let mut stream = EventStream::open_with(server.address, &url, &["Accept-Encoding: gzip"]).await;
    assert_eq!(stream.head.status(), 200);
    assert_eq!(transport.counters().streams_total, 0);
    // Unlike the original, which never comes back to it.
    let (peer, mut reports) = RecordingPeer::new(SERVER);
    peer.start(Arc::new(transport)).await;
    stream.expect("connect").await;
    stream.expect("sync").await;
    assert_eq!(reports.connect().await.site, CLIENT);
}

#[tokio::test]
async fn asking_for_the_head_of_a_stream_opens_none() {
    let (server, _peer, mut reports) = started(HttpServer::new(), limits()).await;
    let url = format!("/stream?peerId={CLIENT}");
    let (head, _) = soon(exchange(server.address, "HEAD", &url, &[], None)).await;
    assert_eq!((head.status(), head.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(server.transport.counters().streams_total, 0);
    reports.assert_none();
}
