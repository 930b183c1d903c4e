//! One module for each command.

pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod fork;
pub(crate) mod init;
pub(crate) mod pairings;
pub(crate) mod serve;
pub(crate) mod sql;
pub(crate) mod status;
pub(crate) mod stdio;
pub(crate) mod sync;
pub(crate) mod token;
