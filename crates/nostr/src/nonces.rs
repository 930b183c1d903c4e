//! Where the random bytes come from that payloads are encrypted under.

#[cfg(feature = "simulation")]
use std::sync::{Arc, Mutex, PoisonError};

use crate::EncryptError;
use crate::nip44v3::NONCE_BYTES;

/// Gives a nonce for each payload.
#[derive(Clone, Debug, Default)]
pub(crate) enum Nonces {
    /// The system: nobody foresees them.
    #[default]
    System,
    /// A seed: whoever has that makes the same payloads again. For simulations, in which nothing is secret.
    #[cfg(feature = "simulation")]
    Seed(Arc<Mutex<fastrand::Rng>>),
}

impl Nonces {
    pub(crate) fn next(&self) -> Result<[u8; NONCE_BYTES], EncryptError> {
        let mut nonce = [0; NONCE_BYTES];
        match self {
            Self::System => {
                getrandom::fill(&mut nonce).map_err(|error| EncryptError::Random { reason: error.to_string() })?;
            }
            #[cfg(feature = "simulation")]
            Self::Seed(rng) => rng.lock().unwrap_or_else(PoisonError::into_inner).fill(&mut nonce),
        }
        Ok(nonce)
    }
}
