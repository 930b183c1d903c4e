//! [`NostrTransport`]: a connection for each pairing.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use litemesh_proto::{
    BoxFuture, PeerCallbacks, PeerMessage, Remote, Served, SiteId, SyncRequest, Transport, TransportError,
};
use nostr::PublicKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::link::{self, Handle};
use crate::pauses::Pauses;
use crate::signer::Identity;
use crate::store::Pairing;
use crate::{CHANGES_LIFETIME, RelaySight, Signer, Store, StoreError};

/// Stands in logs and events.
pub(crate) const NAME: &str = "nostr";

/// How often the file of pairings is looked at: another process may pair or unpair. What this one does is noticed at once.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a missing event may be missing while later ones are there.
const GAP_PATIENCE: Duration = Duration::from_secs(30);

/// About how many bytes of JSON one message to an original peer may take: what it cuts its own messages at.
const MESSAGE_BYTES_MAX_V1: usize = crate::BATCH_SIZE_MAX;

/// Syncs with everyone who is paired, through relays. A cheap handle: clones are the same transport.
///
/// Remotes need not be there at the same time: relays keep what one says until the other reads it (docs/nostr.md).
#[derive(Clone)]
pub struct NostrTransport {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    signer: Option<Arc<dyn Signer>>,
    /// How long relays are asked to keep what we publish.
    pub(crate) lifetime: Duration,
    pub(crate) pauses: Pauses,
    /// How long a missing event may be missing while later ones are there.
    pub(crate) gap_patience: Duration,
    phase: watch::Sender<Phase>,
    /// Keeps other transports away from the pairings while this one runs.
    claim: Mutex<Option<File>>,
    handles: Mutex<HashMap<u64, Handle>>,
    /// The relays of each paired device.
    sights: Mutex<BTreeMap<SiteId, RelaySight>>,
    last_error: Mutex<Option<String>>,
    tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    Stopped,
}

impl NostrTransport {
    /// A transport for the pairings in this store, also those that are made or ended while it runs, with default settings.
    pub fn new(store: Arc<Store>) -> Self {
        Self::builder(store).build()
    }

    /// A transport for the pairings in this store.
    pub fn builder(store: Arc<Store>) -> NostrTransportBuilder {
        let (pauses, gap_patience) = (Pauses::USUAL, GAP_PATIENCE);
        NostrTransportBuilder { store, signer: None, lifetime: CHANGES_LIFETIME, pauses, gap_patience }
    }

    /// Why something failed last, such as a stream that broke or a file that cannot be read.
    pub fn last_error(&self) -> Option<String> {
        self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The paired devices of which no relay can be reached now, and why. What is written meanwhile waits here.
    pub fn unreached(&self) -> BTreeMap<SiteId, String> {
        let sights = self.shared.sights();
        sights.iter().filter_map(|(peer, sight)| Some((*peer, sight.unreached()?))).collect()
    }
}

/// Settings of a [`NostrTransport`].
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use litemesh_nostr::{NostrTransport, Store};
///
/// let store = Arc::new(Store::open_in_memory()?);
/// let transport = NostrTransport::builder(store).lifetime(Duration::from_secs(24 * 60 * 60)).build();
/// assert_eq!(transport.last_error(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct NostrTransportBuilder {
    store: Arc<Store>,
    signer: Option<Arc<dyn Signer>>,
    lifetime: Duration,
    pauses: Pauses,
    gap_patience: Duration,
}

impl NostrTransportBuilder {
    /// Signs for the pairings whose keys are not in the store ([`Listener::start_with`](crate::Listener::start_with),
    /// [`join_with`](crate::join_with)).
    pub fn signer(mut self, signer: Arc<dyn Signer>) -> Self {
        self.signer = Some(signer);
        self
    }

    /// How long relays are asked to keep what we send ([`CHANGES_LIFETIME`] by default). Who is away for longer is sent what it lacks
    /// when it is back; who is there sooner need not wait for us.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// For tests: relays are asked, told and dialled again so many times sooner, more often than they like.
    #[doc(hidden)]
    pub fn pauses_divided_by(mut self, divisor: u32) -> Self {
        self.pauses = Pauses::divided_by(divisor);
        self
    }

    /// For tests: how long a missing event may be missing while later ones are there.
    #[doc(hidden)]
    pub fn gap_patience(mut self, patience: Duration) -> Self {
        self.gap_patience = patience;
        self
    }

    /// The transport. It does nothing before a peer starts it.
    pub fn build(self) -> NostrTransport {
        let Self { store, signer, lifetime, pauses, gap_patience } = self;
        let shared = Shared {
            store,
            signer,
            lifetime,
            pauses,
            gap_patience,
            phase: watch::Sender::new(Phase::Waiting),
            claim: Mutex::default(),
            handles: Mutex::default(),
            sights: Mutex::default(),
            last_error: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        NostrTransport { shared: Arc::new(shared) }
    }
}

impl Shared {
    pub(crate) fn handles(&self) -> MutexGuard<'_, HashMap<u64, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sights(&self) -> MutexGuard<'_, BTreeMap<SiteId, RelaySight>> {
        self.sights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self, reason: String) {
        warn!(reason, "nostr");
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Our key in a pairing.
    pub(crate) fn identity(&self, key: PublicKey) -> Result<Identity, String> {
        match (self.store.keys(key), &self.signer) {
            (Ok(Some(keys)), _) => Ok(keys.into()),
            (Ok(None), Some(signer)) => Ok(Identity { key, signer: signer.clone() }),
            (Ok(None), None) => Err("the key of a pairing is not in the file of pairings".to_owned()),
            (Err(error), _) => Err(error.to_string()),
        }
    }

    fn claimed(&self) -> MutexGuard<'_, Option<File>> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self) -> Result<(), TransportError> {
        let unusable = |error: StoreError| TransportError::Endpoint {
            endpoint: "the pairings".to_owned(),
            reason: error.to_string(),
        };
        *self.claimed() = self.store.claim().map_err(unusable)?;
        Ok(())
    }

    fn handle(&self, remote: Remote) -> Result<Handle, TransportError> {
        let handle = self.handles().get(&remote.connection).cloned();
        handle.ok_or(TransportError::NotConnected { remote: remote.site })
    }
}

/// Begins and ends links as pairings come and go.
async fn supervise(shared: Arc<Shared>, peer: Arc<dyn PeerCallbacks>) {
    let mut links: Vec<(Pairing, CancellationToken)> = Vec::new();
    let mut changes = shared.store.changes();
    while !shared.stop.is_cancelled() {
        let reading = {
            let (shared, site) = (shared.clone(), peer.site());
            tokio::task::spawn_blocking(move || shared.store.pairings(site))
        };
        match reading.await {
            Ok(Ok(pairings)) => follow(&shared, &peer, &mut links, pairings),
            Ok(Err(error)) => shared.report(error.to_string()),
            Err(error) => shared.report(error.to_string()),
        }
        // Whichever comes first. Losing the others loses nothing.
        tokio::select! {
            () = shared.stop.cancelled() => {}
            Ok(()) = changes.changed() => {}
            () = tokio::time::sleep(shared.pauses.of(LOOK_EVERY)) => {}
        }
    }
    for (_, end) in links {
        end.cancel();
    }
}

/// Ends the links whose pairing is gone, and begins one for each that is new.
fn follow(
    shared: &Arc<Shared>,
    peer: &Arc<dyn PeerCallbacks>,
    links: &mut Vec<(Pairing, CancellationToken)>,
    pairings: Vec<Pairing>,
) {
    let is_same = |one: &Pairing, other: &Pairing| (one.local_key, one.peer_key) == (other.local_key, other.peer_key);
    links.retain(|(known, end)| {
        let is_there = pairings.iter().any(|pairing| is_same(pairing, known));
        if !is_there {
            end.cancel();
        }
        is_there
    });
    for pairing in pairings {
        // The newest of a remote comes first.
        if links.iter().any(|(known, _)| is_same(known, &pairing) || known.peer == pairing.peer) {
            continue;
        }
        let end = shared.stop.child_token();
        shared.tasks.spawn(link::run(shared.clone(), peer.clone(), pairing.clone(), end.clone()));
        links.push((pairing, end));
    }
}

impl Transport for NostrTransport {
    fn name(&self) -> &str {
        NAME
    }

    fn start(&self, peer: Arc<dyn PeerCallbacks>) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let mut started = Err(TransportError::AlreadyStarted);
            self.shared.phase.send_if_modified(|phase| {
                if *phase != Phase::Waiting {
                    return false;
                }
                // In here, so that a stop comes before all of this or after it.
                started = self.shared.claim();
                if started.is_ok() {
                    *phase = Phase::Running;
                    self.shared.tasks.spawn(supervise(self.shared.clone(), peer.clone()));
                }
                started.is_ok()
            });
            started
        })
    }

    fn sync(&self, remote: Remote, request: SyncRequest) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let handle = self.shared.handle(remote)?;
            let lost = || TransportError::Lost { reason: "the connection ended".to_owned() };
            handle.requests.send(request).await.map_err(|_| lost())
        })
    }

    fn send(&self, remote: Remote, message: PeerMessage) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let handle = self.shared.handle(remote)?;
            if let PeerMessage::Ack(ack) = message {
                // The last one says everything.
                handle.ack.send_replace(Some(ack));
                return Ok(());
            }
            let lost = || TransportError::Lost { reason: "the connection ended".to_owned() };
            handle.messages.send(message).await.map_err(|_| lost())
        })
    }

    fn close(&self, remote: Remote) -> BoxFuture<'_, ()> {
        if let Ok(handle) = self.shared.handle(remote) {
            handle.closed.cancel();
        }
        Box::pin(async {})
    }

    /// Must not be called from inside of a callback: it waits for all callbacks to resolve.
    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.phase.send_replace(Phase::Stopped);
            self.shared.stop.cancel();
            self.shared.tasks.close();
            self.shared.tasks.wait().await;
            self.shared.claimed().take();
        })
    }

    fn keeps_messages(&self) -> bool {
        true
    }

    fn served_elsewhere(&self, remote: Remote, served: Served) {
        if let Ok(handle) = self.shared.handle(remote) {
            // The last one says everything.
            handle.elsewhere.send_replace(Some(served));
        }
    }

    fn message_bytes_max(&self, remote: Remote) -> usize {
        if remote.is_litemesh { litemesh_proto::limits::BATCH_BYTES_MAX } else { MESSAGE_BYTES_MAX_V1 }
    }
}
