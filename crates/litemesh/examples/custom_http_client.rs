//! An HTTP client of your own, here one that sends a token, and a hub that asks for it.
//!
//! The same way leads to proxies, certificates, cookies and time limits for connecting: whatever `reqwest` can do.
//!
//! ```text
//! without the token: turned away
//! with the token: caught up
//! ```
//!
//! `cargo run -p litemesh --example custom_http_client`

use std::error::Error;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use litemesh::{Database, Event, Peer};
use litemesh_http::{HttpClient, HttpServer};
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// An example ends with an error rather than wait for longer.
const PATIENCE: Duration = Duration::from_secs(30);

const TOKEN: &str = "Bearer open sesame";

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    // The hub: a layer around the routes that lets nobody in without the token, and counts whom it turns away.
    let (turned_away, mut strangers) = mpsc::channel::<()>(16);
    let guard = from_fn(move |request: Request, next: Next| {
        let turned_away = turned_away.clone();
        async move { admit(request, next, turned_away).await }
    });
    let transport = HttpServer::new();
    let hub = Peer::builder(todo_list()?).transport(transport.clone()).start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let app = transport.routes().layer(guard);
    let (shutdown, asked) = oneshot::channel::<()>();
    let server = tokio::spawn(async move { transport.serve_router(app, listener, async { drop(asked.await) }).await });

    let stranger = Peer::builder(todo_list()?).transport(HttpClient::new(&url)).start().await?;
    tokio::time::timeout(PATIENCE, strangers.recv()).await?;
    println!("without the token: turned away");
    stranger.stop().await;

    // `reqwest` is built without a provider of TLS here; with its default features this line is not needed. An error means
    // that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut token = HeaderValue::from_static(TOKEN);
    token.set_sensitive(true);
    let http = reqwest::Client::builder()
        .default_headers(HeaderMap::from_iter([(AUTHORIZATION, token)]))
        .connect_timeout(Duration::from_secs(5)) // but no timeout for whole requests: it would end every stream
        .build()?;
    let transport = HttpClient::builder(&url).http(http).build();
    let builder = Peer::builder(todo_list()?).transport(transport.clone());
    let mut events = builder.events();
    let peer = builder.start().await?;
    while !matches!(tokio::time::timeout(PATIENCE, events.recv()).await??, Event::Eose { .. }) {}
    assert!(transport.is_sse_connected() && transport.remote_peer_id() == Some(hub.id()));
    println!("with the token: caught up");

    peer.stop().await;
    drop(shutdown);
    server.await??;
    hub.stop().await;
    Ok(())
}

async fn admit(request: Request, next: Next, turned_away: mpsc::Sender<()>) -> Response {
    if request.headers().get(AUTHORIZATION).is_some_and(|token| token == TOKEN) {
        return next.run(request).await;
    }
    // Nobody listens any more once the first was counted.
    let _ = turned_away.try_send(());
    StatusCode::UNAUTHORIZED.into_response()
}

fn todo_list() -> Result<Database, Box<dyn Error>> {
    let db = Database::open_in_memory()?;
    db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
    db.lock().replicate("todo")?;
    Ok(db)
}
