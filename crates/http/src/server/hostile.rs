//! Any bytes as what a client sends: the bodies of the fuzz targets `request` and `tokens`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // to panic is what they are for

use std::io::Write;
use std::sync::Arc;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use litemesh_proto::codec::v1::Envelope;
use litemesh_proto::codec::v2;
use litemesh_proto::{Access, Limits, Rights, SiteId};

use super::door::{Denial, Door, Grant};
use super::post::{self, Route};
use super::sender::{Sender, sender};
use super::stream::{self, INSTANCE_BYTES_MAX, Parameters, Wish};
use crate::form::{StreamForm, event_id, position_of_id};
use crate::gzip::{BodyBuffer, BodyError};
use crate::tokens::{TokenFile, TokenSet, hash};

/// What a body may hold here.
const BODY_BYTES_MAX: usize = 4096;

/// The first line is a query, the lines up to an empty one are headers, and the rest is a body.
///
/// What is understood is what stands there, what is not is refused with a reason, and what is held is bounded.
pub fn request(bytes: &[u8]) {
    let end = memchr::memmem::find(bytes, b"\n\n").unwrap_or(bytes.len());
    let (head, body) = (&bytes[..end], bytes.get(end + 2..).unwrap_or_default());
    let mut lines = head.split(|byte| *byte == b'\n');
    let query = lines.next().unwrap_or_default();
    let headers: HeaderMap = lines.filter_map(header).collect();
    check_query(query);
    check_stream(&headers);
    match post::check_head(&headers) {
        Ok(_) => {}
        Err(complaint) => assert_refused(complaint.answer(Route::Data).status()),
    }
    check_sender(body);
    for route in [Route::Sync, Route::Data] {
        check_message(route, body);
    }
    check_frames(body);
    // Setting up compression takes longer than all of the above.
    if body.len() % 16 == 0 {
        check_buffer(body);
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let at = memchr::memchr(b':', line)?;
    let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?;
    Some((HeaderName::from_bytes(&line[..at]).ok()?, value))
}

fn assert_refused(status: StatusCode) {
    assert!(status.is_client_error() || status == StatusCode::INTERNAL_SERVER_ERROR, "{status}");
}

fn check_query(query: &[u8]) {
    let Ok(uri) = Uri::try_from([b"/stream?", query].concat()) else { return };
    let parameters = Parameters::read(&uri);
    let ids: Vec<&str> = parameters.all("peerId").collect();
    match stream::peer_id(&parameters) {
        Ok(site) => assert!(matches!(ids[..], [id] if id.to_ascii_lowercase() == site.to_string()), "{ids:?}"),
        Err(bad) => {
            assert!(ids.len() != 1 || ids[0].parse::<SiteId>().is_err(), "{ids:?}");
            assert_eq!(bad.answer().status(), StatusCode::BAD_REQUEST);
        }
    }
}

fn check_stream(headers: &HeaderMap) {
    let door = Door::new(Some(Access::FULL), None);
    let grant = door.identify(headers).expect("the door is open");
    let wish = Wish::read(SiteId::default(), grant, headers);
    assert!(wish.instance.is_none_or(|instance| instance.len() <= INSTANCE_BYTES_MAX));
    assert!(!wish.is_gzip || wish.form != StreamForm::Frames);
    let id = headers.get(stream::LAST_EVENT_ID).and_then(|id| id.to_str().ok());
    let position = id.and_then(position_of_id);
    if let Some(position) = position {
        assert!(position.version.get() >= 0);
        assert_eq!(position_of_id(&event_id(position)), Some(position));
    }
    let asked = wish.resume.map(|request| request.terms.expect("of a Litemesh peer").position);
    assert_eq!(asked, position.filter(|_| wish.form == StreamForm::Events));
}

/// More bytes change no verdict, and the verdict is that of the whole body.
fn check_sender(body: &[u8]) {
    let whole = sender(body);
    let step = 1 + body.len() / 200;
    for cut in (0..body.len()).step_by(step) {
        let early = sender(&body[..cut]);
        assert!(early == Sender::NotYet || early == whole, "{early:?} at {cut}, {whole:?} in the end");
    }
    // A key with escapes or one that comes twice may name another: then the body is of neither (`Post::handle`).
    let names = memchr::memmem::find_iter(body, b"peerId").count();
    if let (Sender::Known(site), Ok(envelope)) = (whole, Envelope::parse(body))
        && names == 1
        && memchr::memchr(b'\\', body).is_none()
    {
        assert_eq!(envelope.peer_id().and_then(|id| id.parse().ok()), Some(site));
    }
}

fn check_message(route: Route, body: &[u8]) {
    match post::read_message(route, body) {
        Ok(message) => {
            let envelope = Envelope::parse(body).expect("it was read");
            assert_eq!(envelope.peer_id(), Some(&*message.peer_id));
            let (content, is_there) = match route {
                Route::Sync => ("sync", envelope.has_cursor()),
                Route::Data => ("data", envelope.has_data()),
            };
            assert!(envelope.kind() == content && is_there);
            if let Err(error) = message.content {
                assert!(error.to_string().len() <= 200, "{error}");
            }
        }
        Err(complaint) => assert_refused(complaint.answer(route).status()),
    }
}

/// Frames put together again are the body that they came from.
fn check_frames(body: &[u8]) {
    let limits = Limits { message_bytes_max: 1000, ..Limits::default() };
    let mut rest = Bytes::copy_from_slice(body);
    let mut together = Vec::new();
    loop {
        match post::split_frame(&mut rest, &limits) {
            Ok(Some(frame)) => {
                assert!(frame.len() <= limits.message_bytes_max);
                together.extend(v2::framed(&frame));
            }
            Ok(None) => return assert_eq!(together, body),
            Err(reason) => {
                assert!(reason.len() <= 200 && !rest.is_empty(), "{reason}");
                return assert!(body.starts_with(&together));
            }
        }
    }
}

/// A body is taken up to its limit, compressed or not, in any pieces.
fn check_buffer(body: &[u8]) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).expect("memory");
    let encoded = encoder.finish().expect("memory");
    let bytes_max = BODY_BYTES_MAX.min(body.len() + 10);
    let expected = if body.len() <= bytes_max { Ok(body.to_vec()) } else { Err(BodyError::TooLarge) };
    assert_eq!(collect(&encoded, true, bytes_max), expected);
    assert_eq!(collect(body, false, bytes_max), expected);
    assert_eq!(collect(body, false, body.len().saturating_sub(1)).is_ok(), body.is_empty());
    // As it came, it is most likely no gzip.
    if let Ok(decoded) = collect(body, true, bytes_max) {
        assert!(decoded.len() <= bytes_max);
    }
}

fn collect(bytes: &[u8], is_gzip: bool, bytes_max: usize) -> Result<Vec<u8>, BodyError> {
    let mut buffer = BodyBuffer::new(is_gzip, bytes_max);
    for piece in bytes.chunks(7) {
        buffer.push(piece)?;
        assert!(buffer.bytes().len() <= bytes_max);
    }
    buffer.finish()
}

/// Up to the first zero byte what is shown as a token, after it a file of tokens.
///
/// Nothing but a token itself opens the door, once it is in the file and until it is revoked; nothing but a ticket itself does,
/// and only once.
pub fn tokens(bytes: &[u8]) {
    let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    let (shown, file) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let shown_text = String::from_utf8_lossy(shown);

    // A token that nobody could have guessed, at the end of the file.
    let id = const_hex::encode(&hash(&shown_text)[..8]);
    let token = format!("litemesh_{id}_{}", const_hex::encode(hash(&id)));
    let sha256 = const_hex::encode(hash(&token));
    let line = format!(r#"{{"id":"{id}","name":"x","rights":"read","sha256":"{sha256}"}}"#);
    let with_token = [file, b"\n", line.as_bytes()].concat();
    let revoked = [&with_token, format!("\n{{\"revoke\":\"{id}\"}}").as_bytes()].concat();

    let set = match TokenSet::parse(file) {
        Ok(set) => set,
        Err((number, reason)) => {
            // Nothing of a wrong file counts, whatever stands before or after.
            assert!(number <= 1 + memchr::memchr_iter(b'\n', file).count() && reason.len() <= 200, "{number} {reason}");
            assert!(TokenSet::parse(&with_token).is_err());
            return;
        }
    };
    assert_eq!(set.find(&token), None);
    check_known(&set, &shown_text, file);
    let twice = TokenSet::parse(&[file, b"\n", file].concat()).expect("twice as right");
    check_known(&twice, &shown_text, file);
    let set = TokenSet::parse(&with_token).expect("what was right, and a token");
    assert_eq!(set.find(&token), Some((id.as_str().into(), Access::new(Rights::Read))));
    for almost in almost(&token, &shown_text) {
        assert!(set.find(&almost).is_none_or(|(found, _)| *found != *id), "{almost}");
        check_known(&set, &almost, file);
    }
    assert_eq!(TokenSet::parse(&revoked).expect("and a revocation").find(&token), None);
    check_door(set, &token, shown, file);
}

/// A token that is found has its hash in the file.
fn check_known(set: &TokenSet, shown: &str, file: &[u8]) {
    if set.find(shown).is_some() {
        let digest = const_hex::encode(hash(shown));
        assert!(String::from_utf8_lossy(file).to_ascii_lowercase().contains(&digest), "{shown}");
    }
}

/// A token with something added, replaced or left out.
fn almost(token: &str, shown: &str) -> impl Iterator<Item = String> {
    let at = shown.len() % token.len();
    let (head, tail) = token.split_at(at);
    let added = [format!("{shown}{token}"), format!("{token}{shown}"), format!("{head}{shown}{tail}")];
    let others = [head.to_owned(), tail.to_owned(), format!("{head}{shown}"), token.to_uppercase(), shown.to_owned()];
    let token = token.to_owned();
    added.into_iter().chain(others).filter(move |almost| *almost != token)
}

fn check_door(set: TokenSet, token: &str, shown: &[u8], file: &[u8]) {
    let is_of_file = |token: &str| TokenSet::parse(file).is_ok_and(|set| set.find(token).is_some());
    let set = Arc::new(set);
    let tokens = || Some((TokenFile::new("tokens"), set.clone()));
    let closed = Door::new(None, tokens());
    let open = Door::new(Some(Access::FULL), tokens());
    let with = |value: &[u8]| -> HeaderMap {
        HeaderValue::from_bytes(value).ok().map(|value| (AUTHORIZATION, value)).into_iter().collect()
    };
    for value in [shown.to_vec(), [b"Bearer ", shown].concat(), [shown, token.as_bytes()].concat()] {
        let headers = with(&value);
        let text = String::from_utf8_lossy(&value);
        let is_bearer = text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("Bearer "));
        let bare = text.get(7..).unwrap_or_default().trim();
        match closed.identify(&headers) {
            Ok(_) => assert!(is_bearer && (bare == token || is_of_file(bare)), "{text}"),
            // A wrong token is not taken for none, also where none is needed.
            Err(Denial::BadToken) => {
                assert!(is_bearer);
                assert_eq!(open.identify(&headers), Err(Denial::BadToken));
            }
            Err(denial) => {
                assert_eq!(denial, Denial::NoToken);
                assert_eq!(open.identify(&headers).map(|grant| grant.access), Ok(Access::FULL));
            }
        }
    }
    let grant = closed.identify(&with(format!("bearer  {token} ").as_bytes())).expect("the token itself");
    assert_eq!(grant.access, Access::new(Rights::Read));
    check_ticket(&closed, &grant, &String::from_utf8_lossy(shown));
}

fn check_ticket(door: &Door, grant: &Grant, shown: &str) {
    let nothing = HeaderMap::new();
    let redeem = |ticket: &str| door.identify_stream(&nothing, Some(ticket));
    let ticket = door.ticket(grant).expect("a holder of a token").expect("randomness");
    for almost in almost(&ticket, shown) {
        assert_eq!(redeem(&almost), Err(Denial::BadToken), "{almost}");
    }
    assert_eq!(redeem(&ticket).as_ref(), Ok(grant));
    assert_eq!(redeem(&ticket), Err(Denial::BadToken));
}
