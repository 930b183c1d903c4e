//! A list of changes as bytes: grouped by row, columns of equal rows together.
//!
//! ```text
//! byte          layout            1
//! n             sites             16 bytes each
//! n             names             of tables and columns; `-1` as a column is the row itself
//! n             shapes            table, number of cells, their columns; as numbers of names
//! n             rows              how many
//! numbers       shape of each row
//! numbers       site of each row
//! numbers       version           minus that of the row before
//! numbers       causal length
//! numbers       first seq         minus the expected one
//! for each shape, of all its rows:
//!   keys
//!   for each cell:
//!     numbers   column version
//!     numbers   seq               minus the expected one; not for the first cell
//!     values
//! ```
//!
//! A *row* is as many changes as follow each other in the list with equal table, key, site, version and causal length; its
//! *shape* is the table and the columns, in order. The *expected* seq is one more than the last one, and 0 where site or
//! version differ from those of the row before. Differences wrap around at 64 bits. docs/protocol.md, "Frames", says the
//! same at more length.

mod decode;
mod encode;

pub(super) use decode::read_changes;
pub(super) use encode::write_changes;

/// Changes that were staged lie in databases, so the layout has a number of its own.
const LAYOUT: u8 = 1;

#[cfg(test)]
mod tests;
