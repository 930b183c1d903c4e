//! The second order of [`crate::read`]: site by site, ascending versions, for wire v1 peers, whose cursor follows every message.

use std::collections::HashMap;
use std::sync::Arc;

use litemesh_proto::{Change, Cursor, DbVersion, SiteId};

use super::{LocalPlace, PageBuilder, PageLimits, Scan, is_within, open_scans};
use crate::core::Core;
use crate::cursor::held_version;

/// What a wire v1 peer is to be sent, and how far that is.
#[derive(Clone, Debug, Default)]
pub struct SitePlan {
    ranges: Vec<SiteRange>,
    /// Local versions that are left out.
    echoes: Vec<(DbVersion, DbVersion)>,
    /// The range being read, and where in it.
    range: usize,
    inside: Option<SitePlace>,
}

#[derive(Clone, Debug)]
struct SiteRange {
    site: SiteId,
    ordinal: i64,
    from: i64,
    until: i64,
    /// Only what was merged after this local version.
    since_local: i64,
    /// The version to send under, where the changes' own is unknown.
    label: Option<DbVersion>,
}

#[derive(Clone, Debug, PartialEq)]
enum SitePlace {
    Own(LocalPlace),
    /// Author's version, local version, and in that one table and key; `None` after all of it.
    Foreign(i64, i64, Option<(Arc<str>, i64)>),
}

/// What a [`SitePlan`] starts from.
#[derive(Clone, Debug, Default)]
pub struct SiteBounds {
    /// Highest version of each site that the receiver holds or was sent.
    pub sent: Cursor,
    /// Whether the versions in `sent` are to be sent again: the receiver may hold the newest in part only
    /// (`wire-protocol.md` 4.7).
    pub inclusive: bool,
    /// Whatever was merged after this local version is sent, also below `sent`.
    pub since_local: DbVersion,
    /// Versions up to which we hold everything, or are about to: nothing above is sent under its own number.
    pub until: Cursor,
    /// Our own version. What we wrote up to here is sent, whatever `until` says.
    pub version: DbVersion,
    /// Local versions that came from the receiver itself, as ranges.
    pub echoes: Vec<(DbVersion, DbVersion)>,
}

/// Decides which versions of which sites a v1 receiver lacks.
///
/// Sites with newer writes come first: a cell that was overwritten is gone from its author's list, and what it lost against
/// must not be missing when the link breaks in between. The clock is Lamport's, so the winner is the newer one.
///
/// What we hold above `until` is sent, too, or a site that never comes back would take it away; but under a version that we
/// hold completely, or that the receiver claims, so that no receiver's cursor jumps over what we may lack.
pub(crate) fn plan_sites(core: &mut Core, bounds: &SiteBounds) -> rusqlite::Result<SitePlan> {
    core.current_site()?;
    let merged = merged_since(core, bounds)?;
    let mut until = bounds.until.clone();
    if bounds.version > DbVersion::ZERO {
        until.advance(core.site, DbVersion::ZERO);
    }
    for ordinal in merged.keys() {
        if let Some(site) = core.site_of(*ordinal)? {
            until.advance(site, DbVersion::ZERO);
        }
    }
    let mut sites: Vec<(&SiteId, DbVersion)> = until.iter().collect();
    sites.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
    let mut ranges = Vec::new();
    for (site, until) in sites {
        let Some(ordinal) = core.find_ordinal(site.as_bytes())? else { continue };
        if ordinal != 0 && !core.has_litemesh_tables {
            continue;
        }
        let sent = bounds.sent.get(site).get();
        let merged = merged.get(&ordinal).copied().unwrap_or_default();
        let from = (if bounds.inclusive { sent } else { sent.saturating_add(1) }).min(merged.lowest);
        let mut add = |from: i64, until: i64, label: Option<DbVersion>| {
            if from <= until {
                // What goes under another number goes once; under its own it goes whenever the receiver lacks it.
                let since_local = if label.is_some() { bounds.since_local.get() } else { 0 };
                ranges.push(SiteRange { site: *site, ordinal, from, until, since_local, label });
            }
        };
        // What the receiver claims no cursor can jump over any more; and an original drops what lies below that.
        let known = until.max(bounds.sent.get(site));
        add(from.max(1), known.get(), None);
        // After what goes under its own number: the receiver's cursor reaches `known` with the first of these.
        if merged.highest > known.get() {
            add(known.get().saturating_add(1), i64::MAX, Some(known));
        }
        if merged.has_unknown {
            add(0, 0, Some(known));
        }
        // So goes what we wrote ourselves while we lack something of what we wrote before.
        let newest = bounds.version.get();
        if ordinal == 0 && newest > known.get() {
            add(known.max(bounds.since_local).get().saturating_add(1), newest, Some(known));
        }
    }
    Ok(SitePlan { ranges, echoes: bounds.echoes.clone(), range: 0, inside: None })
}

/// Adds what is of unknown version, whenever it was merged; nobody's cursor covers it.
pub(crate) fn plan_unknown(core: &mut Core, plan: &mut SitePlan) -> rusqlite::Result<()> {
    if !core.has_litemesh_tables {
        return Ok(());
    }
    const SITES: &str = "SELECT ordinal FROM crsql_site_id s WHERE ordinal <> 0
         AND EXISTS (SELECT 1 FROM litemesh_origin o WHERE o.site = s.ordinal AND o.version = 0)";
    let statement = core.statement(SITES)?;
    let rows = statement.query(&[])?;
    while rows.next()? {
        let ordinal = rows.integer(0);
        if let Some(site) = core.site_of(ordinal)? {
            let label = Some(held_version(core, site)?);
            plan.ranges.push(SiteRange { site, ordinal, from: 0, until: 0, since_local: 0, label });
        }
    }
    Ok(())
}

/// The versions of one site that were merged lately.
#[derive(Clone, Copy)]
struct MergedVersions {
    lowest: i64,
    highest: i64,
    has_unknown: bool,
}

impl Default for MergedVersions {
    fn default() -> Self {
        Self { lowest: i64::MAX, highest: 0, has_unknown: false }
    }
}

/// By ordinal, what was merged since the last plan, the receiver's own changes left out.
fn merged_since(core: &mut Core, bounds: &SiteBounds) -> rusqlite::Result<HashMap<i64, MergedVersions>> {
    let mut merged = HashMap::new();
    if !core.has_litemesh_tables {
        return Ok(merged);
    }
    let statement = core
        .statement("SELECT local_version, site, version FROM litemesh_origin WHERE local_version > ?1 AND site <> 0")?;
    let rows = statement.query(&[bounds.since_local.get().into()])?;
    while rows.next()? {
        if is_within(&bounds.echoes, rows.integer(0)) {
            continue;
        }
        let entry: &mut MergedVersions = merged.entry(rows.integer(1)).or_default();
        match rows.integer(2) {
            0 => entry.has_unknown = true,
            version => {
                entry.lowest = entry.lowest.min(version);
                entry.highest = entry.highest.max(version);
            }
        }
    }
    Ok(merged)
}

/// Reads the next page of a plan; `false` with it when the plan is done.
pub(crate) fn read_sites(
    core: &mut Core,
    plan: &mut SitePlan,
    limits: PageLimits,
) -> rusqlite::Result<(Vec<Change>, bool)> {
    core.refresh()?;
    let mut page = PageBuilder::new(core.site, limits);
    while let Some(range) = plan.ranges.get(plan.range).cloned() {
        let is_done = if range.ordinal == 0 {
            read_own_range(core, &range, &mut plan.inside, &mut page)?
        } else {
            read_foreign_range(core, &range, &plan.echoes, &mut plan.inside, &mut page)?
        };
        if !is_done {
            return Ok((page.changes, true));
        }
        plan.range += 1;
        plan.inside = None;
        if page.is_full(1) {
            break;
        }
    }
    Ok((page.changes, plan.range < plan.ranges.len()))
}

fn read_own_range(
    core: &mut Core,
    range: &SiteRange,
    inside: &mut Option<SitePlace>,
    page: &mut PageBuilder,
) -> rusqlite::Result<bool> {
    let at = match inside.take() {
        Some(SitePlace::Own(place)) => place,
        _ => LocalPlace::after(DbVersion::new(range.from - 1)),
    };
    let mut scans = open_scans(core, &at, range.until)?;
    loop {
        let Some(next) =
            (0..scans.len()).filter(|i| scans[*i].head.is_some()).min_by_key(|i| (scans[*i].version(), *i))
        else {
            return Ok(true);
        };
        let (version, key) = (scans[next].version(), scans[next].key());
        let label = (range.site, range.label.unwrap_or(DbVersion::new(version)));
        page.take_row(core, &mut scans[next], |_, clock| Ok((clock.ordinal == 0).then_some(label)))?;
        if page.is_full(1) {
            let place =
                LocalPlace { version: version - 1, inside: Some((version, scans[next].table.name.clone(), key)) };
            *inside = Some(SitePlace::Own(place));
            return Ok(false);
        }
    }
}

fn read_foreign_range(
    core: &mut Core,
    range: &SiteRange,
    echoes: &[(DbVersion, DbVersion)],
    inside: &mut Option<SitePlace>,
    page: &mut PageBuilder,
) -> rusqlite::Result<bool> {
    let (mut version, mut local, mut within) = match inside.take() {
        Some(SitePlace::Foreign(version, local, within)) => (version, local, within),
        _ => (range.from, -1, None),
    };
    loop {
        if within.is_none() {
            const NEXT: &str = "SELECT version, local_version FROM litemesh_origin
                 WHERE site = ?1 AND (version, local_version) > (?2, ?3) AND version <= ?4 AND local_version > ?5
                 ORDER BY version, local_version LIMIT 1";
            let statement = core.statement(NEXT)?;
            let rows = statement.query(&[
                range.ordinal.into(),
                version.into(),
                local.into(),
                range.until.into(),
                range.since_local.into(),
            ])?;
            if !rows.next()? {
                return Ok(true);
            }
            (version, local) = (rows.integer(0), rows.integer(1));
        }
        if is_within(echoes, local) {
            continue;
        }
        let label = range.label.unwrap_or(DbVersion::new(version));
        within = read_local_version(core, range, local, label, within, page)?;
        if page.is_full(1) {
            *inside = Some(SitePlace::Foreign(version, local, within));
            return Ok(false);
        }
    }
}

/// Reads what one site has in one local version, table by table. Gives the place where the page filled up, if it did inside.
fn read_local_version(
    core: &mut Core,
    range: &SiteRange,
    local: i64,
    label: DbVersion,
    within: Option<(Arc<str>, i64)>,
    page: &mut PageBuilder,
) -> rusqlite::Result<Option<(Arc<str>, i64)>> {
    let start = within.and_then(|(table, key)| core.table_index(&table).map(|index| (index, key)));
    for index in 0..core.tables().len() {
        let after = match start {
            Some((started, _)) if index < started => continue,
            Some((started, key)) if index == started => key,
            _ => i64::MIN,
        };
        let table = core.tables()[index].clone();
        let mut scan = Scan::open_version(core, &table, local, after)?;
        while scan.head.is_some() {
            let key = scan.key();
            page.take_row(core, &mut scan, |_, clock| {
                Ok((clock.ordinal == range.ordinal).then_some((range.site, label)))
            })?;
            if page.is_full(1) {
                return Ok(Some((table.name.clone(), key)));
            }
        }
    }
    Ok(None)
}
