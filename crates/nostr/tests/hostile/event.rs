//! Any content and any tags of events that a paired peer has encrypted and signed, and any JSON as an event of a relay.

use std::sync::LazyLock;

use litemesh_nostr::nostr::{Event, JsonUtil, Keys, Kind, Tag, Timestamp, UnsignedEvent};
use litemesh_nostr::{
    Batch, CHANGES_KIND, CHANGES_LIFETIME, CONNECT_KIND, CURSOR_KIND, ChainHead, ConversationKey,
    DEVICE_INFO_BYTES_MAX, Envelope, Incoming, Outgoing, ReadError, StreamId,
};
use litemesh_proto::limits::ERROR_BYTES_MAX;
use litemesh_proto::{Limits, PeerMessage, SiteId};
use serde_json::Value as Json;

use crate::memory::peak_of;

/// Bytes of memory for each byte of a plaintext and of tags, beside those for its JSON (`crates/proto/tests/json/hostile.rs`): of what is no UTF-8
/// three are made, and the content is decoded and hashed.
const MEMORY_PER_BYTE: usize = 60;
const MEMORY_ELSE: usize = 16 * 1024;

const THEN: Timestamp = Timestamp::from_secs(1_700_000_000);
const BOB_SITE: SiteId = SiteId::from_bytes([0xB2; 16]);
const OTHER_SITE: SiteId = SiteId::from_bytes([0x0F; 16]);

/// Two who are paired, with the keys of the vectors.
struct Pair {
    alice: Envelope,
    bob: Envelope,
    bob_keys: Keys,
    key: ConversationKey,
}

static PAIR: LazyLock<Pair> = LazyLock::new(|| {
    let keys = |secret: &str| Keys::parse(secret).expect("a key");
    let alice = keys("94bc3abde26d338150c2b0f1aaa9f1e0c56c3374f0dd4c3ef3eb2c8703c9424e");
    let bob_keys = keys("83250dc8bea8d65ecf95e1c3048c838e8f48766bc42f583fc57b0945bfbd83eb");
    let key = ConversationKey::derive(alice.secret_key(), &bob_keys.public_key()).expect("a key");
    let bob = Envelope::new(bob_keys.clone(), alice.public_key()).expect("a key");
    let alice = Envelope::new(alice, bob_keys.public_key()).expect("a key");
    Pair { alice, bob, bob_keys, key }
});

/// The first byte says of which kind the event is, the lines up to an empty one are its tags, with `=` between their fields, and the rest
/// is what is encrypted. And all of it as the JSON of an event.
///
/// What is read within memory is what stands there, and is written and read the same; what is refused is refused in few words.
pub(crate) fn check(bytes: &[u8]) {
    check_json(bytes);
    let Some((kind, rest)) = bytes.split_first() else { return };
    let end = rest.windows(2).position(|two| two == b"\n\n").unwrap_or(rest.len());
    let (tags, plaintext) = (&rest[..end], rest.get(end + 2..).unwrap_or_default());
    let Ok(content) = PAIR.key.encrypt(plaintext) else { return assert!(plaintext.is_empty()) };
    let fields = tags.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(String::from_utf8_lossy);
    let tags: Vec<Tag> = fields.map(|line| Tag::parse(line.split('=')).expect("it has a name")).collect();
    let event = |kind: Kind| {
        let event = UnsignedEvent::new(PAIR.bob.local(), THEN, kind, tags, content);
        event.sign_with_keys(&PAIR.bob_keys).expect("a key that signs")
    };
    match kind % 3 {
        0 => check_connect(&event(CONNECT_KIND), plaintext),
        1 => check_cursor(&event(CURSOR_KIND), plaintext),
        _ => check_changes(&event(CHANGES_KIND), plaintext),
    }
}

fn check_connect(event: &Event, plaintext: &[u8]) {
    let json = serde_json::from_slice::<Json>(plaintext).unwrap_or_default();
    let is_site = |site: SiteId| json.is_null() || json["peer_id"].as_str().map(str::parse) == Some(Ok(site));
    if let Some(request) = read(event, plaintext, || PAIR.alice.read_connect_request(event)) {
        assert!(request.device_info.len() <= DEVICE_INFO_BYTES_MAX && is_site(request.peer_id));
        assert!(json.is_null() || json["secret"].as_str() == Some(&request.secret));
        assert!(request.has_secret(&request.secret.clone()) && !request.has_secret(&format!("{}x", request.secret)));
        let again = PAIR.bob.connect_request(&request, "nonce", THEN).expect("as long as it was");
        assert_eq!(PAIR.alice.read_connect_request(&again), Ok(request));
    }
    if let Some(reply) = read(event, plaintext, || PAIR.alice.read_connect_reply(event)) {
        assert!(reply.device_info.len() <= DEVICE_INFO_BYTES_MAX && is_site(reply.peer_id));
        assert!(json.is_null() || json["success"] == true);
        let again = PAIR.bob.connect_reply(&reply, THEN).expect("as long as it was");
        assert_eq!(PAIR.alice.read_connect_reply(&again), Ok(reply));
    }
}

fn check_cursor(event: &Event, plaintext: &[u8]) {
    let Some(asked) = read(event, plaintext, || PAIR.alice.read_cursor(event, BOB_SITE)) else { return };
    assert_eq!(asked.peer_id, BOB_SITE);
    assert!((1..=StreamId::BYTES_MAX).contains(&asked.stream_id.as_str().len()));
    let by_other = ReadError::Peer { expected: OTHER_SITE, got: BOB_SITE };
    assert_eq!(PAIR.alice.read_cursor(event, OTHER_SITE), Err(by_other));
    let again = PAIR.bob.cursor(&asked, THEN).expect("as long as it was");
    assert_eq!(PAIR.alice.read_cursor(&again, BOB_SITE), Ok(asked));
}

fn check_changes(event: &Event, plaintext: &[u8]) {
    let Some(changes) = read(event, plaintext, || PAIR.alice.read_changes(event, BOB_SITE)) else { return };
    assert_eq!(changes.head, ChainHead::of(event));
    let other = PAIR.alice.read_changes(event, OTHER_SITE).map(|changes| changes.tags);
    assert_eq!(other, Err(ReadError::Peer { expected: OTHER_SITE, got: BOB_SITE }));
    let tags = changes.tags;
    assert!((1..=StreamId::BYTES_MAX).contains(&tags.stream_id.as_str().len()));
    let again = |content: Outgoing<'_>| {
        // Of a clock that goes ahead of ours.
        let previous = tags.previous.map(|id| ChainHead { id, created_at: THEN + 7_u64 });
        let event = PAIR.bob.changes(BOB_SITE, content, &tags.stream_id, previous, CHANGES_LIFETIME, THEN);
        let event = event.expect("as long as it was");
        assert_eq!(event.created_at, if tags.previous.is_some() { THEN + 7_u64 } else { THEN });
        let changes = PAIR.alice.read_changes(&event, BOB_SITE).expect("of ours");
        assert_eq!((&changes.tags.stream_id, changes.tags.previous), (&tags.stream_id, tags.previous));
        changes.content
    };
    match changes.content {
        Incoming::Frames(frames) => {
            assert_eq!(plaintext, [&[2], BOB_SITE.as_bytes().as_slice(), &frames].concat());
            assert!(matches!(again(Outgoing::Frames(&frames)), Incoming::Frames(read) if read == frames));
        }
        Incoming::Message(message) => match message.verify(&Limits::default()) {
            Ok(PeerMessage::Changes { changes, schema_version, progress }) => {
                assert_eq!(progress, None);
                let batch = Batch::new(changes, schema_version);
                let Incoming::Message(message) = again(Outgoing::Batch(&batch)) else { panic!("frames") };
                let Ok(PeerMessage::Changes { changes, schema_version, .. }) = message.verify(&Limits::default())
                else {
                    panic!("something else")
                };
                assert_eq!((changes.as_slice(), schema_version), (batch.changes(), batch.schema_version()));
            }
            Ok(_) => {}
            Err(error) => assert!(error.to_string().len() <= ERROR_BYTES_MAX, "{error}"),
        },
    }
}

/// What is read, within memory; or why it is not, which goes to logs: in few words, and nothing that stands before the content.
fn read<T>(event: &Event, plaintext: &[u8], read: impl FnOnce() -> Result<T, ReadError>) -> Option<T> {
    let (read, memory) = peak_of(read);
    let length = plaintext.len() + event.tags.iter().flat_map(Tag::as_slice).map(String::len).sum::<usize>();
    assert!(memory <= length * MEMORY_PER_BYTE + MEMORY_ELSE, "{memory} bytes of memory for {length}");
    match read {
        Ok(read) => Some(read),
        Err(error) => {
            assert!(error.to_string().len() <= 200, "{error}");
            let is_before = |error: &ReadError| {
                matches!(
                    error,
                    ReadError::Kind { .. } | ReadError::Author | ReadError::Signature | ReadError::Decrypt(_)
                )
            };
            assert!(!is_before(&error), "{error}");
            None
        }
    }
}

/// A relay makes up nothing.
fn check_json(bytes: &[u8]) {
    let Ok(event) = Event::from_json(bytes) else { return };
    let is_signed = event.verify().is_ok();
    let mut later = event.clone();
    later.created_at = later.created_at + 1_u64;
    for (reader, author) in [(&PAIR.alice, &PAIR.bob), (&PAIR.bob, &PAIR.alice)] {
        for (event, is_signed) in [(&event, is_signed), (&later, false)] {
            let read = [
                reader.read_connect_request(event).err(),
                reader.read_connect_reply(event).err(),
                reader.read_cursor(event, BOB_SITE).err(),
                reader.read_changes(event, BOB_SITE).err(),
            ];
            for error in read {
                match error {
                    None => assert!(is_signed && event.pubkey == author.local()),
                    Some(error) => assert!(error.to_string().len() <= 200, "{error}"),
                }
            }
        }
    }
}
