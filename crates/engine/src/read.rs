//! Cursor -> ordered changes, at the cost of what is sent.
//!
//! Two orders, for two kinds of receiver (docs/storage.md):
//!
//! - [`LocalPlace`]: in the order of our own versions. For Litemesh peers, which remember how far they are and take over our
//!   cursor once everything that we hold has arrived.
//! - [`SitePlan`]: site by site, ascending versions. For wire v1 peers, whose cursor follows every message.
//!
//! Both are read page by page, each page in a read transaction of its own: a slow receiver never holds back a checkpoint. A
//! cell that is written between two pages moves to a newer local version, and so into a later page.

mod sites;

use std::sync::Arc;

use litemesh_proto::{
    CausalLength, Change, ColVersion, Column, Cursor, DbVersion, Incarnation, KeyValue, PackedKey, Place, Position,
    Seq, SiteId, Value,
};

use crate::base_rows::as_column;
use crate::core::Core;
use crate::cursor::{CursorNews, read_news};
use crate::cursor_moves::Moves;
use crate::incarnation;
use crate::row_run::{ROWS_BEFORE_A_RUN, Reached, RowRun, RunClock, is_worth_a_run};
use crate::schema::{ClockOf, Table};
use crate::statement::{Statement, running, to_key_value, to_value};

pub use sites::{SiteBounds, SitePlan};
pub(crate) use sites::{plan_sites, plan_unknown, read_sites};

/// How much one page may hold. A page always holds at least one row, whatever its size.
#[derive(Clone, Copy, Debug)]
pub struct PageLimits {
    /// Most changes.
    pub changes_max: usize,
    /// About how many bytes of wire v1 JSON.
    pub bytes_max: usize,
    /// How often these limits may be exceeded so that a page in local order ends with a whole local version. Only a version
    /// that is larger still is cut, and a page then holds nothing else before the cut. With 1, pages are cut anywhere.
    pub stretch: usize,
}

/// Most clock rows that one page looks at, sent or not. Bounds how long the engine is busy with one page.
const ROWS_SCANNED_MAX: usize = 50_000;

/// How many changes a page has room for where many are to be expected, and about how many bytes of JSON the smallest takes.
const CHANGES_OF_A_RUN: usize = 4096;
const CHANGE_BYTES: usize = 200;

/// How far a reader in local order is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalPlace {
    /// All local versions up to here were read.
    version: i64,
    /// Inside the next one that has changes: up to this key of this table, after all tables before it.
    inside: Option<(i64, Arc<str>, i64)>,
}

impl LocalPlace {
    /// Everything up to `position` was read.
    pub fn after(position: DbVersion) -> Self {
        Self { version: position.get(), inside: None }
    }

    /// The local version up to which everything was read.
    pub fn position(&self) -> DbVersion {
        DbVersion::new(self.version)
    }

    /// The place as bytes that a receiver can give back, where it lies inside a local version.
    pub fn to_inside(&self) -> Option<Place> {
        let (version, table, key) = self.inside.as_ref()?;
        Some(Place([&version.to_be_bytes(), &key.to_be_bytes(), table.as_bytes()].concat().into()))
    }

    /// Reads what [`to_inside`](Self::to_inside) gave; `None` where it is nothing of the kind.
    pub fn from_inside(place: &Place) -> Option<Self> {
        let (version, rest) = place.0.split_first_chunk()?;
        let (key, table) = rest.split_first_chunk()?;
        let version = i64::from_be_bytes(*version);
        let inside = (version, std::str::from_utf8(table).ok()?.into(), i64::from_be_bytes(*key));
        (version > 0).then(|| Self { version: version - 1, inside: Some(inside) })
    }
}

/// A page in local order.
#[derive(Clone, Debug)]
pub struct LocalPage {
    /// The database that was read.
    pub site: SiteId,
    /// The changes, whole rows together.
    pub changes: Vec<Change>,
    /// Where to go on; inside a local version only if that is too large for a page.
    pub place: LocalPlace,
    /// Of which life of this database the place is.
    pub incarnation: Incarnation,
    /// The newest version when the page was read.
    pub newest: DbVersion,
    /// Whether versions of the changes may be provisional: see [`MergeProgress::is_provisional`](crate::MergeProgress::is_provisional).
    pub is_provisional: bool,
    /// Our cursor, where this page brings its reader to everything that we hold; of entries that its reader was
    /// [told](LocalFilter::told), maybe only those that moved since.
    pub complete: Option<Cursor>,
    /// How often the cursor has moved, where the page has it.
    pub moves: Moves,
}

impl LocalPage {
    /// How far the page leads, in words that a receiver can store.
    pub fn position(&self) -> Position {
        Position { version: self.place.position(), incarnation: self.incarnation }
    }

    /// Where there is more than the page brings its reader to: the newest position when it was read.
    pub fn as_of(&self) -> Option<Position> {
        self.complete.is_none().then_some(Position { version: self.newest, incarnation: self.incarnation })
    }
}

/// A page in local order that leaves out nothing: for all who are where it begins or further, and read once for them.
#[derive(Clone, Debug)]
pub struct SharedPage {
    page: LocalPage,
    versions: Vec<VersionEnd>,
    /// Where it brings its readers to everything that we hold.
    news: Option<CursorNews>,
}

/// Where the changes of a local version end in a page.
#[derive(Clone, Copy, Debug)]
struct VersionEnd {
    version: i64,
    end: usize,
}

impl SharedPage {
    /// The local version up to which it leads.
    pub fn position(&self) -> DbVersion {
        self.page.place.position()
    }

    /// How often our cursor had moved when it was read, where it has that.
    pub fn moves(&self) -> Moves {
        self.page.moves
    }

    /// Whether it brings a reader on that has read everything up to `after`, no earlier than where it begins, and was told our cursor
    /// when that had moved so often.
    pub fn goes_on_after(&self, after: DbVersion, told: Moves) -> bool {
        let LocalPage { place, complete, .. } = &self.page;
        let goes_on =
            after < place.position() || (complete.is_some() || place.inside.is_some()) && after == place.position();
        goes_on && self.news.as_ref().is_none_or(|news| news.serves(told))
    }

    /// What such a reader is sent of it: the same as if it had been read for this reader alone.
    pub fn for_reader(&self, after: DbVersion, filter: &LocalFilter<'_>) -> LocalPage {
        let LocalPage { site, changes, place, incarnation, newest, is_provisional, complete: _, moves } = &self.page;
        let mut wanted = Vec::new();
        let mut start = 0;
        for VersionEnd { version, end } in &self.versions {
            let of_version = changes.get(start..*end).filter(|_| *version > after.get()).unwrap_or_default();
            let is_echo = filter.is_echo(*version);
            let is_wanted =
                |change: &Change| filter.wants(is_echo, change.col_version.get(), &change.site, change.db_version);
            wanted.extend(of_version.iter().filter(|change| is_wanted(change)).cloned());
            start = *end;
        }
        let complete = self.news.as_ref().map(|news| news.for_reader(filter.told));
        let (place, incarnation, newest, is_provisional) = (place.clone(), *incarnation, *newest, *is_provisional);
        let (site, moves) = (*site, *moves);
        LocalPage { site, changes: wanted, place, incarnation, newest, is_provisional, complete, moves }
    }
}

/// What a page leaves out.
///
/// ```
/// use litemesh_engine::LocalFilter;
/// use litemesh_proto::{Cursor, DbVersion, SiteId};
///
/// let held = Cursor::from_iter([(SiteId::from_bytes([7; 16]), DbVersion::new(5))]);
/// let filter = LocalFilter { covered: &held, ..LocalFilter::default() };
/// assert!(filter.echoes.is_empty());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LocalFilter<'a> {
    /// What the reader is known to hold.
    pub covered: &'a Cursor,
    /// Of this site nothing counts of that.
    pub doubted: Option<SiteId>,
    /// Local versions that came from the reader itself, as ranges.
    pub echoes: &'a [(DbVersion, DbVersion)],
    /// How often our cursor had moved when the reader was told it.
    pub told: Moves,
}

impl Default for LocalFilter<'_> {
    fn default() -> Self {
        static NOTHING: Cursor = Cursor::NOTHING;
        Self { covered: &NOTHING, doubted: None, echoes: &[], told: Moves::NONE }
    }
}

impl LocalFilter<'_> {
    fn is_echo(&self, version: i64) -> bool {
        is_within(self.echoes, version)
    }

    /// Up to where the reader is taken to hold what this site wrote.
    pub fn held(&self, site: &SiteId) -> DbVersion {
        if self.doubted.as_ref() == Some(site) { DbVersion::ZERO } else { self.covered.get(site) }
    }

    fn covers(&self, site: &SiteId, version: DbVersion) -> bool {
        self.doubted.as_ref() != Some(site) && self.covered.covers(site, version)
    }

    /// Whether the reader is to have a clock of a known author.
    ///
    /// A cell that was held when its row came back in a new life (MRG-9) is neither an echo nor covered by what its author was read up
    /// to: the reader may hold the new life without any value of that cell. Its column version is zero.
    fn wants(&self, is_echo: bool, col_version: i64, author: &SiteId, version: DbVersion) -> bool {
        col_version == 0 || (!is_echo && !self.covers(author, version))
    }
}

fn is_within(ranges: &[(DbVersion, DbVersion)], version: i64) -> bool {
    ranges.iter().any(|(first, last)| first.get() <= version && version <= last.get())
}

/// Reads the next page in local order.
pub(crate) fn read_local(
    core: &mut Core,
    place: &LocalPlace,
    filter: &LocalFilter<'_>,
    limits: PageLimits,
) -> rusqlite::Result<LocalPage> {
    read_noting(core, place, filter, limits, &mut Noted::default())
}

/// Reads the next page for all who are at this place or further; `None` where they cannot share it.
pub(crate) fn read_shared(
    core: &mut Core,
    place: &LocalPlace,
    told: Moves,
    limits: PageLimits,
) -> rusqlite::Result<Option<SharedPage>> {
    let mut noted = Noted::default();
    let page = read_noting(core, place, &LocalFilter { told, ..LocalFilter::default() }, limits, &mut noted)?;
    let mut versions = noted.versions;
    // The last version was perhaps too much for the page.
    versions.iter_mut().for_each(|version| version.end = version.end.min(page.changes.len()));
    Ok((!noted.has_unknown).then_some(SharedPage { page, versions, news: noted.news }))
}

/// What a page says of its changes that they do not say themselves.
#[derive(Default)]
struct Noted {
    versions: Vec<VersionEnd>,
    /// Something is of an author whose version is not known, which no filter leaves out.
    has_unknown: bool,
    /// What there is to tell of our cursor, where the page is the last one.
    news: Option<CursorNews>,
}

fn read_noting(
    core: &mut Core,
    place: &LocalPlace,
    filter: &LocalFilter<'_>,
    limits: PageLimits,
    noted: &mut Noted,
) -> rusqlite::Result<LocalPage> {
    let until = core.db_version()?;
    let mut page = PageBuilder::new(core.site, limits);
    (page.incarnation, page.newest) = (incarnation::newest(core)?, DbVersion::new(until));
    // Another process may have merged since.
    core.provisional_until = None;
    page.is_provisional = place.version < crate::cursor::provisional_until(core)?;
    let mut at = place.clone();
    if at.inside.is_none() {
        at.version = first_wanted(core, at.version, filter)?.min(until);
    }
    let mut labels = Labels::default();
    let mut scans = open_scans(core, &at, until)?;
    // The version that is being read, and how many changes there are of whole versions before it.
    let mut of = at.inside.as_ref().map_or(at.version, |(version, ..)| *version);
    let mut whole = 0;
    loop {
        // The earliest version first, and within it tables in their order.
        let Some(next) =
            (0..scans.len()).filter(|i| scans[*i].head.is_some()).min_by_key(|i| (scans[*i].version(), *i))
        else {
            let news = read_news(core, filter.told)?;
            let mut page = page.ends_at(LocalPlace { version: until, inside: None });
            (page.complete, page.moves) = (Some(news.for_reader(filter.told)), news.now);
            noted.news = Some(news);
            return Ok(page);
        };
        let scan = &mut scans[next];
        let (version, key) = (scan.version(), scan.key());
        if version != of {
            if page.is_full(1) {
                return Ok(page.ends_at(LocalPlace { version: of, inside: None }));
            }
            (of, whole) = (version, page.changes.len());
        }
        let is_echo = filter.is_echo(version);
        page.take_row(core, scan, |core, clock| {
            if is_echo && clock.col_version != 0 {
                return Ok(None);
            }
            let Some((site, label)) = labels.of(core, version, clock.ordinal)? else { return Ok(None) };
            noted.has_unknown |= label.is_unknown;
            let is_wanted = label.is_unknown || filter.wants(is_echo, clock.col_version, &site, label.version);
            Ok(is_wanted.then_some((site, label.version)))
        })?;
        match noted.versions.last_mut() {
            Some(last) if last.version == version => last.end = page.changes.len(),
            _ => noted.versions.push(VersionEnd { version, end: page.changes.len() }),
        }
        if page.is_full(limits.stretch) {
            if whole > 0 && limits.stretch > 1 {
                page.changes.truncate(whole);
                let place = LocalPlace { version: version - 1, inside: None };
                return Ok(page.ends_at(place));
            }
            let inside = Some((version, scans[next].table.name.clone(), key));
            return Ok(page.ends_at(LocalPlace { version: version - 1, inside }));
        }
    }
}

/// Skips local versions that cannot hold anything for the reader: those before our own first version that it lacks, as far
/// as their origins are covered. Looks at one small row a changeset instead of at their cells.
fn first_wanted(core: &mut Core, after: i64, filter: &LocalFilter<'_>) -> rusqlite::Result<i64> {
    let own = filter.held(&core.site.clone()).get();
    if own <= after || !core.has_litemesh_tables {
        return Ok(after);
    }
    const ORIGINS: &str = "SELECT local_version, site, version FROM litemesh_origin
         WHERE local_version > ?1 AND local_version <= ?2 ORDER BY local_version";
    let statement = core.statement(ORIGINS)?;
    let rows = statement.query(&[after.into(), own.into()])?;
    while rows.next()? {
        let (local, ordinal, version) = (rows.integer(0), rows.integer(1), rows.integer(2));
        let site = core.site_of(ordinal)?;
        let is_covered = site.is_none_or(|site| version > 0 && filter.covers(&site, DbVersion::new(version)));
        if !is_covered && !filter.is_echo(local) {
            return Ok(local - 1);
        }
    }
    Ok(own)
}

/// What of a scanned clock decides whether it is sent.
struct ScannedClock {
    col_version: i64,
    ordinal: i64,
}

/// A running scan of one clock table, row by row. The statement is this scan's own: pages of several readers may interleave.
struct Scan {
    table: Arc<Table>,
    /// Version and key of the row at which it stands.
    head: Option<(i64, i64)>,
    /// The last version that is wanted.
    until: i64,
    source: Source,
    /// How many rows up to here lay beside each other.
    beside: u32,
    /// Of these, the last ones that are of one version.
    beside_in_version: u32,
}

/// Where a scan's rows come from.
enum Source {
    /// By the version index: one result row for each clock of a row, and values with them.
    Index {
        statement: Arc<Statement>,
        /// The only version that it gives, if it is of one.
        version: Option<i64>,
    },
    /// Rows that lie beside each other, in the order of their keys.
    Run(Box<RowRun>),
}

impl Scan {
    /// Rows at `version` after `key`, then everything up to `until`.
    fn open(core: &Core, table: &Arc<Table>, version: i64, key: i64, until: i64) -> rusqlite::Result<Self> {
        let source = match key {
            i64::MIN => Self::index_of_version(core, table, version, key)?,
            i64::MAX => Self::index_after(core, table, version, until)?,
            // The last page ended here, in a version that is perhaps a large one.
            _ => Source::Run(Box::new(RowRun::open(core, table, version, key)?)),
        };
        let mut scan = Self { table: table.clone(), head: None, until, source, beside: 0, beside_in_version: 0 };
        scan.advance(core)?;
        Ok(scan)
    }

    /// Rows at exactly one version.
    fn open_version(core: &Core, table: &Arc<Table>, version: i64, key: i64) -> rusqlite::Result<Self> {
        Self::open(core, table, version, key, version)
    }

    fn index_of_version(core: &Core, table: &Table, version: i64, key: i64) -> rusqlite::Result<Source> {
        let statement = table.statement(core.db, |s| &s.scan_version, Table::sql_scan_version)?;
        Self::index(statement, version, key, Some(version))
    }

    fn index_after(core: &Core, table: &Table, version: i64, until: i64) -> rusqlite::Result<Source> {
        let statement = table.statement(core.db, |s| &s.scan, Table::sql_scan)?;
        Self::index(statement, version, until, None)
    }

    fn index(statement: &Arc<Statement>, from: i64, to: i64, version: Option<i64>) -> rusqlite::Result<Source> {
        drop(statement.start());
        for (parameter, value) in [(1, from), (2, to)] {
            statement.bind(parameter, value.into())?;
        }
        Ok(Source::Index { statement: statement.clone(), version })
    }

    fn version(&self) -> i64 {
        self.head.map_or(i64::MAX, |head| head.0)
    }

    fn key(&self) -> i64 {
        self.head.map_or(i64::MAX, |head| head.1)
    }

    /// Moves on: to the next row, and by the index to the next clock.
    fn advance(&mut self, core: &Core) -> rusqlite::Result<()> {
        loop {
            let ended = match &mut self.source {
                Source::Index { statement, version } => {
                    let rows = running(statement);
                    if rows.next()? {
                        let head = (rows.integer(0), rows.integer(1));
                        self.stand_at(head);
                        return Ok(());
                    }
                    *version
                }
                Source::Run(run) => match run.advance()? {
                    Reached::Row(key) => {
                        let version = run.version();
                        self.stand_at((version, key));
                        return Ok(());
                    }
                    Reached::End => Some(run.version()),
                    Reached::Lost(key) => {
                        self.source = Self::index_of_version(core, &self.table, run.version(), key)?;
                        continue;
                    }
                },
            };
            let Some(version) = ended.filter(|version| *version < self.until) else {
                self.head = None;
                return Ok(());
            };
            self.source = Self::index_after(core, &self.table, version, self.until)?;
        }
    }

    fn stand_at(&mut self, head: (i64, i64)) {
        debug_assert!(self.head.is_none_or(|last| last <= head), "{:?} comes after {head:?}", self.head);
        self.head = Some(head);
    }

    /// Counts rows that lie beside each other, and goes on without the index where there are many. `clocks` is how many the
    /// row before this one had, at `(version, key)`.
    fn look_for_run(&mut self, core: &Core, (version, key): (i64, i64), clocks: usize) -> rusqlite::Result<()> {
        let next = self.head.filter(|head| Some(head.1) == key.checked_add(1));
        let Some(next) = next.filter(|_| is_worth_a_run(&self.table, clocks)) else {
            (self.beside, self.beside_in_version) = (0, 0);
            return Ok(());
        };
        self.beside += 1;
        self.beside_in_version = if next.0 == version { self.beside_in_version + 1 } else { 0 };
        let run = if self.beside_in_version >= ROWS_BEFORE_A_RUN {
            RowRun::open(core, &self.table, version, key)?
        } else if self.beside >= ROWS_BEFORE_A_RUN && next.0 > version {
            RowRun::open_versions(core, &self.table, next.0, self.until, key)?
        } else {
            return Ok(());
        };
        (self.beside, self.beside_in_version) = (0, 0);
        self.source = Source::Run(Box::new(run));
        self.advance(core)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Self::Index { statement, .. } = self {
            drop(statement.start());
        }
    }
}

fn open_scans(core: &Core, at: &LocalPlace, until: i64) -> rusqlite::Result<Vec<Scan>> {
    // A table that is gone by now: the version is read again from its start, which only repeats.
    let inside = at
        .inside
        .as_ref()
        .and_then(|(version, table, key)| core.table_index(table).map(|index| (*version, index, *key)));
    let mut scans = Vec::new();
    for (index, table) in core.tables().iter().enumerate() {
        let (version, key) = match inside {
            Some((version, table, _)) if index < table => (version, i64::MAX),
            Some((version, table, key)) if index == table => (version, key),
            Some((version, ..)) => (version, i64::MIN),
            None => (at.version, i64::MAX),
        };
        scans.push(Scan::open(core, table, version, key, until)?);
    }
    Ok(scans)
}

/// Whose version a local version is.
#[derive(Clone, Copy)]
struct Label {
    version: DbVersion,
    /// Merged by somebody who kept no origin: the version is zero, which no cursor is compared with.
    is_unknown: bool,
}

type SiteLabel = (SiteId, Label);

/// Labels of the version that was looked at last.
#[derive(Default)]
struct Labels {
    last: Option<(i64, i64, Option<SiteLabel>)>,
    /// Up to here own changes may have another version than the local one.
    own_until: Option<i64>,
}

impl Labels {
    /// `None` where the ordinal is no site that we could name.
    fn of(&mut self, core: &mut Core, local: i64, ordinal: i64) -> rusqlite::Result<Option<(SiteId, Label)>> {
        if ordinal == 0 && local > self.own_until(core)? {
            return Ok(Some((core.site, Label { version: DbVersion::new(local), is_unknown: false })));
        }
        if let Some((last_local, last_ordinal, label)) = self.last
            && (last_local, last_ordinal) == (local, ordinal)
        {
            return Ok(label);
        }
        let label = match core.site_of(ordinal)? {
            None => None,
            Some(site) => {
                let label = match origin(core, local, ordinal)? {
                    0 if ordinal == 0 => Label { version: DbVersion::new(local), is_unknown: false },
                    // A receiver that goes by this cannot take it for covered, either.
                    0 => Label { version: DbVersion::ZERO, is_unknown: true },
                    version => Label { version: DbVersion::new(version), is_unknown: false },
                };
                Some((site, label))
            }
        };
        self.last = Some((local, ordinal, label));
        Ok(label)
    }

    fn own_until(&mut self, core: &mut Core) -> rusqlite::Result<i64> {
        if let Some(until) = self.own_until {
            return Ok(until);
        }
        const UNTIL: &str = "SELECT max(local_version) FROM litemesh_origin WHERE site = 0";
        let until = if core.has_litemesh_tables { core.statement(UNTIL)?.query_integer(&[])? } else { None };
        Ok(*self.own_until.insert(until.unwrap_or_default()))
    }
}

/// The author's version of what is stored under a local one; zero where it is not known.
pub(crate) fn origin(core: &mut Core, local: i64, ordinal: i64) -> rusqlite::Result<i64> {
    if !core.has_litemesh_tables {
        return Ok(0);
    }
    const ORIGIN: &str = "SELECT version FROM litemesh_origin WHERE local_version = ?1 AND site = ?2";
    Ok(core.statement(ORIGIN)?.query_integer(&[local.into(), ordinal.into()])?.unwrap_or_default())
}

/// Collects changes up to the limits.
struct PageBuilder {
    changes: Vec<Change>,
    bytes: usize,
    scanned: usize,
    limits: PageLimits,
    /// Of a page in local order, as the next ones.
    site: SiteId,
    incarnation: Incarnation,
    newest: DbVersion,
    is_provisional: bool,
    /// Of the row being taken, what is sent.
    wanted: Vec<(RunClock, SiteId, DbVersion)>,
    /// Space to pack a key in.
    scratch: Vec<u8>,
}

impl PageBuilder {
    fn new(site: SiteId, limits: PageLimits) -> Self {
        Self {
            site,
            changes: Vec::new(),
            bytes: 0,
            scanned: 0,
            limits,
            incarnation: Incarnation::default(),
            newest: DbVersion::ZERO,
            is_provisional: false,
            wanted: Vec::new(),
            scratch: Vec::new(),
        }
    }

    fn ends_at(self, place: LocalPlace) -> LocalPage {
        let Self { site, changes, incarnation, newest, is_provisional, .. } = self;
        let (complete, moves) = (None, Moves::NONE);
        LocalPage { site, changes, place, incarnation, newest, is_provisional, complete, moves }
    }

    /// Whether the limits, so many times, are reached.
    fn is_full(&self, times: usize) -> bool {
        self.changes.len() >= self.limits.changes_max.saturating_mul(times)
            || self.bytes >= self.limits.bytes_max.saturating_mul(times)
            || self.scanned >= ROWS_SCANNED_MAX * times
    }

    /// Turns the clocks of the row at which the scan stands into changes, as far as `label` gives them a site and a version,
    /// and moves the scan on.
    fn take_row(
        &mut self,
        core: &mut Core,
        scan: &mut Scan,
        label: impl FnMut(&mut Core, &ScannedClock) -> rusqlite::Result<Option<(SiteId, DbVersion)>>,
    ) -> rusqlite::Result<()> {
        let Some(head) = scan.head else { return Ok(()) };
        if let Source::Run(run) = &mut scan.source {
            self.take_row_of_run(core, &scan.table, run, head.1, label)?;
            return scan.advance(core);
        }
        let clocks = self.take_row_by_index(core, scan, head, label)?;
        scan.look_for_run(core, head, clocks)
    }

    /// Gives how many clocks of the version there were.
    fn take_row_by_index(
        &mut self,
        core: &mut Core,
        scan: &mut Scan,
        head: (i64, i64),
        mut label: impl FnMut(&mut Core, &ScannedClock) -> rusqlite::Result<Option<(SiteId, DbVersion)>>,
    ) -> rusqlite::Result<usize> {
        let table = scan.table.clone();
        let (start, mut causal_length, mut packed) = (self.changes.len(), CausalLength::FIRST, None);
        let (mut clocks, mut last, mut has_base) = (0, None, None);
        while scan.head == Some(head) {
            let Source::Index { statement, .. } = &scan.source else { break };
            let rows = running(statement);
            self.scanned += 1;
            let of = table.clock_after(last, rows.bytes(2));
            if let ClockOf::Cell(cell) = of {
                last = Some(cell);
            }
            let clock = ScannedClock { col_version: rows.integer(3), ordinal: rows.integer(4) };
            let mut is_of_version = true;
            if of == ClockOf::Row {
                causal_length = CausalLength::new(clock.col_version);
                is_of_version = rows.integer(6) == head.0;
            }
            clocks += usize::from(is_of_version);
            let has_base = *has_base.get_or_insert_with(|| rows.integer(7) != 0);
            if let Some(column) = column_of(&table, of, has_base).filter(|_| is_of_version)
                && let Some((site, db_version)) = label(core, &clock)?
            {
                if packed.is_none() {
                    let keys = (0..table.keys.len()).map(|n| to_key_value(rows.value_ref(as_column(9 + n))));
                    packed = self.pack(keys);
                }
                if let Some(packed) = &packed {
                    self.push(Change {
                        table: table.name.clone(),
                        key: packed.clone(),
                        column,
                        value: rows.value(8),
                        col_version: ColVersion::new(clock.col_version),
                        db_version,
                        site,
                        causal_length,
                        seq: Seq::new(rows.integer(5)),
                    });
                }
            }
            scan.advance(core)?;
        }
        // The sentinel need not come first: some names sort before `-1`.
        for change in &mut self.changes[start..] {
            change.causal_length = causal_length;
        }
        Ok(clocks)
    }

    fn take_row_of_run(
        &mut self,
        core: &mut Core,
        table: &Table,
        run: &mut RowRun,
        key: i64,
        mut label: impl FnMut(&mut Core, &ScannedClock) -> rusqlite::Result<Option<(SiteId, DbVersion)>>,
    ) -> rusqlite::Result<()> {
        self.scanned += run.looked_at();
        self.wanted.clear();
        for clock in run.clocks() {
            let scanned = ScannedClock { col_version: clock.col_version, ordinal: clock.ordinal };
            if clock.of != ClockOf::Gone
                && let Some((site, db_version)) = label(core, &scanned)?
            {
                self.wanted.push((*clock, site, db_version));
            }
        }
        let causal_length = CausalLength::new(run.causal_length());
        let cells = self.wanted.iter().filter_map(|(clock, ..)| match clock.of {
            ClockOf::Cell(cell) => Some(cell),
            ClockOf::Row | ClockOf::Gone => None,
        });
        if self.wanted.is_empty() {
            return Ok(());
        }
        let Some(base) = run.base_row(key, cells)? else { return Ok(()) };
        let (Some(packed), has_base) = (self.pack(base.key_values()), base.is_there()) else { return Ok(()) };
        self.make_room();
        let wanted = std::mem::take(&mut self.wanted);
        for (clock, site, db_version) in &wanted {
            let Some(column) = column_of(table, clock.of, has_base) else { continue };
            self.push(Change {
                table: table.name.clone(),
                key: packed.clone(),
                column,
                value: match clock.of {
                    ClockOf::Cell(cell) => to_value(base.cell(cell)),
                    ClockOf::Row | ClockOf::Gone => Value::Null,
                },
                col_version: ColVersion::new(clock.col_version),
                db_version: *db_version,
                site: *site,
                causal_length,
                seq: Seq::new(clock.seq),
            });
        }
        self.wanted = wanted;
        Ok(())
    }

    /// `None` above 255 columns: nobody could have written its clocks.
    fn pack<'a>(&mut self, keys: impl Iterator<Item = KeyValue<'a>>) -> Option<PackedKey> {
        PackedKey::pack_from(keys, &mut self.scratch).ok()
    }

    /// For the changes of one row of a run, and of those that follow: to grow little by little would copy all of them again
    /// and again.
    fn make_room(&mut self) {
        let (len, capacity) = (self.changes.len(), self.changes.capacity());
        if capacity - len < self.wanted.len() {
            let room = self.limits.changes_max.min(self.limits.bytes_max / CHANGE_BYTES).min(CHANGES_OF_A_RUN);
            self.changes.reserve(room.saturating_sub(len).max(self.wanted.len()));
        }
    }

    fn push(&mut self, change: Change) {
        self.bytes += change.wire_bytes();
        self.changes.push(change);
    }
}

/// VT-2, VT-5: a clock without its row or its column has nothing to say; `crsql_check` is for those.
fn column_of(table: &Table, of: ClockOf, has_base: bool) -> Option<Column> {
    match of {
        ClockOf::Row => Some(Column::Row),
        ClockOf::Cell(cell) if has_base => Some(Column::Cell(table.cells[cell].name.clone())),
        ClockOf::Cell(_) | ClockOf::Gone => None,
    }
}
