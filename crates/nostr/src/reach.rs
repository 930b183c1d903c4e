//! How far a stream has brought its receiver: what both ends remember beside the head of the chain.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;

use litemesh_proto::limits::{CREDIT_MAX, CURSOR_SITES_MAX};
use litemesh_proto::{Cursor, DbVersion, Part, Place, Position, Progress, SiteId, SyncRequest, Terms};

/// What the receiver of a stream holds of its sender after the head of the chain, where it took everything.
///
/// The receiver goes on with a stream only where its database says the same: after a restore from a backup, or after messages that it
/// could not take, the two differ, and it begins another stream. The sender goes on from here after a restart.
#[derive(Clone, Debug, PartialEq)]
pub enum Reach {
    /// Between Litemesh peers.
    Local {
        /// How far in the sender's versions.
        position: Position,
        /// How far inside of the next transaction.
        place: Option<Place>,
        /// The sender's newest position when it read this, where it held more than it has sent.
        as_of: Option<Position>,
        /// What its sender has sent, and said that it holds, or the receiver when it asked: who holds less now was restored from a backup.
        held: Cursor,
    },
    /// With an original peer: of each site everything up to a version. The newest that came counts as incomplete.
    Sites(Cursor),
}

impl Reach {
    /// Where the receiver of an answer to this request is when that begins.
    pub fn of(request: &SyncRequest) -> Self {
        match &request.terms {
            Some(terms) => Self::Local {
                position: terms.position,
                place: terms.staged.clone(),
                as_of: terms.as_of,
                held: request.cursor.clone(),
            },
            None => Self::Sites(request.cursor.clone()),
        }
    }

    /// The same, as the sender remembers it: of what is held it counts what it has said itself.
    pub fn answering(request: &SyncRequest) -> Self {
        let mut reach = Self::of(request);
        if let Self::Local { held, .. } = &mut reach {
            *held = Cursor::new();
        }
        reach
    }

    /// A message of the stream came, or was sent. More sites than a cursor may name are not remembered: what is kept must be read again.
    pub fn add(&mut self, progress: Option<&Progress>, versions: impl Iterator<Item = (SiteId, DbVersion)>) {
        match self {
            Self::Local { position, place, as_of, held } => {
                let Some(progress) = progress else { return };
                *as_of = progress.as_of;
                if let Some(since) = progress.since {
                    *position = since;
                }
                if let Some(cursor) = &progress.cursor {
                    held.join_within(cursor, CURSOR_SITES_MAX);
                }
                *place = match &progress.part {
                    Part::Piece { until, .. } => Some(until.clone()),
                    Part::Whole | Part::Last { .. } => None,
                };
                if let (None, Some(reached)) = (&place, progress.position) {
                    *position = reached;
                }
            }
            Self::Sites(cursor) => {
                let versions = versions.map(|(site, version)| (site, version.previous())).collect();
                cursor.join_within(&versions, CURSOR_SITES_MAX);
            }
        }
    }

    /// A message with these versions was sent: so its sender holds them, also where it could not say so, as in the middle of a catch-up,
    /// or of what its file still lacks something of.
    pub fn sent(&mut self, versions: impl Iterator<Item = (SiteId, DbVersion)>) {
        if let Self::Local { held, .. } = self {
            held.join_within(&versions.collect(), CURSOR_SITES_MAX);
        }
    }

    /// Above what the receiver of an answer to this request holds nothing of what this site wrote, as far as that came over the stream or
    /// before it, where its sender is that site.
    pub fn written(&self, request: &SyncRequest, own: SiteId) -> Option<DbVersion> {
        let (Self::Local { held, .. }, Some(terms)) = (self, &request.terms) else { return None };
        Some(held.get(&own).max(terms.position.version))
    }

    /// Whether who asks so holds what it has sent on this stream of its own, and has said there that it holds. To an original peer nothing
    /// of that is said.
    pub fn was_told_by(&self, request: &SyncRequest) -> bool {
        match self {
            Self::Local { held: told, .. } => covers(&request.cursor, told),
            Self::Sites(_) => true,
        }
    }

    /// Whether who asks so stands where the stream has brought it.
    pub fn is_where(&self, request: &SyncRequest) -> bool {
        match (self, &request.terms) {
            (Self::Local { position, place, as_of, held }, Some(terms)) => {
                (position, place, as_of) == (&terms.position, &terms.staged, &terms.as_of)
                    && covers(&request.cursor, held)
            }
            (Self::Sites(cursor), None) => covers(&request.cursor, cursor),
            _ => false,
        }
    }

    /// A request as which all of this can be kept.
    pub(crate) fn to_request(&self) -> SyncRequest {
        let cursor = match self {
            Self::Local { held, .. } => held.clone(),
            Self::Sites(_) => Cursor::new(),
        };
        self.onwards(&SyncRequest { cursor, terms: None }, 0)
    }

    /// The request that a sender answers to go on from here. `answer`: a number of its own, since the receiver goes by the chain.
    pub fn onwards(&self, request: &SyncRequest, answer: u32) -> SyncRequest {
        match self {
            Self::Local { position, place, as_of, .. } => {
                let (position, staged, as_of) = (*position, place.clone(), *as_of);
                let terms = Terms { answer, credit: CREDIT_MAX, position, staged, as_of };
                SyncRequest { cursor: request.cursor.clone(), terms: Some(terms) }
            }
            Self::Sites(reached) => {
                let mut cursor = request.cursor.clone();
                cursor.join(reached);
                SyncRequest { cursor, terms: None }
            }
        }
    }
}

fn covers(cursor: &Cursor, other: &Cursor) -> bool {
    other.iter().all(|(site, version)| cursor.covers(site, version))
}

#[cfg(test)]
mod tests {
    use litemesh_proto::codec::v2::{self, Frame};
    use litemesh_proto::{Incarnation, Limits};

    use super::*;

    const SITE: SiteId = SiteId::from_bytes([1; 16]);

    fn position(version: i64) -> Position {
        Position { version: DbVersion::new(version), incarnation: Incarnation(7) }
    }

    fn asking(version: i64, staged: Option<Place>) -> SyncRequest {
        let terms = Terms { answer: 9, credit: CREDIT_MAX, position: position(version), staged, as_of: None };
        SyncRequest { cursor: Cursor::new(), terms: Some(terms) }
    }

    #[test]
    fn a_stream_of_a_litemesh_peer_goes_on_where_its_receiver_stands() {
        let mut reach = Reach::of(&asking(3, None));
        let whole = Progress { position: Some(position(5)), ..Progress::default() };
        reach.add(Some(&whole), std::iter::empty());
        assert!(reach.is_where(&asking(5, None)) && !reach.is_where(&asking(3, None)));
        assert!(!reach.is_where(&SyncRequest::default()), "what an original peer asks is of another kind");

        let until = Place(Box::from(*b"half"));
        let part = Part::Piece { after: None, until: until.clone() };
        reach.add(Some(&Progress { part, ..Progress::default() }), std::iter::empty());
        assert!(reach.is_where(&asking(5, Some(until.clone()))) && !reach.is_where(&asking(5, None)));
        assert_eq!(reach.onwards(&asking(3, None), 9), asking(5, Some(until.clone())));

        let last = Progress { part: Part::Last { after: until }, position: Some(position(6)), ..Progress::default() };
        reach.add(Some(&last), std::iter::empty());
        assert!(reach.is_where(&asking(6, None)));
    }

    /// What came of a state that the sender no longer has must not be gone on with.
    #[test]
    fn a_stream_remembers_as_of_when_it_was_read() {
        let mut reach = Reach::of(&asking(3, None));
        let more =
            Progress { more: true, position: Some(position(5)), as_of: Some(position(9)), ..Progress::default() };
        reach.add(Some(&more), std::iter::empty());
        let mut here = asking(5, None);
        assert!(!reach.is_where(&here));
        here.terms.as_mut().unwrap().as_of = Some(position(9));
        assert!(reach.is_where(&here));
        assert_eq!(reach.onwards(&asking(3, None), 9).terms, here.terms);
        assert_eq!(Reach::of(&reach.to_request()), reach);
        reach.add(Some(&Progress { position: Some(position(9)), ..Progress::default() }), std::iter::empty());
        assert!(reach.is_where(&asking(9, None)));
    }

    /// What one has told the other it is not sent again: who has lost it must not go on.
    #[test]
    fn a_receiver_that_holds_less_than_it_did_was_restored() {
        let held = |version: i64| -> Cursor { [(SITE, DbVersion::new(version))].into_iter().collect() };
        let asking = |version: i64| SyncRequest { cursor: held(version), ..asking(3, None) };
        let mut reach = Reach::of(&asking(7));
        assert!(reach.is_where(&asking(7)) && reach.is_where(&asking(8)) && !reach.is_where(&asking(6)));
        let progress = Progress { cursor: Some(held(9)), ..Progress::default() };
        reach.add(Some(&progress), std::iter::empty());
        assert!(reach.is_where(&asking(9)) && !reach.is_where(&asking(8)));
        assert_eq!(Reach::of(&reach.to_request()), reach);

        // What goes to the other.
        let mut reach = Reach::answering(&asking(7));
        assert!(reach.was_told_by(&asking(1)));
        reach.add(Some(&progress), std::iter::empty());
        assert!(reach.was_told_by(&asking(9)) && !reach.was_told_by(&asking(8)));
        // Also what it could not say that it holds.
        reach.sent([(SITE, DbVersion::new(11)), (SITE, DbVersion::new(10))].into_iter());
        assert!(reach.was_told_by(&asking(11)) && !reach.was_told_by(&asking(10)));
        assert_eq!(Reach::of(&reach.to_request()), reach);
    }

    #[test]
    fn after_another_connection_a_stream_goes_on_from_there() {
        let mut reach = Reach::of(&asking(3, None));
        let part = Part::Piece { after: None, until: Place(Box::from(*b"half")) };
        reach.add(Some(&Progress { since: Some(position(70)), part, ..Progress::default() }), std::iter::empty());
        assert!(reach.is_where(&asking(70, Some(Place(Box::from(*b"half"))))));
    }

    /// The newest version of a message may have come in part.
    #[test]
    fn a_stream_of_an_original_peer_repeats_the_version_that_it_ended_in() {
        let held = |version: i64| -> Cursor { [(SITE, DbVersion::new(version))].into_iter().collect() };
        let request = SyncRequest { cursor: held(2), terms: None };
        let mut reach = Reach::of(&request);
        reach.add(None, [4, 5, 5].map(|version| (SITE, DbVersion::new(version))).into_iter());
        assert!(reach.is_where(&SyncRequest { cursor: held(4), terms: None }));
        assert!(!reach.is_where(&SyncRequest { cursor: held(3), terms: None }));
        assert_eq!(reach.onwards(&request, 1).cursor, held(4));
    }

    /// A remote may make up a million sites in each message.
    #[test]
    fn what_is_kept_can_be_read_whatever_a_remote_claims() {
        let claim = |sites: std::ops::Range<u128>| -> Cursor {
            sites.map(|site| (SiteId::from_bytes(site.to_be_bytes()), DbVersion::new(9))).collect()
        };
        let max = CURSOR_SITES_MAX as u128;
        let mut local = Reach::of(&asking(3, None));
        let mut sites = Reach::of(&SyncRequest::default());
        for cursor in [claim(0..max), claim(max..max + 1)] {
            sites.add(None, cursor.iter().map(|(site, version)| (*site, version)));
            local.add(Some(&Progress { cursor: Some(cursor), ..Progress::default() }), std::iter::empty());
        }
        for reach in [local, sites] {
            let kept = v2::decode(&v2::sync(&reach.to_request()), &Limits::default());
            assert!(matches!(kept, Ok(Frame::Sync(request)) if Reach::of(&request) == reach));
        }
    }
}
