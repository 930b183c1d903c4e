//! Recorded frames: what peers of this version sent. The files in `tests/vectors/v2/` are never made anew; a layout that
//! cannot read them is another version of the wire.

use litemesh_proto::codec::v2::{self, Frame, Hello};
use litemesh_proto::{
    Access, Ack, CausalLength, Change, ColVersion, Column, Cursor, DbVersion, DecodeError, Incarnation, Limits,
    PackedKey, Part, PeerMessage, Place, Position, Progress, Seq, SiteId, SyncRequest, Terms, Value,
};

use crate::workload;

const ALICE: SiteId = SiteId::from_bytes(*b"alice-----------");
const BOB: SiteId = SiteId::from_bytes(*b"bob-------------");

fn bytes(hex: &str) -> Vec<u8> {
    const_hex::decode(hex.split_whitespace().collect::<String>()).unwrap()
}

fn read(frame: &[u8]) -> Result<Frame, DecodeError> {
    v2::decode(frame, &Limits::default())
}

fn read_message(frame: &[u8]) -> PeerMessage {
    match read(frame) {
        Ok(Frame::Message(unverified)) => unverified.verify(&Limits::default()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Both ways.
fn check(hex: &str, message: &PeerMessage) {
    assert_eq!(const_hex::encode(v2::message(message)), const_hex::encode(bytes(hex)), "{message:?}");
    assert_eq!(read_message(&bytes(hex)), *message);
}

fn place(bytes: &[u8]) -> Place {
    Place(bytes.into())
}

fn cursor() -> Cursor {
    [(ALICE, DbVersion::new(300)), (BOB, DbVersion::new(0))].into_iter().collect()
}

fn position() -> Position {
    Position { version: DbVersion::new(1_000_000), incarnation: Incarnation(0x0123_4567_89ab_cdef) }
}

fn change(key: Value, column: &str, value: Value, seq: i64) -> Change {
    Change {
        table: "todo".into(),
        key: PackedKey::pack(&[key]).unwrap(),
        column: Column::from(column),
        value,
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(5),
        site: ALICE,
        causal_length: CausalLength::FIRST,
        seq: Seq::new(seq),
    }
}

fn changes(changes: Vec<Change>) -> PeerMessage {
    PeerMessage::Changes { changes, schema_version: 0, progress: None }
}

#[test]
fn hello() {
    let hex = include_str!("../vectors/v2/hello.hex");
    let hello = Hello { version: 2, site: ALICE, access: Access::FULL };
    assert_eq!(v2::hello(&hello), bytes(hex));
    assert!(matches!(read(&bytes(hex)), Ok(Frame::Hello(found)) if found == hello));
    // A peer of a later version says more.
    let later = bytes(include_str!("../vectors/v2/hello_of_a_later_version.hex"));
    let expected = Hello { version: 300, site: ALICE, access: Access::FULL };
    assert!(matches!(read(&later), Ok(Frame::Hello(found)) if found == expected));
}

#[test]
fn sync() {
    let check = |hex: &str, request: &SyncRequest| {
        assert_eq!(const_hex::encode(v2::sync(request)), const_hex::encode(bytes(hex)));
        assert!(matches!(read(&bytes(hex)), Ok(Frame::Sync(found)) if found == *request));
    };
    check(include_str!("../vectors/v2/sync_of_an_empty_database.hex"), &SyncRequest::default());
    let terms = Terms { answer: 3, credit: 16, position: position(), ..Terms::default() };
    check(include_str!("../vectors/v2/sync.hex"), &SyncRequest { cursor: cursor(), terms: Some(terms.clone()) });
    let terms = Terms { staged: Some(place(b"\0\x01")), ..terms };
    check(
        include_str!("../vectors/v2/sync_inside_a_transaction.hex"),
        &SyncRequest { cursor: cursor(), terms: Some(terms.clone()) },
    );
    // The answerer held more when it read this.
    let as_of = Some(Position { version: DbVersion::new(1_000_001), ..position() });
    check(
        include_str!("../vectors/v2/sync_as_of.hex"),
        &SyncRequest { cursor: cursor(), terms: Some(Terms { as_of, ..terms }) },
    );
}

#[test]
fn eose_and_ack() {
    check(include_str!("../vectors/v2/eose_without_progress.hex"), &PeerMessage::Eose { progress: None });
    let progress =
        Progress { answer: 3, number: 200, position: Some(position()), cursor: Some(cursor()), ..Progress::default() };
    check(include_str!("../vectors/v2/eose.hex"), &PeerMessage::Eose { progress: Some(progress) });
    let ack = Ack { answer: u32::MAX, number: u64::MAX, until: 16 };
    check(include_str!("../vectors/v2/ack.hex"), &PeerMessage::Ack(ack));
}

#[test]
fn ping_and_error() {
    let ping = bytes(include_str!("../vectors/v2/ping.hex"));
    assert_eq!(v2::ping(), ping);
    assert!(matches!(read(&ping), Ok(Frame::Ping)));
    let error = bytes(include_str!("../vectors/v2/error.hex"));
    assert_eq!(v2::error("bad frame: ü"), error);
    assert!(matches!(read(&error), Ok(Frame::Error(text)) if text == "bad frame: ü"));
}

#[test]
fn a_kind_of_a_later_version() {
    assert!(matches!(read(&bytes(include_str!("../vectors/v2/unknown_kind.hex"))), Ok(Frame::Unknown)));
}

#[test]
fn two_rows_of_one_transaction() {
    let row = |id: &str, title: &str, done, seq| {
        let key = || Value::text(id);
        [change(key(), "title", Value::text(title), seq), change(key(), "done", Value::Integer(done), seq + 1)]
    };
    let message = changes([row("a1", "bread", 0, 0), row("a2", "milk", 1, 2)].concat());
    check(include_str!("../vectors/v2/two_rows.hex"), &message);
}

#[test]
fn rows_of_two_sites_and_tables_with_deletion_and_gaps() {
    let deleted = Change {
        causal_length: CausalLength::new(2),
        col_version: ColVersion::new(2),
        ..change(Value::Integer(1), "-1", Value::Null, 7)
    };
    let other = Change {
        table: "list".into(),
        site: BOB,
        db_version: DbVersion::new(3),
        ..change(Value::Integer(1), "name", Value::text("x"), 0)
    };
    let first = change(Value::Integer(1000), "ts", Value::Integer(1_700_000_000), 9);
    let later = Change { col_version: ColVersion::new(130), ..first.clone() };
    check(include_str!("../vectors/v2/several_sites.hex"), &changes(vec![deleted, other, first, later]));
}

#[test]
fn odd_values() {
    let numbers = [i64::MIN, i64::MAX, 0, -1].map(Value::Integer);
    let reals = [1.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, 5e-324].map(Value::Real);
    let strings = [
        Value::text(""),
        Value::text("a\0ü"),
        Value::Text(Box::from([0xff, 0xfe])),
        Value::blob([]),
        Value::blob([0, 0xff]),
        Value::Null,
    ];
    let list = |values: &[Value]| {
        let each = values.iter().zip(1..).map(|(value, n)| change(Value::Integer(n), "v", value.clone(), n));
        changes(each.collect())
    };
    check(include_str!("../vectors/v2/integers.hex"), &list(&numbers));
    check(include_str!("../vectors/v2/reals.hex"), &list(&reals));
    check(include_str!("../vectors/v2/strings_and_null.hex"), &list(&strings));
    let mixed = [numbers.as_slice(), &reals, &strings].concat();
    check(include_str!("../vectors/v2/mixed_types.hex"), &list(&mixed));
    // Equality of reals does not tell the zeros apart.
    let PeerMessage::Changes { changes, .. } = read_message(&bytes(include_str!("../vectors/v2/reals.hex"))) else {
        panic!("another kind")
    };
    assert!(matches!(changes[1].value, Value::Real(zero) if zero.is_sign_negative()));
}

/// SQLite has none. We send none, either: a [`Value`] is made without.
#[test]
fn not_a_number_reads_as_null() {
    let message = read_message(&bytes(include_str!("../vectors/v2/not_a_number.hex")));
    assert_eq!(message, changes(vec![change(Value::Integer(1), "v", Value::Null, 1)]));
}

#[test]
fn parts_of_a_transaction() {
    let with = |number, part, value| PeerMessage::Changes {
        changes: vec![change(Value::Integer(1), "v", Value::Integer(value), value)],
        schema_version: 4,
        progress: Some(Progress { answer: 1, number, part, ..Progress::default() }),
    };
    let first = Part::Piece { after: None, until: place(b"1") };
    check(include_str!("../vectors/v2/first_part.hex"), &with(1, first, 0));
    let second = Part::Piece { after: Some(place(b"1")), until: place(b"22") };
    check(include_str!("../vectors/v2/second_part.hex"), &with(2, second, 1));
    check(include_str!("../vectors/v2/last_part.hex"), &with(3, Part::Last { after: place(b"22") }, 2));
}

#[test]
fn a_live_batch_with_position_and_cursor() {
    let progress = Progress { position: Some(position()), cursor: Some(cursor()), ..Progress::default() };
    let message = PeerMessage::Changes {
        changes: vec![change(Value::text("a1"), "title", Value::text("bread"), 0)],
        schema_version: -1,
        progress: Some(Progress { answer: 7, number: 300, ..progress }),
    };
    check(include_str!("../vectors/v2/live.hex"), &message);
}

/// After another connection: what lies before version 999,000 the receiver acknowledged there.
#[test]
fn a_batch_that_goes_on_after_another_connection() {
    let since = Position { version: DbVersion::new(999_000), ..position() };
    let progress = Progress { since: Some(since), position: Some(position()), ..Progress::default() };
    let message = PeerMessage::Changes {
        changes: vec![change(Value::text("a1"), "title", Value::text("bread"), 0)],
        schema_version: 4,
        progress: Some(Progress { answer: 7, number: 301, ..progress }),
    };
    check(include_str!("../vectors/v2/since.hex"), &message);
}

/// What came before it in the catch-up, and it itself, become visible with what is still to come.
#[test]
fn a_batch_with_more_to_come() {
    let message = PeerMessage::Changes {
        changes: vec![change(Value::text("a1"), "title", Value::text("bread"), 0)],
        schema_version: 4,
        progress: Some(Progress {
            answer: 7,
            number: 2,
            more: true,
            position: Some(position()),
            ..Progress::default()
        }),
    };
    check(include_str!("../vectors/v2/more_to_come.hex"), &message);
}

/// The same, with the sender's newest position when it read this.
#[test]
fn a_batch_with_more_to_come_says_as_of_when() {
    let as_of = Position { version: DbVersion::new(1_000_001), ..position() };
    let progress = Progress { more: true, position: Some(position()), as_of: Some(as_of), ..Progress::default() };
    let message = PeerMessage::Changes {
        changes: vec![change(Value::text("a1"), "title", Value::text("bread"), 0)],
        schema_version: 4,
        progress: Some(Progress { answer: 7, number: 2, ..progress }),
    };
    check(include_str!("../vectors/v2/as_of.hex"), &message);
}

/// Only read: another zstd may compress better. The second one is padded, since it would expand too far.
#[test]
fn compressed_frames() {
    let page = bytes(include_str!("../vectors/v2/compressed.hex"));
    let zeros = bytes(include_str!("../vectors/v2/compressed_and_padded.hex"));
    if cfg!(feature = "compress") {
        assert_eq!(read_message(&page), workload::message(workload::page(990, 60)));
        assert_eq!(read_message(&zeros), changes(vec![change(Value::Integer(1), "v", Value::blob(vec![0; 8000]), 0)]));
    } else {
        assert_eq!(read(&page).unwrap_err(), DecodeError::Compressed);
        assert_eq!(read(&zeros).unwrap_err(), DecodeError::Compressed);
    }
}

/// As they lie in databases, where a later version will find them.
#[test]
fn staged_changes() {
    let hex = include_str!("../vectors/v2/staged_changes.hex");
    let list =
        vec![change(Value::Integer(1), "v", Value::Integer(1), 0), change(Value::Integer(2), "-1", Value::Null, 1)];
    assert_eq!(v2::encode_changes(&list), bytes(hex));
    assert_eq!(v2::decode_changes(&bytes(hex)), Ok(list));
}
