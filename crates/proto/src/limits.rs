//! Every bound on what a remote may make us hold or do, with its unit and its reason.
//!
//! The numbers of this file are part of the protocol: all peers share them. What a process may choose for itself is in
//! [`Limits`].

use std::time::Duration;

/// Largest version, column version, causal length or sequence number that is accepted: 2^53 - 1.
///
/// The largest integer that every JSON implementation carries exactly. It also leaves the engine's clock 2^63 - 2^53 steps
/// before its end, so that no remote can push it there (`crsqlite-compat.md` BUG-29, `known-failures.md` C3).
pub const VERSION_MAX: i64 = (1 << 53) - 1;

/// How far an accepted version may lie above the one that the receiver's database had when it was opened: 2^40.
///
/// A database that commits a thousand transactions a second needs 34 years for so many, so no honest network comes there. From one opening
/// of the file to the next, forged messages can therefore use up only a small part of the range below [`VERSION_MAX`], however many there
/// are; further they come by [`VERSION_STEP_MAX`].
pub const VERSION_JUMP_MAX: i64 = 1 << 40;

/// How far a merged version may lie above everything that the receiver knows, wherever that is: 2^20.
///
/// Once somebody has used up [`VERSION_JUMP_MAX`], honest writers must be able to go on: one who overwrote the same cell a million times
/// while away still comes through at once, and others after the database was opened anew. To the end of the range there are 2^33 such steps:
/// at 400,000 changes a second six hours of merging and nothing else.
pub const VERSION_STEP_MAX: i64 = 1 << 20;

/// Deepest JSON that is read: brackets within brackets.
///
/// Ours has six of them, from the envelope to the bytes of a BLOB. Nothing here recurses on JSON that a remote nests, and what does elsewhere
/// (`serde_json` stops at 128) has a stack for more; what is deeper is refused before anything of it is read.
pub const JSON_DEPTH_MAX: usize = 32;

/// Longest name of a table or a column, in bytes (`crsqlite-compat.md` MRG-2): a hundred times what people write, and few enough that the
/// names in errors, places and shapes stay small.
pub const NAME_BYTES_MAX: usize = 2048;

/// Most sites that a cursor may name, a remote's and our own. Bounds the work that one sync request can cause, and what claims
/// of sites that nobody has heard of can make us store; a longer cursor of ours would be refused by everybody.
pub const CURSOR_SITES_MAX: usize = 1_000_000;

/// Most sites that all remotes of a peer together may claim to hold something of, at about 30 bytes each. A peer keeps that while they
/// are connected, so as to leave out what they have; of further sites it keeps nothing, and sends what they have.
pub const CLAIMED_SITES_MAX: usize = 16 * CURSOR_SITES_MAX;

/// Longest place inside a transaction, in bytes: a version, a number and the name of a table, or what another
/// implementation makes of it.
pub const PLACE_BYTES_MAX: usize = NAME_BYTES_MAX + 64;

/// Most messages that a receiver lets a sender send before it has acknowledged any.
///
/// With messages of [`BATCH_BYTES_MAX`] of JSON, a few hundred kilobytes as frames: what a line of 50 ms carries meanwhile.
pub const CREDIT_MAX: u32 = 16;

/// How long what came may stay without an acknowledgement.
///
/// One acknowledgement then serves for all messages of that time; a sender that waits for it is not kept waiting, since half
/// of its credit brings one at once.
pub const ACK_DELAY: Duration = Duration::from_millis(100);

/// How often a sender looks whether anything of what is on its way was acknowledged. Where nothing was between two looks, the
/// connection is given up: a message or its acknowledgement was lost, or the remote hangs.
pub const SILENCE_LOOK: Duration = Duration::from_secs(60);

/// How often a session looks whether another one of the same remote is still being caught up, over another transport. It asks for
/// nothing meanwhile: what comes over both would come twice.
pub const STAND_BY: Duration = Duration::from_secs(2);

/// Most tables that one access may list. Such a list goes with the introduction of a connection, and each change is looked
/// up in it; who needs more means all of them.
pub const ACCESS_TABLES_MAX: usize = 256;

/// Body limit of an original server, in bytes: what one POST to a wire v1 server may hold (`wire-protocol.md` 5.2).
pub const V1_BODY_BYTES_MAX: usize = 1024 * 1024;

/// Most changes in one batch that we send.
///
/// Ten thousand is the page of an original peer (`wire-protocol.md` 4.4), so every receiver is known to take that many.
pub const BATCH_CHANGES_MAX: usize = 10_000;

/// About how many bytes of JSON one batch that we send may take.
///
/// Large enough that a request costs little beside its changes, small enough that reading, encoding and merging of
/// neighbouring batches overlap. A single change may be larger: a batch always holds at least one.
pub const BATCH_BYTES_MAX: usize = 768 * 1024;

/// Longest frame of wire v2, in bytes, before and after decompression: what a process accepts unless it is told otherwise
/// ([`Limits::message_bytes_max`]).
///
/// A batch takes less than [`BATCH_BYTES_MAX`], but a single value may have [`Limits::change_value_bytes_max`], and an original
/// peer sends a local burst as one message of any size (`known-failures.md` A1).
pub const FRAME_BYTES_MAX: usize = 32 << 20;

/// Most changes in one frame of wire v2.
///
/// More than six batches of our own. A change in memory takes over a hundred bytes and one byte in a frame, so
/// [`FRAME_BYTES_MAX`] alone would let a stranger fill gigabytes; with this bound changes take some 20 MiB beside their values.
pub const FRAME_CHANGES_MAX: usize = 65_536;

/// How many times as long as its zstd part a frame may be after decompression.
///
/// Rows in columns shrink to a third or a tenth; only large values that repeat themselves come near. Without it, a kilobyte
/// could cost a receiver [`FRAME_BYTES_MAX`].
pub const FRAME_EXPANSION_MAX: usize = 64;

/// Most bytes that a packed key in a frame takes over from the key before it.
///
/// Two UUIDs as text have 77 bytes. Without it, one long key could be repeated at three bytes a copy.
pub const KEY_SHARED_BYTES_MAX: usize = 127;

/// Longest text of an error that a remote may send, in bytes: it goes to a log.
pub const ERROR_BYTES_MAX: usize = 1024;

/// How many times larger than a batch a message to a Litemesh peer may be to hold a whole transaction.
///
/// What is larger still goes in parts, which the receiver writes twice.
pub const BATCH_STRETCH: usize = 4;

/// Silence on a live connection after which the server sends a ping (`wire-protocol.md` 5.3).
pub const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Most bytes of messages that are staged until a catch-up is complete, as frames before compression: then what came is merged.
///
/// Like [`Limits::catch_up_changes_max`], for changes with large values.
pub const CATCH_UP_BYTES_MAX: u64 = 256 << 20;

/// Most messages that are staged until a catch-up is complete. Far above what comes of messages as full as ours are.
pub const CATCH_UP_MESSAGES_MAX: u64 = 4096;

/// First delay before a client dials again (`wire-protocol.md` 5.6).
pub const RECONNECT_DELAY_MIN: Duration = Duration::from_secs(1);

/// Longest delay before a client dials again: whoever was away for long is back within half a minute, and a thousand clients of a hub that is
/// gone make some 30 dials a second.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(30);

/// The time in which the peers that come back to a hub are counted, to tell whether they come as a herd.
pub const HERD_WINDOW: Duration = Duration::from_millis(100);

/// Largest share of a hub's peers that may come back within one [`HERD_WINDOW`] after it was away: a fifth.
///
/// [`backoff_from`](crate::backoff_from) spreads them evenly over a second, a tenth of them in each window; as much again is for chance.
/// Of 500 peers it is 100, which cost a hub some 50 ms to take in (docs/benchmarks.md): half of one core, so that no queue grows.
pub const HERD_SHARE_MAX: f64 = 0.2;

// Who may jump need not step, and neither comes near the end.
const _: () = assert!(VERSION_STEP_MAX < VERSION_JUMP_MAX && VERSION_JUMP_MAX <= VERSION_MAX >> 12);
// A batch must always fit a wire v1 body with room for its envelope.
const _: () = assert!(BATCH_BYTES_MAX + 64 * 1024 < V1_BODY_BYTES_MAX);
// And a frame, with room for its longest value.
const _: () = assert!(BATCH_CHANGES_MAX < FRAME_CHANGES_MAX && BATCH_BYTES_MAX + (16 << 20) < FRAME_BYTES_MAX);

/// What one process accepts from remotes. The defaults suit a hub on 2 cores.
///
/// ```
/// let limits = litemesh_proto::Limits { message_bytes_max: 4 << 20, ..Default::default() };
/// assert_eq!(limits.change_value_bytes_max, 16 << 20);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message that is read, in bytes after decompression.
    ///
    /// An original peer sends a local burst as one message of any size (`known-failures.md` A1), so this is well above
    /// the 1 MiB of an original server. No frame of wire v2 is longer, either, compressed or not.
    pub message_bytes_max: usize,
    /// Largest value of one change, in bytes.
    pub change_value_bytes_max: usize,
    /// Most bytes of one transaction that are staged for a sender until its last part comes.
    pub staged_bytes_max: u64,
    /// Changes of a catch-up that wait for each other; with the message that would be more, all are merged, in one transaction.
    ///
    /// A catch-up becomes visible as a whole, so that nobody sees half of a transaction of which somebody has overwritten the
    /// rest. While it is merged the application's own writes wait, at 400,000 changes a second a good second for this many, with
    /// keys that lie anywhere four; a longer catch-up becomes visible in steps. With more, it is whole up to that, and writers
    /// have to wait longer. Zero: message by message.
    pub catch_up_changes_max: u64,
    /// Most connections that a server keeps open at once.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: FRAME_BYTES_MAX,
            change_value_bytes_max: 16 << 20,
            staged_bytes_max: 4 << 30,
            catch_up_changes_max: 500_000,
            connections_max: 1024,
        }
    }
}
