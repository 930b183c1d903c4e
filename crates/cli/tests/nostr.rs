//! Devices paired through a relay: the real program on both sides, a real relay between them.
#![cfg(unix)] // signals

mod support;

use std::fs::File;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::Instant;

use nostr_relay_builder::builder::RateLimit;
use nostr_relay_builder::{LocalRelay, RelayBuilder};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::{Files, PATIENCE, Running, litemesh, litemesh_with_input, program, rows};
use tokio::runtime::Runtime;

/// A relay that is there as long as the runtime.
fn relay() -> (Runtime, LocalRelay, String) {
    let runtime = Runtime::new().unwrap();
    let limit = RateLimit { max_reqs: 100_000, notes_per_minute: 1_000_000 };
    let relay = LocalRelay::new(RelayBuilder::default().rate_limit(limit));
    let url = runtime.block_on(async {
        relay.run().await.unwrap();
        relay.url().await.to_string()
    });
    (runtime, relay, url)
}

/// Pairs two files.
fn pair(a: &str, b: &str, relay: &str) {
    let listening = Running::start(&["pair", a, "--relay", relay, "--name", "laptop", "--json"]);
    let string = listening.event("connection_string")["connection_string"].as_str().unwrap().to_owned();
    let joined = litemesh_with_input(&["join", b, "-", "--name", "phone", "--json"], &string).json();
    let paired = listening.event("paired");
    assert_eq!((joined["device"].as_str(), paired["device"].as_str()), (Some("laptop"), Some("phone")));
    assert_eq!(listening.end().0.code(), Some(0));
}

fn wait_until_equal(a: &str, b: &str) {
    let begun = Instant::now();
    while litemesh(&["diff", a, b]).code != Some(0) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", litemesh(&["diff", a, b]));
    }
}

fn insert(file: &str, id: &str) {
    litemesh(&["sql", file, &format!("INSERT INTO todo (id, title) VALUES ('{id}', 'x')")]).ok();
}

#[test]
fn paired_files_become_equal_and_stay_so() {
    let (_runtime, _relay, url) = relay();
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    litemesh(&["sync", &a, "nostr:"]).fails(2, &["not paired", "litemesh pair"]);
    pair(&a, &b, &url);
    insert(&a, "of a");
    insert(&b, "of b");
    let here = Running::start(&["sync", &a, "nostr:", "--json"]);
    litemesh(&["sync", &b, "nostr:", "--once", "--timeout", "120"]).ok();
    wait_until_equal(&a, &b);

    // Live, by another program's write.
    let there = Running::start(&["sync", &b, "nostr:", "--json"]);
    here.event("served");
    insert(&b, "live");
    wait_until_equal(&a, &b);

    // Unpaired while it runs.
    let peers = litemesh(&["peers", &a, "--json"]).json();
    assert_eq!(peers.as_array().map(Vec::len), Some(1));
    assert_eq!((&peers[0]["device"], &peers[0]["relays"][0]), (&"phone".into(), &url.into()));
    let site = peers[0]["peer"].as_str().unwrap();
    litemesh(&["unpair", &a, &site[..6]]).ok();
    assert!(here.event("disconnect")["reason"].as_str().unwrap().contains("no longer paired"));
    assert_eq!(litemesh(&["peers", &a]).ok(), format!("{a} is not paired with any device\n"));
    litemesh(&["unpair", &a, "phone"]).fails(2, &["not paired with phone"]);
    for running in [here, there] {
        assert_eq!(running.stop("-TERM").0.code(), Some(0));
    }
    assert_eq!(rows(&a, "SELECT count(*) AS n FROM todo")[0]["n"], 3);
}

/// Who is done first says so before it hangs up: the other one waits to hear it.
#[test]
fn two_that_end_once_they_are_in_sync_both_end() {
    let (_runtime, _relay, url) = relay();
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    pair(&a, &b, &url);
    insert(&a, "of a");
    insert(&b, "of b");
    let here = Running::start(&["sync", &a, "nostr:", "--once", "--timeout", "60", "--json"]);
    litemesh(&["sync", &b, "nostr:", "--once", "--timeout", "60"]).ok();
    assert_eq!(here.end().0.code(), Some(0));
    wait_until_equal(&a, &b);
}

/// Relays keep what was sent, but nobody says that it has arrived (`known-failures.md` E2).
#[test]
fn a_run_that_waits_for_a_device_says_for_which() {
    let (_runtime, _relay, url) = relay();
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    pair(&a, &b, &url);
    insert(&a, "of a");
    let told = litemesh(&["sync", &a, "nostr:", "--once", "--timeout", "9"]);
    // It is at the relay at once, and then there is no progress to tell.
    assert!(told.stdout.matches("catching up").count() <= 2, "{told:?}");
    told.fails(5, &["phone did not say within 9 s that everything is there", "--timeout", "litemesh unpair"]);
    let waits = Running::start(&["sync", &a, "nostr:", "--once", "--timeout", "60", "--json"]);
    assert_eq!(waits.event("waiting")["devices"], serde_json::json!(["phone"]));
    litemesh(&["sync", &b, "nostr:", "--once", "--timeout", "60"]).ok();
    assert_eq!(waits.end().0.code(), Some(0));
}

#[test]
fn keys_are_readable_by_their_owner_only() {
    let (_runtime, _relay, url) = relay();
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    pair(&a, &b, &url);
    for file in [a, b] {
        let mode = std::fs::metadata(format!("{file}-nostr")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

/// A terminal: what its screen is told, and the end for a program.
fn terminal() -> (File, File) {
    let no_control = OpenptFlags::NOCTTY;
    let screen = openpt(OpenptFlags::RDWR | no_control).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap();
    let flags = no_control.bits().try_into().unwrap();
    let program = File::options().read(true).write(true).custom_flags(flags).open(name.to_str().unwrap());
    (screen.into(), program.unwrap())
}

/// What a camera reads in rows of block characters, each two pixels high.
fn read_code(rows: &[String]) -> String {
    // Pixels of the picture for one of the code.
    const SCALE: usize = 4;
    // Black blocks on white.
    let rows: Vec<Vec<char>> = rows
        .iter()
        .map(|row| {
            row.strip_prefix("\x1b[30;107m").and_then(|row| row.strip_suffix("\x1b[0m")).unwrap().chars().collect()
        })
        .collect();
    let grey = |x: usize, y: usize| {
        let (x, y) = (x / SCALE, y / SCALE);
        let is_black = match rows[y / 2][x] {
            ' ' => false,
            '▀' => y % 2 == 0,
            '▄' => y % 2 == 1,
            '█' => true,
            other => panic!("{other:?} is no block"),
        };
        if is_black { 0 } else { 255 }
    };
    let (width, height) = (rows[0].len() * SCALE, rows.len() * 2 * SCALE);
    let mut picture = rqrr::PreparedImage::prepare_from_greyscale(width, height, grey);
    let codes = picture.detect_grids();
    assert_eq!(codes.len(), 1, "{rows:?}");
    codes[0].decode().unwrap().1
}

/// A camera in place of copying the line.
#[test]
fn the_code_on_the_terminal_is_what_pairs() {
    let (_runtime, _relay, url) = relay();
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    let (screen, terminal) = terminal();
    let child = program(&["pair", &a, "--relay", &url, "--name", "laptop"]).stdout(terminal).spawn().unwrap();
    let listening = Running::of(child, screen);
    let line = || listening.line().as_str().unwrap().to_owned();
    let string = line();
    let code: Vec<String> = std::iter::repeat_with(line).take_while(|line| !line.contains("litemesh join")).collect();
    let read = read_code(&code);
    assert_eq!(read, string);
    litemesh(&["join", &b, &read, "--name", "phone"]).ok();
    assert!(line().starts_with("paired with phone"));
    assert_eq!(listening.end().0.code(), Some(0));
}

/// Nobody waits for minutes and wonders (`known-failures.md` E2).
#[test]
fn relays_that_cannot_be_reached_are_named() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = format!("ws://{nobody}");
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    let pairing = Running::start(&["pair", &a, "--relay", &dead, "--json"]);
    let string = pairing.event("connection_string")["connection_string"].as_str().unwrap().to_owned();
    litemesh(&["join", &b, &string]).fails(5, &[&dead, "efused", "check the addresses of the relays"]);
    let told = pairing.event("unreachable");
    assert!(told["reason"].as_str().unwrap().contains(&dead), "{told}");
    pairing.stop("-INT");

    let (runtime, relay, url) = relay();
    pair(&a, &b, &url);
    relay.shutdown();
    drop((relay, runtime));
    let address = url.trim_end_matches('/');
    litemesh(&["sync", &a, "nostr:", "--once", "--timeout", "4"])
        .fails(5, &["no relay of phone reached within 4 s", address, "efused"]);
    let stays = Running::start(&["sync", &a, "nostr:", "--json"]);
    let told = stays.event("unreachable");
    assert_eq!((&told["kind"], &told["devices"][0]), (&"relays".into(), &"phone".into()), "{told}");
    assert_eq!(stays.stop("-TERM").0.code(), Some(0));
}

#[test]
fn what_cannot_be_paired_is_told_why() {
    let files = Files::new();
    let a = files.database("a.db");
    // No point of the curve.
    let key = "f".repeat(64);
    let string = format!("nostr+keepai://{key}?relay=ws%3A%2F%2F127.0.0.1%3A1&secret={0}&nonce={0}", "0".repeat(32));
    litemesh(&["join", &a, &string]).fails(2, &["the key in the connection string", "litemesh pair"]);
    let text = files.write("text.db", "this is no database");
    litemesh(&["peers", &text]).fails(3, &["text.db", "not a database"]);
    litemesh(&["unpair", &text, "phone"]).fails(3, &["text.db", "not a database"]);
    litemesh(&["join", &a, "nostr+keepai://nothing"]).fails(2, &["connection string", "litemesh pair"]);
    litemesh(&["pair", &a, "--relay", "https://example.org/"]).fails(2, &["https://example.org/", "wss://"]);
    assert_eq!(litemesh(&["peers", &a, "--json"]).json(), serde_json::json!([]));
    litemesh(&["peers", &files.path("none.db")]).fails(3, &["does not exist"]);
}
