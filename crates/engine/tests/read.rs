//! Reading for remotes: pages, their order and limits, what is left out, and whose version each change carries.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fastrand::Rng;
use litemesh_engine::proto::{Change, Column, Cursor, DbVersion, SiteId};
use litemesh_engine::rusqlite::params_from_iter;
use litemesh_engine::{Engine, LocalFilter, LocalPlace, MergeProgress, Moves, PageLimits, SiteBounds, Witness};
use litemesh_testkit::{Schema, Statement, quote, schemas};
use support::{
    ask, assert_origins_complete, assert_same, dump, engine, execute, for_seeds, identity, merge, merge_by_sql,
    select_changes, state,
};

const ALL: PageLimits = PageLimits { changes_max: usize::MAX, bytes_max: usize::MAX, stretch: 1 };

fn few(changes_max: usize) -> PageLimits {
    PageLimits { changes_max, bytes_max: usize::MAX, stretch: 1 }
}

fn set(changes: &[Change]) -> BTreeSet<String> {
    changes.iter().map(identity).collect()
}

/// Everything after `place`, page by page.
fn read_pages(
    engine: &Engine,
    mut place: LocalPlace,
    filter: &LocalFilter<'_>,
    limits: impl Fn() -> PageLimits,
) -> Vec<Vec<Change>> {
    let mut pages = Vec::new();
    loop {
        let page = engine.read_local(&place, filter, limits()).unwrap();
        pages.push(page.changes);
        if page.complete.is_some() {
            assert_eq!(page.complete, Some(engine.cursor().unwrap()));
            assert_eq!(page.place.position(), engine.db_version().unwrap());
            return pages;
        }
        assert_ne!(page.place, place, "a page that is not the last one goes on");
        place = page.place;
    }
}

fn read_all(engine: &Engine, filter: &LocalFilter<'_>) -> Vec<Change> {
    read_pages(engine, LocalPlace::default(), filter, || ALL).concat()
}

/// An engine with writes of its own and of several others, some merged natively and some by plain SQL.
fn busy_engine(rng: &mut Rng, schemas: &[Schema]) -> Engine {
    let mut hub = engine(schemas);
    for _ in 0..rng.usize(1..4) {
        let mut other = engine(schemas);
        if rng.bool() {
            merge(&mut other, &dump(&hub));
        }
        for _ in 0..25 {
            execute(&other, schemas, &Statement::random(rng, schemas));
            execute(&hub, schemas, &Statement::random(rng, schemas));
        }
        if rng.u8(..3) > 0 {
            merge(&mut hub, &dump(&other));
        } else {
            hub.connection().execute_batch("BEGIN").unwrap();
            merge_by_sql(hub.connection(), &dump(&other));
            hub.connection().execute_batch("COMMIT").unwrap();
        }
    }
    hub
}

#[test]
fn any_page_limits_give_the_same_changes() {
    let schemas = schemas();
    for_seeds(0xbae5, 15, |rng| {
        let engine = busy_engine(rng, &schemas);
        let all = read_all(&engine, &LocalFilter::default());
        assert_eq!(set(&all), set(&select_changes(engine.connection(), "")));
        assert_eq!(set(&all), set(&dump(&engine)));
        let limits = std::cell::RefCell::new(rng);
        let sizes = || few(limits.borrow_mut().usize(1..20));
        let pages = read_pages(&engine, LocalPlace::default(), &LocalFilter::default(), sizes);
        assert_eq!(pages.concat(), all, "small pages");
        let bytes = || PageLimits { changes_max: usize::MAX, bytes_max: 700, stretch: 1 };
        let pages = read_pages(&engine, LocalPlace::default(), &LocalFilter::default(), bytes);
        assert!(pages.len() > 2 && pages.concat() == all, "pages of few bytes");
    });
}

#[test]
fn pages_cut_inside_a_transaction_resume_where_they_stopped() {
    let schemas = schemas();
    let engine = engine(&schemas);
    engine
        .connection()
        .execute_batch(
            "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
             INSERT INTO items SELECT i, i, i FROM n;
             INSERT INTO tags SELECT id, 'x' FROM items; COMMIT; INSERT INTO items VALUES (1000, 1, 1)",
        )
        .unwrap();
    let mut place = LocalPlace::default();
    let mut read = Vec::new();
    loop {
        let page = engine.read_local(&place, &LocalFilter::default(), few(7)).unwrap();
        read.extend(page.changes);
        if page.complete.is_some() {
            break;
        }
        // A version of which a part is missing is not reached yet: a receiver that stops here asks for all of it again.
        let next = read.last().map_or(0, |change: &Change| change.db_version.get());
        assert!(page.place.position().get() < next, "{:?} claims the version that it stopped in", page.place);
        place = page.place;
    }
    assert_eq!(read.len(), 302);
    assert_eq!(set(&read).len(), 302, "nothing twice");
}

#[test]
fn pages_of_a_large_transaction_stay_within_their_limits() {
    let engine = engine(&schemas());
    engine
        .connection()
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
             INSERT INTO items SELECT i, i, printf('%0100d', i) FROM n",
        )
        .unwrap();
    let limits = PageLimits { changes_max: 5000, bytes_max: 256 << 10, stretch: 1 };
    let pages = read_pages(&engine, LocalPlace::default(), &LocalFilter::default(), || limits);
    for page in &pages {
        let bytes: usize = page.iter().map(Change::wire_bytes).sum();
        // The last row may lie across the limit.
        assert!(page.len() <= 5001 && bytes <= (256 << 10) + 1000, "{} changes, {bytes} bytes", page.len());
    }
    assert_eq!(pages.iter().map(Vec::len).sum::<usize>(), 100_000);

    let mut plan = engine.plan_sites(&everything(&engine)).unwrap();
    let (mut count, mut more) = (0, true);
    while more {
        let (page, goes_on) = engine.read_sites(&mut plan, limits).unwrap();
        assert!(page.len() <= 5001, "{} changes", page.len());
        (count, more) = (count + page.len(), goes_on);
    }
    assert_eq!(count, 100_000);

    // The iterator gives whole changesets, however many pages they take.
    let sizes: Vec<usize> = engine.changes_since(&Cursor::new()).map(|c| c.unwrap().changes.len()).collect();
    assert_eq!(sizes, [100_000]);
}

/// A scan that sorted, or looked at the whole table, would cost what is stored and not what is sent.
#[test]
fn scans_follow_the_version_index_without_sorting() {
    let schemas = schemas();
    let engine = engine(&schemas);
    let check = |sql: &str, clock: &str| {
        let mut statement = engine.connection().prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let nothing = vec![0; statement.parameter_count()];
        let rows = statement.query_map(params_from_iter(nothing), |row| row.get::<_, String>(3)).unwrap();
        let plan = rows.map(Result::unwrap).collect::<Vec<_>>().join("; ");
        assert!(plan.contains("SEARCH") && plan.contains(&format!("{clock}_dbv_idx")), "{plan}");
        assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{plan}");
    };
    for schema in &schemas {
        let clock = format!("{}__crsql_clock", schema.name);
        let (quoted, index) = (quote(&clock), quote(&format!("{clock}_dbv_idx")));
        let columns = "db_version, key, col_name, col_version, site_id, seq";
        // The text of `sql_scan` and `sql_scan_version` in src/sql.rs.
        check(
            &format!(
                "SELECT {columns} FROM {quoted} INDEXED BY {index}
                 WHERE (db_version, key) > (?1, ?2) AND db_version <= ?3 ORDER BY db_version, key, col_name"
            ),
            &clock,
        );
        check(
            &format!(
                "SELECT {columns} FROM {quoted} INDEXED BY {index}
                 WHERE db_version = ?1 AND key > ?2 AND site_id = ?3 ORDER BY key, col_name"
            ),
            &clock,
        );
        check(&format!("SELECT max(db_version) FROM {quoted}"), &clock);
    }
}

#[test]
fn covered_changes_and_echoes_are_left_out() {
    let schemas = schemas();
    let (mut hub, a, b) = (engine(&schemas), engine(&schemas), engine(&schemas));
    hub.connection().execute_batch("INSERT INTO items VALUES (1, 'hub', 'hub')").unwrap();
    a.connection().execute_batch("INSERT INTO items VALUES (2, 'a', 'a'); INSERT INTO tags VALUES (2, 'a')").unwrap();
    b.connection().execute_batch("INSERT INTO items VALUES (3, 'b', 'b')").unwrap();
    merge(&mut hub, &dump(&a));
    let from_b = hub.merge(&dump(&b), &MergeProgress::default()).unwrap().local_versions.unwrap();

    let authors = |filter: &LocalFilter<'_>| -> Vec<(SiteId, DbVersion)> {
        read_all(&hub, filter).iter().map(|change| (change.site, change.db_version)).collect()
    };
    let site = |engine: &Engine| engine.site().unwrap();
    let (one, two) = (DbVersion::new(1), DbVersion::new(2));
    let hubs = [(site(&hub), one); 2];
    let (as_, bs) = ([(site(&a), one), (site(&a), one), (site(&a), two)], [(site(&b), one); 2]);
    assert_eq!(authors(&LocalFilter::default()), [&hubs[..], &as_, &bs].concat());
    let echoes = [from_b];
    assert_eq!(authors(&LocalFilter { echoes: &echoes, ..Default::default() }), [&hubs[..], &as_].concat());
    let covered = |entries: &[(SiteId, DbVersion)]| entries.iter().copied().collect::<Cursor>();
    let filter = LocalFilter { covered: &covered(&[(site(&a), one)]), echoes: &echoes, ..LocalFilter::default() };
    assert_eq!(authors(&filter), [&hubs[..], &as_[2..]].concat());
    // Our own versions are covered up to the newest: what was merged before it is looked up, not assumed.
    let filter =
        LocalFilter { covered: &covered(&[(site(&hub), hub.db_version().unwrap())]), ..LocalFilter::default() };
    assert_eq!(authors(&filter), [&as_[..], &bs].concat());
}

#[test]
fn tables_changed_since_names_those_with_newer_changes() {
    let schemas = schemas();
    let (mut hub, other) = (engine(&schemas), engine(&schemas));
    hub.connection().execute_batch("INSERT INTO items VALUES (1, 1, 1); INSERT INTO tags VALUES (1, 'x')").unwrap();
    other.connection().execute_batch("INSERT INTO notes (id) VALUES ('a')").unwrap();
    merge(&mut hub, &dump(&other));
    let check = |since: i64, expected: &[&str]| {
        let changed = hub.tables_changed_since(DbVersion::new(since)).unwrap();
        assert_eq!(changed.iter().map(|table| &**table).collect::<Vec<_>>(), expected, "since {since}");
    };
    check(0, &["items", "notes", "tags"]);
    check(1, &["notes", "tags"]);
    check(2, &["notes"]);
    check(3, &[]);
}

/// `known-failures.md` D8: the original looks every five seconds.
#[test]
fn a_commit_wakes_once_and_only_where_a_replicated_table_changed() {
    let schemas = schemas();
    let (mut hub, other) = (engine(&schemas), engine(&schemas));
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    hub.on_commit(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let run = |sql: &str| hub.connection().execute_batch(sql).unwrap();
    let check = |expected: usize, what: &str| assert_eq!(count.swap(0, Ordering::Relaxed), expected, "{what}");
    run("INSERT INTO items VALUES (1, 1, 1)");
    check(1, "a statement");
    run("BEGIN; INSERT INTO items VALUES (2, 1, 1); DELETE FROM items WHERE id = 1");
    check(0, "before the commit");
    run("COMMIT");
    check(1, "a transaction");
    run("BEGIN; INSERT INTO items VALUES (3, 1, 1); ROLLBACK; CREATE TABLE plain (x); INSERT INTO plain VALUES (1)");
    check(0, "a rollback and another table");
    run("DELETE FROM items WHERE id = 99; UPDATE items SET a = a");
    check(0, "statements without effect");
    other.connection().execute_batch("INSERT INTO items VALUES (7, 1, 1)").unwrap();
    merge(&mut hub, &dump(&other));
    check(1, "a merge");
}

fn everything(engine: &Engine) -> SiteBounds {
    let sites = select_changes(engine.connection(), "").into_iter().map(|change| change.site);
    let until = sites.map(|site| (site, DbVersion::new(i64::MAX))).collect();
    SiteBounds { until, ..SiteBounds::default() }
}

fn read_plan(rng: &mut Rng, engine: &Engine, bounds: &SiteBounds) -> Vec<Change> {
    let mut plan = engine.plan_sites(bounds).unwrap();
    let mut changes = Vec::new();
    loop {
        let (page, more) = engine.read_sites(&mut plan, few(rng.usize(1..15))).unwrap();
        changes.extend(page);
        if !more {
            return changes;
        }
    }
}

/// A wire v1 receiver moves its cursor with every message: what comes out of order within a site would be lost to it.
#[test]
fn site_ordered_reads_are_whole_and_ascend_within_each_site() {
    let schemas = schemas();
    for_seeds(0x517e, 15, |rng| {
        let engine = busy_engine(rng, &schemas);
        let changes = read_plan(rng, &engine, &everything(&engine));
        assert_eq!(set(&changes), set(&select_changes(engine.connection(), "")), "the whole content");
        let mut reached = Cursor::new();
        for change in &changes {
            assert!(reached.accepts(&change.site, change.db_version), "{change:?} after {reached:?}");
            reached.advance(change.site, change.db_version);
        }

        // Bounded above: what is merged beyond comes, too, but under a version that is complete.
        let until: Cursor =
            reached.iter().map(|(site, version)| (*site, DbVersion::new(rng.i64(0..=version.get())))).collect();
        let own = engine.site().unwrap();
        let upto = |change: &&Change| until.covers(&change.site, change.db_version);
        let expected: Vec<Change> = changes.iter().filter(upto).cloned().collect();
        let sent: Vec<Change> = changes.iter().filter(|change| upto(change) || change.site != own).cloned().collect();
        let bounds = SiteBounds { until: until.clone(), ..SiteBounds::default() };
        let bounded = read_plan(rng, &engine, &bounds);
        assert_eq!(set(&bounded), set(&sent), "until {until:?}");
        assert!(bounded.iter().all(|change| change.db_version <= until.get(&change.site)), "until {until:?}");

        // Gone on from the middle: nothing is missing in between.
        if expected.is_empty() {
            return;
        }
        let in_order = read_plan(rng, &engine, &bounds);
        let (before, after) = in_order.split_at(rng.usize(..in_order.len()));
        let complete = set(&expected);
        let after: Vec<Change> =
            after.iter().filter(|c| !set(std::slice::from_ref(*c)).is_disjoint(&complete)).cloned().collect();
        let sent: Cursor = before.iter().map(|change| (change.site, change.db_version)).collect();
        // Cells merged earlier than we remember are known by version alone, so the newest version is repeated.
        let since_local = engine.db_version().unwrap();
        let rest = SiteBounds { sent, inclusive: true, since_local, until, ..SiteBounds::default() };
        let rest = set(&read_plan(rng, &engine, &rest));
        assert!(set(&after).is_subset(&rest), "gone on from the middle: {after:?} against {rest:?}");
    });
}

#[test]
fn every_merged_clock_has_its_origin() {
    let schemas = schemas();
    for_seeds(0x0419, 15, |rng| {
        let mut hub = busy_engine(rng, &schemas);
        assert_origins_complete(&hub);
        // Rows that die and come back elsewhere restamp the cells that are held here.
        let mut other = engine(&schemas);
        merge(&mut other, &dump(&hub));
        for schema in &schemas {
            other.connection().execute_batch(&format!("DELETE FROM {}", quote(&schema.name))).unwrap();
        }
        for _ in 0..40 {
            execute(&other, &schemas, &Statement::random(rng, &schemas));
        }
        let mut changes = dump(&other);
        rng.shuffle(&mut changes);
        for change in changes {
            if rng.bool() {
                merge(&mut hub, &[change]);
            } else {
                merge_by_sql(hub.connection(), &[change]);
            }
            assert_origins_complete(&hub);
        }
        let all = read_all(&hub, &LocalFilter::default());
        let mut after = DbVersion::ZERO;
        loop {
            after = hub.prune_origins(after, rng.usize(1..6)).unwrap();
            if after == DbVersion::ZERO {
                break;
            }
        }
        assert_origins_complete(&hub);
        assert_eq!(read_all(&hub, &LocalFilter::default()), all, "nothing that is needed was pruned");
        let union = schemas.iter().map(|schema| {
            format!("SELECT db_version, site_id FROM {}", quote(&format!("{}__crsql_clock", schema.name)))
        });
        let unneeded: i64 = ask(
            hub.connection(),
            &format!(
                "SELECT count(*) FROM litemesh_origin WHERE (local_version, site) NOT IN ({})",
                union.collect::<Vec<_>>().join(" UNION ")
            ),
        );
        assert_eq!(unneeded, 0, "origins that no clock needs");
    });
}

/// A changeset that is merged keeps the version that its author gave it, also at the third site.
#[test]
fn relayed_changes_carry_the_versions_of_their_authors() {
    let schemas = schemas();
    let (author, mut relay, mut last) = (engine(&schemas), engine(&schemas), engine(&schemas));
    relay.connection().execute_batch("INSERT INTO items VALUES (9, 9, 9); UPDATE items SET a = 8").unwrap();
    author
        .connection()
        .execute_batch(
            "INSERT INTO items VALUES (1, 1, 1); INSERT INTO items VALUES (2, 2, 2); UPDATE items SET a = 3 WHERE id = 1",
        )
        .unwrap();
    let versions = |engine: &Engine| -> BTreeSet<(String, DbVersion)> {
        dump(engine)
            .iter()
            .filter(|change| change.site == author.site().unwrap())
            .map(|change| (identity(change), change.db_version))
            .collect()
    };
    merge(&mut relay, &dump(&author));
    merge(&mut last, &dump(&relay));
    assert_eq!(versions(&relay), versions(&author));
    assert_eq!(versions(&last), versions(&author));
}

/// Over wire v1 a change comes under an earlier version of its author first, where the sender does not hold the later one
/// completely. Who holds that much must get it once its own version is known, or nobody would send it any more.
#[test]
fn what_comes_again_under_its_own_version_is_sent_to_who_lacks_it() {
    let schemas = schemas();
    let author = engine(&schemas);
    let writes = "INSERT INTO items VALUES (1, 'x', 'y'); INSERT INTO items VALUES (2, 'x', 'y');
         DELETE FROM items WHERE id = 2; UPDATE items SET a = 'z' WHERE id = 1";
    author.connection().execute_batch(writes).unwrap();
    let site = author.site().unwrap();
    let under = |version: i64| -> Vec<Change> {
        let version = DbVersion::new(version);
        dump(&author).into_iter().map(|change| Change { db_version: version, ..change }).collect()
    };
    let provisional = MergeProgress { is_provisional: true, ..MergeProgress::default() };
    for (is_provisional, expected) in [(true, under(4).len()), (false, 0)] {
        let mut relay = engine(&schemas);
        let first = if is_provisional { &provisional } else { &MergeProgress::default() };
        relay.merge(&under(1), first).unwrap();
        let covered = [(site, DbVersion::new(1))].into_iter().collect();
        let filter = LocalFilter { covered: &covered, ..LocalFilter::default() };
        assert_eq!(set(&read_all(&relay, &filter)), BTreeSet::new());
        // Who reads it here is to look, too.
        let page = relay.read_local(&LocalPlace::default(), &LocalFilter::default(), ALL).unwrap();
        assert_eq!(page.is_provisional, is_provisional);
        let place = LocalPlace::after(relay.db_version().unwrap());
        let merged = relay.merge(&under(4), &MergeProgress::default()).unwrap();
        assert_eq!(merged.won, expected, "only where a number can be provisional is it looked at");
        let sent = read_pages(&relay, place.clone(), &filter, || ALL).concat();
        assert_eq!(set(&sent), set(&if is_provisional { under(4) } else { Vec::new() }));
        assert_same(&state(&relay, &schemas), &state(&author, &schemas), "relay");
        // Under no other does it come again, and `crsql_changes` has local versions, which say nothing of the author's.
        assert_eq!(relay.merge(&under(4), &provisional).unwrap().won, 0);
        assert_eq!(relay.merge(&under(2), &provisional).unwrap().won, 0);
        let version = relay.db_version().unwrap();
        merge_by_sql(relay.connection(), &under(9));
        assert_eq!(relay.db_version().unwrap(), version);
        assert_origins_complete(&relay);
    }
}

/// The simulation found it: an original that had half of a transaction claimed all of it, and dropped the other half, which came under an
/// earlier version.
#[test]
fn what_is_not_held_completely_goes_under_no_earlier_version_than_the_receiver_claims() {
    let schemas = schemas();
    let (author, mut relay) = (engine(&schemas), engine(&schemas));
    for id in 1..=3 {
        author.connection().execute_batch(&format!("INSERT INTO items VALUES ({id}, 'x', 'y')")).unwrap();
    }
    relay.merge(&dump(&author), &MergeProgress::default()).unwrap();
    let site = author.site().unwrap();
    let upto = |version: i64| -> Cursor { [(site, DbVersion::new(version))].into_iter().collect() };
    let versions = |sent: i64| -> Vec<i64> {
        let bounds = SiteBounds { sent: upto(sent), inclusive: true, until: upto(1), ..SiteBounds::default() };
        let mut plan = relay.plan_sites(&bounds).unwrap();
        let (changes, more) = relay.read_sites(&mut plan, ALL).unwrap();
        assert!(!more);
        let rows: std::collections::BTreeMap<_, _> =
            changes.iter().map(|change| (change.key.clone(), change.db_version.get())).collect();
        rows.into_values().collect()
    };
    assert_eq!(versions(0), [1, 1, 1]);
    assert_eq!(versions(2), [1, 2, 2]);
    assert_eq!(versions(3), [1, 2, 3]);
}

/// The same of what the file itself writes while it lacks something of what it wrote before: else whoever never comes back with that would keep
/// it from everybody.
#[test]
fn what_is_written_while_something_is_forgotten_goes_under_the_last_version_that_is_held() {
    let schemas = schemas();
    let mut engine = engine(&schemas);
    let site = engine.site().unwrap();
    let write = |engine: &Engine, id: i64| {
        engine.connection().execute_batch(&format!("INSERT INTO items VALUES ({id}, 'x', 'y')")).unwrap();
    };
    write(&engine, 1);
    write(&engine, 2);
    let seen = DbVersion::new(9);
    let witness = Witness { remote: SiteId::from_bytes([7; 16]), seen, written: seen, newest: seen };
    assert!(engine.raise_version(witness).unwrap());
    write(&engine, 3);
    write(&engine, 4);
    let versions = |engine: &Engine, sent: i64, since_local: i64| -> Vec<i64> {
        let (version, mut until) = (engine.db_version().unwrap(), engine.cursor().unwrap());
        if engine.forgotten_until().unwrap().is_none() {
            until.advance(site, version);
        }
        let (sent, since_local) = ([(site, DbVersion::new(sent))].into_iter().collect(), DbVersion::new(since_local));
        let bounds = SiteBounds { sent, since_local, until, version, ..SiteBounds::default() };
        let mut plan = engine.plan_sites(&bounds).unwrap();
        let (changes, more) = engine.read_sites(&mut plan, ALL).unwrap();
        assert!(!more);
        let rows: std::collections::BTreeMap<_, _> =
            changes.iter().map(|change| (change.key.clone(), change.db_version.get())).collect();
        rows.into_values().collect()
    };
    assert_eq!(versions(&engine, 0, 0), [1, 2, 2, 2]);
    assert_eq!(versions(&engine, 2, 0), [2, 2]);
    assert_eq!(versions(&engine, 2, 10), [2], "once");
    assert_eq!(versions(&engine, 2, 11), [0; 0]);
    assert_eq!(versions(&engine, 10, 0), [10], "an original drops what is of an earlier one than it claims");
    // It is back, and they go under their own numbers.
    let cursor = [(site, seen)].into_iter().collect();
    engine.merge(&[], &MergeProgress { cursor, ..MergeProgress::default() }).unwrap();
    assert_eq!(versions(&engine, 2, 11), [10, 11]);
}

/// CRSqlite keeps no origins. What it merged into a shared file is of unknown version, and nobody's cursor covers it.
#[test]
fn changes_of_unknown_origin_are_sent_to_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.db");
    let schemas = schemas();
    let author = SiteId::from_bytes([7; 16]);
    {
        let engine = Engine::open(&path).unwrap();
        engine.connection().execute_batch(schemas[0].create).unwrap();
        engine.replicate("items").unwrap();
        engine.connection().execute_batch("INSERT INTO items VALUES (1, 'x', 'y')").unwrap();
    }
    // As CRSqlite merges: a base row, a key, clocks with the ordinal of a site.
    let plain = litemesh_engine::rusqlite::Connection::open(&path).unwrap();
    plain
        .execute_batch(
            "INSERT INTO crsql_site_id VALUES (x'07070707070707070707070707070707', 1);
             INSERT INTO items__crsql_pks (__crsql_key, id) VALUES (50, 2);
             INSERT INTO items__crsql_clock VALUES (50, 'a', 1, 40, 1, 0), (50, 'b', 1, 40, 1, 1)",
        )
        .unwrap();
    // The base row, past the triggers of the file.
    let triggers: String = ask(&plain, "SELECT sql FROM sqlite_master WHERE name = 'items__crsql_itrig'");
    plain
        .execute_batch(&format!(
            "DROP TRIGGER items__crsql_itrig; INSERT INTO items VALUES (2, 'from', 'afar'); {triggers}"
        ))
        .unwrap();
    drop(plain);

    let engine = Engine::open(&path).unwrap();
    assert_origins_complete(&engine);
    let covered: Cursor =
        [(author, DbVersion::new(1 << 40)), (engine.site().unwrap(), DbVersion::new(1))].into_iter().collect();
    let filter = LocalFilter { covered: &covered, ..LocalFilter::default() };
    let sent = read_all(&engine, &filter);
    assert_eq!(sent.len(), 2, "{sent:?}");
    for change in &sent {
        assert_eq!(change.site, author);
        assert_eq!(change.db_version, DbVersion::ZERO, "a version that nobody's cursor could be moved too far by");
    }
    assert_eq!(set(&dump(&engine)), set(&select_changes(engine.connection(), "")));
}

/// Cells without a column or a row are skipped; they must not keep others from being read (VT-2, VT-5).
#[test]
fn orphaned_clocks_do_not_stop_a_read() {
    let schemas = schemas();
    let engine = engine(&schemas);
    engine
        .connection()
        .execute_batch(
            "INSERT INTO items VALUES (1, 1, 1), (2, 2, 2); INSERT INTO tags VALUES (1, 'x');
             INSERT INTO items__crsql_clock VALUES (1, 'gone', 1, 1, 0, 9);
             SELECT crsql_internal_sync_bit(1); DELETE FROM items WHERE id = 2; SELECT crsql_internal_sync_bit(0)",
        )
        .unwrap();
    let read = read_all(&engine, &LocalFilter::default());
    let items = read.iter().filter(|change| &*change.table == "items" && change.column != Column::Row).count();
    assert_eq!((items, read.len()), (2, 3), "{read:?}");
    assert_eq!(set(&dump(&engine)), set(&read));
}

/// Method: a reader that holds a row's new life, but of its cells nothing; a sender that held the row in its old life and
/// learned of the new one from the reader. The author of the new life is gone.
#[test]
fn cells_of_a_past_life_are_sent_also_where_their_version_is_covered() {
    let schemas = schemas();
    let (author, mut a, mut b) = (engine(&schemas), engine(&schemas), engine(&schemas));
    author.connection().execute_batch("INSERT INTO items VALUES (1, 5, 6)").unwrap();
    let progress = MergeProgress { cursor: author.cursor().unwrap(), ..MergeProgress::default() };
    a.merge(&dump(&author), &progress).unwrap();
    b.merge(&dump(&author), &progress).unwrap();
    b.connection().execute_batch("DELETE FROM items").unwrap();
    let mut gone = engine(&schemas);
    merge(&mut gone, &dump(&b));
    gone.connection().execute_batch("INSERT INTO items VALUES (1, 7, 8)").unwrap();
    let reborn: Vec<Change> = dump(&gone).into_iter().filter(|change| change.column == Column::Row).collect();
    merge(&mut b, &reborn);
    let from_b = a.merge(&read_all(&b, &LocalFilter::default()), &MergeProgress::default()).unwrap();

    let echoes = [from_b.local_versions.unwrap()];
    let covered = b.cursor().unwrap();
    let filter = LocalFilter { covered: &covered, echoes: &echoes, ..LocalFilter::default() };
    merge(&mut b, &read_all(&a, &filter));
    assert_same(&state(&b, &schemas), &state(&a, &schemas), "after both read each other");
}

#[test]
fn reading_writes_nothing_and_sees_one_state() {
    let schemas = schemas();
    let mut source = engine(&schemas);
    let mut target = engine(&schemas);
    source.connection().execute_batch("INSERT INTO items VALUES (1, 1, 1), (2, 2, 2)").unwrap();
    let page = source.read_local(&LocalPlace::default(), &LocalFilter::default(), few(2)).unwrap();
    // Between two pages a cell moves to a newer version, and so into a later page.
    source.connection().execute_batch("UPDATE items SET a = 5 WHERE id = 2").unwrap();
    let rest = read_pages(&source, page.place, &LocalFilter::default(), || few(2)).concat();
    merge(&mut target, &[page.changes, rest].concat());
    assert_same(&state(&target, &schemas), &state(&source, &schemas), "read around a write");
    let transaction = source.connection_mut().transaction().unwrap();
    transaction.execute("INSERT INTO items VALUES (3, 3, 3)", []).unwrap();
    drop(transaction);
    assert_eq!(source.db_version().unwrap(), DbVersion::new(2));
}

#[test]
fn a_shared_page_gives_each_reader_what_its_own_would() {
    let schemas = schemas();
    let mut readers = 0;
    for_seeds(0x5a9e, 15, |rng| {
        let engine = busy_engine(rng, &schemas);
        let versions = engine.db_version().unwrap().get();
        for _ in 0..10 {
            let held = engine.cursor().unwrap();
            let covered: Cursor = held
                .iter()
                .filter_map(|(site, version)| match rng.u8(..3) {
                    0 => None,
                    1 => Some((*site, version)),
                    _ => Some((*site, DbVersion::new(rng.i64(0..=version.get())))),
                })
                .collect();
            let first = rng.i64(0..=versions);
            let echoes = [(DbVersion::new(first), DbVersion::new(rng.i64(first..=versions)))];
            let echoes = &echoes[..rng.usize(0..2)];
            let filter = LocalFilter { covered: &covered, echoes, ..LocalFilter::default() };
            let start = rng.i64(0..=versions);
            let after = DbVersion::new(rng.i64(start..=versions));
            let alone = read_pages(&engine, LocalPlace::after(after), &filter, || ALL).concat();
            let (mut place, mut shared) = (LocalPlace::after(DbVersion::new(start)), Vec::new());
            let limits = PageLimits { stretch: 4, ..few(rng.usize(1..20)) };
            while let Some(page) = engine.read_shared(&place, Moves::NONE, limits).unwrap() {
                let page = page.for_reader(after, &filter);
                shared.extend(page.changes);
                place = page.place;
                if page.complete.is_some() {
                    assert_eq!(shared, alone);
                    readers += 1;
                    break;
                }
            }
        }
    });
    assert!(readers > 50, "only {readers} readers could share");
}
