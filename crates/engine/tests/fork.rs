//! VER-16: a copied database becomes a site of its own.

mod support;

use std::path::Path;

use litemesh_engine::proto::{Change, DbVersion, SiteId};
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeProgress, PageLimits, Witness};
use litemesh_testkit::{Statement, schemas};
use support::{ask, assert_origins_complete, assert_same, dump, execute, for_seeds, select_changes, state};

const SCHEMA: &str = "CREATE TABLE foo (id TEXT PRIMARY KEY NOT NULL, b, c INTEGER DEFAULT 5);
    CREATE TABLE tag (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('foo'); SELECT crsql_as_crr('tag');";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self, name: &str) -> Engine {
        Engine::open(self.0.path().join(name)).unwrap()
    }

    fn create(&self, name: &str) -> Engine {
        let engine = self.open(name);
        engine.connection().execute_batch(SCHEMA).unwrap();
        engine
    }

    /// A copy of a database, with the site id of its original.
    fn copy(&self, engine: &Engine, name: &str) -> Engine {
        let path = self.0.path().join(name);
        copy(engine, &path);
        Engine::open(path).unwrap()
    }
}

fn copy(engine: &Engine, path: &Path) {
    engine.connection().execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
}

fn write(engine: &Engine, sql: &str) {
    engine.connection().execute_batch(sql).unwrap();
}

/// Everything that `to` lacks, as a Litemesh peer would ask for it. Gives what was sent.
fn send(from: &Engine, to: &mut Engine) -> Vec<Change> {
    let (site, limits) =
        (from.site().unwrap(), PageLimits { changes_max: usize::MAX, bytes_max: usize::MAX, stretch: 1 });
    let covered = to.cursor().unwrap();
    let filter = LocalFilter { covered: &covered, ..LocalFilter::default() };
    let page = from.read_local(&LocalPlace::after(to.position(site).unwrap().version), &filter, limits).unwrap();
    let position = Some((site, page.position()));
    let progress = MergeProgress { cursor: page.complete.unwrap(), position, ..MergeProgress::default() };
    to.merge(&page.changes, &progress).unwrap();
    page.changes
}

/// `site index: id column`, of what was sent, where sites are named by their place in the list.
fn names(changes: &[Change], sites: &[SiteId]) -> Vec<String> {
    let name = |change: &Change| {
        let site = sites.iter().position(|site| *site == change.site).unwrap();
        let key: Vec<_> = change.key.unpack().unwrap().iter().map(litemesh_testkit::literal).collect();
        format!("{site}: {} {}", key.join(" "), change.column.as_str())
    };
    changes.iter().map(name).collect()
}

fn no_findings(engine: &Engine) {
    let found: Vec<_> = engine.check().unwrap().map(Result::unwrap).collect();
    assert_eq!(found, []);
}

/// The changes stay those of their author, under its versions; the copy holds all of them, and says so.
#[test]
fn what_a_copy_took_over_stays_its_authors() {
    let folder = Folder::new();
    let (mut original, mut other) = (folder.create("a.db"), folder.create("other.db"));
    write(&other, "INSERT INTO foo VALUES ('o', 1, 1)");
    write(
        &original,
        "INSERT INTO foo VALUES ('a', 1, 1), ('gone', 1, 1); INSERT INTO tag VALUES (1); DELETE FROM foo WHERE id = 'gone'",
    );
    send(&other, &mut original);
    write(&original, "UPDATE foo SET b = 2 WHERE id = 'o'");
    let mut copy = folder.copy(&original, "b.db");
    let (before, changes) = (select_changes(copy.connection(), ""), dump(&copy));

    let forked = copy.fork(None).unwrap();
    let old = original.site().unwrap();
    assert_eq!((forked.before, forked.version), (old, original.db_version().unwrap()));
    assert_eq!((copy.site().unwrap() == forked.after, forked.after == old), (true, false));
    assert_eq!(select_changes(copy.connection(), ""), before, "not a change is another one");
    let mut sorted = dump(&copy);
    let mut expected = changes;
    for changes in [&mut sorted, &mut expected] {
        changes.sort_by_key(|change| format!("{change:?}"));
    }
    assert_eq!(sorted, expected, "with the versions of their authors");
    let cursor = copy.cursor().unwrap();
    assert_eq!(cursor.get(&old), original.db_version().unwrap());
    assert_eq!(cursor.get(&other.site().unwrap()), other.db_version().unwrap());
    assert_eq!(copy.position(old).unwrap().version, original.db_version().unwrap());
    let site: Vec<u8> = ask(copy.connection(), "SELECT crsql_site_id()");
    assert_eq!(site, forked.after.as_bytes());
    assert_origins_complete(&copy);
    no_findings(&copy);
    // Nothing goes to those who have it.
    assert_eq!(send(&copy, &mut original), []);
    let expected = send(&original, &mut folder.copy(&other, "other copy.db"));
    assert_eq!((expected.len(), send(&copy, &mut other)), (5, expected));
    assert_eq!(send(&original, &mut other), []);
}

/// Original, copy and a third site, all written to: everything arrives once, with the right authors.
#[test]
fn a_forked_copy_syncs_with_its_original() {
    let folder = Folder::new();
    let (mut original, mut third) = (folder.create("a.db"), folder.create("third.db"));
    write(&original, "INSERT INTO foo VALUES ('both', 1, 1)");
    send(&original, &mut third);
    let mut copy = folder.copy(&original, "b.db");
    copy.fork(None).unwrap();
    let sites = [original.site().unwrap(), copy.site().unwrap(), third.site().unwrap()];
    write(&original, "UPDATE foo SET b = 2 WHERE id = 'both'; INSERT INTO foo (id) VALUES ('a')");
    write(&copy, "UPDATE foo SET b = 3 WHERE id = 'both'; INSERT INTO foo (id) VALUES ('b')");
    write(&third, "UPDATE foo SET c = 9 WHERE id = 'both'");

    assert_eq!(names(&send(&original, &mut copy), &sites), ["0: 'both' b", "0: 'a' b", "0: 'a' c"]);
    assert_eq!(names(&send(&copy, &mut original), &sites), ["1: 'both' b", "1: 'b' b", "1: 'b' c"]);
    assert_eq!(names(&send(&third, &mut copy), &sites), ["2: 'both' c"]);
    assert_eq!(send(&copy, &mut third).len(), 5);
    // By way of the third: nothing again.
    assert_eq!(send(&third, &mut copy), []);
    assert_eq!(names(&send(&copy, &mut original), &sites), ["2: 'both' c"]);
    assert_eq!(send(&original, &mut third), []);
    assert_eq!(send(&original, &mut copy), []);
    for engine in [&original, &copy, &third] {
        let rows =
            "SELECT group_concat(id || ' ' || coalesce(b, '') || ' ' || c, '; ') FROM (SELECT * FROM foo ORDER BY id)";
        assert_eq!(ask::<String>(engine.connection(), rows), "a  5; b  5; both 3 9");
        assert_origins_complete(engine);
        no_findings(engine);
    }
}

/// Original and copy wrote under one id, and others have taken both. What one of them took hides from the other, until both
/// have ids of their own: then everything comes to everybody.
#[test]
fn what_two_wrote_under_one_id_comes_to_everybody_once_both_are_forked() {
    let folder = Folder::new();
    let (mut original, mut left) = (folder.create("a.db"), folder.create("left.db"));
    let mut right = folder.create("right.db");
    write(&original, "INSERT INTO foo VALUES ('both', 1, 1), ('gone', 1, 1); INSERT INTO tag VALUES (1)");
    let common = original.db_version().unwrap();
    for other in [&mut left, &mut right] {
        send(&original, other);
    }
    let mut copy = folder.copy(&original, "b.db");
    write(
        &original,
        "UPDATE foo SET b = 2 WHERE id = 'both'; INSERT INTO foo (id) VALUES ('a'); INSERT INTO tag VALUES (2)",
    );
    write(&copy, "DELETE FROM foo WHERE id = 'gone'; UPDATE foo SET c = 3 WHERE id = 'both'; DELETE FROM tag");
    send(&original, &mut left);
    send(&copy, &mut right);
    send(&left, &mut right);
    send(&right, &mut left);
    let rows = |engine: &Engine| {
        let rows = "SELECT coalesce(group_concat(id || ' ' || coalesce(b, '') || ' ' || c, '; '), '') || ': '
             || (SELECT coalesce(group_concat(id), '') FROM tag) FROM (SELECT * FROM foo ORDER BY id)";
        ask::<String>(engine.connection(), rows)
    };
    assert_ne!(rows(&left), rows(&right), "what hides");

    for twin in [&mut original, &mut copy] {
        twin.fork(Some(common)).unwrap();
        no_findings(twin);
    }
    let mut all = [original, copy, left, right];
    for _ in 0..3 {
        for from in 0..4 {
            for to in (0..4).filter(|to| *to != from) {
                let [from, to] = all.get_disjoint_mut([from, to]).unwrap();
                send(from, to);
            }
        }
    }
    for engine in &all {
        assert_eq!(rows(engine), "a  5; both 2 3: 2");
        assert_origins_complete(engine);
        no_findings(engine);
    }
}

/// What the former id had forgotten is no concern of the new one, which claims all that it has.
#[test]
fn a_fork_has_forgotten_nothing() {
    let folder = Folder::new();
    let mut engine = folder.create("a.db");
    write(&engine, "INSERT INTO foo VALUES ('a', 1, 1)");
    assert!(
        engine
            .raise_version(Witness {
                remote: SiteId::from_bytes([7; 16]),
                seen: DbVersion::new(9),
                written: DbVersion::new(9),
                newest: DbVersion::new(9)
            })
            .unwrap()
    );
    write(&engine, "INSERT INTO foo VALUES ('b', 1, 1)");
    let forked = engine.fork(Some(DbVersion::ZERO)).unwrap();
    assert_eq!(engine.forgotten_until().unwrap(), None);
    assert_eq!(engine.cursor().unwrap().get(&forked.after), engine.db_version().unwrap());
}

/// A file that was restored is given back what it has forgotten. Under other versions whoever holds that would take it for something new.
#[test]
fn what_comes_back_to_its_author_keeps_its_version() {
    let folder = Folder::new();
    let original = folder.create("a.db");
    write(&original, "INSERT INTO tag VALUES (1)");
    let mut restored = folder.copy(&original, "restored.db");
    for id in 2..=4 {
        write(&original, &format!("INSERT INTO tag VALUES ({id})"));
    }
    let mut other = folder.create("b.db");
    send(&original, &mut other);
    let (remote, four) = (other.site().unwrap(), DbVersion::new(4));
    assert!(restored.raise_version(Witness { remote, seen: four, written: four, newest: four }).unwrap());
    send(&other, &mut restored);
    write(&restored, "INSERT INTO tag VALUES (5)");
    let site = original.site().unwrap();
    assert_eq!(restored.db_version().unwrap().get(), 8);
    assert_eq!(versions_of(&restored, site), [("1", 1), ("2", 2), ("3", 3), ("4", 4), ("5", 8)].map(named));
    assert_eq!(send(&restored, &mut other).len(), 1, "it holds the others");
    // They go with the former id, as far as they were written when it was copied.
    let forked = restored.fork(Some(DbVersion::new(3))).unwrap();
    assert_eq!(versions_of(&restored, site), [("1", 1), ("2", 2), ("3", 3)].map(named));
    assert_eq!(versions_of(&restored, forked.after), [("4", 7), ("5", 8)].map(named));
    assert_eq!(ask::<i64>(restored.connection(), "SELECT count(*) FROM litemesh_origin WHERE site = 0"), 0);
    no_findings(&restored);
}

/// Who passes it on over wire v1 may have given it an earlier number than it had.
#[test]
fn what_comes_back_under_a_number_that_may_be_too_low_counts_as_written_anew() {
    let folder = Folder::new();
    let original = folder.create("a.db");
    let mut restored = folder.copy(&original, "restored.db");
    write(&original, "INSERT INTO tag VALUES (1)");
    write(&original, "INSERT INTO tag VALUES (2)");
    let mut other = folder.create("b.db");
    let mut changes = send(&original, &mut other);
    for change in &mut changes {
        change.db_version = DbVersion::new(1);
    }
    let seen = DbVersion::new(2);
    let witness = Witness { remote: other.site().unwrap(), seen, written: seen, newest: seen };
    assert!(restored.raise_version(witness).unwrap());
    restored.merge(&changes, &MergeProgress { is_provisional: true, ..MergeProgress::default() }).unwrap();
    assert_eq!(versions_of(&restored, original.site().unwrap()), [("1", 3), ("2", 3)].map(named));
}

fn named((key, version): (&str, i64)) -> (String, i64) {
    (key.to_owned(), version)
}

/// The keys of what a site wrote, and under which versions that is sent.
fn versions_of(engine: &Engine, site: SiteId) -> Vec<(String, i64)> {
    let limits = PageLimits { changes_max: usize::MAX, bytes_max: usize::MAX, stretch: 1 };
    let page = engine.read_local(&LocalPlace::default(), &LocalFilter::default(), limits).unwrap();
    let key = |change: &Change| litemesh_testkit::literal(&change.key.unpack().unwrap()[0]);
    let written = page.changes.iter().filter(|change| change.site == site);
    written.map(|change| (key(change), change.db_version.get())).collect()
}

/// A copy of a copy; and a site that knew both under one id before does not exist.
#[test]
fn a_fork_can_be_forked() {
    let folder = Folder::new();
    let mut engines = vec![folder.create("0.db")];
    for index in 1..4 {
        let last = &engines[index - 1];
        write(last, &format!("INSERT INTO foo VALUES ('of {}', 1, 1)", index - 1));
        let mut next = folder.copy(last, &format!("{index}.db"));
        next.fork(None).unwrap();
        engines.push(next);
    }
    let sites: Vec<SiteId> = engines.iter().map(|engine| engine.site().unwrap()).collect();
    assert!((1..4).all(|index| !sites[..index].contains(&sites[index])));
    // The last one knows whose each row is, and needs nothing but what came later.
    let last = engines.pop().unwrap();
    let mut authors: Vec<_> = names(&dump(&last), &sites).into_iter().filter(|name| name.ends_with(" b")).collect();
    authors.sort();
    assert_eq!(authors, ["0: 'of 0' b", "1: 'of 1' b", "2: 'of 2' b"]);
    for (index, engine) in engines.iter_mut().enumerate() {
        let sent = names(&send(&last, engine), &sites);
        // Each lacks what was written after it was copied.
        assert_eq!(sent.len(), 2 * (2 - index), "{sent:?}");
        assert_eq!(dump(engine).len(), dump(&last).len());
    }
}

/// A copy that was written to under its original's id: what it wrote becomes its own.
#[test]
fn what_was_written_after_the_copying_can_be_kept_apart() {
    let folder = Folder::new();
    let mut original = folder.create("a.db");
    write(&original, "INSERT INTO foo VALUES ('both', 1, 1)");
    let copied_at = original.db_version().unwrap();
    let mut copy = folder.copy(&original, "b.db");
    write(&copy, "UPDATE foo SET b = 7 WHERE id = 'both'; INSERT INTO tag VALUES (5)");
    write(&original, "UPDATE foo SET c = 8 WHERE id = 'both'; INSERT INTO tag VALUES (6)");
    assert_eq!(copy.db_version().unwrap(), original.db_version().unwrap());

    let forked = copy.fork(Some(copied_at)).unwrap();
    let sites = [original.site().unwrap(), copy.site().unwrap()];
    assert_eq!(forked.version, copied_at);
    assert_eq!(copy.cursor().unwrap().get(&sites[0]), copied_at);
    assert_eq!(names(&send(&copy, &mut original), &sites), ["1: 'both' b", "1: 5 -1"]);
    assert_eq!(names(&send(&original, &mut copy), &sites), ["0: 'both' c", "0: 6 -1"]);
    for engine in [&original, &copy] {
        assert_eq!(ask::<i64>(engine.connection(), "SELECT b + c FROM foo"), 15);
        assert_eq!(ask::<i64>(engine.connection(), "SELECT sum(id) FROM tag"), 11);
        no_findings(engine);
    }
    // More than there is means all.
    assert_eq!(copy.fork(Some(DbVersion::new(i64::MAX))).unwrap().version, copy.db_version().unwrap());
}

/// The simulation found it: who talks to both takes them for one, and does not send the copy what the original brought.
#[test]
fn what_a_copy_was_told_to_hold_is_asked_for_once_more() {
    let folder = Folder::new();
    let (original, other) = (folder.create("a.db"), folder.create("other.db"));
    let mut copy = folder.copy(&original, "b.db");
    write(&other, "INSERT INTO tag VALUES (7)");
    let (author, held) = (other.site().unwrap(), other.db_version().unwrap());
    // The original brought it, so it was left out.
    let progress = MergeProgress { cursor: [(author, held)].into_iter().collect(), ..MergeProgress::default() };
    copy.merge(&[], &progress).unwrap();
    assert!(send(&other, &mut copy).is_empty());

    copy.fork(Some(copy.db_version().unwrap())).unwrap();
    assert_eq!(names(&send(&other, &mut copy), &[author]), ["0: 7 -1"]);
    assert_eq!(ask::<i64>(copy.connection(), "SELECT id FROM tag"), 7);
}

/// A connection that was open meanwhile does not go on under the old id.
#[test]
fn connections_that_are_open_learn_of_the_fork() {
    let folder = Folder::new();
    let mut original = folder.create("a.db");
    write(&original, "INSERT INTO foo VALUES ('both', 1, 1)");
    let mut copy = folder.copy(&original, "b.db");
    let mut stale = folder.open("b.db");
    assert_eq!((stale.site().unwrap(), dump(&stale).len()), (original.site().unwrap(), 2));

    let forked = copy.fork(None).unwrap();
    assert_eq!(stale.site().unwrap(), forked.after);
    write(&stale, "INSERT INTO foo (id) VALUES ('later')");
    write(&original, "INSERT INTO foo (id) VALUES ('of the original')");
    assert_eq!(send(&stale, &mut original).len(), 2);
    assert_eq!(send(&original, &mut stale).len(), 2);
    let author = |engine: &Engine, id: &str| {
        let sql = format!("SELECT site_id FROM crsql_changes WHERE pk = crsql_pack_columns('{id}') AND cid = 'b'");
        SiteId::from_slice(&ask::<Vec<u8>>(engine.connection(), &sql)).unwrap()
    };
    for engine in [&original, &copy, &stale] {
        assert_eq!(author(engine, "both"), forked.before);
        assert_eq!(author(engine, "later"), forked.after);
        assert_eq!(author(engine, "of the original"), forked.before);
    }

    // The SQL surface alone, each from a connection that did nothing else since.
    let stale = folder.open("b.db");
    let before: Vec<u8> = ask(stale.connection(), "SELECT crsql_site_id()");
    let forked = copy.fork(None).unwrap();
    let own = "SELECT count(*) FROM crsql_changes WHERE site_id = crsql_site_id()";
    assert_eq!(ask::<i64>(stale.connection(), own), 0);
    assert_ne!(ask::<Vec<u8>>(stale.connection(), "SELECT crsql_site_id()"), before);
    assert_eq!(forked.before.as_bytes(), before.as_slice());
}

/// A fork that fails leaves the site that was.
#[test]
fn a_fork_is_one_transaction() {
    let folder = Folder::new();
    let mut engine = folder.create("a.db");
    write(
        &engine,
        "INSERT INTO foo VALUES ('a', 1, 1); INSERT INTO tag VALUES (1);
         CREATE TRIGGER refuse BEFORE UPDATE ON tag__crsql_clock BEGIN SELECT raise(ABORT, 'refused'); END",
    );
    let (site, changes) = (engine.site().unwrap(), dump(&engine));
    assert!(engine.fork(None).unwrap_err().to_string().contains("refused"));
    assert_eq!((engine.site().unwrap(), dump(&engine)), (site, changes));
    write(&engine, "DROP TRIGGER refuse; INSERT INTO tag VALUES (2)");
    assert_eq!(engine.fork(None).unwrap().before, site);
}

/// Random histories in which databases are copied and forked now and then: all converge, nothing is inconsistent, and every
/// change has one author.
#[test]
fn forks_of_random_histories_converge() {
    let schemas = schemas();
    for_seeds(0xF02C, 6, |rng| {
        let folder = tempfile::tempdir().unwrap();
        let open = |index: usize| Engine::open(folder.path().join(format!("{index}.db"))).unwrap();
        let mut engines: Vec<Engine> = (0..2).map(open).collect();
        for engine in &engines {
            support::create(engine, &schemas);
        }
        for step in 0..60 {
            let index = rng.usize(..engines.len());
            execute(&engines[index], &schemas, &Statement::random(rng, &schemas));
            let to = rng.usize(..engines.len());
            if to != index && rng.u8(..3) == 0 {
                let [from, to] = engines.get_disjoint_mut([index, to]).unwrap();
                send(from, to);
            }
            if step % 20 == 19 {
                let new = engines.len();
                copy(&engines[index], &folder.path().join(format!("{new}.db")));
                let mut fork = open(new);
                fork.fork(None).unwrap();
                engines.push(fork);
            }
        }
        for _ in 0..2 {
            for index in 1..engines.len() {
                let [hub, other] = engines.get_disjoint_mut([0, index]).unwrap();
                send(other, hub);
                send(hub, other);
            }
        }
        for index in 1..engines.len() {
            let [hub, other] = engines.get_disjoint_mut([0, index]).unwrap();
            assert_same(&state(hub, &schemas), &state(other, &schemas), "converged");
            assert_eq!((send(hub, other).len(), send(other, hub).len()), (0, 0));
            assert_origins_complete(other);
            no_findings(other);
        }
    });
}
