//! Who has our secret keys: the file of pairings, or the application.

use std::fmt::Debug;
use std::sync::Arc;

use nostr::signer::SignerBackend;
use nostr::util::BoxedFuture;
use nostr::{Event, Keys, NostrSigner, PublicKey, UnsignedEvent};

use crate::ConversationKey;

/// Signs and agrees on keys for us: the seed's `signer`. For applications that keep keys elsewhere than in the file of pairings, in
/// memory or in a keyring of the machine.
///
/// Called from tasks that others wait for: who asks a person or another machine asks beforehand.
///
/// [`Keys`] are a signer with one key for all pairings, by which relays see that they belong to one device; a signer that has a key for
/// each pairing is better.
pub trait Signer: Debug + Send + Sync + 'static {
    /// The key for a pairing that is being made.
    ///
    /// # Errors
    ///
    /// There is none.
    fn pairing_key(&self) -> Result<PublicKey, SignerError>;

    /// Signs with the key that the event names as its author.
    ///
    /// # Errors
    ///
    /// The key is not there, or not to be used.
    fn sign(&self, event: UnsignedEvent) -> Result<Event, SignerError>;

    /// What one of our keys and a remote's have in common ([`ConversationKey::derive`]).
    ///
    /// # Errors
    ///
    /// The key is not there, or not to be used; or the remote's is none.
    fn conversation_key(&self, local: PublicKey, remote: PublicKey) -> Result<ConversationKey, SignerError>;
}

/// A key cannot be used; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key cannot be used: {reason}")]
pub struct SignerError {
    /// Why, as a sentence.
    pub reason: String,
}

impl SignerError {
    /// For signers elsewhere.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl Signer for Keys {
    fn pairing_key(&self) -> Result<PublicKey, SignerError> {
        Ok(self.public_key())
    }

    fn sign(&self, event: UnsignedEvent) -> Result<Event, SignerError> {
        event.sign_with_keys(self).map_err(|error| SignerError::new(error.to_string()))
    }

    fn conversation_key(&self, local: PublicKey, remote: PublicKey) -> Result<ConversationKey, SignerError> {
        if local != self.public_key() {
            return Err(SignerError::new("it is not ours"));
        }
        ConversationKey::derive(self.secret_key(), &remote).map_err(|error| SignerError::new(error.to_string()))
    }
}

/// One of our keys, and who has it.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) key: PublicKey,
    pub(crate) signer: Arc<dyn Signer>,
}

impl From<Keys> for Identity {
    fn from(keys: Keys) -> Self {
        Self { key: keys.public_key(), signer: Arc::new(keys) }
    }
}

/// What a relay that asks for it wants to see (NIP-42).
impl NostrSigner for Identity {
    fn backend(&self) -> SignerBackend<'_> {
        SignerBackend::Custom("litemesh".into())
    }

    fn get_public_key(&self) -> BoxedFuture<'_, Result<PublicKey, nostr::SignerError>> {
        Box::pin(async { Ok(self.key) })
    }

    fn sign_event(&self, unsigned: UnsignedEvent) -> BoxedFuture<'_, Result<Event, nostr::SignerError>> {
        Box::pin(async { self.signer.sign(unsigned).map_err(nostr::SignerError::backend) })
    }

    fn nip04_encrypt<'a>(
        &'a self,
        _: &'a PublicKey,
        _: &'a str,
    ) -> BoxedFuture<'a, Result<String, nostr::SignerError>> {
        Box::pin(async { Err(unused()) })
    }

    fn nip04_decrypt<'a>(
        &'a self,
        _: &'a PublicKey,
        _: &'a str,
    ) -> BoxedFuture<'a, Result<String, nostr::SignerError>> {
        Box::pin(async { Err(unused()) })
    }

    fn nip44_encrypt<'a>(
        &'a self,
        _: &'a PublicKey,
        _: &'a str,
    ) -> BoxedFuture<'a, Result<String, nostr::SignerError>> {
        Box::pin(async { Err(unused()) })
    }

    fn nip44_decrypt<'a>(
        &'a self,
        _: &'a PublicKey,
        _: &'a str,
    ) -> BoxedFuture<'a, Result<String, nostr::SignerError>> {
        Box::pin(async { Err(unused()) })
    }
}

/// Nobody asks for these to log in.
fn unused() -> nostr::SignerError {
    nostr::SignerError::backend(SignerError::new("only events are signed"))
}
