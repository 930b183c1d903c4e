//! HTTP transport of Litemesh: server-sent events one way, POST the other; or a WebSocket for both.
//!
//! Wire compatible with the HTTP transport of the original `@app/sync`: an original client can use [`HttpServer`], and
//! [`HttpClient`] can use an original server. Between two Litemesh peers the same routes carry wire v2 frames, or all goes over
//! one WebSocket, where nothing on the way breaks it.
//!
//! - [`HttpServer`] is mounted into an axum server of yours ([`HttpServer::routes`]) or brings its own
//!   ([`HttpServer::serve`]).
//! - [`HttpClient`] dials one server, and again when the connection is lost.
//! - [`EventParser`] reads server-sent events, for whoever writes another client.
//!
//! Both are a [`Transport`](litemesh_proto::Transport): give them to a peer, which starts and stops them.
//!
//! ```
//! use litemesh_http::HttpServer;
//! use tokio::net::TcpListener;
//!
//! # async fn example() -> std::io::Result<()> {
//! let transport = HttpServer::new();
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! // Beside other routes of the application; `transport.clone()` goes to the peer.
//! let app = axum::Router::new().nest("/api/worker", transport.routes());
//! transport.serve_router(app, listener, async { /* a signal */ }).await?;
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new()?.block_on(example())?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # What is guaranteed
//!
//! The messages of one client are handled in the order in which they began to arrive, and answered with 200 only after
//! they were committed. A client posts one message at a time and waits for its answer; any failure ends the connection,
//! and the next one asks again for what is missing. A message that cannot be read is reported to the peer, never skipped
//! in silence.
//!
//! Memory is bounded for each connection: frames wait in a short queue, bodies are read up to
//! [`Limits::message_bytes_max`](litemesh_proto::Limits::message_bytes_max) after decompression, and a client that takes
//! nothing is dropped.
//!
//! # What is not
//!
//! A server asks for tokens only where it is told to ([`HttpServerBuilder::tokens`]). Without, whoever reaches the routes can
//! read and write the database, as in the original: bind to the loopback, or put a layer with authentication around them.
//! Limits for sockets, and TLS, belong to [`HttpServer::serve`]; a server of your own has its own.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![forbid(unsafe_code)]

mod client;
mod counters;
mod form;
mod gzip;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod server;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod sse;
mod tokens;
mod websocket;

use std::time::Duration;

pub use client::{DialError, HttpClient, HttpClientBuilder};
pub use counters::Counters;
pub use litemesh_proto::backoff;
pub use server::{HttpServer, HttpServerBuilder, TlsError};
pub use sse::{Event, EventParser, EventTooLarge};
pub use tokens::{NewToken, TOKEN_FILE_BYTES_MAX, TOKEN_NAME_BYTES_MAX, TokenEntry, TokenFile, TokenFileError};

/// What is still read of what comes in vain, in bytes, a refused body or a socket that is being closed, so that the other end finishes
/// writing and looks at the reason.
///
/// Closing with bytes unread would reset the connection, and the reset can overtake the reason.
const DRAINED_BYTES_MAX: usize = 8 << 20;

/// How long it is still read, and how long the other end of a WebSocket may take to hear that the connection ends, and to say so in
/// return: a turn over any line that works. The socket and its task stay that long.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Request header by which a Litemesh client says which wire version it speaks.
const VERSION_HEADER: &str = "litemesh-version";

/// Request header with a random word of the client's process. A client that lost its stream without the server having
/// noticed proves with it that the old stream is its own, and is not locked out (`known-failures.md` B15).
const INSTANCE_HEADER: &str = "litemesh-instance";

/// Request header with the site id of who posts wire v2 frames, which do not name their sender.
const PEER_HEADER: &str = "litemesh-peer";
