//! What every transport owes a peer, of HTTP in each of its forms.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use litemesh_http::{HttpClient, HttpServer};
use litemesh_proto::{BoxFuture, Transport};
use litemesh_testkit::conformance::{self, Kind};
use tokio::net::TcpListener;

struct Http {
    frames: bool,
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
        let client = HttpClient::builder(format!("http://{address}"))
            .frames(self.frames)
            .reconnect_delay_min(Duration::from_millis(100))
            .idle_timeout(Duration::from_secs(2));
        Arc::new(client.build())
    }
}

#[tokio::test]
async fn streams_of_frames_keep_the_contract() {
    conformance::check(&Http { frames: true }).await;
}

#[tokio::test]
async fn event_streams_keep_the_contract() {
    conformance::check(&Http { frames: false }).await;
}
