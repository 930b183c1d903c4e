//! What every transport owes a peer (docs/transports.md), as checks that any transport can be put through.
//!
//! Two ends of it are connected over a [`Proxy`], which does to their bytes what networks do. Above each stands a peer without a
//! database, which watches the contract of [`litemesh_proto::transport`] at every call.
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
mod peer;

use std::net::SocketAddr;
use std::sync::Arc;

use litemesh_proto::{BoxFuture, Transport};

use crate::proxy::Proxy;

/// A kind of transport that goes over TCP, or can be made to.
///
/// So that the checks do not take for ever, its ends dial again after 0.1 s at first, say something every 0.5 s where nothing else
/// is said, and take 2 s of silence for the end.
pub trait Kind: Sync {
    /// A transport that is not started, and the address at which it can be dialled once it is.
    fn listen(&self) -> BoxFuture<'_, (Arc<dyn Transport>, SocketAddr)>;

    /// A transport that is not started, and dials this address.
    fn dial(&self, address: SocketAddr) -> Arc<dyn Transport>;
}

type Check = for<'a> fn(&'a dyn Kind) -> BoxFuture<'a, ()>;

/// Puts a kind of transport through all checks. Prints the name of each.
///
/// # Panics
///
/// It fails one of them: after the name of the check stands what was wrong.
pub async fn check(kind: &dyn Kind) {
    let checks: [(&str, Check); 14] = [
        ("both ends know who the other is, and ask", |kind| Box::pin(checks::introduces(kind))),
        ("messages of any size come whole and in order", |kind| Box::pin(checks::carries(kind))),
        ("the next message waits until the last was taken", |kind| Box::pin(checks::waits(kind))),
        ("a peer that takes nothing holds back who sends", |kind| Box::pin(checks::holds_back(kind))),
        ("after a reset there is another connection", |kind| Box::pin(checks::comes_back(kind))),
        ("where a line is cut nothing is half there", |kind| Box::pin(checks::is_cut(kind))),
        ("it dials until somebody is there", |kind| Box::pin(checks::dials_on(kind))),
        ("a line that went silent is given up", |kind| Box::pin(checks::notices_silence(kind))),
        ("slow and late lines lose nothing", |kind| Box::pin(checks::is_patient(kind))),
        ("who closes hears nothing more, and the other does", |kind| Box::pin(checks::closes(kind))),
        ("it stops while it is busy", |kind| Box::pin(checks::stops(kind))),
        ("one end serves many", |kind| Box::pin(checks::serves_many(kind))),
        ("strangers disturb nobody", |kind| Box::pin(checks::survives_strangers(kind))),
        ("who is refused comes again", |kind| Box::pin(checks::is_refused(kind))),
    ];
    for (name, check) in checks {
        println!("{name}");
        check(kind).await;
    }
}
