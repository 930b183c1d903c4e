//! What a session lets the engine do: the reads and merges that a driver carries out for it.
//!
//! Both drivers come here, the one of tokio and the one of simulations, so that what is simulated is what runs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use litemesh_engine::{Engine, LocalFilter, MergeProgress, PageLimits, StorageError};
use litemesh_proto::{Change, Cursor, DbVersion, SiteId};

use crate::session::{Input, MergeDone, MergeFailure, Page, ReadWhat};

/// Versions of v1 remotes that this peer holds, the newest perhaps in part: what may be passed on to other v1 remotes.
pub(crate) type Frontier = Arc<Mutex<Cursor>>;

/// Local versions that were merged from the remote lately, written where the engine works.
///
/// The session hears of a merge only after others may have heard of its commit; a read that came in between would send the
/// remote its own changes back.
pub(crate) type Recent = Arc<Mutex<VecDeque<(DbVersion, DbVersion)>>>;

/// Merges that the session may not have heard of yet: one is under way at a time.
const RECENT_MAX: usize = 4;

/// What we hold, and how far we are with this remote: to ask for the rest.
pub(crate) fn open(engine: &Engine, remote: SiteId) -> Result<Input, StorageError> {
    Ok(Input::Opened { cursor: engine.cursor()?, position: engine.position(remote)? })
}

pub(crate) fn merge(
    engine: &mut Engine,
    changes: &[Change],
    progress: &MergeProgress,
    reached: &Cursor,
    frontier: &Mutex<Cursor>,
    recent: &Mutex<VecDeque<(DbVersion, DbVersion)>>,
) -> Result<MergeDone, MergeFailure> {
    match engine.merge(changes, progress) {
        Ok(merged) => {
            tracing::debug!("merged");
            // Before anybody is told of the commit, or the others would look too early and never again.
            frontier.lock().unwrap_or_else(PoisonError::into_inner).join(reached);
            let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.extend(merged.local_versions);
            while recent.len() > RECENT_MAX {
                recent.pop_front();
            }
            Ok(MergeDone { local_versions: merged.local_versions })
        }
        Err(error) => {
            tracing::warn!(%error, "not merged");
            Err(MergeFailure { message: error.to_string(), is_content: error.is_content() })
        }
    }
}

pub(crate) fn read(
    engine: &mut Engine,
    what: ReadWhat,
    recent: &Mutex<VecDeque<(DbVersion, DbVersion)>>,
    frontier: &Mutex<Cursor>,
    limits: PageLimits,
) -> Result<Page, StorageError> {
    let recent = recent.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match what {
        ReadWhat::Local { place, covered, mut echoes } => {
            echoes.extend(recent);
            // The remote has seen versions of ours that we do not know: this file was restored from a backup, or lost its last
            // commits with the power. What is written from now on must not hide below them.
            let claimed = covered.get(&engine.site()?).max(place.position());
            if engine.raise_version(claimed)? {
                tracing::warn!(%claimed, "a remote holds later versions of this database than the file does");
            }
            let filter = LocalFilter { covered, echoes: &echoes };
            engine.read_local(&place, &filter, limits).map(Page::Local)
        }
        ReadWhat::PlanSites(mut bounds) => {
            bounds.echoes.extend(recent);
            bounds.until = engine.cursor()?;
            bounds.until.join(&frontier.lock().unwrap_or_else(PoisonError::into_inner));
            let version = engine.db_version()?;
            let mut plan = engine.plan_sites(&bounds)?;
            let (changes, more) = engine.read_sites(&mut plan, limits)?;
            Ok(Page::Sites { plan, changes, more, planned: Some((bounds.until, version)) })
        }
        ReadWhat::Sites(mut plan) => {
            let (changes, more) = engine.read_sites(&mut plan, limits)?;
            Ok(Page::Sites { plan, changes, more, planned: None })
        }
    }
}
