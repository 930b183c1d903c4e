//! The client side: [`HttpClient`].

mod dial;
mod dial_error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;
mod link;
mod post;
mod split;
mod way;
mod websocket;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use litemesh_proto::codec::{v1, v2};
use litemesh_proto::limits::{BATCH_BYTES_MAX, PING_INTERVAL, RECONNECT_DELAY_MIN, V1_BODY_BYTES_MAX};
use litemesh_proto::{BoxFuture, PeerCallbacks, PeerMessage, Remote, SiteId, SyncRequest, Transport, TransportError};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::dial_error::DialError;
use self::dial_error::Resolver;
use self::link::Link;
use self::post::Route;
use self::way::Way;
#[cfg(feature = "simulation")]
pub(crate) use self::{
    dial::{Received, StreamIntake, introduction},
    post::body,
    split::bodies,
};

/// Silence on the stream after which the connection counts as dead: three pings that did not come.
const IDLE_TIMEOUT: Duration = PING_INTERVAL.saturating_mul(3);

/// How long a socket is kept for the next POST: half of what a Litemesh server keeps it, so that none is used in the moment in
/// which it is closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long setting up a TCP and TLS connection may take: TCP tries four times meanwhile. The next dial may find another address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// About how many bytes one message to a Litemesh server may take.
///
/// Each is posted, committed and answered before the next: on a line of 50 ms that is 80 MiB/s at most, and five times
/// less with the batches that a v1 server takes.
const LITEMESH_BATCH_BYTES_MAX: usize = 4 << 20;

/// Bytes of the length before a frame in a body: four, and one to spare.
const LENGTH_BYTES_MAX: usize = 5;

/// Largest body that is posted to a v1 server: its limit, less a little for whatever stands between us.
pub(crate) const V1_BODY_BYTES_SAFE: usize = V1_BODY_BYTES_MAX - 4 * 1024;

/// The client side of the HTTP transport: the seed's `TransportClientHttp`.
///
/// A cheap handle: clones are the same client. It dials `{endpoint}/stream`, and again whenever the connection is lost,
/// after 1, 2, 4, 8, 16, 30, 30 … seconds, on average. Messages go out one at a time, each after the server took the one before. Where a
/// Litemesh hub has a WebSocket, both directions go over that.
///
/// The proxies of the environment (`HTTPS_PROXY` and the like) are used, except for endpoints on the loopback;
/// [`HttpClientBuilder::http`] decides otherwise. Why there is no connection, [`last_error`](Self::last_error) tells.
///
/// Towards an original server it is an original client; towards a Litemesh server bodies may be larger and are compressed.
///
/// ```no_run
/// use std::sync::Arc;
/// use litemesh_http::HttpClient;
/// use litemesh_proto::{PeerCallbacks, Transport, TransportError};
///
/// # async fn example(peer: Arc<dyn PeerCallbacks>) -> Result<(), TransportError> {
/// let transport = HttpClient::new("http://localhost:3000/api/worker");
/// transport.start(peer).await?; // a Litemesh peer does this for the transports it was given
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HttpClient {
    shared: Arc<Shared>,
}

/// Sets up an [`HttpClient`].
///
/// ```
/// use std::time::Duration;
/// use litemesh_http::HttpClient;
///
/// let transport = HttpClient::builder("https://example.org/sync/").idle_timeout(Duration::from_secs(60)).build();
/// assert_eq!(transport.endpoint(), "https://example.org/sync");
/// ```
#[derive(Clone, Debug)]
pub struct HttpClientBuilder {
    endpoint: String,
    http: Option<reqwest::Client>,
    token: Option<Token>,
    ca: Option<Vec<u8>>,
    options: Options,
}

/// A token on its way into requests: marked as sensitive, so that nothing prints it. `None` where no header takes it.
#[derive(Clone, Debug)]
struct Token(Option<HeaderValue>);

impl Token {
    fn new(token: &str) -> Self {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).ok();
        if let Some(value) = &mut value {
            value.set_sensitive(true);
        }
        Self(value)
    }
}

#[derive(Clone, Debug)]
struct Options {
    reconnect_delay_min: Duration,
    idle_timeout: Duration,
    has_jitter: bool,
    is_announced: bool,
    takes_frames: bool,
    websocket: WebSocket,
}

/// Whether to use a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WebSocket {
    /// Where the server has one, and nothing between us breaks it.
    Preferred,
    Never,
    /// And nothing else: the endpoint says so.
    Only,
}

impl HttpClientBuilder {
    /// The HTTP client to use, for proxies, certificates, headers and the like: the seed's custom `fetch`.
    ///
    /// It should set no timeout for whole requests, which would end every stream, and no decompression.
    pub fn http(mut self, http: reqwest::Client) -> Self {
        self.http = Some(http);
        self
    }

    /// The token to show with every request (`Authorization: Bearer …`), as `litemesh token new` printed it; white space around
    /// it does not count.
    ///
    /// Over `http` everybody on the way can read it, see [`HttpClient::exposes_token`]. One that no header can carry is reported by
    /// [`start`](Transport::start).
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(Token::new(token));
        self
    }

    /// Trusts the certificates of this PEM text, and no others, in place of those that the system trusts. Not looked at where
    /// [`http`](Self::http) is called, too; text without a certificate is reported by [`start`](Transport::start).
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// The delay before the first new dial; 1 s where nothing else is said. It doubles up to 30 s.
    pub fn reconnect_delay_min(mut self, delay: Duration) -> Self {
        self.options.reconnect_delay_min = delay;
        self
    }

    /// Silence after which the connection counts as dead; 90 s where nothing else is said, three times the ping interval.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.options.idle_timeout = timeout;
        self
    }

    /// Makes of each delay anything from a half to one and a half of it, at random, so that the clients of a hub that restarts do
    /// not all come back at once. On where nothing else is said; without it delays are the original's.
    pub fn jitter(mut self, is_on: bool) -> Self {
        self.options.has_jitter = is_on;
        self
    }

    /// Whether to say that this is a Litemesh peer. Without it a Litemesh hub takes us for a peer of the original: for tests
    /// and comparisons. On where nothing else is said.
    ///
    /// Without it no WebSocket is taken either, except where the endpoint asks for one, and then it carries JSON.
    pub fn announce(mut self, is_on: bool) -> Self {
        self.options.is_announced = is_on;
        self
    }

    /// Whether to ask a Litemesh hub for a stream of wire v2 frames as they are. Without it they come as server-sent events, a
    /// third larger, which the client turns to by itself where something between breaks streams of frames. On where nothing else is
    /// said.
    ///
    /// Without it no WebSocket is taken either, except where the endpoint asks for one, whose messages are frames all the same.
    pub fn frames(mut self, is_on: bool) -> Self {
        self.options.takes_frames = is_on;
        self
    }

    /// Whether to take a WebSocket where a Litemesh hub has one, instead of an event stream and POSTs. Where it comes to nothing the
    /// client falls back to these, with server-sent events where nothing else gets through; and where that is not an accident, it tries
    /// no other for ten minutes. On where nothing else is said, unless [`announce`](Self::announce) or [`frames`](Self::frames) is off; an
    /// endpoint that begins with `ws://` or `wss://` asks for a WebSocket and nothing else.
    pub fn websocket(mut self, is_on: bool) -> Self {
        self.options.websocket = if is_on { WebSocket::Preferred } else { WebSocket::Never };
        self
    }

    /// The client, not started yet.
    pub fn build(mut self) -> HttpClient {
        let endpoint = self.endpoint.strip_suffix('/').unwrap_or(&self.endpoint).to_owned();
        let base = match of_websocket(&endpoint) {
            Some(base) => {
                self.options.websocket = WebSocket::Only;
                base
            }
            None => endpoint.clone(),
        };
        let mut random = [0_u8; 16];
        fastrand::fill(&mut random);
        HttpClient {
            shared: Arc::new(Shared {
                endpoint,
                base,
                instance: SiteId::from_bytes(random).to_string(),
                http: self.http,
                token: self.token,
                ca: self.ca,
                options: self.options,
                attempts: AtomicU32::new(0),
                refusals: AtomicU32::new(0),
                litemesh_body_bytes_max: AtomicUsize::new(usize::MAX),
                way: Mutex::default(),
                way_of_frames: Mutex::default(),
                stop: CancellationToken::new(),
                state: Mutex::default(),
            }),
        }
    }
}

/// What makes the requests.
#[derive(Debug)]
struct Clients {
    http: reqwest::Client,
    /// For WebSockets, which take a connection over, as only one of HTTP/1.1 can be.
    upgrading: reqwest::Client,
}

/// What the handles and the task of one client share.
struct Shared {
    endpoint: String,
    /// The endpoint as requests have it: also the handshake of a WebSocket is HTTP.
    base: String,
    /// A random word, see [`INSTANCE_HEADER`](crate::INSTANCE_HEADER).
    instance: String,
    http: Option<reqwest::Client>,
    token: Option<Token>,
    ca: Option<Vec<u8>>,
    options: Options,
    /// Dials since the last connection.
    attempts: AtomicU32,
    /// Connections one after another that ended because the server did not take what it was sent.
    refusals: AtomicU32,
    /// What a Litemesh server turned out to take at most, if it takes less than we would send.
    litemesh_body_bytes_max: AtomicUsize,
    /// Of WebSockets.
    way: Mutex<Way>,
    /// Of streams of frames.
    way_of_frames: Mutex<Way>,
    stop: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_started: bool,
    dialer: Option<JoinHandle<()>>,
    link: Option<Arc<Link>>,
    last_error: Option<DialError>,
}

impl HttpClient {
    /// A client of the server whose routes are mounted at `endpoint`, such as `http://host:3000/api/worker`.
    ///
    /// An endpoint that is no URL is reported by [`start`](Transport::start).
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self::builder(endpoint).build()
    }

    /// A client with settings of your own.
    pub fn builder(endpoint: impl Into<String>) -> HttpClientBuilder {
        let options = Options {
            reconnect_delay_min: RECONNECT_DELAY_MIN,
            idle_timeout: IDLE_TIMEOUT,
            has_jitter: true,
            is_announced: true,
            takes_frames: true,
            websocket: WebSocket::Preferred,
        };
        HttpClientBuilder { endpoint: endpoint.into(), http: None, token: None, ca: None, options }
    }

    /// Whether the event stream, or the WebSocket, is open and the server has introduced itself: the seed's `isSSEConnected`.
    pub fn is_sse_connected(&self) -> bool {
        self.shared.link().is_some()
    }

    /// Whether the connection that stands goes over a WebSocket.
    pub fn is_websocket(&self) -> bool {
        self.shared.link().is_some_and(|link| link.outbox.is_some())
    }

    /// The endpoint without its trailing slash: the seed's `getEndpoint`.
    pub fn endpoint(&self) -> &str {
        &self.shared.endpoint
    }

    /// Whether there is a token that everybody on the way can read: one that goes to another machine without TLS.
    pub fn exposes_token(&self) -> bool {
        let is_plain = |url: &reqwest::Url| url.scheme() == "http" && !is_loopback(url);
        self.shared.token.is_some() && reqwest::Url::parse(&self.shared.base).is_ok_and(|url| is_plain(&url))
    }

    /// Dials since the last connection: the seed's `getReconnectAttempts`.
    pub fn reconnect_attempts(&self) -> u32 {
        self.shared.attempts.load(Relaxed)
    }

    /// Why the last dial came to nothing; `None` before the first one has ended, and from each connection on until a dial
    /// fails again. A connection that stood and was lost is told by the peer's `Disconnect` event.
    ///
    /// ```
    /// use litemesh_http::{DialError, HttpClient};
    ///
    /// let transport = HttpClient::new("http://localhost:3000/api/worker");
    /// // Once it was given to a peer:
    /// match transport.last_error() {
    ///     None => {}
    ///     Some(DialError::AlreadyConnected) => eprintln!("this database is connected already"),
    ///     Some(error) => eprintln!("not connected: {error}"),
    /// }
    /// ```
    pub fn last_error(&self) -> Option<DialError> {
        self.shared.state().last_error.clone()
    }

    /// The site id of the server while connected: the seed's `getRemotePeerId`.
    pub fn remote_peer_id(&self) -> Option<SiteId> {
        self.shared.link().map(|link| link.remote.site)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that stands, if one does.
    fn link(&self) -> Option<Arc<Link>> {
        self.state().link.clone().filter(|link| !link.end.is_cancelled())
    }

    fn link_of(&self, remote: Remote) -> Result<Arc<Link>, TransportError> {
        let link = self.link().filter(|link| link.remote.connection == remote.connection);
        link.ok_or(TransportError::NotConnected { remote: remote.site })
    }

    fn set_link(&self, link: Option<Arc<Link>>) {
        self.state().link = link;
    }

    /// The HTTP clients, where they can be had and the endpoint is one.
    fn prepare(&self) -> Result<Clients, TransportError> {
        let cannot = |reason: String| TransportError::Endpoint { endpoint: self.endpoint.clone(), reason };
        let url = reqwest::Url::parse(&self.base).map_err(|error| cannot(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(cannot(format!("the scheme must be http, https, ws or wss, not {}", url.scheme())));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(cannot("it must end with a path, without ? and #".to_owned()));
        }
        if let Some(Token(None)) = &self.token {
            return Err(cannot("the token has characters that no header can carry".to_owned()));
        }
        match &self.http {
            Some(http) => Ok(Clients { http: http.clone(), upgrading: http.clone() }),
            None => self.clients(&url).map_err(cannot),
        }
    }

    /// Clients of our own: one for both where it can be, since each reads the system's certificates, which takes 5 ms.
    fn clients(&self, url: &reqwest::Url) -> Result<Clients, String> {
        // An error means that the application has chosen a provider already, which is then used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let build = |is_upgrading: bool| -> Result<reqwest::Client, String> {
            let builder = self.client_builder(url)?;
            let builder = if is_upgrading { builder.http1_only() } else { builder };
            builder.build().map_err(|error| error.to_string())
        };
        let takes_websockets = self.options.websocket != WebSocket::Never;
        // Without TLS nobody agrees on HTTP/2.
        let is_plain = url.scheme() == "http";
        let http = build(takes_websockets && is_plain)?;
        let upgrading = if takes_websockets && !is_plain { build(true)? } else { http.clone() };
        Ok(Clients { http, upgrading })
    }

    fn client_builder(&self, url: &reqwest::Url) -> Result<reqwest::ClientBuilder, String> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .dns_resolver(Arc::new(Resolver));
        if let Some(pem) = &self.ca {
            let trusted = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| error.to_string())?;
            if trusted.is_empty() {
                return Err("the file of trusted certificates has none".to_owned());
            }
            builder = builder.tls_certs_only(trusted);
        }
        // HTTP_PROXY and the like are for the way out of this machine.
        Ok(if is_loopback(url) { builder.no_proxy() } else { builder })
    }

    /// Adds the token, where there is one.
    fn authorize(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(Token(Some(token))) => request.header(AUTHORIZATION, token),
            _ => request,
        }
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way_of_frames(&self) -> MutexGuard<'_, Way> {
        self.way_of_frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Largest body or message that this server takes.
    fn body_bytes_max(&self, remote: Remote, message_bytes_max: usize) -> usize {
        if remote.is_litemesh {
            message_bytes_max.min(self.litemesh_body_bytes_max.load(Relaxed))
        } else {
            V1_BODY_BYTES_SAFE
        }
    }
}

/// A request, to a Litemesh server or another one.
pub(crate) fn sync(is_litemesh: bool, site: SiteId, request: &SyncRequest) -> Vec<u8> {
    if is_litemesh { v2::sync(request) } else { v1::sync(site, request) }
}

/// The URL of requests to an endpoint that asks for a WebSocket and nothing else: `http` for `ws`, `https` for `wss`.
fn of_websocket(endpoint: &str) -> Option<String> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let schemes = [("ws", "http"), ("wss", "https")];
    let (_, http) = schemes.into_iter().find(|(ws, _)| scheme.eq_ignore_ascii_case(ws))?;
    Some(format!("{http}://{rest}"))
}

/// Whether a URL names this machine.
fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match address {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

impl Transport for HttpClient {
    fn name(&self) -> &str {
        "http"
    }

    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let clients = self.shared.prepare()?;
            let mut state = self.shared.state();
            if std::mem::replace(&mut state.is_started, true) {
                return Err(TransportError::AlreadyStarted);
            }
            state.dialer = Some(tokio::spawn(dial::run(self.shared.clone(), clients, peer)));
            Ok(())
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(
            self.shared.deliver(remote, Route::Sync, move |link, _| {
                Ok(vec![sync(link.remote.is_litemesh, link.site, &request)])
            }),
        )
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.shared.deliver(remote, Route::Data, move |link, max| {
            if !link.remote.is_litemesh {
                return split::bodies(link.site, message, max);
            }
            // Numbered, so not to be cut here: it is the peer that makes its messages smaller.
            let frame = v2::message(&message);
            if frame.len() + LENGTH_BYTES_MAX > max {
                return Err(TransportError::too_large(&message, frame.len() + LENGTH_BYTES_MAX, max));
            }
            Ok(vec![frame])
        }))
    }

    fn close(&self, remote: Remote) -> BoxFuture<'_, ()> {
        if let Ok(link) = self.shared.link_of(remote) {
            link.close();
        }
        Box::pin(async {})
    }

    /// Must not be called from inside of a callback: it waits for the one under way to resolve.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.stop.cancel();
            let dialer = {
                let mut state = self.shared.state();
                state.is_started = true;
                state.dialer.take()
            };
            if let Some(dialer) = dialer
                && let Err(error) = dialer.await
            {
                tracing::error!(%error, "the task of an HTTP client failed");
            }
        })
    }

    fn is_duplex(&self, remote: Remote) -> bool {
        self.shared.link_of(remote).is_ok_and(|link| link.outbox.is_some())
    }

    fn message_bytes_max(&self, remote: Remote) -> usize {
        if !remote.is_litemesh {
            return BATCH_BYTES_MAX;
        }
        // Room for the envelope, as between a batch and the body limit of a v1 server.
        let known = self.shared.litemesh_body_bytes_max.load(Relaxed);
        LITEMESH_BATCH_BYTES_MAX.min(known - known / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_slash_is_taken_off() {
        assert_eq!(HttpClient::new("http://h/api/worker/").endpoint(), "http://h/api/worker");
        assert_eq!(HttpClient::new("http://h//").endpoint(), "http://h/");
        assert_eq!(HttpClient::new("http://h").endpoint(), "http://h");
    }

    #[test]
    fn a_token_is_printed_nowhere() {
        let builder = HttpClient::builder("http://localhost").token(" litemesh_secret\n");
        assert!(!format!("{builder:?}").contains("secret"));
        assert!(builder.clone().build().shared.prepare().is_ok());
        for (endpoint, is_exposed) in [("http://localhost", false), ("https://h", false), ("http://h", true)] {
            let client = HttpClient::builder(endpoint);
            assert!(!client.clone().build().exposes_token());
            assert_eq!(client.token("x").build().exposes_token(), is_exposed, "{endpoint}");
        }
        let refused = HttpClient::builder("http://localhost").token("a\nb").build().shared.prepare().unwrap_err();
        assert!(refused.to_string().contains("no header can carry"), "{refused}");
    }

    #[test]
    fn clients_spread_their_dials_unless_they_are_told_not_to() {
        let delays =
            |client: HttpClient| [0.0, 0.5, 1.0].map(|random| client.shared.options.delay(1, random).as_millis());
        assert_eq!(delays(HttpClient::new("http://h")), [1000, 2000, 3000]);
        assert_eq!(delays(HttpClient::builder("http://h").jitter(false).build()), [2000; 3]);
    }

    #[test]
    fn only_this_machine_is_the_loopback() {
        let check = |url: &str| is_loopback(&reqwest::Url::parse(url).unwrap());
        for url in [
            "http://127.0.0.1:1/x",
            "http://127.9.9.9",
            "http://[::1]",
            "http://[::ffff:127.0.0.1]",
            "http://LOCALHOST",
        ] {
            assert!(check(url), "{url}");
        }
        for url in ["http://hub.localhost", "https://localhost:1"] {
            assert!(check(url), "{url}");
        }
        for url in ["http://10.0.0.1", "http://[::2]", "http://localhost.example.org", "http://127.0.0.1.example.org"] {
            assert!(!check(url), "{url}");
        }
    }

    #[test]
    fn endpoints_that_cannot_work_are_refused() {
        for endpoint in ["", "nonsense", "/relative", "ftp://h", "http://", "http://h/?x=1", "http://h/#x"] {
            let refused = HttpClient::new(endpoint).shared.prepare();
            assert!(matches!(refused, Err(TransportError::Endpoint { .. })), "{endpoint}");
        }
        for endpoint in ["http://[::1]:3000/api", "ws://h", "WSS://h/api"] {
            assert!(HttpClient::new(endpoint).shared.prepare().is_ok(), "{endpoint}");
        }
    }

    #[test]
    fn an_endpoint_that_asks_for_a_socket_is_named_as_it_was_given() {
        for (endpoint, base) in [("ws://h/x", "http://h/x"), ("WS://h", "http://h"), ("Wss://h", "https://h")] {
            let client = HttpClient::new(endpoint);
            assert_eq!((client.endpoint(), &*client.shared.base), (endpoint, base));
            assert_eq!(client.shared.options.websocket, WebSocket::Only);
        }
        assert_eq!(HttpClient::new("http://ws/x").shared.options.websocket, WebSocket::Preferred);
    }
}
