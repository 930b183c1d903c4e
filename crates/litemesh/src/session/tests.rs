//! The session alone: inputs in, effects out.

mod access;
mod litemesh;
mod v1;

use litemesh_engine::{LocalPage, LocalPlace, Moves, Reach, SitePlan, Staged};
use litemesh_proto::{
    Access, Ack, CausalLength, Change, ColVersion, Column, Cursor, DbVersion, Incarnation, Limits, PackedKey, Part,
    PeerMessage, Place, Position, Progress, Refusal, Remote, Resumed, Rights, Seq, Served, SiteId, SyncRequest, Terms,
    Unverified, Value,
};

use super::{
    Begin, Effect, Fault, Input, MergeDone, MergeFailure, Notice, Page, Planned, ReadDone, ReadOrder, ReadWhat, Room,
    Session, Timer,
};

const US: SiteId = SiteId::from_bytes([1; 16]);
const REMOTE: SiteId = SiteId::from_bytes([9; 16]);
const OWN: SiteId = SiteId::from_bytes([1; 16]);
const OTHER: SiteId = SiteId::from_bytes([7; 16]);

fn session(is_litemesh: bool) -> Session {
    let (session, effects) = opened(is_litemesh, Access::FULL);
    let is_asked = matches!(effects.as_slice(), [Effect::Ask(_), ..]);
    let is_looking = matches!(effects[1..], [Effect::Wake(Timer::Answer, _)]);
    assert!(is_asked && is_looking == is_litemesh && effects.len() == 1 + usize::from(is_litemesh), "{effects:?}");
    session
}

fn opened(is_litemesh: bool, access: Access) -> (Session, Vec<Effect>) {
    let remote = Remote { site: REMOTE, connection: 0, is_litemesh };
    let mut session = Session::new(remote, access, 1, Limits::default(), Room::default());
    let effects = session.handle(Input::Opened { us: US, cursor: Cursor::new(), staged: Staged::default() });
    (session, effects)
}

fn change(site: SiteId, version: i64) -> Change {
    Change {
        table: "t".into(),
        key: PackedKey::pack(&[Value::Integer(version)]).unwrap(),
        column: Column::from("c"),
        value: Value::Integer(1),
        col_version: ColVersion::new(1),
        db_version: DbVersion::new(version),
        site,
        causal_length: CausalLength::FIRST,
        seq: Seq::ZERO,
    }
}

fn cursor(entries: &[(SiteId, i64)]) -> Cursor {
    entries.iter().map(|(site, version)| (*site, DbVersion::new(*version))).collect()
}

fn changes(versions: &[(SiteId, i64)], schema_version: i64, progress: Option<Progress>) -> Input {
    let changes = versions.iter().map(|(site, version)| change(*site, *version)).collect();
    Input::Received(Unverified::new(PeerMessage::Changes { changes, schema_version, progress }))
}

/// Takes a message that must be merged; gives the cursor that moves with it. The merge succeeds.
fn merge(session: &mut Session, input: Input) -> Cursor {
    let effects = session.handle(input);
    let [Effect::Merge { progress, .. }, ..] = effects.as_slice() else { panic!("{effects:?}") };
    let moved = progress.cursor.clone();
    let effects = session.handle(Input::Merged(Ok(MergeDone::default())));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Reply(Ok(())))), "{effects:?}");
    moved
}

fn order(effects: &[Effect]) -> ReadOrder {
    let mut orders = effects.iter().filter_map(|effect| match effect {
        Effect::Read(order) => Some(order.clone()),
        _ => None,
    });
    orders.next().unwrap_or_else(|| panic!("no read in {effects:?}"))
}

/// The `number`th message of the answer to our first request.
fn numbered(number: u64) -> Progress {
    Progress { answer: 1, number, ..Progress::default() }
}

fn at(version: i64) -> Position {
    Position { version: DbVersion::new(version), incarnation: Incarnation(7) }
}

/// A request that gives this much credit.
fn asked(credit: u32) -> Input {
    Input::Asked(SyncRequest { cursor: Cursor::new(), terms: Some(Terms { answer: 1, credit, ..Terms::default() }) })
}

fn sent(effects: &[Effect]) -> Vec<PeerMessage> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send(message) => Some(message.clone()),
        _ => None,
    });
    sent.collect()
}

fn local_page(changes: Vec<Change>, place: LocalPlace, complete: Option<Cursor>) -> Page {
    let newest = DbVersion::new(100);
    let (site, incarnation, moves) = (OWN, Incarnation(7), Moves::NONE);
    let page = LocalPage { site, changes, place, incarnation, newest, is_provisional: false, complete, moves };
    Page::Local { page, begin: Begin::There, read_at: 0 }
}

fn page(generation: u64, version: i64, position: i64, complete: Option<Cursor>) -> Input {
    let place = LocalPlace::after(DbVersion::new(position));
    Input::Read(ReadDone { generation, page: local_page(vec![change(OTHER, version)], place, complete) })
}

/// What is staged of the remote, up to here.
fn staged(position: i64, part: Option<Place>, messages: u64) -> Staged {
    let reach = Reach { position: at(position), place: part, as_of: None };
    Staged { reach, messages, changes: messages, bytes: messages }
}

/// Takes a message that is merged or staged; gives the effects of its success.
fn take(session: &mut Session, input: Input) -> Vec<Effect> {
    let effects = session.handle(input);
    assert!(matches!(effects.as_slice(), [Effect::Merge { .. } | Effect::Stage { .. }]), "{effects:?}");
    session.handle(Input::Merged(Ok(MergeDone::default())))
}

/// The flush that was ordered is done; gives what is sent then.
fn flush(session: &mut Session) -> Vec<PeerMessage> {
    sent(&session.handle(Input::Flushed))
}
