//! How many sockets may be open, in all and from one network, and which of them give way.
//!
//! A socket begins as a *stranger*'s, and is known from the first request of it that was let in. Strangers are few and have little
//! time, so that who has no token can neither hold many sockets nor keep those out who have one.
//!
//! A Litemesh client posts over a socket of its own, which then waits for the next message. Each costs 20 KiB, as much as the
//! client's stream, so only those that were used last are kept; a client whose socket was closed opens another one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Sockets that are open at once. A client that posts has two, so that is twice the usual limit of streams, and some.
pub(super) const SOCKETS_MAX: usize = 4096;

/// Sockets of one network: an office behind one address, with two for each client.
pub(super) const SOCKETS_PER_NETWORK_MAX: usize = 512;

/// Sockets of strangers. Each costs a few KiB, with TLS some tens: together a few tens of MiB.
pub(super) const STRANGERS_MAX: usize = 1024;

/// Sockets of strangers from one network: an eighth of them, so that one network alone keeps nobody out. Beyond them its own oldest gives way.
const STRANGERS_PER_NETWORK_MAX: usize = 128;

/// What a stranger has in any case before it gives way to the next: time for TLS and a request over a slow line.
const STRANGER_GRACE: Duration = Duration::from_secs(2);

/// After this a stranger is closed: the time that a head may take (`HEAD_TIMEOUT`), since who uses all of it has not asked anything.
pub(super) const STRANGER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sockets of Litemesh clients that wait for the next message. Clients that post all the time are fewer.
pub(super) const IDLE_MAX: usize = 256;

/// How many sockets may be open.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketLimits {
    pub(super) sockets_max: usize,
    pub(super) per_network_max: usize,
    pub(super) strangers_max: usize,
    pub(super) stranger_timeout: Duration,
    pub(super) idle_max: usize,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self {
            sockets_max: SOCKETS_MAX,
            per_network_max: SOCKETS_PER_NETWORK_MAX,
            strangers_max: STRANGERS_MAX,
            stranger_timeout: STRANGER_TIMEOUT,
            idle_max: IDLE_MAX,
        }
    }
}

/// Why a socket was closed before anything was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SocketRefusal {
    #[error("{0} sockets are open, which is the limit")]
    All(usize),
    #[error("{0} sockets of this network are open, which is its limit")]
    Network(usize),
}

/// The open sockets of one server.
pub(super) struct Sockets {
    limits: SocketLimits,
    state: Mutex<State>,
    /// A stranger became known, or a socket was closed.
    changed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    open: usize,
    networks: HashMap<IpAddr, Network>,
    /// In the order in which they came.
    strangers: BTreeMap<u64, Stranger>,
    /// Those that may be closed between two requests, in the order in which they fell idle.
    idle: BTreeMap<u64, CancellationToken>,
}

#[derive(Default)]
struct Network {
    open: usize,
    strangers: VecDeque<u64>,
}

struct Stranger {
    since: Instant,
    end: CancellationToken,
}

/// One open socket; dropped, it is closed.
pub(super) struct Socket {
    number: u64,
    network: Option<IpAddr>,
    sockets: Arc<Sockets>,
    /// Cancelled when it must give way.
    pub(super) end: CancellationToken,
    /// Cancelled when it is known.
    pub(super) known: CancellationToken,
    /// Cancelled when it is to be closed after the requests that are under way, if any.
    pub(super) spare: CancellationToken,
    activity: Mutex<Activity>,
}

#[derive(Default)]
struct Activity {
    /// Requests whose answers are not complete.
    requests: usize,
    /// It has carried a request of somebody who would not try again.
    is_kept: bool,
    /// Its number among the idle ones.
    idle: Option<u64>,
}

/// A request that is under way on a socket, until its answer is complete.
pub(super) struct UnderWay {
    socket: Arc<Socket>,
}

impl Sockets {
    pub(super) fn new(limits: SocketLimits) -> Self {
        Self { limits, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is a place for a stranger; where there is none, the oldest gives way once it had its time.
    pub(super) async fn wait_for_room(&self) {
        loop {
            let changed = self.changed.notified();
            let wait = {
                let state = self.state();
                match state.strangers.first_key_value() {
                    Some((_, oldest)) if state.strangers.len() >= self.limits.strangers_max => {
                        let wait = STRANGER_GRACE.saturating_sub(oldest.since.elapsed());
                        if wait.is_zero() {
                            oldest.end.cancel();
                        }
                        wait
                    }
                    _ => return,
                }
            };
            // Losing a branch loses nothing: both only say that it is time to look again.
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
            }
        }
    }

    /// Takes a socket in, as a stranger's.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Socket, SocketRefusal> {
        let network = network(address);
        let mut state = self.state();
        if state.open >= self.limits.sockets_max {
            return Err(SocketRefusal::All(state.open));
        }
        let number = state.next;
        if let Some(network) = network {
            let of_network = state.networks.entry(network).or_default();
            if of_network.open >= self.limits.per_network_max {
                return Err(SocketRefusal::Network(of_network.open));
            }
            of_network.open += 1;
            of_network.strangers.push_back(number);
            if of_network.strangers.len() > STRANGERS_PER_NETWORK_MAX
                && let Some(oldest) = of_network.strangers.pop_front()
                && let Some(stranger) = state.strangers.get(&oldest)
            {
                stranger.end.cancel();
            }
        }
        state.next += 1;
        state.open += 1;
        let end = CancellationToken::new();
        state.strangers.insert(number, Stranger { since: Instant::now(), end: end.clone() });
        Ok(Socket {
            number,
            network,
            sockets: self.clone(),
            end,
            known: CancellationToken::new(),
            spare: CancellationToken::new(),
            activity: Mutex::default(),
        })
    }
}

impl Socket {
    /// A request of it was let in.
    pub(super) fn become_known(&self) {
        if self.known.is_cancelled() {
            return;
        }
        self.known.cancel();
        self.forget_stranger(&mut self.sockets.state());
        self.sockets.changed.notify_one();
    }

    /// Resolves when it is to be closed: it gives way, or stayed a stranger for too long.
    pub(super) async fn closing(&self) {
        // Losing a branch loses nothing: tokens stay cancelled.
        tokio::select! {
            () = self.end.cancelled() => {}
            () = self.known.cancelled() => self.end.cancelled().await,
            () = tokio::time::sleep(self.sockets.limits.stranger_timeout) => {}
        }
    }

    /// A request begins. Where all of them may be tried again by who made them, the socket may be closed between two.
    pub(super) fn begin(self: &Arc<Self>, is_tried_again: bool) -> UnderWay {
        let mut activity = self.activity();
        activity.requests += 1;
        activity.is_kept |= !is_tried_again;
        if let Some(number) = activity.idle.take() {
            self.sockets.state().idle.remove(&number);
        }
        UnderWay { socket: self.clone() }
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_stranger(&self, state: &mut State) {
        state.strangers.remove(&self.number);
        if let Some(of_network) = self.network.and_then(|network| state.networks.get_mut(&network)) {
            of_network.strangers.retain(|number| *number != self.number);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut activity = self.socket.activity();
        activity.requests -= 1;
        // Strangers have limits of their own, and push out nobody who is known.
        if activity.requests > 0 || activity.is_kept || !self.socket.known.is_cancelled() {
            return;
        }
        let mut state = self.socket.sockets.state();
        let number = state.next;
        state.next += 1;
        state.idle.insert(number, self.socket.spare.clone());
        activity.idle = Some(number);
        if state.idle.len() > self.socket.sockets.limits.idle_max
            && let Some((_, spare)) = state.idle.pop_first()
        {
            spare.cancel();
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let idle = self.activity().idle;
        let mut state = self.sockets.state();
        if let Some(number) = idle {
            state.idle.remove(&number);
        }
        self.forget_stranger(&mut state);
        state.open -= 1;
        if let Some(network) = self.network
            && let Some(of_network) = state.networks.get_mut(&network)
        {
            of_network.open -= 1;
            if of_network.open == 0 {
                state.networks.remove(&network);
            }
        }
        drop(state);
        self.sockets.changed.notify_one();
    }
}

/// What counts as one source: an address, of IPv6 the 64 bits that one customer gets. The loopback is many: a proxy on this
/// machine stands for all its clients.
fn network(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()),
        address => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(sockets_max: usize, per_network_max: usize, strangers_max: usize) -> Arc<Sockets> {
        let limits = SocketLimits { sockets_max, per_network_max, strangers_max, ..SocketLimits::default() };
        Arc::new(Sockets::new(limits))
    }

    #[tokio::test]
    async fn only_sockets_of_known_clients_that_try_again_fall_idle() {
        let limits = SocketLimits { idle_max: 1, ..SocketLimits::default() };
        let sockets = Arc::new(Sockets::new(limits));
        let open = |is_known: bool| {
            let socket = Arc::new(sockets.admit(address("127.0.0.1")).unwrap());
            if is_known {
                socket.become_known();
            }
            socket
        };
        let first = open(true);
        drop(first.begin(true));
        // A stranger, and one over which somebody else posts, too.
        let (stranger, shared) = (open(false), open(true));
        drop(stranger.begin(true));
        drop(shared.begin(false));
        drop(shared.begin(true));
        assert!(!first.spare.is_cancelled());
        // Used again it is the last that was used, and while it is used it is not idle.
        let second = open(true);
        let using = first.begin(true);
        drop(second.begin(true));
        assert!(!first.spare.is_cancelled() && !second.spare.is_cancelled());
        drop(using);
        assert!(!first.spare.is_cancelled() && second.spare.is_cancelled());
        // One that is gone takes no place.
        drop(first);
        let third = open(true);
        drop(third.begin(true));
        assert!(!third.spare.is_cancelled() && sockets.state().idle.len() == 1);
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn sockets_are_limited_in_all_and_for_each_network() {
        let sockets = sockets(3, 2, 10);
        let admit = |text: &str| sockets.admit(address(text));
        let first = admit("192.0.2.1").unwrap();
        let _second = admit("::ffff:192.0.2.1").unwrap();
        assert_eq!(admit("192.0.2.1").err(), Some(SocketRefusal::Network(2)));
        let _third = admit("192.0.2.2").unwrap();
        assert_eq!(admit("192.0.2.3").err(), Some(SocketRefusal::All(3)));
        drop(first);
        assert!(admit("192.0.2.1").is_ok());
        // Nothing stays of networks that have gone.
        drop(_third);
        assert_eq!(sockets.state().networks.len(), 1);
    }

    #[test]
    fn one_customer_of_ipv6_is_one_network_and_the_loopback_is_none() {
        assert_eq!(network(address("2001:db8:1:2:3::1")), network(address("2001:db8:1:2:ffff::")));
        assert_ne!(network(address("2001:db8:1:2::1")), network(address("2001:db8:1:3::1")));
        for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(network(address(loopback)), None, "{loopback}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_stranger_gives_way_after_its_time_and_who_is_known_never() {
        let sockets = sockets(100, 100, 2);
        let known = sockets.admit(address("192.0.2.1")).unwrap();
        known.become_known();
        let oldest = sockets.admit(address("192.0.2.2")).unwrap();
        sockets.wait_for_room().await;
        let younger = sockets.admit(address("192.0.2.3")).unwrap();
        let begun = Instant::now();
        // As its task does: it is dropped when it must end.
        let task = tokio::spawn(async move {
            oldest.closing().await;
            oldest.end.is_cancelled()
        });
        sockets.wait_for_room().await;
        assert!(begun.elapsed() >= STRANGER_GRACE && task.await.unwrap());
        assert!(!known.end.is_cancelled() && !younger.end.is_cancelled());
        // A stranger that becomes known makes room at once.
        let _third = sockets.admit(address("192.0.2.4")).unwrap();
        let begun = Instant::now();
        younger.become_known();
        sockets.wait_for_room().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_network_that_floods_pushes_out_its_own() {
        let sockets = sockets(10_000, 10_000, 10_000);
        let other = sockets.admit(address("192.0.2.9")).unwrap();
        let flood: Vec<Socket> =
            (0..=STRANGERS_PER_NETWORK_MAX).map(|_| sockets.admit(address("192.0.2.1")).unwrap()).collect();
        assert!(flood[0].end.is_cancelled() && !flood[1].end.is_cancelled() && !other.end.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_has_little_time() {
        let sockets = sockets(10, 10, 10);
        let (stranger, known) = (sockets.admit(address("::1")).unwrap(), sockets.admit(address("::1")).unwrap());
        known.become_known();
        let begun = Instant::now();
        stranger.closing().await;
        assert_eq!(begun.elapsed(), STRANGER_TIMEOUT);
        assert!(tokio::time::timeout(STRANGER_TIMEOUT * 100, known.closing()).await.is_err());
    }
}
