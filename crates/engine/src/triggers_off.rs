//! Our triggers, which do nothing while a merge writes, left out of a large one. That they fire takes as much time as a quarter of
//! a new row, and an UPDATE that fires none writes rows while it walks over them.
//!
//! SQLite has one switch for all triggers of a connection, and each turn of it makes it prepare every statement anew. So the
//! merge must be large, and nobody else's trigger may be missed: none in the temporary schema, none on a table that is written
//! (those are merged row by row, with triggers on), and none where a foreign key could lead.

use crate::core::Core;
use crate::statement::Handle;

/// Fewest changes that are worth it: ten statements are prepared twice, which takes about as long as to merge a hundred rows.
const CHANGES_MIN: usize = 1500;

/// Turns triggers on again when it is dropped, if it has turned them off.
#[derive(Default)]
pub(crate) struct TriggersOff {
    off: Option<Handle>,
    /// Whether they must stay on, or are off already.
    is_decided: bool,
}

impl TriggersOff {
    /// Turns triggers off if so many changes are worth it, and nobody could miss them. None of our statements may be running.
    pub(crate) fn turn_off(&mut self, core: &mut Core, changes: usize) -> rusqlite::Result<()> {
        if self.is_decided || changes < CHANGES_MIN {
            return Ok(());
        }
        self.is_decided = true;
        // The host may have turned them off itself. A statement of its that runs could not open a table any more.
        let is_possible = core.db.has_triggers_on() && !core.db.is_running_anything() && !core.has_temporary_triggers;
        if is_possible && !may_fire_others(core)? && core.db.turn_triggers(false) {
            self.off = Some(core.db);
        }
        Ok(())
    }

    /// They are on from here on, and stay on.
    pub(crate) fn turn_on(&mut self) {
        self.is_decided = true;
        if let Some(db) = self.off.take() {
            db.turn_triggers(true);
        }
    }
}

impl Drop for TriggersOff {
    fn drop(&mut self) {
        self.turn_on();
    }
}

/// Whether writes of base rows, or ours of shadow tables, could fire a trigger of somebody else's on another table than these base
/// rows'. Foreign keys lead to tables that have some.
fn may_fire_others(core: &mut Core) -> rusqlite::Result<bool> {
    const OTHERS: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_master AS m WHERE type = 'trigger'
         AND (lower(tbl_name) GLOB '*__crsql_*' OR lower(tbl_name) GLOB 'crsql_*' OR lower(tbl_name) GLOB 'litemesh_*'
         OR EXISTS (SELECT 1 FROM pragma_foreign_key_list(m.tbl_name, 'main'))))";
    Ok(core.statement(OTHERS)?.query_integer(&[])? == Some(1))
}
