//! Messages to bytes and back. The byte layout of each wire version lives in its module and nowhere else.

pub mod v1;
pub mod v2;
