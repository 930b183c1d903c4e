//! What is asked of relays: the filters of `wire-protocol.md` section 7.

use nostr::{Alphabet, Filter, PublicKey, SingleLetterTag, Timestamp};

use crate::{CHANGES_KIND, CONNECT_KIND, CURSOR_KIND, StreamId};

/// How many stored CHANGES are asked for at once; older ones follow with `until`.
pub const CHANGES_PAGE: usize = 500;

/// A listener's: requests that carry the nonce of its connection string.
pub fn connect_requests(nonce: &str) -> Filter {
    Filter::new().kind(CONNECT_KIND).custom_tag(SingleLetterTag::lowercase(Alphabet::N), nonce)
}

/// A connector's: what the listener answers.
pub fn connect_replies(listener: PublicKey) -> Filter {
    Filter::new().kind(CONNECT_KIND).author(listener)
}

/// A receiver's: whether its own CURSOR is still there.
pub fn latest_cursor(author: PublicKey) -> Filter {
    cursors(author).limit(1)
}

/// A sender's: what the receiver asks for, now and later.
pub fn cursors(author: PublicKey) -> Filter {
    Filter::new().kind(CURSOR_KIND).author(author)
}

/// A receiver's: the newest [`CHANGES_PAGE`] events of a stream, since the last one that it processed, and those to come.
pub fn changes(author: PublicKey, stream: &StreamId, since: Option<Timestamp>) -> Filter {
    let filter = Filter::new()
        .kind(CHANGES_KIND)
        .author(author)
        .custom_tag(SingleLetterTag::lowercase(Alphabet::R), stream.as_str())
        .limit(CHANGES_PAGE);
    match since {
        Some(since) => filter.since(since),
        None => filter,
    }
}
