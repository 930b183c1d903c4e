//! What every transport owes a peer (docs/transports.md), as checks that any transport can be put through.
//!
//! Two ends of it are connected over a [`Proxy`], which does to their bytes what networks do. Above each stands a peer without a
//! database, which watches the contract of [`Transport`] at every call.
//!
//! ```no_run
//! # use std::net::SocketAddr;
//! # use std::sync::Arc;
//! use litemesh_proto::{BoxFuture, Transport};
//! use litemesh_testkit::conformance::{self, Kind};
//!
//! struct Mine;
//!
//! impl Kind for Mine {
//!     fn listen(&self) -> BoxFuture<'_, (Arc<dyn Transport>, SocketAddr)> {
//!         todo!("a transport that listens, and where")
//!     }
//!
//!     fn dial(&self, address: SocketAddr) -> Arc<dyn Transport> {
//!         todo!("a transport that dials {address}")
//!     }
//! }
//!
//! # async fn example() {
//! conformance::check(&Mine).await;
//! # }
//! ```

mod checks;
mod kept;
mod peer;
mod scene;

use std::net::SocketAddr;
use std::sync::Arc;

use litemesh_proto::{BoxFuture, SiteId, Transport};

use crate::proxy::Proxy;

/// A kind of transport that goes over TCP, or can be made to.
///
/// So that the checks do not take for ever, its ends dial again after 0.1 s at first, say something every 0.5 s where nothing else
/// is said, and take 2 s of silence for the end.
///
/// Where a carrier stands between the ends, such as a relay, it is what listens: `listen` starts one and makes the end that talks to it
/// directly, and the proxy is between it and the end that `dial` makes.
pub trait Kind: Sync {
    /// A transport that is not started, and the address at which it can be dialled once it is.
    fn listen(&self) -> BoxFuture<'_, (Arc<dyn Transport>, SocketAddr)>;

    /// A transport that is not started, and dials this address.
    fn dial(&self, address: SocketAddr) -> Arc<dyn Transport>;

    /// Makes two ends known to each other, on carriers whose ends have to be: the one that is about to [dial](Self::dial), as a peer of
    /// the site `near`, and the one that [listened](Self::listen) last, which is `far`.
    fn pair(&self, near: SiteId, far: SiteId) {
        let _ = (near, far);
    }

    /// What its transports say by [`Transport::keeps_messages`]. Their connections stand while nobody is there, so other checks
    /// take the place of those of connections that end.
    fn keeps_messages(&self) -> bool {
        false
    }
}

type Check = for<'a> fn(&'a dyn Kind) -> BoxFuture<'a, ()>;

/// What holds of every kind.
const OF_ALL: [(&str, Check); 9] = [
    ("both ends know who the other is, and ask", |kind| Box::pin(checks::introduces(kind))),
    ("messages of any size come whole and in order", |kind| Box::pin(checks::carries(kind))),
    ("the next message waits until the last was taken", |kind| Box::pin(checks::waits(kind))),
    ("slow and late lines lose nothing", |kind| Box::pin(checks::is_patient(kind))),
    ("one end serves many", |kind| Box::pin(checks::serves_many(kind))),
    ("strangers disturb nobody", |kind| Box::pin(checks::survives_strangers(kind))),
    ("who goes on with nonsense is not believed, and disturbs nobody else", |kind| {
        Box::pin(checks::survives_nonsense(kind))
    }),
    ("what is said twice does no harm", |kind| Box::pin(checks::is_repeated(kind))),
    ("who finds nobody waits longer and longer, and not as long as others", |kind| Box::pin(checks::backs_off(kind))),
];

/// What holds where a connection is a line between two ends.
const OF_LINES: [(&str, Check); 9] = [
    ("a peer that takes nothing holds back who sends", |kind| Box::pin(checks::holds_back(kind))),
    ("after a reset there is another connection", |kind| Box::pin(checks::comes_back(kind))),
    ("where a line is cut nothing is half there", |kind| Box::pin(checks::is_cut(kind))),
    ("it dials until somebody is there", |kind| Box::pin(checks::dials_on(kind))),
    ("a line that went silent is given up", |kind| Box::pin(checks::notices_silence(kind))),
    ("connections may overtake each other", |kind| Box::pin(checks::is_overtaken(kind))),
    ("who closes hears nothing more, and the other does", |kind| Box::pin(checks::closes(kind))),
    ("it stops while it is busy", |kind| Box::pin(checks::stops(kind))),
    ("who is refused comes again", |kind| Box::pin(checks::is_refused(kind))),
];

/// What holds in their place where a carrier keeps messages. That lines go silent is between it and each end: its connections say
/// nothing of it.
const OF_KEEPERS: [(&str, Check); 8] = [
    ("a carrier that takes nothing holds back who sends", |kind| Box::pin(kept::holds_back(kind))),
    ("where a line is cut everything arrives over the next", |kind| Box::pin(kept::goes_on(kind))),
    ("what was sent to who is away is there when it is back", |kind| Box::pin(kept::keeps(kind))),
    ("it dials until the carrier is there", |kind| Box::pin(kept::dials_on(kind))),
    ("lines may overtake each other", |kind| Box::pin(kept::is_overtaken(kind))),
    ("who closes goes on over another connection, and the other over its own", |kind| Box::pin(kept::closes(kind))),
    ("it stops while it is busy", |kind| Box::pin(kept::stops(kind))),
    ("who is refused comes again", |kind| Box::pin(kept::is_refused(kind))),
];

/// Puts a kind of transport through all checks that hold of it. Prints the name of each.
///
/// # Panics
///
/// It fails one of them: after the name of the check stands what was wrong.
pub async fn check(kind: &dyn Kind) {
    let of_sort = if kind.keeps_messages() { &OF_KEEPERS[..] } else { &OF_LINES };
    for (name, check) in OF_ALL.iter().chain(of_sort) {
        println!("{name}");
        check(kind).await;
    }
}
