//! Accepts sockets and serves HTTP on them, under limits: what `axum::serve` leaves open is decided here.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Method, Request, StatusCode};
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

use super::last_word::{Lent, say_at_once};
use super::post::{BodyForm, check_head};
use super::sockets::{Socket, Sockets, UnderWay};
use super::{Shared, TCP_USER_TIMEOUT};
use crate::counters::add;

/// How long a client may take for the head of a request, and how long a socket without one stays open.
///
/// A head of ours fits one packet, which TCP sends again after 1, 2, 4 and 8 s where it is lost: 15 s on the worst line that still works, and
/// as much again. What waits meanwhile is a stranger's, of which there are [`STRANGERS_MAX`](super::sockets::STRANGERS_MAX).
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a TLS handshake may take, where heads have no less.
///
/// Two turns over the line, with 3 s and more for each: it costs us a signature, and memory of some tens of KiB, before anybody has said who
/// they are, so it gets less time than a head.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes. Ours have under 1 KiB, those of browsers with many cookies some more.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Requests of one HTTP/2 connection at once: ours has a stream, and POSTs one after another. A proxy that brings the requests of many clients
/// over one connection opens another one beyond that; each that waits holds a few KiB.
const HTTP2_REQUESTS_MAX: u32 = 64;

/// Wait after a failed accept, where the cause is ours: no more file descriptors, as a rule. At once again, the loop would take a whole core
/// until one is closed.
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
                // A handshake for one word would cost more than the request.
                if server.tls.is_none() {
                    say_at_once(stream, StatusCode::SERVICE_UNAVAILABLE, &refusal.to_string());
                }
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

/// What is said to who is closed before it was answered.
type LastWord = (StatusCode, &'static str);
const HEAD_TOO_LATE: LastWord = (StatusCode::REQUEST_TIMEOUT, "the head of the request did not come in time");
const NOT_LET_IN: LastWord = (StatusCode::REQUEST_TIMEOUT, "no request that is let in came in time");
const GIVES_WAY: LastWord =
    (StatusCode::SERVICE_UNAVAILABLE, "there are too many connections, and this one has not been let in yet");

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
        let Some(tls) = &self.tls else { return self.answer(stream, &socket, &closing).await };
        let patience = self.shared.options.head_timeout.min(HANDSHAKE_TIMEOUT);
        // Nothing is lost with a dropped branch but the socket, which is what the first one means.
        let secured = tokio::select! {
            biased;
            () = socket.closing() => return self.note_closed(&socket),
            secured = tokio::time::timeout(patience, tls.accept(stream)) => secured,
        };
        match secured {
            Ok(Ok(stream)) => self.answer(stream, &socket, &closing).await,
            Ok(Err(error)) => debug!(%error, "no TLS connection"),
            Err(_) => debug!("a TLS handshake took too long"),
        }
    }

    fn note_closed(&self, socket: &Socket) {
        debug!(is_known = socket.known.is_cancelled(), "a socket without a request that is let in is closed");
        add(&self.shared.counters.refused_sockets, 1);
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
        let lent = Lent::new(stream);
        let taken_back = lent.handle();
        let mut connection = Box::pin(self.builder.serve_connection_with_upgrades(TokioIo::new(lent), service));
        // The connection is pinned outside and loses nothing.
        let unwanted = async {
            tokio::select! { () = closing.cancelled() => {} () = socket.spare.cancelled() => {} }
        };
        let serving = async {
            tokio::select! {
                result = connection.as_mut() => result,
                () = unwanted => {
                    connection.as_mut().graceful_shutdown();
                    connection.as_mut().await
                }
            }
        };
        // Nothing is lost with a dropped branch but the requests, which is what the first one means.
        let why = tokio::select! {
            biased;
            () = socket.closing() => {
                self.note_closed(socket);
                if socket.end.is_cancelled() { Some(GIVES_WAY) } else { Some(NOT_LET_IN) }
            }
            result = serving => result.err().and_then(|error| {
                trace!(%error, "a connection ended");
                error.downcast_ref::<hyper::Error>().filter(|error| error.is_timeout()).map(|_| HEAD_TOO_LATE)
            }),
        };
        drop(connection);
        if let Some((status, text)) = why {
            taken_back.say(status, text).await;
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
