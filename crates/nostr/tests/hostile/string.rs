//! Any text as a connection string, as its key, and as the address of a relay in it.

use litemesh_nostr::ConnectionString;
use litemesh_nostr::nostr::{PublicKey, RelayUrl};

use crate::memory::peak_of;

/// Bytes of memory for each byte of a string: three where it is escaped, and as a URL, as parts, and as what grows.
const MEMORY_PER_BYTE: usize = 20;
const MEMORY_ELSE: usize = 1024;

const KEY: &str = "1e57a1388e445f433a624a16cdd93ca32205e5a119cb9c34f5d0599a8d50d237";

/// What is read has all of its parts and is written and read the same; what is refused is refused in few words.
pub(crate) fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    check_text(&text);
    check_text(&format!("nostr+keepai://{text}"));
    check_text(&format!("nostr+keepai://{text}?relay=wss%3A%2F%2Fr.example&secret=s&nonce=n"));
    check_text(&format!("nostr+keepai://{KEY}?relay={text}&secret=s&nonce=n"));
    check_written(&text);
}

fn check_text(text: &str) {
    let (read, memory) = peak_of(|| text.parse::<ConnectionString>());
    assert!(memory <= text.len() * MEMORY_PER_BYTE + MEMORY_ELSE, "{memory} bytes of memory for {}", text.len());
    let string = match read {
        Ok(string) => string,
        Err(error) => return assert!(error.to_string().len() <= 200, "{error}"),
    };
    assert!(text.starts_with("nostr+keepai://") && !string.relays().is_empty());
    let parts = [string.public_key(), string.secret(), string.nonce()];
    assert!(parts.iter().all(|part| !part.is_empty()));
    // A byte may be escaped as three.
    let relays = string.relays().iter().map(String::len).sum::<usize>();
    assert!(relays + parts.map(str::len).iter().sum::<usize>() <= 3 * text.len());
    assert_eq!(string.to_string().parse().as_ref(), Ok(&string));
    match string.listener() {
        Ok(key) => assert_eq!(key.to_hex(), string.public_key().to_ascii_lowercase()),
        Err(error) => assert!(error.to_string().len() <= 200, "{error}"),
    }
    for relay in string.relays() {
        // Who joins goes on with this, and keeps it as text where that can be read.
        let kept = RelayUrl::parse(relay).map(|url| url.to_string());
        if let Ok(Ok(again)) = kept.as_ref().map(|kept| RelayUrl::parse(kept)) {
            assert_eq!(Ok(again.to_string()), kept);
        }
    }
}

/// What one device writes the other reads, whatever its relays are called.
fn check_written(text: &str) {
    let listener = PublicKey::from_hex(KEY).expect("a key");
    let (one, two) = text.split_at(text.floor_char_boundary(text.len() / 2));
    let string = ConnectionString::generate(&listener, [one, two]).expect("two relays");
    let written = string.to_string();
    assert!(written.is_ascii() && !written.contains(char::is_whitespace));
    assert_eq!(written.parse().as_ref(), Ok(&string));
    assert_eq!(string.listener(), Ok(listener));
}
