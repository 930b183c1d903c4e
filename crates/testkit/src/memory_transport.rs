//! A transport that carries messages by value between peers of one process: no bytes, no sockets, perfect order.
//!
//! What differs between transports is tested on theirs; this one is for what peers do whatever connects them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use litemesh_proto::{
    Access, BoxFuture, PeerCallbacks, PeerMessage, Remote, SiteId, SyncRequest, Transport, TransportError, Unverified,
};

/// What a link between two endpoints is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Both ends know each other as Litemesh peers.
    Litemesh,
    /// Both ends take each other for wire v1 peers.
    V1,
}

/// One peer's endpoint. Connect two with [`connect`].
#[derive(Clone, Default)]
pub struct MemoryTransport {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peer: Option<Arc<dyn PeerCallbacks>>,
    links: HashMap<u64, Far>,
}

/// The far end of a link.
#[derive(Clone)]
struct Far {
    end: Weak<Inner>,
    /// What the far end calls us.
    us: Remote,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn far(&self, remote: Remote) -> Result<(Arc<dyn PeerCallbacks>, Remote), TransportError> {
        let lost = || TransportError::NotConnected { remote: remote.site };
        let far = self.state().links.get(&remote.connection).cloned().ok_or_else(lost)?;
        let peer = far.end.upgrade().and_then(|end| end.state().peer.clone()).ok_or_else(lost)?;
        Ok((peer, far.us))
    }
}

/// Connects two started endpoints, and reports the connection to both peers.
///
/// # Errors
///
/// One of them is not started, or a peer refuses.
pub async fn connect(a: &MemoryTransport, b: &MemoryTransport, link: Link) -> Result<(), TransportError> {
    connect_with(a, b, link, Access::FULL).await
}

/// Connects two started endpoints as [`connect`] does, where `b` may do this much at `a`, and knows it.
///
/// # Errors
///
/// One of them is not started, or a peer refuses.
pub async fn connect_with(
    a: &MemoryTransport,
    b: &MemoryTransport,
    link: Link,
    access: Access,
) -> Result<(), TransportError> {
    let site = |end: &MemoryTransport| {
        let peer = end.inner.state().peer.clone();
        peer.ok_or(TransportError::Lost { reason: "endpoint not started".to_owned() })
    };
    let (peer_a, peer_b) = (site(a)?, site(b)?);
    let remote =
        |site: SiteId| Remote { site, connection: Remote::next_connection(), is_litemesh: link == Link::Litemesh };
    let (a_at_b, b_at_a) = (remote(peer_a.site()), remote(peer_b.site()));
    a.inner.state().links.insert(b_at_a.connection, Far { end: Arc::downgrade(&b.inner), us: a_at_b });
    b.inner.state().links.insert(a_at_b.connection, Far { end: Arc::downgrade(&a.inner), us: b_at_a });
    let refused = |refusal: litemesh_proto::Refusal| TransportError::Lost { reason: refusal.to_string() };
    let mirrored = access.mirrored();
    peer_a.connect(b_at_a, access).await.map_err(refused)?;
    peer_b.connect(a_at_b, mirrored).await.map_err(refused)
}

impl MemoryTransport {
    /// An endpoint that is not connected to anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Breaks every link of this endpoint, as a network that fails does: both sides are told, nothing is delivered any more.
    pub async fn disconnect_all(&self) {
        let links: Vec<(u64, Far)> = self.inner.state().links.drain().collect();
        for (connection, far) in links {
            let Some(end) = far.end.upgrade() else { continue };
            let (ours, theirs) = (self.inner.state().peer.clone(), end.state().peer.clone());
            let was_linked = end.state().links.remove(&far.us.connection).is_some();
            if let Some(ours) = ours {
                let site = theirs.as_ref().map(|peer| peer.site()).unwrap_or_default();
                let remote = Remote { site, connection, is_litemesh: far.us.is_litemesh };
                ours.disconnect(remote, "link broken".to_owned()).await;
            }
            if let (Some(theirs), true) = (theirs, was_linked) {
                theirs.disconnect(far.us, "link broken".to_owned()).await;
            }
        }
    }
}

impl Transport for MemoryTransport {
    fn name(&self) -> &str {
        "memory"
    }

    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            match self.inner.state().peer.replace(peer) {
                None => Ok(()),
                Some(_) => Err(TransportError::AlreadyStarted),
            }
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let (peer, us) = self.inner.far(remote)?;
            peer.sync(us, request).await.map_err(|refusal| TransportError::Lost { reason: refusal.to_string() })
        })
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let (peer, us) = self.inner.far(remote)?;
            // A refusal is the far peer's affair: the message arrived, which is all that a carrier knows.
            match peer.receive(us, Unverified::new(message)).await {
                Ok(()) | Err(litemesh_proto::Refusal::Invalid(_) | litemesh_proto::Refusal::Forbidden(_)) => Ok(()),
                Err(refusal) => Err(TransportError::Lost { reason: refusal.to_string() }),
            }
        })
    }

    fn close(&self, remote: Remote) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let far = self.inner.state().links.remove(&remote.connection);
            if let Some((far, end)) = far.and_then(|far| far.end.upgrade().map(|end| (far, end))) {
                let was_linked = end.state().links.remove(&far.us.connection).is_some();
                let peer = end.state().peer.clone();
                if let (Some(peer), true) = (peer, was_linked) {
                    peer.disconnect(far.us, "closed by the other side".to_owned()).await;
                }
            }
        })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.disconnect_all().await;
            self.inner.state().peer = None;
        })
    }
}
