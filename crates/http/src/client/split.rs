//! Cuts a message that is too large for the server's body limit into bodies that fit.

use litemesh_proto::codec::v1;
use litemesh_proto::{Change, PeerMessage, SiteId, TransportError};

/// The bodies to post for one message, in order; almost always one.
///
/// A message of changes is halved until each part fits. All parts keep the schema version. For wire v1 alone, whose messages
/// are not numbered.
pub(crate) fn bodies(site: SiteId, message: PeerMessage, bytes_max: usize) -> Result<Vec<Vec<u8>>, TransportError> {
    let mut done = Vec::new();
    let mut waiting = vec![message];
    while let Some(part) = waiting.pop() {
        let body = v1::data(site, &part);
        if body.len() <= bytes_max {
            done.push(body);
            continue;
        }
        let bytes = body.len();
        drop(body);
        let (first, rest) = halve(part, bytes, bytes_max)?;
        // Last in, first out: the first half is next.
        waiting.extend([rest, first]);
    }
    Ok(done)
}

fn halve(part: PeerMessage, bytes: usize, max: usize) -> Result<(PeerMessage, PeerMessage), TransportError> {
    match part {
        PeerMessage::Changes { mut changes, schema_version, .. } if changes.len() > 1 => {
            let rest = changes.split_off(middle(&changes));
            let part = |changes| PeerMessage::Changes { changes, schema_version, progress: None };
            Ok((part(changes), part(rest)))
        }
        message => Err(TransportError::too_large(&message, bytes, max)),
    }
}

/// Where to cut: between two transactions, as near to the middle as there is such a place.
///
/// An original server counts a transaction as complete when its first part arrived (`known-failures.md` A3), so a cut
/// inside of one is for transactions that are alone too large.
fn middle(changes: &[Change]) -> usize {
    let half = changes.len() / 2;
    let is_boundary = |at: &usize| {
        let (left, right) = (&changes[at - 1], &changes[*at]);
        (left.site, left.db_version) != (right.site, right.db_version)
    };
    let below = (1..=half).rev().find(is_boundary);
    let above = (half + 1..changes.len()).find(is_boundary);
    match (below, above) {
        (Some(below), Some(above)) if above - half < half - below => above,
        (Some(below), _) => below,
        (None, Some(above)) => above,
        (None, None) => half,
    }
}

#[cfg(test)]
mod tests {
    use litemesh_proto::codec::v1::Envelope;
    use litemesh_proto::{CausalLength, ColVersion, Column, DbVersion, Limits, PackedKey, Seq, Value};

    use super::*;

    const SITE: SiteId = SiteId::from_bytes([7; 16]);

    fn change(version: i64, seq: i64, text_bytes: usize) -> Change {
        Change {
            table: "todo".into(),
            key: PackedKey::from_bytes(vec![1, 9, 1]),
            column: Column::Cell("title".into()),
            value: Value::text("x".repeat(text_bytes)),
            col_version: ColVersion::new(1),
            db_version: DbVersion::new(version),
            site: SITE,
            causal_length: CausalLength::new(1),
            seq: Seq::new(seq),
        }
    }

    fn message(changes: Vec<Change>) -> PeerMessage {
        PeerMessage::Changes { changes, schema_version: 49, progress: None }
    }

    type Part = (Vec<Change>, i64);

    fn read(bodies: &[Vec<u8>]) -> Vec<Part> {
        let part = |body: &Vec<u8>| {
            let message = Envelope::parse(body).unwrap().message().unwrap().verify(&Limits::default()).unwrap();
            let PeerMessage::Changes { changes, schema_version, .. } = message else { panic!("{message:?}") };
            (changes, schema_version)
        };
        bodies.iter().map(part).collect()
    }

    #[test]
    fn a_message_that_fits_is_one_body() {
        let whole = message(vec![change(1, 0, 10)]);
        assert_eq!(bodies(SITE, whole.clone(), 10_000).unwrap(), [v1::data(SITE, &whole)]);
        let eose = PeerMessage::Eose { progress: None };
        assert_eq!(bodies(SITE, eose.clone(), 10_000).unwrap(), [v1::data(SITE, &eose)]);
    }

    #[test]
    fn parts_fit_and_hold_everything_in_order() {
        let changes: Vec<_> = (0..100).map(|number| change(1 + number / 3, number % 3, 50)).collect();
        let bodies = bodies(SITE, message(changes.clone()), 2000).unwrap();
        assert!(bodies.len() > 10 && bodies.iter().all(|body| body.len() <= 2000));
        let parts = read(&bodies);
        assert_eq!(parts.iter().flat_map(|part| part.0.clone()).collect::<Vec<_>>(), changes);
        assert!(parts.iter().all(|part| part.1 == 49));
        // No transaction of three was cut, since each fits.
        assert!(parts[1..].iter().all(|part| part.0[0].seq == Seq::new(0)));
    }

    #[test]
    fn one_transaction_that_is_too_large_is_cut_anywhere() {
        let changes: Vec<_> = (0..40).map(|seq| change(1, seq, 50)).collect();
        let bodies = bodies(SITE, message(changes.clone()), 2000).unwrap();
        assert_eq!(read(&bodies).into_iter().flat_map(|part| part.0).collect::<Vec<_>>(), changes);
    }

    #[test]
    fn a_single_change_beyond_the_limit_is_named() {
        let changes = vec![change(1, 0, 10), change(2, 0, 5000), change(3, 0, 10)];
        match bodies(SITE, message(changes), 2000) {
            Err(TransportError::TooLarge { table, bytes, max: 2000 }) => assert!(table == "todo" && bytes > 5000),
            other => panic!("{other:?}"),
        }
    }
}
