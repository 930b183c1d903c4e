//! Every event of `nostr_events.json`, made and read; every event and filter of `nostr_session.json`; what is refused.

use litemesh_proto::{Cursor, DbVersion, Limits, PeerMessage};
use nostr::secp256k1::rand::{CryptoRng, Error as RandError, RngCore};
use nostr::{EventBuilder, EventId, Filter, JsonUtil, SECP256K1};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::batch::JSON_BYTES_MAX;
use crate::{
    Announcement, Batch, CHANGES_LIFETIME, ConnectionString, CursorTerms, DEVICE_INFO_BYTES_MAX, DecryptError,
    FRAMES_BYTES_MAX, filter,
};

/// The vectors are signed with zeros for auxiliary randomness.
struct Zeros;

impl RngCore for Zeros {
    fn next_u32(&mut self) -> u32 {
        0
    }
    fn next_u64(&mut self) -> u64 {
        0
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), RandError> {
        bytes.fill(0);
        Ok(())
    }
}

impl CryptoRng for Zeros {}

const ALICE_SITE: SiteId = SiteId::from_bytes([0xA1; 16]);
const BOB_SITE: SiteId = SiteId::from_bytes([0xB2; 16]);

fn text<'a>(case: &'a Json, name: &str) -> &'a str {
    case[name].as_str().unwrap_or_else(|| panic!("{name} of {case}"))
}

fn keys(vectors: &Json, name: &str) -> Keys {
    let keys = Keys::parse(text(&vectors["keys"][name], "sec")).unwrap();
    assert_eq!(keys.public_key().to_hex(), text(&vectors["keys"][name], "pub"));
    keys
}

/// The same pairing at Alice and at Bob.
/// Ours are those of the vectors.
fn keys_of(envelope: &Envelope) -> Keys {
    let vectors = events_vectors();
    let of = ["alice", "bob"].map(|name| keys(&vectors, name));
    of.into_iter().find(|keys| keys.public_key() == envelope.local()).unwrap()
}

fn pairings(vectors: &Json) -> (Envelope, Envelope) {
    let (alice, bob) = (keys(vectors, "alice"), keys(vectors, "bob"));
    let (alice_public, bob_public) = (alice.public_key(), bob.public_key());
    (Envelope::new(alice, bob_public).unwrap(), Envelope::new(bob, alice_public).unwrap())
}

fn events_vectors() -> Json {
    serde_json::from_str(include_str!("../../tests/vectors/nostr_events.json")).unwrap()
}

fn session_vectors() -> Json {
    serde_json::from_str(include_str!("../../tests/vectors/nostr_session.json")).unwrap()
}

fn event(case: &Json) -> Event {
    Event::from_json(case["event"].to_string()).unwrap()
}

fn changes_of(content: Incoming) -> Batch {
    let Incoming::Message(message) = content else { panic!("frames") };
    match message.verify(&Limits::default()).unwrap() {
        PeerMessage::Changes { changes, schema_version, progress: None } => Batch::new(changes, schema_version),
        other => panic!("{other:?}"),
    }
}

/// Finishes a draft as the vectors were made, to compare all of it, signature included.
fn check_draft(pairing: &Envelope, draft: Draft<'_>, case: &Json) {
    let plaintext = draft.plaintext.concat();
    assert_eq!(String::from_utf8(plaintext).unwrap(), text(case, "plaintext"));
    let nonce = const_hex::decode_to_array(text(case, "nonce")).unwrap();
    let content = pairing.key.encrypt_with_nonce(&draft.parts(), &nonce).unwrap();
    let made =
        draft.unsigned(pairing.local(), content).sign_with_ctx(SECP256K1, &mut Zeros, &keys_of(pairing)).unwrap();
    assert_eq!(serde_json::from_str::<Json>(&made.as_json()).unwrap(), case["event"], "{}", case["name"]);
}

#[test]
fn events_are_made_and_read_as_the_original_does() {
    let vectors = events_vectors();
    let (at_alice, at_bob) = pairings(&vectors);
    assert_eq!(at_alice.key.to_hex(), text(&vectors, "conversation_key_alice_bob"));
    assert_eq!(at_bob.key.to_hex(), text(&vectors, "conversation_key_alice_bob"));
    let [request, reply, cursor, first, second] = vectors["events"].as_array().unwrap().as_slice() else {
        panic!("five events")
    };

    let read = at_alice.read_connect_request(&event(request)).unwrap();
    let expected = ConnectRequest {
        secret: "0123456789abcdef0123456789abcdef".into(),
        peer_id: BOB_SITE,
        device_info: "Firefox 140 on Linux".into(),
        litemesh: None,
    };
    assert_eq!(read, expected);
    assert!(read.has_secret("0123456789abcdef0123456789abcdef") && !read.has_secret("0") && !read.has_secret(""));
    let now = Timestamp::from_secs(1_700_000_000);
    check_draft(&at_bob, Draft::request(&read, "fedcba9876543210fedcba9876543210", now), request);

    let read = at_bob.read_connect_reply(&event(reply)).unwrap();
    let expected = ConnectReply { peer_id: ALICE_SITE, device_info: "Linux 6.1.0 (x64)".into(), litemesh: None };
    assert_eq!(read, expected);
    check_draft(&at_alice, Draft::reply(&read, Timestamp::from_secs(1_700_000_001)), reply);

    let read = at_alice.read_cursor(&event(cursor), BOB_SITE).unwrap();
    let stream_id: StreamId = "5e".repeat(16).parse().unwrap();
    let held: Cursor = [(BOB_SITE, DbVersion::new(3))].into_iter().collect();
    let expected = CursorContent { peer_id: BOB_SITE, stream_id: stream_id.clone(), cursor: held, litemesh: None };
    assert_eq!(read, expected);
    check_draft(&at_bob, Draft::cursor(&read, Timestamp::from_secs(1_700_000_002)), cursor);

    let mut previous = None;
    for (case, count) in [(first, 3), (second, 3)] {
        let received = at_bob.read_changes(&event(case), ALICE_SITE).unwrap();
        assert_eq!(received.tags.stream_id, stream_id);
        assert_eq!(received.tags.previous, previous.map(|head: ChainHead| head.id));
        assert_eq!(received.head, ChainHead::of(&event(case)));
        let batch = changes_of(received.content);
        assert_eq!((batch.changes().len(), batch.schema_version()), (count, 49));

        let expiration = received.tags.expiration.unwrap();
        let now = Timestamp::from_secs(expiration.as_secs() - CHANGES_LIFETIME.as_secs());
        let plaintext = Outgoing::Batch(&batch).plaintext(ALICE_SITE);
        check_draft(&at_alice, Draft::changes(plaintext, &stream_id, previous, CHANGES_LIFETIME, now), case);
        previous = Some(received.head);
    }
}

#[test]
fn a_session_of_two_originals_is_read_from_start_to_end() {
    let vectors = session_vectors();
    let (at_alice, at_bob) = pairings(&vectors);
    assert_eq!(at_alice.key.to_hex(), text(&vectors, "conversation_key"));
    let sites = ["alice", "bob"].map(|name| text(&vectors["keys"][name], "peer_id").parse::<SiteId>().unwrap());
    let offer: ConnectionString = text(&vectors, "connection_string").parse().unwrap();
    assert_eq!(offer.listener().unwrap(), at_alice.local());

    // Stream and head of the chain by author, as the events tell.
    let mut asked: [Option<CursorContent>; 2] = [None, None];
    let mut heads: [Option<ChainHead>; 2] = [None, None];
    let mut merged: [Cursor; 2] = Default::default();
    let mut filters: Vec<Filter> = Vec::new();
    let (mut connects, mut cursors, mut changes) = (0, 0, 0);
    for entry in vectors["relay_traffic"].as_array().unwrap() {
        if let Some(wanted) = entry["REQ"].as_array() {
            filters.extend(wanted.iter().map(|filter| serde_json::from_value::<Filter>(filter.clone()).unwrap()));
            continue;
        }
        let event = event(entry);
        let by_alice = text(entry, "from") == "alice";
        let (author, other) = if by_alice { (0, 1) } else { (1, 0) };
        let (reader, writer) = if by_alice { (&at_bob, &at_alice) } else { (&at_alice, &at_bob) };
        assert_eq!(event.pubkey, writer.local());
        assert_eq!(entry["valid_signature"], true);
        let decrypted = &entry["decrypted"];
        match event.kind.as_u16() {
            24680 if by_alice => {
                let reply = reader.read_connect_reply(&event).unwrap();
                assert_eq!(serde_json::from_slice::<Json>(&reply.to_json()).unwrap(), *decrypted);
                assert_eq!(reply.peer_id, sites[author]);
                assert!(event.tags.is_empty());
                connects += 1;
            }
            24680 => {
                let request = reader.read_connect_request(&event).unwrap();
                assert_eq!(serde_json::from_slice::<Json>(&request.to_json()).unwrap(), *decrypted);
                assert!(request.has_secret(offer.secret()));
                assert_eq!(request.peer_id, sites[author]);
                assert_eq!(entry["event"]["tags"], json!([["n", offer.nonce()]]));
                connects += 1;
            }
            14680 => {
                let content = reader.read_cursor(&event, sites[author]).unwrap();
                assert_eq!(serde_json::from_slice::<Json>(&content.to_json()).unwrap(), *decrypted);
                assert!(event.tags.is_empty());
                asked[author] = Some(content);
                cursors += 1;
            }
            4680 => {
                let received = reader.read_changes(&event, sites[author]).unwrap();
                // Answers the stream that the other one asked for, and goes on at the head of its chain.
                assert_eq!(received.tags.stream_id, asked[other].as_ref().unwrap().stream_id);
                assert_eq!(received.tags.previous, heads[author].map(|head| head.id));
                let lifetime = received.tags.expiration.unwrap().as_secs() - event.created_at.as_secs();
                assert_eq!(lifetime, CHANGES_LIFETIME.as_secs());
                heads[author] = Some(received.head);

                let batch = changes_of(received.content);
                let plaintext = Outgoing::Batch(&batch).plaintext(sites[author]).concat();
                assert_eq!(serde_json::from_slice::<Json>(&plaintext).unwrap(), *decrypted);
                merged[other].update(batch.changes().iter().map(|change| (change.site, change.db_version)));
                changes += 1;
            }
            other => panic!("kind {other}"),
        }
    }
    assert_eq!((connects, cursors, changes), (2, 2, 2));

    // Everything that was asked of the relay is one of our filters, and each of ours was asked for.
    let streams = asked.each_ref().map(|asked| asked.as_ref().unwrap().stream_id.clone());
    let authors = [at_alice.local(), at_bob.local()];
    let mut ours = vec![filter::connect_requests(offer.nonce()), filter::connect_replies(authors[0])];
    for (author, other) in [(0, 1), (1, 0)] {
        ours.push(filter::latest_cursor(authors[author]));
        ours.push(filter::cursors(authors[author]));
        ours.push(filter::changes(authors[author], &streams[other], None));
    }
    assert!(filters.iter().all(|filter| ours.contains(filter)) && ours.iter().all(|filter| filters.contains(filter)));

    // And what both stored at the end is what the events say.
    for (me, other, name) in [(0, 1, "alice"), (1, 0, "bob")] {
        let row = &vectors["nostr_peer_cursors"][name];
        assert_eq!(text(row, "peer_pubkey"), authors[other].to_hex());
        assert_eq!(text(row, "send_cursor_id"), streams[other].as_str());
        assert_eq!(text(row, "recv_cursor_id"), streams[me].as_str());
        for (way, head) in [("send", heads[me].unwrap()), ("recv", heads[other].unwrap())] {
            assert_eq!(text(row, &format!("{way}_changes_event_id")), head.id.to_hex());
            assert_eq!(row[format!("{way}_changes_timestamp")], head.created_at.as_secs());
        }
        let mut held = asked[me].as_ref().unwrap().cursor.clone();
        held.join(&merged[me]);
        let stored = litemesh_proto::codec::v1::deserialize_cursor(text(row, "recv_cursor").as_bytes()).unwrap();
        assert_eq!(stored, held);
    }
}

#[test]
fn what_litemesh_peers_say_to_each_other_comes_back() {
    let (at_alice, at_bob) = pairings(&events_vectors());
    let now = Timestamp::from_secs(1_700_000_000);

    let request = ConnectRequest {
        secret: "s".into(),
        peer_id: BOB_SITE,
        device_info: "\"Gerät\"\n".into(),
        litemesh: Some(Announcement::OURS),
    };
    assert!(String::from_utf8(request.to_json()).unwrap().ends_with(r#","litemesh":{"version":2}}"#));
    let made = at_bob.connect_request(&request, "nonce", now).unwrap();
    assert_eq!(at_alice.read_connect_request(&made).unwrap(), request);

    let reply = ConnectReply { peer_id: ALICE_SITE, device_info: String::new(), litemesh: Some(Announcement::OURS) };
    assert!(reply.litemesh.is_some_and(Announcement::speaks_ours));
    assert!(!Announcement { version: 1 }.speaks_ours());
    assert_eq!(at_bob.read_connect_reply(&at_alice.connect_reply(&reply, now).unwrap()).unwrap(), reply);

    let stream_id = StreamId::from_bytes([7; 16]);
    for sync in [None, Some(vec![2, 0, 255])] {
        let litemesh = Some(CursorTerms { version: 2, sync, ack: None });
        let content =
            CursorContent { peer_id: BOB_SITE, stream_id: stream_id.clone(), cursor: Cursor::new(), litemesh };
        assert_eq!(at_alice.read_cursor(&at_bob.cursor(&content, now).unwrap(), BOB_SITE).unwrap(), content);
    }

    for frames in [vec![0; FRAMES_BYTES_MAX], vec![1, 2, 3], Vec::new()] {
        let made =
            at_alice.changes(ALICE_SITE, Outgoing::Frames(&frames), &stream_id, None, CHANGES_LIFETIME, now).unwrap();
        match at_bob.read_changes(&made, ALICE_SITE).unwrap().content {
            Incoming::Frames(read) => assert_eq!(read, frames),
            Incoming::Message(message) => panic!("{message:?}"),
        }
        assert!(matches!(at_bob.read_changes(&made, BOB_SITE), Err(ReadError::Peer { got: ALICE_SITE, .. })));
    }
    let too_long = vec![0; FRAMES_BYTES_MAX + 1];
    let made = at_alice.changes(ALICE_SITE, Outgoing::Frames(&too_long), &stream_id, None, CHANGES_LIFETIME, now);
    assert!(matches!(made, Err(BuildError::Encrypt(_))));
}

/// A receiver asks for what came since the last event, so an event must not be dated before that.
#[test]
fn a_stream_never_goes_back_in_time() {
    let (at_alice, at_bob) = pairings(&events_vectors());
    let (batch, stream_id) = (Batch::new(Vec::new(), 1), StreamId::from_bytes([7; 16]));
    let make = |previous, now| {
        let now = Timestamp::from_secs(now);
        at_alice.changes(ALICE_SITE, Outgoing::Batch(&batch), &stream_id, previous, CHANGES_LIFETIME, now).unwrap()
    };
    let first = make(None, 1000);
    let second = make(Some(ChainHead::of(&first)), 900);
    let third = make(Some(ChainHead::of(&second)), 1001);
    assert_eq!([&first, &second, &third].map(|event| event.created_at.as_secs()), [1000, 1000, 1001]);

    let read = at_bob.read_changes(&second, ALICE_SITE).unwrap();
    assert_eq!(read.tags.expiration, Some(Timestamp::from_secs(900 + CHANGES_LIFETIME.as_secs())));
    assert_eq!(at_bob.read_changes(&third, ALICE_SITE).unwrap().tags.previous, Some(second.id));
    let names: Vec<&str> = third.tags.iter().map(|tag| tag.as_slice()[0].as_str()).collect();
    assert_eq!(names, ["r", "expiration", "e"]);
}

#[test]
fn the_longest_batch_fits_its_event() {
    let (at_alice, at_bob) = pairings(&events_vectors());
    let first = event(&events_vectors()["events"][3]);
    let mut change = changes_of(at_bob.read_changes(&first, ALICE_SITE).unwrap().content).changes()[0].clone();
    change.value = "".into();
    let rest = JSON_BYTES_MAX - Batch::new(vec![change.clone()], 0).json().len();
    change.value = "x".repeat(rest).as_str().into();

    let stream_id = StreamId::from_bytes([7; 16]);
    for schema_version in [i64::MIN, i64::MAX] {
        let batch = Batch::new(vec![change.clone()], schema_version);
        assert_eq!(Batch::cut(vec![change.clone(); 2], schema_version), vec![batch.clone(); 2]);
        let content = Outgoing::Batch(&batch);
        let now = Timestamp::from_secs(0);
        let made = at_alice.changes(ALICE_SITE, content, &stream_id, None, CHANGES_LIFETIME, now).unwrap();
        let read = changes_of(at_bob.read_changes(&made, ALICE_SITE).unwrap().content);
        assert_eq!(read.changes(), batch.changes());
    }
}

/// Signs whatever is wanted, as a remote might.
fn sign(keys: &Keys, kind: Kind, content: String, tags: Vec<Tag>) -> Event {
    EventBuilder::new(kind, content).tags(tags).sign_with_keys(keys).unwrap()
}

#[test]
fn events_of_others_and_events_made_up_are_refused() {
    let vectors = events_vectors();
    let (at_alice, at_bob) = pairings(&vectors);
    let cases = vectors["events"].as_array().unwrap();
    let (request, cursor, first) = (event(&cases[0]), event(&cases[2]), event(&cases[3]));

    let refused = at_alice.read_cursor(&request, BOB_SITE).unwrap_err();
    assert_eq!(refused, ReadError::Kind { expected: 14680, got: 24680 });
    assert_eq!(at_bob.read_cursor(&cursor, BOB_SITE), Err(ReadError::Author));
    let refused = at_alice.read_cursor(&cursor, ALICE_SITE).unwrap_err();
    assert_eq!(refused, ReadError::Peer { expected: ALICE_SITE, got: BOB_SITE });
    assert!(matches!(at_bob.read_changes(&first, BOB_SITE), Err(ReadError::Peer { .. })));

    // A relay that changes anything is found out.
    let mut later = cursor.clone();
    later.created_at = Timestamp::from_secs(1_800_000_000);
    assert_eq!(at_alice.read_cursor(&later, BOB_SITE), Err(ReadError::Signature));
    later.id = EventId::new(&later.pubkey, &later.created_at, &later.kind, &later.tags, &later.content);
    assert_eq!(at_alice.read_cursor(&later, BOB_SITE), Err(ReadError::Signature));

    // By Bob, but for Carol.
    let carol = Envelope::new(keys_of(&at_bob), keys(&vectors, "carol").public_key()).unwrap();
    let content = at_alice.read_cursor(&cursor, BOB_SITE).unwrap();
    let for_carol = carol.cursor(&content, Timestamp::from_secs(0)).unwrap();
    assert_eq!(at_alice.read_cursor(&for_carol, BOB_SITE), Err(ReadError::Decrypt(DecryptError::Mac)));

    assert!(Envelope::new(keys_of(&at_alice), PublicKey::from_byte_array([0xFF; 32])).is_err());
}

#[test]
fn content_of_another_form_is_refused_without_quoting_it() {
    let (at_alice, at_bob) = pairings(&events_vectors());
    let make = |kind, plaintext: &str, tags: Vec<Tag>| {
        sign(&keys_of(&at_bob), kind, at_bob.key.encrypt(plaintext.as_bytes()).unwrap(), tags)
    };
    let site = BOB_SITE.to_string();

    let request = |plaintext: String| at_alice.read_connect_request(&make(CONNECT_KIND, &plaintext, Vec::new()));
    let refused = request(r#"{"secret":{"hidden":1},"peer_id":"hidden"}"#.into()).unwrap_err().to_string();
    assert!(refused.starts_with("the content is no CONNECT request: ") && !refused.contains("hidden"), "{refused}");
    for wrong in ["null", "[]", "{", "", r#"{"secret":"s"}"#, r#"{"secret":"s","peer_id":"b2"}"#] {
        if !wrong.is_empty() {
            assert!(matches!(request(wrong.into()), Err(ReadError::Malformed { .. })), "{wrong}");
        }
    }
    let long = "x".repeat(DEVICE_INFO_BYTES_MAX + 1);
    let refused = request(json!({"secret": "s", "peer_id": site, "device_info": long}).to_string());
    assert!(matches!(refused, Err(ReadError::Malformed { .. })));
    // Keys that are not known are no error, nor is one that is missing and not needed.
    let read =
        request(json!({"new": [1], "secret": "s", "peer_id": site, "litemesh": {"version": 9, "more": 1}}).to_string());
    let expected = ConnectRequest {
        secret: "s".into(),
        peer_id: BOB_SITE,
        device_info: String::new(),
        litemesh: Some(Announcement { version: 9 }),
    };
    assert_eq!(read.unwrap(), expected);
    assert_eq!(
        format!("{expected:?}"),
        "ConnectRequest { peer_id: b2b2b2b2, device_info: \"\", litemesh: Some(Announcement { version: 9 }), .. }"
    );

    let reply = |plaintext: &str| at_alice.read_connect_reply(&make(CONNECT_KIND, plaintext, Vec::new()));
    assert_eq!(reply(r#"{"success":false}"#), Err(ReadError::Rejected));
    assert!(matches!(reply(r#"{"peer_id":"b2"}"#), Err(ReadError::Malformed { .. })));

    let cursor =
        |plaintext: Json| at_alice.read_cursor(&make(CURSOR_KIND, &plaintext.to_string(), Vec::new()), BOB_SITE);
    let peers = json!({"peers": {}});
    assert!(cursor(json!({"peer_id": site, "stream_id": "s", "cursor": peers, "new": {}})).is_ok());
    assert!(matches!(
        cursor(json!({"peer_id": site, "stream_id": "", "cursor": peers})),
        Err(ReadError::Malformed { .. })
    ));
    assert!(matches!(cursor(json!({"peer_id": site, "stream_id": "s", "cursor": 1})), Err(ReadError::Content(_))));
    let sync = json!({"version": 2, "sync": "no base64"});
    let refused = cursor(json!({"peer_id": site, "stream_id": "s", "cursor": peers, "litemesh": sync}));
    assert!(matches!(refused, Err(ReadError::Malformed { .. })));

    let r = || Tag::custom(TagKind::custom("r"), ["stream"]);
    let changes = |plaintext: &str, tags| at_alice.read_changes(&make(CHANGES_KIND, plaintext, tags), BOB_SITE);
    let good = json!({"peer_id": site, "msg": {"type": "changes", "data": [], "new": 1}, "new": 1}).to_string();
    assert_eq!(changes_of(changes(&good, vec![r()]).unwrap().content), Batch::new(Vec::new(), 0));
    assert_eq!(changes_of(changes(&format!("\u{FEFF}{good}"), vec![r()]).unwrap().content), Batch::new(Vec::new(), 0));
    let tag = |name, values: &[&str]| Tag::custom(TagKind::custom(name), values.iter().copied());
    for (tags, wrong) in [
        (vec![], "r"),
        (vec![tag("r", &[])], "r"),
        (vec![tag("r", &[&"x".repeat(65)])], "r"),
        (vec![r(), tag("e", &["abc"])], "e"),
    ] {
        assert_eq!(changes(&good, tags).unwrap_err(), ReadError::Tag { tag: wrong });
    }
    let received = changes(&good, vec![r(), tag("expiration", &["soon"]), tag("e", &[])]).unwrap();
    assert_eq!((received.tags.expiration, received.tags.previous), (None, None));
    let no_message = json!({"peer_id": site, "msg": {"type": "changes"}}).to_string();
    assert!(matches!(changes(&no_message, vec![r()]), Err(ReadError::Content(_))));
    // A change that breaks a rule is no error here: the peer says which.
    let bad_change = json!({"peer_id": site, "msg": {"type": "changes", "data": [{}]}}).to_string();
    match changes(&bad_change, vec![r()]).unwrap().content {
        Incoming::Message(message) => assert!(message.verify(&Limits::default()).is_err()),
        Incoming::Frames(frames) => panic!("{frames:?}"),
    }
    assert!(matches!(changes("\u{2}short", vec![r()]), Err(ReadError::Malformed { .. })));
}

#[test]
fn debug_shows_no_secret() {
    let (at_alice, _) = pairings(&events_vectors());
    let shown = format!("{at_alice:?}");
    assert!(
        !shown.contains(&keys_of(&at_alice).secret_key().to_secret_hex()) && !shown.contains(&at_alice.key.to_hex())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a paired peer encrypts and signs, with whatever tags.
    #[test]
    fn any_content_is_read_or_refused(
        kind in prop::sample::select(vec![CONNECT_KIND, CURSOR_KIND, CHANGES_KIND]),
        plaintext in prop_oneof![
            prop::collection::vec(any::<u8>(), 1..100),
            "\\{\"(secret|peer_id|stream_id|cursor|msg)\":[\\[{\"0-9a-z:}\\]]{0,20}\\}".prop_map(String::into_bytes),
        ],
        tags in prop::collection::vec(prop::collection::vec("r|e|n|expiration|[0-9a-f]{0,70}|.{0,5}", 1..4), 0..5),
    ) {
        let (at_alice, at_bob) = pairings(&events_vectors());
        let tags = tags.into_iter().map(|tag| Tag::parse(tag).unwrap()).collect();
        let event = sign(&keys_of(&at_bob), kind, at_bob.key.encrypt(&plaintext).unwrap(), tags);
        // Read as each kind of content, and none of them may panic.
        let _ = at_alice.read_connect_request(&event);
        let _ = at_alice.read_connect_reply(&event);
        let _ = at_alice.read_cursor(&event, BOB_SITE);
        let _ = at_alice.read_changes(&event, BOB_SITE);
    }

    /// Whatever stands in an event that a relay sends.
    #[test]
    fn any_event_is_read_or_refused(content in ".{0,200}", created_at: u64) {
        let (at_alice, at_bob) = pairings(&events_vectors());
        let event = EventBuilder::new(CHANGES_KIND, content)
            .custom_created_at(Timestamp::from_secs(created_at))
            .tag(Tag::custom(TagKind::custom("r"), ["stream"]))
            .sign_with_keys(&keys_of(&at_bob))
            .unwrap();
        prop_assert!(matches!(at_alice.read_changes(&event, BOB_SITE), Err(ReadError::Decrypt(_))));
    }

    #[test]
    fn any_frames_come_back(frames in prop::collection::vec(any::<u8>(), 0..2000), site: [u8; 16]) {
        let (at_alice, at_bob) = pairings(&events_vectors());
        let (site, stream_id) = (SiteId::from_bytes(site), StreamId::from_bytes([7; 16]));
        let now = Timestamp::from_secs(0);
        let made =
            at_alice.changes(site, Outgoing::Frames(&frames), &stream_id, None, CHANGES_LIFETIME, now).unwrap();
        let received = at_bob.read_changes(&made, site).unwrap();
        prop_assert!(matches!(received.content, Incoming::Frames(read) if read == frames));
    }
}
