//! Nostr transport of Litemesh, wire compatible with that of the original `@app/sync`.
//!
//! Two peers that share no network talk through relays, which store what one says until the other asks for it. Relays see
//! keys, stream ids, times and sizes, and no content: it is encrypted between the two pairing keys. Numbers below are
//! sections of `wire-protocol.md`.
//!
//! - [`NostrTransport`] syncs with everyone who is paired. [`Listener`] and [`join`] pair two devices, and a [`Store`] keeps the
//!   pairings, beside the database.
//! - [`ConnectionString`] is what one of them shows and the other enters, once, to be paired (7.5).
//! - [`Envelope`] makes the events of two paired peers and reads them: CONNECT, with which they are paired, CURSOR, with which
//!   one asks for a stream, and CHANGES, the stream (7.1). [`filter`] has what relays are asked for.
//! - [`Batch`] cuts pending changes into messages that an original peer takes (7.4).
//! - [`ConversationKey`] encrypts and decrypts (7.6).
//!
//! ```
//! use litemesh_nostr::ConversationKey;
//! use litemesh_nostr::nostr::Keys;
//!
//! let (alice, bob) = (Keys::generate(), Keys::generate());
//!
//! let at_alice = ConversationKey::derive(alice.secret_key(), &bob.public_key())?;
//! let payload = at_alice.encrypt(b"a secret")?;
//!
//! let at_bob = ConversationKey::derive(bob.secret_key(), &alice.public_key())?;
//! assert_eq!(at_bob.decrypt(&payload)?, b"a secret");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![forbid(unsafe_code)]

mod batch;
// The simulation sees it.
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
mod chain;
mod changes;
mod connection_string;
mod content;
// The simulation sees it.
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
mod dates;
mod envelope;
mod error;
pub mod filter;
mod handshake;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod inbox;
mod link;
mod looks;
// The simulation sees it.
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
mod messages;
mod nip44v3;
mod nonces;
mod outbox;
// The simulation sees it.
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
mod parts;
mod pauses;
// The simulation sees it.
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
mod reach;
// The simulation sees it.
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
mod receipts;
mod relays;
mod search;
mod signer;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod store;
mod stream_id;
mod transport;
// The simulation sees it.
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
mod under_way;

pub use batch::{BATCH_SIZE_MAX, Batch};
pub use changes::{CHANGES_LIFETIME, ChainHead, ChangesTags, FRAMES_BYTES_MAX, Incoming, Outgoing, ReceivedChanges};
pub use connection_string::{CONNECTION_STRING_VALIDITY, ConnectionString, ConnectionStringError, GenerateError};
pub use content::{Announcement, ConnectReply, ConnectRequest, CursorContent, CursorTerms, DEVICE_INFO_BYTES_MAX};
pub use envelope::{CHANGES_KIND, CONNECT_KIND, CURSOR_KIND, Envelope};
pub use error::{BuildError, ReadError};
pub use handshake::{JOIN_TIMEOUT, Listener, PairError, join, join_with};
pub use nip44v3::{
    Base64Error, ConversationKey, DecryptError, EncryptError, KeyError, PAYLOAD_CHARS_MAX, PLAINTEXT_BYTES_MAX,
};
/// Keys, events and filters. Its version is part of this crate's.
pub use nostr;
pub use relays::RelaySight;
pub use signer::{Signer, SignerError};
pub use store::{Pairing, Store, StoreError};
pub use stream_id::{ParseStreamIdError, StreamId};
pub use transport::{NostrTransport, NostrTransportBuilder};
