//! HTTP by hand: what goes over the socket, byte by byte.

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;

use flate2::read::{GzDecoder, MultiGzDecoder};
use litemesh_proto::codec::v2::{self, Deframer, Frame};
use litemesh_proto::{Limits, SiteId};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::soon;

/// The head of a request or of a response.
#[derive(Debug, Clone)]
pub struct Head {
    /// The first line.
    pub line: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Self { line, headers }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

/// A socket and what was read from it too early.
pub struct Wire {
    pub socket: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, buffer: Vec::new() }
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        soon(self.socket.write_all(bytes)).await.unwrap();
    }

    /// Writes to a socket that may be closed already.
    pub async fn write_if_open(&mut self, bytes: &[u8]) {
        let _ = soon(self.socket.write_all(bytes)).await;
    }

    /// Reads more; false at the end.
    async fn fill(&mut self) -> bool {
        soon(self.socket.read_buf(&mut self.buffer)).await.unwrap_or(0) > 0
    }

    async fn line(&mut self) -> Vec<u8> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.drain(..end + 2).collect::<Vec<_>>();
                return line[..end].to_vec();
            }
            assert!(self.fill().await, "cut off in a line: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    async fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            assert!(self.fill().await, "cut off in a body");
        }
        self.buffer.drain(..bytes).collect()
    }

    pub async fn head(&mut self) -> Head {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Head::parse(std::str::from_utf8(&head[..end]).unwrap());
            }
            assert!(self.fill().await, "cut off in a head: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// The next chunk of a chunked body; empty at its end, and `None` where the connection ended before.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        if self.buffer.is_empty() && !self.fill().await {
            return None;
        }
        let size = self.line().await;
        let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap(), 16).unwrap();
        let chunk = self.exactly(size).await;
        assert_eq!(self.line().await, b"");
        Some(chunk)
    }

    /// A body of known length or in chunks.
    pub async fn body(&mut self, head: &Head) -> Vec<u8> {
        if let Some(length) = head.header("content-length") {
            return self.exactly(length.parse().unwrap()).await;
        }
        let mut body = Vec::new();
        if head.header("transfer-encoding") == Some("chunked") {
            loop {
                match self.chunk().await.expect("a whole body") {
                    chunk if chunk.is_empty() => break,
                    chunk => body.extend(chunk),
                }
            }
        }
        body
    }

    pub async fn answer(&mut self) -> (Head, Vec<u8>) {
        let head = self.head().await;
        let body = self.body(&head).await;
        (head, body)
    }

    /// Whether the other side has closed, once everything was read.
    pub async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill().await
    }
}

/// The text of a request; `headers` are whole lines without their ends.
pub fn request_text(method: &str, url: &str, headers: &[&str], length: Option<usize>) -> String {
    let mut text = format!("{method} {url} HTTP/1.1\r\nHost: localhost\r\n");
    for header in headers {
        text += &format!("{header}\r\n");
    }
    if let Some(length) = length {
        text += &format!("Content-Length: {length}\r\n");
    }
    text + "\r\n"
}

pub const JSON: &str = "Content-Type: application/json";

/// One request over a connection of its own.
pub async fn exchange(
    address: SocketAddr,
    method: &str,
    url: &str,
    headers: &[&str],
    body: Option<&[u8]>,
) -> (Head, Vec<u8>) {
    let mut wire = Wire::connect(address).await;
    let headers = [headers, &["Connection: close"]].concat();
    wire.write(request_text(method, url, &headers, body.map(<[u8]>::len)).as_bytes()).await;
    if let Some(body) = body {
        wire.write(body).await;
    }
    let head = wire.head().await;
    let body = if method == "HEAD" { Vec::new() } else { wire.body(&head).await };
    (head, body)
}

/// Posts JSON; the status and the answer.
pub async fn post(address: SocketAddr, url: &str, body: &[u8]) -> (u16, String) {
    let (head, body) = exchange(address, "POST", url, &[JSON], Some(body)).await;
    (head.status(), String::from_utf8(body).unwrap())
}

/// An open event stream of a client.
pub struct EventStream {
    pub wire: Wire,
    pub head: Head,
    is_gzip: bool,
    /// The body so far, as it came.
    received: Vec<u8>,
    /// Bytes of the decoded body that were given out.
    taken: usize,
}

impl EventStream {
    pub async fn open(address: SocketAddr, site: SiteId) -> Self {
        Self::open_with(address, &format!("/stream?peerId={site}"), &[]).await
    }

    pub async fn open_with(address: SocketAddr, url: &str, headers: &[&str]) -> Self {
        let mut wire = Wire::connect(address).await;
        wire.write(request_text("GET", url, headers, None).as_bytes()).await;
        let head = wire.head().await;
        let is_gzip = head.header("content-encoding") == Some("gzip");
        Self { wire, head, is_gzip, received: Vec::new(), taken: 0 }
    }

    fn decoded(&self) -> Vec<u8> {
        if !self.is_gzip {
            return self.received.clone();
        }
        let mut decoded = Vec::new();
        // The stream has no end yet, so reading ends with an error; what came before it counts.
        let _ = MultiGzDecoder::new(&self.received[..]).read_to_end(&mut decoded);
        decoded
    }

    /// The next frame as text, without `data: ` and the empty line; `None` at the end of the stream.
    pub async fn frame_text(&mut self) -> Option<String> {
        loop {
            let decoded = self.decoded();
            let rest = &decoded[self.taken..];
            if let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
                self.taken += end + 2;
                let text = std::str::from_utf8(&rest[..end]).unwrap();
                return Some(text.strip_prefix("data: ").unwrap_or_else(|| panic!("no frame: {text:?}")).to_owned());
            }
            match self.wire.chunk().await {
                Some(chunk) if !chunk.is_empty() => self.received.extend(chunk),
                _ => return None,
            }
        }
    }

    pub async fn frame(&mut self) -> Option<Value> {
        self.frame_text().await.map(|text| serde_json::from_str(&text).unwrap())
    }

    /// The next frame, which must be of this type.
    pub async fn expect(&mut self, kind: &str) -> Value {
        let frame = self.frame().await.expect("the stream goes on");
        assert_eq!(frame["type"], kind, "{frame}");
        frame
    }

    /// Everything of the body so far, read until it has this many bytes.
    pub async fn body(&mut self, bytes: usize) -> String {
        while self.received.len() < bytes {
            match self.wire.chunk().await {
                Some(chunk) if !chunk.is_empty() => self.received.extend(chunk),
                _ => break,
            }
        }
        String::from_utf8(self.received.clone()).unwrap()
    }
}

pub const FRAMES: &str = "Content-Type: application/vnd.litemesh.frames";
pub const V2: &str = "Litemesh-Version: 2";

/// An open stream of frames, whatever the chunks are.
pub struct FrameStream {
    pub stream: EventStream,
    deframer: Deframer,
    rest: Vec<u8>,
}

impl FrameStream {
    pub async fn open(address: SocketAddr, site: SiteId, headers: &[&str]) -> Self {
        let accept = "Accept: application/vnd.litemesh.frames, text/event-stream";
        let headers = [&[V2, accept], headers].concat();
        let stream = EventStream::open_with(address, &format!("/stream?peerId={site}"), &headers).await;
        Self { stream, deframer: Deframer::new(&Limits::default()), rest: Vec::new() }
    }

    pub async fn frame(&mut self) -> Frame {
        loop {
            let mut rest = &self.rest[..];
            let frame = self.deframer.feed(&mut rest).unwrap();
            self.rest = rest.to_vec();
            if let Some(frame) = frame {
                return v2::decode(&frame, &Limits::default()).unwrap();
            }
            self.rest.extend(self.stream.wire.chunk().await.expect("the stream goes on"));
        }
    }
}

/// A server that a test plays itself, one request after another.
pub struct RawServer {
    listener: TcpListener,
}

/// A request that waits for its answer.
pub struct Asked {
    pub head: Head,
    pub body: Vec<u8>,
    pub wire: Wire,
}

impl RawServer {
    pub async fn bind() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn url(&self) -> String {
        format!("http://{}/api", self.listener.local_addr().unwrap())
    }

    /// The next request. Each comes over a connection of its own, since every answer closes its connection.
    pub async fn accept(&self) -> Asked {
        let (socket, _) = soon(self.listener.accept()).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut wire = Wire { socket, buffer: Vec::new() };
        let head = wire.head().await;
        let mut body = wire.body(&head).await;
        if head.header("content-encoding") == Some("gzip") {
            let mut decoded = Vec::new();
            GzDecoder::new(&body[..]).read_to_end(&mut decoded).unwrap();
            body = decoded;
        }
        Asked { head, body, wire }
    }

    /// The next request, which must begin like this.
    pub async fn expect(&self, line: &str) -> Asked {
        let asked = self.accept().await;
        assert!(asked.head.line.starts_with(line), "{} instead of {line}", asked.head.line);
        asked
    }

    /// Takes a client through its first steps: its stream, our introduction, its first sync request, which is null where it
    /// is no JSON.
    pub async fn welcome(&self, introduction: &str) -> (Asked, Value) {
        let mut stream = self.expect("GET /api/stream?peerId=").await;
        stream.begin_stream(&[]).await;
        stream.frame(introduction).await;
        let sync = self.expect("POST /api/sync").await;
        let is_json = sync.head.header("content-type") == Some("application/json");
        let request = if is_json { serde_json::from_slice(&sync.body).unwrap() } else { Value::Null };
        sync.succeed().await;
        (stream, request)
    }
}

pub const CONNECT: &str = r#"{"type":"connect","peerId":"5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"}"#;
pub const LITEMESH_CONNECT: &str =
    r#"{"type":"connect","peerId":"5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e","litemesh":{"version":2}}"#;

impl Asked {
    pub async fn respond(mut self, status: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        self.wire.write((head + body).as_bytes()).await;
    }

    pub async fn succeed(self) {
        self.respond("200 OK", "{\"success\":true}").await;
    }

    pub async fn begin_stream(&mut self, headers: &[&str]) {
        let mut head =
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n".to_owned();
        for header in headers {
            head += &format!("{header}\r\n");
        }
        self.wire.write((head + "\r\n").as_bytes()).await;
    }

    pub async fn chunk(&mut self, bytes: &[u8]) {
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.wire.write(&chunk).await;
    }

    pub async fn frame(&mut self, json: &str) {
        self.chunk(format!("data: {json}\n\n").as_bytes()).await;
    }
}
