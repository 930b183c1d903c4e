//! What a stranger's message may hold at most: each limit at its edge, and what is said beyond it.
#![allow(clippy::unwrap_used)]

use litemesh_proto::codec::v1::{self, Envelope};
use litemesh_proto::codec::v2;
use litemesh_proto::limits::{CURSOR_SITES_MAX, NAME_BYTES_MAX, VERSION_MAX};
use litemesh_proto::{
    CausalLength, Change, ColVersion, Column, DbVersion, DecodeError, Limits, PackedKey, PeerMessage, Progress, Seq,
    SiteId, Unverified, Value, VerifyError,
};

const SITE: SiteId = SiteId::from_bytes([0xc1; 16]);

fn change() -> Change {
    Change {
        table: "t".into(),
        key: PackedKey::pack(&[Value::Integer(1)]).unwrap(),
        column: Column::from("c"),
        value: Value::Integer(1),
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(1),
        site: SITE,
        causal_length: CausalLength::FIRST,
        seq: Seq::ZERO,
    }
}

/// What is said of a change after it went over the wire; nothing where it is taken.
fn said_of(alter: impl FnOnce(&mut Change)) -> String {
    let mut change = change();
    alter(&mut change);
    let changes = PeerMessage::Changes { changes: vec![change], schema_version: 0, progress: None };
    let bytes = v1::data(SITE, &changes);
    let message = Envelope::parse(&bytes).unwrap().message().unwrap();
    let limits = Limits { change_value_bytes_max: 1000, ..Limits::default() };
    match message.verify(&limits) {
        Ok(_) => String::new(),
        Err(VerifyError::Change { index: 0, reason }) => reason,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn names_have_a_length() {
    assert_eq!(said_of(|change| change.table = "x".repeat(NAME_BYTES_MAX).into()), "");
    assert_eq!(said_of(|change| change.column = Column::from(&*"x".repeat(NAME_BYTES_MAX))), "");
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    assert!(said_of(|change| change.table = long.as_str().into()).contains("Change.table has 2049 bytes"));
    assert!(said_of(|change| change.column = Column::from(&*long)).contains("Change.cid has 2049 bytes"));
}

#[test]
fn values_and_keys_have_a_size() {
    let key = |bytes: usize| PackedKey::pack(&[Value::text("x".repeat(bytes))]).unwrap();
    assert_eq!(said_of(|change| change.value = Value::text("x".repeat(1000))), "");
    assert_eq!(said_of(|change| change.key = key(996)), "");
    assert!(said_of(|change| change.value = Value::text("x".repeat(1001))).contains("Change.val has 1001 bytes"));
    assert!(said_of(|change| change.value = Value::blob(vec![0; 1001])).contains("Change.val has 1001 bytes"));
    assert!(said_of(|change| change.key = key(997)).contains("Change.pk has 1001 bytes, at most 1000"));
}

#[test]
fn numbers_end_where_every_json_can_carry_them() {
    assert_eq!(said_of(|change| change.db_version = DbVersion::new(VERSION_MAX)), "");
    for version in [VERSION_MAX + 1, 1 << 62, i64::MAX] {
        assert!(said_of(|change| change.db_version = DbVersion::new(version)).contains("Change.db_version is"));
        assert!(said_of(|change| change.col_version = ColVersion::new(version)).contains("Change.col_version is"));
        assert!(said_of(|change| change.causal_length = CausalLength::new(version)).contains("Change.cl is"));
        assert!(said_of(|change| change.seq = Seq::new(version)).contains("Change.seq is"));
    }
}

fn cursor_of(sites: usize) -> String {
    let entries: Vec<String> = (0..sites).map(|n| format!("\"{n:032x}\":1")).collect();
    format!("{{\"peers\":{{{}}}}}", entries.join(","))
}

/// The original stops at a thousand, for good.
#[test]
fn a_cursor_names_a_million_sites_and_no_more() {
    assert_eq!(v1::deserialize_cursor(cursor_of(CURSOR_SITES_MAX).as_bytes()).unwrap().len(), CURSOR_SITES_MAX);
    let large = cursor_of(CURSOR_SITES_MAX + 2);
    let refused = v1::deserialize_cursor(large.as_bytes()).unwrap_err();
    assert!(matches!(refused, DecodeError::CursorTooLarge { max: CURSOR_SITES_MAX, .. }), "{refused}");
    // What a Litemesh peer claims with a message is a cursor, too.
    let site = |n: usize| SiteId::from_bytes((n as u128).to_be_bytes());
    let cursor = Some((0..=CURSOR_SITES_MAX).map(|n| (site(n), DbVersion::new(1))).collect());
    let claim = v2::message(&PeerMessage::Eose { progress: Some(Progress { cursor, ..Progress::default() }) });
    let refused = v2::decode(&claim, &Limits::default()).unwrap_err();
    assert!(matches!(refused, DecodeError::CursorTooLarge { .. }), "{refused}");
}

#[test]
fn what_was_not_parsed_is_checked_the_same() {
    let mut change = change();
    change.db_version = DbVersion::new(i64::MAX);
    let changes = PeerMessage::Changes { changes: vec![change], schema_version: 0, progress: None };
    assert!(Unverified::new(changes).verify(&Limits::default()).is_err());
}
