//! Conflict-free replicated tables for SQLite, compatible with CRSqlite: the merge engine of Litemesh.
