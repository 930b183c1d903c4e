//! Our client and our server, over real sockets.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use litemesh_http::{HttpClient, HttpServer};
use litemesh_proto::{Limits, Transport};
use support::{CLIENT, RecordingPeer, Report, SERVER, change, changes, eose, noise, serve, soon, started};

fn client(server: &support::Running) -> HttpClient {
    let http = support::http_client().no_proxy().build().unwrap();
    let first_delay = std::time::Duration::from_millis(10);
    HttpClient::builder(format!("http://{}", server.address))
        .http(http)
        .websocket(false)
        .reconnect_delay_min(first_delay)
        .build()
}

/// A connect and a sync request, in whichever order they come.
async fn greeted(reports: &mut support::Reports) -> litemesh_proto::Remote {
    let remote = reports.connect().await;
    match reports.next().await {
        Report::Sync(from, _) => assert_eq!(from, remote),
        other => panic!("{other:?}"),
    }
    remote
}

#[tokio::test]
async fn two_litemesh_peers_know_each_other_and_exchange_messages_in_order() {
    let (server, _server_peer, mut server_reports) = started(HttpServer::new(), Limits::default()).await;
    let client = client(&server);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let to_server = greeted(&mut reports).await;
    let to_client = greeted(&mut server_reports).await;
    assert!(to_server.is_litemesh && to_client.is_litemesh);
    assert_eq!((to_server.site, to_client.site), (SERVER, CLIENT));
    for version in 0..30 {
        let bytes = 1 << (version % 20);
        let message = changes(vec![change(version, noise(version as u64, bytes))]);
        soon(client.send(to_server, message.clone())).await.unwrap();
        // The answer came after the commit.
        assert_eq!(server_reports.message().await, message);
        soon(server.transport.send(to_client, message.clone())).await.unwrap();
        assert_eq!(reports.message().await, message);
    }
    client.stop().await;
    assert_eq!(server_reports.disconnect().await.0, to_client);
    reports.assert_none();
}

#[tokio::test]
async fn a_client_comes_back_to_a_server_that_was_restarted() {
    let (server, _server_peer, mut server_reports) = started(HttpServer::new(), Limits::default()).await;
    let client = client(&server);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let first = greeted(&mut reports).await;
    greeted(&mut server_reports).await;
    server.shutdown.cancel();
    soon(server.task).await.unwrap().unwrap();
    assert_eq!(reports.disconnect().await.0, first);

    let transport = HttpServer::new();
    let (server_peer, mut server_reports) = RecordingPeer::new(SERVER);
    server_peer.start(Arc::new(transport.clone())).await;
    let listener = tokio::net::TcpListener::bind(server.address).await.unwrap();
    let serving = transport.clone();
    tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
    let second = greeted(&mut reports).await;
    greeted(&mut server_reports).await;
    soon(client.send(second, eose())).await.unwrap();
    assert_eq!(server_reports.message().await, eose());
}

#[tokio::test]
async fn a_client_that_starts_before_the_server_is_served_when_it_starts() {
    let transport = HttpServer::new();
    let server = serve(transport.clone()).await;
    let client = client(&server);
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client)).await;
    let (server_peer, mut server_reports) = RecordingPeer::new(SERVER);
    server_peer.start(Arc::new(transport)).await;
    greeted(&mut server_reports).await;
    greeted(&mut reports).await;
}
