//! Transactions that come in parts: kept in the file, seen by nobody, merged at once.

mod support;

use litemesh_engine::proto::{Change, Cursor, Incarnation, Place, Position, SiteId};
use litemesh_engine::rusqlite::Connection;
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeError, MergeProgress, PageLimits, StageError};
use support::{ask, dump};

const SCHEMA: &str = "CREATE TABLE todo (id INTEGER PRIMARY KEY NOT NULL, title TEXT, done INT)";
const SENDER: SiteId = SiteId::from_bytes([3; 16]);
const NO_LIMIT: u64 = u64::MAX;

fn prepared(engine: Engine) -> Engine {
    engine.connection().execute_batch(SCHEMA).unwrap();
    engine.replicate("todo").unwrap();
    engine
}

fn engine() -> Engine {
    prepared(Engine::open_in_memory().unwrap())
}

/// An author with one transaction of this many rows, and its changes in parts of about `part` changes.
fn author(rows: i64, part: usize) -> (Engine, Vec<Vec<Change>>) {
    let author = engine();
    let insert = format!(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO todo SELECT i, 'title ' || i, i % 2 FROM n"
    );
    author.connection().execute_batch(&insert).unwrap();
    let limits = PageLimits { changes_max: part, bytes_max: usize::MAX, stretch: 1 };
    let (mut place, mut parts) = (LocalPlace::default(), Vec::new());
    loop {
        let page = author.read_local(&place, &LocalFilter::default(), limits).unwrap();
        parts.push(page.changes);
        place = page.place;
        if page.complete.is_some() {
            return (author, parts);
        }
    }
}

fn place(number: usize) -> Place {
    Place([u8::try_from(number).unwrap()].into())
}

fn completes(number: usize) -> MergeProgress {
    MergeProgress { completes: Some((SENDER, place(number))), ..MergeProgress::default() }
}

/// Stages all parts but the last.
fn stage(engine: &mut Engine, parts: &[Vec<Change>]) {
    for (number, part) in parts[..parts.len() - 1].iter().enumerate() {
        let after = number.checked_sub(1).map(place);
        engine.stage(SENDER, after.as_ref(), &place(number), part, NO_LIMIT).unwrap();
        assert_eq!(engine.staged_until(SENDER).unwrap(), Some(place(number)));
    }
}

fn count(connection: &Connection) -> i64 {
    ask(connection, "SELECT count(*) FROM todo")
}

#[test]
fn nothing_is_seen_before_the_last_part_and_then_everything_under_one_version() {
    let (author, parts) = author(100, 30);
    assert!(parts.len() > 5);
    let mut engine = engine();
    stage(&mut engine, &parts);
    assert_eq!((count(engine.connection()), engine.db_version().unwrap().get()), (0, 0));
    let last = parts.len() - 2;
    let merged = engine.merge(&parts[last + 1], &completes(last)).unwrap();
    assert_eq!(dump(&engine), dump(&author));
    assert_eq!(merged.won, parts.iter().map(Vec::len).sum::<usize>());
    // One transaction of the author is one of ours.
    let (first, end) = merged.local_versions.unwrap();
    assert_eq!(first, end);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(DISTINCT db_version) FROM todo__crsql_clock"), 1);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM litemesh_staged"), 0);
    assert_eq!(engine.check().unwrap().count(), 0);
}

#[test]
fn parts_outlive_the_process_and_the_position_moves_with_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("peer.db");
    let (author, parts) = author(50, 40);
    stage(&mut prepared(Engine::open(&file).unwrap()), &parts);
    let mut engine = Engine::open(&file).unwrap();
    let last = parts.len() - 2;
    assert_eq!(engine.staged_until(SENDER).unwrap(), Some(place(last)));
    assert_eq!(engine.position(SENDER).unwrap(), Position::default());
    let position = Position { version: author.db_version().unwrap(), incarnation: Incarnation(u64::MAX) };
    let cursor: Cursor = [(author.site().unwrap(), author.db_version().unwrap())].into_iter().collect();
    let progress = MergeProgress { position: Some((SENDER, position)), cursor: cursor.clone(), ..completes(last) };
    engine.merge(&parts[last + 1], &progress).unwrap();
    assert_eq!(engine.position(SENDER).unwrap(), position);
    assert_eq!(engine.cursor().unwrap().get(&author.site().unwrap()), author.db_version().unwrap());
    assert_eq!(dump(&engine), dump(&author));
}

/// Parts that come over two connections, or again, must make one whole chain or none.
#[test]
fn a_part_goes_on_where_the_last_one_ended() {
    let (_, parts) = author(50, 40);
    let mut engine = engine();
    engine.stage(SENDER, None, &place(0), &parts[0], NO_LIMIT).unwrap();
    // It came before.
    engine.stage(SENDER, None, &place(0), &parts[0], NO_LIMIT).unwrap();
    let gap = engine.stage(SENDER, Some(&place(7)), &place(8), &parts[1], NO_LIMIT);
    assert!(matches!(gap, Err(StageError::Gap)), "{gap:?}");
    // Of another sender there is nothing to go on from.
    let other = engine.stage(SiteId::from_bytes([4; 16]), Some(&place(0)), &place(1), &parts[1], NO_LIMIT);
    assert!(matches!(other, Err(StageError::Gap)), "{other:?}");
    // A transaction that begins takes the place of what was there.
    engine.stage(SENDER, None, &place(9), &parts[0], NO_LIMIT).unwrap();
    assert_eq!(engine.staged_until(SENDER).unwrap(), Some(place(9)));
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM litemesh_staged"), 1);
    let lost = engine.merge(&parts[1], &completes(0));
    assert!(matches!(lost, Err(MergeError::NotStaged)), "{lost:?}");
    assert_eq!(count(engine.connection()), 0);
}

#[test]
fn what_a_sender_may_have_staged_is_bounded() {
    let (_, parts) = author(50, 40);
    let mut engine = engine();
    engine.stage(SENDER, None, &place(0), &parts[0], 2000).unwrap();
    let refused = engine.stage(SENDER, Some(&place(0)), &place(1), &vec![parts[1].clone(); 20].concat(), 2000);
    assert!(matches!(refused, Err(StageError::TooLarge { max: 2000, .. })), "{refused:?}");
    assert_eq!(engine.staged_until(SENDER).unwrap(), Some(place(0)));
}

/// A part whose table is not there: nothing of the transaction is merged, and it can be once the table is.
#[test]
fn a_transaction_in_parts_fails_as_a_whole() {
    let (author, parts) = author(50, 40);
    let mut engine = Engine::open_in_memory().unwrap();
    stage(&mut engine, &parts);
    let last = parts.len() - 2;
    let refused = engine.merge(&parts[last + 1], &completes(last));
    assert!(matches!(refused, Err(MergeError::UnknownTable { .. })), "{refused:?}");
    let mut engine = prepared(engine);
    assert_eq!(engine.staged_until(SENDER).unwrap(), Some(place(last)));
    engine.merge(&parts[last + 1], &completes(last)).unwrap();
    assert_eq!(dump(&engine), dump(&author));
}

/// A file that was made before positions had incarnations.
#[test]
fn an_older_file_gets_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old.db");
    drop(prepared(Engine::open(&file).unwrap()));
    let old = Connection::open(&file).unwrap();
    old.execute_batch(
        "DROP TABLE litemesh_staged; DROP TABLE litemesh_position;
         CREATE TABLE litemesh_position (site_id BLOB NOT NULL PRIMARY KEY, position INTEGER NOT NULL)
         WITHOUT ROWID, STRICT;
         INSERT INTO litemesh_position VALUES (x'03030303030303030303030303030303', 5)",
    )
    .unwrap();
    drop(old);
    let engine = Engine::open(&file).unwrap();
    let position = engine.position(SENDER).unwrap();
    assert_eq!((position.version.get(), position.incarnation), (5, Incarnation::default()));
    assert_eq!(engine.staged_until(SENDER).unwrap(), None);
}
