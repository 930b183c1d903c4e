//! What holds of every database of the engine, whatever happened to it (`crsqlite-compat.md` section 19, item 5).

use litemesh_engine::{Engine, Severity};

/// # Panics
///
/// Rows, clocks and the engine's own tables do not fit together.
pub(crate) fn assert_consistent(engine: &Engine) {
    let found = engine.check().unwrap().map(Result::unwrap);
    let found: Vec<_> = found.filter(|finding| finding.kind.severity() != Severity::Info).collect();
    assert!(found.is_empty(), "{found:#?}");
}
