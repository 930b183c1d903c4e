//! One line for each event of a peer: JSON for scripts, a sentence for people.

use litemesh::{Event, EventError};
use serde_json::{Value, json};

use crate::output::printable;

/// The event as one JSON object; its member `event` says which it is.
pub(crate) fn json(event: &Event) -> Value {
    match event {
        Event::Connect { peer, transport } => about("connect", peer, transport),
        Event::Sync { peer, transport } => about("sync", peer, transport),
        Event::Eose { peer, transport } => about("eose", peer, transport),
        Event::Served { peer, transport } => about("served", peer, transport),
        Event::Change { tables } => {
            json!({ "event": "change", "tables": tables.iter().map(AsRef::as_ref).collect::<Vec<&str>>() })
        }
        Event::Outdated { schema_version, peer, transport } => json!({
            "event": "outdated", "schema_version": schema_version, "peer": peer.to_string(), "transport": &**transport
        }),
        Event::Disconnect { peer, transport, reason } => json!({
            "event": "disconnect", "peer": peer.to_string(), "transport": &**transport, "reason": reason
        }),
        Event::Error { peer, transport, message } => json!({
            "event": "error",
            "peer": peer.map(|peer| peer.to_string()),
            "transport": transport.as_deref(),
            "message": message,
        }),
        other => json!({ "event": "other", "text": format!("{other:?}") }),
    }
}

fn about(event: &str, peer: &litemesh::SiteId, transport: &str) -> Value {
    json!({ "event": event, "peer": peer.to_string(), "transport": transport })
}

/// The event as a sentence; `None` for those that come too often to be read.
pub(crate) fn sentence(event: &Event) -> Option<String> {
    Some(match event {
        Event::Connect { peer, .. } => format!("{} connected", peer.fmt_short()),
        Event::Eose { peer, .. } => format!("{}: everything that it had is here", peer.fmt_short()),
        Event::Served { peer, .. } => format!("{}: has everything that was here", peer.fmt_short()),
        Event::Outdated { schema_version, peer, .. } => format!(
            "{} has schema version {schema_version}, newer than ours: its changes wait until this file is upgraded \
             (PRAGMA user_version)",
            peer.fmt_short()
        ),
        Event::Disconnect { peer, reason, .. } => {
            format!("{} disconnected: {}", peer.fmt_short(), printable(reason))
        }
        Event::Error { peer: Some(peer), message, .. } => format!("{}: {}", peer.fmt_short(), printable(message)),
        Event::Error { message, .. } => printable(message),
        _ => return None,
    })
}

/// What a listener that was too slow is told.
pub(crate) fn lagged(error: EventError) -> Option<Value> {
    match error {
        EventError::Lagged(missed) => Some(json!({ "event": "lagged", "missed": missed })),
        EventError::Closed => None,
    }
}

#[cfg(test)]
mod tests {
    use litemesh::SiteId;

    use super::*;

    #[test]
    fn errors_name_the_peer_where_there_is_one() {
        let error = |peer| Event::Error { peer, transport: None, message: "broken".to_owned() };
        assert_eq!(json(&error(None))["peer"], Value::Null);
        let peer = SiteId::from_bytes([7; 16]);
        assert_eq!(json(&error(Some(peer)))["peer"], peer.to_string());
        assert_eq!(sentence(&error(Some(peer))).unwrap(), "07070707: broken");
    }
}
