//! A hub and its peers, as processes on files, with a proxy on each line and an application on each file.

use std::time::{Duration, Instant};

use fastrand::Rng;
use litemesh_testkit::proxy::{Ending, Line, Proxy, Way};

use crate::application::{Order, Reader, SCHEMA, WRITER_COMMITS_MAX, Writer, open};
use crate::process::Process;
use crate::support::{Files, PATIENCE, litemesh};

/// Peers of the hub.
const PEERS: usize = 3;

/// The file of the hub; those of its peers follow.
const HUB: usize = 0;

/// Delay before the first new dial, in seconds. A fault lasts about as long.
const RECONNECT_DELAY: &str = "0.02";

/// Size of the file of shared memory beside a database. Without room for it nothing can be opened.
const SHARED_MEMORY_BYTES: u64 = 32 * 1024;

/// Longest wait for what a fault is to fall in the middle of. It may not come.
const FAULT_WAIT_MAX: Duration = Duration::from_millis(300);

/// What the program says of a write that failed.
const WRITE_FAILED: &str = "disk I/O error";

/// Between two looks at something that no event tells.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Waits until it is so. `what` says what is missing where that takes too long.
#[track_caller]
pub(crate) fn until(what: impl Fn() -> String, is_so: impl FnMut() -> bool) {
    assert!(comes_true(PATIENCE, is_so), "not within {} s: {}", PATIENCE.as_secs(), what());
}

/// Waits until it is so, `patience` at most. Tells whether it is.
pub(crate) fn comes_true(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Each but the ends of connections lasts until it is undone.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill {
        file: usize,
    },
    /// Killed once so many bytes have gone to or from it.
    KillAfter {
        peer: usize,
        way: Way,
        bytes: u64,
    },
    Freeze {
        file: usize,
    },
    /// Killed, and started again where no file can be written to beyond a part of the present size of the log.
    DiskFull {
        file: usize,
        percent: u64,
    },
    Line {
        peer: usize,
        line: Line,
    },
    EndAll {
        peer: usize,
        ending: Ending,
    },
    EndNewest {
        peer: usize,
        ending: Ending,
    },
    CutAfter {
        peer: usize,
        way: Way,
        bytes: usize,
        ending: Ending,
    },
}

/// How much has been done to clusters.
#[derive(Debug, Default)]
pub(crate) struct Count {
    rounds: usize,
    kills: usize,
    freezes: usize,
    /// Processes that met the limit.
    full_disks: usize,
    lines: usize,
    ended: usize,
    cuts: u64,
    connections: u64,
    bytes_down: u64,
    bytes_up: u64,
    commits: u64,
    looks: u64,
}

pub(crate) struct Cluster {
    rng: Rng,
    files: Vec<String>,
    processes: Vec<Option<Process>>,
    /// Of each peer.
    proxies: Vec<Proxy>,
    writers: Vec<Writer>,
    reader: Reader,
    count: Count,
    /// After those who use its files.
    _folder: Files,
}

impl Cluster {
    /// Goes on with the count.
    pub(crate) fn start(seed: u64, count: Count) -> Self {
        let mut rng = Rng::with_seed(seed);
        let folder = Files::new();
        let schema = folder.write("schema.sql", SCHEMA);
        let files: Vec<String> = (0..=PEERS).map(|number| folder.path(&format!("{number}.db"))).collect();
        for file in &files {
            litemesh(&["init", file, "--schema", &schema]).ok();
        }
        let writers = files.iter().zip(1..).map(|(file, number)| Writer::start(file, number, rng.u64(..))).collect();
        let reader = Reader::start(files.clone());
        let mut cluster = Self {
            rng,
            processes: files.iter().map(|_| None).collect(),
            files,
            proxies: (0..PEERS).map(|_| Proxy::start()).collect(),
            writers,
            reader,
            count,
            _folder: folder,
        };
        for file in 0..cluster.files.len() {
            cluster.start_process(file, None);
        }
        cluster
    }

    /// Several faults, while everybody writes. Some last until the end of the round, and some of those longer.
    #[track_caller]
    pub(crate) fn round(&mut self) {
        let mut lasting = Vec::new();
        for _ in 0..self.rng.usize(3..7) {
            if self.rng.u8(..3) == 0 {
                self.order();
            }
            let fault = self.draw();
            self.cause(fault);
            self.await_commits();
            if self.rng.u8(..3) == 0 {
                lasting.push(fault);
            } else {
                self.undo(fault);
            }
            self.check();
        }
        for fault in lasting {
            // A frozen process may hold the lock of its file, and its application waits for it.
            if self.rng.u8(..4) > 0 || matches!(fault, Fault::Freeze { .. }) {
                self.undo(fault);
            }
        }
        self.count.rounds += 1;
    }

    /// Gives one of the writers more to do.
    fn order(&mut self) {
        let order = match self.rng.u8(..8) {
            // Larger than a message of 3 MiB.
            0 => Order::Batch { rows: 450, text_bytes: 8192 },
            1 | 2 => Order::Batch { rows: self.rng.i64(100..1500), text_bytes: 40 },
            _ => Order::Burst(self.rng.usize(10..100)),
        };
        let writer = self.rng.usize(..self.writers.len());
        self.writers[writer].order(order);
    }

    /// A transaction of more changes than a message holds.
    pub(crate) fn write_many_rows(&self) {
        self.writers[HUB].order(Order::Batch { rows: 60_000, text_bytes: 10 });
    }

    fn draw(&mut self) -> Fault {
        let rng = &mut self.rng;
        let (file, peer) = (rng.usize(..=PEERS), rng.usize(..PEERS));
        let way = if rng.bool() { Way::Up } else { Way::Down };
        let ending = if rng.bool() { Ending::Reset } else { Ending::Close };
        // Heads and hellos are short, catch-ups long.
        let bytes = 1 << rng.u32(..20);
        let bytes = rng.usize(bytes / 2..=bytes);
        match rng.u8(..20) {
            0 | 1 => Fault::Kill { file: HUB },
            2..5 => Fault::Kill { file },
            5..8 => Fault::KillAfter { peer, way, bytes: bytes as u64 },
            8 => Fault::Freeze { file },
            9 | 10 => Fault::DiskFull { file, percent: rng.u64(..70) },
            11 => Fault::Line { peer, line: Line::Down },
            12 => Fault::Line { peer, line: Line::Silent { below: u64::MAX } },
            13 => Fault::Line { peer, line: Line::Slow { bytes_per_second: rng.usize(2_000..200_000) } },
            14 => Fault::Line { peer, line: Line::Late(Duration::from_millis(rng.u64(1..50))) },
            15 => Fault::EndAll { peer, ending },
            16 => Fault::EndNewest { peer, ending },
            _ => Fault::CutAfter { peer, way, bytes, ending },
        }
    }

    #[track_caller]
    fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::Kill { file } => self.kill(file),
            Fault::KillAfter { peer, way, bytes } => {
                self.proxies[peer].wait_for_bytes(way, bytes, FAULT_WAIT_MAX);
                self.kill(peer + 1);
            }
            Fault::Freeze { file } => {
                if let Some(process) = &self.processes[file] {
                    process.signal("-STOP");
                    self.count.freezes += 1;
                }
            }
            Fault::DiskFull { file, percent } => {
                self.kill(file);
                // The log is written from its beginning again after each checkpoint, so a limit below its size is met, too.
                let log = std::fs::metadata(format!("{}-wal", self.files[file])).map_or(0, |metadata| metadata.len());
                let bytes = SHARED_MEMORY_BYTES.max(log * percent / 100);
                self.start_process(file, Some(bytes / 512));
                let process = self.processes[file].as_ref();
                let has_met = || process.is_none_or(|process| process.said().contains(WRITE_FAILED));
                self.count.full_disks += usize::from(comes_true(FAULT_WAIT_MAX, has_met));
            }
            Fault::Line { peer, line } => {
                self.proxies[peer].set_line(line);
                self.count.lines += 1;
            }
            Fault::EndAll { peer, ending } => {
                self.proxies[peer].end_all(ending);
                self.count.ended += 1;
            }
            Fault::EndNewest { peer, ending } => {
                self.proxies[peer].end_newest(ending);
                self.count.ended += 1;
            }
            Fault::CutAfter { peer, way, bytes, ending } => {
                self.proxies[peer].cut_after(way, bytes, ending);
                if self.rng.bool() {
                    // So that it falls into the first words of a connection, or into a catch-up.
                    self.proxies[peer].end_all(ending);
                }
                self.proxies[peer].wait_for_bytes(way, bytes as u64, FAULT_WAIT_MAX);
            }
        }
    }

    #[track_caller]
    fn undo(&mut self, fault: Fault) {
        match fault {
            Fault::Kill { file } => self.ensure_process(file),
            Fault::KillAfter { peer, .. } => self.ensure_process(peer + 1),
            Fault::Freeze { file } => self.thaw(file),
            Fault::DiskFull { file, .. } => {
                self.kill(file);
                self.start_process(file, None);
            }
            Fault::Line { peer, .. } => self.proxies[peer].set_line(Line::Clear),
            Fault::CutAfter { peer, .. } => drop(self.proxies[peer].leave_whole()),
            Fault::EndAll { .. } | Fault::EndNewest { .. } => {}
        }
    }

    fn kill(&mut self, file: usize) {
        if let Some(process) = self.processes[file].take() {
            process.kill();
            self.count.kills += 1;
        }
    }

    fn thaw(&self, file: usize) {
        if let Some(process) = &self.processes[file] {
            process.signal("-CONT");
        }
    }

    #[track_caller]
    fn ensure_process(&mut self, file: usize) {
        if self.processes[file].is_none() {
            self.start_process(file, None);
        }
    }

    #[track_caller]
    fn start_process(&mut self, file: usize, blocks_max: Option<u64>) {
        let path = &self.files[file];
        if file != HUB {
            self.processes[file] =
                Some(Process::sync(path, &self.proxies[file - 1].url(), RECONNECT_DELAY, blocks_max, &[]));
            return;
        }
        let hub = Process::serve(path, blocks_max, &[]);
        for proxy in &self.proxies {
            proxy.lead_to(hub.as_ref().map(|(_, address)| *address));
        }
        self.processes[HUB] = hub.map(|(process, _)| process);
    }

    /// Waits until a part of the writers' work is done.
    #[track_caller]
    fn await_commits(&mut self) {
        let until_commits = self.commits() + self.rng.u64(1..30);
        until(|| "writers that commit".to_owned(), || self.commits() >= until_commits);
    }

    fn commits(&self) -> u64 {
        self.writers.iter().map(Writer::commits).sum()
    }

    #[track_caller]
    fn check(&mut self) {
        self.reader.assert_saw_no_half();
        for (process, file) in self.processes.iter_mut().zip(&self.files) {
            if let Some(process) = process {
                process.assert_runs(file);
            }
        }
    }

    /// Takes all faults back, and waits until all files hold the same. Then each of them is looked at.
    #[track_caller]
    pub(crate) fn heal(mut self) -> Count {
        for proxy in &self.proxies {
            proxy.leave_whole();
            proxy.set_line(Line::Clear);
        }
        for file in 0..self.files.len() {
            self.thaw(file);
            if self.processes[file].as_ref().is_none_or(Process::is_limited) {
                self.kill(file);
                self.start_process(file, None);
            }
        }
        self.writers.iter_mut().for_each(Writer::finish);
        for file in &self.files {
            until(
                || format!("{file} holds every commit, {:?}{}", self.missing(file), self.said()),
                || self.missing(file).is_empty(),
            );
        }
        let hub = &self.files[HUB].clone();
        for file in &self.files[1..] {
            until(
                || format!("{file} equals the hub's{}", self.said()),
                || litemesh(&["diff", hub, file]).code == Some(0),
            );
        }
        self.check();
        let looks = self.reader.finish();
        for (process, file) in self.processes.drain(..).zip(&self.files) {
            process.unwrap().stop(file);
        }
        for file in &self.files {
            assert!(self.missing(file).is_empty());
            litemesh(&["doctor", file]).ok();
            litemesh(&["diff", hub, file]).ok();
            let staged: i64 =
                open(file).query_one("SELECT count(*) FROM litemesh_stage", [], |row| row.get(0)).unwrap();
            assert_eq!(staged, 0, "parts of transactions that are left in {file}");
        }
        for proxy in &self.proxies {
            self.count.cuts += proxy.cuts();
            self.count.connections += proxy.connections();
            self.count.bytes_up += proxy.bytes(Way::Up);
            self.count.bytes_down += proxy.bytes(Way::Down);
        }
        self.count.commits += self.commits();
        self.count.looks += looks;
        self.count
    }

    /// Of each writer whose commits a file lacks: the first number, how many it committed, and how many of them are there.
    fn missing(&self, file: &str) -> Vec<(i64, u64, i64)> {
        let connection = open(file);
        let count = "SELECT count(*) FROM ledger WHERE id BETWEEN ?1 AND ?1 + ?2 - 1";
        let mut count = connection.prepare(count).unwrap();
        let counts = self.writers.iter().map(|writer| {
            let held: i64 = count.query_one([writer.first(), WRITER_COMMITS_MAX], |row| row.get(0)).unwrap();
            (writer.first(), writer.commits(), held)
        });
        counts.filter(|(_, commits, held)| *commits != held.unsigned_abs()).collect()
    }

    /// What the processes said last.
    fn said(&self) -> String {
        let said = |(number, process): (usize, &Option<Process>)| {
            process.as_ref().map(|process| format!("\n{number}: {}", process.said())).unwrap_or_default()
        };
        self.processes.iter().enumerate().map(said).collect()
    }
}
