//! [`Way`]: how a peer comes to the hub.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use clap::{Args, ValueEnum};
use litemesh::channel::Channel;
use litemesh::proto::Transport;
use litemesh_http::HttpClient;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::Error;
use crate::traffic::{Bytes, Traffic};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Carrier {
    /// Streams of frames and POSTs.
    Http,
    /// Server-sent events, each with a frame in base64, and POSTs: what is left where nothing else gets through.
    Sse,
    /// A WebSocket.
    Ws,
    /// A channel over the pipes of a process, as with `litemesh sync FILE ssh://…` and `litemesh stdio`, without ssh.
    Channel,
}

/// Which way is measured, and what of it.
#[derive(Args, Clone, Copy)]
pub struct Options {
    /// `ws` where nothing else is said; with `--v1` `http`.
    #[arg(long, value_enum)]
    transport: Option<Carrier>,
    /// The same as `--transport http`.
    #[arg(long, conflicts_with = "transport")]
    streams: bool,
    /// Counts the bytes on the way, in place of times and memory.
    #[arg(long)]
    pub bytes: bool,
}

impl Options {
    pub const fn new(carrier: Carrier) -> Self {
        Self { transport: Some(carrier), streams: false, bytes: false }
    }

    pub fn carrier(&self, v1: bool) -> Carrier {
        self.transport.unwrap_or(if self.streams || v1 { Carrier::Http } else { Carrier::Ws })
    }
}

impl Carrier {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Sse => "sse",
            Self::Ws => "ws",
            Self::Channel => "channel",
        }
    }
}

pub struct Way {
    pub transport: Arc<dyn Transport>,
    /// Where it has to be seen whether a WebSocket came about.
    websocket: Option<HttpClient>,
    traffic: Traffic,
}

impl Way {
    /// `far`: the URL of a hub, or for a channel a file, which a process of its own serves then. What goes over HTTP is counted by a
    /// stop on the way, only where `counts` says so.
    pub async fn open(carrier: Carrier, far: &str, v1: bool, counts: bool) -> Result<Self, Error> {
        let traffic = Traffic::default();
        if carrier == Carrier::Channel {
            if v1 {
                return Err("channels do not speak wire v1".into());
            }
            let (file, pipes) = (PathBuf::from(far), traffic.clone());
            let channel = Channel::dialling("pipes", move || {
                let started = start(&file).map(|(read, write)| (pipes.over(read), pipes.over(write)));
                async move { started }
            });
            return Ok(Self { transport: Arc::new(channel), websocket: None, traffic });
        }
        let mut url = far.to_owned();
        if counts {
            let address = far.strip_prefix("http://").ok_or("no URL")?;
            url = format!("http://{}", traffic.forward(address.to_owned(), Duration::ZERO).await?);
        }
        let is_websocket = carrier == Carrier::Ws;
        let is_framed = carrier != Carrier::Sse;
        let client = HttpClient::builder(&url).announce(!v1).frames(is_framed).websocket(is_websocket).build();
        let websocket = is_websocket.then(|| client.clone());
        Ok(Self { transport: Arc::new(client), websocket, traffic })
    }

    /// Fails where something else stands than what was asked for.
    pub fn check(&self) -> Result<(), Error> {
        match &self.websocket {
            Some(client) if !client.is_websocket() => Err("no WebSocket came about".into()),
            _ => Ok(()),
        }
    }

    /// Nothing over HTTP, unless it is counted.
    pub fn bytes(&self) -> Bytes {
        self.traffic.read()
    }
}

/// `stdio` of this program on a file.
fn start(file: &Path) -> std::io::Result<(ProgramOutput, ChildStdin)> {
    let mut command = Command::new(std::env::current_exe()?);
    // It ends with its pipes.
    let mut child = command.arg("stdio").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    match (child.stdout.take(), child.stdin.take()) {
        (Some(output), Some(input)) => Ok((ProgramOutput { output, _program: child }, input)),
        _ => Err(std::io::Error::other("a process without input and output")),
    }
}

/// What a program writes.
struct ProgramOutput {
    output: ChildStdout,
    _program: Child,
}

impl AsyncRead for ProgramOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}
