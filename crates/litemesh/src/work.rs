//! What a session lets the engine do: the reads and merges that a driver carries out for it.
//!
//! Both drivers come here, the one of tokio and the one of simulations, so that what is simulated is what runs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use litemesh_engine::{
    Claim, Engine, LocalFilter, LocalPlace, MergeError, MergeProgress, PageLimits, Reach, StageError, Staged,
    StorageError, Witness,
};
use litemesh_proto::limits::CURSOR_SITES_MAX;
use litemesh_proto::{Change, Cursor, DbVersion, Position, Served, SiteId};

use crate::PeerError;
use crate::session::access::Gate;
use crate::session::{Begin, Fault, Input, MergeDone, MergeFailure, Page, Planned, ReadWhat};
use crate::shared_pages::{SharedPages, Wanted};
use crate::ways::Way;

/// Versions of v1 remotes that this peer holds, the newest perhaps in part: what may be passed on to other v1 remotes.
pub(crate) type Frontier = Arc<Mutex<Cursor>>;

/// Local versions that were merged from the remote lately, written where the engine works.
///
/// The session hears of a merge only after others may have heard of its commit; a read that came in between would send the
/// remote its own changes back.
pub(crate) type Recent = Arc<Mutex<Ranges>>;

/// Ranges of local versions.
pub(crate) type Ranges = VecDeque<(DbVersion, DbVersion)>;

/// Merges that the session may not have heard of yet: one is under way at a time.
const RECENT_MAX: usize = 4;

/// How many connections to a remote in a row have brought nothing on to what is staged of it, and where that led.
pub(crate) type Stuck = Arc<Mutex<HashMap<SiteId, (Reach, u32)>>>;

/// Connections after which it is not waited for the rest any more. Something in it cannot be carried, and would hide what came
/// before it for as long.
const STUCK_MAX: u32 = 8;

/// What we hold, and how far we are with this remote: to ask for the rest. `stuck`: with the first request over a connection.
pub(crate) fn open(
    engine: &mut Engine,
    remote: SiteId,
    way: &Way,
    stuck: Option<&Stuck>,
) -> Result<Input, StorageError> {
    if !way.claim_stage() {
        return Ok(Input::Busy);
    }
    let mut staged = engine.staged(remote)?;
    if stuck.is_some_and(|stuck| is_stuck(stuck, remote, &staged)) {
        tracing::warn!(%remote, "a catch-up does not go on: what came of it is merged without the rest");
        merge_staged(engine, remote);
        staged = engine.staged(remote)?;
    }
    if staged.messages == 0 {
        way.release_stage();
    }
    Ok(Input::Opened { us: engine.site()?, cursor: engine.cursor()?, staged })
}

fn is_stuck(stuck: &Stuck, remote: SiteId, staged: &Staged) -> bool {
    let mut stuck = stuck.lock().unwrap_or_else(PoisonError::into_inner);
    if staged.messages == 0 {
        stuck.remove(&remote);
        return false;
    }
    let (reach, connections) = stuck.entry(remote).or_default();
    *connections = if *reach == staged.reach { *connections + 1 } else { 0 };
    reach.clone_from(&staged.reach);
    *connections == STUCK_MAX
}

/// Heeds what a message says that its sender holds of us, where the carrier keeps messages: requests, which say so elsewhere, are not made
/// again there when a file that was restored starts again.
///
/// `is_resumed`: it was asked for before this process was there. What the file held of itself then it was not sent, and may have lost; and so
/// what it told the remote over another connection, which the remote goes on behind.
///
/// # Errors
///
/// The file has forgotten something of it, and asks anew.
pub(crate) fn heed_message(
    engine: &mut Engine,
    progress: &MergeProgress,
    is_resumed: bool,
    remote: SiteId,
    gate: &Gate,
) -> Result<(), MergeFailure> {
    let failure = |message: String, fault| MergeFailure { message, fault };
    let database = |error: StorageError| failure(error.to_string(), Fault::Database);
    let own = engine.site().map_err(database)?;
    let (written, version) = (progress.cursor.get(&own), engine.db_version().map_err(database)?);
    let held = if is_resumed { engine.cursor().map_err(database)?.get(&own) } else { version };
    if written <= held {
        let is_behind = progress.since.is_some_and(|(_, since)| since != Position::default());
        return match is_resumed && is_behind {
            true => Err(failure("the file may have lost what it told the remote elsewhere".to_owned(), Fault::Gap)),
            false => Ok(()),
        };
    }
    let heeded = if written > version {
        heed(engine, remote, Position::default(), (written, None), gate).map(drop)
    } else {
        // As many versions were taken by merges, or left out, since.
        let witness = Witness { remote: gate.position_key(remote), seen: written, written, newest: written };
        engine.part(held, witness).map_err(PeerError::from)
    };
    match heeded {
        Ok(()) => Err(failure("the file has forgotten what the remote holds of it".to_owned(), Fault::Gap)),
        Err(error @ PeerError::Rewritten { .. }) => Err(failure(error.to_string(), Fault::Content)),
        Err(error) => Err(failure(error.to_string(), Fault::Database)),
    }
}

/// `echoes`: all of it came over this connection, so that the remote need not be sent it back.
pub(crate) fn merge(
    engine: &mut Engine,
    changes: &[Change],
    progress: &MergeProgress,
    reached: &Cursor,
    way: &Way,
    echoes: bool,
    (frontier, recent): (&Mutex<Cursor>, &Mutex<Ranges>),
) -> Result<MergeDone, MergeFailure> {
    if progress.completes.is_some() && !way.claim_stage() {
        return Err(gap());
    }
    match engine.merge(changes, progress) {
        Ok(merged) => {
            tracing::debug!("merged");
            if progress.position.is_some() {
                way.release_stage();
            }
            // Before anybody is told of the commit, or the others would look too early and never again.
            frontier.lock().unwrap_or_else(PoisonError::into_inner).join_within(reached, CURSOR_SITES_MAX);
            let local_versions = merged.local_versions.filter(|_| echoes);
            add_recent(recent, local_versions);
            Ok(MergeDone { local_versions, staged: None })
        }
        Err(error) => {
            tracing::warn!(%error, "not merged");
            if let Some((sender, _)) = &progress.completes {
                forget_unreadable(engine, *sender, &error);
            }
            let fault = match &error {
                MergeError::NotStaged | MergeError::NotHeld | MergeError::StagedUnreadable { .. } => Fault::Gap,
                error if error.is_content() => Fault::Content,
                _ => Fault::Database,
            };
            Err(MergeFailure { message: error.to_string(), fault })
        }
    }
}

/// Merges what is staged of a sender, without what it waits for.
///
/// What it takes is not kept from the remote, as what a message of this connection brought is: the remote may have lost it since.
pub(crate) fn merge_staged(engine: &mut Engine, sender: SiteId) {
    // It is still there, and gone on with over the next connection.
    if let Err(error) = engine.merge_staged(sender) {
        tracing::warn!(%error, "what is staged is not merged");
        forget_unreadable(engine, sender, &error);
    }
}

/// A chain that cannot be read would never be merged.
fn forget_unreadable(engine: &mut Engine, sender: SiteId, error: &MergeError) {
    if let (MergeError::StagedUnreadable { .. }, Err(error)) = (error, engine.forget_staged(sender)) {
        tracing::warn!(%error, "what is staged is not forgotten");
    }
}

fn add_recent(recent: &Mutex<Ranges>, versions: Option<(DbVersion, DbVersion)>) {
    let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
    recent.extend(versions);
    while recent.len() > RECENT_MAX {
        recent.pop_front();
    }
}

/// The messages before this one are another session's.
fn gap() -> MergeFailure {
    MergeFailure { message: "another connection to the remote is being caught up".to_owned(), fault: Fault::Gap }
}

/// Keeps a message that is merged together with later ones.
pub(crate) fn stage(
    engine: &mut Engine,
    way: &Way,
    sender: SiteId,
    after: &Reach,
    until: &Reach,
    changes: &[Change],
    bytes_max: u64,
) -> Result<MergeDone, MergeFailure> {
    if !way.claim_stage() {
        return Err(gap());
    }
    let staged = engine.stage(sender, after, until, changes, bytes_max);
    staged.map(|staged| MergeDone { local_versions: None, staged: Some(staged) }).map_err(|error| {
        let fault = match error {
            StageError::Gap => Fault::Gap,
            StageError::TooLarge { .. } => Fault::Content,
            _ => Fault::Database,
        };
        MergeFailure { message: error.to_string(), fault }
    })
}

/// `shared`: pages that serve several sessions, and the beat whose news must be there.
pub(crate) fn read(
    engine: &mut Engine,
    what: ReadWhat,
    (remote, gate): (SiteId, &Gate),
    recent: &Mutex<Ranges>,
    frontier: &Mutex<Cursor>,
    limits: PageLimits,
    shared: Option<(&SharedPages, u64)>,
) -> Result<Page, PeerError> {
    let recent = recent.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match what {
        ReadWhat::Local { place, covered, told, claimed, mut echoes, read_at } => {
            echoes.extend(recent);
            let own = engine.site()?;
            let filter = LocalFilter { covered: &covered, doubted: gate.doubts(own), echoes: &echoes, told };
            let is_lost = lost(engine, claimed.as_of)?;
            let acknowledged = claimed.elsewhere.map(|served| served.acknowledged);
            let further = acknowledged.filter(|position| position.version > claimed.position.version);
            let position = further.unwrap_or(claimed.position);
            let parted = heed(engine, remote, position, (filter.held(&own), claimed.written), gate)?;
            // What came from the remote itself, or was known to it, as far as this file went on from there.
            let is_reached = match claimed.elsewhere {
                Some(Served { reached, .. }) => engine.judge(reached, reached.version)? == Claim::Held,
                None => true,
            };
            let (place, begin) = match parted {
                _ if is_lost => (LocalPlace::default(), Begin::Anew),
                Some(common) => (LocalPlace::after(common), Begin::Elsewhere),
                None if is_reached => (place, Begin::There),
                None => (LocalPlace::after(position.version), Begin::There),
            };
            let page = match shared {
                Some((pages, wanted)) => {
                    let wanted = Wanted { beat: wanted, read_at };
                    pages.read(engine, &place, &filter, limits, wanted)?
                }
                None => None,
            };
            let (page, read_at) = match page {
                Some(page) => page,
                None => {
                    // Before the read: what is committed meanwhile may be in the page.
                    let read_at = shared.map_or(0, |(pages, _)| pages.count_read());
                    (engine.read_local(&place, &filter, limits)?, read_at)
                }
            };
            Ok(Page::Local { page, begin, read_at })
        }
        ReadWhat::PlanSites(mut bounds) => {
            bounds.echoes.extend(recent);
            // It has no position; what it holds of us it says in its cursor.
            let site = engine.site()?;
            let seen = bounds.sent.get(&site);
            if gate.is_writer() {
                heed(engine, remote, Position::default(), (seen, None), gate)?;
            }
            bounds.until = engine.cursor()?;
            // Nothing that we wrote lies above our version; what this file has forgotten of it need not be sent to who holds it.
            if engine.forgotten_until()?.is_none_or(|forgotten| forgotten <= seen) {
                bounds.until.advance(site, engine.db_version()?);
            }
            // The end of an answer says that the newest versions in it are complete. What may be here in part goes under others before
            // that, since it may have beaten what is sent, and again under its own number afterwards.
            let frontier = frontier.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut follows = Cursor::new();
            if bounds.inclusive {
                follows = frontier.beyond(&bounds.until);
            } else {
                bounds.until.join(&frontier);
            }
            let version = engine.db_version()?;
            bounds.version = version;
            let mut plan = engine.plan_sites(&bounds)?;
            let (changes, more) = engine.read_sites(&mut plan, limits)?;
            Ok(Page::Sites { plan, changes, more, planned: Some(Planned { until: bounds.until, follows, version }) })
        }
        ReadWhat::Sites(mut plan) => {
            let (changes, more) = engine.read_sites(&mut plan, limits)?;
            Ok(Page::Sites { plan, changes, more, planned: None })
        }
    }
}

/// Whether the file has lost this position, as of which a remote has read a part of what there was.
///
/// What overwrote something in that part is gone, and the remote would never be sent again what lies there instead. What it has of
/// several transactions without the rest would show half of one.
fn lost(engine: &Engine, as_of: Option<Position>) -> Result<bool, StorageError> {
    let Some(as_of) = as_of else { return Ok(false) };
    Ok(engine.judge(as_of, as_of.version)? != Claim::Held)
}

/// Heeds what a remote says that it has seen of us: how far it has read us, and up to where it holds what we have written; and above what
/// it holds nothing of that, where we know. Gives the version after which it is to be read to, where that is not where it says.
///
/// # Errors
///
/// It has seen another life of this database, and would not take what was written in this one.
fn heed(
    engine: &mut Engine,
    remote: SiteId,
    position: Position,
    (written, newest): (DbVersion, Option<DbVersion>),
    gate: &Gate,
) -> Result<Option<DbVersion>, PeerError> {
    let witness = |seen: DbVersion| {
        // Of what it has read of us it may hold anything, also where it cannot say so.
        let newest = newest.map_or(seen, |newest| newest.max(written).min(seen));
        Witness { remote: gate.position_key(remote), seen, written, newest }
    };
    let seen = match engine.judge(position, written)? {
        Claim::Held => return Ok(None),
        // Who may not write must not move our clock, either: it is read to from where we are.
        Claim::Ahead(_) if !gate.is_writer() => return Ok(Some(engine.db_version()?)),
        Claim::Ahead(seen) => seen,
        Claim::Parted { common, .. } if !gate.is_writer() => return Ok(Some(common)),
        Claim::Parted { common, seen } => {
            tracing::warn!(%seen, "a remote holds versions of this database that the file has forgotten");
            engine.part(common, witness(seen))?;
            return Ok(Some(common));
        }
        Claim::Rewritten { common } => return Err(PeerError::Rewritten { common }),
    };
    // What is stored from now on must not hide below it.
    if engine.raise_version(witness(seen))? {
        tracing::warn!(%seen, "a remote holds later versions of this database than the file does");
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use litemesh_engine::Moves;
    use litemesh_proto::Access;

    use super::*;
    use crate::session::Claimed;

    /// A flaky line is waited for; one over which nothing more comes at all is not.
    #[test]
    fn who_brings_nothing_on_is_not_waited_for() {
        let (stuck, remote) = (Stuck::default(), SiteId::from_bytes([7; 16]));
        let staged = |version: i64, messages: u64| {
            let position = Position { version: DbVersion::new(version), ..Position::default() };
            Staged { reach: Reach { position, ..Reach::default() }, messages, ..Staged::default() }
        };
        for _ in 0..STUCK_MAX {
            assert!(!is_stuck(&stuck, remote, &staged(1, 1)));
        }
        assert!(is_stuck(&stuck, remote, &staged(1, 1)));
        assert!(!is_stuck(&stuck, remote, &staged(2, 2)));
        for _ in 1..STUCK_MAX {
            assert!(!is_stuck(&stuck, remote, &staged(2, 2)));
        }
        assert!(is_stuck(&stuck, remote, &staged(2, 2)));
        assert!(!is_stuck(&stuck, remote, &staged(2, 0)));
        assert!(stuck.lock().unwrap().is_empty());
    }

    /// The simulation found it. A remote has staged the first row, and not what overwrote the second one since.
    #[test]
    fn who_read_what_is_lost_is_read_to_from_the_very_start() {
        let folder = tempfile::tempdir().unwrap();
        let (file, backup) = (folder.path().join("peer.db"), folder.path().join("backup.db"));
        let (first, second) = ("INSERT INTO t VALUES (1, 1), (2, 1)", "UPDATE t SET v = 2 WHERE id = 2");
        let page = |engine: &mut Engine, claimed: Claimed| {
            let what = ReadWhat::Local {
                place: LocalPlace::after(claimed.position.version),
                covered: Arc::default(),
                told: Moves::NONE,
                claimed,
                echoes: Vec::new(),
                read_at: 0,
            };
            let limits = PageLimits { changes_max: 1, bytes_max: usize::MAX, stretch: 100 };
            let remote = (SiteId::from_bytes([7; 16]), &Gate::new(Access::FULL));
            let page = read(engine, what, remote, &Mutex::default(), &Mutex::default(), limits, None).unwrap();
            let Page::Local { page, begin, .. } = page else { panic!("{page:?}") };
            (page, begin)
        };
        let mut engine = Engine::open(&file).unwrap();
        engine.connection().execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v)").unwrap();
        engine.replicate("t").unwrap();
        engine.connection().execute_batch(first).unwrap();
        engine.connection().execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
        engine.connection().execute_batch(second).unwrap();
        let (read, _) = page(&mut engine, Claimed::default());
        let claimed = Claimed { position: read.position(), as_of: read.as_of(), ..Claimed::default() };
        assert_eq!((read.changes.len(), claimed.position.version), (1, DbVersion::new(1)));
        assert_eq!(claimed.as_of.map(|as_of| as_of.version), Some(DbVersion::new(2)));
        assert_eq!(page(&mut engine, claimed).1, Begin::There);
        let mut engine = Engine::open(&backup).unwrap();
        let (read, begin) = page(&mut engine, claimed);
        assert_eq!((read.changes.len(), begin), (2, Begin::Anew));
        // Also where as many versions are there again.
        engine.connection().execute_batch("UPDATE t SET v = 3 WHERE id = 1").unwrap();
        assert_eq!(page(&mut engine, claimed).1, Begin::Anew);
    }

    /// The simulation found it, with a power cut. What a remote was told over a line it does not send back over a relay, and the file that
    /// goes on with the stream may have lost it; by then merges have taken as many versions.
    #[test]
    fn who_goes_on_with_a_stream_does_not_believe_that_it_holds_more_of_itself_than_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = Engine::open(folder.path().join("peer.db")).unwrap();
        let (own, remote) = (engine.site().unwrap(), SiteId::from_bytes([7; 16]));
        let version = DbVersion::new(9);
        let witness = Witness { remote: SiteId::from_bytes([8; 16]), seen: version, written: version, newest: version };
        engine.raise_version(witness).unwrap();
        let claiming = |version: i64| {
            let cursor = [(own, DbVersion::new(version))].into_iter().collect();
            MergeProgress { cursor, ..MergeProgress::default() }
        };
        let gate = Gate::new(Access::FULL);
        let mut heed = |progress: &MergeProgress, is_resumed| {
            heed_message(&mut engine, progress, is_resumed, remote, &gate).map_err(|failure| failure.fault)
        };
        assert_eq!(heed(&claiming(0), true), Ok(()));
        assert_eq!(heed(&claiming(7), false), Ok(()), "it was asked with what is here");
        let behind = |version: i64| {
            let since = Position { version: DbVersion::new(version), ..Position::default() };
            MergeProgress { since: Some((remote, since)), ..MergeProgress::default() }
        };
        assert_eq!((heed(&behind(3), true), heed(&behind(3), false)), (Err(Fault::Gap), Ok(())));
        assert_eq!(heed(&behind(0), true), Ok(()), "it begins at the very start");
        assert_eq!(heed(&claiming(7), true), Err(Fault::Gap));
        assert_eq!(heed(&claiming(10), false), Err(Fault::Gap), "nobody has told it of that");
        // What is to come back it is told to have.
        engine.merge(&[], &claiming(10)).unwrap();
        assert_eq!(engine.cursor().unwrap().get(&own), DbVersion::new(10));
        assert!(heed_message(&mut engine, &claiming(10), true, remote, &gate).is_ok());
    }

    /// A file that was restored since may have come to other versions than those that a remote was known to have no need of.
    #[test]
    fn what_went_another_way_counts_as_far_as_the_file_went_on_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let (file, backup) = (folder.path().join("peer.db"), folder.path().join("backup.db"));
        let write = |engine: &Engine, id: i64| {
            engine.connection().execute("INSERT INTO t VALUES (?1, 1)", [id]).unwrap();
        };
        let begin = |engine: &mut Engine, served: Served| {
            let what = ReadWhat::Local {
                place: LocalPlace::after(served.reached.version),
                covered: Arc::default(),
                told: Moves::NONE,
                claimed: Claimed { elsewhere: Some(served), ..Claimed::default() },
                echoes: Vec::new(),
                read_at: 0,
            };
            let limits = PageLimits { changes_max: 100, bytes_max: usize::MAX, stretch: 100 };
            let remote = (SiteId::from_bytes([7; 16]), &Gate::new(Access::FULL));
            let page = read(engine, what, remote, &Mutex::default(), &Mutex::default(), limits, None)?;
            let Page::Local { page, begin, .. } = page else { panic!("{page:?}") };
            let versions: Vec<i64> = page.changes.iter().map(|change| change.db_version.get()).collect();
            Ok::<_, PeerError>((versions, begin))
        };
        let at = |engine: &mut Engine| {
            let limits = PageLimits { changes_max: 100, bytes_max: usize::MAX, stretch: 100 };
            engine.read_local(&LocalPlace::default(), &LocalFilter::default(), limits).unwrap().position()
        };
        let mut engine = Engine::open(&file).unwrap();
        engine.connection().execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v)").unwrap();
        engine.replicate("t").unwrap();
        write(&engine, 1);
        let acknowledged = at(&mut engine);
        write(&engine, 2);
        engine.connection().execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
        let between = at(&mut engine);
        write(&engine, 3);
        let reached = at(&mut engine);
        let served = Served { acknowledged, reached };
        write(&engine, 4);
        assert_eq!(begin(&mut engine, served).unwrap(), (vec![4], Begin::There));
        drop(engine);
        // It has forgotten the third version, and writes another one.
        let mut engine = Engine::open(&backup).unwrap();
        assert_eq!(begin(&mut engine, Served { acknowledged, reached: between }).unwrap(), (vec![], Begin::There));
        assert_eq!(begin(&mut engine, served).unwrap(), (vec![2], Begin::There));
        write(&engine, 5);
        assert_eq!(begin(&mut engine, served).unwrap(), (vec![2, 3], Begin::There));
        // What the remote has acknowledged it holds, under a version that is something else here.
        let rewritten = begin(&mut engine, Served { acknowledged: reached, reached });
        assert!(matches!(rewritten, Err(PeerError::Rewritten { .. })), "{rewritten:?}");
    }
}
