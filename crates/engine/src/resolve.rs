//! Who wins: one pure function, no SQL in it. Native merge and `crsql_changes` both use it.
//!
//! Source: `crsqlite-compat.md` 5.2 and 5.3. The order is causal length first, then column version, then value, then (where
//! the database is configured so) site id.

use std::cmp::Ordering;

use litemesh_proto::{CausalLength, ColVersion};

/// What an incoming change does to the row that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It lost, or says nothing new.
    Ignore,
    /// The row dies (rule 3).
    Delete,
    /// The row is born or comes back, by its sentinel (rule 5).
    Revive,
    /// The row comes back by one of its cells (rule 6): revive it, then write the cell.
    ReviveAndWrite,
    /// The cell is written (rules 7 and 8).
    Write,
    /// Equal versions: the values decide ([`resolve_values`]).
    CompareValues,
}

/// The parts of an incoming change that decide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    pub(crate) causal_length: CausalLength,
    /// About the row itself rather than a cell.
    pub(crate) is_row: bool,
    pub(crate) col_version: ColVersion,
}

/// Decides by versions. `held_length` is zero for a row never seen; `held_cell` is `None` for a cell without a clock.
pub(crate) fn resolve(held_length: CausalLength, held_cell: Option<ColVersion>, incoming: Incoming) -> Decision {
    let length = incoming.causal_length;
    if length < held_length || (!length.is_alive() && length == held_length) {
        return Decision::Ignore;
    }
    if !length.is_alive() {
        return Decision::Delete;
    }
    if incoming.is_row {
        return if length > held_length { Decision::Revive } else { Decision::Ignore };
    }
    if length > held_length {
        let is_first_sight = held_length == CausalLength::ZERO && length == CausalLength::FIRST;
        return if is_first_sight { Decision::Write } else { Decision::ReviveAndWrite };
    }
    match held_cell.map(|held| incoming.col_version.cmp(&held)) {
        None | Some(Ordering::Greater) => Decision::Write,
        Some(Ordering::Less) => Decision::Ignore,
        Some(Ordering::Equal) => Decision::CompareValues,
    }
}

/// Decides between values of equal versions: the larger wins; equal ones only where `sites` breaks the tie.
///
/// `values` compares incoming with held, `sites` likewise; it is `None` unless `merge-equal-values` is 1.
pub(crate) fn resolve_values(values: Ordering, sites: Option<Ordering>) -> Decision {
    match values.then(sites.unwrap_or(Ordering::Equal)) {
        Ordering::Greater => Decision::Write,
        Ordering::Less | Ordering::Equal => Decision::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(held: (i64, Option<i64>), incoming: (i64, bool, i64), expected: Decision) {
        let decision = resolve(
            CausalLength::new(held.0),
            held.1.map(ColVersion::new),
            Incoming {
                causal_length: CausalLength::new(incoming.0),
                is_row: incoming.1,
                col_version: ColVersion::new(incoming.2),
            },
        );
        assert_eq!(decision, expected, "held {held:?}, incoming {incoming:?}");
    }

    /// 5.2, each row of the table.
    #[test]
    fn decision_table() {
        // 1. An older epoch loses, whatever its column version.
        check((3, Some(1)), (1, false, 9), Decision::Ignore);
        // 2. Deleted already.
        check((2, None), (2, true, 2), Decision::Ignore);
        // 3. A later death.
        check((1, Some(5)), (2, true, 2), Decision::Delete);
        check((0, None), (2, true, 2), Decision::Delete);
        check((1, Some(5)), (4, false, 1), Decision::Delete);
        // 4. and 5. Sentinels of living rows.
        check((3, None), (3, true, 3), Decision::Ignore);
        check((2, None), (3, true, 3), Decision::Revive);
        check((0, None), (1, true, 1), Decision::Revive);
        // 6. A cell of a later life.
        check((2, None), (3, false, 1), Decision::ReviveAndWrite);
        check((0, None), (3, false, 1), Decision::ReviveAndWrite);
        check((1, Some(9)), (3, false, 1), Decision::ReviveAndWrite);
        // 7. First sight.
        check((0, None), (1, false, 4), Decision::Write);
        // 8. and 9. The same life.
        check((1, None), (1, false, 1), Decision::Write);
        check((1, Some(1)), (1, false, 2), Decision::Write);
        check((1, Some(2)), (1, false, 1), Decision::Ignore);
        check((1, Some(2)), (1, false, 2), Decision::CompareValues);
        // Nonsense from outside never wins.
        check((0, None), (0, false, 9), Decision::Ignore);
        check((0, None), (-1, false, 9), Decision::Ignore);
    }

    /// 5.3, steps 3 and 4.
    #[test]
    fn equal_versions_go_by_value_then_by_site() {
        assert_eq!(resolve_values(Ordering::Greater, Some(Ordering::Less)), Decision::Write);
        assert_eq!(resolve_values(Ordering::Less, Some(Ordering::Greater)), Decision::Ignore);
        assert_eq!(resolve_values(Ordering::Equal, None), Decision::Ignore);
        assert_eq!(resolve_values(Ordering::Equal, Some(Ordering::Greater)), Decision::Write);
    }
}
