//! Pages that were read for one session and serve others that are at the same place.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use litemesh_engine::{Engine, LocalFilter, LocalPage, LocalPlace, Moves, PageLimits, SharedPage, StorageError};
use litemesh_proto::DbVersion;
use tokio::sync::watch;

use crate::beat::Beat;

/// Pages that are kept: the one that sessions read now, and the one before it for those that are late.
const PAGES_MAX: usize = 2;

/// Ends of pages at which sessions are taken to stand that did not read yet. A page begins at the earliest of them, so that it
/// serves these, too, and all who read in one beat come to stand at one place. Otherwise sessions that once fell behind, on a
/// busy machine, would go on to read pages of their own.
const ENDS_MAX: usize = 4;

/// How far from the end a place may lie whose page is shared. Before, in a catch-up, hardly two are at the same place, and a page
/// that leaves out nothing would cost a reader that holds most of it more than one of its own.
const VERSIONS_MAX: i64 = 4096;

/// How much further back a page may begin than who needs it: what lies before is passed over for each reader.
const VERSIONS_BACK_MAX: i64 = 1024;

/// Fewer sessions read for themselves: what comes from the one remote of a client is not to be read for it again.
const SESSIONS_MIN: usize = 4;

/// The pages of one peer.
#[derive(Debug)]
pub(crate) struct SharedPages {
    beats: watch::Receiver<Beat>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The newest first.
    kept: VecDeque<Kept>,
    /// Where the last pages ended, and how often our cursor had moved.
    ends: VecDeque<(DbVersion, Moves)>,
    /// How many pages were read, shared or not.
    reads: u64,
}

/// How new a page must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Everything that was announced by this beat must be there.
    pub(crate) beat: u64,
    /// No page may follow one that was read later: a cell that was written between the two would be in neither.
    pub(crate) read_at: u64,
}

#[derive(Debug)]
struct Kept {
    after: DbVersion,
    /// How often our cursor had moved when those were told it for whom the page was read.
    told: Moves,
    bytes_max: usize,
    /// The beat after which it was read: everything that was announced with it is there.
    beat: u64,
    /// The number of its read.
    read_at: u64,
    page: SharedPage,
}

impl Kept {
    fn serves(&self, after: DbVersion, told: Moves) -> bool {
        self.after <= after && self.page.goes_on_after(after, told)
    }
}

/// Whether little is to be read after this version of ours, in a database at `version`.
pub(crate) fn is_near(after: DbVersion, version: DbVersion) -> bool {
    version.get().saturating_sub(after.get()) <= VERSIONS_MAX
}

impl SharedPages {
    pub(crate) fn new(beats: watch::Receiver<Beat>) -> Self {
        Self { beats, state: Mutex::default() }
    }

    /// Counts a read that is not shared. Gives its number.
    pub(crate) fn count_read(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).count_read()
    }

    /// What a session is sent after `place`, if it can be shared, and the number of its read.
    ///
    /// It may lack what was committed since, of which there is a next beat.
    pub(crate) fn read(
        &self,
        engine: &Engine,
        place: &LocalPlace,
        filter: &LocalFilter<'_>,
        limits: PageLimits,
        wanted: Wanted,
    ) -> Result<Option<(LocalPage, u64)>, StorageError> {
        let beat = *self.beats.borrow();
        let after = place.position();
        let is_near = is_near(after, beat.announced.db_version) && place.to_inside().is_none();
        if beat.sessions < SESSIONS_MIN || !is_near {
            return Ok(None);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let serves = |kept: &&Kept| {
            let is_new = kept.beat >= wanted.beat && kept.read_at >= wanted.read_at;
            is_new && kept.serves(after, filter.told) && kept.bytes_max == limits.bytes_max
        };
        if let Some(kept) = state.kept.iter().find(serves) {
            return Ok(Some((kept.page.for_reader(after, filter), kept.read_at)));
        }
        for (start, told) in [state.start(after, filter.told), (after, filter.told)] {
            let read_at = state.count_read();
            let Some(page) = engine.read_shared(&LocalPlace::after(start), told, limits)? else { return Ok(None) };
            let kept = Kept { after: start, told, bytes_max: limits.bytes_max, beat: beat.number, read_at, page };
            // A page that began early may be full before it comes to who needs it.
            if kept.serves(after, filter.told) {
                let wanted = kept.page.for_reader(after, filter);
                state.keep(kept);
                return Ok(Some((wanted, read_at)));
            }
        }
        Ok(None)
    }
}

impl State {
    fn count_read(&mut self) -> u64 {
        self.reads += 1;
        self.reads
    }

    /// Where a page for a session at `after`, which was `told` our cursor, begins.
    fn start(&self, after: DbVersion, told: Moves) -> (DbVersion, Moves) {
        let not_far = |(end, _): &&(DbVersion, Moves)| after.get().saturating_sub(end.get()) <= VERSIONS_BACK_MAX;
        self.ends
            .iter()
            .filter(not_far)
            .fold((after, told), |earliest, end| (earliest.0.min(end.0), earliest.1.min(end.1)))
    }

    fn keep(&mut self, kept: Kept) {
        let end = (kept.page.position(), kept.page.moves().max(kept.told));
        if self.ends.front() != Some(&end) {
            self.ends.truncate(ENDS_MAX - 1);
            self.ends.push_front(end);
        }
        self.kept.truncate(PAGES_MAX - 1);
        self.kept.push_front(kept);
    }
}
