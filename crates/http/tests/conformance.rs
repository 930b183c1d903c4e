//! What every transport owes a peer, of HTTP in each of its forms.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use litemesh_http::{HttpClient, HttpServer};
use litemesh_proto::{BoxFuture, Transport};
use litemesh_testkit::conformance::{self, Kind};
use tokio::net::TcpListener;

/// In which form, and whether over a WebSocket.
#[derive(Clone, Copy)]
enum Http {
    Frames,
    Events,
    SocketFrames,
    SocketJson,
}

impl Kind for Http {
    fn listen(&self) -> BoxFuture<'_, (Arc<dyn Transport>, SocketAddr)> {
        Box::pin(async {
            let transport = HttpServer::builder()
                .ping_interval(Duration::from_millis(500))
                .stall_timeout(Duration::from_secs(2))
                .build();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serving = transport.clone();
            tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
            (Arc::new(transport) as _, address)
        })
    }

    fn dial(&self, address: SocketAddr) -> Arc<dyn Transport> {
        let scheme = if matches!(self, Self::SocketFrames | Self::SocketJson) { "ws" } else { "http" };
        let client = HttpClient::builder(format!("{scheme}://{address}"))
            // Otherwise the hub would have its WebSocket taken.
            .websocket(false)
            .frames(!matches!(self, Self::Events))
            .announce(!matches!(self, Self::SocketJson))
            .reconnect_delay_min(Duration::from_millis(100))
            .idle_timeout(Duration::from_secs(2));
        Arc::new(client.build())
    }
}

#[tokio::test]
async fn streams_of_frames_keep_the_contract() {
    conformance::check(&Http::Frames).await;
}

#[tokio::test]
async fn event_streams_keep_the_contract() {
    conformance::check(&Http::Events).await;
}

#[tokio::test]
async fn sockets_of_frames_keep_the_contract() {
    conformance::check(&Http::SocketFrames).await;
}

#[tokio::test]
async fn sockets_of_json_keep_the_contract() {
    conformance::check(&Http::SocketJson).await;
}
