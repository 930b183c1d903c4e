//! Strings that somebody is given, and events of a paired peer and of relays: any bytes, within memory, and never a panic.
//!
//! The bodies are those of the fuzz targets `nostr_string` and `nostr_event` in `fuzz/`; here they run on random bytes under a seed
//! (docs/testing.md). Bodies that call what is private are in `src/hostile.rs`.

mod event;
#[path = "../../../proto/tests/frames/memory.rs"]
mod memory;
mod string;

use fastrand::Rng;
use litemesh_testkit::{for_seeds, fuzz_seeds};

/// Words one after another, or a seed in which some of them stand where something else stood.
fn bytes(rng: &mut Rng, seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut bytes = if rng.u8(..4) > 0 { rng.choice(seeds).unwrap().clone() } else { Vec::new() };
    let count = if bytes.is_empty() { rng.usize(..30) } else { rng.usize(..4) };
    for _ in 0..count {
        let word = match rng.u8(..4) {
            0 => (0..rng.usize(..5)).map(|_| rng.u8(..)).collect(),
            _ => rng.choice(words).unwrap().as_bytes().to_vec(),
        };
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..6)).min(bytes.len());
        bytes.splice(at..end, word);
    }
    bytes
}

fn check(target: &str, first: u64, count: u64, words: &[&str], body: fn(&[u8])) {
    let seeds = fuzz_seeds(target);
    seeds.iter().for_each(|seed| body(seed));
    for_seeds(first, count, |rng| body(&bytes(rng, &seeds, words)));
}

#[test]
fn any_text_is_a_connection_string_or_refused() {
    let words = [
        "nostr+keepai://",
        "//",
        "?",
        "&",
        "=",
        "#",
        "%",
        "%25",
        "%ff",
        "%C3%BC",
        "+",
        "@",
        ":",
        "[",
        "]",
        "/",
        "\\",
        " ",
        "\t",
        "\u{0}",
        "ü",
        "relay=",
        "secret=",
        "nonce=",
        "wss%3A%2F%2Fr.example",
        "..",
        ":80",
        "[::1]",
        "xn--",
    ];
    check("nostr_string", 0x5741, 2000, &words, string::check);
}

#[test]
fn any_event_of_a_peer_is_read_or_refused() {
    let words = [
        "0\n\n",
        "1\n\n",
        "2\n\n",
        "2r=s\n\n",
        "r=",
        "e=",
        "expiration=",
        "=",
        "\n",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "null",
        "true",
        "false",
        "-1",
        "9e999",
        "\"secret\":",
        "\"peer_id\":",
        "\"device_info\":",
        "\"success\":",
        "\"litemesh\":",
        "\"version\":",
        "\"sync\":",
        "\"ack\":",
        "\"stream_id\":",
        "\"cursor\":",
        "\"peers\":",
        "\"msg\":",
        "\"type\":",
        "\"data\":",
        "\\u0000",
        "\\ud800",
        "\"b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2\"",
        "\"__proto__\"",
        "\u{feff}",
        "é",
        "\u{2}",
    ];
    check("nostr_event", 0xe7e7, 500, &words, event::check);
}
