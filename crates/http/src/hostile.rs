//! Everything here that parses a remote's bytes, as bodies of fuzz targets (docs/testing.md). No part of the public API.
//!
//! They are in this crate because what they call is private. Tests run them on random bytes under a seed, `fuzz/` under
//! LibFuzzer.

pub use crate::client::hostile::events;
pub use crate::server::hostile::{request, tokens};
pub use crate::websocket::hostile::socket;

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use litemesh_testkit::{for_seeds, fuzz_seeds};

    use super::*;

    /// Words one after another, or a seed in which some of them stand where something else stood.
    fn bytes(rng: &mut Rng, seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
        let mut bytes = if rng.bool() { rng.choice(seeds).unwrap().clone() } else { Vec::new() };
        let count = if bytes.is_empty() { rng.usize(..30) } else { rng.usize(..5) };
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
    fn any_stream_cut_anywhere_gives_the_events_of_the_standard() {
        let words =
            ["data: ", "data", "event:", "event: frame", ":", "\n", "\n\n", "\r", "\r\n", "\u{feff}", "{}", "AgAA"];
        check("events", 0xe7e2, 4000, &words, events);
    }

    #[test]
    fn any_request_is_understood_or_refused() {
        let words = [
            "\n",
            "\n\n",
            "peerId=",
            "&",
            "%",
            "last-event-id: ",
            "7-ff",
            "litemesh-version: 2\n",
            "gzip;q=0",
            ",",
            "{",
            "}",
            "\"peerId\":",
            "\"type\":\"data\",",
            "\"c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\"",
            "accept-encoding: ",
            "null",
            "\\",
            "content-type: ",
            "application/json",
            "application/vnd.litemesh.frames",
            "accept: ",
            "\x02\0\0\0\x06\0",
            "\"data\":{",
        ];
        check("request", 0x4e9, 4000, &words, request);
    }

    #[test]
    fn any_bytes_of_a_socket_cut_anywhere_give_the_same_messages() {
        let words = [
            "\u{1}\u{0}",
            "\u{2}\u{3}abc",
            "\u{0}\u{2}ab",
            "\u{9}\u{0}",
            "\0\0\0\0",
            "\u{7e}\0\u{7f}",
            "\u{7f}\0\0\0\0\0\0\0\u{10}",
            "ü",
        ];
        let body = |bytes: &[u8]| {
            socket(bytes);
            // As it is, hardly anything is masked or final. With the bits that say so, more is.
            let flagged: Vec<u8> =
                bytes.iter().map(|byte| if matches!(byte, 0..=2 | 8..=10) { byte | 0x80 } else { *byte }).collect();
            socket(&flagged);
        };
        let seeds = fuzz_seeds("socket");
        seeds.iter().for_each(|seed| body(seed));
        for_seeds(0x50c, 4000, |rng| body(&bytes(rng, &seeds, &words)));
    }

    #[test]
    fn only_a_token_itself_opens_the_door() {
        let words = [
            "\n",
            "\0",
            "Bearer ",
            "litemesh_",
            "_",
            "{\"revoke\":\"0000000000000001\"}",
            "\"rights\":\"read-write\"",
            "\"",
            "{",
            "}",
            ",\"tables\":[\"t\"]",
            "0",
            "F",
            "basic ",
        ];
        check("tokens", 0x70c, 1000, &words, tokens);
    }
}
