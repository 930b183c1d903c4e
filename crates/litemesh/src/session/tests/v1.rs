//! With a wire v1 peer.

use super::*;

fn changes(versions: &[(SiteId, i64)], schema_version: i64) -> Input {
    super::changes(versions, schema_version, None)
}

fn eose() -> Input {
    Input::Received(Unverified::new(PeerMessage::Eose { progress: None }))
}

/// The newest version of a v1 sender is incomplete until something newer, or the end, proves otherwise (`known-failures.md` A3).
#[test]
fn v1_cursor_stays_behind_the_newest_version() {
    let mut session = session(false);
    let moved = merge(&mut session, changes(&[(OTHER, 3), (REMOTE, 4), (REMOTE, 8)], 1));
    assert_eq!(moved, cursor(&[(OTHER, 2), (REMOTE, 7)]));
    let moved = merge(&mut session, changes(&[(REMOTE, 8), (REMOTE, 9)], 1));
    assert_eq!(moved, cursor(&[(REMOTE, 8)]));
    assert_eq!(merge(&mut session, eose()), cursor(&[(OTHER, 3), (REMOTE, 9)]));
    // The same end again, in the middle of what is live.
    assert_eq!(merge(&mut session, changes(&[(REMOTE, 10)], 1)), cursor(&[(REMOTE, 9)]));
    assert!(matches!(session.handle(eose()).as_slice(), [Effect::Reply(Ok(()))]));
}

/// What the remote holds of us came back with its answer, as far as it was not overwritten: then we hold it, too.
#[test]
fn the_end_of_an_answer_covers_what_the_remote_holds_of_us_and_of_nobody_else() {
    let mut session = session(false);
    session.handle(Input::Asked(SyncRequest { cursor: cursor(&[(US, 9), (OTHER, 9)]), terms: None }));
    assert_eq!(merge(&mut session, changes(&[(US, 5), (OTHER, 3)], 1)), cursor(&[(US, 4), (OTHER, 2)]));
    assert_eq!(merge(&mut session, eose()), cursor(&[(US, 9), (OTHER, 3)]));
}

/// `known-failures.md` A4, B19: once something was refused, nothing on this connection moves a cursor, and no end is announced; a new
/// connection is to bring it, once.
#[test]
fn cursor_stands_still_after_a_refusal() {
    let mut session = session(false);
    let effects = session.handle(changes(&[(REMOTE, 5)], 1));
    assert!(matches!(effects.as_slice(), [Effect::Merge { .. }]));
    let failure = MergeFailure { message: "no such table".to_owned(), fault: Fault::Content };
    let effects = session.handle(Input::Merged(Err(failure.clone())));
    assert!(
        matches!(
            effects.as_slice(),
            [Effect::Tell(Notice::Error(_)), Effect::Reply(Err(Refusal::Invalid(_))), Effect::EndAfter(..)]
        ),
        "{effects:?}"
    );
    assert_eq!(merge(&mut session, changes(&[(REMOTE, 6), (REMOTE, 7)], 1)), Cursor::new());
    let effects = session.handle(eose());
    assert!(matches!(effects.as_slice(), [Effect::Merge { .. }]));
    let effects = session.handle(Input::Merged(Ok(MergeDone::default())));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "no end is announced: {effects:?}");
    // One end is ordered, however much is refused.
    session.handle(changes(&[(REMOTE, 8)], 1));
    let effects = session.handle(Input::Merged(Err(failure)));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::EndAfter(..))), "{effects:?}");
}

/// `known-failures.md` A8: nothing of a newer schema is merged, and no cursor moves over it. After the upgrade, what is still under way of the
/// old answer must not move it either.
#[test]
fn newer_schema_is_told_once_and_the_upgrade_makes_a_new_connection() {
    let mut session = session(false);
    let effects = session.handle(changes(&[(REMOTE, 1)], 2));
    assert!(
        matches!(effects.as_slice(), [Effect::Tell(Notice::Outdated(2)), Effect::Reply(Err(Refusal::Outdated(2)))]),
        "{effects:?}"
    );
    let effects = session.handle(changes(&[(REMOTE, 2)], 2));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Err(Refusal::Outdated(2)))]), "{effects:?}");
    let effects = session.handle(Input::SchemaChanged(2));
    let still_frozen = merge(&mut session, changes(&[(REMOTE, 3)], 2));
    assert_eq!(still_frozen, Cursor::new());
    assert!(matches!(effects.as_slice(), [Effect::EndAfter(delay, _)] if delay.is_zero()), "{effects:?}");
}

/// A plan is made once and read page by page; a commit in between must not be forgotten with its last page.
#[test]
fn a_commit_while_a_plan_is_read_is_planned_afterwards() {
    let mut session = session(false);
    let asked = session.handle(Input::Asked(SyncRequest::default()));
    let page = |order: &ReadOrder, more, planned| {
        let changes = vec![change(OTHER, 1)];
        let page = Page::Sites { plan: SitePlan::default(), changes, more, planned };
        Input::Read(ReadDone { generation: order.generation, page })
    };
    let planned = Some(Planned { until: cursor(&[(OTHER, 1)]), follows: Cursor::new(), version: DbVersion::new(1) });
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

/// The end of an answer completes nothing that may be here in part: that follows under its own number, also to who claims it.
#[test]
fn what_came_live_follows_an_answer_under_its_own_number() {
    let mut session = session(false);
    let request = SyncRequest { cursor: cursor(&[(OTHER, 5), (REMOTE, 2)]), terms: None };
    let generation = order(&session.handle(Input::Asked(request))).generation;
    let follows = cursor(&[(OTHER, 5)]);
    let planned = Planned { until: cursor(&[(OTHER, 4)]), follows, version: DbVersion::new(1) };
    let page = Page::Sites { plan: SitePlan::default(), changes: vec![], more: false, planned: Some(planned) };
    let next = order(&session.handle(Input::Read(ReadDone { generation, page })));
    let ReadWhat::PlanSites(bounds) = next.what else { panic!("{next:?}") };
    assert_eq!((bounds.inclusive, bounds.sent), (false, cursor(&[(OTHER, 4), (REMOTE, 2)])));
}
