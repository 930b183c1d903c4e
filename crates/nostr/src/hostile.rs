//! What is private here and takes what a remote sent, as bodies of fuzz targets (docs/testing.md). No part of the public API.
//!
//! Tests run them on random bytes under a seed, `fuzz/` under LibFuzzer. Bodies that call nothing private are in
//! `tests/hostile/`.

pub use crate::chain::hostile::chain;
pub use crate::nip44v3::hostile::payload;
pub use crate::parts::hostile::parts;
pub use crate::reach::hostile::reach;

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use litemesh_testkit::{for_seeds, fuzz_seeds};

    use super::*;

    /// A seed with some bytes in the place of others, or any bytes.
    fn bytes(rng: &mut Rng, seeds: &[Vec<u8>], any_max: usize) -> Vec<u8> {
        if rng.bool() {
            return any(rng, any_max);
        }
        let mut bytes = rng.choice(seeds).unwrap().clone();
        for _ in 0..rng.usize(..5) {
            let at = rng.usize(..=bytes.len());
            let end = (at + rng.usize(..4)).min(bytes.len());
            let put = any(rng, 4);
            bytes.splice(at..end, put);
        }
        bytes
    }

    fn any(rng: &mut Rng, length_max: usize) -> Vec<u8> {
        (0..rng.usize(..=length_max)).map(|_| rng.u8(..)).collect()
    }

    fn check(target: &str, first: u64, count: u64, any_max: usize, body: fn(&[u8])) {
        let seeds = fuzz_seeds(target);
        seeds.iter().for_each(|seed| body(seed));
        for_seeds(first, count, |rng| body(&bytes(rng, &seeds, any_max)));
    }

    #[test]
    fn only_what_was_encrypted_is_decrypted() {
        check("nostr_payload", 0x44e3, 1000, 300, payload);
    }

    #[test]
    fn any_parts_make_the_frame_that_they_are_of() {
        check("nostr_parts", 0x9a47, 1000, 200, parts);
    }

    #[test]
    fn any_events_are_taken_once_and_in_their_order() {
        check("nostr_chain", 0xc4a1, 300, 120, chain);
    }

    #[test]
    fn any_messages_leave_a_reach_that_can_be_kept() {
        check("nostr_reach", 0x4eac, 3000, 200, reach);
    }
}
