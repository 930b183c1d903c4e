//! Any requests and messages of a paired peer: the body of the fuzz target `nostr_reach`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // to panic is what it is for

use litemesh_proto::codec::v2::{self, Frame};
use litemesh_proto::{Cursor, Limits, Part, SyncRequest, Unverified};

use super::{Reach, covers};

/// Pieces, each after a byte that says how long it is: the rest of a request, then of messages, as frames of wire v2.
///
/// What a stream has reached is kept and read again as it is; who stands there goes on from there, and from nowhere before. Repeats
/// change nothing.
pub fn reach(bytes: &[u8]) {
    let mut pieces = Pieces(bytes);
    let Some(Frame::Sync(request)) = pieces.next().and_then(|piece| decode(2, piece)) else { return };
    let (received, sent) = (Reach::of(&request), Reach::answering(&request));
    assert!(received.is_where(&request) && sent.was_told_by(&request));
    for mut reach in [received, sent] {
        check(&reach, &request);
        for piece in pieces.clone() {
            let kind = 3 + piece.first().map_or(0, |first| first % 2);
            if let Some(Frame::Message(message)) = decode(kind, piece.get(1..).unwrap_or_default()) {
                add(&mut reach, &message);
                check(&reach, &request);
            }
        }
    }
}

#[derive(Clone)]
struct Pieces<'a>(&'a [u8]);

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        let (piece, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        self.0 = rest;
        Some(piece)
    }
}

fn decode(kind: u8, body: &[u8]) -> Option<Frame> {
    v2::decode(&[&[kind, 0], body].concat(), &Limits::default()).ok()
}

fn add(reach: &mut Reach, message: &Unverified) {
    let before = reach.clone();
    reach.add(message.progress(), message.versions());
    assert!(covers(held(reach), held(&before)));
    assert!(message.versions().count() > 0 || message.progress().is_some() || *reach == before);
    if let (Reach::Local { position, place, .. }, Reach::Local { position: was_at, .. }, Some(progress)) =
        (&*reach, &before, message.progress())
    {
        let since = progress.since.unwrap_or(*was_at);
        match &progress.part {
            Part::Piece { until, .. } => assert!(place.as_ref() == Some(until) && *position == since),
            Part::Whole | Part::Last { .. } => {
                assert!(place.is_none() && *position == progress.position.unwrap_or(since));
            }
        }
    }
    let once = reach.clone();
    reach.add(message.progress(), message.versions());
    assert_eq!(*reach, once, "the same message again");
}

/// What a database holds at least that stands there.
fn held(reach: &Reach) -> &Cursor {
    match reach {
        Reach::Local { held, .. } | Reach::Sites(held) => held,
    }
}

fn check(reach: &Reach, request: &SyncRequest) {
    let kept = reach.to_request();
    assert_eq!(Reach::of(&again(&kept)), *reach);

    let mut here = request.clone();
    here.cursor.join(held(reach));
    let onwards = reach.onwards(&here, 7);
    assert!(reach.is_where(&onwards) && reach.was_told_by(&onwards));
    assert_eq!(again(&onwards), onwards);
    // Who has lost what it held of a site does not stand there.
    let lost =
        SyncRequest { cursor: here.cursor.iter().skip(1).map(|(site, version)| (*site, version)).collect(), ..onwards };
    let is_held = here.cursor.iter().next().is_some_and(|(site, _)| held(reach).contains(site));
    assert_eq!(reach.is_where(&lost), !is_held);
}

/// Written and read.
fn again(request: &SyncRequest) -> SyncRequest {
    match v2::decode(&v2::sync(request), &Limits::default()) {
        Ok(Frame::Sync(request)) => request,
        other => panic!("{other:?}"),
    }
}
