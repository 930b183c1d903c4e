//! With a Litemesh peer: numbered messages, acknowledgements, transactions in parts.

use litemesh_engine::{Engine, LocalFilter, MergeProgress, PageLimits};
use litemesh_proto::limits::{CATCH_UP_BYTES_MAX, CATCH_UP_MESSAGES_MAX, CREDIT_MAX};

use super::*;
use crate::ways::Standing;

fn place(byte: u8) -> Place {
    Place([byte].into())
}

fn acknowledged(number: u64, until: u64) -> Input {
    Input::Received(Unverified::new(PeerMessage::Ack(Ack { answer: 1, number, until })))
}

#[test]
fn the_cursor_moves_only_as_the_sender_says() {
    let mut session = session(true);
    let progress = Progress { position: Some(at(40)), ..numbered(1) };
    let effects = session.handle(changes(&[(OTHER, 3), (REMOTE, 8)], 1, Some(progress)));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(progress.cursor, Cursor::new());
    assert_eq!(progress.position, Some((REMOTE, at(40))));
    session.handle(Input::Merged(Ok(MergeDone::default())));
    let progress = Progress { position: Some(at(50)), cursor: Some(cursor(&[(OTHER, 9)])), ..numbered(2) };
    let eose = Input::Received(Unverified::new(PeerMessage::Eose { progress: Some(progress) }));
    assert_eq!(merge(&mut session, eose), cursor(&[(OTHER, 9)]));
}

/// The request, or all of the answer, was lost (`known-failures.md` B7).
#[test]
fn a_request_that_is_not_answered_is_made_again() {
    let mut session = session(true);
    let effects = session.handle(Input::Woken(Timer::Answer));
    assert!(matches!(effects.as_slice(), [Effect::Open { .. }]), "{effects:?}");
    let opened = || Input::Opened { us: US, cursor: Cursor::new(), staged: staged(0, None, 0) };
    let effects = session.handle(opened());
    assert!(matches!(effects.as_slice(), [Effect::Ask(_), Effect::Wake(Timer::Answer, _)]), "{effects:?}");
    take(&mut session, changes(&[(OTHER, 1)], 1, Some(Progress { answer: 2, ..numbered(1) })));
    assert!(session.handle(Input::Woken(Timer::Answer)).is_empty());
}

/// Whatever a carrier does, only the next message of the last answer is merged. A gap brings a new request, and one only.
/// (`known-failures.md` A2)
#[test]
fn what_is_missing_is_asked_for_again_over_the_same_connection() {
    let mut session = session(true);
    take(&mut session, changes(&[(OTHER, 1)], 1, Some(numbered(1))));
    let effects = session.handle(changes(&[(OTHER, 1)], 1, Some(numbered(1))));
    // It came again because nobody had said that it was there.
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(())), Effect::Flush]), "{effects:?}");
    assert!(matches!(flush(&mut session).as_slice(), [PeerMessage::Ack(_)]));
    let effects = session.handle(changes(&[(OTHER, 3)], 1, Some(numbered(3))));
    assert!(matches!(effects.as_slice(), [Effect::Open { .. }, Effect::Reply(Ok(()))]), "{effects:?}");
    for number in [4, 2] {
        let effects = session.handle(changes(&[(OTHER, 4)], 1, Some(numbered(number))));
        assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    }
    let effects = session.handle(Input::Opened { us: US, cursor: Cursor::new(), staged: staged(5, Some(place(1)), 1) });
    let [Effect::Ask(SyncRequest { terms: Some(terms), .. })] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(*terms, Terms { answer: 2, credit: CREDIT_MAX, position: at(5), staged: Some(place(1)), as_of: None });
    // Of the first answer nothing counts any more.
    let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(numbered(2))));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    take(&mut session, changes(&[(OTHER, 2)], 1, Some(Progress { answer: 2, ..numbered(1) })));
}

#[test]
fn the_end_of_an_answer_is_acknowledged_at_once_and_the_rest_by_a_timer() {
    let mut session = session(true);
    let effects = take(&mut session, changes(&[(OTHER, 1)], 1, Some(numbered(1))));
    assert!(matches!(effects.as_slice(), [Effect::Wake(Timer::Acknowledge, _), Effect::Reply(Ok(()))]), "{effects:?}");
    let effects = session.handle(Input::Woken(Timer::Acknowledge));
    // Not before the disk has it.
    assert!(matches!(effects.as_slice(), [Effect::Flush]), "{effects:?}");
    let until = 1 + u64::from(CREDIT_MAX);
    assert_eq!(flush(&mut session), [PeerMessage::Ack(Ack { answer: 1, number: 1, until })]);
    session.handle(Input::Sent);
    let eose = Input::Received(Unverified::new(PeerMessage::Eose { progress: Some(numbered(2)) }));
    let effects = take(&mut session, eose);
    assert!(
        matches!(effects.as_slice(), [Effect::Tell(Notice::Eose), Effect::Reply(Ok(())), Effect::Flush]),
        "{effects:?}"
    );
    assert_eq!(flush(&mut session), [PeerMessage::Ack(Ack { answer: 1, number: 2, until: until + 1 })]);
}

/// Before the last part nothing is merged; then everything at once, and only then the position moves.
#[test]
fn a_transaction_in_parts_is_staged_and_merged_at_the_end() {
    let mut session = session(true);
    let first = Part::Piece { after: None, until: place(1) };
    let effects = session.handle(changes(&[(OTHER, 1)], 1, Some(Progress { part: first, ..numbered(1) })));
    let [Effect::Stage { after, until, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(*after, Reach::default());
    let inside = Reach { place: Some(place(1)), ..Reach::default() };
    assert_eq!(*until, inside);
    let one = Staged { reach: inside.clone(), messages: 1, ..Staged::default() };
    session.handle(Input::Merged(Ok(MergeDone { staged: Some(one), ..MergeDone::default() })));
    let last = Progress { part: Part::Last { after: place(1) }, position: Some(at(9)), ..numbered(2) };
    let effects = session.handle(changes(&[(OTHER, 1)], 1, Some(last)));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(progress.completes, Some((REMOTE, inside)));
    assert_eq!(progress.position, Some((REMOTE, at(9))));
    // Somebody else staged another transaction meanwhile.
    let failure = MergeFailure { message: "not staged".to_owned(), fault: Fault::Gap };
    let effects = session.handle(Input::Merged(Err(failure)));
    assert!(matches!(effects.as_slice(), [Effect::Open { .. }, Effect::Reply(Ok(()))]), "{effects:?}");
}

/// A catch-up is seen when it is complete: what overwrote a part of a transaction may be in its last message.
#[test]
fn messages_wait_for_the_end_of_a_catch_up() {
    let mut session = session(true);
    let with_more =
        |number: u64, position: i64| Progress { more: true, position: Some(at(position)), ..numbered(number) };
    let mut after = Reach::default();
    for number in 1..=2_u64 {
        let position = 10 * number.cast_signed();
        let effects = session.handle(changes(&[(OTHER, position)], 1, Some(with_more(number, position))));
        let [Effect::Stage { after: from, until, .. }] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!(*from, after);
        after = staged(position, None, number).reach;
        assert_eq!(*until, after);
        let done = MergeDone { staged: Some(staged(position, None, number)), ..MergeDone::default() };
        session.handle(Input::Merged(Ok(done)));
    }
    // What is staged is acknowledged.
    session.handle(Input::Woken(Timer::Acknowledge));
    assert!(matches!(flush(&mut session).as_slice(), [PeerMessage::Ack(Ack { number: 2, .. })]));
    session.handle(Input::Sent);
    let progress = Progress { position: Some(at(30)), cursor: Some(cursor(&[(OTHER, 9)])), ..numbered(3) };
    let effects = session.handle(Input::Received(Unverified::new(PeerMessage::Eose { progress: Some(progress) })));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(progress.completes, Some((REMOTE, after)));
    assert_eq!((progress.position, &progress.cursor), (Some((REMOTE, at(30))), &cursor(&[(OTHER, 9)])));
    session.handle(Input::Merged(Ok(MergeDone::default())));
    // Nothing is staged any more.
    let effects = session.handle(changes(&[(OTHER, 40)], 1, Some(Progress { position: Some(at(40)), ..numbered(4) })));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(progress.completes, None);
}

/// What an earlier connection brought the remote may have lost since: a file that was restored gets it back.
#[test]
fn what_was_staged_before_is_no_echo() {
    for is_old in [true, false] {
        let mut session = session(true);
        if is_old {
            session.handle(Input::Woken(Timer::Answer));
            session.handle(Input::Opened { us: US, cursor: Cursor::new(), staged: staged(3, None, 1) });
        }
        let numbered = |number| Progress { answer: if is_old { 2 } else { 1 }, ..numbered(number) };
        let eose =
            |number| PeerMessage::Eose { progress: Some(Progress { position: Some(at(5)), ..numbered(number) }) };
        let effects = session.handle(Input::Received(Unverified::new(eose(1))));
        let [Effect::Merge { progress, echoes, .. }] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!((progress.completes.is_some(), *echoes), (is_old, !is_old));
        session.handle(Input::Merged(Ok(MergeDone::default())));
        let effects = session.handle(Input::Received(Unverified::new(eose(2))));
        assert!(matches!(effects.as_slice(), [Effect::Merge { echoes: true, .. }]), "{effects:?}");
    }
}

/// Two connections to one remote are not caught up at once: what one of them staged the other would complete.
#[test]
fn another_session_of_the_remote_is_waited_for() {
    let mut session = session(true);
    let failure = MergeFailure { message: "another".to_owned(), fault: Fault::Gap };
    session.handle(changes(&[(OTHER, 1)], 1, Some(Progress { more: true, position: Some(at(1)), ..numbered(1) })));
    let effects = session.handle(Input::Merged(Err(failure)));
    assert!(matches!(effects.as_slice(), [Effect::Open { .. }, Effect::Reply(Ok(()))]), "{effects:?}");
    let effects = session.handle(Input::Busy);
    assert!(matches!(effects.as_slice(), [Effect::Wake(Timer::StandBy, _)]), "{effects:?}");
    // What still comes is of an answer that nobody waits for.
    let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(numbered(2))));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    let effects = session.handle(Input::Woken(Timer::StandBy));
    assert!(matches!(effects.as_slice(), [Effect::Open { .. }]), "{effects:?}");
    let effects = session.handle(Input::Opened { us: US, cursor: Cursor::new(), staged: staged(0, None, 0) });
    assert!(matches!(effects.as_slice(), [Effect::Ask(_), ..]), "{effects:?}");
}

/// The first message of an answer may take long to be merged, and is an answer.
#[test]
fn who_is_being_answered_does_not_ask_again() {
    let mut session = session(true);
    session.handle(changes(&[(OTHER, 1)], 1, Some(numbered(1))));
    let effects = session.handle(Input::Woken(Timer::Answer));
    assert!(matches!(effects.as_slice(), [Effect::Wake(Timer::Answer, _)]), "{effects:?}");
    session.handle(Input::Merged(Ok(MergeDone::default())));
    assert!(session.handle(Input::Woken(Timer::Answer)).is_empty());
}

/// The application's own writes wait for a merge, so one merge may not take any time.
#[test]
fn a_long_catch_up_is_merged_in_steps() {
    let with_more = |number: u64| Progress { more: true, position: Some(at(1)), ..numbered(number) };
    for (messages, amount, bytes) in
        [(1, Limits::default().catch_up_changes_max, 0), (CATCH_UP_MESSAGES_MAX, 0, 0), (1, 0, CATCH_UP_BYTES_MAX)]
    {
        let mut session = session(true);
        let staged = Staged { messages, changes: amount, bytes, ..staged(1, None, 0) };
        let reach = staged.reach.clone();
        session.handle(changes(&[(OTHER, 1)], 1, Some(with_more(1))));
        session.handle(Input::Merged(Ok(MergeDone { staged: Some(staged), ..MergeDone::default() })));
        let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(with_more(2))));
        let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!(progress.completes, Some((REMOTE, reach)));
        session.handle(Input::Merged(Ok(MergeDone::default())));
        let effects = session.handle(changes(&[(OTHER, 3)], 1, Some(with_more(3))));
        assert!(matches!(effects.as_slice(), [Effect::Stage { .. }]), "{effects:?}");
    }
}

/// What came before something refused would be hidden until somebody mends that. It becomes visible instead.
#[test]
fn a_refusal_brings_out_what_is_staged() {
    let newer = |number: u64| changes(&[(OTHER, 2)], 2, Some(numbered(number)));
    let invalid = |number: u64| changes(&[(OTHER, -1)], 1, Some(numbered(number)));
    for refused in [newer(2), invalid(2)] {
        let mut session = session(true);
        let progress = Progress { more: true, position: Some(at(1)), ..numbered(1) };
        session.handle(changes(&[(OTHER, 1)], 1, Some(progress)));
        let done = MergeDone { staged: Some(staged(1, None, 1)), ..MergeDone::default() };
        session.handle(Input::Merged(Ok(done)));
        let effects = session.handle(refused);
        let is_merge = |effect: &&Effect| matches!(effect, Effect::MergeStaged { key: REMOTE });
        assert_eq!(effects.iter().filter(is_merge).count(), 1, "{effects:?}");
        let effects = session.handle(invalid(3));
        assert_eq!(effects.iter().filter(is_merge).count(), 0, "{effects:?}");
    }
}

/// Who was told that there is more waits for it, also where the rest turns out to be nothing.
#[test]
fn more_that_was_announced_is_ended() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(16))).generation;
    let own = |version: i64| cursor(&[(OWN, version)]);
    let complete = |version: i64| {
        let place = LocalPlace::after(DbVersion::new(version));
        Input::Read(ReadDone { generation, page: local_page(vec![], place, Some(own(version))) })
    };
    assert!(matches!(sent(&session.handle(complete(1))).as_slice(), [PeerMessage::Eose { .. }]));
    session.handle(Input::Sent);
    session.handle(Input::Committed);
    let first = sent(&session.handle(page(generation, 2, 2, None)));
    assert!(first[0].progress().unwrap().more);
    session.handle(Input::Sent);
    let last = sent(&session.handle(complete(3)));
    let [PeerMessage::Changes { changes, progress: Some(progress), .. }] = last.as_slice() else { panic!("{last:?}") };
    assert!(changes.is_empty() && !progress.more);
    // What is staged counts for the position once it is merged.
    session.handle(acknowledged(2, 20));
    assert_eq!(session.acknowledged(), Some(at(1)));
    session.handle(acknowledged(3, 20));
    assert_eq!(session.acknowledged(), Some(at(3)));
}

/// Staged parts say that everything before them is here; after a refusal that is not so (`known-failures.md` A4).
#[test]
fn after_a_refusal_no_part_is_staged_nothing_is_acknowledged_and_the_rest_is_merged() {
    let mut session = session(true);
    session.handle(changes(&[(OTHER, 1)], 1, Some(numbered(1))));
    let failure = MergeFailure { message: "no such table".to_owned(), fault: Fault::Content };
    let effects = session.handle(Input::Merged(Err(failure)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::EndAfter(..))), "{effects:?}");
    let part = Part::Piece { after: None, until: place(1) };
    let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(Progress { part, ..numbered(2) })));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    let part = Part::Last { after: place(1) };
    let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(Progress { part, ..numbered(3) })));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    let progress = Progress { position: Some(at(9)), cursor: Some(cursor(&[(OTHER, 9)])), ..numbered(4) };
    assert_eq!(merge(&mut session, changes(&[(OTHER, 3)], 1, Some(progress))), Cursor::new());
    let effects = session.handle(Input::Woken(Timer::Acknowledge));
    // But it may go on to send.
    let until = 4 + u64::from(CREDIT_MAX);
    assert_eq!(sent(&effects), [PeerMessage::Ack(Ack { answer: 1, number: 0, until })]);
}

/// `known-failures.md` A8: nothing of a newer schema is merged, no cursor moves over it, and after the upgrade it is asked for at once.
#[test]
fn an_upgrade_asks_again_over_the_same_connection() {
    let mut session = session(true);
    let effects = session.handle(changes(&[(REMOTE, 1)], 2, Some(numbered(1))));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Tell(Notice::Outdated(2)))), "{effects:?}");
    let effects = session.handle(Input::SchemaChanged(2));
    assert!(matches!(effects.as_slice(), [Effect::Open { .. }]), "{effects:?}");
    session.handle(Input::Opened { us: US, cursor: Cursor::new(), staged: Staged::default() });
    let progress = Progress { answer: 2, cursor: Some(cursor(&[(OTHER, 9)])), ..numbered(1) };
    assert_eq!(merge(&mut session, changes(&[(REMOTE, 1)], 2, Some(progress))), cursor(&[(OTHER, 9)]));
}

/// It would be taken for the first of the next answer, which then would be missing.
#[test]
fn what_is_being_merged_is_no_part_of_the_next_answer() {
    let opening = || Input::Opened { us: US, cursor: Cursor::new(), staged: Staged::default() };
    let mut session = session(true);
    session.handle(changes(&[(REMOTE, 1)], 2, Some(numbered(1))));
    let eose = PeerMessage::Eose { progress: Some(numbered(2)) };
    let effects = session.handle(Input::Received(Unverified::new(eose)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Merge { .. })), "{effects:?}");
    session.handle(Input::SchemaChanged(2));
    assert!(session.handle(opening()).is_empty(), "not before the merge is done");
    let effects = session.handle(Input::Merged(Ok(MergeDone::default())));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Open { .. })), "{effects:?}");
    assert!(matches!(session.handle(opening()).as_slice(), [Effect::Ask(_), ..]));
    let progress = Progress { answer: 2, cursor: Some(cursor(&[(OTHER, 9)])), ..numbered(1) };
    assert_eq!(merge(&mut session, changes(&[(REMOTE, 1)], 2, Some(progress))), cursor(&[(OTHER, 9)]));
}

/// One message is sent, one waits, one page is read: that is all that a slow remote can hold (`known-failures.md` C4, D9).
#[test]
fn a_slow_remote_holds_two_pages() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(9))).generation;
    let effects = session.handle(page(generation, 1, 1, None));
    assert!(sent(&effects).len() == 1 && order(&effects).generation == generation, "{effects:?}");
    let effects = session.handle(page(generation, 2, 2, None));
    assert!(effects.is_empty(), "no third page before the first is taken: {effects:?}");
    let effects = session.handle(Input::Sent);
    assert!(matches!(effects.as_slice(), [Effect::Send(_), Effect::Read(_)]), "{effects:?}");
}

#[test]
fn no_more_is_sent_than_the_remote_has_room_for() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(1))).generation;
    assert_eq!(sent(&session.handle(page(generation, 1, 1, None))).len(), 1);
    session.handle(Input::Sent);
    let effects = session.handle(page(generation, 2, 2, None));
    assert!(effects.is_empty(), "neither sent nor read on: {effects:?}");
    // An acknowledgement of another answer changes nothing.
    let stale = PeerMessage::Ack(Ack { answer: 9, number: 1, until: 9 });
    let effects = session.handle(Input::Received(Unverified::new(stale)));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    let effects = session.handle(acknowledged(1, 2));
    assert_eq!(sent(&effects).len(), 1);
    // What we acknowledge ourselves needs no room.
    session.handle(Input::Sent);
    session.handle(page(generation, 3, 3, None));
    let eose = Input::Received(Unverified::new(PeerMessage::Eose { progress: Some(numbered(1)) }));
    take(&mut session, eose);
    assert!(matches!(flush(&mut session).as_slice(), [PeerMessage::Ack(_)]));
}

/// A message or its acknowledgement that is lost for good must not leave both sides waiting for each other (`known-failures.md` B7).
#[test]
fn a_remote_that_acknowledges_nothing_is_given_up() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(9))).generation;
    let effects = session.handle(page(generation, 1, 1, None));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Wake(Timer::Silence, _))), "{effects:?}");
    let effects = session.handle(Input::Woken(Timer::Silence));
    assert!(matches!(effects.as_slice(), [Effect::Wake(Timer::Silence, _)]), "{effects:?}");
    let effects = session.handle(Input::Woken(Timer::Silence));
    assert!(matches!(effects.as_slice(), [Effect::EndAfter(..)]), "{effects:?}");
}

/// `known-failures.md` A7, D12: what was sent is not held before the remote says so, and a cursor, which names every site, goes out once.
#[test]
fn the_cursor_goes_with_the_end_of_the_answer_and_once() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(9))).generation;
    let held = cursor(&[(OTHER, 5)]);
    let first = sent(&session.handle(page(generation, 5, 8, Some(held.clone()))));
    assert_eq!(first[0].progress().unwrap().cursor, None);
    let last = sent(&session.handle(Input::Sent));
    assert!(matches!(last[0], PeerMessage::Eose { .. }));
    assert_eq!(last[0].progress().unwrap().cursor, Some(held.clone()));
    // Sent is not held: the answer is served when the remote says so.
    assert!(session.handle(Input::Sent).is_empty() && !session.is_caught_up());
    let effects = session.handle(acknowledged(2, 20));
    assert!(matches!(effects.as_slice(), [Effect::Tell(Notice::Served), Effect::Reply(Ok(()))]), "{effects:?}");
    // Nothing new: nothing is sent.
    let generation = order(&session.handle(Input::Committed)).generation;
    let empty = local_page(Vec::new(), LocalPlace::after(DbVersion::new(9)), Some(held));
    let effects = session.handle(Input::Read(ReadDone { generation, page: empty }));
    assert!(effects.is_empty(), "{effects:?}");
}

/// The simulation found it. A file that has forgotten something claims no more of itself until that came back. Then it holds what it wrote
/// meanwhile, and so does whoever has it: nobody else can tell.
#[test]
fn what_a_file_claims_of_itself_alone_is_news() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(9))).generation;
    let read = |session: &mut Session, generation, version: i64| {
        let complete = cursor(&[(OWN, version), (OTHER, 5)]);
        let page = local_page(Vec::new(), LocalPlace::after(DbVersion::new(8)), Some(complete));
        let effects = session.handle(Input::Read(ReadDone { generation, page }));
        sent(&effects).pop().map(|message| message.progress().unwrap().cursor.clone().unwrap())
    };
    assert_eq!(read(&mut session, generation, 3), Some(cursor(&[(OWN, 3), (OTHER, 5)])));
    session.handle(Input::Sent);
    let generation = order(&session.handle(Input::Committed)).generation;
    assert_eq!(read(&mut session, generation, 8), Some(cursor(&[(OWN, 8)])));
    session.handle(Input::Sent);
    let generation = order(&session.handle(Input::Committed)).generation;
    assert_eq!(read(&mut session, generation, 8), None, "it is said once");
}

/// Parts lead from place to place; a page of which nothing is sent leaves no hole in their chain.
#[test]
fn a_transaction_that_is_larger_than_a_page_goes_in_parts() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(9))).generation;
    let inside = |key: u8| {
        let bytes = [&5_i64.to_be_bytes()[..], &i64::from(key).to_be_bytes(), b"t"].concat();
        LocalPlace::from_inside(&Place(bytes.into())).unwrap()
    };
    let read = |session: &mut Session, changes: Vec<Change>, place: LocalPlace| {
        let page = local_page(changes, place, None);
        let mut messages = sent(&session.handle(Input::Read(ReadDone { generation, page })));
        session.handle(Input::Sent);
        messages.pop().map(|message| message.progress().unwrap().clone())
    };
    let first = read(&mut session, vec![change(OTHER, 1)], inside(1)).unwrap();
    let until = inside(1).to_inside().unwrap();
    assert_eq!(first.part, Part::Piece { after: None, until: until.clone() });
    assert_eq!(first.position, None);
    assert_eq!(read(&mut session, Vec::new(), inside(2)), None);
    let second = read(&mut session, vec![change(OTHER, 2)], inside(3)).unwrap();
    let next = inside(3).to_inside().unwrap();
    assert_eq!(second.part, Part::Piece { after: Some(until), until: next.clone() });
    // The last part is sent also if nothing is left for it.
    let last = read(&mut session, Vec::new(), LocalPlace::after(DbVersion::new(5))).unwrap();
    assert_eq!(last.part, Part::Last { after: next });
    assert_eq!(last.position, Some(at(5)));
}

/// A catch-up that broke inside of a transaction goes on there, unless everything up to it has come another way.
#[test]
fn an_answer_begins_at_the_staged_place() {
    let bytes = [&5_i64.to_be_bytes()[..], &3_i64.to_be_bytes(), b"t"].concat();
    let staged = Place(bytes.into());
    let begin = |position: i64| {
        let mut session = session(true);
        let terms =
            Terms { answer: 1, credit: 9, position: at(position), staged: Some(staged.clone()), ..Terms::default() };
        let order = order(&session.handle(Input::Asked(SyncRequest { cursor: Cursor::new(), terms: Some(terms) })));
        let ReadWhat::Local { place, .. } = order.what else { panic!("{order:?}") };
        place
    };
    assert_eq!(begin(2).to_inside(), Some(staged.clone()));
    assert_eq!(begin(5), LocalPlace::after(DbVersion::new(5)));
}

/// `known-failures.md` A10: live changes go out between the pages of an older answer.
#[test]
fn a_page_read_for_an_older_request_is_dropped() {
    let mut session = session(true);
    let old = order(&session.handle(asked(9))).generation;
    let terms = Terms { answer: 2, credit: 9, position: at(3), ..Terms::default() };
    // Nothing more is read before that page is here, however often a remote asks.
    let effects = session.handle(Input::Asked(SyncRequest { cursor: Cursor::new(), terms: Some(terms) }));
    assert!(matches!(effects.as_slice(), [Effect::Tell(Notice::Sync)]), "{effects:?}");
    let effects = session.handle(page(old, 1, 1, None));
    assert!(sent(&effects).is_empty());
    let new = order(&effects);
    assert!(matches!(new.what, ReadWhat::Local { ref place, .. } if place.position() == DbVersion::new(3)));
}

/// A frozen session must not take changes with holes below them for a claim of the remote.
#[test]
fn changes_claim_nothing_for_the_remote_also_when_frozen() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(9))).generation;
    session.handle(changes(&[(OTHER, 4)], 1, Some(numbered(1))));
    let failure = MergeFailure { message: "no such table".to_owned(), fault: Fault::Content };
    session.handle(Input::Merged(Err(failure)));
    // What the next page leaves out.
    let covered = |session: &mut Session| {
        let page = local_page(Vec::new(), LocalPlace::default(), None);
        let order = order(&session.handle(Input::Read(ReadDone { generation, page })));
        let ReadWhat::Local { covered, .. } = order.what else { panic!("{order:?}") };
        covered
    };
    take(&mut session, changes(&[(OTHER, 5)], 1, Some(numbered(2))));
    assert!(!covered(&mut session).contains(&OTHER));
    let progress = Progress { cursor: Some(cursor(&[(OTHER, 5)])), ..numbered(3) };
    take(&mut session, changes(&[], 1, Some(progress)));
    assert!(covered(&mut session).covers(&OTHER, DbVersion::new(5)));
}

/// `known-failures.md` D12: who was told our cursor is told what moved since, and nothing is copied for it.
#[test]
fn a_read_says_when_the_remote_was_told_the_cursor_last() {
    let mut engine = Engine::open_in_memory().unwrap();
    let told = MergeProgress { cursor: cursor(&[(OTHER, 5)]), ..MergeProgress::default() };
    engine.merge(&[], &told).unwrap();
    let limits = PageLimits { changes_max: 9, bytes_max: usize::MAX, stretch: 1 };
    let complete = engine.read_local(&LocalPlace::default(), &LocalFilter::default(), limits).unwrap();
    let mut session = session(true);
    let first = order(&session.handle(asked(9)));
    let ReadWhat::Local { told, covered, .. } = first.what else { panic!("{first:?}") };
    assert_eq!(told, Moves::NONE);
    // While the engine has what is known of the remote.
    take(
        &mut session,
        changes(&[(REMOTE, 5)], 1, Some(Progress { cursor: Some(cursor(&[(REMOTE, 5)])), ..numbered(1) })),
    );
    assert_eq!(std::sync::Arc::strong_count(&covered), 2, "no copy");
    drop(covered);
    let moves = complete.moves;
    let page = Page::Local { page: complete, begin: Begin::There, read_at: 0 };
    session.handle(Input::Read(ReadDone { generation: first.generation, page }));
    session.handle(Input::Sent);
    let second = order(&session.handle(Input::Committed));
    let ReadWhat::Local { told, covered, .. } = second.what else { panic!("{second:?}") };
    // What it was told need not be kept.
    assert_eq!((told, &*covered), (moves, &cursor(&[(REMOTE, 5)])));
    assert!(told > Moves::NONE);
}

/// The simulation found it: with the power a file loses what a carrier has of it still. Whose answer is older than when it reads that does
/// not know of it, and so does not tell that everything came back.
#[test]
fn an_answer_ends_nothing_while_the_remote_has_to_read_what_is_older() {
    let written = Some(DbVersion::new(9));
    for (written, acknowledges, ends) in [(None, false, true), (written, false, false), (written, true, true)] {
        let mut session = session(true);
        let request =
            SyncRequest { cursor: Cursor::new(), terms: Some(Terms { answer: 1, credit: 9, ..Terms::default() }) };
        let resumed = Resumed { written, ..Resumed::default() };
        let generation = order(&session.handle(Input::Resumed(request, resumed))).generation;
        assert_eq!(sent(&session.handle(page(generation, 1, 1, Some(Cursor::new())))).len(), 1);
        if acknowledges {
            session.handle(acknowledged(1, 9));
        }
        let eose = PeerMessage::Eose { progress: Some(Progress { position: Some(at(1)), ..numbered(1) }) };
        let effects = session.handle(Input::Received(Unverified::new(eose)));
        let merged = effects.iter().find_map(|effect| match effect {
            Effect::Merge { progress, .. } => Some(progress.ends_answer),
            _ => None,
        });
        assert_eq!(merged, Some(ends), "{written:?} {acknowledges}");
    }
}

/// Without what could not be read, the rest would show half of a transaction that was overwritten in part.
#[test]
fn after_a_message_that_cannot_be_read_nothing_more_is_taken() {
    let mut session = session(true);
    let effects = session.handle(changes(&[(OTHER, 4)], 1, Some(Progress { more: true, ..numbered(1) })));
    assert!(matches!(effects.as_slice(), [Effect::Stage { .. }]), "{effects:?}");
    session.handle(Input::Merged(Ok(MergeDone::default())));
    let effects = session.handle(Input::Garbled("cut off".to_owned()));
    assert!(matches!(effects.as_slice(), [Effect::Tell(Notice::Error(_)), Effect::EndAfter(..)]), "{effects:?}");
    let effects = session.handle(changes(&[(OTHER, 5)], 1, Some(numbered(2))));
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
}

#[test]
fn a_message_without_a_number_is_refused() {
    let mut session = session(true);
    let effects = session.handle(changes(&[(OTHER, 1)], 1, None));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Reply(Err(Refusal::Invalid(_))))), "{effects:?}");
}

/// Otherwise every peer of a hub would answer each transaction with news for all others.
#[test]
fn versions_that_only_merges_took_are_told_now_and_then() {
    let mut session = session(true);
    session.handle(asked(16));
    let nothing = |version: i64| {
        let place = LocalPlace::after(DbVersion::new(version));
        Input::Read(ReadDone { generation: 1, page: local_page(vec![], place, Some(cursor(&[(OWN, 1)]))) })
    };
    assert!(matches!(sent(&session.handle(nothing(1))).as_slice(), [PeerMessage::Eose { .. }]));
    session.handle(Input::Sent);
    for version in [2, 1024] {
        session.handle(Input::Committed);
        assert_eq!(sent(&session.handle(nothing(version))), []);
    }
    session.handle(Input::Committed);
    let told = sent(&session.handle(nothing(1025)));
    let [PeerMessage::Changes { changes, progress: Some(progress), .. }] = told.as_slice() else { panic!("{told:?}") };
    assert!(changes.is_empty());
    assert_eq!(progress.cursor, None);
    assert_eq!(progress.position.map(|position| position.version), Some(DbVersion::new(1025)));
}

/// A carrier may repeat a request: the answer under way goes on, and is not begun anew under its number.
#[test]
fn a_repeated_request_is_the_same_request() {
    let mut session = session(true);
    session.handle(asked(16));
    session.handle(page(1, 1, 1, None));
    assert!(session.handle(asked(16)).is_empty());
    session.handle(Input::Sent);
    let told = sent(&session.handle(page(1, 2, 2, Some(Cursor::new()))));
    let [PeerMessage::Changes { progress: Some(progress), .. }] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(progress.number, 2);
}

fn up_to_date(session: &mut Session, position: i64) -> u64 {
    let generation = order(&session.handle(asked(16))).generation;
    let place = LocalPlace::after(DbVersion::new(position));
    let end = Input::Read(ReadDone { generation, page: local_page(vec![], place, Some(cursor(&[(OWN, position)]))) });
    assert!(matches!(sent(&session.handle(end)).as_slice(), [PeerMessage::Eose { .. }]));
    session.handle(Input::Sent);
    generation
}

fn standing(stands_by: bool, acknowledged: i64, reached: i64) -> Input {
    let served = Served { acknowledged: at(acknowledged), reached: at(reached) };
    Input::OtherWays(Standing { stands_by, served })
}

/// Over another connection it goes on behind what the remote acknowledged there, and says that it does.
#[test]
fn who_stands_by_sends_nothing_and_goes_on_where_the_other_way_ended() {
    let mut session = session(true);
    let generation = up_to_date(&mut session, 5);
    assert_eq!(session.served(), None, "not acknowledged");
    session.handle(acknowledged(1, 20));
    assert_eq!(session.served(), Some(Served { acknowledged: at(5), reached: at(5) }));
    session.handle(standing(true, 5, 5));
    assert!(session.handle(Input::Committed).is_empty());
    let effects = session.handle(standing(false, 70, 75));
    let ReadOrder { generation: later, what: ReadWhat::Local { place, .. } } = order(&effects) else { panic!() };
    assert_eq!((later, place), (generation + 1, LocalPlace::after(DbVersion::new(75))));
    let effects = session.handle(page(later, 80, 80, Some(cursor(&[(OWN, 80)]))));
    let first = sent(&effects)[0].progress().cloned().unwrap();
    assert_eq!((first.since, first.position), (Some(at(70)), Some(at(80))));
    session.handle(Input::Sent);
    order(&session.handle(Input::Committed));
    let effects = session.handle(page(later, 90, 90, Some(cursor(&[(OWN, 90)]))));
    assert_eq!(sent(&effects)[0].progress().unwrap().since, None, "it is said once");
}

/// Only then another connection goes on, so that nothing goes twice.
#[test]
fn who_stands_by_rests_once_everything_is_acknowledged() {
    let mut session = session(true);
    let generation = up_to_date(&mut session, 5);
    session.handle(standing(true, 0, 0));
    assert!(!session.rests(), "the end of the answer is under way");
    session.handle(acknowledged(1, 20));
    assert!(session.rests());
    session.handle(standing(false, 0, 0));
    assert!(!session.rests(), "it may send more at any time");
    session.handle(Input::Committed);
    session.handle(standing(true, 5, 5));
    assert!(!session.rests(), "a page is being read");
    session.handle(page(generation, 6, 6, Some(cursor(&[(OWN, 6)]))));
    assert!(!session.rests(), "it is being sent");
    session.handle(Input::Sent);
    assert!(!session.rests());
    session.handle(acknowledged(2, 20));
    assert!(session.rests());
    assert_eq!(session.served(), Some(Served { acknowledged: at(6), reached: at(6) }));
}

/// Also where nothing follows: else who was restored would not hear of what it lacks.
#[test]
fn where_the_other_way_ended_is_said_at_once_and_remembered() {
    let mut session = session(true);
    let generation = up_to_date(&mut session, 5);
    session.handle(acknowledged(1, 20));
    session.handle(standing(true, 5, 5));
    session.handle(standing(false, 70, 75));
    assert_eq!(session.served(), Some(Served { acknowledged: at(70), reached: at(75) }));
    let place = LocalPlace::after(DbVersion::new(75));
    let page = local_page(vec![], place, Some(cursor(&[(OWN, 75)])));
    let said = sent(&session.handle(Input::Read(ReadDone { generation: generation + 1, page })));
    let [PeerMessage::Changes { changes, progress: Some(progress), .. }] = said.as_slice() else { panic!("{said:?}") };
    assert!(changes.is_empty() && progress.since == Some(at(70)));
    session.handle(Input::Sent);
    assert_eq!(session.served(), Some(Served { acknowledged: at(70), reached: at(75) }), "under way");
    session.handle(acknowledged(2, 20));
    assert_eq!(session.served(), Some(Served { acknowledged: at(75), reached: at(75) }));
}

fn notes(effects: &[Effect]) -> Vec<Served> {
    let noted =
        effects.iter().filter_map(|effect| if let Effect::Note(served) = effect { Some(*served) } else { None });
    noted.collect()
}

/// A transport that remembers what it has sent has to know what need not go on from there.
#[test]
fn who_stands_by_says_how_far_the_other_way_has_brought_the_remote() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(16))).generation;
    assert_eq!(notes(&session.handle(standing(true, 7, 8))), [], "its own answer has not ended");
    let place = LocalPlace::after(DbVersion::new(5));
    let end = Input::Read(ReadDone { generation, page: local_page(vec![], place, Some(cursor(&[(OWN, 5)]))) });
    assert_eq!(notes(&session.handle(end)), [], "the end is not with the transport");
    let served = |acknowledged: i64, reached: i64| Served { acknowledged: at(acknowledged), reached: at(reached) };
    assert_eq!(notes(&session.handle(Input::Sent)), [served(7, 8)]);
    assert_eq!(notes(&session.handle(Input::Committed)), [], "it is said once");
    assert_eq!(notes(&session.handle(standing(true, 9, 9))), [served(9, 9)]);
    assert_eq!(notes(&session.handle(standing(false, 9, 10))), [], "now it says so to the remote");
}

fn resumed(served: Served) -> Resumed {
    Resumed { served: Some(served), written: Some(DbVersion::new(3)) }
}

/// What the remote had asked for before we ended, and what it got another way since.
#[test]
fn what_is_gone_on_with_later_begins_behind_what_went_another_way() {
    let served = Served { acknowledged: at(70), reached: at(75) };
    let request = |version: i64| {
        let terms = Terms { answer: 1, credit: 16, position: at(version), ..Terms::default() };
        SyncRequest { cursor: Cursor::new(), terms: Some(terms) }
    };
    let mut session = session(true);
    let order = order(&session.handle(Input::Resumed(request(5), resumed(served))));
    let ReadWhat::Local { place, claimed, .. } = order.what else { panic!() };
    assert_eq!((place, claimed.elsewhere), (LocalPlace::after(DbVersion::new(75)), Some(served)));
    assert_eq!(claimed.written, None);
    let place = LocalPlace::after(DbVersion::new(75));
    let page = local_page(vec![], place, Some(cursor(&[(OWN, 75)])));
    let said = sent(&session.handle(Input::Read(ReadDone { generation: order.generation, page })));
    let [PeerMessage::Eose { progress: Some(progress) }] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((progress.since, progress.position), (Some(at(70)), Some(at(75))));
    // A request that knows of it.
    let mut session = self::session(true);
    let ReadWhat::Local { place, claimed, .. } =
        self::order(&session.handle(Input::Resumed(request(75), resumed(served)))).what
    else {
        panic!()
    };
    assert_eq!((place, claimed.elsewhere), (LocalPlace::after(DbVersion::new(75)), None));
    assert_eq!(claimed.written, Some(DbVersion::new(3)), "only what went another way is not known");
}

/// A file that was restored since, or lost its last commits: it sends everything from where both lives are the same.
#[test]
fn what_went_another_way_in_another_life_is_not_gone_on_behind() {
    let served = Served { acknowledged: at(70), reached: at(75) };
    let mut session = session(true);
    let request =
        SyncRequest { cursor: Cursor::new(), terms: Some(Terms { answer: 1, credit: 16, ..Terms::default() }) };
    let generation = order(&session.handle(Input::Resumed(request, resumed(served)))).generation;
    let mut page = page(generation, 60, 60, Some(cursor(&[(OWN, 60)])));
    let Input::Read(ReadDone { page: Page::Local { begin, .. }, .. }) = &mut page else { panic!() };
    *begin = Begin::Elsewhere;
    assert_eq!(sent(&session.handle(page))[0].progress().unwrap().since, None);
}

/// What waits for more is staged at the remote, and goes with the connection.
#[test]
fn what_is_merely_staged_is_not_gone_on_behind() {
    let mut session = session(true);
    let generation = up_to_date(&mut session, 5);
    session.handle(acknowledged(1, 20));
    session.handle(Input::Committed);
    session.handle(page(generation, 6, 6, None));
    session.handle(Input::Sent);
    session.handle(acknowledged(2, 20));
    assert_eq!(session.served(), Some(Served { acknowledged: at(5), reached: at(5) }));
    session.handle(page(generation, 7, 7, Some(cursor(&[(OWN, 7)]))));
    session.handle(Input::Sent);
    session.handle(acknowledged(3, 20));
    assert_eq!(session.served(), Some(Served { acknowledged: at(7), reached: at(7) }));
    // Nothing of what follows is for the remote.
    session.handle(Input::Committed);
    let place = LocalPlace::after(DbVersion::new(9));
    session.handle(Input::Read(ReadDone { generation, page: local_page(vec![], place, Some(cursor(&[(OWN, 7)]))) }));
    assert_eq!(session.served(), Some(Served { acknowledged: at(7), reached: at(9) }));
}

/// What the remote waits for goes first: the end of the answer, and the rest of what was announced.
#[test]
fn who_stands_by_ends_what_was_begun() {
    let mut session = session(true);
    session.handle(standing(true, 0, 0));
    let generation = up_to_date(&mut session, 5);
    session.handle(acknowledged(1, 20));
    assert!(session.handle(Input::Committed).is_empty());
    session.handle(standing(false, 0, 0));
    session.handle(page(generation, 6, 6, None));
    session.handle(Input::Sent);
    session.handle(standing(true, 0, 0));
    let last = session.handle(page(generation, 7, 7, Some(cursor(&[(OWN, 7)]))));
    assert!(!sent(&last)[0].progress().unwrap().more);
    session.handle(Input::Sent);
    assert!(session.handle(Input::Committed).is_empty());
}

/// Whether what lies before the message is here only the engine can say.
#[test]
fn a_message_that_goes_on_after_another_connection_is_merged_where_that_brought_it() {
    let mut session = session(true);
    let progress = Progress { since: Some(at(40)), position: Some(at(50)), ..numbered(1) };
    let effects = session.handle(changes(&[(OTHER, 5)], 1, Some(progress)));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((progress.since, progress.position), (Some((REMOTE, at(40))), Some((REMOTE, at(50)))));
    let failure = MergeFailure { message: String::new(), fault: Fault::Gap };
    let effects = session.handle(Input::Merged(Err(failure)));
    assert!(matches!(effects.as_slice(), [Effect::Open { .. }, Effect::Reply(Ok(()))]), "{effects:?}");
}

/// The remote said before this connection that the answer had ended. What a carrier says of itself completes nothing.
#[test]
fn where_a_carrier_has_no_more_of_a_stream_that_went_on_the_remote_is_caught_up() {
    let mut session = session(true);
    let with_more = Progress { more: true, position: Some(at(1)), ..numbered(1) };
    session.handle(changes(&[(OTHER, 1)], 1, Some(with_more)));
    session.handle(Input::Merged(Ok(MergeDone { local_versions: None, staged: Some(staged(1, None, 1)) })));
    let end =
        Input::Received(Unverified::new(PeerMessage::Eose { progress: Some(Progress { more: true, ..numbered(2) }) }));
    let effects = session.handle(end);
    assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(Progress { position: Some(at(2)), ..numbered(3) })));
    assert!(matches!(effects.as_slice(), [Effect::Merge { .. }]), "{effects:?}");
    let effects = session.handle(Input::Merged(Ok(MergeDone::default())));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Tell(Notice::Eose))), "{effects:?}");
}

/// The simulation found it: with more to come they were merged one by one, and showed halves.
#[test]
fn after_a_message_that_could_not_be_stored_nothing_is_merged_over_the_connection() {
    let mut session = session(true);
    session.handle(changes(&[(OTHER, 1)], 1, Some(numbered(1))));
    let failure = MergeFailure { message: "database is locked".to_owned(), fault: Fault::Database };
    let effects = session.handle(Input::Merged(Err(failure)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::EndAfter(..))), "{effects:?}");
    for number in 2..=3 {
        let progress = Progress { more: number == 2, position: Some(at(9)), ..numbered(number) };
        let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(progress)));
        assert!(matches!(effects.as_slice(), [Effect::Reply(Ok(()))]), "{effects:?}");
    }
}

/// The simulation found it: half of a transaction, whose other half was overwritten by one that the sender has lost.
#[test]
fn what_is_staged_of_a_sender_that_went_back_is_not_completed() {
    let mut session = session(true);
    let progress = Progress { more: true, position: Some(at(12)), ..numbered(1) };
    session.handle(changes(&[(OTHER, 1)], 1, Some(progress)));
    session.handle(Input::Merged(Ok(MergeDone { local_versions: None, staged: Some(staged(12, None, 1)) })));
    let back = Position { version: DbVersion::new(11), incarnation: Incarnation(8) };
    let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(Progress { position: Some(back), ..numbered(2) })));
    let [Effect::Merge { progress, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((&progress.completes, progress.position), (&None, Some((REMOTE, back))));
}

/// What overwrote a part of what is staged has to come, and only a sender that has it still can send it.
#[test]
fn a_request_says_as_of_when_what_is_here_was_read() {
    let mut session = session(true);
    let progress = Progress { more: true, position: Some(at(12)), as_of: Some(at(16)), ..numbered(1) };
    let effects = session.handle(changes(&[(OTHER, 1)], 1, Some(progress)));
    let [Effect::Stage { until, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    let until = until.clone();
    assert_eq!((until.position, until.as_of), (at(12), Some(at(16))));
    let staged = Staged { reach: until, ..staged(12, None, 1) };
    session.handle(Input::Merged(Ok(MergeDone { local_versions: None, staged: Some(staged.clone()) })));
    session.handle(changes(&[(OTHER, 3)], 1, Some(numbered(3))));
    let effects = session.handle(Input::Opened { us: US, cursor: Cursor::new(), staged });
    let [Effect::Ask(SyncRequest { terms: Some(terms), .. })] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!((terms.position, terms.as_of), (at(12), Some(at(16))));
}

/// The simulation found it: the other half of a transaction was overwritten by what the sender has lost.
#[test]
fn where_an_answer_begins_at_the_very_start_what_is_staged_is_forgotten() {
    for more in [false, true] {
        let mut session = session(true);
        let progress = Progress { more: true, position: Some(at(12)), as_of: Some(at(16)), ..numbered(1) };
        session.handle(changes(&[(OTHER, 1)], 1, Some(progress)));
        session.handle(Input::Merged(Ok(MergeDone { local_versions: None, staged: Some(staged(12, None, 1)) })));
        let (since, position) = (Some(Position::default()), Some(at(14)));
        let progress = Progress { since, position, more, ..numbered(2) };
        let effects = session.handle(changes(&[(OTHER, 2)], 1, Some(progress)));
        match effects.as_slice() {
            [Effect::Merge { progress, .. }] if !more => {
                assert_eq!((&progress.completes, progress.since), (&None, Some((REMOTE, Position::default()))));
            }
            [Effect::Stage { after, .. }] if more => assert_eq!(*after, Reach::default()),
            _ => panic!("{effects:?}"),
        }
    }
}

#[test]
fn what_has_more_to_come_says_as_of_when_it_was_read() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(9))).generation;
    let effects = session.handle(page(generation, 4, 4, None));
    assert_eq!(sent(&effects)[0].progress().unwrap().as_of, Some(at(100)));
    session.handle(Input::Sent);
    let effects = session.handle(page(generation, 7, 100, Some(cursor(&[(OWN, 7)]))));
    assert_eq!(sent(&effects)[0].progress().unwrap().as_of, None);
}

#[test]
fn an_answer_that_begins_at_the_very_start_says_so_once() {
    let mut session = session(true);
    let generation = order(&session.handle(asked(9))).generation;
    let Input::Read(mut done) = page(generation, 4, 4, None) else { unreachable!("made above") };
    let Page::Local { begin, .. } = &mut done.page else { unreachable!("made above") };
    *begin = Begin::Anew;
    let effects = session.handle(Input::Read(done));
    assert_eq!(sent(&effects)[0].progress().unwrap().since, Some(Position::default()));
    session.handle(Input::Sent);
    let effects = session.handle(page(generation, 7, 7, None));
    assert_eq!(sent(&effects)[0].progress().unwrap().since, None);
}

/// A carrier kept it, and its sender was restored from a backup meanwhile: what it asks for it does not have, whatever it said before.
#[test]
fn what_was_sent_before_the_remote_asked_is_sent_back() {
    for more in [false, true] {
        let mut session = session(true);
        let generation = order(&session.handle(asked(9))).generation;
        session.handle(Input::Read(ReadDone {
            generation,
            page: local_page(Vec::new(), LocalPlace::after(DbVersion::new(3)), Some(Cursor::new())),
        }));
        let early = |number, more: bool, version: i64| {
            let cursor = (!more).then(|| cursor(&[(REMOTE, version)]));
            let progress = Progress { more, position: Some(at(version)), cursor, ..numbered(number) };
            let changes = vec![change(REMOTE, version)];
            let message = PeerMessage::Changes { changes, schema_version: 1, progress: Some(progress) };
            Input::Received(Unverified::new(message).early())
        };
        if more {
            let effects = session.handle(early(1, true, 23));
            assert!(matches!(effects.as_slice(), [Effect::Stage { .. }]), "{effects:?}");
            session.handle(Input::Merged(Ok(MergeDone { local_versions: None, staged: Some(staged(23, None, 1)) })));
        }
        let input = match more {
            false => early(1, false, 24),
            // What completes it is of the life that asked.
            true => changes(&[(OTHER, 4)], 1, Some(Progress { position: Some(at(24)), ..numbered(2) })),
        };
        let effects = session.handle(input);
        assert!(matches!(effects.as_slice(), [Effect::Merge { echoes: false, .. }]), "{effects:?}");
        session.handle(Input::Merged(Ok(MergeDone::default())));
        let order = order(&session.handle(Input::Committed));
        let ReadWhat::Local { covered, echoes, .. } = order.what else { panic!("{order:?}") };
        assert!(!covered.contains(&REMOTE) && echoes.is_empty());
    }
}
