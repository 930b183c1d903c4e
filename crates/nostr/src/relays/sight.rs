//! [`RelaySight`]: whether relays can be reached, for people who wait.

use std::sync::Arc;

use nostr_sdk::Relay;

use super::gate::Gate;

/// Whether the relays of a pairing can be reached: [`Listener::relays`](crate::Listener::relays). It dials nobody.
#[derive(Clone)]
pub struct RelaySight {
    lines: Vec<(Relay, Arc<Gate>)>,
}

impl RelaySight {
    pub(super) fn new(lines: Vec<(Relay, Arc<Gate>)>) -> Self {
        Self { lines }
    }

    /// Why none of the relays can be reached now, of each as a sentence; `None` while one is there.
    pub fn unreached(&self) -> Option<String> {
        if self.lines.iter().any(|(relay, _)| relay.is_connected()) {
            return None;
        }
        let of_each = self.lines.iter().map(|(relay, gate)| format!("{}: {}", relay.url(), gate.dialled()));
        Some(of_each.collect::<Vec<_>>().join("; "))
    }
}

impl std::fmt::Debug for RelaySight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.lines.iter().map(|(relay, _)| relay.url())).finish()
    }
}
