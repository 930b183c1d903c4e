//! With remotes that may not do everything.

use super::*;

fn claim(number: u64, version: i64) -> Progress {
    Progress { position: Some(at(version)), cursor: Some(cursor(&[(OTHER, version)])), ..numbered(number) }
}

/// Asking a reader would make it send what is then refused.
#[test]
fn a_reader_is_not_asked_and_what_it_sends_moves_nothing() {
    let (mut session, effects) = opened(true, Access::new(Rights::Read));
    assert!(effects.is_empty(), "{effects:?}");
    let effects = session.handle(changes(&[(REMOTE, 5)], 1, Some(claim(1, 9))));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Reply(Err(Refusal::Forbidden(_))))), "{effects:?}");
    let eose = Input::Received(Unverified::new(PeerMessage::Eose { progress: Some(claim(3, 9)) }));
    for claim in [changes(&[], 1, Some(claim(2, 9))), eose] {
        let effects = session.handle(claim);
        assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    }
    // It is served as everybody is, its cursor included, and may say what it holds.
    let generation = order(&session.handle(asked(9))).generation;
    let held = cursor(&[(OTHER, 5)]);
    session.handle(page(generation, 5, 8, Some(held.clone())));
    let last = sent(&session.handle(Input::Sent));
    assert_eq!(last[0].progress().unwrap().cursor, Some(held));
    session.handle(Input::Sent);
    let ack = PeerMessage::Ack(Ack { answer: 1, number: 2, until: 9 });
    session.handle(Input::Received(Unverified::new(ack)));
    assert!(session.is_caught_up());
}

/// The other side of it: a hub that only writes here wants nothing, which is all that it can be served.
#[test]
fn a_remote_that_may_not_read_is_sent_nothing() {
    let (mut session, effects) = opened(true, Access::new(Rights::Read).mirrored());
    assert!(
        matches!(effects.as_slice(), [Effect::Ask(_), Effect::Wake(..), Effect::Tell(Notice::Served)]),
        "{effects:?}"
    );
    assert!(session.handle(asked(9)).is_empty());
    assert!(session.handle(Input::Committed).is_empty());
    assert_eq!(merge(&mut session, changes(&[(OTHER, 3)], 1, Some(numbered(1)))), Cursor::new());
    merge(&mut session, Input::Received(Unverified::new(PeerMessage::Eose { progress: Some(numbered(2)) })));
    assert!(session.is_caught_up());
}

#[test]
fn some_tables_only_means_no_cursor_in_either_direction_and_a_position_of_their_own() {
    let (mut session, _) = opened(true, Access::FULL.only(["t"]).unwrap());
    assert_ne!(session.key(), REMOTE);
    let effects = session.handle(changes(&[(REMOTE, 5)], 1, Some(claim(1, 9))));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((&progress.cursor, progress.position), (&Cursor::new(), Some((session.key(), at(9)))));
    session.handle(Input::Merged(Ok(MergeDone::default())));
    let part = Part::Piece { after: None, until: Place([1].into()) };
    let effects = session.handle(changes(&[(REMOTE, 6)], 1, Some(Progress { part, ..numbered(2) })));
    assert!(matches!(effects.as_slice(), [Effect::Stage { key, .. }] if *key == session.key()), "{effects:?}");

    let generation = order(&session.handle(asked(9))).generation;
    let mut of_both = vec![change(OTHER, 5), change(OTHER, 6)];
    of_both[1].table = "secret".into();
    let page = local_page(of_both, LocalPlace::after(DbVersion::new(8)), Some(cursor(&[(OTHER, 6)])));
    let first = sent(&session.handle(Input::Read(ReadDone { generation, page })));
    let [PeerMessage::Changes { changes, .. }] = first.as_slice() else { panic!("{first:?}") };
    assert_eq!(changes.iter().map(|change| &*change.table).collect::<Vec<_>>(), ["t"]);
    let last = sent(&session.handle(Input::Sent));
    let progress = last[0].progress().unwrap();
    assert_eq!((&progress.cursor, progress.position), (&None, Some(at(8))));
}

/// What was refused must be asked for again once the rights are others: its position does not move.
#[test]
fn after_a_forbidden_change_the_position_stands_still() {
    let (mut session, _) = opened(true, Access::FULL.only(["other"]).unwrap());
    let effects = session.handle(changes(&[(REMOTE, 5)], 1, Some(claim(1, 5))));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Reply(Err(Refusal::Forbidden(_))))), "{effects:?}");
    let effects = session.handle(changes(&[], 1, Some(claim(2, 9))));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(progress.position, None);
}
