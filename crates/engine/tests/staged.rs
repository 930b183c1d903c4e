//! Messages that wait for others: kept in the file, seen by nobody, merged at once.

mod support;

use litemesh_engine::proto::{Change, Cursor, DbVersion, Incarnation, Place, Position, SiteId};
use litemesh_engine::rusqlite::Connection;
use litemesh_engine::{
    Engine, LocalFilter, LocalPlace, MergeError, MergeProgress, PageLimits, Reach, StageError, Staged,
};
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

/// An author with one transaction of this many rows, and its changes in parts of about `changes_max` changes.
fn author(rows: i64, changes_max: usize) -> (Engine, Vec<Vec<Change>>) {
    let author = engine();
    let insert = format!(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO todo SELECT i, 'title ' || i, i % 2 FROM n"
    );
    author.connection().execute_batch(&insert).unwrap();
    let limits = PageLimits { changes_max, bytes_max: usize::MAX, stretch: 1 };
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

/// Inside of the first transaction, after this part.
fn part(number: usize) -> Reach {
    Reach { place: Some(Place([u8::try_from(number).unwrap()].into())), ..Reach::default() }
}

/// After this version.
fn whole(version: i64) -> Reach {
    let position = Position { version: DbVersion::new(version), incarnation: Incarnation(u64::MAX) };
    Reach { position, ..Reach::default() }
}

fn completes(reach: Reach) -> MergeProgress {
    MergeProgress { completes: Some((SENDER, reach)), ..MergeProgress::default() }
}

fn reach(engine: &Engine) -> Reach {
    engine.staged(SENDER).unwrap().reach
}

/// Stages all parts but the last.
fn stage(engine: &mut Engine, parts: &[Vec<Change>]) {
    for (number, changes) in parts[..parts.len() - 1].iter().enumerate() {
        let after = number.checked_sub(1).map_or(Reach::default(), part);
        let staged = engine.stage(SENDER, &after, &part(number), changes, NO_LIMIT).unwrap();
        assert_eq!(staged, engine.staged(SENDER).unwrap());
        assert_eq!((staged.reach, staged.messages), (part(number), number as u64 + 1));
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
    let merged = engine.merge(&parts[last + 1], &completes(part(last))).unwrap();
    assert_eq!(dump(&engine), dump(&author));
    assert_eq!(merged.won, parts.iter().map(Vec::len).sum::<usize>());
    // One transaction of the author is one of ours.
    let (first, end) = merged.local_versions.unwrap();
    assert_eq!(first, end);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(DISTINCT db_version) FROM todo__crsql_clock"), 1);
    assert_eq!(ask::<i64>(engine.connection(), "SELECT count(*) FROM litemesh_stage"), 0);
    assert_eq!(engine.check().unwrap().count(), 0);
}

/// A large catch-up would leave the file larger by what was staged: what is merged takes its room.
#[test]
fn what_was_staged_leaves_no_hole_in_the_file() {
    let (_, parts) = author(5000, 500);
    let mut engine = engine();
    stage(&mut engine, &parts);
    let staged = engine.staged(SENDER).unwrap().bytes.cast_signed();
    let last = parts.len() - 2;
    engine.merge(&parts[last + 1], &completes(part(last))).unwrap();
    let free: i64 =
        ask(engine.connection(), "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size");
    assert!(free < staged / 4, "{free} bytes of {staged} are free");
}

#[test]
fn parts_outlive_the_process_and_the_position_moves_with_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("peer.db");
    let (author, parts) = author(50, 40);
    stage(&mut prepared(Engine::open(&file).unwrap()), &parts);
    let mut engine = Engine::open(&file).unwrap();
    let last = parts.len() - 2;
    assert_eq!(reach(&engine), part(last));
    assert_eq!(engine.position(SENDER).unwrap(), Position::default());
    let position = Position { version: author.db_version().unwrap(), incarnation: Incarnation(u64::MAX) };
    let cursor: Cursor = [(author.site().unwrap(), author.db_version().unwrap())].into_iter().collect();
    let progress =
        MergeProgress { position: Some((SENDER, position)), cursor: cursor.clone(), ..completes(part(last)) };
    engine.merge(&parts[last + 1], &progress).unwrap();
    assert_eq!(engine.position(SENDER).unwrap(), position);
    assert_eq!(engine.cursor().unwrap().get(&author.site().unwrap()), author.db_version().unwrap());
    assert_eq!(dump(&engine), dump(&author));
}

/// What comes over two connections, or again, must make one whole chain or none.
#[test]
fn a_message_goes_on_where_another_ended() {
    let (_, parts) = author(50, 40);
    let mut engine = engine();
    let none = Reach::default();
    engine.stage(SENDER, &none, &part(0), &parts[0], NO_LIMIT).unwrap();
    // It comes again.
    engine.stage(SENDER, &none, &part(0), &parts[0], NO_LIMIT).unwrap();
    assert_eq!(engine.staged(SENDER).unwrap().messages, 1);
    let gap = engine.stage(SENDER, &part(7), &part(8), &parts[1], NO_LIMIT);
    assert!(matches!(gap, Err(StageError::Gap)), "{gap:?}");
    let gap = engine.stage(SENDER, &whole(3), &part(8), &parts[1], NO_LIMIT);
    assert!(matches!(gap, Err(StageError::Gap)), "{gap:?}");
    // Of another sender there is nothing to go on from.
    let other = engine.stage(SiteId::from_bytes([4; 16]), &part(0), &part(1), &parts[1], NO_LIMIT);
    assert!(matches!(other, Err(StageError::Gap)), "{other:?}");
    engine.stage(SENDER, &part(0), &part(1), &parts[1], NO_LIMIT).unwrap();
    // What begins anew takes the place of what was there.
    engine.stage(SENDER, &none, &part(9), &parts[0], NO_LIMIT).unwrap();
    assert_eq!((reach(&engine), engine.staged(SENDER).unwrap().messages), (part(9), 1));
    let lost = engine.merge(&parts[1], &completes(part(0)));
    assert!(matches!(lost, Err(MergeError::NotStaged)), "{lost:?}");
    assert_eq!(count(engine.connection()), 0);
}

/// A limit of one transaction: what a catch-up keeps beside is limited by who stages it.
#[test]
fn what_a_sender_may_have_staged_of_a_transaction_is_bounded() {
    let (_, parts) = author(50, 40);
    let mut engine = engine();
    let many = vec![parts[0].clone(); 20].concat();
    engine.stage(SENDER, &Reach::default(), &whole(1), &many, 2000).unwrap();
    let inside = |number| Reach { position: whole(1).position, ..part(number) };
    engine.stage(SENDER, &whole(1), &inside(0), &parts[0], 2000).unwrap();
    let refused = engine.stage(SENDER, &inside(0), &inside(1), &many, 2000);
    assert!(matches!(refused, Err(StageError::TooLarge { max: 2000, .. })), "{refused:?}");
    assert_eq!(reach(&engine), inside(0));
}

/// Rows 1, 2 and 3, each of a transaction of its own.
fn three_rows() -> (Engine, Vec<Vec<Change>>) {
    let author = engine();
    for row in 1..=3 {
        author.connection().execute_batch(&format!("INSERT INTO todo VALUES ({row}, 'row', 0)")).unwrap();
    }
    let changes = dump(&author);
    let rows = (1..=3).map(|row| changes.iter().filter(|c| c.db_version.get() == row).cloned().collect()).collect();
    (author, rows)
}

#[test]
fn whole_messages_are_staged_and_their_position_is_gone_on_from() {
    let (author, rows) = three_rows();
    let mut engine = engine();
    engine.stage(SENDER, &Reach::default(), &whole(1), &rows[0], NO_LIMIT).unwrap();
    let staged = engine.stage(SENDER, &whole(1), &whole(2), &rows[1], NO_LIMIT).unwrap();
    let changes = (rows[0].len() + rows[1].len()) as u64;
    let Staged { reach, messages, changes: held, bytes } = staged;
    assert_eq!((reach, messages, held), (whole(2), 2, changes));
    assert!(bytes > 20);
    assert_eq!((count(engine.connection()), engine.position(SENDER).unwrap()), (0, Position::default()));
    let progress = MergeProgress { position: Some((SENDER, whole(3).position)), ..completes(whole(2)) };
    engine.merge(&rows[2], &progress).unwrap();
    assert_eq!(dump(&engine), dump(&author));
    // Three transactions of the author's, three versions, one commit.
    assert_eq!(engine.staged(SENDER).unwrap(), Staged { reach: whole(3), ..Staged::default() });
}

/// What waits for something that does not come is brought out; a transaction that is not complete goes on to wait.
#[test]
fn what_is_staged_can_be_merged_without_the_rest() {
    let (_, rows) = three_rows();
    let mut engine = engine();
    engine.stage(SENDER, &Reach::default(), &whole(1), &rows[0], NO_LIMIT).unwrap();
    engine.stage(SENDER, &whole(1), &whole(2), &rows[1], NO_LIMIT).unwrap();
    let inside = Reach { position: whole(2).position, ..part(0) };
    engine.stage(SENDER, &whole(2), &inside, &rows[2], NO_LIMIT).unwrap();
    assert_eq!(engine.merge_staged(SENDER).unwrap(), rows[0].len() + rows[1].len());
    assert_eq!((count(engine.connection()), engine.position(SENDER).unwrap()), (2, whole(2).position));
    assert_eq!((reach(&engine), engine.staged(SENDER).unwrap().messages), (inside.clone(), 1));
    assert_eq!(engine.merge_staged(SENDER).unwrap(), 0);
    let progress = MergeProgress { position: Some((SENDER, whole(3).position)), ..completes(inside) };
    engine.merge(&[], &progress).unwrap();
    assert_eq!((count(engine.connection()), reach(&engine)), (3, whole(3)));
}

/// One row that a table refuses must not hide the others. No position passes it, and it is not forgotten, either: its sender may be
/// gone for good.
#[test]
fn what_is_refused_among_what_is_staged_stays() {
    let (author, rows) = three_rows();
    let mut engine = engine();
    let refuse =
        "CREATE TRIGGER no BEFORE INSERT ON todo WHEN new.id = 2 BEGIN SELECT raise(ABORT, 'not this one'); END";
    engine.connection().execute_batch(refuse).unwrap();
    for (number, changes) in rows.iter().enumerate() {
        let number = i64::try_from(number).unwrap();
        let after = if number == 0 { Reach::default() } else { whole(number) };
        engine.stage(SENDER, &after, &whole(number + 1), changes, NO_LIMIT).unwrap();
    }
    let refused = engine.merge(&[], &completes(whole(3)));
    assert!(matches!(&refused, Err(error) if error.is_content()), "{refused:?}");
    for _ in 0..2 {
        engine.merge_staged(SENDER).unwrap();
        assert_eq!(ask::<String>(engine.connection(), "SELECT group_concat(id) FROM todo"), "1,3");
        assert_eq!((engine.position(SENDER).unwrap(), reach(&engine)), (whole(1).position, whole(3)));
        assert_eq!(engine.staged(SENDER).unwrap().messages, 2);
    }
    engine.connection().execute_batch("DROP TRIGGER no").unwrap();
    let progress = MergeProgress { position: Some((SENDER, whole(3).position)), ..completes(whole(3)) };
    engine.merge(&[], &progress).unwrap();
    assert_eq!(ask::<String>(engine.connection(), "SELECT group_concat(id) FROM todo"), "1,2,3");
    assert_eq!(dump(&author).len(), dump(&engine).len());
}

/// No position covers it, so whoever finds it damaged forgets it and asks again.
#[test]
fn a_damaged_message_is_said_to_be_one() {
    let (_, rows) = three_rows();
    let mut engine = engine();
    engine.stage(SENDER, &Reach::default(), &whole(1), &rows[0], NO_LIMIT).unwrap();
    engine.connection().execute_batch("UPDATE litemesh_stage SET changes = x'00'").unwrap();
    let damaged = engine.merge(&[], &completes(whole(1)));
    assert!(matches!(&damaged, Err(error @ MergeError::StagedUnreadable { .. }) if !error.is_content()), "{damaged:?}");
    engine.forget_staged(SENDER).unwrap();
    assert_eq!(engine.staged(SENDER).unwrap(), Staged::default());
}

/// A part whose table is not there: nothing of the transaction is merged, and it can be once the table is.
#[test]
fn a_transaction_in_parts_fails_as_a_whole() {
    let (author, parts) = author(50, 40);
    let mut engine = Engine::open_in_memory().unwrap();
    stage(&mut engine, &parts);
    let last = parts.len() - 2;
    let refused = engine.merge(&parts[last + 1], &completes(part(last)));
    assert!(matches!(refused, Err(MergeError::UnknownTable { .. })), "{refused:?}");
    let mut engine = prepared(engine);
    assert_eq!(reach(&engine), part(last));
    engine.merge(&parts[last + 1], &completes(part(last))).unwrap();
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
        "ALTER TABLE litemesh_stage RENAME TO litemesh_staged; DROP TABLE litemesh_position;
         CREATE TABLE litemesh_position (site_id BLOB NOT NULL PRIMARY KEY, position INTEGER NOT NULL)
         WITHOUT ROWID, STRICT;
         INSERT INTO litemesh_position VALUES (x'03030303030303030303030303030303', 5)",
    )
    .unwrap();
    drop(old);
    let engine = Engine::open(&file).unwrap();
    let position = engine.position(SENDER).unwrap();
    assert_eq!((position.version.get(), position.incarnation), (5, Incarnation::default()));
    assert_eq!(
        engine.staged(SENDER).unwrap(),
        Staged { reach: Reach { position, ..Reach::default() }, ..Staged::default() }
    );
}

/// Over another connection to the same sender a message may go on after what a first one brought; and what that brings may come late.
#[test]
fn a_batch_is_merged_only_after_what_it_goes_on_after() {
    let mut engine = engine();
    let (_, parts) = author(1, 10);
    let to = |since: i64, until: i64| MergeProgress {
        since: Some((SENDER, whole(since).position)),
        position: Some((SENDER, whole(until).position)),
        ..MergeProgress::default()
    };
    let before = dump(&engine);
    let refused = engine.merge(&parts[0], &to(5, 6));
    assert!(matches!(refused, Err(MergeError::NotHeld)), "{refused:?}");
    assert_eq!(dump(&engine), before);
    let progress = MergeProgress { position: Some((SENDER, whole(5).position)), ..MergeProgress::default() };
    engine.merge(&[], &progress).unwrap();
    engine.merge(&parts[0], &to(4, 7)).unwrap();
    assert_eq!(engine.staged(SENDER).unwrap().reach, whole(7));
    // One that comes late takes nothing back.
    engine.merge(&[], &progress).unwrap();
    assert_eq!(engine.staged(SENDER).unwrap().reach, whole(7));
    // Versions of another life of the sender's database do not compare.
    let position = Position { version: DbVersion::new(6), incarnation: Incarnation(1) };
    let refused = engine.merge(&[], &MergeProgress { since: Some((SENDER, position)), ..to(0, 8) });
    assert!(matches!(refused, Err(MergeError::NotHeld)), "{refused:?}");
    // And a transaction in parts begins there only.
    let inside = Reach { place: Some(Place([1].into())), ..whole(6) };
    let refused = engine.stage(SENDER, &whole(6), &inside, &parts[0], NO_LIMIT);
    assert!(matches!(refused, Err(StageError::Gap)), "{refused:?}");
}

/// As of when the sender read what is here is known until all that it held then has come, also where a part of it is merged already.
#[test]
fn it_is_remembered_as_of_when_what_is_here_was_read() {
    let (_, rows) = three_rows();
    let mut engine = engine();
    let as_of = |version: i64| Some(whole(version).position);
    let until = Reach { as_of: as_of(3), ..whole(1) };
    engine.stage(SENDER, &Reach::default(), &until, &rows[0], NO_LIMIT).unwrap();
    assert_eq!(reach(&engine), until);
    let to = |version: i64| MergeProgress { position: Some((SENDER, whole(version).position)), ..completes(whole(1)) };
    engine.merge(&rows[1], &MergeProgress { as_of: as_of(4), ..to(2) }).unwrap();
    assert_eq!(reach(&engine), Reach { as_of: as_of(4), ..whole(2) });
    // Of an earlier state, over another connection.
    engine.merge(&rows[2], &MergeProgress { completes: None, ..to(3) }).unwrap();
    assert_eq!(reach(&engine), Reach { as_of: as_of(4), ..whole(3) });
    engine.merge(&[], &MergeProgress { completes: None, ..to(4) }).unwrap();
    assert_eq!(reach(&engine), whole(4));
}

/// The sender has lost what overwrote a part of what is staged.
#[test]
fn what_begins_at_the_very_start_takes_the_place_of_what_is_staged() {
    let (author, rows) = three_rows();
    let mut engine = engine();
    let until = Reach { as_of: Some(whole(9).position), ..whole(5) };
    engine.stage(SENDER, &Reach::default(), &until, &rows[0], NO_LIMIT).unwrap();
    engine.stage(SENDER, &Reach::default(), &whole(2), &rows[1], NO_LIMIT).unwrap();
    let staged = engine.staged(SENDER).unwrap();
    assert_eq!((staged.reach, staged.messages), (whole(2), 1));
    let since = Some((SENDER, Position::default()));
    let progress = MergeProgress { position: Some((SENDER, whole(3).position)), since, ..MergeProgress::default() };
    let until = Reach { as_of: Some(whole(9).position), ..whole(2) };
    engine.stage(SENDER, &Reach::default(), &until, &rows[0], NO_LIMIT).unwrap();
    engine.merge(&rows.concat(), &progress).unwrap();
    assert_eq!(dump(&engine), dump(&author));
    assert_eq!(engine.staged(SENDER).unwrap(), Staged { reach: whole(3), ..Staged::default() });
}
