//! Frames of wire v2, from outside.
//!
//! `hostile.rs` is also the body of the fuzz target `frame` in `fuzz/`; here it runs on random bytes and on frames with
//! random damage.

mod golden;
mod hostile;
mod memory;
mod refusals;
#[cfg(feature = "compress")]
mod size;
mod workload;

use litemesh_proto::codec::v2;
use litemesh_testkit::fuzz_seeds;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// The seeds of the fuzz target, and a longer frame.
fn good_frames() -> Vec<Vec<u8>> {
    let mut frames = fuzz_seeds("frame");
    assert!(frames.len() > 20, "{} frames", frames.len());
    frames.push(v2::message(&workload::message(workload::page(990, 100))));
    frames.push(v2::encode_changes(&workload::page(990, 60)));
    frames
}

/// Bytes with a kind and flags that are known go further than any bytes.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    (0..9_u8, 0..3_u8, vec(prop_oneof![0..4_u8, any::<u8>()], 0..200))
        .prop_map(|(kind, flags, rest)| [[kind, flags].as_slice(), &rest].concat())
}

/// What happens to some bytes of a frame.
#[derive(Clone, Debug)]
enum Damage {
    Replace(Index, u8),
    Add(Index, i8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    Repeat(Index, Index),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            any::<(Index, u8)>().prop_map(|(at, byte)| Self::Replace(at, byte)),
            any::<(Index, i8)>().prop_map(|(at, difference)| Self::Add(at, difference % 4)),
            any::<(Index, u8)>().prop_map(|(at, byte)| Self::Insert(at, byte)),
            any::<Index>().prop_map(Self::Remove),
            any::<Index>().prop_map(Self::Cut),
            any::<(Index, Index)>().prop_map(|(from, to)| Self::Repeat(from, to)),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        if length == 0 {
            return;
        }
        match self {
            Self::Replace(at, byte) => bytes[at.index(length)] = *byte,
            Self::Add(at, difference) => {
                let byte = &mut bytes[at.index(length)];
                *byte = byte.wrapping_add_signed(*difference);
            }
            Self::Insert(at, byte) => bytes.insert(at.index(length), *byte),
            Self::Remove(at) => drop(bytes.remove(at.index(length))),
            Self::Cut(at) => bytes.truncate(at.index(length)),
            Self::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let copy = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(to..to, copy);
            }
        }
    }
}

#[test]
fn good_frames_keep_what_hostile_ones_are_held_to() {
    good_frames().iter().for_each(|frame| hostile::check(frame));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_within_memory_or_refused(bytes in bytes()) {
        hostile::check(&bytes);
    }

    #[test]
    fn any_damage_to_a_frame_is_read_within_memory_or_refused(
        frame in prop::sample::select(good_frames()),
        damage in vec(Damage::any(), 1..6),
    ) {
        let mut bytes = frame;
        damage.iter().for_each(|damage| damage.apply(&mut bytes));
        hostile::check(&bytes);
    }
}
