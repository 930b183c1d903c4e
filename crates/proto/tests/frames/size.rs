//! How many bytes a change takes.

use litemesh_proto::codec::v2;

use crate::workload;

/// The bar of the catch-up is 7 bytes a change; wire v1 takes 173, and 9.8 through gzip. The rows of this table follow each other
/// so closely that a byte is plenty; random keys and texts take what they have (`known-failures.md` D5).
#[test]
fn a_change_of_a_catch_up_takes_less_than_a_byte() {
    let page = |first_row, changes| v2::message(&workload::message(workload::page(first_row, changes))).len();
    assert!(page(0, 10_000) < 10_000, "{} bytes", page(0, 10_000));
    // In the middle of a table and of a transaction, and a page that is bounded by its bytes.
    assert!(page(123_456, 10_000) < 10_000, "{} bytes", page(123_456, 10_000));
    assert!(page(0, 3_600) < 3_600, "{} bytes", page(0, 3_600));
}

/// `known-failures.md` D5: 173 bytes in the original.
#[test]
fn a_single_live_change_takes_less_than_a_hundred_bytes() {
    let frame = v2::message(&workload::message(workload::page(7, 1)));
    assert!(frame.len() < 100, "{} bytes", frame.len());
}
