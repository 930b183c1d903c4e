//! [`ConversationKey`]: the encryption that the original calls "nip44-v3".
//!
//! It is NIP-44 version 2 with another HKDF salt, another version byte, and a length prefix of four bytes for plaintexts up to
//! 1 MiB. Primitives are those of RustCrypto and libsecp256k1; only their order is ours.
//!
//! A payload, before base64, with the lengths in bytes:
//!
//! ```text
//! 0x03 (1) | nonce (32) | ChaCha20 of [ length (4, big-endian) | plaintext | zeros ] | HMAC-SHA256 of nonce and ciphertext (32)
//! ```
//!
//! Source: `wire-protocol.md` 7.6 and its vectors; <https://github.com/nostr-protocol/nips/blob/master/44.md>.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use nostr::{PublicKey, SecretKey};
use sha2::Sha256;

use crate::nonces::Nonces;

/// Longest plaintext, in bytes. What is longer has to be cut before it is encrypted.
pub const PLAINTEXT_BYTES_MAX: usize = 1_048_575;

/// Longest payload, in characters of base64: that of the longest plaintext.
pub const PAYLOAD_CHARS_MAX: usize = 1_398_196;

/// What every payload begins with.
const VERSION: u8 = 3;
const SALT: &[u8] = b"nip44-v3";
pub(crate) const NONCE_BYTES: usize = 32;
const PREFIX_BYTES: usize = 4;
const MAC_BYTES: usize = 32;
/// Where the ciphertext begins.
const CIPHERTEXT_START: usize = 1 + NONCE_BYTES;
/// Shortest padded plaintext, without its prefix.
const PADDED_BYTES_MIN: usize = 32;
const PAYLOAD_CHARS_MIN: usize = 136;
const RAW_BYTES_MIN: usize = CIPHERTEXT_START + PREFIX_BYTES + PADDED_BYTES_MIN + MAC_BYTES;
/// Longest payload as bytes: that of the longest plaintext. What decodes to more is no payload.
const RAW_BYTES_MAX: usize = CIPHERTEXT_START + PREFIX_BYTES + padded_bytes(PLAINTEXT_BYTES_MAX) + MAC_BYTES;

// The limits of 7.6, all of which follow from the longest plaintext.
const _: () = assert!(RAW_BYTES_MIN == 101 && RAW_BYTES_MAX == 1_048_645);
const _: () = assert!(RAW_BYTES_MIN.div_ceil(3) * 4 == PAYLOAD_CHARS_MIN);
const _: () = assert!(RAW_BYTES_MAX.div_ceil(3) * 4 == PAYLOAD_CHARS_MAX);

/// What two pairing keys encrypt with: the same for both of them, and for every message.
///
/// Its `Debug` shows no secret.
///
/// ```
/// use litemesh_nostr::{ConversationKey, DecryptError};
/// use litemesh_nostr::nostr::Keys;
///
/// let (alice, bob, carol) = (Keys::generate(), Keys::generate(), Keys::generate());
/// let key = ConversationKey::derive(alice.secret_key(), &bob.public_key())?;
/// let payload = key.encrypt("grüß dich".as_bytes())?;
/// assert_eq!(key.decrypt_text(&payload)?, "grüß dich");
///
/// let other = ConversationKey::derive(carol.secret_key(), &bob.public_key())?;
/// assert_eq!(other.decrypt(&payload), Err(DecryptError::Mac));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ConversationKey([u8; 32]);

impl ConversationKey {
    /// Derives the key of a conversation from the own secret key and the other's public key.
    ///
    /// It costs a multiplication on the curve, some 50 µs: derive once for each pairing.
    ///
    /// # Errors
    ///
    /// The public key is no point of the curve.
    pub fn derive(secret: &SecretKey, public: &PublicKey) -> Result<Self, KeyError> {
        let shared = nostr::util::generate_shared_key(secret, public).map_err(|_| KeyError)?;
        let (key, _) = Hkdf::<Sha256>::extract(Some(SALT), &shared);
        Ok(Self(key.into()))
    }

    /// Encrypts 1 to [`PLAINTEXT_BYTES_MAX`] bytes under a random nonce.
    ///
    /// The payload is base64 and shows the length of the plaintext only roughly: it is padded to a multiple of an eighth of the
    /// next power of two.
    ///
    /// # Errors
    ///
    /// The plaintext is empty or too long, or the system gave no random bytes.
    pub fn encrypt(&self, plaintext: &[u8]) -> Result<String, EncryptError> {
        self.encrypt_with_nonce(&[plaintext], &Nonces::System.next()?)
    }

    /// Encrypts what the parts are together, without joining them first. Two plaintexts under the same nonce betray each other: only for a fresh one, or to reproduce a vector.
    pub(crate) fn encrypt_with_nonce(
        &self,
        parts: &[&[u8]],
        nonce: &[u8; NONCE_BYTES],
    ) -> Result<String, EncryptError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let prefix = match u32::try_from(length) {
            Ok(prefix) if (1..=PLAINTEXT_BYTES_MAX).contains(&length) => prefix,
            _ => return Err(EncryptError::PlaintextSize { bytes: length }),
        };
        let keys = self.message_keys(nonce);

        // One buffer in its final order, encrypted in place.
        let mut raw = Vec::with_capacity(CIPHERTEXT_START + PREFIX_BYTES + padded_bytes(length) + MAC_BYTES);
        raw.push(VERSION);
        raw.extend_from_slice(nonce);
        raw.extend_from_slice(&prefix.to_be_bytes());
        for part in parts {
            raw.extend_from_slice(part);
        }
        raw.resize(CIPHERTEXT_START + PREFIX_BYTES + padded_bytes(length), 0);
        keys.cipher().apply_keystream(&mut raw[CIPHERTEXT_START..]);
        let mac = keys.mac(&raw[1..]).finalize().into_bytes();
        raw.extend_from_slice(&mac);
        Ok(STANDARD.encode(&raw))
    }

    /// Decrypts a payload to the bytes that were encrypted.
    ///
    /// Two allocations at most, of the size of the payload. Padding need not be zeros: the original does not look at it, either.
    ///
    /// # Errors
    ///
    /// The first check of `wire-protocol.md` 7.6 that fails, in its order. That the padding is wrong can be seen only after the
    /// MAC was right, so an attacker learns nothing from it.
    pub fn decrypt(&self, payload: &str) -> Result<Vec<u8>, DecryptError> {
        if !(PAYLOAD_CHARS_MIN..=PAYLOAD_CHARS_MAX).contains(&payload.len()) {
            return Err(DecryptError::PayloadLength { chars: payload.len() });
        }
        if payload.starts_with('#') {
            return Err(DecryptError::UnknownEncoding);
        }
        let mut raw = STANDARD.decode(payload).map_err(|_| Base64Error::of(payload))?;
        if !(RAW_BYTES_MIN..=RAW_BYTES_MAX).contains(&raw.len()) {
            return Err(DecryptError::RawLength { bytes: raw.len() });
        }
        if raw[0] != VERSION {
            return Err(DecryptError::Version { version: raw[0] });
        }

        let mac_start = raw.len() - MAC_BYTES;
        let (sealed, mac) = raw.split_at_mut(mac_start);
        let (head, ciphertext) = sealed.split_at_mut(CIPHERTEXT_START);
        let keys = self.message_keys(&head[1..]);
        // Compares in constant time.
        keys.mac(&head[1..]).chain_update(&*ciphertext).verify_slice(mac).map_err(|_| DecryptError::Mac)?;
        keys.cipher().apply_keystream(ciphertext);

        let length = plaintext_bytes(ciphertext).ok_or(DecryptError::Padding)?;
        raw.truncate(CIPHERTEXT_START + PREFIX_BYTES + length);
        raw.drain(..CIPHERTEXT_START + PREFIX_BYTES);
        Ok(raw)
    }

    /// Decrypts a payload to text as the original reads it: U+FFFD stands where the bytes are no UTF-8, and one leading U+FEFF
    /// (byte order mark) is left out.
    ///
    /// # Errors
    ///
    /// Those of [`decrypt`](Self::decrypt).
    pub fn decrypt_text(&self, payload: &str) -> Result<String, DecryptError> {
        self.decrypt(payload).map(into_text)
    }

    fn message_keys(&self, nonce: &[u8]) -> MessageKeys {
        let mut keys = MessageKeys { bytes: [0; 76] };
        let expanded = Hkdf::<Sha256>::from_prk(&self.0).map(|hkdf| hkdf.expand(nonce, &mut keys.bytes));
        if !matches!(expanded, Ok(Ok(()))) {
            unreachable!("a key of 32 bytes is long enough, and HKDF-SHA256 expands to 8160 bytes");
        }
        keys
    }

    #[cfg(test)]
    pub(crate) fn from_hex(hex: &str) -> Self {
        Self(const_hex::decode_to_array(hex).unwrap())
    }

    #[cfg(test)]
    pub(crate) fn to_hex(&self) -> String {
        const_hex::encode(self.0)
    }
}

impl fmt::Debug for ConversationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConversationKey(..)")
    }
}

/// How the original's decoder makes text of decrypted bytes; see [`ConversationKey::decrypt_text`].
pub(crate) fn into_text(bytes: Vec<u8>) -> String {
    let mut text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    };
    if text.starts_with('\u{FEFF}') {
        text.drain(..'\u{FEFF}'.len_utf8());
    }
    text
}

/// What one nonce makes of a conversation key: cipher key, cipher nonce and MAC key, one after the other.
struct MessageKeys {
    bytes: [u8; 76],
}

impl MessageKeys {
    fn cipher_key(&self) -> &[u8] {
        &self.bytes[..32]
    }

    fn cipher_nonce(&self) -> &[u8] {
        &self.bytes[32..44]
    }

    fn mac_key(&self) -> &[u8] {
        &self.bytes[44..]
    }

    /// ChaCha20 of RFC 8439, from block zero.
    fn cipher(&self) -> ChaCha20 {
        match ChaCha20::new_from_slices(self.cipher_key(), self.cipher_nonce()) {
            Ok(cipher) => cipher,
            Err(_) => unreachable!("the slices have the 32 and 12 bytes that ChaCha20 takes"),
        }
    }

    /// HMAC-SHA256, begun with these bytes.
    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        match <Hmac<Sha256> as Mac>::new_from_slice(self.mac_key()) {
            Ok(mac) => mac.chain_update(bytes),
            Err(_) => unreachable!("HMAC takes a key of any length"),
        }
    }
}

/// To how many bytes a plaintext of this many is padded, without its prefix.
const fn padded_bytes(plaintext: usize) -> usize {
    if plaintext <= PADDED_BYTES_MIN {
        return PADDED_BYTES_MIN;
    }
    let power = plaintext.next_power_of_two();
    let chunk = if power <= 256 { 32 } else { power / 8 };
    plaintext.next_multiple_of(chunk)
}

/// How long the plaintext is that begins after the prefix; `None` unless prefix and padding fit each other.
fn plaintext_bytes(padded: &[u8]) -> Option<usize> {
    let (prefix, rest) = padded.split_first_chunk::<PREFIX_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*prefix)).ok()?;
    let fits = (1..=PLAINTEXT_BYTES_MAX).contains(&length) && rest.len() == padded_bytes(length);
    fits.then_some(length)
}

/// The public key is no point of the curve, so nobody has its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the public key is no point of the curve: nobody can be paired with it")]
pub struct KeyError;

/// Why something was not encrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum EncryptError {
    /// Nothing at all, or more than [`PLAINTEXT_BYTES_MAX`].
    #[error("invalid plaintext size: must be between 1 and {PLAINTEXT_BYTES_MAX} bytes")]
    PlaintextSize { bytes: usize },
    /// The system has no random bytes for a nonce.
    #[error("no random bytes for a nonce: {reason}")]
    Random { reason: String },
}

/// Why a payload was not decrypted. The texts are those of the original.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum DecryptError {
    /// Shorter or longer than any payload. Bytes are counted, which in base64 are characters.
    #[error("invalid payload length: {chars}")]
    PayloadLength { chars: usize },
    /// `#` announces an encoding that is no base64.
    #[error("unknown encoding")]
    UnknownEncoding,
    /// No base64.
    #[error("invalid base64: {0}")]
    Base64(#[from] Base64Error),
    /// Shorter or longer than any payload after base64.
    #[error("invalid data length: {bytes}")]
    RawLength { bytes: usize },
    /// Encrypted in another way: 2 is that of NIP-44.
    #[error("unknown encryption version {version}")]
    Version { version: u8 },
    /// Not encrypted with this key, or changed on the way.
    #[error("invalid MAC")]
    Mac,
    /// Who has the key wrote a length that does not fit.
    #[error("invalid padding")]
    Padding,
}

/// What is wrong with a text that should be base64, with the standard alphabet and padded. The texts are those of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum Base64Error {
    /// The length is no multiple of four.
    #[error("Invalid padding: string should have whole number of bytes")]
    Length,
    /// More than two `=` at the end.
    #[error("Invalid padding: string has too much padding")]
    TooMuchPadding,
    /// A character outside of the alphabet.
    #[error("Unknown letter: \"{letter}\". Allowed: ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")]
    Letter { letter: char },
    /// The last letter holds bits that belong to no byte.
    #[error("Non-zero padding")]
    TrailingBits,
}

impl Base64Error {
    /// What is wrong with a text that a strict decoder refused, in the order in which the original looks.
    fn of(text: &str) -> Self {
        if !text.len().is_multiple_of(4) {
            return Self::Length;
        }
        let letters = text.trim_end_matches('=');
        if text.len() - letters.len() > 2 {
            return Self::TooMuchPadding;
        }
        let is_known = |letter: char| letter.is_ascii_alphanumeric() || letter == '+' || letter == '/';
        match letters.chars().find(|letter| !is_known(*letter)) {
            Some(letter) => Self::Letter { letter },
            None => Self::TrailingBits,
        }
    }
}

#[cfg(test)]
mod tests;
