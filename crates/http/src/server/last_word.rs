//! Why a socket is closed, said in HTTP to who has not asked anything that could be answered: its head does not come, it is not let in, or
//! there are too many.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::answer;
use crate::FAREWELL_TIMEOUT;

/// What HTTP/2 begins with; who says so much is not told anything in HTTP/1.1.
const HTTP2_PREFACE: &[u8] = b"PRI ";

/// A whole answer, after which the socket is closed.
pub(super) fn last_word(status: StatusCode, text: &str) -> Vec<u8> {
    let body = answer::error_body(text);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\
         Retry-After: 1\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

/// Says it on a socket of which nothing was read, as far as there is room at once: nothing is kept for it.
pub(super) fn say_at_once(stream: TcpStream, status: StatusCode, text: &str) {
    use std::io::Write;
    let Ok(mut socket) = stream.into_std() else { return };
    // A few hundred bytes in an empty buffer. Who has gone hears nothing.
    let _ = socket.write(&last_word(status, text)).and_then(|_| socket.shutdown(std::net::Shutdown::Write));
}

/// A socket that is lent to HTTP, and taken back when that has ended.
pub(super) struct Lent<S>(Arc<Mutex<Socket<S>>>);

struct Socket<S> {
    stream: S,
    /// The first bytes that came, enough to tell HTTP/2.
    first: Vec<u8>,
    /// Whether something came since the last answer: a request has begun.
    has_begun: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Lent<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Socket { stream, first: Vec::new(), has_begun: false })))
    }

    /// Another handle, for who takes it back.
    pub(super) fn handle(&self) -> Self {
        Self(self.0.clone())
    }

    /// Says why it is closed, where a request of HTTP/1.1 has begun and nothing of its answer was said. Nobody else may hold it any more.
    pub(super) async fn say(self, status: StatusCode, text: &str) {
        let Some(socket) = Arc::into_inner(self.0) else { return };
        let Socket { mut stream, first, has_begun } = socket.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !has_begun || first.starts_with(HTTP2_PREFACE) {
            return;
        }
        let word = last_word(status, text);
        let saying = async {
            stream.write_all(&word).await?;
            stream.shutdown().await
        };
        // Who does not take it, or has gone, hears nothing.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, saying).await;
    }

    fn with<T>(&self, body: impl FnOnce(&mut Socket<S>) -> T) -> T {
        body(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Lent<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| {
            let before = buffer.filled().len();
            let read = Pin::new(&mut socket.stream).poll_read(context, buffer);
            let came = &buffer.filled()[before..];
            if !came.is_empty() {
                socket.has_begun = true;
                let missing = HTTP2_PREFACE.len() - socket.first.len();
                socket.first.extend_from_slice(&came[..came.len().min(missing)]);
            }
            read
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lent<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|socket| {
            socket.has_begun = false;
            Pin::new(&mut socket.stream).poll_write(context, bytes)
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|socket| {
            socket.has_begun = false;
            Pin::new(&mut socket.stream).poll_write_vectored(context, bytes)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.with(|socket| socket.stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| Pin::new(&mut socket.stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| Pin::new(&mut socket.stream).poll_shutdown(context))
    }
}
