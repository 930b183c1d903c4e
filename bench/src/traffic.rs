//! Bytes that go over a line, counted where they pass: those that a socket or a pipe was given, without what TCP and IP put around
//! them. And a line that takes its time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Most bytes that are read of a line at once, and reads that are on a slow line at once: 16 MiB, as TCP would take over a long one.
const READ_BYTES_MAX: usize = 16 << 10;
const READS_MAX: usize = 1 << 10;

/// What went over all connections to one place.
#[derive(Clone, Default)]
pub struct Traffic {
    /// To it.
    up: Arc<AtomicU64>,
    /// From it.
    down: Arc<AtomicU64>,
}

/// A reading of [`Traffic`].
#[derive(Clone, Copy, Default)]
pub struct Bytes {
    pub up: u64,
    pub down: u64,
}

impl Traffic {
    pub fn read(&self) -> Bytes {
        Bytes { up: self.up.load(Relaxed), down: self.down.load(Relaxed) }
    }

    /// Counts what is read from `stream` as coming from there, and what is written to it as going there.
    pub fn over<S>(&self, stream: S) -> Counted<S> {
        Counted { stream, read: self.down.clone(), written: self.up.clone() }
    }

    /// Takes connections on a port of its own, and hands on what comes over them to `target` and back, each so much later.
    pub async fn forward(&self, target: String, delay: Duration) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, traffic) = (listener.local_addr()?, self.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, traffic) = (target.clone(), traffic.clone());
                tokio::spawn(async move {
                    let mut near = near;
                    let far = TcpStream::connect(target).await?;
                    near.set_nodelay(true)?;
                    far.set_nodelay(true)?;
                    let mut far = traffic.over(far);
                    if delay.is_zero() {
                        return tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop);
                    }
                    let (from_near, to_near) = near.split();
                    let (from_far, to_far) = tokio::io::split(far);
                    tokio::try_join!(late(from_near, to_far, delay), late(from_far, to_near, delay)).map(drop)
                });
            }
        });
        Ok(address)
    }
}

/// Hands on what comes, so much later, and the end, too.
async fn late(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) -> io::Result<()> {
    let (sender, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(READS_MAX);
    let taking = async move {
        loop {
            let mut read = Vec::with_capacity(READ_BYTES_MAX);
            let count = from.read_buf(&mut read).await?;
            if count == 0 || sender.send((Instant::now() + delay, read)).await.is_err() {
                return Ok(());
            }
        }
    };
    let giving = async move {
        while let Some((due, read)) = on_the_way.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&read).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(taking, giving).map(drop)
}

impl Bytes {
    pub fn since(self, before: Self) -> Self {
        Self { up: self.up - before.up, down: self.down - before.down }
    }

    /// In all, and for each of so many changes.
    pub fn for_changes(self, changes: usize) -> Value {
        let each = ((self.up + self.down) as f64 / changes as f64 * 100.0).round() / 100.0;
        json!({ "up": self.up, "down": self.down, "per_change": each })
    }
}

/// A stream whose bytes are counted.
pub struct Counted<S> {
    stream: S,
    read: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.read.fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.written.fetch_add(written as u64, Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
