//! JSON of wire v1, and cursors, from outside.
//!
//! `hostile.rs` and `cursor.rs` are also the bodies of the fuzz targets `json` and `cursor` in `fuzz/`; here they run on random
//! bytes, and on the seeds of those targets with random damage.

mod cursor;
mod hostile;
#[path = "../frames/memory.rs"]
mod memory;

use litemesh_testkit::fuzz_seeds;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Words of the format, and what is put into strings and numbers to break their readers.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "-1",
    "0",
    "1.0",
    "9e999",
    "9007199254740993",
    "\"type\":",
    "\"peerId\":",
    "\"cursor\":",
    "\"peers\":",
    "\"data\":",
    "\"sync\"",
    "\"changes\"",
    "\"eose\"",
    "\"litemesh\":",
    "\"access\":",
    "\"tables\":",
    "\"pk\":",
    "\"val\":",
    "\"Buffer\"",
    "\"__proto__\"",
    "\"__pro\\u0074o__\":",
    "\\ud800",
    "\\u0000",
    "\"c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\"",
    "é",
    "\u{feff}",
];

fn words() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![4 => select(WORDS).prop_map(|word| word.as_bytes().to_vec()), 1 => vec(any::<u8>(), 0..4)], 0..40)
        .prop_map(|words| words.concat())
}

/// A seed in which words stand where something else stood.
fn damaged(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let damage = (any::<Index>(), 0..12_usize, prop_oneof![select(WORDS).prop_map(str::to_owned), Just(String::new())]);
    (select(fuzz_seeds(target)), vec(damage, 0..5)).prop_map(|(mut bytes, damages)| {
        for (at, length, word) in damages {
            let at = at.index(bytes.len() + 1);
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, word.into_bytes());
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_json_is_read_within_memory_or_refused(bytes in prop_oneof![words(), damaged("json")]) {
        hostile::check(&bytes);
    }

    #[test]
    fn any_cursor_is_the_same_in_every_form(bytes in prop_oneof![words(), damaged("cursor"), vec(any::<u8>(), 0..120)]) {
        cursor::check(&bytes);
    }
}
