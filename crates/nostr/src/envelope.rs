//! [`Envelope`]: makes the events that two paired peers exchange, and reads them.

use std::borrow::Cow;
use std::time::Duration;

use litemesh_proto::SiteId;
use nostr::{Event, Keys, Kind, PublicKey, Tag, TagKind, Timestamp, UnsignedEvent};

use crate::content::malformed;
use crate::dates;
use crate::nip44v3::into_text;
use crate::nonces::Nonces;
use crate::signer::{Identity, SignerError};
use crate::{
    BuildError, ChainHead, ChangesTags, ConnectReply, ConnectRequest, ConversationKey, CursorContent, Incoming,
    KeyError, Outgoing, ReadError, ReceivedChanges, StreamId,
};

/// Kind of the events by which two peers are paired. Ephemeral: relays pass them on and store nothing.
pub const CONNECT_KIND: Kind = Kind::Custom(24680);

/// Kind of the events by which a receiver asks for a stream. Replaceable: relays keep the newest of each author.
pub const CURSOR_KIND: Kind = Kind::Custom(14680);

/// Kind of the events that carry changes. Regular: relays keep them until they expire.
pub const CHANGES_KIND: Kind = Kind::Custom(4680);

/// The two ends of one pairing: our keys, the other's public key, and the key between them.
///
/// Times are arguments, and seconds since 1970. Relays keep of two replaceable events with the same time the one with the lower
/// id, so a CURSOR that is to replace another needs a later time than that.
///
/// ```
/// use litemesh_nostr::nostr::{Keys, Timestamp};
/// use litemesh_nostr::{CursorContent, Envelope, StreamId};
/// use litemesh_proto::{Cursor, SiteId};
///
/// let (alice, bob) = (Keys::generate(), Keys::generate());
/// let at_alice = Envelope::new(alice.clone(), bob.public_key())?;
/// let at_bob = Envelope::new(bob, alice.public_key())?;
///
/// let site = SiteId::from_bytes([0xB2; 16]);
/// let asked =
///     CursorContent { peer_id: site, stream_id: StreamId::from_bytes([7; 16]), cursor: Cursor::new(), litemesh: None };
/// let event = at_bob.cursor(&asked, Timestamp::now())?;
/// assert_eq!(at_alice.read_cursor(&event, site)?, asked);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Envelope {
    local: Identity,
    remote: PublicKey,
    key: ConversationKey,
    nonces: Nonces,
}

impl Envelope {
    /// Derives the key between both, once for all events.
    ///
    /// A listener does not know the connector before it has a request: its pairing is with the request's author.
    ///
    /// # Errors
    ///
    /// The remote's key is no point of the curve.
    pub fn new(keys: Keys, remote: PublicKey) -> Result<Self, KeyError> {
        let key = ConversationKey::derive(keys.secret_key(), &remote)?;
        Ok(Self { local: keys.into(), remote, key, nonces: Nonces::System })
    }

    /// The same with a key that a [`Signer`](crate::Signer) has.
    pub(crate) fn with(local: Identity, remote: PublicKey) -> Result<Self, SignerError> {
        let key = local.signer.conversation_key(local.key, remote)?;
        Ok(Self { local, remote, key, nonces: Nonces::System })
    }

    /// The same with nonces of a seed.
    #[cfg(feature = "simulation")]
    pub(crate) fn seeded(self, rng: fastrand::Rng) -> Self {
        Self { nonces: Nonces::Seed(std::sync::Arc::new(std::sync::Mutex::new(rng))), ..self }
    }

    /// Our public key: the author of what we make.
    pub fn local(&self) -> PublicKey {
        self.local.key
    }

    /// The remote's public key: the author of what we read.
    pub fn remote(&self) -> PublicKey {
        self.remote
    }

    /// Makes a connector's request, with the nonce of the connection string.
    ///
    /// # Errors
    ///
    /// The content is too long, or there are no random bytes; the same for all that make an event.
    pub fn connect_request(&self, request: &ConnectRequest, nonce: &str, now: Timestamp) -> Result<Event, BuildError> {
        self.finish(Draft::request(request, nonce, now))
    }

    /// Makes a listener's reply.
    ///
    /// # Errors
    ///
    /// See [`connect_request`](Self::connect_request).
    pub fn connect_reply(&self, reply: &ConnectReply, now: Timestamp) -> Result<Event, BuildError> {
        self.finish(Draft::reply(reply, now))
    }

    /// Makes a receiver's request for a stream.
    ///
    /// # Errors
    ///
    /// See [`connect_request`](Self::connect_request). A cursor of more than 20,000 sites is too long.
    pub fn cursor(&self, content: &CursorContent, now: Timestamp) -> Result<Event, BuildError> {
        self.finish(Draft::cursor(content, now))
    }

    /// Makes the next event of a stream: after `previous`, or the first one.
    ///
    /// `author` is our site id. Relays are asked to keep the event for `lifetime`, usually
    /// [`CHANGES_LIFETIME`](crate::CHANGES_LIFETIME). Its time is never before that of the event before it, even where the clock
    /// went back, so that a receiver that asks for what came since then misses nothing.
    ///
    /// # Errors
    ///
    /// See [`connect_request`](Self::connect_request).
    pub fn changes(
        &self,
        author: SiteId,
        content: Outgoing<'_>,
        stream_id: &StreamId,
        previous: Option<ChainHead>,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Event, BuildError> {
        self.finish(Draft::changes(content.plaintext(author), stream_id, previous, lifetime, now))
    }

    /// Reads a connector's request. Whether its secret is right is for the caller to find out
    /// ([`ConnectRequest::has_secret`]).
    ///
    /// # Errors
    ///
    /// The first check that fails, in the order of [`ReadError`].
    pub fn read_connect_request(&self, event: &Event) -> Result<ConnectRequest, ReadError> {
        ConnectRequest::from_json(&self.open_text(event, CONNECT_KIND)?)
    }

    /// Reads a listener's reply.
    ///
    /// # Errors
    ///
    /// The first check that fails, in the order of [`ReadError`].
    pub fn read_connect_reply(&self, event: &Event) -> Result<ConnectReply, ReadError> {
        ConnectReply::from_json(&self.open_text(event, CONNECT_KIND)?)
    }

    /// Reads a receiver's request for a stream. `peer` is the site id that was stored with the pairing.
    ///
    /// # Errors
    ///
    /// The first check that fails, in the order of [`ReadError`].
    pub fn read_cursor(&self, event: &Event, peer: SiteId) -> Result<CursorContent, ReadError> {
        CursorContent::from_json(&self.open_text(event, CURSOR_KIND)?, peer)
    }

    /// Reads an event of a stream. `peer` is the site id that was stored with the pairing.
    ///
    /// # Errors
    ///
    /// The first check that fails, in the order of [`ReadError`].
    pub fn read_changes(&self, event: &Event, peer: SiteId) -> Result<ReceivedChanges, ReadError> {
        self.check(event, CHANGES_KIND)?;
        let tags = ChangesTags::of(event)?;
        let content = Incoming::read(self.key.decrypt(&event.content)?, peer)?;
        Ok(ReceivedChanges { head: ChainHead::of(event), tags, content })
    }

    /// Says again what this event of ours says, which relays have forgotten: as the next one of its stream.
    pub(crate) fn again(
        &self,
        event: &Event,
        previous: ChainHead,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Event, ReadError> {
        let stream_id = ChangesTags::of(event)?.stream_id;
        // The key is the same in both directions.
        let plaintext = vec![self.key.decrypt(&event.content)?.into()];
        let event = self.finish(Draft::changes(plaintext, &stream_id, Some(previous), lifetime, now));
        event.map_err(|error| malformed("CHANGES", error.to_string()))
    }

    fn open_text(&self, event: &Event, kind: Kind) -> Result<String, ReadError> {
        self.check(event, kind)?;
        Ok(into_text(self.key.decrypt(&event.content)?))
    }

    fn check(&self, event: &Event, kind: Kind) -> Result<(), ReadError> {
        if event.kind != kind {
            return Err(ReadError::Kind { expected: kind.as_u16(), got: event.kind.as_u16() });
        }
        if event.pubkey != self.remote {
            return Err(ReadError::Author);
        }
        event.verify().map_err(|_| ReadError::Signature)
    }

    fn finish(&self, draft: Draft<'_>) -> Result<Event, BuildError> {
        let content = self.key.encrypt_with_nonce(&draft.parts(), &self.nonces.next()?)?;
        let event = draft.unsigned(self.local(), content);
        self.local.signer.sign(event).map_err(|SignerError { reason }| BuildError::Sign { reason })
    }
}

/// An event before it is encrypted and signed.
struct Draft<'a> {
    kind: Kind,
    created_at: Timestamp,
    tags: Vec<Tag>,
    /// In parts, so that a megabyte need not be copied to join them.
    plaintext: Vec<Cow<'a, [u8]>>,
}

impl<'a> Draft<'a> {
    fn request(request: &ConnectRequest, nonce: &str, now: Timestamp) -> Self {
        let tags = vec![Tag::custom(TagKind::custom("n"), [nonce])];
        Self { kind: CONNECT_KIND, created_at: now, tags, plaintext: vec![request.to_json().into()] }
    }

    fn reply(reply: &ConnectReply, now: Timestamp) -> Self {
        Self { kind: CONNECT_KIND, created_at: now, tags: Vec::new(), plaintext: vec![reply.to_json().into()] }
    }

    fn cursor(content: &CursorContent, now: Timestamp) -> Self {
        Self { kind: CURSOR_KIND, created_at: now, tags: Vec::new(), plaintext: vec![content.to_json().into()] }
    }

    fn changes(
        plaintext: Vec<Cow<'a, [u8]>>,
        stream_id: &StreamId,
        previous: Option<ChainHead>,
        lifetime: Duration,
        now: Timestamp,
    ) -> Self {
        let tags = ChangesTags {
            stream_id: stream_id.clone(),
            // Of the clock, as in the original, also where the event is dated later.
            expiration: Some(Timestamp::from_secs(now.as_secs().saturating_add(lifetime.as_secs()))),
            previous: previous.map(|previous| previous.id),
        };
        let created_at = dates::of_next(previous.map(|previous| previous.created_at), now);
        Self { kind: CHANGES_KIND, created_at, tags: tags.to_tags(), plaintext }
    }

    fn parts(&self) -> Vec<&[u8]> {
        self.plaintext.iter().map(AsRef::as_ref).collect()
    }

    fn unsigned(self, author: PublicKey, content: String) -> UnsignedEvent {
        UnsignedEvent::new(author, self.created_at, self.kind, self.tags, content)
    }
}

#[cfg(test)]
mod tests;
