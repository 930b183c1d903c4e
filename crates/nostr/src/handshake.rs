//! Pairing: two devices meet at a relay by a string that one shows and the other is given (`wire-protocol.md` 7.5).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use litemesh_proto::{SiteId, backoff_from};
use nostr::{Event, Filter, Keys, RelayUrl, SecretKey, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::pauses::Pauses;
use crate::relays::{Fate, Heard, RelaySight, Relays, Unpublished};
use crate::signer::Identity;
use crate::store::Pairing;
use crate::{
    Announcement, CONNECTION_STRING_VALIDITY, ConnectReply, ConnectRequest, ConnectionString, Envelope, ReadError,
    Signer, SignerError, Store, StoreError, filter,
};

/// How long a device that joins waits for the other one: it asks a dozen times meanwhile. A person sits before it.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How soon it asks again, at first, and how often later: relays keep nothing of this kind for who is not listening yet.
const ASK_AGAIN: Duration = Duration::from_millis(250);
const ASK_EVERY: Duration = Duration::from_secs(3);

/// How soon something is published again that no relay took.
const PUBLISH_AGAIN: Duration = Duration::from_millis(250);

const CONNECT: &str = "connect";

/// Why two devices were not paired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PairError {
    /// Nobody came while the string was valid.
    #[error("nobody joined within {} minutes: make a new connection string", CONNECTION_STRING_VALIDITY.as_secs() / 60)]
    Expired,
    /// A relay has passed on that we ask, and nobody answers.
    #[error("Connection timeout: no response from peer")]
    Timeout,
    /// The other side does not want it.
    #[error("the other side refused to be paired")]
    Rejected,
    /// Both are the same database, or one is a copy of the other.
    #[error(
        "the other database has the same site id: it is this one or a copy of it, which `litemesh fork` gives its own"
    )]
    SameSite,
    /// A relay's address, or the key in the string.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which thing.
        what: String,
        /// Why.
        reason: String,
    },
    /// No relay to meet at.
    #[error("no relay can be used: {reason}")]
    Relays {
        /// Why they cannot be reached, or what the last one said.
        reason: String,
    },
    /// A signer has no key for it.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The pairing cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Our key in the pairing that is being made.
struct Own {
    identity: Identity,
    /// To be kept with the pairing, where no signer keeps it.
    secret: Option<SecretKey>,
}

impl Own {
    /// A new one.
    fn new() -> Self {
        let keys = Keys::generate();
        Self { secret: Some(keys.secret_key().clone()), identity: keys.into() }
    }

    fn of(signer: Arc<dyn Signer>) -> Result<Self, SignerError> {
        Ok(Self { identity: Identity { key: signer.pairing_key()?, signer }, secret: None })
    }
}

/// A device that shows its connection string and waits.
///
/// ```no_run
/// # async fn example(store: litemesh_nostr::Store, site: litemesh_proto::SiteId) -> Result<(), Box<dyn std::error::Error>> {
/// let relays = ["wss://relay.example.org"];
/// let listener = litemesh_nostr::Listener::start(site, "laptop", &relays).await?;
/// println!("{}", listener.connection_string());
/// let pairing = listener.paired(&store).await?;
/// println!("paired with {}", pairing.device);
/// # Ok(()) }
/// ```
pub struct Listener {
    site: SiteId,
    device: String,
    own: Own,
    string: ConnectionString,
    urls: Vec<RelayUrl>,
    until: Instant,
    /// How long relays may take to take the answer.
    patience: Duration,
    relays: Relays,
    heard: mpsc::Receiver<Heard>,
}

impl Listener {
    /// Makes a connection string, and listens at these relays. `device` is what the other side will call this one.
    ///
    /// # Errors
    ///
    /// No relay, or one whose address cannot be used.
    pub async fn start(site: SiteId, device: &str, relays: &[impl AsRef<str>]) -> Result<Self, PairError> {
        Self::start_as(Own::new(), site, device, relays).await
    }

    /// The same with a key that a signer has and keeps.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start), and that of the signer.
    pub async fn start_with(
        signer: Arc<dyn Signer>,
        site: SiteId,
        device: &str,
        relays: &[impl AsRef<str>],
    ) -> Result<Self, PairError> {
        Self::start_as(Own::of(signer)?, site, device, relays).await
    }

    async fn start_as(own: Own, site: SiteId, device: &str, relays: &[impl AsRef<str>]) -> Result<Self, PairError> {
        let urls = parse_relays(relays)?;
        let string = ConnectionString::generate(&own.identity.key, urls.iter().map(RelayUrl::as_str));
        let string = string.map_err(|error| invalid("the connection string", &error))?;
        let until = Instant::now() + CONNECTION_STRING_VALIDITY;
        let (relays, heard) = connect(&own, &urls, filter::connect_requests(string.nonce())).await?;
        let (device, patience) = (device.to_owned(), JOIN_TIMEOUT);
        Ok(Self { site, device, own, string, urls, until, patience, relays, heard })
    }

    /// What the other device is to be given. It is a secret: who has it within ten minutes is paired.
    pub fn connection_string(&self) -> &ConnectionString {
        &self.string
    }

    /// Whether its relays can be reached: nobody can join before one is.
    pub fn relays(&self) -> RelaySight {
        self.relays.sight()
    }

    /// Waits for the other device, and keeps the pairing.
    ///
    /// # Errors
    ///
    /// Nobody came, or the pairing cannot be kept, or relays refuse the answer. Where none says what became of it, the pairing is kept: the
    /// other side may have it.
    pub async fn paired(mut self, store: &Store) -> Result<Pairing, PairError> {
        let paired = self.wait(store).await;
        self.relays.close().await;
        paired
    }

    /// For tests: how long relays may take to take the answer.
    #[doc(hidden)]
    pub fn answer_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same, and the string is valid for so long from now on.
    #[cfg(test)]
    fn expiring(mut self, after: Duration) -> Self {
        self.until = Instant::now() + after;
        self
    }

    async fn wait(&mut self, store: &Store) -> Result<Pairing, PairError> {
        // Who comes in time is answered, whenever that is done.
        let asked = tokio::time::timeout_at(self.until, self.asked()).await;
        let (envelope, request) = asked.map_err(|_| PairError::Expired)?;
        let reply =
            ConnectReply { peer_id: self.site, device_info: self.device.clone(), litemesh: Some(Announcement::OURS) };
        let reply = envelope.connect_reply(&reply, Timestamp::now());
        let reply = reply.map_err(|error| invalid("the reply", &error))?;
        if request.peer_id == self.site {
            // The other side sees the same. One of the original would not: it waits in vain.
            if request.litemesh.is_some() {
                let _ = self.answer(&reply).await;
            }
            return Err(PairError::SameSite);
        }
        let pairing = Pairing {
            site: self.site,
            local_key: self.own.identity.key,
            peer: request.peer_id,
            peer_key: envelope.remote(),
            device: request.device_info,
            relays: self.urls.clone(),
            paired_at: Timestamp::now(),
            is_litemesh: request.litemesh.is_some_and(Announcement::speaks_ours),
        };
        store.pair(&pairing, self.own.secret.as_ref())?;
        match self.answer(&reply).await {
            Ok(()) => Ok(pairing),
            // The other side may have it, and then is paired: better one pairing too many here, which `unpair` ends, than one too few.
            Err(Unpublished { fate: Fate::Unknown, reason }) => {
                warn!(reason, "no relay says that it has passed on the answer to a device that joins");
                Ok(pairing)
            }
            Err(Unpublished { reason, .. }) => {
                store.unpair(pairing.site, pairing.peer)?;
                Err(PairError::Relays { reason })
            }
        }
    }

    /// Waits for somebody who has the secret.
    async fn asked(&mut self) -> (Envelope, ConnectRequest) {
        loop {
            let event = hear(&mut self.heard).await;
            // Who listens here has no key of the other side yet: it comes with the request.
            let Ok(envelope) = Envelope::with(self.own.identity.clone(), event.pubkey) else { continue };
            match envelope.read_connect_request(&event) {
                Ok(request) if request.has_secret(self.string.secret()) => return (envelope, request),
                Ok(_) => {}
                Err(error) => debug!(%error, "a request to be paired cannot be read"),
            }
        }
    }

    /// Until a relay takes it, or nobody waits for it any more.
    async fn answer(&self, reply: &Event) -> Result<(), Unpublished> {
        let mut last = Unpublished { reason: "none takes the answer".to_owned(), fate: Fate::Unsent };
        let until = Instant::now() + self.patience;
        while Instant::now() < until {
            let publishing = self.relays.publish(reply);
            match tokio::time::timeout_at(until, publishing).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Unpublished { reason, fate })) => last = Unpublished { reason, fate: last.fate.max(fate) },
                // A relay that was given it has not answered yet.
                Err(_) => {
                    let fate = if self.relays.is_connected() { Fate::Unknown } else { last.fate };
                    return Err(Unpublished { fate, ..last });
                }
            }
            tokio::time::sleep(PUBLISH_AGAIN).await;
        }
        Err(last)
    }
}

/// Pairs this device with the one that shows the connection string, and keeps the pairing. `device` is what the other side will call
/// this one.
///
/// # Errors
///
/// The string is of no use, nobody answers, or the pairing cannot be kept.
pub async fn join(site: SiteId, device: &str, string: &ConnectionString, store: &Store) -> Result<Pairing, PairError> {
    join_as(Own::new(), site, device, string, store, JOIN_TIMEOUT).await
}

/// The same with a key that a signer has and keeps.
///
/// # Errors
///
/// Those of [`join()`], and that of the signer.
pub async fn join_with(
    signer: Arc<dyn Signer>,
    site: SiteId,
    device: &str,
    string: &ConnectionString,
    store: &Store,
) -> Result<Pairing, PairError> {
    join_as(Own::of(signer)?, site, device, string, store, JOIN_TIMEOUT).await
}

async fn join_as(
    own: Own,
    site: SiteId,
    device: &str,
    string: &ConnectionString,
    store: &Store,
    patience: Duration,
) -> Result<Pairing, PairError> {
    let listener = string.listener().map_err(|error| invalid("the key in the connection string", &error))?;
    let urls = parse_relays(string.relays())?;
    let envelope =
        Envelope::with(own.identity.clone(), listener).map_err(|error| invalid("the key in the string", &error))?;
    let (relays, mut heard) = connect(&own, &urls, filter::connect_replies(listener)).await?;
    let unheard = Mutex::new(None);
    let asking = ask(&relays, &envelope, site, device, string, &unheard);
    let answered = async {
        loop {
            let event = hear(&mut heard).await;
            match envelope.read_connect_reply(&event) {
                Ok(reply) if reply.peer_id == site => return Err(PairError::SameSite),
                Ok(reply) => return Ok(reply),
                Err(ReadError::Rejected) => return Err(PairError::Rejected),
                Err(error) => debug!(%error, "a reply cannot be read"),
            }
        }
    };
    let answered = async {
        tokio::select! {
            answered = answered => answered,
            never = asking => Err(never),
        }
    };
    let reply = tokio::time::timeout(patience, answered).await.unwrap_or_else(|_| {
        let unheard = unheard.lock().unwrap_or_else(PoisonError::into_inner).take();
        let reason = relays.sight().unreached().or(unheard);
        Err(reason.map_or(PairError::Timeout, |reason| PairError::Relays { reason }))
    });
    relays.close().await;
    let reply = reply?;
    let pairing = Pairing {
        site,
        local_key: own.identity.key,
        peer: reply.peer_id,
        peer_key: listener,
        device: reply.device_info,
        relays: urls,
        paired_at: Timestamp::now(),
        is_litemesh: reply.litemesh.is_some_and(Announcement::speaks_ours),
    };
    store.pair(&pairing, own.secret.as_ref())?;
    Ok(pairing)
}

/// Asks again and again. Returns only where that is of no use. `unheard` is why no relay took what was asked last.
async fn ask(
    relays: &Relays,
    envelope: &Envelope,
    site: SiteId,
    device: &str,
    string: &ConnectionString,
    unheard: &Mutex<Option<String>>,
) -> PairError {
    let request = ConnectRequest {
        secret: string.secret().to_owned(),
        peer_id: site,
        device_info: device.to_owned(),
        litemesh: Some(Announcement::OURS),
    };
    let mut attempts = 0;
    loop {
        // Another event each time: relays pass one on only once.
        match envelope.connect_request(&request, string.nonce(), Timestamp::now()) {
            Ok(event) => publish(relays, &event, unheard).await,
            Err(error) => return invalid("the request", &error),
        }
        tokio::time::sleep(backoff_from(ASK_AGAIN, attempts, 0.0).min(ASK_EVERY)).await;
        attempts = attempts.saturating_add(1);
    }
}

async fn publish(relays: &Relays, event: &Event, unheard: &Mutex<Option<String>>) {
    let set_unheard = |reason| *unheard.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    while let Err(unpublished) = relays.publish(event).await {
        debug!(reason = unpublished.reason, "pairing");
        set_unheard(Some(unpublished.reason));
        tokio::time::sleep(PUBLISH_AGAIN).await;
    }
    set_unheard(None);
}

/// The next event.
async fn hear(heard: &mut mpsc::Receiver<Heard>) -> Event {
    loop {
        match heard.recv().await {
            Some(Heard::Event(_, event)) => return *event,
            Some(Heard::Connected) => {}
            None => std::future::pending().await,
        }
    }
}

async fn connect(own: &Own, urls: &[RelayUrl], filter: Filter) -> Result<(Relays, mpsc::Receiver<Heard>), PairError> {
    Relays::connect(own.identity.clone(), urls, (CONNECT, filter), Pauses::USUAL)
        .await
        .map_err(|reason| PairError::Relays { reason })
}

fn parse_relays(relays: &[impl AsRef<str>]) -> Result<Vec<RelayUrl>, PairError> {
    if relays.is_empty() {
        return Err(PairError::Relays { reason: "none is given".to_owned() });
    }
    // It is kept as text. Not every address that can be read is written so that it can be read again.
    let readable = |url: RelayUrl| RelayUrl::parse(url.as_str()).map(|_| url);
    let parse = |relay: &str| {
        RelayUrl::parse(relay).and_then(readable).map_err(|error| invalid(&format!("the relay {relay}"), &error))
    };
    relays.iter().map(|relay| parse(relay.as_ref())).collect()
}

fn invalid(what: &str, reason: &impl ToString) -> PairError {
    PairError::Invalid { what: what.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
