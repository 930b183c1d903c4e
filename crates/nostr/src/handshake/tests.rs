//! Pairings that must not come about. Those that do are in `tests/sync.rs` and `tests/original.rs`.

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
