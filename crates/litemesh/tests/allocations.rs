//! What peers hold in memory, counted: it does not depend on how large a transaction is.
//!
//! A test binary of its own, with one test: the allocator is the whole process's.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use litemesh::Event;
use litemesh_testkit::{Link, connect};
use support::{Node, PATIENCE};

/// Counts what Rust code takes. What SQLite takes has its own bounds, and is not counted.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    PEAK.fetch_max(HELD.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above; the pointer came from `alloc`, and so from there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Waits until there are so many rows, without reading them.
async fn wait_for_count(node: &mut Node, count: usize) {
    let has = |node: &Node| -> usize {
        let sql = "SELECT count(*) FROM todo";
        let count: i64 = node.db.lock().connection().query_row(sql, [], |row| row.get(0)).unwrap();
        count.try_into().unwrap()
    };
    let wait = async {
        while has(node) < count {
            node.events.recv().await.unwrap();
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{} of {count} rows", has(node));
}

const TITLE_BYTES: usize = 300;

/// What is held at most while a transaction of so many rows goes from one peer to another.
async fn peak_of_a_transaction(rows: usize, link: Link) -> usize {
    let (mut a, mut b) = (Node::start().await, Node::start().await);
    connect(&a.transport, &b.transport, link).await.unwrap();
    for node in [&mut a, &mut b] {
        node.wait("caught up", |event| matches!(event, Event::Eose { .. })).await;
    }
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    a.execute(&format!(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO todo SELECT 'row ' || i, hex(randomblob({TITLE_BYTES} / 2)), i FROM n"
    ));
    wait_for_count(&mut b, rows).await;
    PEAK.load(Relaxed) - before
}

/// `known-failures.md` D4: the original holds all of a transaction, several times.
#[tokio::test]
async fn a_transaction_is_never_held_in_memory() {
    const ROWS: usize = 200_000;
    for link in [Link::Litemesh, Link::V1] {
        let peak = peak_of_a_transaction(ROWS, link).await;
        // The values alone, without keys.
        assert!(peak > 0 && 2 * peak < ROWS * TITLE_BYTES, "{link:?}: {peak} bytes");
    }
}
