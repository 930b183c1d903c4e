//! Messages to bytes and back. The byte layout of each wire version lives in its module and nowhere else.

pub mod v1;
