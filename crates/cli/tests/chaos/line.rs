//! One peer on one line, which breaks at every byte, or goes dead without a word.

use std::time::Duration;

use litemesh::engine::Engine;
use litemesh::rusqlite::Connection;
use litemesh_testkit::proxy::{Ending, Line, Proxy, Way};

use crate::application::{SCHEMA, open};
use crate::cluster::{comes_true, until};
use crate::process::Process;
use crate::support::{Files, litemesh};

/// How long a cut is waited for after all data has come: acknowledgements go later.
const CUT_WAIT_MAX: Duration = Duration::from_millis(150);

/// Longest wait for a transaction after a cut. Both sides are told of it at once; after 60 s and 90 s they look by themselves
/// whether something was lost, and that is not to be needed.
const RECOVERY_MAX: Duration = Duration::from_secs(45);

/// Positions in a row that nothing reached, after which all have been tried.
const UNREACHED_MAX: usize = 3;

/// A hub and a peer of it, with the proxy in between.
struct Pair {
    hub: Side,
    peer: Side,
    proxy: Proxy,
    /// After those who use its files.
    files: Files,
}

struct Side {
    file: String,
    process: Process,
    /// The application.
    engine: Engine,
    reader: Connection,
}

impl Side {
    fn new(file: String, process: Process) -> Self {
        Self { engine: Engine::open(&file).unwrap(), reader: open(&file), file, process }
    }

    fn write(&self, id: i64) {
        self.engine.connection().execute_batch("BEGIN").unwrap();
        for table in ["ledger", "pair_a", "pair_b"] {
            self.engine.connection().execute(&format!("INSERT INTO {table} VALUES (?1, ?1)"), [id]).unwrap();
        }
        self.engine.connection().execute_batch("COMMIT").unwrap();
    }

    /// Whether it has what the transaction wrote; never a part of it.
    #[track_caller]
    fn holds(&self, id: i64) -> bool {
        let sql = "SELECT (SELECT count(*) FROM ledger WHERE id = ?1) + (SELECT count(*) FROM pair_a WHERE id = ?1)
            + (SELECT count(*) FROM pair_b WHERE id = ?1)";
        let rows: i64 = self.reader.query_one(sql, [id], |row| row.get(0)).unwrap();
        assert!(rows == 0 || rows == 3, "{rows} rows of transaction {id}");
        rows == 3
    }
}

impl Pair {
    #[track_caller]
    fn start(more_of_hub: &[&str], more_of_peer: &[&str]) -> Self {
        let (files, proxy) = (Files::new(), Proxy::start());
        let schema = files.write("schema.sql", SCHEMA);
        let database = |name: &str| {
            let file = files.path(name);
            litemesh(&["init", &file, "--schema", &schema]).ok();
            file
        };
        let (hub, peer) = (database("hub.db"), database("peer.db"));
        let (process, address) = Process::serve(&hub, None, more_of_hub).unwrap();
        proxy.lead_to(Some(address));
        let hub = Side::new(hub, process);
        let process = Process::sync(&peer, &proxy.url(), "0.001", None, more_of_peer);
        let peer = Side::new(peer, process);
        Self { hub, peer, proxy, files }
    }

    #[track_caller]
    fn check_and_stop(self) {
        let Self { hub, peer, proxy: _proxy, files: _files } = self;
        until(|| "equal files".to_owned(), || litemesh(&["diff", &hub.file, &peer.file]).code == Some(0));
        for side in [peer, hub] {
            side.process.stop(&side.file);
            drop((side.engine, side.reader));
            litemesh(&["doctor", &side.file]).ok();
        }
    }
}

/// Breaks the line after every number of bytes in one direction, from the first of a connection on: its request or its head, the
/// introduction, the transaction that is waited for, the end of stored events, acknowledgements. The peer dials again, and the
/// transaction comes as a whole. Gives how many positions there were.
#[track_caller]
pub(crate) fn cut_at_every_byte(way: Way) -> usize {
    let pair = Pair::start(&[], &[]);
    let (from, to) = match way {
        Way::Up => (&pair.peer, &pair.hub),
        Way::Down => (&pair.hub, &pair.peer),
    };
    let (mut positions, mut unreached) = (0, 0);
    while unreached < UNREACHED_MAX {
        let (id, cuts) = (positions as i64, pair.proxy.cuts());
        pair.proxy.set_line(Line::Held);
        pair.proxy.end_all(Ending::Close);
        from.write(id);
        pair.proxy.cut_after(way, positions, Ending::Close);
        pair.proxy.set_line(Line::Clear);
        let has_come = comes_true(RECOVERY_MAX, || to.holds(id));
        let said = || format!("{}{}", pair.peer.process.said(), pair.hub.process.said());
        assert!(has_come, "transaction {id} stays away after a cut{}", said());
        comes_true(CUT_WAIT_MAX, || pair.proxy.cuts() > cuts);
        unreached = if pair.proxy.leave_whole() { unreached + 1 } else { 0 };
        positions += 1;
    }
    pair.check_and_stop();
    positions - UNREACHED_MAX
}

/// Makes connections half-open that stand: neither side hears of it, and what they send is gone. The peer notices the silence
/// and dials again, and the hub lets it, though the old stream still stands.
#[track_caller]
pub(crate) fn go_dead_without_a_word(times: i64) {
    let pair = Pair::start(&["--ping-interval", "0.25"], &["--idle-timeout", "1"]);
    for id in 0..times {
        let (down, up) = (2 * id, 2 * id + 1);
        if id > 0 {
            pair.proxy.silence_those_that_stand();
        }
        pair.hub.write(down);
        pair.peer.write(up);
        until(|| "what both wrote is on both sides".to_owned(), || pair.peer.holds(down) && pair.hub.holds(up));
    }
    assert!(pair.proxy.connections() >= times.unsigned_abs(), "a connection after each silence");
    pair.check_and_stop();
}
