//! The task of a client: dials, reads the stream frame by frame, dials again.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use litemesh_proto::codec::v1::{Envelope, LITEMESH_VERSION};
use litemesh_proto::{Access, PeerCallbacks, Refusal, Remote, SiteId};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING};
use reqwest::{Client, Response, StatusCode};
use tracing::{debug, info, warn};

use super::Shared;
use super::dial_error::DialError;
use super::link::{Ending, Link};
use super::post::{explain, read_answer};
use crate::backoff::backoff_from;
use crate::gzip::{DECODE_STEP_BYTES, StreamDecoder};
use crate::sse::{Event, EventParser, EventTooLarge};
use crate::{INSTANCE_HEADER, VERSION_HEADER};

/// Room in a frame for what stands around the message.
const FRAME_ENVELOPE_BYTES: usize = 64 * 1024;

/// Dials until the transport is stopped.
pub(super) async fn run(shared: Arc<Shared>, http: Client, peer: Arc<dyn PeerCallbacks>) {
    let dialer = Dialer { shared: shared.clone(), http, peer };
    loop {
        // Not interrupted from outside: it looks at the token wherever it waits for the network, and finishes callbacks.
        let reason = match dialer.connect().await {
            Ok(reason) => reason,
            Err(error) => {
                let reason = error.to_string();
                shared.state().last_error = Some(error);
                reason
            }
        };
        shared.set_link(None);
        if shared.stop.is_cancelled() {
            return;
        }
        let attempts = shared.attempts.load(Relaxed);
        let jitter = if shared.options.has_jitter { fastrand::f64() } else { 0.0 };
        let delay = backoff_from(shared.options.reconnect_delay_min, attempts, jitter);
        debug!(endpoint = shared.endpoint, reason, attempts, ?delay, "not connected, dialling again later");
        // Nothing is lost with a dropped branch.
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
        shared.attempts.store(attempts.saturating_add(1), Relaxed);
    }
}

struct Dialer {
    shared: Arc<Shared>,
    http: Client,
    peer: Arc<dyn PeerCallbacks>,
}

impl Dialer {
    /// One connection from the dial to its end; the reason why it ended.
    async fn connect(&self) -> Result<String, DialError> {
        // Nothing is lost with a dropped branch: nobody was told of the connection yet.
        let (mut stream, remote, access) = tokio::select! {
            () = self.shared.stop.cancelled() => return Ok("stopped".to_owned()),
            opened = self.open() => opened?,
        };
        let limits = self.peer.limits();
        let link = Link::new(remote, self.peer.site(), self.http.clone(), limits.message_bytes_max, &self.shared.stop);
        let link = Arc::new(link);
        // Before the peer hears of the connection, since it sends its request from within the call.
        self.shared.set_link(Some(link.clone()));
        if let Err(refusal) = self.peer.connect(remote, access).await {
            link.close();
            return Err(match remote.site {
                site if site == self.peer.site() => DialError::SameSite { site },
                _ => DialError::RefusedByPeer { reason: refusal.to_string() },
            });
        }
        info!(remote = %remote.site.fmt_short(), endpoint = self.shared.endpoint, "connected");
        self.shared.attempts.store(0, Relaxed);
        self.shared.state().last_error = None;
        self.read(&link, &mut stream).await;
        if self.shared.stop.is_cancelled() {
            return Ok("stopped".to_owned());
        }
        let reason = match link.ending() {
            Some(Ending::Reported(reason)) => reason.clone(),
            Some(Ending::Silent) => return Ok("closed by this side".to_owned()),
            None => return Ok("stopped".to_owned()),
        };
        info!(remote = %remote.site.fmt_short(), reason, "disconnected");
        self.shared.set_link(None);
        self.peer.disconnect(remote, reason.clone()).await;
        Ok(reason)
    }

    /// Opens the stream and reads its first frame, in which the server introduces itself.
    async fn open(&self) -> Result<(FrameStream, Remote, Access), DialError> {
        let url = format!("{}/stream?peerId={}", self.shared.endpoint, self.peer.site());
        let mut request = self
            .shared
            .authorize(self.http.get(url))
            .header(ACCEPT, "text/event-stream")
            .header(CACHE_CONTROL, "no-cache")
            .header(ACCEPT_ENCODING, "gzip");
        if self.shared.options.is_announced {
            request = request.header(VERSION_HEADER, LITEMESH_VERSION).header(INSTANCE_HEADER, &self.shared.instance);
        }
        let idle_timeout = self.shared.options.idle_timeout;
        let opening = async {
            let response = request.send().await.map_err(|error| DialError::of_request(&error))?;
            match response.status() {
                StatusCode::OK => Ok(response),
                // What was said before it broke off, or nothing: the status counts.
                status => Err(DialError::of_answer(status, &read_answer(response).await.unwrap_or_default())),
            }
        };
        let response = tokio::time::timeout(idle_timeout, opening).await.map_err(|_| DialError::TimedOut)??;
        let event_bytes_max = self.peer.limits().message_bytes_max.saturating_add(FRAME_ENVELOPE_BYTES);
        let stream = FrameStream::new(response, event_bytes_max, idle_timeout);
        let mut stream = stream.map_err(|reason| DialError::no_stream(&reason))?;
        let first = stream.next().await.map_err(|reason| DialError::no_stream(&reason))?;
        let first = first.map_err(|error| DialError::no_stream(&error))?;
        let envelope = Envelope::parse(&first.data).map_err(|error| DialError::no_stream(&error))?;
        let site = envelope.peer_id().and_then(|id| id.parse::<SiteId>().ok());
        match (envelope.kind(), site) {
            ("connect", Some(site)) => {
                let connection = Remote::next_connection();
                let remote = Remote { site, connection, is_litemesh: envelope.is_litemesh() };
                // What we may do there, seen from here: a server that takes nothing of us is sent nothing.
                let access = envelope.access().map_err(|error| DialError::no_stream(&error))?.mirrored();
                Ok((stream, remote, access))
            }
            ("error", _) => Err(match envelope.error() {
                Some("ALREADY_CONNECTED") => DialError::AlreadyConnected,
                code => DialError::ErrorFrame { code: code.unwrap_or("no reason given").to_owned() },
            }),
            (kind, _) => {
                Err(DialError::no_stream(&format!("the stream began with {kind:?} instead of a connect message")))
            }
        }
    }

    /// Handles frames, one after another, until the link ends.
    async fn read(&self, link: &Link, stream: &mut FrameStream) {
        while !link.end.is_cancelled() {
            // A frame that is dropped half read belongs to a connection that has ended.
            let next = tokio::select! {
                biased;
                () = link.end.cancelled() => return,
                next = stream.next() => next,
            };
            let handled = match next {
                Ok(Ok(event)) => self.handle(link, &event).await,
                Ok(Err(too_large)) => {
                    self.peer.garbled(link.remote, too_large.to_string()).await;
                    ControlFlow::Continue(())
                }
                Err(reason) => ControlFlow::Break(reason),
            };
            if let ControlFlow::Break(reason) = handled {
                link.lose(reason);
            }
        }
    }

    async fn handle(&self, link: &Link, event: &Event) -> ControlFlow<String> {
        if !event.name.is_empty() && event.name != b"message" {
            return ControlFlow::Continue(());
        }
        let remote = link.remote;
        let garbled = |error: litemesh_proto::DecodeError| {
            warn!(remote = %remote.site.fmt_short(), %error, "a frame could not be read");
            self.peer.garbled(remote, error.to_string())
        };
        let envelope = match Envelope::parse(&event.data) {
            Ok(envelope) => envelope,
            Err(error) => {
                garbled(error).await;
                return ControlFlow::Continue(());
            }
        };
        let result = match envelope.kind() {
            "data" => match envelope.message() {
                Ok(message) => self.peer.receive(remote, message).await,
                Err(error) => {
                    garbled(error).await;
                    return ControlFlow::Continue(());
                }
            },
            "sync" => match envelope.sync_request() {
                Ok(request) => self.peer.sync(remote, request).await,
                Err(error) => Err(Refusal::Invalid(error.to_string())),
            },
            "error" => {
                let code = envelope.error().unwrap_or_default();
                warn!(remote = %remote.site.fmt_short(), code, "the server reports an error");
                Ok(())
            }
            _ => Ok(()),
        };
        match result {
            Ok(()) => ControlFlow::Continue(()),
            // Sent again it would be refused again; the peer moves no cursor over it (`known-failures.md` B19).
            Err(Refusal::Invalid(reason)) => {
                warn!(remote = %remote.site.fmt_short(), reason, "a message of the server was refused");
                ControlFlow::Continue(())
            }
            // Going on with the next message would leave a hole (A4); over a new connection it is asked for again.
            Err(refusal) => ControlFlow::Break(format!("a message could not be taken: {refusal}")),
        }
    }
}

/// The events of a response.
struct FrameStream {
    response: Response,
    decoder: Option<StreamDecoder>,
    parser: EventParser,
    /// Bytes that came and were not parsed yet.
    pending: Bytes,
    events: VecDeque<Result<Event, EventTooLarge>>,
    idle_timeout: Duration,
}

impl FrameStream {
    fn new(response: Response, event_bytes_max: usize, idle_timeout: Duration) -> Result<Self, String> {
        let coding = response.headers().get(CONTENT_ENCODING).map(|value| value.as_bytes().to_ascii_lowercase());
        let decoder = match coding.as_deref() {
            None | Some(b"" | b"identity") => None,
            Some(b"gzip") => Some(StreamDecoder::new()),
            Some(other) => return Err(format!("unknown encoding {}", String::from_utf8_lossy(other))),
        };
        Ok(Self {
            response,
            decoder,
            parser: EventParser::new(event_bytes_max),
            pending: Bytes::new(),
            events: VecDeque::new(),
            idle_timeout,
        })
    }

    /// The next event; an error where the stream has ended.
    async fn next(&mut self) -> Result<Result<Event, EventTooLarge>, String> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if self.pending.is_empty() {
                let chunk = tokio::time::timeout(self.idle_timeout, self.response.chunk()).await;
                let chunk = chunk.map_err(|_| format!("no sign of life for {} s", self.idle_timeout.as_secs()))?;
                self.pending = match chunk.map_err(|error| explain(&error))? {
                    Some(bytes) => bytes,
                    None => return Err("the server closed the stream".to_owned()),
                };
            }
            // Decoded in small steps, because a piece may expand a thousandfold.
            let step = self.pending.len().min(DECODE_STEP_BYTES);
            match &mut self.decoder {
                Some(decoder) => {
                    let decoded = decoder.write(&self.pending.split_to(step)).map_err(|error| error.to_string())?;
                    self.events.extend(self.parser.feed(&decoded));
                }
                None => {
                    let bytes = std::mem::take(&mut self.pending);
                    self.events.extend(self.parser.feed(&bytes));
                }
            }
        }
    }
}
