//! Conflict-free replicated tables for SQLite: the merge engine of Litemesh, compatible with CRSqlite 0.16.
//!
//! An [`Engine`] is one connection. It makes tables replicated ([`Engine::replicate`]), reads what a peer lacks, and merges
//! what a peer sent ([`Engine::merge`]). The same engine answers the SQL of CRSqlite that sync needs: `crsql_changes`,
//! `crsql_as_crr()`, `crsql_db_version()`, ordered lists ([`fractional`]), schema changes and more.
//!
//! The way of a change, and the room for each step:
//!
//! 1. `capture`: a trigger notes a local write; `record` writes its clocks when the statement ends, in its transaction.
//! 2. `transaction`: SQLite tells us that it committed; [`Engine::on_commit`] passes that on. No data goes this way.
//! 3. `read`: cursor -> ordered changes.
//! 4. `merge`: changes of others -> one transaction of rows, clocks and cursor. Who wins is decided in `resolve`.
//!
//! What it does not do: network, threads, retries. Those are `litemesh`'s.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

mod affinity;
mod alter;
mod automigrate;
mod backfill;
mod base_rows;
mod batch_table;
mod bootstrap;
mod capture;
mod changes_table;
mod check;
mod clset_table;
mod core;
mod cursor;
mod cursor_moves;
mod discovery;
mod engine;
mod error;
mod foreign_layout;
mod fork;
pub mod fractional;
mod functions;
mod heal;
mod history;
mod in_place;
mod incarnation;
mod key_walk;
mod load;
mod merge;
mod merge_cache;
mod merge_load;
mod merge_row;
mod merge_rows;
mod merge_step;
mod merged_clocks;
mod newer_clocks;
mod notes;
#[cfg(test)]
mod panics;
mod read;
mod record;
mod record_alike;
mod record_deletes;
mod record_merged;
mod replicate;
mod resolve;
mod row_key;
mod row_run;
mod schema;
mod scratch;
mod sql;
mod sql_text;
mod staged;
mod statement;
mod transaction;
mod trigger_functions;
mod triggers_off;
mod unpack_table;
mod unpassed;
mod virtual_table;

pub use check::{Finding, FindingKind, Repair, Repaired, Severity};
pub use cursor::Witness;
pub use cursor_moves::Moves;
pub use engine::{Changesets, Engine, Findings};
pub use error::{AlterError, MergeError, MigrateError, OpenError, ReplicateError, StageError, StorageError};
pub use fork::Forked;
pub use incarnation::Claim;
pub use litemesh_proto as proto;
pub use load::load;
pub use merge::{MergeProgress, Merged};
pub use read::{LocalFilter, LocalPage, LocalPlace, PageLimits, SharedPage, SiteBounds, SitePlan};
pub use rusqlite;
pub use staged::{Reach, Staged};
