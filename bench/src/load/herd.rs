//! Light peers, many of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use litemesh_http::HttpClient;
use tokio::sync::watch;

use super::light_peer::{Held, LightPeer, Schedule};
use super::seen::Seen;
use crate::Error;

pub struct Herd {
    pub peers: Vec<LightPeer>,
    pub seen: Arc<Seen>,
    writes: Vec<watch::Sender<Option<Schedule>>>,
    /// How long a peer keeps a connection open over which it posts nothing.
    pub socket_idle_timeout: Duration,
    /// Peers wait for anything from a half to one and a half of their delay, at random, before they dial again.
    pub has_jitter: bool,
    /// Streams and POSTs in place of WebSockets.
    pub streams: bool,
}

impl Herd {
    pub fn new() -> Self {
        // An error means that it was done before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            peers: Vec::new(),
            seen: Arc::default(),
            writes: Vec::new(),
            socket_idle_timeout: Duration::from_secs(15),
            has_jitter: true,
            streams: false,
        }
    }

    /// Adds peers that hold nothing, or what the first one holds.
    pub async fn join(&mut self, url: &str, count: usize) -> Result<(), Error> {
        self.join_paced(url, count, f64::INFINITY).await
    }

    /// As [`join`](Self::join), so many a second at most.
    pub async fn join_paced(&mut self, url: &str, count: usize, pace: f64) -> Result<(), Error> {
        let started = Instant::now();
        let held = self.peers.first().map(LightPeer::held).unwrap_or_default();
        for n in 0..count {
            tokio::time::sleep_until((started + Duration::from_secs_f64(n as f64 / pace)).into()).await;
            self.add(url, held.clone()).await?;
            // A few at a time: this is not what is measured.
            while self.peers.len() > self.in_sync() + 32 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        self.wait_for_sync(Duration::from_secs(120)).await.map(drop)
    }

    async fn add(&mut self, url: &str, held: Held) -> Result<(), Error> {
        // Its own, as another process would have: connections for the stream and for what it posts.
        let http = reqwest::Client::builder()
            .tcp_nodelay(true)
            .no_proxy()
            .tls_certs_only([])
            .pool_idle_timeout(self.socket_idle_timeout)
            .build()?;
        let transport = HttpClient::builder(url).http(http).jitter(self.has_jitter).websocket(!self.streams).build();
        let (writes, schedule) = watch::channel(None);
        let peer = LightPeer::start(self.peers.len(), transport, self.seen.clone(), held, schedule).await?;
        self.peers.push(peer);
        self.writes.push(writes);
        Ok(())
    }

    pub fn in_sync(&self) -> usize {
        self.peers.iter().filter(|peer| peer.is_in_sync()).count()
    }

    /// Waits until all are connected and have what the hub had then. Says how long that took.
    pub async fn wait_for_sync(&self, patience: Duration) -> Result<Duration, Error> {
        let started = Instant::now();
        while self.in_sync() < self.peers.len() {
            if started.elapsed() > patience {
                return Err(format!("only {} of {} peers are in sync", self.in_sync(), self.peers.len()).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(started.elapsed())
    }

    /// Lets `writers` of them write `rate` transactions a second in all, evenly spread, from now on for so long.
    pub fn write(&self, writers: usize, rate: f64, duration: Duration) {
        let start = tokio::time::Instant::now() + Duration::from_millis(100);
        for (n, writes) in self.writes.iter().take(writers).enumerate() {
            let first = start + Duration::from_secs_f64(n as f64 / rate);
            let every = Duration::from_secs_f64(writers as f64 / rate);
            writes.send_replace(Some(Schedule { first, every, until: start + duration }));
        }
    }

    pub async fn stop(self) {
        for peer in self.peers {
            peer.stop().await;
        }
    }
}
