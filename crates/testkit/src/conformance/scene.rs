//! [`Scene`]: two ends, the line between them, and what goes over it.

use std::net::SocketAddr;
use std::time::Duration;

use litemesh_proto::{
    CausalLength, Change, ColVersion, Column, DbVersion, PackedKey, PeerMessage, Progress, Remote, Seq, SiteId,
    SyncRequest, Value,
};

use super::peer::{ANSWER, PATIENCE, Side, request};
use super::{Kind, Proxy};

pub(super) const NEAR: SiteId = SiteId::from_bytes([0xa1; 16]);
pub(super) const FAR: SiteId = SiteId::from_bytes([0xf2; 16]);

/// Long beside what a loopback takes, and nothing depends on that: what is to be absent would be late on a slow machine.
pub(super) const A_WHILE: Duration = Duration::from_millis(300);

/// How long who dials waits at first.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Two ends and the line between them.
pub(super) struct Scene {
    pub(super) proxy: Proxy,
    pub(super) address: SocketAddr,
    pub(super) near: Side,
    pub(super) far: Side,
}

impl Scene {
    /// Both ends, not started.
    pub(super) async fn new(kind: &dyn Kind) -> Self {
        let (far, address) = kind.listen().await;
        let proxy = Proxy::start();
        proxy.lead_to(Some(address));
        kind.pair(NEAR, FAR);
        let near = kind.dial(proxy.address());
        let keep = [near.keeps_messages(), far.keeps_messages()];
        assert_eq!(keep, [kind.keeps_messages(); 2], "whether it keeps messages");
        Self { address, near: Side::new(NEAR, near), far: Side::new(FAR, far), proxy }
    }

    pub(super) async fn connected(kind: &dyn Kind) -> (Self, Remote, Remote) {
        let mut scene = Self::new(kind).await;
        scene.far.start().await;
        scene.near.start().await;
        let (to_far, to_near) = scene.meet().await;
        (scene, to_far, to_near)
    }

    /// Waits for the next connection: what the near end calls it, and what the far end does. Each has asked, too.
    pub(super) async fn meet(&mut self) -> (Remote, Remote) {
        let to_far = self.near.connect().await;
        let to_near = self.far.connect().await;
        assert_eq!((to_far.site, to_near.site), (FAR, NEAR), "each knows who the other is");
        self.hear_requests(to_far, to_near).await;
        (to_far, to_near)
    }

    pub(super) async fn hear_requests(&mut self, to_far: Remote, to_near: Remote) {
        hear_request(&mut self.far, to_near, request(NEAR, to_far)).await;
        hear_request(&mut self.near, to_far, request(FAR, to_near)).await;
    }

    /// Waits until somebody has dialled so often, and counts on for a while.
    pub(super) async fn dial_in_vain(&self, dials: u64) {
        // More in a second would be no waiting at all.
        const DIALS_MAX: u64 = 100;
        let started = tokio::time::Instant::now();
        while self.proxy.connections() < dials {
            assert!(started.elapsed() < PATIENCE, "it does not dial again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(A_WHILE).await;
        let (dials, waited) = (self.proxy.connections(), started.elapsed());
        assert!(dials <= DIALS_MAX.max(waited.as_secs() * DIALS_MAX), "{dials} dials in {waited:?}");
    }

    /// Waits until the line has kept something.
    pub(super) async fn keep_something(&self) {
        let started = tokio::time::Instant::now();
        while self.proxy.kept() == 0 {
            assert!(started.elapsed() < PATIENCE, "nothing is sent");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) async fn end(self) {
        self.near.check();
        self.far.check();
        self.near.stop().await;
        self.far.stop().await;
        self.near.check();
        self.far.check();
    }
}

async fn hear_request(side: &mut Side, of: Remote, expected: SyncRequest) {
    let mut heard = side.request(of).await;
    if side.transport.keeps_messages() {
        // Such a carrier numbers requests anew, and says itself how much room there is.
        heard.terms = expected.terms.clone().filter(|_| heard.terms.is_some());
    }
    assert_eq!(heard, expected, "the request of {}", of.site);
}

/// The `number`th message, with a value of so many bytes; without changes where there are none.
pub(super) fn message(remote: Remote, number: usize, bytes: usize) -> PeerMessage {
    let number_of_message = u64::try_from(number).unwrap_or_default() + 1;
    let change = Change {
        table: "todo".into(),
        key: PackedKey::pack(&[Value::Integer(number_of_message.cast_signed())])
            .unwrap_or_else(|error| panic!("{error}")),
        column: Column::from("title"),
        value: Value::text(noise(number_of_message, bytes)),
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(number_of_message.cast_signed()),
        site: FAR,
        causal_length: CausalLength::FIRST,
        seq: Seq::ZERO,
    };
    let progress = Progress { answer: ANSWER, number: number_of_message, ..Progress::default() };
    PeerMessage::Changes {
        changes: if bytes == 0 { Vec::new() } else { vec![change] },
        schema_version: 0,
        progress: remote.is_litemesh.then_some(progress),
    }
}

/// Text that does not shrink much.
pub(super) fn noise(seed: u64, bytes: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.alphanumeric()).take(bytes).collect()
}

pub(super) async fn carry_one(
    from: &Side,
    to: &mut Side,
    (there, back): (Remote, Remote),
    number: usize,
    bytes: usize,
) {
    let sent = message(there, number, bytes);
    from.sender().send(there, sent.clone()).await.unwrap_or_else(|error| panic!("{bytes} bytes: {error}"));
    assert_eq!(to.message(back).await, to.as_taken(sent), "{bytes} bytes");
}
