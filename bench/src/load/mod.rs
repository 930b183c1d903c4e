//! Many peers on one hub, over loopback HTTP.
//!
//! The hub is a process of its own, whose memory and CPU time the kernel tells. The peers live in this one: [`LightPeer`]s, which
//! speak wire v2 over [`HttpClient`](litemesh_http::HttpClient) as real ones do and have no database, so that mostly the hub is
//! measured; each with HTTP connections of its own. A few real peers among them show whether all converge.

mod fan_out;
mod herd;
mod hub;
mod idle;
mod light_peer;
mod outgoing;
mod restart;
mod seen;
mod stalled;

use clap::Subcommand;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::Error;

#[derive(Subcommand)]
pub enum Scenario {
    /// Peers that are connected and in sync: the hub's memory for each.
    Idle(idle::Arguments),
    /// Peers that write small transactions, which go to all others: how long they take, and whether all arrive.
    FanOut(fan_out::Arguments),
    /// The hub is killed and comes back, with rows that its peers lack: how long until all are in sync.
    Restart(restart::Arguments),
}

pub async fn run(scenario: Scenario) -> Result<Value, Error> {
    raise_file_limit();
    match scenario {
        Scenario::Idle(arguments) => idle::run(&arguments).await,
        Scenario::FanOut(arguments) => fan_out::run(&arguments).await,
        Scenario::Restart(arguments) => restart::run(&arguments).await,
    }
}

/// Lets the process open as many files as it may. A connection is one.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Without it fewer peers can connect, and the scenario says so.
    let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit });
}
