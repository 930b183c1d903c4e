//! Nostr transport of Litemesh, wire compatible with that of the original `@app/sync`: the parts of it that do no I/O.
//!
//! Two peers that share no network talk through relays, which store what one says until the other asks for it. Relays learn
//! who writes when and how much, and nothing else: all content is encrypted between the two pairing keys. Numbers below
//! are sections of `wire-protocol.md`.
//!
//! - [`ConnectionString`] is what one of them shows and the other enters, once, to be paired (7.5).
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
mod connection_string;
mod nip44v3;

pub use batch::{BATCH_SIZE_MAX, Batch, GATHER_DELAY, QUEUED_CHANGES_MAX};
pub use connection_string::{CONNECTION_STRING_VALIDITY, ConnectionString, ConnectionStringError, GenerateError};
pub use nip44v3::{
    Base64Error, ConversationKey, DecryptError, EncryptError, KeyError, PAYLOAD_CHARS_MAX, PLAINTEXT_BYTES_MAX,
};
/// Keys, events and filters. Its version is part of this crate's.
pub use nostr;
