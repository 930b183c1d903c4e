//! Writes and reads the page of a catch-up as frames: what a change costs in bytes and, under valgrind, in instructions.
//!
//! ```text
//! cargo build -p litemesh-proto --release --features compress --example frames
//! valgrind --tool=callgrind --callgrind-out-file=frames.out target/release/examples/frames
//! callgrind_annotate --inclusive=yes frames.out | grep -E 'v2::(message|decode|changes)'
//! ```

#[path = "../tests/frames/workload.rs"]
mod workload;

use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{DecodeError, Limits};

const CHANGES: usize = 10_000;

fn main() -> Result<(), DecodeError> {
    let message = workload::message(workload::page(0, CHANGES));
    let plain = v2::encode_changes(&workload::page(0, CHANGES));
    let frame = v2::message(&message);
    let each = |bytes: usize| bytes as f64 / CHANGES as f64;
    println!("{:.2} bytes a change, {:.2} before compression", each(frame.len()), each(plain.len()));
    let read = match v2::decode(&frame, &Limits::default())? {
        Frame::Message(unverified) => unverified.verify(&Limits::default()).ok(),
        _ => None,
    };
    assert_eq!(read.as_ref(), Some(&message));
    Ok(())
}
