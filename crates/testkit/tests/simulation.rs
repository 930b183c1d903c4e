//! Many peers on virtual time, with faults (docs/testing.md, "Simulation"). The same seed is the same run.

use litemesh_testkit::{Carried, Faults, Lossy, Options, Simulation, for_seed_numbers};

/// All faults but the restored backup, relays, and peers that keep the rules of the original, which have tests of their own.
const USUAL: Faults = Faults { restores: false, relays: false, originals: false, ..Faults::ALL };

/// Every seed that ever failed, with what was at fault. What a seed does changes with the simulation; they stay all the same.
const REGRESSIONS: &[u64] = &[
    37,        // a commit while a v1 plan of several pages is read was forgotten until the next commit
    59,        // the same, with a transaction that a relay passes on
    262,       // the same, with the upgrade of a schema
    444,       // the bound on the changes of a connection was too low for v1
    1_000_082, // a request that came while a page was read for the one before had a second page read beside it
    4_435,     // a fork went on to claim no more of itself than its former id had forgotten
    5_480,     // the same, without a third peer
    // The same or its like, as all ten were in the run of the first two: numbers that were lost, found by running their tree once more.
    1_335, 4_591, 7_707, 9_821, 10_439, 11_274, 12_756, 12_772, 13_532, 14_058,
    20_721, // a file that went on above what others know told positions there as if it had written what lies below
    1_999,  // a change that wire v1 brought under an earlier version kept that number when its own was known
    12_609, // a copy that was forked went on to claim what a remote had left out for its original's sake
    1_000_213, // the bound on the messages of one transaction left out the news of those who merge it
];

/// A seed that failed before there were faults that draw by themselves. Without those it still is what it was.
fn check_former(options: &Options, seed: u64) {
    let faults = Faults { hasty: false, clocks: false, ..options.faults };
    Simulation::new(seed, &Options { faults, ..options.clone() }).run();
}

fn check(options: &Options, first: u64, count: u64) {
    for_seed_numbers(first, count, |seed| {
        Simulation::new(seed, options).run();
    });
}

#[test]
fn peers_converge_on_links_that_only_delay() {
    check(&Options { faults: Faults::NONE, ..Options::default() }, 1, 50);
}

#[test]
fn peers_converge_whatever_fails() {
    check(&Options { faults: USUAL, ..Options::default() }, 1, 500);
}

/// Within one message, nobody ever sees half of a transaction.
#[test]
fn transactions_that_fit_a_message_are_seen_whole_whatever_fails() {
    check(&Options { faults: Faults { small_pages: false, ..USUAL }, ..Options::default() }, 1_000_001, 400);
}

/// Between Litemesh peers they do not have to fit, and somebody may have overwritten a part of one since.
#[test]
fn transactions_are_seen_whole_whatever_fails() {
    let faults = Faults { v1: false, relays: false, originals: false, ..Faults::ALL };
    let options = Options { faults, ..Options::default() };
    check(&options, 5_000_001, 150);
    // What two connections of one remote staged was one chain, and each completed what the other had read at another time.
    check_former(&options, 5_001_081);
    // What came after a message that could not be read was merged without it.
    check_former(&options, 5_000_426);
    check_former(&options, 5_000_590);
}

/// The engine does first what many wait for.
#[test]
fn peers_converge_in_whatever_order_the_engine_works() {
    let mixed = Options { faults: USUAL, lanes: true, ..Options::default() };
    check(&mixed, 6_000_001, 50);
    // A v1 answer's end that came again, in the middle of a transaction, was taken for the end of that.
    check_former(&mixed, 6_000_410);
    // The end of a v1 answer said that a version was complete of which only a part had come, live.
    check_former(&mixed, 6_000_965);
    // An answer left out what had come live, and with it what had beaten the rest.
    check_former(&mixed, 6_000_291);
    let faults = Faults { v1: false, relays: false, originals: false, ..Faults::ALL };
    let litemesh = Options { faults, lanes: true, ..Options::default() };
    check(&litemesh, 7_000_001, 50);
    // A restored file claimed what it had forgotten, where merges had taken as many versions.
    check_former(&litemesh, 7_000_110);
    // After an upgrade, what was still being merged counted as the first message of the next answer, and that was dropped.
    check_former(&litemesh, 7_000_790);
}

/// A transport that loses or reorders notices it, and ends the connection.
#[test]
fn peers_converge_over_carriers_that_lose_and_reorder() {
    check(&Options { faults: USUAL, lossy: Lossy::Cut, ..Options::default() }, 2_000_001, 50);
}

#[test]
fn a_restored_peer_gets_back_what_others_have() {
    let options = Options { faults: Faults { relays: false, originals: false, ..Faults::ALL }, ..Options::default() };
    check(&options, 3_000_001, 100);
    for seed in [
        3_000_051, // a restored peer that others refuse has to be forked
        3_000_413, // what others hold of a restored file was waited for up to a version that only its merges had taken
        3_000_054, // an answer left out what had come live, and with it what had beaten the rest
    ] {
        check_former(&options, seed);
    }
}

/// Its versions stand for two things then. It is forked with the version of the backup when all is healed, where nobody has refused it
/// before. Of all rows but those that its forgotten writes touched, everything that anybody wrote must be everywhere then.
#[test]
fn who_writes_to_a_restored_file_at_once_keeps_that_and_harms_nothing_else() {
    let faults = Faults { restores: true, hasty: true, breaks: true, vanishing: true, ..Faults::NONE };
    check(&Options { faults, ..Options::default() }, 10_000_001, 100);
    let faults = Faults { copies: true, v1: true, double_wires: true, relays: true, small_pages: true, ..faults };
    check(&Options { faults, steps: 60, ..Options::default() }, 10_500_001, 100);
}

/// Also where its author has gone for good meanwhile: what a peer has acknowledged is on its disk, with what that follows.
#[test]
fn what_was_acknowledged_outlives_power_cuts() {
    let faults = Faults { power: true, crashes: true, breaks: true, vanishing: true, ..Faults::NONE };
    check(&Options { faults, ..Options::default() }, 12_000_001, 100);
    let faults = Faults { restores: false, copies: false, twins: false, originals: false, v1: false, ..Faults::ALL };
    let faults = Faults { power: true, relays: false, ..faults };
    check(&Options { faults, ..Options::default() }, 12_500_001, 100);
    // Over wire v1 nothing is acknowledged, and what a file writes comes all the same that waits for what it has forgotten.
    check(&Options { faults: Faults { v1: true, ..faults }, ..Options::default() }, 12_800_001, 50);
    // With relays, which outlive what is lost with the power, and keep what was sent in another life of their peers.
    let relayed = Options { faults: Faults { relays: true, ..faults }, ..Options::default() };
    check(&relayed, 12_600_001, 100);
    let plain = Faults { power: true, crashes: true, breaks: true, vanishing: true, relays: true, ..Faults::NONE };
    let plain = Options { faults: plain, ..Options::default() };
    check(&plain, 12_700_001, 100);
    for (options, seed) in [
        (&relayed, 12_000_410), // what came back to its author was passed on under a version that nobody had claimed
        (&relayed, 12_500_366), // (the simulation did not look for what follows the part of a message)
        (&relayed, 12_600_018), // that a file had everything again, and so held what it had written meanwhile, was told to nobody
        (&relayed, 12_600_157), // a stream went on behind what had been told over a line, and was lost with the power since
        (&plain, 12_000_104),   // what had come back already was waited for again, and for ever
        (&plain, 12_000_146), // who had sent what it could not claim, and lost it, went on with the stream, and was not sent it back
    ] {
        Simulation::new(seed, options).run();
    }
}

/// Leaves that ask, answer, filter and pass on as the original does.
#[test]
fn the_original_and_ours_converge() {
    let faults = Faults { relays: false, restores: false, ..Faults::ALL };
    check(&Options { faults, ..Options::default() }, 4_000_001, 100);
}

/// `known-failures.md` B1: what goes round a ring never ends.
/// What one passes on comes back to the others over two ways, and is known there. Nothing fails, since what the original then gives out in
/// part is lost with it (A3).
#[test]
fn cycles_with_the_original_in_them_become_quiet() {
    let faults = Faults { originals: true, double_wires: true, slow: true, ..Faults::NONE };
    check(&Options { faults, original_cycles: true, ..Options::default() }, 9_000_001, 60);
}

/// The same where relays join some of them, beside links or in their place, also to the same peer.
#[test]
fn cycles_with_the_original_over_relays_and_links_become_quiet() {
    let faults = Faults { originals: true, relays: true, double_wires: true, slow: true, ..Faults::NONE };
    check(&Options { faults, original_cycles: true, ..Options::default() }, 12_000_001, 60);
}

#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    for seed in REGRESSIONS {
        for small_pages in [true, false] {
            let faults = Faults { small_pages, ..USUAL };
            Simulation::new(*seed, &Options { faults, ..Options::default() }).run();
        }
    }
}

/// Beside direct connections and in their place, and with both between the same two peers.
#[test]
fn peers_converge_over_relays_that_keep_messages_and_forget_some() {
    let faults = Faults { originals: false, v1: false, ..Faults::ALL };
    // Among them 8,000,056: what a relay had forgotten was said again with an earlier date, as the clock was behind. And 8,000,094: what was
    // acknowledged before its sender heard that a relay had it did not count as acknowledged.
    check(&Options { faults, ..Options::default() }, 8_000_001, 100);
    for seed in [
        8_030_184, // a copy that was forked went on to claim what a remote had left out for its original's sake
        8_000_116, // what a device had sent was not sent back to it where it had been restored, since its stream went on
        8_000_541, // nobody said that a stream was at its end that had been gone on with
        8_000_878, // what followed a message that could not be stored was merged one by one
        8_001_271, // what a restored device had sent and others read later was not sent back to it
        8_003_366, // a sender that was restored ended in its new life what was staged of its former one
        8_100_272, // of three ways two ended, one right after the other, and what had come over the first went back over the last
        8_001_609, // (the simulation let a restored peer write while a relay had something of its former life)
    ] {
        check_former(&Options { faults, ..Options::default() }, seed);
    }
    let faults = Faults { restores: false, ..Faults::ALL };
    let options = Options { faults, ..Options::default() };
    check(&options, 8_500_001, 50);
    // An original that had half of a transaction dropped the other half, which came under an earlier version than it claimed.
    check_former(&options, 8_020_602);
}

/// Relays take nothing that is far in the future or has expired. Once clocks are right again, everything comes.
#[test]
fn wall_clocks_that_were_wrong_have_lost_nothing() {
    let faults = Faults { relays: true, clocks: true, crashes: true, restores: true, ..Faults::NONE };
    // Among them 11,000,016 and 11,000,037: what followed a time when a clock had been ahead was dated before what relays had, as the clock
    // was behind then, and nobody looked at it.
    let options = Options { faults, ..Options::default() };
    check(&options, 11_000_001, 100);
    // It was waited for ever for what a peer might still hold that had another id by then.
    Simulation::new(11_070_250, &options).run();
}

/// Litemesh sessions notice themselves what their carrier lost or reordered.
#[test]
fn litemesh_peers_converge_on_links_that_lose_and_reorder() {
    let faults = Faults { relays: false, originals: false, ..Faults::ALL };
    check(&Options { faults, lossy: Lossy::PassOn, ..Options::default() }, 1, 100);
}

/// So that none ceases to be drawn unnoticed.
#[test]
fn every_transport_is_met_and_breaks_within_messages() {
    let relayed = Faults { relays: true, clocks: true, crashes: true, ..Faults::NONE };
    let (mut carried, mut pairings) = (Carried::default(), 0);
    for faults in [Faults { restores: false, ..Faults::ALL }, relayed] {
        for seed in 10_000_001..=10_000_040 {
            let report = Simulation::new(seed, &Options { faults, ..Options::default() }).run();
            carried.add(report.carried);
            pairings += report.pairings;
        }
    }
    println!("{carried:?}, and {pairings} pairs of peers over relays");
    assert_eq!(carried.missing(), [""; 0], "{carried:?}");
    assert!(pairings > 0);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let over_relays = Faults { relays: true, clocks: true, ..USUAL };
    for faults in [USUAL, over_relays] {
        for_seed_numbers(1, 15, |seed| {
            let run = || Simulation::new(seed, &Options { faults, ..Options::default() }).run();
            assert_eq!(run(), run(), "seed {seed}");
        });
    }
}
