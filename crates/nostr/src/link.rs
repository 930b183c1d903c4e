//! One pairing while the transport runs: its relays, and one connection after another over them.
//!
//! To the peer a pairing is a connection that stands whether or not the remote is there: what it sends is kept by relays. It ends when
//! a stream turns out to be broken, or the peer ends it, and another begins.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{self, Arc, PoisonError};
use std::time::Duration;

use litemesh_proto::limits::RECONNECT_DELAY_MIN;
use litemesh_proto::{Access, Ack, PeerCallbacks, PeerMessage, Remote, Served, SyncRequest, backoff_from};
use nostr::{Event, Timestamp};
use tokio::sync::{Mutex, Notify, SetOnce, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::inbox::Inbox;
use crate::messages::Writer;
use crate::outbox::Outbox;
use crate::parts::PART_BYTES_MAX;
use crate::pauses::Pauses;
use crate::relays::{Heard, Relays};
use crate::store::{Pairing, Told};
use crate::transport::{NAME, Shared};
use crate::under_way::{WINDOW_MAX, WINDOW_MAX_V1, Window};
use crate::{Envelope, Store, StoreError, StreamId, filter};

/// Messages and requests of the peer that wait. It has one of each under way.
const WAITING_MAX: usize = 2;

/// Events of a stream that wait to be looked at. Others are fetched later.
const EVENTS_MAX: usize = 64;

/// Names of subscriptions.
pub(crate) const CHANGES: &str = "changes";
pub(crate) const CURSORS: &str = "cursors";

/// How long after a connection has ended the next one counts as the first: it had not ended for a reason that comes again.
const LONG_CONNECTION: Duration = Duration::from_secs(60);

/// The peer's side of a connection.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) remote: Remote,
    pub(crate) requests: mpsc::Sender<SyncRequest>,
    pub(crate) messages: mpsc::Sender<PeerMessage>,
    pub(crate) ack: Arc<watch::Sender<Option<Ack>>>,
    /// How far another connection has brought the remote.
    pub(crate) elsewhere: Arc<watch::Sender<Option<Served>>>,
    /// Nobody is to be told of its end.
    pub(crate) closed: CancellationToken,
    /// It has ended.
    pub(crate) lost: CancellationToken,
}

/// What both directions of a pairing need.
pub(crate) struct Ends {
    pub(crate) pairing: Pairing,
    pub(crate) envelope: Envelope,
    pub(crate) shared: Arc<Shared>,
    pub(crate) peer: Arc<dyn PeerCallbacks>,
    pub(crate) relays: Relays,
    /// Requests of the remote from before are of no interest.
    pub(crate) heard_until: Timestamp,
    /// One callback at a time.
    pub(crate) turn: Mutex<()>,
    /// The next request begins a new stream, whatever is stored: the last one is broken.
    pub(crate) is_broken: AtomicBool,
    /// The streams that are asked for.
    pub(crate) asked: sync::Mutex<Asked>,
    /// Our peer has asked. Until then nothing is changed that is stored of the stream that goes to the remote: it may be all that shows
    /// that our file has lost something.
    pub(crate) has_asked: SetOnce<()>,
    /// How many events relays took at once last.
    window: sync::Mutex<Window>,
}

/// The streams of a pairing that are asked for, as far as this process knows.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// By us.
    pub(crate) by_us: Option<StreamId>,
    /// The last one that this process began, rather than gone on with what an earlier one had asked for.
    pub(crate) begun: Option<StreamId>,
    /// By the remote.
    pub(crate) by_remote: Option<StreamId>,
}

/// Why a connection ends.
#[derive(Debug)]
pub(crate) enum Ending {
    /// By our own peer: it is told nothing more.
    Closed,
    /// The other direction has ended.
    Lost,
    /// The stream is broken, or something failed here; as a sentence.
    Broken(String),
    /// The remote asks for another stream, and what our peer still sends belongs to the last one.
    Anew,
    /// The remote is not what it was taken for: an original or a Litemesh peer.
    Changed {
        is_litemesh: bool,
        /// When it said so. What it said before is of no interest, though no stream remembers it.
        heard_until: Timestamp,
    },
}

/// Serves one pairing until it is ended or the transport stops.
pub(crate) async fn run(shared: Arc<Shared>, peer: Arc<dyn PeerCallbacks>, pairing: Pairing, end: CancellationToken) {
    let mut attempts = 0;
    let mut is_litemesh = pairing.is_litemesh;
    let mut heard_until = Timestamp::from_secs(0);
    loop {
        let pairing = Pairing { is_litemesh, ..pairing.clone() };
        match serve(&shared, &peer, pairing, heard_until, &end, &mut attempts).await {
            Ok(Some(changed)) => (is_litemesh, heard_until) = changed,
            Ok(None) => return,
            Err(reason) => {
                shared.report(reason);
                if !pause(shared.pauses, &end, &mut attempts).await {
                    return;
                }
            }
        }
    }
}

/// Dials the relays, and makes connections until the pairing ends or the remote turns out to be of the other kind.
async fn serve(
    shared: &Arc<Shared>,
    peer: &Arc<dyn PeerCallbacks>,
    pairing: Pairing,
    heard_until: Timestamp,
    end: &CancellationToken,
    attempts: &mut u32,
) -> Result<Option<(bool, Timestamp)>, String> {
    let identity = shared.identity(pairing.local_key)?;
    let envelope = Envelope::with(identity.clone(), pairing.peer_key).map_err(|error| error.to_string())?;
    let cursors = (CURSORS, filter::cursors(pairing.peer_key).limit(1));
    let (relays, mut heard) = Relays::connect(identity, &pairing.relays, cursors, shared.pauses).await?;
    let remote = pairing.peer;
    shared.sights().insert(remote, relays.sight());
    let window_max = if pairing.is_litemesh { WINDOW_MAX } else { WINDOW_MAX_V1 };
    let ends = Ends {
        pairing,
        envelope,
        shared: shared.clone(),
        peer: peer.clone(),
        relays,
        heard_until,
        turn: Mutex::new(()),
        is_broken: AtomicBool::new(false),
        asked: sync::Mutex::default(),
        has_asked: SetOnce::new(),
        window: sync::Mutex::new(Window::new(window_max)),
    };
    let changed = loop {
        let began = tokio::time::Instant::now();
        match connection(shared, &ends, &mut heard, end).await {
            Some(Ending::Changed { is_litemesh, heard_until }) => {
                let changed = shared.store.set_litemesh(&ends.pairing, is_litemesh);
                if let Err(error) = changed {
                    shared.report(error.to_string());
                }
                break Some((is_litemesh, heard_until));
            }
            Some(ending) => {
                debug!(remote = %ends.pairing.peer.fmt_short(), ?ending, "the connection over relays ended");
                if began.elapsed() > LONG_CONNECTION {
                    *attempts = 0;
                }
                if !pause(shared.pauses, end, attempts).await {
                    break None;
                }
            }
            None => break None,
        }
    };
    shared.sights().remove(&remote);
    ends.relays.close().await;
    Ok(changed)
}

/// Waits before the next connection. Says whether there is to be one.
async fn pause(pauses: Pauses, end: &CancellationToken, attempts: &mut u32) -> bool {
    let delay = backoff_from(pauses.of(RECONNECT_DELAY_MIN), *attempts, fastrand::f64());
    *attempts = attempts.saturating_add(1);
    tokio::time::timeout(delay, end.cancelled()).await.is_err()
}

/// One connection. `None`: the pairing has ended, or the transport stops.
async fn connection(
    shared: &Shared,
    ends: &Ends,
    heard: &mut mpsc::Receiver<Heard>,
    end: &CancellationToken,
) -> Option<Ending> {
    let site = ends.pairing.peer;
    let remote = Remote { site, connection: Remote::next_connection(), is_litemesh: ends.pairing.is_litemesh };
    let (requests, requests_taken) = mpsc::channel(WAITING_MAX);
    let (messages, messages_taken) = mpsc::channel(WAITING_MAX);
    let (ack, acks) = watch::channel(None);
    let (elsewhere, elsewhere_heard) = watch::channel(None);
    let handle = Handle {
        remote,
        requests,
        messages,
        ack: Arc::new(ack),
        elsewhere: Arc::new(elsewhere),
        closed: CancellationToken::new(),
        lost: CancellationToken::new(),
    };
    // What our peer asks next it asks knowing of this, unless its file was restored.
    let told = match ends.stored(Store::outbound).await {
        Ok(outbound) => outbound.map(Told::by),
        Err(ending) => return Some(ending),
    };
    // Before the peer hears of the connection, since it sends its request from within the call.
    shared.handles().insert(remote.connection, handle.clone());
    if let Err(refusal) = ends.peer.connect(remote, Access::FULL).await {
        shared.handles().remove(&remote.connection);
        shared.report(refusal.to_string());
        return Some(Ending::Broken(refusal.to_string()));
    }
    info!(remote = %site.fmt_short(), transport = NAME, "connected");
    let (events, events_taken) = mpsc::channel(EVENTS_MAX);
    let (cursors, cursors_taken) = watch::channel(None);
    let wake = [Notify::new(), Notify::new()];
    let inbox = Inbox::new(ends, &handle, told, requests_taken, events_taken, acks, &wake[0]);
    let outbox = Outbox::new(ends, &handle, messages_taken, cursors_taken, elsewhere_heard, &wake[1]);
    let watch = async {
        tokio::select! {
            () = end.cancelled() => {}
            () = handle.closed.cancelled() => {}
            () = handle.lost.cancelled() => {}
            () = sort(ends, heard, &events, &cursors, &wake) => {}
        }
        handle.lost.cancel();
    };
    // Each ends the others, and none is dropped within a callback.
    let (inbox, outbox, ()) = tokio::join!(until_end(inbox.run(), &handle), until_end(outbox.run(), &handle), watch);
    let ending = first(inbox, outbox);
    shared.handles().remove(&remote.connection);
    if let Ending::Broken(reason) = &ending {
        shared.report(reason.clone());
    }
    // Not where the peer itself has closed it, or stops us.
    if !handle.closed.is_cancelled() && !shared.stop.is_cancelled() {
        let reason = if end.is_cancelled() { "no longer paired".to_owned() } else { describe(&ending) };
        ends.peer.disconnect(remote, reason).await;
    }
    (!end.is_cancelled()).then_some(ending)
}

async fn until_end(work: impl Future<Output = Ending>, handle: &Handle) -> Ending {
    let ending = work.await;
    handle.lost.cancel();
    ending
}

/// Which of the two endings was the cause.
fn first(inbox: Ending, outbox: Ending) -> Ending {
    match (inbox, outbox) {
        (changed @ Ending::Changed { .. }, _) | (_, changed @ Ending::Changed { .. }) => changed,
        (Ending::Lost, other) => other,
        (ending, _) => ending,
    }
}

fn describe(ending: &Ending) -> String {
    match ending {
        Ending::Closed => "closed by this side".to_owned(),
        Ending::Lost => "the connection ended".to_owned(),
        Ending::Broken(reason) => reason.clone(),
        Ending::Anew => "the remote begins anew".to_owned(),
        Ending::Changed { is_litemesh: true, .. } => "the remote is a Litemesh peer now".to_owned(),
        Ending::Changed { is_litemesh: false, .. } => "the remote is an original peer now".to_owned(),
    }
}

/// Gives each direction what it is to hear.
async fn sort(
    ends: &Ends,
    heard: &mut mpsc::Receiver<Heard>,
    events: &mpsc::Sender<Event>,
    cursors: &watch::Sender<Option<Event>>,
    wake: &[Notify; 2],
) {
    let missed = ends.relays.missed();
    let wake_all = || wake.iter().for_each(Notify::notify_one);
    loop {
        let heard = tokio::select! {
            heard = heard.recv() => heard,
            () = missed.notified() => {
                wake_all();
                continue;
            }
        };
        match heard {
            Some(Heard::Event(name, event)) if name == CHANGES => {
                // What there is no room for is fetched when it is its turn.
                if events.try_send(*event).is_err() {
                    wake_all();
                }
            }
            Some(Heard::Event(name, event)) if name == CURSORS => {
                let is_news = |latest: &Option<Event>| {
                    latest.as_ref().is_none_or(|latest| latest.id != event.id && latest.created_at <= event.created_at)
                };
                // Here, so that nobody else can take the place of what the remote asks for.
                let is_authentic = || event.pubkey == ends.pairing.peer_key && event.verify().is_ok();
                cursors.send_if_modified(|latest| {
                    let is_taken = is_news(latest) && is_authentic();
                    if is_taken {
                        *latest = Some((*event).clone());
                    }
                    is_taken
                });
            }
            Some(Heard::Event(..)) => {}
            Some(Heard::Connected) => wake_all(),
            None => std::future::pending().await,
        }
    }
}

impl Ends {
    /// Works on the file of pairings, outside of the runtime's threads.
    pub(crate) async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store, &Pairing) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Ending> {
        let (store, pairing) = (self.shared.store.clone(), self.pairing.clone());
        match tokio::task::spawn_blocking(move || work(&store, &pairing)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(Ending::Broken(error.to_string())),
            Err(error) => Err(Ending::Broken(format!("internal error: {error}"))),
        }
    }

    /// Makes the events of this pairing.
    pub(crate) fn writer(&self) -> Writer<'_> {
        Writer {
            envelope: &self.envelope,
            site: self.peer.site(),
            lifetime: self.shared.lifetime,
            part_bytes_max: PART_BYTES_MAX,
        }
    }

    pub(crate) fn asked(&self) -> sync::MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn window(&self) -> sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn break_stream(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
    }
}
