//! Every case of `nip44v3_*.json`, and properties.

use nostr::Keys;
use proptest::prelude::*;
use serde_json::Value as Json;
use sha2::Digest as _;

use super::*;

fn vectors(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

fn list<'a>(vectors: &'a Json, name: &str) -> &'a [Json] {
    let list = vectors[name].as_array().unwrap();
    assert!(!list.is_empty(), "{name}");
    list
}

fn text<'a>(case: &'a Json, name: &str) -> &'a str {
    case[name].as_str().unwrap_or_else(|| panic!("{name} of {case}"))
}

fn array<const N: usize>(case: &Json, name: &str) -> [u8; N] {
    const_hex::decode_to_array(text(case, name)).unwrap()
}

#[test]
fn conversation_keys_are_those_of_the_original() {
    let all = vectors(include_str!("../../tests/vectors/nip44v3_conversation_keys.json"));
    assert_eq!(text(&all, "salt").as_bytes(), SALT);
    for case in list(&all, "valid") {
        let [one, two] = ["sec1", "sec2"].map(|name| Keys::parse(text(case, name)).unwrap());
        assert_eq!(one.public_key().to_hex(), text(case, "pub1"));
        assert_eq!(two.public_key().to_hex(), text(case, "pub2"));
        for (own, other) in [(&one, &two), (&two, &one)] {
            let key = ConversationKey::derive(own.secret_key(), &other.public_key()).unwrap();
            assert_eq!(key.to_hex(), text(case, "conversation_key"));
        }
    }
    for case in list(&all, "invalid") {
        let key = SecretKey::parse(text(case, "sec1")).ok().map(|secret| {
            let public = PublicKey::from_byte_array(array(case, "pub2"));
            ConversationKey::derive(&secret, &public)
        });
        // No secret key at all, or no key of a conversation: the texts of the original are those of its library.
        assert!(!matches!(key, Some(Ok(_))), "{}", case["note"]);
    }
}

#[test]
fn message_keys_are_those_of_the_original() {
    let all = vectors(include_str!("../../tests/vectors/nip44v3_message_keys.json"));
    let key = ConversationKey::from_hex(text(&all, "conversation_key"));
    for case in list(&all, "keys") {
        let keys = key.message_keys(&array::<32>(case, "nonce"));
        assert_eq!(const_hex::encode(keys.cipher_key()), text(case, "chacha_key"));
        assert_eq!(const_hex::encode(keys.cipher_nonce()), text(case, "chacha_nonce"));
        assert_eq!(const_hex::encode(keys.mac_key()), text(case, "hmac_key"));
    }
}

#[test]
fn padded_lengths_are_those_of_the_original() {
    let all = vectors(include_str!("../../tests/vectors/nip44v3_padded_len.json"));
    for case in list(&all, "padded") {
        let [plaintext, padded] = [0, 1].map(|index| usize::try_from(case[index].as_u64().unwrap()).unwrap());
        assert_eq!(padded_bytes(plaintext), padded, "{plaintext} bytes");
    }
}

#[test]
fn payloads_are_those_of_the_original() {
    let all = vectors(include_str!("../../tests/vectors/nip44v3_encrypt.json"));
    for case in list(&all, "valid") {
        let [one, two] = ["sec1", "sec2"].map(|name| Keys::parse(text(case, name)).unwrap());
        let key = ConversationKey::derive(one.secret_key(), &two.public_key()).unwrap();
        assert_eq!(key.to_hex(), text(case, "conversation_key"));

        let plaintext = const_hex::decode(text(case, "plaintext_utf8_hex")).unwrap();
        assert_eq!(plaintext, text(case, "plaintext").as_bytes());
        let payload = key.encrypt_with_nonce(&[&plaintext], &array(case, "nonce")).unwrap();
        assert_eq!(payload, text(case, "payload"));

        assert_eq!(key.decrypt(&payload).unwrap(), plaintext);
        let read = case.get("decrypts_to").map_or(text(case, "plaintext"), |read| read.as_str().unwrap());
        assert_eq!(key.decrypt_text(&payload).unwrap(), read);
    }
}

#[test]
fn long_payloads_are_those_of_the_original() {
    let sha256 = |bytes: &[u8]| const_hex::encode(Sha256::digest(bytes));
    let all = vectors(include_str!("../../tests/vectors/nip44v3_encrypt.json"));
    for case in list(&all, "valid_long") {
        let key = ConversationKey::from_hex(text(case, "conversation_key"));
        let count = |name: &str| usize::try_from(case[name].as_u64().unwrap()).unwrap();
        let plaintext = text(case, "pattern").repeat(count("repeat"));
        assert_eq!(plaintext.len(), count("plaintext_bytes"));
        assert_eq!(sha256(plaintext.as_bytes()), text(case, "plaintext_sha256"));

        // In parts, as events are encrypted.
        let (start, end) = plaintext.as_bytes().split_at(plaintext.len() / 3);
        let payload = key.encrypt_with_nonce(&[start, end], &array(case, "nonce")).unwrap();
        assert_eq!(payload.len(), count("payload_length"));
        assert_eq!(sha256(payload.as_bytes()), text(case, "payload_sha256"));
        assert_eq!(key.decrypt_text(&payload).unwrap(), plaintext);
    }
}

#[test]
fn what_the_original_does_not_encrypt_we_do_not() {
    let all = vectors(include_str!("../../tests/vectors/nip44v3_encrypt.json"));
    let key = ConversationKey([7; 32]);
    for case in list(&all, "encrypt_errors") {
        let plaintext = match text(case, "plaintext") {
            "empty" => Vec::new(),
            "1048576 bytes" => vec![b'x'; 1_048_576],
            "1048577 bytes of 3-byte chars" => "中".repeat(349_526).into_bytes()[..1_048_577].to_vec(),
            other => panic!("{other}"),
        };
        assert_eq!(key.encrypt(&plaintext).unwrap_err().to_string(), text(case, "error"));
    }
}

#[test]
fn what_the_original_refuses_we_refuse_with_its_words() {
    let all = vectors(include_str!("../../tests/vectors/nip44v3_invalid.json"));
    let key = ConversationKey::from_hex(text(&all, "conversation_key"));
    for case in list(&all, "invalid") {
        let key =
            case.get("conversation_key").map_or(key.clone(), |hex| ConversationKey::from_hex(hex.as_str().unwrap()));
        let payload = match &case["payload_repeat"] {
            Json::Array(repeat) => {
                repeat[0].as_str().unwrap().repeat(usize::try_from(repeat[1].as_u64().unwrap()).unwrap())
            }
            _ => text(case, "payload").to_owned(),
        };
        let refused = key.decrypt(&payload).unwrap_err();
        assert_eq!(refused.to_string(), text(case, "error"), "{}", case["note"]);
        assert_eq!(key.decrypt_text(&payload), Err(refused));
    }
    for case in list(&all, "accepted_though_unusual") {
        let read = key.decrypt_text(text(case, "payload")).unwrap();
        assert_eq!(const_hex::encode(read), text(case, "decrypted_utf8_hex"), "{}", case["note"]);
    }
    let limits = &all["limits"];
    let expected = [
        ("min_plaintext", 1),
        ("max_plaintext", PLAINTEXT_BYTES_MAX),
        ("min_payload_chars", PAYLOAD_CHARS_MIN),
        ("max_payload_chars", PAYLOAD_CHARS_MAX),
        ("min_raw", RAW_BYTES_MIN),
        ("max_raw", RAW_BYTES_MAX),
    ];
    for (name, limit) in expected {
        assert_eq!(limits[name].as_u64(), Some(limit as u64), "{name}");
    }
}

/// What no vector shows.
#[test]
fn base64_must_be_strict() {
    let key = ConversationKey([7; 32]);
    let check = |payload: String, expected: DecryptError| {
        assert_eq!(key.decrypt(&payload), Err(expected), "{payload}");
    };
    check(format!("{}==", "A".repeat(134)), DecryptError::RawLength { bytes: 100 });
    check(format!("{}B==", "A".repeat(133)), Base64Error::TrailingBits.into());
    check(format!("{}A===", "A".repeat(132)), Base64Error::TooMuchPadding.into());
    check(format!("{}=A==", "A".repeat(132)), Base64Error::Letter { letter: '=' }.into());
    check("ü".repeat(68), Base64Error::Letter { letter: 'ü' }.into());
}

#[test]
fn nonces_are_fresh() {
    let key = ConversationKey([7; 32]);
    assert_ne!(key.encrypt(b"same"), key.encrypt(b"same"));
}

#[test]
fn debug_shows_no_secret() {
    assert_eq!(format!("{:?}", ConversationKey([7; 32])), "ConversationKey(..)");
}

proptest! {
    #[test]
    fn every_plaintext_comes_back(
        key: [u8; 32],
        plaintext in prop_oneof![
            prop::collection::vec(any::<u8>(), 1..600),
            (any::<u8>(), 1_usize..20_000).prop_map(|(byte, length)| vec![byte; length]),
        ],
        cut: prop::sample::Index,
    ) {
        let key = ConversationKey(key);
        let payload = key.encrypt(&plaintext).unwrap();
        prop_assert_eq!(payload.len(), (69 + padded_bytes(plaintext.len())).div_ceil(3) * 4);
        prop_assert_eq!(&key.decrypt(&payload).unwrap(), &plaintext);
        let (start, end) = plaintext.split_at(cut.index(plaintext.len()));
        prop_assert_eq!(&key.decrypt(&key.encrypt_with_nonce(&[start, &[], end], &[9; NONCE_BYTES]).unwrap()).unwrap(), &plaintext);
    }

    #[test]
    fn every_text_comes_back(plaintext in "[^\u{FEFF}]\\PC{0,80}") {
        let key = ConversationKey([7; 32]);
        prop_assert_eq!(key.decrypt_text(&key.encrypt(plaintext.as_bytes()).unwrap()).unwrap(), plaintext);
    }

    #[test]
    fn a_payload_of_which_any_byte_was_changed_is_refused(
        plaintext in prop::collection::vec(any::<u8>(), 1..300),
        at: prop::sample::Index,
        change in 1_u8..,
    ) {
        let key = ConversationKey([7; 32]);
        let mut raw = STANDARD.decode(key.encrypt(&plaintext).unwrap()).unwrap();
        let at = at.index(raw.len());
        raw[at] ^= change;
        let expected = if at == 0 { DecryptError::Version { version: raw[0] } } else { DecryptError::Mac };
        prop_assert_eq!(key.decrypt(&STANDARD.encode(&raw)), Err(expected));
    }

    #[test]
    fn a_payload_of_which_any_character_was_changed_is_refused(
        plaintext in prop::collection::vec(any::<u8>(), 1..300),
        at: prop::sample::Index,
        letter in any::<char>(),
    ) {
        let key = ConversationKey([7; 32]);
        let payload = key.encrypt(&plaintext).unwrap();
        let mut changed: Vec<char> = payload.chars().collect();
        let at = at.index(changed.len());
        prop_assume!(changed[at] != letter);
        changed[at] = letter;
        prop_assert!(key.decrypt(&changed.into_iter().collect::<String>()).is_err());
    }

    #[test]
    fn any_string_is_decrypted_or_refused(text in prop_oneof![".{0,300}", "[A-Za-z0-9+/]{132,140}={0,3}"]) {
        prop_assert!(ConversationKey([7; 32]).decrypt(&text).is_err());
    }

    /// The key is right, the inside is anything: only a length that fits passes.
    #[test]
    fn any_inside_is_read_or_refused(length in 0_u32..100, inside in prop::collection::vec(any::<u8>(), 36..140)) {
        let key = ConversationKey([7; 32]);
        let mut padded = length.to_be_bytes().to_vec();
        padded.extend_from_slice(&inside[4..]);
        let keys = key.message_keys(&[9; 32]);
        keys.cipher().apply_keystream(&mut padded);
        let mut raw = [&[VERSION][..], &[9; 32], &padded].concat();
        let mac = keys.mac(&raw[1..]).finalize().into_bytes();
        raw.extend_from_slice(&mac);
        let fits = length > 0 && padded_bytes(length as usize) == inside.len() - 4;
        match key.decrypt(&STANDARD.encode(&raw)) {
            Ok(plaintext) => prop_assert!(fits && plaintext == inside[4..4 + length as usize]),
            Err(error) => prop_assert!(!fits && error == DecryptError::Padding),
        }
    }
}
