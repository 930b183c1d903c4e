//! [`Venue`]: where the three meet: at a hub over HTTP, through channels in memory, or at a Nostr relay.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use litemesh::channel::Channel;
use litemesh::proto::{Access, Transport};
use litemesh::{Limits, Peer};
use litemesh_http::{HttpClient, HttpServer};
use litemesh_nostr::{Listener, NostrTransport, PairError};
use nostr_relay_builder::builder::RateLimit;
use nostr_relay_builder::{LocalRelay, RelayBuilder};

use super::cast::Member;
use crate::args::DemoTransport;
use crate::commands::pairings;
use crate::commands::serve::Hub;
use crate::failure::Failure;

/// Bytes that a stream in memory holds in each direction.
const STREAM_BYTES: usize = 64 * 1024;

pub(super) enum Venue {
    /// A server of this process, and the URL by which the others come.
    Hub { hub: Hub, url: String },
    /// The hub's peer, and the channel that takes the others' streams.
    Channel { hub: Peer, accepting: Channel },
    /// The hub's peer, and a relay of this process.
    Relay { hub: Peer, relay: Box<LocalRelay>, url: String },
}

impl Venue {
    /// Opens it, and lets the first of the three serve.
    pub(super) async fn open(kind: DemoTransport, hub: &Member, others: &[Member]) -> Result<Self, Failure> {
        match kind {
            DemoTransport::Http | DemoTransport::Ws => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let (database, limits) = (hub.database.clone(), Limits::default());
                let hub = Hub::start(&hub.file, database, HttpServer::new(), address, "/", limits).await?;
                let url = match kind {
                    DemoTransport::Ws => hub.url.replacen("http", "ws", 1),
                    _ => hub.url.clone(),
                };
                Ok(Self::Hub { hub, url })
            }
            DemoTransport::Channel => {
                let accepting = Channel::new();
                let hub = start(hub, accepting.clone()).await?;
                Ok(Self::Channel { hub, accepting })
            }
            DemoTransport::Nostr => {
                // The limits of a public relay would be those of the demo.
                let limit = RateLimit { max_reqs: 10_000, notes_per_minute: u32::MAX };
                let relay = LocalRelay::new(RelayBuilder::default().rate_limit(limit));
                let failed = |error: nostr_relay_builder::Error| {
                    Failure::network(format!("the relay of the demo cannot run: {error}"), "run it again")
                };
                relay.run().await.map_err(failed)?;
                let url = relay.url().await.to_string();
                for other in others {
                    pair(hub, other, &url).await?;
                }
                let store = pairings::open(&hub.file)?;
                let hub = start(hub, NostrTransport::new(store.into())).await?;
                Ok(Self::Relay { hub, relay: Box::new(relay), url })
            }
        }
    }

    /// The peer of the first of the three.
    pub(super) fn hub(&self) -> &Peer {
        match self {
            Self::Hub { hub, .. } => &hub.peer,
            Self::Channel { hub, .. } | Self::Relay { hub, .. } => hub,
        }
    }

    /// What the others come to, for people.
    pub(super) fn address(&self) -> &str {
        match self {
            Self::Hub { url, .. } | Self::Relay { url, .. } => url,
            Self::Channel { .. } => "a channel in memory",
        }
    }

    /// By which one of the others comes here.
    pub(super) fn way(&self, file: &Path) -> Result<Arc<dyn Transport>, Failure> {
        Ok(match self {
            Self::Hub { url, .. } => Arc::new(HttpClient::builder(url).websocket(url.starts_with("ws")).build()),
            Self::Channel { accepting, .. } => {
                let accepting = accepting.clone();
                Arc::new(Channel::dialling("channel", move || {
                    let accepting = accepting.clone();
                    async move {
                        let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
                        let (read, write) = tokio::io::split(theirs);
                        tokio::spawn(async move { accepting.accept(read, write, Access::FULL).await });
                        Ok(tokio::io::split(ours))
                    }
                }))
            }
            Self::Relay { .. } => Arc::new(NostrTransport::new(pairings::open(file)?.into())),
        })
    }

    /// Whether the hub notices when one of the others leaves.
    pub(super) fn notices_absence(&self) -> bool {
        !matches!(self, Self::Relay { .. })
    }

    pub(super) async fn close(self) -> Result<(), Failure> {
        match self {
            Self::Hub { hub, .. } => hub.stop().await.map(drop),
            Self::Channel { hub, .. } => {
                hub.stop().await;
                Ok(())
            }
            Self::Relay { hub, relay, .. } => {
                hub.stop().await;
                relay.shutdown();
                Ok(())
            }
        }
    }
}

async fn start(member: &Member, transport: impl Transport) -> Result<Peer, Failure> {
    let peer = Peer::builder(member.database.clone()).transport(transport).start().await;
    peer.map_err(|error| Failure::start(&member.file, &error))
}

/// Pairs two of the files, by a string that one shows and the other is given.
async fn pair(one: &Member, other: &Member, relay: &str) -> Result<(), Failure> {
    let (at_one, at_other) = (pairings::open(&one.file)?, pairings::open(&other.file)?);
    let paired = async {
        let listener = Listener::start(one.site, one.name, &[relay]).await?;
        let string = listener.connection_string().clone();
        let joining = litemesh_nostr::join(other.site, other.name, &string, &at_other);
        tokio::try_join!(listener.paired(&at_one), joining)
    };
    let paired: Result<_, PairError> = paired.await;
    paired.map(drop).map_err(|error| pairings::failure(&error))
}
