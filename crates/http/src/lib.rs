//! HTTP transport of Litemesh: server-sent events one way, POST the other.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![forbid(unsafe_code)]

mod backoff;
mod client;
mod counters;
mod gzip;
mod server;
mod sse;

pub use backoff::backoff;
pub use client::{HttpClient, HttpClientBuilder};
pub use counters::Counters;
pub use server::{HttpServer, HttpServerBuilder};
pub use sse::{Event, EventParser, EventTooLarge};

/// Request header by which a Litemesh client says which version of the additional fields it speaks.
const VERSION_HEADER: &str = "litemesh-version";

/// Request header with a random word of the client's process. A client that lost its stream without the server having
/// noticed proves with it that the old stream is its own, and is not locked out (`known-failures.md` B15).
const INSTANCE_HEADER: &str = "litemesh-instance";
