//! What runs beside the program on the same files: an application that writes, and a reader that must never see half of a
//! transaction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;
use litemesh::engine::Engine;
use litemesh::rusqlite::{self, Connection, OpenFlags, params};

/// `ledger`: one row for each commit, never changed. `pair_a`, `pair_b`: each transaction writes the same to both. `part`: all
/// rows of a batch come from one transaction, which says in each how many they are.
pub(crate) const SCHEMA: &str = "CREATE TABLE ledger (id INTEGER PRIMARY KEY NOT NULL, what TEXT);
    CREATE TABLE pair_a (id INTEGER PRIMARY KEY NOT NULL, n INTEGER);
    CREATE TABLE pair_b (id INTEGER PRIMARY KEY NOT NULL, n INTEGER);
    CREATE TABLE part (batch INTEGER NOT NULL, id INTEGER NOT NULL, size INTEGER, text TEXT, PRIMARY KEY (batch, id));";

/// Rows of `ledger` of one writer.
pub(crate) const WRITER_COMMITS_MAX: i64 = 1_000_000;

/// Pairs that all writers fight for.
const PAIRS: i64 = 40;

/// How long a writer waits between two transactions, at most. It would leave the program no processor otherwise.
const PACE_MAX_MILLIS: u64 = 60;

/// How long a look of the reader is put off after the last one.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long writers wait for each other and for the program: a frozen process may hold the lock of a file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// What a writer is told to do beside its small transactions.
pub(crate) enum Order {
    /// So many small transactions without a pause.
    Burst(usize),
    /// One transaction of so many rows with so many bytes of text each.
    Batch { rows: i64, text_bytes: usize },
}

/// A thread that writes to one file, as an application does.
pub(crate) struct Writer {
    /// First number of its ledger.
    first: i64,
    commits: Arc<AtomicU64>,
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(file: &str, number: i64, seed: u64) -> Self {
        let first = number * WRITER_COMMITS_MAX;
        let commits = Arc::new(AtomicU64::new(0));
        let (orders, received) = sync_channel(16);
        let work = Work { file: file.to_owned(), next: first, rng: Rng::with_seed(seed), commits: commits.clone() };
        let thread = std::thread::spawn(move || work.run(&received));
        Self { first, commits, orders: Some(orders), thread: Some(thread) }
    }

    /// Commits so far: the ledger has rows from `first` on.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    pub(crate) fn first(&self) -> i64 {
        self.first
    }

    /// Does not wait for it.
    pub(crate) fn order(&self, order: Order) {
        // Where so much waits already, it is busy enough.
        let _ = self.orders.as_ref().unwrap().try_send(order);
    }

    /// Lets it do what it was told, then ends it.
    #[track_caller]
    pub(crate) fn finish(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Before its file is gone, also where the test fails.
        drop(self.orders.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Work {
    file: String,
    next: i64,
    rng: Rng,
    commits: Arc<AtomicU64>,
}

impl Work {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut open: Option<Engine> = None;
        loop {
            let pace = Duration::from_millis(self.rng.u64(5..PACE_MAX_MILLIS));
            let order = match orders.recv_timeout(pace) {
                Ok(order) => order,
                Err(RecvTimeoutError::Timeout) => Order::Burst(1),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let engine = open.get_or_insert_with(|| {
                let engine = Engine::open(&self.file).unwrap();
                engine.connection().busy_timeout(BUSY_TIMEOUT).unwrap();
                engine
            });
            match order {
                Order::Burst(count) => (0..count).for_each(|_| self.commit_small(engine.connection())),
                Order::Batch { rows, text_bytes } => self.commit_batch(engine.connection(), rows, text_bytes),
            }
            // Then the program may be the only one that has the file open, and what it leaves behind when it is killed is
            // found by whoever comes next.
            if self.rng.u8(..20) == 0 {
                open = None;
            }
        }
    }

    fn commit_small(&mut self, connection: &Connection) {
        let what = self.rng.u8(..10);
        let n = self.next;
        self.commit(connection, &format!("{what}"), |connection, rng| {
            for _ in 0..rng.usize(1..5) {
                let pair = rng.i64(0..PAIRS);
                for table in ["pair_a", "pair_b"] {
                    if what == 0 {
                        connection.execute(&format!("DELETE FROM {table} WHERE id = ?1"), [pair])?;
                    } else {
                        let upsert = format!(
                            "INSERT INTO {table} VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET n = excluded.n"
                        );
                        connection.execute(&upsert, [pair, n])?;
                    }
                }
            }
            if what == 1 { insert_parts(connection, rng, n, 2 + n % 50, 10) } else { Ok(()) }
        });
    }

    fn commit_batch(&mut self, connection: &Connection, rows: i64, text_bytes: usize) {
        let n = self.next;
        self.commit(connection, &format!("{rows} rows"), |connection, rng| {
            insert_parts(connection, rng, n, rows, text_bytes)
        });
    }

    fn commit(
        &mut self,
        connection: &Connection,
        what: &str,
        write: impl FnOnce(&Connection, &mut Rng) -> rusqlite::Result<()>,
    ) {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        connection.execute("INSERT INTO ledger VALUES (?1, ?2)", params![self.next, what]).unwrap();
        write(connection, &mut self.rng).unwrap();
        connection.execute_batch("COMMIT").unwrap();
        self.next += 1;
        self.commits.fetch_add(1, Ordering::SeqCst);
    }
}

fn insert_parts(
    connection: &Connection,
    rng: &mut Rng,
    batch: i64,
    rows: i64,
    text_bytes: usize,
) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached("INSERT INTO part VALUES (?1, ?2, ?3, ?4)")?;
    for id in 0..rows {
        let text: String = (0..text_bytes).map(|_| rng.alphanumeric()).collect();
        insert.execute(params![batch, id, rows, text])?;
    }
    Ok(())
}

/// A thread that looks at all files, one after another.
pub(crate) struct Reader {
    seen: Arc<Mutex<Seen>>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    looks: u64,
    half: Option<String>,
}

impl Reader {
    pub(crate) fn start(files: Vec<String>) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (stop, stopped) = sync_channel(1);
        let found = seen.clone();
        let thread = std::thread::spawn(move || {
            for file in files.iter().cycle() {
                if stopped.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let half = half_transaction(file);
                let mut seen = lock(&found);
                seen.looks += 1;
                seen.half = seen.half.take().or(half);
            }
        });
        Self { seen, stop: Some(stop), thread: Some(thread) }
    }

    #[track_caller]
    pub(crate) fn assert_saw_no_half(&self) {
        if let Some(half) = &lock(&self.seen).half {
            panic!("half of a transaction: {half}");
        }
    }

    /// Ends it. How often it looked.
    #[track_caller]
    pub(crate) fn finish(&mut self) -> u64 {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.assert_saw_no_half();
        lock(&self.seen).looks
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // As a writer.
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without the engine, as any program that only reads.
pub(crate) fn open(file: &str) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).unwrap();
    connection.busy_timeout(BUSY_TIMEOUT).unwrap();
    connection
}

/// What one state of the file holds of a transaction that it does not hold as a whole.
fn half_transaction(file: &str) -> Option<String> {
    let connection = open(file);
    let first = |sql: &str| {
        let mut statement = connection.prepare(sql).unwrap();
        let mut rows = statement.query([]).unwrap();
        rows.next().unwrap().map(|row| {
            let columns: [Option<i64>; 3] = std::array::from_fn(|at| row.get_unwrap(at));
            format!("{file}: {columns:?}")
        })
    };
    connection.execute_batch("BEGIN").unwrap();
    first("SELECT id, a.n, b.n FROM pair_a AS a FULL JOIN pair_b AS b USING (id) WHERE a.n IS NOT b.n")
        .or_else(|| first("SELECT batch, count(*), max(size) FROM part GROUP BY batch HAVING count(*) != max(size)"))
}
