//! Pairings that must not come about. Those that do are in `tests/sync.rs` and `tests/original.rs`.

use std::net::SocketAddr;

use nostr::util::BoxedFuture;
use nostr_relay_builder::builder::{PolicyResult, WritePolicy};
use nostr_relay_builder::{LocalRelay, RelayBuilder};

use super::*;

const SITE: SiteId = SiteId::from_bytes([1; 16]);
const OTHER: SiteId = SiteId::from_bytes([2; 16]);

async fn relay() -> (LocalRelay, String) {
    let relay = LocalRelay::new(RelayBuilder::default());
    relay.run().await.unwrap();
    let url = relay.url().await.to_string();
    (relay, url)
}

/// Changes what stands behind `name=` in a connection string.
fn with(string: &ConnectionString, name: &str, value: &str) -> ConnectionString {
    let text = string.to_string();
    let (before, after) = text.split_once(&format!("{name}=")).unwrap();
    let rest = after.find('&').map_or("", |end| &after[end..]);
    format!("{before}{name}={value}{rest}").parse().unwrap()
}

/// Whoever has the address and the nonce, which relays see, has not got the secret.
#[tokio::test]
async fn a_wrong_secret_is_ignored_and_the_right_one_still_taken() {
    let (_relay, url) = relay().await;
    let (store, other_store) = (Store::open_in_memory().unwrap(), Store::open_in_memory().unwrap());
    let listener = Listener::start(SITE, "one", &[&url]).await.unwrap();
    let string = listener.connection_string().clone();
    let wrong = with(&string, "secret", "00000000000000000000000000000000");
    let stranger = Store::open_in_memory().unwrap();
    let joining = async {
        // It is asked for until the listener has heard it, or the right one.
        let stranger = join(SiteId::from_bytes([3; 16]), "stranger", &wrong, &stranger);
        let wait = tokio::time::timeout(ASK_EVERY / 2, stranger);
        assert!(wait.await.is_err(), "nobody answers");
        join(OTHER, "other", &string, &other_store).await
    };
    let (listened, joined) = tokio::join!(listener.paired(&store), joining);
    assert_eq!(listened.unwrap().peer, OTHER);
    assert_eq!(joined.unwrap().peer, SITE);
    assert!(stranger.pairings(SiteId::from_bytes([3; 16])).unwrap().is_empty());
}

/// A copied file has the same id: its changes would hide those of the other. Both sides say so.
#[tokio::test]
async fn a_copy_of_the_same_database_is_refused_on_both_sides() {
    let (_relay, url) = relay().await;
    let (store, other_store) = (Store::open_in_memory().unwrap(), Store::open_in_memory().unwrap());
    let listener = Listener::start(SITE, "one", &[&url]).await.unwrap();
    let string = listener.connection_string().clone();
    let (listened, joined) = tokio::join!(listener.paired(&store), join(SITE, "other", &string, &other_store));
    assert!(matches!(listened, Err(PairError::SameSite)), "{listened:?}");
    assert!(matches!(joined, Err(PairError::SameSite)), "{joined:?}");
    assert!(store.pairings(SITE).unwrap().is_empty() && other_store.pairings(SITE).unwrap().is_empty());
}

/// `known-failures.md` C5: who finds the string later has nothing.
#[tokio::test]
async fn a_string_that_has_expired_pairs_nobody() {
    let (_relay, url) = relay().await;
    let store = Store::open_in_memory().unwrap();
    let listener = Listener::start(SITE, "one", &[&url]).await.unwrap();
    let listened = listener.expiring(Duration::from_millis(10)).paired(&store).await;
    assert!(matches!(listened, Err(PairError::Expired)), "{listened:?}");
    assert!(store.pairings(SITE).unwrap().is_empty());
}

/// Who came in time is answered: otherwise one side is paired and the other is not.
#[tokio::test]
async fn who_comes_just_before_the_string_expires_is_paired_on_both_sides() {
    let (_relay, url) = relay().await;
    let (store, other_store) = (Store::open_in_memory().unwrap(), Store::open_in_memory().unwrap());
    let listener = Listener::start(SITE, "one", &[&url]).await.unwrap();
    let string = listener.connection_string().clone();
    let listening = async {
        // That the relay is there, and a request.
        while listener.heard.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        listener.expiring(Duration::ZERO).paired(&store).await
    };
    let (listened, joined) = tokio::join!(listening, join(OTHER, "other", &string, &other_store));
    assert_eq!((listened.unwrap().peer, joined.unwrap().peer), (OTHER, SITE));
    assert_eq!((store.pairings(SITE).unwrap().len(), other_store.pairings(OTHER).unwrap().len()), (1, 1));
}

#[tokio::test]
async fn without_a_relay_nobody_is_paired() {
    let none: [&str; 0] = [];
    assert!(matches!(Listener::start(SITE, "one", &none).await, Err(PairError::Relays { .. })));
    assert!(matches!(Listener::start(SITE, "one", &["no address"]).await, Err(PairError::Invalid { .. })));
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
}

/// Nobody waits for ten minutes, or thirty seconds, and wonders.
#[tokio::test]
async fn why_no_relay_is_reached_is_said() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let urls = [format!("ws://{nobody}")];
    let listener = Listener::start(SITE, "one", &urls).await.unwrap();
    let sight = listener.relays();
    // Not dialled yet, or refused.
    assert!(sight.unreached().unwrap().contains(&nobody));
    wait_until(|| sight.unreached().unwrap().contains("efused")).await;
    let store = Store::open_in_memory().unwrap();
    let string = listener.connection_string();
    let joined = join_as(Own::new(), OTHER, "other", string, &store, Duration::from_millis(300)).await;
    assert!(matches!(&joined, Err(PairError::Relays { reason }) if reason.contains(&nobody)), "{joined:?}");

    // One is enough.
    let (relay, url) = relay().await;
    let listener = Listener::start(SITE, "one", &[url.as_str(), urls[0].as_str()]).await.unwrap();
    let sight = listener.relays();
    wait_until(|| sight.unreached().is_none()).await;
    relay.shutdown();
    let is_gone = |reason: String| reason.contains("hung up") || reason.contains("efused");
    wait_until(|| sight.unreached().is_some_and(is_gone)).await;
}

#[derive(Debug)]
struct Wary;

impl WritePolicy for Wary {
    fn admit_event<'a>(&'a self, _: &'a Event, _: &'a SocketAddr) -> BoxedFuture<'a, PolicyResult> {
        Box::pin(async { PolicyResult::Reject("members only".to_owned()) })
    }
}

/// Then it is not the other device that does not answer.
#[tokio::test]
async fn why_no_relay_passes_on_the_question_is_said() {
    let relay = LocalRelay::new(RelayBuilder::default().write_policy(Wary));
    relay.run().await.unwrap();
    let url = relay.url().await.to_string();
    let string = Listener::start(SITE, "one", &[&url]).await.unwrap().connection_string().clone();
    let (own, listener) = (Own::new(), string.listener().unwrap());
    let envelope = Envelope::with(own.identity.clone(), listener).unwrap();
    let urls = parse_relays(string.relays()).unwrap();
    let (relays, _heard) = connect(&own, &urls, filter::connect_replies(listener)).await.unwrap();
    let unheard = Mutex::new(None);
    let is_said =
        wait_until(|| unheard.lock().unwrap().as_ref().is_some_and(|reason: &String| reason.contains("members only")));
    tokio::select! {
        never = ask(&relays, &envelope, OTHER, "other", &string, &unheard) => panic!("{never}"),
        () = is_said => {}
    }
}
