//! `litemesh serve`: a file as a hub over HTTP.

use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use litemesh::proto::Access;
use litemesh::{Database, Event, EventError, Limits, Peer};
use litemesh_http::{Counters, HttpServer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::args::ServeArgs;
use crate::commands::token;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{Output, bytes, counted, printable};
use crate::shutdown::Shutdown;
use crate::{database_file, event_line};

/// A hub that listens.
pub(crate) struct Hub {
    pub(crate) peer: Peer,
    /// Where it can be joined.
    pub(crate) url: String,
    transport: HttpServer,
    /// Dropped or used to end the server.
    shutdown: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Hub {
    /// Binds `listen` and serves `database` there under `path`.
    pub(crate) async fn start(
        file: &Path,
        database: Database,
        transport: HttpServer,
        listen: SocketAddr,
        path: &str,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let cannot_listen = |error: std::io::Error| {
            Failure::network(
                format!("cannot listen on {listen}: {error}"),
                "choose another address with --listen; port 0 takes a free one",
            )
        };
        let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let peer = Peer::builder(database)
            .limits(limits)
            .transport(transport.clone())
            .start()
            .await
            .map_err(|error| Failure::start(file, &error))?;
        let routes = if path == "/" { transport.routes() } else { Router::new().nest(path, transport.routes()) };
        let (shutdown, asked) = oneshot::channel::<()>();
        let server = tokio::spawn({
            let transport = transport.clone();
            async move {
                // Dropping the sender means the same as using it.
                let asked = async move { drop(asked.await) };
                transport.serve_router(routes, listener, asked).await
            }
        });
        let scheme = if transport.has_tls() { "https" } else { "http" };
        let url = format!("{scheme}://{address}{}", if path == "/" { "" } else { path });
        Ok(Self { peer, url, transport, shutdown, server })
    }

    /// Ends the server, then the peer. Waits for answers under way. Gives what the server has done.
    pub(crate) async fn stop(self) -> Result<Counters, Failure> {
        // An error means that the server has ended already.
        let _ = self.shutdown.send(());
        let served = self.server.await;
        self.peer.stop().await;
        match served {
            Ok(Ok(())) => Ok(self.transport.counters()),
            Ok(Err(error)) => Err(Failure::network(format!("the listener failed: {error}"), "start again")),
            Err(error) => Err(Failure::internal(error.to_string())),
        }
    }
}

pub(crate) async fn run(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let mut shutdown = Shutdown::listen()?;
    let database = database_file::open(&args.file)?;
    if database_file::replicated_tables(&args.file, &database.lock())?.is_empty() {
        warn_of_nothing_to_sync(&args.file);
    }
    // Of which large bodies leave a quarter to smaller ones.
    if args.max_bodies / 4 * 3 < args.max_body {
        let advice = "give --max-bodies a third more than --max-body at least, better many times as much";
        return Err(Failure::usage("--max-bodies has no room for one body of --max-body", advice));
    }
    let limits = Limits {
        message_bytes_max: args.max_body,
        connections_max: args.max_connections as usize,
        ..Limits::default()
    };
    let anybody = anybody(args);
    warn_of_openness(args, anybody.as_ref());
    let mut hub = Hub::start(&args.file, database, transport(args, anybody)?, args.listen, &args.path, limits).await?;
    let mut events = hub.peer.events();
    let mut output = Output::new();
    announce(args, &hub, &mut output)?;
    let mut said = None;
    let result = loop {
        // Losing a branch loses nothing: events stay in their stream, signals in theirs, and the server is a task.
        tokio::select! {
            () = shutdown.requested() => break Ok(()),
            _ = &mut hub.server => break Err(Failure::network("the listener failed", "start again")),
            event = events.recv() => {
                if let Ok(Event::Error { peer: None, message, .. }) = &event {
                    said = Some(message.clone());
                }
                match tell(args.json, event, &mut output) {
                Ok(true) => {}
                Ok(false) => break Err(ended(&args.file, said.take())),
                // A hub serves on when nobody reads its output any more.
                Err(Failure::BrokenPipe) => output.mute(),
                Err(failure) => break Err(failure),
            }
            }
        }
    };
    if result.is_err() && hub.server.is_finished() {
        hub.peer.stop().await;
        return result.map(|()| ExitCode::Ok);
    }
    let counters = hub.stop().await?;
    result?;
    if args.json {
        output.json(&stats(&counters))?;
    } else {
        output.line(format_args!("stopped; {}", summary(&counters)))?;
    }
    Ok(ExitCode::Ok)
}

/// What who shows no token may do.
///
/// The address that is listened on decides, not that of a client: a proxy in front makes every client one of this machine.
fn anybody(args: &ServeArgs) -> Option<Access> {
    match args.public {
        Some(rights) => Some(rights.access()),
        None => (args.tokens.is_none() && args.listen.ip().is_loopback()).then_some(Access::FULL),
    }
}

fn transport(args: &ServeArgs, anybody: Option<Access>) -> Result<HttpServer, Failure> {
    let mut builder = HttpServer::builder();
    if let Some(tokens) = &args.tokens {
        builder = builder.tokens(token::open(tokens)?).map_err(|error| token::failure(&error))?;
    }
    if let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) {
        builder = builder.tls(cert, key).map_err(|error| {
            Failure::database(error.to_string(), "--tls-cert and --tls-key take PEM files that belong together")
        })?;
    }
    if let Some(interval) = args.ping_interval {
        builder = builder.ping_interval(interval);
    }
    // Two sockets for each client, and as many for those that come and go.
    let sockets_max = 4 * args.max_connections as usize;
    builder = builder.sockets_max(sockets_max, args.max_sockets_per_address as usize).bodies_bytes_max(args.max_bodies);
    Ok(builder.anonymous(anybody).build())
}

/// Says on standard error who is let in, where that may surprise.
fn warn_of_openness(args: &ServeArgs, anybody: Option<&Access>) {
    let listen = args.listen;
    match anybody {
        Some(access) if args.public.is_some() => {
            let what = if access.may_write() { "READ AND WRITE all" } else { "READ all" };
            warn(&format!("--public: whoever reaches {listen} can {what} replicated tables, without a token"));
        }
        None if args.tokens.is_none() => warn(&format!(
            "{listen} is reached from other machines, so clients need a token, and there is none: make one with \
             `litemesh token new FILE NAME` and serve with --tokens FILE, or let everybody in with --public"
        )),
        _ => {}
    }
}

/// The counters as the last event.
fn stats(counters: &Counters) -> Value {
    json!({
        "event": "stats",
        "streams_total": counters.streams_total,
        "messages_in": counters.messages_in,
        "messages_out": counters.messages_out,
        "bytes_in": counters.bytes_in,
        "bytes_out": counters.bytes_out,
        "refused_malformed": counters.refused_malformed,
        "refused_too_large": counters.refused_too_large,
        "refused_busy": counters.refused_busy,
        "refused_unauthorized": counters.refused_unauthorized,
        "refused_unknown": counters.refused_unknown,
        "refused_streams": counters.refused_streams,
        "refused_sockets": counters.refused_sockets,
        "refused_by_peer": counters.refused_by_peer,
        "garbled": counters.garbled,
        "stalled": counters.stalled,
    })
}

/// The counters as a sentence; of what went wrong only what happened.
fn summary(counters: &Counters) -> String {
    let mut text = format!(
        "{}, {} in ({}), {} out ({})",
        counted(counters.streams_total, "connection"),
        counted(counters.messages_in, "message"),
        bytes(counters.bytes_in),
        counted(counters.messages_out, "message"),
        bytes(counters.bytes_out),
    );
    for (number, what) in [
        (counters.refused_malformed, "malformed request"),
        (counters.refused_too_large, "oversized request"),
        (counters.refused_busy, "message without room"),
        (counters.refused_unauthorized, "unauthorized request"),
        (counters.refused_unknown, "unconnected request"),
        (counters.refused_streams, "refused connection"),
        (counters.refused_sockets, "socket at a limit"),
        (counters.refused_by_peer, "refused message"),
        (counters.garbled, "unreadable message"),
        (counters.stalled, "stalled client"),
    ] {
        if number > 0 {
            text.push_str(", ");
            text.push_str(&counted(number, what));
        }
    }
    text
}

fn announce(args: &ServeArgs, hub: &Hub, output: &mut Output) -> Result<(), Failure> {
    if args.json {
        let site = hub.peer.id().to_string();
        let anonymous = anybody(args).map(|access| token::rights(&access));
        return output.json(&json!({ "event": "listening", "url": hub.url, "site_id": site, "anonymous": anonymous }));
    }
    output.line(format_args!("{} is a hub at {}", args.file.display(), hub.url))?;
    output.line("join it with a file that has the same tables:")?;
    output.line(format_args!("  litemesh init COPY --schema SQL_FILE && litemesh sync COPY {}", hub.url))?;
    if let Some(tokens) = &args.tokens {
        output.line(format_args!("clients show a token of {}", printable(&tokens.display().to_string())))?;
    }
    output.line("Ctrl-C stops it")
}

/// Why a peer ended that nobody stopped, in its own words.
pub(crate) fn ended(file: &Path, said: Option<String>) -> Failure {
    match said {
        Some(said) => Failure::database(format!("{}: {said}", file.display()), ""),
        None => Failure::internal("the peer ended by itself"),
    }
}

/// Prints one event; false at the end of events.
pub(crate) fn tell(as_json: bool, event: Result<Event, EventError>, output: &mut Output) -> Result<bool, Failure> {
    match event {
        Ok(event) if as_json => output.json(&event_line::json(&event))?,
        Ok(event) => {
            if let Some(sentence) = event_line::sentence(&event) {
                output.line(sentence)?;
            }
        }
        Err(error) => match event_line::lagged(error) {
            Some(line) if as_json => output.json(&line)?,
            Some(_) => output.line(error)?,
            None => return Ok(false),
        },
    }
    Ok(true)
}

/// Not an error: tables may be made replicated while the file is synced.
pub(crate) fn warn_of_nothing_to_sync(file: &Path) {
    let file = file.display();
    warn(&format!("{file} has no replicated table, so nothing will be synced: run `litemesh init {file}`"));
}

/// One line on standard error.
pub(crate) fn warn(what: &str) {
    use std::io::Write;
    // Where standard error is gone nobody can be told.
    let _ = writeln!(std::io::stderr(), "litemesh: warning: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_what_went_wrong_only_where_something_did() {
        let counters = HttpServer::new().counters();
        assert_eq!(summary(&counters), "0 connections, 0 messages in (0 B), 0 messages out (0 B)");
        let mut counters = counters;
        (counters.streams_total, counters.messages_in, counters.bytes_in) = (1, 1200, 2048);
        (counters.refused_by_peer, counters.stalled) = (3, 1);
        let expected =
            "1 connection, 1,200 messages in (2.0 KiB), 0 messages out (0 B), 3 refused messages, 1 stalled client";
        assert_eq!(summary(&counters), expected);
    }
}
