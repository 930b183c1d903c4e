//! Any payload, and any plaintext: the body of the fuzz target `nostr_payload`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // to panic is what it is for

use super::*;

/// That of Alice and Bob in the vectors.
const KEY: ConversationKey = ConversationKey([
    0xb7, 0xbd, 0x90, 0xbf, 0x34, 0x45, 0xb8, 0x47, 0x66, 0x96, 0xca, 0x11, 0x8f, 0x0e, 0x89, 0x03, 0x1a, 0x61, 0xd9,
    0x78, 0x7a, 0x80, 0xcf, 0xe7, 0xbc, 0x30, 0x07, 0x12, 0x8a, 0x34, 0xf6, 0x69,
]);

const NONCE: [u8; NONCE_BYTES] = [0x4e; NONCE_BYTES];

/// The bytes as a payload, as a plaintext, and as what stands in a payload that has the right MAC.
///
/// Nothing is decrypted but what was encrypted, and that comes back as it was.
pub fn payload(bytes: &[u8]) {
    check_payload(&String::from_utf8_lossy(bytes));
    check_plaintext(bytes);
    check_sealed(bytes);
}

fn check_payload(payload: &str) {
    match KEY.decrypt(payload) {
        Ok(plaintext) => {
            // Two may differ in their padding.
            let raw = STANDARD.decode(payload).expect("it was read");
            let nonce = raw[1..CIPHERTEXT_START].try_into().expect("as long as a nonce");
            let again = KEY.encrypt_with_nonce(&[&plaintext], nonce).expect("of a length that is read");
            assert_eq!((again.len(), KEY.decrypt(&again)), (payload.len(), Ok(plaintext)));
        }
        Err(error) => {
            assert!(error.to_string().len() <= 200, "{error}");
            let is_base64 = STANDARD.decode(payload).is_ok();
            match error {
                DecryptError::PayloadLength { chars } => assert_eq!(chars, payload.len()),
                DecryptError::UnknownEncoding => assert!(payload.starts_with('#')),
                DecryptError::Base64(_) => assert!(!is_base64),
                DecryptError::RawLength { .. }
                | DecryptError::Version { .. }
                | DecryptError::Mac
                | DecryptError::Padding => {
                    assert!(is_base64);
                }
            }
        }
    }
}

fn check_plaintext(bytes: &[u8]) {
    let (one, two) = bytes.split_at(bytes.len() / 3);
    let payload = KEY.encrypt_with_nonce(&[one, two], &NONCE);
    assert_eq!(payload, KEY.encrypt_with_nonce(&[bytes], &NONCE));
    let Ok(payload) = payload else {
        return assert!(bytes.is_empty() || bytes.len() > PLAINTEXT_BYTES_MAX);
    };
    assert!((PAYLOAD_CHARS_MIN..=PAYLOAD_CHARS_MAX).contains(&payload.len()));
    let read = KEY.decrypt(&payload).expect("of ours");
    assert!(read == bytes && read.capacity() <= payload.len());
    let text = KEY.decrypt_text(&payload).expect("of ours");
    let lossy = String::from_utf8_lossy(bytes);
    assert_eq!(text, lossy.strip_prefix('\u{FEFF}').unwrap_or(&lossy));
    check_damaged(&payload, bytes);
}

/// With one bit changed anywhere.
fn check_damaged(payload: &str, bytes: &[u8]) {
    let mut raw = STANDARD.decode(payload).expect("of ours");
    let seed = bytes.iter().fold(bytes.len(), |seed, byte| seed.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let at = seed % raw.len();
    raw[at] ^= 1 << (seed % 8);
    let expected = if at == 0 { DecryptError::Version { version: raw[0] } } else { DecryptError::Mac };
    assert_eq!(KEY.decrypt(&STANDARD.encode(raw)), Err(expected));
}

/// Who has the key may encrypt what it likes: a length that does not fit, and padding that is no zeros.
fn check_sealed(bytes: &[u8]) {
    let sealed = seal(bytes);
    let read = KEY.decrypt(&sealed);
    let declared = bytes.first_chunk().map(|prefix| u32::from_be_bytes(*prefix) as usize);
    match &read {
        Ok(plaintext) => {
            let rest = &bytes[PREFIX_BYTES..];
            assert!(declared == Some(plaintext.len()) && rest.starts_with(plaintext));
            assert_eq!(rest.len(), padded_bytes(plaintext.len()));
        }
        Err(DecryptError::Padding) => {
            let fits = |length: &usize| {
                *length > 0 && *length < bytes.len() && padded_bytes(*length) + PREFIX_BYTES == bytes.len()
            };
            assert_eq!(declared.filter(fits), None);
        }
        Err(DecryptError::PayloadLength { .. } | DecryptError::RawLength { .. }) => {
            let sizes = PREFIX_BYTES + PADDED_BYTES_MIN..=PREFIX_BYTES + padded_bytes(PLAINTEXT_BYTES_MAX);
            assert!(!sizes.contains(&bytes.len()));
        }
        Err(error) => panic!("{error}"),
    }
    // Of a size that is right, with a length that may be.
    let Some((first, rest)) = bytes.split_first().filter(|(_, rest)| (1..=PLAINTEXT_BYTES_MAX).contains(&rest.len()))
    else {
        return;
    };
    let size = padded_bytes(rest.len());
    let declared = size.wrapping_sub(usize::from(*first));
    let prefix = u32::try_from(declared).unwrap_or(u32::MAX);
    let mut padded = [&prefix.to_be_bytes(), rest].concat();
    padded.resize(PREFIX_BYTES + size, *first);
    let fits = (1..=size).contains(&declared) && padded_bytes(declared) == size;
    let expected = if fits { Ok(padded[PREFIX_BYTES..][..declared].to_vec()) } else { Err(DecryptError::Padding) };
    assert_eq!(KEY.decrypt(&seal(&padded)), expected);
}

/// A payload with the right MAC in which these bytes stand after the nonce.
fn seal(padded: &[u8]) -> String {
    let keys = KEY.message_keys(&NONCE);
    let mut raw = [&[VERSION], &NONCE[..], padded].concat();
    keys.cipher().apply_keystream(&mut raw[CIPHERTEXT_START..]);
    let mac = keys.mac(&raw[1..]).finalize().into_bytes();
    raw.extend_from_slice(&mac);
    STANDARD.encode(&raw)
}
