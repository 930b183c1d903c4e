//! What a reader is told of our cursor: what moved since it was told last, whoever moved it, and nothing else.

mod support;

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use litemesh_engine::proto::{Cursor, DbVersion, SiteId};
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeProgress, Moves, PageLimits};
use rusqlite::{Connection, ffi};
use support::{count_steps, for_seeds};

const ALL: PageLimits = PageLimits { changes_max: usize::MAX, bytes_max: usize::MAX, stretch: 1 };

fn site(number: usize) -> SiteId {
    let mut bytes = [0xaa; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    SiteId::from_bytes(bytes)
}

/// Somebody who reads whatever is new.
#[derive(Default)]
struct Reader {
    place: LocalPlace,
    covered: Cursor,
    told: Moves,
}

impl Reader {
    /// Reads to the end; gives what it was told of the cursor.
    fn read(&mut self, engine: &Engine) -> Cursor {
        let filter = LocalFilter { covered: &self.covered, told: self.told, ..LocalFilter::default() };
        let page = engine.read_local(&self.place, &filter, ALL).unwrap();
        let news = page.complete.unwrap();
        (self.place, self.told) = (page.place, page.moves);
        self.covered.join(&news);
        news
    }
}

fn progress(cursor: impl IntoIterator<Item = (SiteId, DbVersion)>) -> MergeProgress {
    MergeProgress { cursor: cursor.into_iter().collect(), ..MergeProgress::default() }
}

fn replicated(connection: Connection) -> Engine {
    let engine = Engine::attach(connection).unwrap();
    engine.connection().execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY NOT NULL, v)").unwrap();
    engine.replicate("t").unwrap();
    engine
}

/// Commits fail while the flag is set.
fn ask_before_commits(engine: &Engine, refuses: &AtomicBool) {
    unsafe extern "C" fn is_refused(refuses: *mut c_void) -> c_int {
        // SAFETY: the flag below, which outlives the connection.
        unsafe { &*refuses.cast::<AtomicBool>() }.load(Ordering::Relaxed).into()
    }
    // SAFETY: the connection is open; the caller drops it before the flag.
    unsafe {
        let flag = std::ptr::from_ref(refuses).cast_mut().cast();
        ffi::sqlite3_commit_hook(engine.connection().handle(), Some(is_refused), flag);
    }
}

/// `known-failures.md` D12.
#[test]
fn each_reader_learns_every_entry_whoever_moves_it() {
    let mut parts = 0;
    for_seeds(0x0e35, 30, |rng| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        // Two processes have the file.
        let mut engines = [(); 2].map(|()| replicated(Connection::open(&path).unwrap()));
        let refuses = AtomicBool::new(false);
        engines.iter().for_each(|engine| ask_before_commits(engine, &refuses));
        let (mut readers, mut id) = ([(); 4].map(|()| Reader::default()), 0);
        for _ in 0..60 {
            // Mostly the same one: what it moves by itself it remembers.
            let at = usize::from(rng.u8(..8) == 0);
            let engine = &mut engines[at];
            let entries: Vec<_> =
                (0..rng.usize(0..4)).map(|_| (site(rng.usize(..40)), DbVersion::new(rng.i64(1..30)))).collect();
            match rng.u8(..6) {
                0 => {
                    id += 1;
                    engine.connection().execute("INSERT INTO t VALUES (?1, 0)", [id]).unwrap();
                }
                1 => {
                    // All of it is rolled back: the application refuses the commit.
                    refuses.store(true, Ordering::Relaxed);
                    let is_refused = engine.merge(&[], &progress(entries.clone())).is_err();
                    refuses.store(false, Ordering::Relaxed);
                    assert!(is_refused || entries.is_empty());
                }
                2 => {
                    engine.connection().execute_batch("BEGIN").unwrap();
                    engine.connection().execute("INSERT INTO t VALUES (-1, 0)", []).unwrap();
                    engine.connection().execute_batch("ROLLBACK").unwrap();
                }
                _ => drop(engine.merge(&[], &progress(entries)).unwrap()),
            }
            for reader in &mut readers {
                if rng.bool() {
                    continue;
                }
                let engine = &engines[usize::from(rng.u8(..8) == 0)];
                let (before, was_told) = (reader.covered.clone(), reader.told > Moves::NONE);
                let (news, held, own) = (reader.read(engine), engine.cursor().unwrap(), engine.site().unwrap());
                assert_eq!(reader.covered, held);
                assert!(news.iter().all(|(site, version)| held.get(site) == version));
                if was_told {
                    let mut others = news.iter().filter(|(site, _)| **site != own);
                    assert!(
                        others.all(|(site, version)| version > before.get(site)),
                        "what did not move is told again"
                    );
                    parts += usize::from(news.len() < held.len() && !held.beyond(&before).is_empty());
                }
            }
        }
        // Before the flag goes.
        drop(engines);
    });
    assert!(parts > 500, "only {parts} times a part of the cursor was told");
}

/// `known-failures.md` D12.
#[test]
fn a_reader_for_whom_little_is_new_costs_the_same_however_many_sites_there_are() {
    let mut costs = Vec::new();
    for sites in [3, 3000] {
        let mut engine = replicated(Connection::open_in_memory().unwrap());
        engine.merge(&[], &progress((0..sites).map(|number| (site(number), DbVersion::new(1))))).unwrap();
        let mut reader = Reader::default();
        // The second time what is prepared is there.
        let mut cost = (0, 0);
        for version in 2..4 {
            reader.read(&engine);
            engine.connection().execute("INSERT INTO t VALUES (?1, 0)", [version]).unwrap();
            engine.merge(&[], &progress([(site(1), DbVersion::new(version))])).unwrap();
            let (news, steps) = count_steps(&mut engine, |engine| reader.read(engine));
            assert_eq!(news.get(&site(1)), DbVersion::new(version));
            cost = (news.len(), steps);
        }
        costs.push(cost);
    }
    assert_eq!(costs[0], costs[1], "entries, and steps of SQLite's virtual machine");
}

#[test]
fn a_shared_page_has_all_that_moved_for_who_may_read_it() {
    let mut engine = replicated(Connection::open_in_memory().unwrap());
    engine.merge(&[], &progress((0..9).map(|number| (site(number), DbVersion::new(1))))).unwrap();
    let (mut early, mut late) = (Reader::default(), Reader::default());
    early.read(&engine);
    engine.merge(&[], &progress([(site(1), DbVersion::new(2))])).unwrap();
    late.read(&engine);
    engine.connection().execute("INSERT INTO t VALUES (1, 0)", []).unwrap();
    engine.merge(&[], &progress([(site(2), DbVersion::new(2))])).unwrap();
    let held = engine.cursor().unwrap();
    let all = engine.read_shared(&LocalPlace::default(), Moves::NONE, ALL).unwrap().unwrap();
    let of_early = engine.read_shared(&LocalPlace::default(), early.told, ALL).unwrap().unwrap();
    let of_late = engine.read_shared(&LocalPlace::default(), late.told, ALL).unwrap().unwrap();
    for (page, [serves_new, serves_early, serves_late]) in
        [(all, [true, true, true]), (of_early, [false, true, true]), (of_late, [false, false, true])]
    {
        let mut newcomer = Reader::default();
        newcomer.read(&engine);
        assert_eq!(page.moves(), newcomer.told);
        for (reader, is_served) in [(&Reader::default(), serves_new), (&early, serves_early), (&late, serves_late)] {
            assert_eq!(page.goes_on_after(reader.place.position(), reader.told), is_served);
            if is_served {
                let filter = LocalFilter { covered: &reader.covered, told: reader.told, ..LocalFilter::default() };
                let news = page.for_reader(reader.place.position(), &filter).complete.unwrap();
                assert_eq!(news, held.beyond(&reader.covered));
            }
        }
    }
}

/// A file that an earlier version of ours made, with every table and without the column, is opened as any other.
#[test]
fn a_file_of_before_moves_were_counted_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let mut engine = replicated(Connection::open(&path).unwrap());
    engine.merge(&[], &progress([(site(1), DbVersion::new(1))])).unwrap();
    drop(engine);
    let former = "ALTER TABLE litemesh_cursor DROP COLUMN moved; DELETE FROM litemesh_meta WHERE key = 'cursor_moves'";
    Connection::open(&path).unwrap().execute_batch(former).unwrap();
    let read_only = Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let engine = Engine::attach(read_only).unwrap();
    engine.cursor().unwrap();
    Reader::default().read(&engine);
    drop(engine);
    let (mut engine, mut reader) = (Engine::open(&path).unwrap(), Reader::default());
    assert_eq!(reader.read(&engine).get(&site(1)), DbVersion::new(1));
    engine.merge(&[], &progress([(site(2), DbVersion::new(2))])).unwrap();
    reader.read(&engine);
    assert_eq!(reader.covered, engine.cursor().unwrap());
}
