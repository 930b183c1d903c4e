//! A file that was restored from a backup is told by what remotes have read of it.

mod support;

use std::path::Path;

use litemesh_engine::proto::{Cursor, DbVersion, Incarnation, Position, SiteId};
use litemesh_engine::{Claim, Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits, Witness};

const SCHEMA: &str = "CREATE TABLE todo (id INTEGER PRIMARY KEY NOT NULL, title TEXT)";

fn open(file: &Path) -> Engine {
    let engine = Engine::open(file).unwrap();
    if engine.tables().unwrap().is_empty() {
        engine.connection().execute_batch(SCHEMA).unwrap();
        engine.replicate("todo").unwrap();
    }
    engine
}

/// A remote that holds everything up to this version, written or merged.
fn witness(version: DbVersion) -> Witness {
    Witness { remote: SiteId::from_bytes([7; 16]), seen: version, written: version, newest: version }
}

/// Writes so many transactions.
fn write(engine: &Engine, count: i64) {
    for _ in 0..count {
        engine.connection().execute_batch("INSERT INTO todo (title) VALUES ('x')").unwrap();
    }
}

/// How far a remote is that has just read everything.
fn position(engine: &Engine) -> Position {
    let limits = PageLimits { changes_max: usize::MAX, bytes_max: usize::MAX, stretch: 1 };
    engine.read_local(&LocalPlace::default(), &LocalFilter::default(), limits).unwrap().position()
}

fn judge(engine: &Engine, position: Position, seen: i64) -> Claim {
    engine.judge(position, DbVersion::new(seen)).unwrap()
}

fn rewritten(common: i64) -> Claim {
    Claim::Rewritten { common: DbVersion::new(common) }
}

fn parted(common: i64, seen: i64) -> Claim {
    Claim::Parted { common: DbVersion::new(common), seen: DbVersion::new(seen) }
}

/// Backups are copies of files that nobody has open.
fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

#[test]
fn openings_and_writers_of_one_life_are_no_news() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    let first = open(&file);
    assert_eq!(position(&first), Position::default());
    write(&first, 3);
    let early = position(&first);
    assert_eq!(early.version, DbVersion::new(3));
    assert_ne!(early.incarnation, Incarnation::default());
    // Two connections that take turns, and one that comes later.
    let second = open(&file);
    for engine in [&second, &first, &second] {
        write(engine, 1);
    }
    let middle = position(&first);
    drop((first, second));
    let later = open(&file);
    write(&later, 2);
    for known in [early, middle, position(&later), Position::default()] {
        assert_eq!(judge(&later, known, known.version.get()), Claim::Held);
    }
}

#[test]
fn what_was_rolled_back_leaves_no_incarnation() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(&folder.path().join("a.db"));
    engine.connection().execute_batch("BEGIN; INSERT INTO todo VALUES (1, 'x'); ROLLBACK").unwrap();
    assert_eq!(position(&engine), Position::default());
    engine
        .connection()
        .execute_batch("BEGIN; SAVEPOINT s; INSERT INTO todo VALUES (1, 'x'); ROLLBACK TO s; INSERT INTO todo VALUES (2, 'x'); COMMIT")
        .unwrap();
    assert_ne!(position(&engine).incarnation, Incarnation::default());
    assert_eq!(judge(&engine, position(&engine), 1), Claim::Held);
}

/// The file lost what the remote has seen, and nothing was written since: it can go on above.
#[test]
fn a_file_that_lost_its_end_goes_on_above_it() {
    let folder = tempfile::tempdir().unwrap();
    let (file, backup) = (folder.path().join("a.db"), folder.path().join("b.db"));
    let engine = open(&file);
    write(&engine, 4);
    drop(engine);
    copy(&file, &backup);
    let engine = open(&file);
    write(&engine, 0);
    let known = Position { version: DbVersion::new(9), ..position(&engine) };
    drop(engine);
    let restored = open(&backup);
    assert_eq!(judge(&restored, known, 9), Claim::Ahead(DbVersion::new(9)));
    assert_eq!(judge(&restored, Position::default(), 9), Claim::Ahead(DbVersion::new(9)));
}

#[test]
fn a_file_that_was_restored_and_written_to_is_told_and_where_it_parted() {
    let folder = tempfile::tempdir().unwrap();
    let (file, backup) = (folder.path().join("a.db"), folder.path().join("b.db"));
    let engine = open(&file);
    write(&engine, 4);
    let before = position(&engine);
    drop(engine);
    copy(&file, &backup);
    // The remote read on for some time, under the same number or, after an opening, another one.
    let same = Position { version: DbVersion::new(9), ..before };
    let engine = open(&file);
    write(&engine, 5);
    let other = position(&engine);
    drop(engine);
    let engine = open(&backup);
    write(&engine, 2);
    assert_eq!(judge(&engine, same, 9), rewritten(4));
    assert_eq!(judge(&engine, other, 9), rewritten(0));
    // Fewer writes than the remote has seen, or more: that tells nothing.
    write(&engine, 20);
    assert_eq!(judge(&engine, same, 9), rewritten(4));
    assert_eq!(judge(&engine, other, 9), rewritten(0));
    // Who read only what both lives share may go on. If it heard of more from others, it may not.
    assert_eq!(judge(&engine, before, 4), Claim::Held);
    assert_eq!(judge(&engine, before, 99), rewritten(4));
}

/// A remote that says nothing but what it holds of us, as those of wire v1: what was written since this file was opened it cannot
/// know, if it holds more than there is.
#[test]
fn a_file_that_was_restored_and_written_to_is_told_by_what_others_hold_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (file, backup) = (folder.path().join("a.db"), folder.path().join("b.db"));
    let engine = open(&file);
    write(&engine, 4);
    drop(engine);
    copy(&file, &backup);
    let mut restored = open(&backup);
    assert_eq!(judge(&restored, Position::default(), 9), Claim::Ahead(DbVersion::new(9)));
    write(&restored, 2);
    assert_eq!(judge(&restored, Position::default(), 9), rewritten(0));
    assert_eq!(judge(&restored, Position::default(), 6), Claim::Held);
    // One that went on above what somebody knew, and then meets somebody who knows more.
    drop(restored);
    copy(&file, &backup);
    restored = open(&backup);
    assert!(restored.raise_version(witness(DbVersion::new(7))).unwrap());
    assert_eq!(restored.forgotten_until().unwrap(), Some(DbVersion::new(7)));
    assert_eq!(judge(&restored, Position::default(), 9), Claim::Ahead(DbVersion::new(9)));
    write(&restored, 1);
    assert_eq!(judge(&restored, Position::default(), 9), rewritten(0));
    // What the disk lost, of what another process wrote, is no other life.
    drop(restored);
    let later = open(&backup);
    assert_eq!(judge(&later, Position::default(), 9), Claim::Ahead(DbVersion::new(9)));
}

/// What was merged since has taken as many versions as were forgotten: still no more is claimed than came back.
#[test]
fn who_parted_claims_of_itself_what_both_lives_have() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = open(&folder.path().join("a.db"));
    write(&engine, 9);
    let own = |engine: &Engine| engine.cursor().unwrap().get(&engine.site().unwrap());
    engine.part(DbVersion::new(4), witness(DbVersion::new(7))).unwrap();
    assert_eq!((own(&engine), engine.db_version().unwrap()), (DbVersion::new(4), DbVersion::new(9)));
    engine.part(DbVersion::new(2), witness(DbVersion::new(12))).unwrap();
    assert_eq!((own(&engine), engine.db_version().unwrap()), (DbVersion::new(2), DbVersion::new(12)));
    // A claim that nobody can have made in earnest changes nothing.
    engine.part(DbVersion::ZERO, witness(DbVersion::new(i64::MAX))).unwrap();
    assert_eq!((own(&engine), engine.forgotten_until().unwrap()), (DbVersion::new(2), Some(DbVersion::new(12))));
    let cursor = [(engine.site().unwrap(), DbVersion::new(12))].into_iter().collect();
    engine.merge(&[], &MergeProgress { cursor, ..MergeProgress::default() }).unwrap();
    assert_eq!((own(&engine), engine.forgotten_until().unwrap()), (DbVersion::new(12), None));
}

/// The simulation found it. Of several remotes that know another life one brings everything back; the others have nothing more of it then,
/// and the file would wait for ever for what they say that they hold.
#[test]
fn what_came_back_is_not_waited_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = open(&folder.path().join("a.db"));
    write(&engine, 9);
    let site = engine.site().unwrap();
    let own = |engine: &Engine| engine.cursor().unwrap().get(&site).get();
    engine.part(DbVersion::new(4), witness(DbVersion::new(7))).unwrap();
    let cursor = [(site, DbVersion::new(7))].into_iter().collect();
    engine.merge(&[], &MergeProgress { cursor, ..MergeProgress::default() }).unwrap();
    assert_eq!(own(&engine), 9);
    engine.part(DbVersion::new(4), witness(DbVersion::new(6))).unwrap();
    assert_eq!((own(&engine), engine.forgotten_until().unwrap()), (9, None));
    engine.part(DbVersion::new(4), witness(DbVersion::new(8))).unwrap();
    assert_eq!((own(&engine), engine.forgotten_until().unwrap()), (4, Some(DbVersion::new(8))));
}

/// Who may see some tables only, or was caught up in part, holds what was written here and has no cursor that says so.
#[test]
fn where_a_remote_does_not_say_what_was_written_its_answer_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = open(&folder.path().join("a.db"));
    write(&engine, 6);
    let own = |engine: &Engine| engine.cursor().unwrap().get(&engine.site().unwrap()).get();
    let remote = SiteId::from_bytes([7; 16]);
    let witness = Witness { remote, seen: DbVersion::new(10), written: DbVersion::ZERO, newest: DbVersion::new(10) };
    assert!(engine.raise_version(witness).unwrap());
    write(&engine, 1);
    assert_eq!((own(&engine), engine.db_version().unwrap().get()), (6, 11));
    // Somebody else's answer says nothing of that, and neither does a message that ends none.
    let merged = |engine: &mut Engine, sender: SiteId, ends_answer: bool| {
        let position = Some((sender, Position { version: DbVersion::new(3), ..Position::default() }));
        engine.merge(&[], &MergeProgress { position, ends_answer, ..MergeProgress::default() }).unwrap();
        own(engine)
    };
    assert_eq!(merged(&mut engine, SiteId::from_bytes([8; 16]), true), 6);
    assert_eq!(merged(&mut engine, remote, false), 6);
    assert_eq!(merged(&mut engine, remote, true), 11);
    assert_eq!(engine.forgotten_until().unwrap(), None);
    // What it shows from now on is here already.
    engine.part(DbVersion::new(4), witness).unwrap();
    assert_eq!(own(&engine), 11);
}

/// The simulation found it: who was waited for had been forked, and never came back as who he was.
#[test]
fn who_may_hold_no_more_than_what_came_back_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = open(&folder.path().join("a.db"));
    write(&engine, 6);
    let site = engine.site().unwrap();
    let own = |engine: &Engine| engine.cursor().unwrap().get(&site).get();
    let witness = |remote: u8, newest: i64| {
        let (remote, seen) = (SiteId::from_bytes([remote; 16]), DbVersion::new(20));
        Witness { remote, seen, written: DbVersion::ZERO, newest: DbVersion::new(newest) }
    };
    let come_back = |engine: &mut Engine, version: i64| {
        let cursor = [(site, DbVersion::new(version))].into_iter().collect();
        engine.merge(&[], &MergeProgress { cursor, ..MergeProgress::default() }).unwrap();
    };
    // It has read later versions, and nothing in these was written here.
    assert!(engine.raise_version(witness(7, 6)).unwrap());
    write(&engine, 1);
    assert_eq!((own(&engine), engine.forgotten_until().unwrap()), (21, None));
    engine.part(DbVersion::new(6), witness(8, 10)).unwrap();
    engine.part(DbVersion::new(6), witness(9, 12)).unwrap();
    come_back(&mut engine, 11);
    assert_eq!(own(&engine), 11);
    come_back(&mut engine, 12);
    assert_eq!((own(&engine), engine.forgotten_until().unwrap()), (21, None));
}

/// A hub, which writes nothing of its own: what it took after it was restored is told again, and no more is needed.
#[test]
fn a_file_that_was_restored_and_only_merged_into_tells_again_what_it_merged() {
    let folder = tempfile::tempdir().unwrap();
    let (file, backup) = (folder.path().join("a.db"), folder.path().join("b.db"));
    let author = open(&folder.path().join("author.db"));
    write(&author, 9);
    let changesets: Vec<_> = author.changes_since(&Cursor::new()).map(Result::unwrap).collect();
    let merge = |file: &Path, number: std::ops::Range<usize>| {
        let mut hub = open(file);
        for changeset in &changesets[number] {
            hub.merge(&changeset.changes, &MergeProgress::default()).unwrap();
        }
        position(&hub)
    };
    let before = merge(&file, 0..3);
    copy(&file, &backup);
    let other = merge(&file, 3..8);
    merge(&backup, 3..4);
    let hub = open(&backup);
    let same = Position { version: other.version, ..before };
    assert_eq!(judge(&hub, same, 8), parted(3, 8));
    assert_eq!(judge(&hub, other, 8), parted(0, 8));
    assert_eq!(judge(&hub, before, 3), Claim::Held);
    // From here on the application writes there, too, but above all that the remote has seen.
    let mut hub = hub;
    assert!(hub.raise_version(witness(DbVersion::new(8))).unwrap());
    write(&hub, 1);
    assert_eq!(judge(&hub, same, 8), parted(3, 8));
    assert_eq!(judge(&hub, same, 9), rewritten(3));
}

/// What was written under these versions in another life, somebody else may hold.
#[test]
fn versions_that_only_merges_took_are_not_claimed() {
    let folder = tempfile::tempdir().unwrap();
    let author = open(&folder.path().join("author.db"));
    write(&author, 12);
    let changesets: Vec<_> = author.changes_since(&Cursor::new()).map(Result::unwrap).collect();
    let mut engine = open(&folder.path().join("a.db"));
    let site = engine.site().unwrap();
    let merge = |engine: &mut Engine, number: usize, own: i64| {
        let cursor = Cursor::from_iter([(site, DbVersion::new(own))]);
        let progress = MergeProgress { cursor, ..MergeProgress::default() };
        engine.merge(&changesets[number].changes, &progress).unwrap();
        (engine.db_version().unwrap().get(), engine.cursor().unwrap().get(&site).get())
    };
    assert_eq!(merge(&mut engine, 0, 0), (1, 0));
    engine.connection().execute_batch("INSERT INTO todo VALUES (100, 'x')").unwrap();
    assert_eq!(engine.cursor().unwrap().get(&site).get(), 2);
    assert_eq!(merge(&mut engine, 3, 0), (4, 2));
    assert_eq!(merge(&mut engine, 4, 0), (5, 2));
    // Somebody who holds more of us brought it back.
    assert_eq!(merge(&mut engine, 5, 4), (6, 4));
    engine.connection().execute_batch("INSERT INTO todo VALUES (101, 'x')").unwrap();
    assert_eq!(engine.cursor().unwrap().get(&site).get(), 7);
    assert_eq!(merge(&mut engine, 9, 0), (10, 7));
}

#[test]
fn a_copy_that_is_a_site_of_its_own_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    let mut engine = open(&file);
    write(&engine, 4);
    engine.fork(Some(DbVersion::new(2))).unwrap();
    assert_eq!(judge(&engine, Position::default(), 0), Claim::Held);
}

/// Rows are kept for some thousands of openings.
#[test]
fn a_remote_that_was_away_for_very_long_is_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    let engine = open(&file);
    write(&engine, 3);
    let old = position(&engine);
    // As if by that many connections.
    engine
        .connection()
        .execute_batch(
            "WITH RECURSIVE n(i) AS (VALUES (2) UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO litemesh_incarnation (number, incarnation, since, written_since) SELECT i, i, i + 2, i + 2 FROM n",
        )
        .unwrap();
    drop(engine);
    let engine = open(&file);
    write(&engine, 1);
    assert_eq!(support::ask::<i64>(engine.connection(), "SELECT count(*) FROM litemesh_incarnation"), 4096);
    assert_eq!(judge(&engine, old, 3), Claim::Held);
}
