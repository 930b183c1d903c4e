//! A disk that is full: hub and peer on a file system of a few megabytes, mounted in a namespace of its own, which needs no rights
//! beyond those of a user. SQLite says "database or disk is full" there, as it does to people.
#![cfg(target_os = "linux")] // unshare, nsenter, tmpfs

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use support::{Done, Files, Hub, PATIENCE, Running, litemesh, piped, run};

/// Room for the empty database and some of what is written.
const SMALL: &str = "4m";
const LARGE: &str = "200m";

/// Transactions, rows of each, and characters of each row: 12 MB that cannot be compressed to less than half.
const TRANSACTIONS: u64 = 12;
const ROWS: u64 = 50;
const TEXT_BYTES: u64 = 20_000;

const SCHEMA: &str =
    "CREATE TABLE part (batch INTEGER NOT NULL, id INTEGER NOT NULL, text TEXT, PRIMARY KEY (batch, id));";

/// A file system of its own, mounted where nobody else sees it.
struct SmallDisk {
    folder: Files,
    /// Keeps it. Ends when its input does.
    holder: Child,
    _input: ChildStdin,
}

impl SmallDisk {
    fn new() -> Self {
        let folder = Files::new();
        let script = format!("mount -t tmpfs -o size={SMALL} tmpfs \"$0\" && echo mounted && exec cat");
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &script]).arg(folder.folder());
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "mounted\n", "a user may make namespaces and mount a tmpfs in them");
        Self { folder, _input: holder.stdin.take().unwrap(), holder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path(name)
    }

    /// A command that sees it.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let holder = self.holder.id().to_string();
        command.args(["--preserve-credentials", "--user", "--mount", "--target", &holder, "--", program]).args(args);
        piped(command)
    }

    fn litemesh(&self, args: &[&str]) -> Done {
        run(self.command(env!("CARGO_BIN_EXE_litemesh"), args), "")
    }

    fn start(&self, args: &[&str]) -> Running {
        Running::spawn(&mut self.command(env!("CARGO_BIN_EXE_litemesh"), args))
    }

    #[track_caller]
    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        run(self.command("mount", &["-o", &options, &self.path("")]), "").ok();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Writes a transaction. Tells whether it was committed; where not, it must be for want of room.
#[track_caller]
fn write(sql: impl FnOnce(&str) -> Done, batch: u64) -> bool {
    let done = sql(&format!(
        "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < {ROWS})
         INSERT INTO part SELECT {batch}, id, hex(randomblob({TEXT_BYTES} / 2)) FROM n"
    ));
    if done.code == Some(0) {
        return true;
    }
    done.fails(3, &["disk is full"]);
    false
}

/// Rows of each transaction that is there.
#[track_caller]
fn batches(sql: impl FnOnce(&str) -> Done) -> Vec<(u64, u64)> {
    let rows = sql("SELECT batch, count(*) AS held FROM part GROUP BY batch ORDER BY batch").json();
    let number = |row: &Value, name: &str| row[name].as_u64().unwrap();
    rows.as_array().unwrap().iter().map(|row| (number(row, "batch"), number(row, "held"))).collect()
}

/// All of each transaction, or nothing.
#[track_caller]
fn assert_whole(held: &[(u64, u64)]) {
    assert!(held.iter().all(|(_, rows)| *rows == ROWS), "half of a transaction: {held:?}");
}

/// Waits until all transactions are there, and never half of one.
#[track_caller]
fn await_all(count: u64, held: impl Fn() -> Vec<(u64, u64)>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let held = held();
        assert_whole(&held);
        if held.len() as u64 == count {
            return;
        }
        assert!(Instant::now() < deadline, "{held:?} of {count}");
    }
}

/// Reads what it says until it speaks of a full disk.
#[track_caller]
fn await_full(running: &Running) {
    while !running.event("error").to_string().contains("full") {}
}

#[test]
fn a_hub_on_a_full_disk_loses_nothing_and_goes_on_once_there_is_room() {
    let (disk, files) = (SmallDisk::new(), Files::new());
    let schema = files.write("schema.sql", SCHEMA);
    let (hub_file, writer_file, reader_file) = (disk.path("hub.db"), files.path("writer.db"), files.path("reader.db"));
    disk.litemesh(&["init", &hub_file, "--schema", &schema]).ok();
    for file in [&writer_file, &reader_file] {
        litemesh(&["init", file, "--schema", &schema]).ok();
    }
    let hub = Hub::of(disk.start(&["serve", &hub_file, "--listen", "127.0.0.1:0", "--json"]));
    let writer = Running::start(&["sync", &writer_file, &hub.url, "--json"]);
    let reader = Running::start(&["sync", &reader_file, &hub.url, "--json"]);
    for batch in 0..TRANSACTIONS {
        assert!(write(|sql| litemesh(&["sql", &writer_file, sql]), batch));
    }
    await_full(&hub.running);
    let held = |file: &str| batches(|sql| litemesh(&["sql", file, sql, "--json"]));
    let held_by_hub = || batches(|sql| disk.litemesh(&["sql", &hub_file, sql, "--json"]));
    assert_whole(&held_by_hub());
    assert!((held_by_hub().len() as u64) < TRANSACTIONS, "there was room for all");

    disk.resize(LARGE);
    await_all(TRANSACTIONS, held_by_hub);
    await_all(TRANSACTIONS, || held(&reader_file));
    for running in [writer, reader, hub.running] {
        assert!(running.stop("-TERM").0.success());
    }
    disk.litemesh(&["doctor", &hub_file]).ok();
    for file in [&writer_file, &reader_file] {
        litemesh(&["doctor", file]).ok();
    }
    litemesh(&["diff", &writer_file, &reader_file]).ok();
}

#[test]
fn a_peer_on_a_full_disk_keeps_what_it_committed_also_when_it_is_killed() {
    let (disk, files) = (SmallDisk::new(), Files::new());
    let schema = files.write("schema.sql", SCHEMA);
    let (hub_file, peer_file) = (files.path("hub.db"), disk.path("peer.db"));
    litemesh(&["init", &hub_file, "--schema", &schema]).ok();
    disk.litemesh(&["init", &peer_file, "--schema", &schema]).ok();
    let hub = Hub::start(&hub_file, &[]);
    let sync = || disk.start(&["sync", &peer_file, &hub.url, "--json", "--reconnect-delay", "0.05"]);
    let mut peer = sync();

    // Both write: the peer until its disk is full, and in the end it holds what it committed, and the hub's.
    for batch in 0..TRANSACTIONS {
        assert!(write(|sql| litemesh(&["sql", &hub_file, sql]), batch));
    }
    await_full(&peer);
    let committed = (TRANSACTIONS..2 * TRANSACTIONS)
        .filter(|batch| write(|sql| disk.litemesh(&["sql", &peer_file, sql]), *batch))
        .count() as u64;
    assert!(committed < TRANSACTIONS, "there was room for all");
    let held_by_peer = || batches(|sql| disk.litemesh(&["sql", &peer_file, sql, "--json"]));
    assert_whole(&held_by_peer());
    // While it is full.
    assert!(!peer.stop("-KILL").0.success());
    peer = sync();
    await_full(&peer);

    disk.resize(LARGE);
    await_all(TRANSACTIONS + committed, held_by_peer);
    await_all(TRANSACTIONS + committed, || batches(|sql| litemesh(&["sql", &hub_file, sql, "--json"])));
    for running in [peer, hub.running] {
        assert!(running.stop("-TERM").0.success());
    }
    disk.litemesh(&["doctor", &peer_file]).ok();
    litemesh(&["doctor", &hub_file]).ok();
}
