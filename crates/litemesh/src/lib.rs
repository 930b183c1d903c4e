//! Peer-to-peer, conflict-free sync for SQLite.
