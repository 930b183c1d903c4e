//! Accepts sockets and serves HTTP on them, under limits: what `axum::serve` leaves open is decided here.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Method, Request};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace, warn};

use super::post::{BodyForm, check_head};
use super::sockets::{Socket, Sockets, UnderWay};
use super::{Shared, TCP_USER_TIMEOUT};
use crate::counters::add;

/// How long a client may take for the head of a request, and how long a socket without one stays open.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a TLS handshake may take, where heads have no less.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes. Ours have under 1 KiB, those of browsers with many cookies some more.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Requests of one HTTP/2 connection at once: a stream, and POSTs one after another.
const HTTP2_REQUESTS_MAX: u32 = 64;

/// Wait after a failed accept, where the cause is ours: no more file descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Serves `router` on what comes in at `listener`, until `closing`. Then what is open ends by and by, and `tasks` with it.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    router: Router,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    tasks: &TaskTracker,
    closing: &CancellationToken,
) {
    let builder = builder(shared.options.head_timeout);
    let server = Arc::new(Server { shared: shared.clone(), builder, router, tls, tasks: tasks.clone() });
    loop {
        // Nothing is lost with a dropped branch: a socket that is not accepted yet waits with the kernel.
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            accepted = next(&listener, &shared.sockets) => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_client(&error) => continue,
            Err(error) => {
                warn!(%error, "cannot accept a connection, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match shared.sockets.admit(address.ip()) {
            Ok(socket) => {
                tasks.spawn(server.clone().own(stream, socket, closing.clone()));
            }
            Err(refusal) => {
                debug!(%refusal, "socket closed");
                add(&shared.counters.refused_sockets, 1);
            }
        }
    }
}

async fn next(listener: &TcpListener, sockets: &Sockets) -> io::Result<(TcpStream, SocketAddr)> {
    sockets.wait_for_room().await;
    listener.accept().await
}

fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn builder(head_timeout: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        // WebSockets, ours and those of the applications whose routes stand beside.
        .enable_connect_protocol()
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_concurrent_streams(HTTP2_REQUESTS_MAX)
        // An HTTP/2 socket is idle between requests, too: a client that is gone is noticed by its silence.
        .keep_alive_interval(head_timeout)
        .keep_alive_timeout(head_timeout);
    builder
}

struct Server {
    shared: Arc<Shared>,
    builder: Builder<TokioExecutor>,
    router: Router,
    tls: Option<TlsAcceptor>,
    /// What the end of the serving waits for.
    tasks: TaskTracker,
}

impl Server {
    /// Owns one socket until it is closed.
    async fn own(self: Arc<Self>, stream: TcpStream, socket: Socket, closing: CancellationToken) {
        tune(&stream);
        let socket = Arc::new(socket);
        // Nothing is lost with a dropped branch but the socket, which is what the first one means.
        tokio::select! {
            biased;
            () = socket.closing() => {
                debug!(is_known = socket.known.is_cancelled(), "a socket without a request that is let in is closed");
                add(&self.shared.counters.refused_sockets, 1);
            }
            () = self.secure(stream, &socket, &closing) => {}
        }
    }

    async fn secure(&self, stream: TcpStream, socket: &Arc<Socket>, closing: &CancellationToken) {
        let Some(tls) = &self.tls else { return self.answer(stream, socket, closing).await };
        let patience = self.shared.options.head_timeout.min(HANDSHAKE_TIMEOUT);
        match tokio::time::timeout(patience, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.answer(stream, socket, closing).await,
            Ok(Err(error)) => debug!(%error, "no TLS connection"),
            Err(_) => debug!("a TLS handshake took too long"),
        }
    }

    async fn answer(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        socket: &Arc<Socket>,
        closing: &CancellationToken,
    ) {
        let routes = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(socket.clone());
            // A WebSocket outlives its request and the connection of HTTP.
            request.extensions_mut().insert(self.tasks.token());
            // Frames come from clients of ours, who try again.
            let under_way = socket.begin(check_head(request.headers()) == Ok(BodyForm::Frames));
            let (socket, is_preflight) = (socket.clone(), request.method() == Method::OPTIONS);
            let answer = routes.call(request);
            async move {
                let answer = answer.await;
                // Routes of the application beside ours: who got something there is known, too.
                if !is_preflight && answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                    socket.become_known();
                }
                answer.map(|answer| answer.map(|body| AnswerBody { body, _under_way: under_way }))
            }
        });
        let mut connection = Box::pin(self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        // The connection is pinned outside and loses nothing.
        let unwanted = async {
            tokio::select! { () = closing.cancelled() => {} () = socket.spare.cancelled() => {} }
        };
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = unwanted => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            trace!(%error, "a connection ended");
        }
    }
}

/// The body of an answer. The request is under way as long as it is there.
struct AnswerBody {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Frames are small and waited for; and a client whose network vanished must be noticed.
fn tune(socket: &TcpStream) {
    let result = socket.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let result = result.and(socket2::SockRef::from(socket).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT)));
    if let Err(error) = result {
        debug!(%error, "cannot set options of a socket");
    }
}
