//! What every transport owes a peer, of Nostr: through a relay in this process, with a line that fails between it and one device.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use litemesh_nostr::nostr::{Keys, RelayUrl, Timestamp};
use litemesh_nostr::{Pairing, Store};
use litemesh_proto::{BoxFuture, SiteId, Transport};
use litemesh_testkit::conformance::{self, Kind};
use nostr_relay_builder::LocalRelay;

/// Pairs of devices. The far one talks to the relay itself, the near one through the line.
#[derive(Default)]
struct Relayed(Mutex<State>);

#[derive(Default)]
struct State {
    /// The far device that listened last, and its relay, which ends with this.
    far: Option<(Arc<Store>, LocalRelay, RelayUrl)>,
    /// Who is to be paired, the near one first.
    sites: Option<(SiteId, SiteId)>,
}

impl Relayed {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn url(address: SocketAddr) -> RelayUrl {
    RelayUrl::parse(&format!("ws://{address}")).unwrap()
}

impl Kind for Relayed {
    fn listen(&self) -> BoxFuture<'_, (Arc<dyn Transport>, SocketAddr)> {
        Box::pin(async {
            let relay = support::relay().await;
            let relay_url = relay.url().await;
            let address = relay_url.to_string().replace("ws://", "").trim_end_matches('/').parse().unwrap();
            let store = Arc::new(Store::open_in_memory().unwrap());
            self.state().far = Some((store.clone(), relay, url(address)));
            (Arc::new(support::transport(&store).build()) as _, address)
        })
    }

    fn pair(&self, near: SiteId, far: SiteId) {
        self.state().sites = Some((near, far));
    }

    fn dial(&self, address: SocketAddr) -> Arc<dyn Transport> {
        let mut state = self.state();
        let (near_site, far_site) = state.sites.take().unwrap();
        let (far_store, _, far_url) = state.far.as_ref().unwrap();
        let near_store = Arc::new(Store::open_in_memory().unwrap());
        let (near_keys, far_keys) = (Keys::generate(), Keys::generate());
        let near = Pairing {
            site: near_site,
            local_key: near_keys.public_key(),
            peer: far_site,
            peer_key: far_keys.public_key(),
            device: String::new(),
            relays: vec![url(address)],
            paired_at: Timestamp::now(),
            is_litemesh: true,
        };
        let far = Pairing {
            site: far_site,
            local_key: far_keys.public_key(),
            peer: near_site,
            peer_key: near_keys.public_key(),
            relays: vec![far_url.clone()],
            ..near.clone()
        };
        near_store.pair(&near, Some(near_keys.secret_key())).unwrap();
        far_store.pair(&far, Some(far_keys.secret_key())).unwrap();
        Arc::new(support::transport(&near_store).build())
    }

    fn keeps_messages(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_with_a_relay_keep_the_contract() {
    conformance::check(&Relayed::default()).await;
}
