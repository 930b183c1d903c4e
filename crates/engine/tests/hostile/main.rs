//! Hostile input: packed keys, SQL functions and changes as an attacker may send them. Never a panic, and what is refused
//! changes nothing (`crsqlite-compat.md` section 19, item 6).
//!
//! The bodies are those of the fuzz targets in `fuzz/`; here they run on random bytes under a seed (docs/testing.md).

mod consistency;
mod function_call;
mod merge;
mod packed_key;
mod snapshot;

use fastrand::Rng;
use function_call::{Argument, Scene, hostile_arguments};
use litemesh_engine::proto::PackedKey;
use litemesh_engine::rusqlite::types::Value;
use litemesh_testkit::{for_seeds, fuzz_seeds};

fn random_bytes(rng: &mut Rng, length_max: usize) -> Vec<u8> {
    (0..rng.usize(..=length_max)).map(|_| rng.u8(..)).collect()
}

/// `known-failures.md` B5: a key of no bytes ends the original's process.
#[test]
fn any_bytes_are_a_packed_key_or_refused() {
    fuzz_seeds("packed_key").iter().for_each(|seed| packed_key::check(seed));
    for_seeds(0x9ac6ed, 20_000, |rng| {
        let mut bytes = random_bytes(rng, 40);
        packed_key::check(&bytes);
        // Few and known tags reach further than any bytes.
        for byte in &mut bytes {
            if rng.bool() {
                *byte = *rng
                    .choice(&[0, 1, 2, 3, 0x01, 0x02, 0x03, 0x04, 0x05, 0x09, 0x0b, 0x0c, 0x11, 0x41, 0x43, 0x7f, 0xff])
                    .unwrap();
            }
        }
        packed_key::check(&bytes);
    });
}

#[test]
fn any_call_of_a_function_succeeds_or_changes_nothing() {
    fuzz_seeds("function_call").iter().for_each(|seed| function_call::check(seed));
    for_seeds(0xca11, 400, |rng| function_call::check(&random_bytes(rng, 200)));
}

#[test]
fn any_changes_are_merged_whole_or_refused_whole() {
    fuzz_seeds("merge").iter().for_each(|seed| merge::check(seed));
    for_seeds(0x3e46e, 300, |rng| merge::check(&random_bytes(rng, 400)));
}

/// Arguments with which a function gets as far as it can. One of them at a time is then replaced.
fn good_calls() -> Vec<(&'static str, Vec<Argument>)> {
    let text = |text: &str| Argument::Text(text.into());
    let integer = |value: i64| Argument::Value(Value::Integer(value));
    let packed = |values: &[i64]| {
        let values: Vec<_> = values.iter().copied().map(litemesh_engine::proto::Value::Integer).collect();
        Argument::Value(Value::Blob(PackedKey::pack(&values).unwrap().as_bytes().to_vec()))
    };
    vec![
        ("crsql_as_crr", vec![text("plain")]),
        ("crsql_as_crr", vec![text("main"), text("plain")]),
        ("crsql_as_table", vec![text("foo")]),
        ("crsql_automigrate", vec![text("CREATE TABLE IF NOT EXISTS plain (a INTEGER PRIMARY KEY NOT NULL)")]),
        (
            "crsql_automigrate",
            vec![text("CREATE TABLE IF NOT EXISTS foo (a INTEGER PRIMARY KEY NOT NULL, b)"), text("SELECT 1")],
        ),
        ("crsql_begin_alter", vec![text("foo")]),
        ("crsql_begin_alter", vec![text("main"), text("pair")]),
        ("crsql_pack_columns", vec![integer(1), text("b")]),
        ("crsql_config_set", vec![text("merge-equal-values"), integer(1)]),
        ("crsql_config_get", vec![text("merge-equal-values")]),
        ("crsql_after_insert", vec![text("foo"), integer(3)]),
        ("crsql_after_insert", vec![text("pair"), integer(3), integer(4)]),
        ("crsql_after_delete", vec![text("foo"), integer(3)]),
        ("crsql_after_delete", vec![text("pair"), integer(3), integer(4)]),
        (
            "crsql_after_update",
            [&[text("foo"), integer(4), integer(3)], [1, 2, 3, 4, 5, 6].map(integer).as_slice()].concat(),
        ),
        ("crsql_after_update", [&[text("pair")], [1, 2, 3, 4].map(integer).as_slice()].concat()),
        (
            "litemesh_after_update",
            // The new row and the old one, packed: what triggers of wide tables give.
            vec![text("foo"), packed(&[4, 5, 6, 7]), packed(&[3, 5, 6, 8])],
        ),
        ("crsql_fract_as_ordered", vec![text("foo"), text("spot"), text("list")]),
        ("crsql_fract_key_between", vec![text("a "), text("a!")]),
        (
            "crsql_fract_fix_conflict_return_old_key",
            vec![text("foo"), text("spot"), text("list"), integer(-1), text("a"), integer(3)],
        ),
    ]
}

/// Every function that is registered, whatever was added since: none, one, two and too many arguments of each kind, and the
/// good calls with one argument replaced or left out.
#[test]
fn functions_refuse_hostile_arguments_and_change_nothing() {
    let scene = Scene::new();
    let hostile = hostile_arguments();
    assert!(scene.functions.len() >= 27, "{:?}", scene.functions);
    for_seeds(0xa26, 1, |rng| {
        for (name, count) in &scene.functions {
            let takes = |given: usize| *count < 0 || usize::try_from(*count) == Ok(given);
            // SQLite itself refuses a wrong number of arguments where the right one is fixed.
            let call = |arguments: &[Argument]| {
                let succeeded = scene.call(name, arguments).is_ok();
                assert!(!succeeded || takes(arguments.len()), "{name} took {} arguments", arguments.len());
            };
            call(&[]);
            for argument in &hostile {
                call(std::slice::from_ref(argument));
            }
            for arguments in 2..=9 {
                for _ in 0..if takes(arguments) { 60 } else { 1 } {
                    let chosen: Vec<_> = (0..arguments).map(|_| rng.choice(&hostile).unwrap().clone()).collect();
                    call(&chosen);
                }
            }
            for arguments in [100, 256, 1000, 1001] {
                call(&vec![Argument::Text("foo".into()); arguments]);
                call(&vec![Argument::Value(Value::Null); arguments]);
            }
        }
    });
    for (name, good) in good_calls() {
        assert_eq!(scene.call(name, &good), Ok(()), "{name}: where the hostile calls start");
        for position in 0..good.len() {
            let mut shorter = good.clone();
            shorter.remove(position);
            let _ = scene.call(name, &shorter);
            for argument in &hostile {
                let mut replaced = good.clone();
                replaced[position] = argument.clone();
                let _ = scene.call(name, &replaced);
                replaced.push(argument.clone());
                let _ = scene.call(name, &replaced);
            }
        }
    }
}
