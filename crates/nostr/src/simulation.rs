//! What the testkit's simulation plays pairings with: all that is pure of what our transport does, and events that are the same for the
//! same seed.
//!
//! The relays, what is under way to them and back, the file of pairings and the clock are the caller's.

use std::sync::{Arc, Mutex};

use fastrand::Rng;
use nostr::secp256k1::rand::{CryptoRng, Error as RandError, RngCore};
use nostr::{Event, Keys, PublicKey, SECP256K1, SecretKey, UnsignedEvent};

pub use crate::chain::{Chain, Forked};
pub use crate::dates::{is_old, is_overtaken, of_again, of_refused, of_request, since};
pub use crate::messages::{Read, Wire, Writer, Written, is_early, is_useless, read, read_request};
pub use crate::parts::{Assembler, PART_BYTES_MAX, Whole};
pub use crate::reach::Reach;
pub use crate::receipts::Receipts;
use crate::signer::Identity;
pub use crate::store::{Inbound, Outbound, Stand, Taking, Told};
pub use crate::under_way::{UnderWay, WINDOW_MAX, WINDOW_MAX_V1, Window};
use crate::{ConversationKey, Envelope, Signer, SignerError};

/// The two ends of a pairing, all of whose random bytes come from a seed.
pub fn envelopes(rng: &mut Rng) -> Result<[Envelope; 2], SignerError> {
    let mut keys = || loop {
        // Almost any 32 bytes are a key.
        let bytes: [u8; 32] = std::array::from_fn(|_| rng.u8(..));
        if let Ok(secret) = SecretKey::from_slice(&bytes) {
            return Keys::new(secret);
        }
    };
    let [one, other] = [keys(), keys()];
    let publics = [one.public_key(), other.public_key()];
    let mut envelope = |keys: Keys, remote| {
        let signer = SeededSigner { keys, rng: Mutex::new(Rng::with_seed(rng.u64(..))) };
        let identity = Identity { key: signer.keys.public_key(), signer: Arc::new(signer) };
        Ok(Envelope::with(identity, remote)?.seeded(Rng::with_seed(rng.u64(..))))
    };
    Ok([envelope(one, publics[1])?, envelope(other, publics[0])?])
}

/// Keys that sign the same in the same way.
#[derive(Debug)]
struct SeededSigner {
    keys: Keys,
    rng: Mutex<Rng>,
}

impl Signer for SeededSigner {
    fn pairing_key(&self) -> Result<PublicKey, SignerError> {
        self.keys.pairing_key()
    }

    fn sign(&self, event: UnsignedEvent) -> Result<Event, SignerError> {
        let mut rng = self.rng.lock().map_err(|_| SignerError::new("another signature failed"))?;
        let signed = event.sign_with_ctx(SECP256K1, &mut Seeded(&mut rng), &self.keys);
        signed.map_err(|error| SignerError::new(error.to_string()))
    }

    fn conversation_key(&self, local: PublicKey, remote: PublicKey) -> Result<ConversationKey, SignerError> {
        self.keys.conversation_key(local, remote)
    }
}

/// A seed's random numbers, for who asks for better ones.
struct Seeded<'a>(&'a mut Rng);

impl RngCore for Seeded<'_> {
    fn next_u32(&mut self) -> u32 {
        self.0.u32(..)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.u64(..)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), RandError> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl CryptoRng for Seeded<'_> {}
