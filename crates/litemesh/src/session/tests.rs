//! The session alone: inputs in, effects out.

use litemesh_engine::{LocalPage, LocalPlace, SitePlan};
use litemesh_proto::{
    CausalLength, Change, ColVersion, Column, Cursor, DbVersion, Limits, PackedKey, PeerMessage, Progress, Refusal,
    Remote, Seq, SiteId, SyncRequest, Unverified, Value,
};

use super::{Effect, Input, MergeDone, MergeFailure, Notice, Page, ReadDone, ReadOrder, ReadWhat, Session};

const REMOTE: SiteId = SiteId::from_bytes([9; 16]);
const OTHER: SiteId = SiteId::from_bytes([7; 16]);

fn session(is_litemesh: bool) -> Session {
    let remote = Remote { site: REMOTE, connection: 1, is_litemesh };
    let mut session = Session::new(remote, 1, Limits::default());
    let effects = session.handle(Input::Opened { cursor: Cursor::new(), position: DbVersion::ZERO });
    assert!(matches!(effects.as_slice(), [Effect::Ask(_)]), "{effects:?}");
    session
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

fn changes(versions: &[(SiteId, i64)], schema_version: i64, progress: Progress) -> Input {
    let changes = versions.iter().map(|(site, version)| change(*site, *version)).collect();
    Input::Received(Unverified::new(PeerMessage::Changes { changes, schema_version, progress }))
}

/// Takes a message that must be merged; gives the cursor that moves with it. The merge succeeds.
fn merge(session: &mut Session, input: Input) -> Cursor {
    let effects = session.handle(input);
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    let moved = progress.cursor.clone();
    let effects = session.handle(Input::Merged(Ok(MergeDone::default())));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Reply(Ok(())))), "{effects:?}");
    moved
}

fn eose() -> Input {
    Input::Received(Unverified::new(PeerMessage::Eose { progress: Progress::default() }))
}

/// The newest version of a v1 sender is incomplete until something newer, or the end, proves otherwise (A3).
#[test]
fn v1_cursor_stays_behind_the_newest_version() {
    let mut session = session(false);
    let moved = merge(&mut session, changes(&[(OTHER, 3), (REMOTE, 4), (REMOTE, 8)], 1, Progress::default()));
    assert_eq!(moved, cursor(&[(OTHER, 2), (REMOTE, 7)]));
    let moved = merge(&mut session, changes(&[(REMOTE, 8), (REMOTE, 9)], 1, Progress::default()));
    assert_eq!(moved, cursor(&[(REMOTE, 8)]));
    assert_eq!(merge(&mut session, eose()), cursor(&[(OTHER, 3), (REMOTE, 9)]));
}

/// Once something was refused, nothing on this connection moves a cursor (A4), and no end is announced; a new connection is
/// to bring it.
#[test]
fn cursor_stands_still_after_a_refusal() {
    let mut session = session(false);
    let effects = session.handle(changes(&[(REMOTE, 5)], 1, Progress::default()));
    assert!(matches!(effects.as_slice(), [Effect::Merge { .. }]));
    let failure = MergeFailure { message: "no such table".to_owned(), is_content: true };
    let effects = session.handle(Input::Merged(Err(failure.clone())));
    assert!(
        matches!(
            effects.as_slice(),
            [Effect::Tell(Notice::Error(_)), Effect::Reply(Err(Refusal::Invalid(_))), Effect::EndAfter(..)]
        ),
        "{effects:?}"
    );
    assert_eq!(merge(&mut session, changes(&[(REMOTE, 6), (REMOTE, 7)], 1, Progress::default())), Cursor::new());
    let effects = session.handle(eose());
    assert!(matches!(effects.as_slice(), [Effect::Merge { .. }]));
    let effects = session.handle(Input::Merged(Ok(MergeDone::default())));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "no end is announced: {effects:?}");
    // One end is ordered, however much is refused.
    session.handle(changes(&[(REMOTE, 8)], 1, Progress::default()));
    let effects = session.handle(Input::Merged(Err(failure)));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::EndAfter(..))), "{effects:?}");
}

#[test]
fn litemesh_cursor_moves_only_as_the_sender_says() {
    let mut session = session(true);
    let progress = Progress { position: Some(DbVersion::new(40)), cursor: None };
    let effects = session.handle(changes(&[(OTHER, 3), (REMOTE, 8)], 1, progress));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(progress.cursor, Cursor::new());
    assert_eq!(progress.position, Some((REMOTE, DbVersion::new(40))));
    session.handle(Input::Merged(Ok(MergeDone::default())));
    let progress = Progress { position: Some(DbVersion::new(50)), cursor: Some(cursor(&[(OTHER, 9)])) };
    let eose = Input::Received(Unverified::new(PeerMessage::Eose { progress }));
    assert_eq!(merge(&mut session, eose), cursor(&[(OTHER, 9)]));
}

/// A8: nothing of a newer schema is merged, and no cursor moves over it. After the upgrade, what is still under way of the
/// old answer must not move it either.
#[test]
fn newer_schema_is_told_once_and_the_upgrade_makes_a_new_connection() {
    let mut session = session(false);
    let effects = session.handle(changes(&[(REMOTE, 1)], 2, Progress::default()));
    assert!(matches!(effects.as_slice(), [Effect::Tell(Notice::Outdated(2)), Effect::Reply(Ok(()))]), "{effects:?}");
    let effects = session.handle(changes(&[(REMOTE, 2)], 2, Progress::default()));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    let effects = session.handle(Input::SchemaChanged(2));
    let still_frozen = merge(&mut session, changes(&[(REMOTE, 3)], 2, Progress::default()));
    assert_eq!(still_frozen, Cursor::new());
    assert!(matches!(effects.as_slice(), [Effect::EndAfter(delay, _)] if delay.is_zero()), "{effects:?}");
}

fn order(effects: &[Effect]) -> ReadOrder {
    let mut orders = effects.iter().filter_map(|effect| match effect {
        Effect::Read(order) => Some(order.clone()),
        _ => None,
    });
    orders.next().unwrap_or_else(|| panic!("no read in {effects:?}"))
}

fn page(generation: u64, version: i64, position: i64, complete: Option<Cursor>) -> Input {
    let place = LocalPlace::after(DbVersion::new(position));
    let page = LocalPage { changes: vec![change(OTHER, version)], place, complete };
    Input::Read(ReadDone { generation, page: Page::Local(page) })
}

/// One message is sent, one waits, one page is read: that is all that a slow remote can hold.
#[test]
fn a_slow_remote_holds_two_pages() {
    let mut session = session(true);
    let effects = session.handle(Input::Asked(SyncRequest::default()));
    let generation = order(&effects).generation;
    let effects = session.handle(page(generation, 1, 1, None));
    assert!(matches!(effects.as_slice(), [Effect::Send(_), Effect::Read(_)]), "{effects:?}");
    let effects = session.handle(page(generation, 2, 2, None));
    assert!(effects.is_empty(), "no third page before the first is taken: {effects:?}");
    let effects = session.handle(Input::Sent);
    assert!(matches!(effects.as_slice(), [Effect::Send(_), Effect::Read(_)]), "{effects:?}");
}

#[test]
fn the_cursor_goes_with_the_end_of_the_answer_and_once() {
    let mut session = session(true);
    let generation = order(&session.handle(Input::Asked(SyncRequest::default()))).generation;
    let held = cursor(&[(OTHER, 5)]);
    let effects = session.handle(page(generation, 5, 8, Some(held.clone())));
    let [Effect::Send(PeerMessage::Changes { progress, .. })] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(progress.cursor, None);
    let effects = session.handle(Input::Sent);
    let [Effect::Send(PeerMessage::Eose { progress })] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(progress.cursor, Some(held.clone()));
    let effects = session.handle(Input::Sent);
    assert!(matches!(effects.as_slice(), [Effect::Tell(Notice::Served)]), "{effects:?}");
    // Nothing new: nothing is sent.
    let generation = order(&session.handle(Input::Committed)).generation;
    let empty = LocalPage { changes: Vec::new(), place: LocalPlace::after(DbVersion::new(9)), complete: Some(held) };
    let effects = session.handle(Input::Read(ReadDone { generation, page: Page::Local(empty) }));
    assert!(effects.is_empty(), "{effects:?}");
}

#[test]
fn a_page_read_for_an_older_request_is_dropped() {
    let mut session = session(true);
    let old = order(&session.handle(Input::Asked(SyncRequest::default()))).generation;
    let request = SyncRequest { cursor: Cursor::new(), position: Some(DbVersion::new(3)) };
    let new = order(&session.handle(Input::Asked(request)));
    assert!(matches!(new.what, ReadWhat::Local { ref place, .. } if place.position() == DbVersion::new(3)));
    assert!(session.handle(page(old, 1, 1, None)).is_empty());
}

/// A frozen session must not take changes with holes below them for a claim of the remote.
/// A plan for a wire v1 peer is made once and read page by page; a commit in between must not be forgotten with its last page.
#[test]
fn a_commit_while_a_plan_is_read_is_planned_afterwards() {
    let mut session = session(false);
    let asked = session.handle(Input::Asked(SyncRequest::default()));
    let page = |order: &ReadOrder, more, planned| {
        let changes = vec![change(OTHER, 1)];
        let page = Page::Sites { plan: SitePlan::default(), changes, more, planned };
        Input::Read(ReadDone { generation: order.generation, page })
    };
    let planned = Some((cursor(&[(OTHER, 1)]), DbVersion::new(1)));
    // The commit comes between two pages: while the second waits to be sent, a third is not read.
    let next = order(&session.handle(page(&order(&asked), true, planned)));
    session.handle(page(&next, true, None));
    session.handle(Input::Committed);
    let next = order(&session.handle(Input::Sent));
    assert!(matches!(next.what, ReadWhat::Sites(_)), "{next:?}");
    let mut effects = session.handle(page(&next, false, None));
    while !effects.iter().any(|effect| matches!(effect, Effect::Read(_))) {
        effects = session.handle(Input::Sent);
        assert!(!effects.is_empty(), "the commit is forgotten");
    }
    assert!(matches!(order(&effects).what, ReadWhat::PlanSites(_)));
}

#[test]
fn changes_of_a_litemesh_peer_claim_nothing_for_it_also_when_frozen() {
    let mut session = session(true);
    session.handle(Input::Asked(SyncRequest::default()));
    session.handle(Input::Garbled("cut off".to_owned()));
    session.handle(changes(&[(OTHER, 5)], 1, Progress::default()));
    session.handle(Input::Merged(Ok(MergeDone::default())));
    let order = order(&session.handle(Input::Asked(SyncRequest::default())));
    let ReadWhat::Local { covered, .. } = order.what else { panic!("{order:?}") };
    assert!(!covered.contains(&OTHER));
    let progress = Progress { position: None, cursor: Some(cursor(&[(OTHER, 5)])) };
    session.handle(changes(&[], 1, progress));
    session.handle(Input::Merged(Ok(MergeDone::default())));
    let generation = order.generation;
    let page = LocalPage { changes: Vec::new(), place: LocalPlace::default(), complete: None };
    let effects = session.handle(Input::Read(ReadDone { generation, page: Page::Local(page) }));
    let ReadWhat::Local { covered, .. } = self::order(&effects).what else { panic!("{effects:?}") };
    assert!(covered.covers(&OTHER, DbVersion::new(5)));
}
