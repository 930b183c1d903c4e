//! Who a request comes from, and what that gives: tokens, tickets, and those who have neither.
//!
//! Only here is a token looked at. What a grant allows is enforced by the peer above, to which its access is handed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use litemesh_proto::Access;
use tokio::time::Instant;
use tracing::{info, warn};

use super::answer;
use crate::tokens::{TokenFile, TokenFileError, TokenSet, hash, random_hex};

/// How long a ticket can be used: the time that a page takes to open its stream, over the slowest of lines.
pub(super) const TICKET_LIFETIME: Duration = Duration::from_secs(30);

/// Unused tickets of one token. Beyond them the oldest is forgotten, so that who makes many harms nobody else; that bounds all
/// tickets by the number of tokens.
const TICKETS_PER_TOKEN_MAX: usize = 16;

const TICKET_BYTES: usize = 32;

/// Who a request comes from, and what that gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    who: Who,
    pub(super) access: Access,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Anybody,
    /// The id of the token.
    Token(Arc<str>),
}

impl Grant {
    /// Whether both come from the same holder. Equal rights are not enough: what one holder posts would count as another's.
    pub(super) fn is_of_same_holder(&self, other: &Self) -> bool {
        self.who == other.who
    }
}

/// Why a request is let nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// It shows nothing, and that is not enough.
    NoToken,
    /// What it shows is no valid token or ticket.
    BadToken,
    /// The connection belongs to somebody else.
    OtherHolder,
}

impl Denial {
    pub(super) fn answer(self) -> Response {
        let (status, text, challenge) = match self {
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "this hub asks for a token: who runs it makes one with `litemesh token new`",
                Some("Bearer"),
            ),
            Self::BadToken => (
                StatusCode::UNAUTHORIZED,
                "the token or ticket is not valid here: it was revoked, used up, or is of another hub",
                Some("Bearer error=\"invalid_token\""),
            ),
            Self::OtherHolder => {
                (StatusCode::FORBIDDEN, "the connection of this peer id was opened with another token", None)
            }
        };
        let mut response = answer::error(status, text);
        if let Some(challenge) = challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// Decides about every request of one server.
pub(super) struct Door {
    /// What who shows no token may do.
    anybody: Option<Access>,
    tokens: Option<Tokens>,
}

struct Tokens {
    file: TokenFile,
    /// The file as it was last read well.
    set: RwLock<Arc<TokenSet>>,
    tickets: Mutex<Tickets>,
}

impl Door {
    /// Opens for anybody with this access, and for the tokens of a file, which was read before.
    pub(super) fn new(anybody: Option<Access>, tokens: Option<(TokenFile, Arc<TokenSet>)>) -> Self {
        let tokens = tokens.map(|(file, set)| Tokens { file, set: RwLock::new(set), tickets: Mutex::default() });
        Self { anybody, tokens }
    }

    /// Whether anything but openness is known here: then browsers may send tokens, and get tickets.
    pub(super) fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Whose request this is.
    ///
    /// Where there are no tokens, `Authorization` means something to somebody else. Where there are, a wrong one is not taken
    /// for none: whoever shows one wants more than anybody has.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Result<Grant, Denial> {
        if let Some(tokens) = &self.tokens
            && let Some(token) = bearer(headers)
        {
            let (id, access) = tokens.set().find(token).ok_or(Denial::BadToken)?;
            return Ok(Grant { who: Who::Token(id), access });
        }
        let access = self.anybody.clone().ok_or(Denial::NoToken)?;
        Ok(Grant { who: Who::Anybody, access })
    }

    /// As [`identify`](Self::identify), for a stream that may show a ticket instead of a token.
    pub(super) fn identify_stream(&self, headers: &HeaderMap, ticket: Option<&str>) -> Result<Grant, Denial> {
        let (Some(tokens), Some(ticket), None) = (&self.tokens, ticket, bearer(headers)) else {
            return self.identify(headers);
        };
        let id = tokens.tickets().redeem(ticket, Instant::now()).ok_or(Denial::BadToken)?;
        let access = tokens.set().access_of(&id).cloned().ok_or(Denial::BadToken)?;
        Ok(Grant { who: Who::Token(id), access })
    }

    /// A ticket for the holder of a token; `None` for those who need none.
    pub(super) fn ticket(&self, grant: &Grant) -> Option<Result<String, TokenFileError>> {
        let (Some(tokens), Who::Token(id)) = (&self.tokens, &grant.who) else { return None };
        Some(tokens.tickets().issue(id, Instant::now()))
    }

    /// Whether a grant would be given again now.
    pub(super) fn still_grants(&self, grant: &Grant) -> bool {
        match (&grant.who, &self.tokens) {
            (Who::Anybody, _) => self.anybody.as_ref() == Some(&grant.access),
            (Who::Token(id), Some(tokens)) => tokens.set().access_of(id) == Some(&grant.access),
            (Who::Token(_), None) => false,
        }
    }

    /// Reads the file of tokens every `interval`, and calls `changed` after it changed. For ever.
    ///
    /// The content is compared, not its time: two changes within one tick of the file system's clock are two. A file that
    /// cannot be read changes nothing; ending all tokens takes an empty file.
    pub(super) async fn watch(&self, interval: Duration, changed: impl Fn()) {
        let Some(tokens) = &self.tokens else { return std::future::pending().await };
        let mut last: Option<Vec<u8>> = None;
        let mut has_failed = false;
        loop {
            let file = tokens.file.clone();
            let read = tokio::task::spawn_blocking(move || {
                let bytes = file.read_bytes()?;
                let set = file.parse(&bytes)?;
                Ok::<_, TokenFileError>((bytes, set))
            });
            match read.await {
                Ok(Ok((bytes, set))) => {
                    has_failed = false;
                    if last.as_ref() != Some(&bytes) {
                        *tokens.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
                        if last.replace(bytes).is_some() {
                            info!("the tokens were read again");
                        }
                        changed();
                    }
                }
                // Said once, not every time.
                Ok(Err(error)) if !has_failed => {
                    has_failed = true;
                    warn!(%error, "the tokens cannot be read, those that were known stay");
                }
                Ok(Err(_)) => {}
                Err(error) => warn!(%error, "reading the tokens failed"),
            }
            tokio::time::sleep(interval).await;
        }
    }
}

impl Tokens {
    fn set(&self) -> Arc<TokenSet> {
        self.set.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tickets(&self) -> std::sync::MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token of a request; another scheme is none of ours.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

/// Tickets that were given out and not used yet, as hashes, oldest first for each token.
#[derive(Default)]
struct Tickets {
    of_token: HashMap<Arc<str>, Vec<Ticket>>,
}

struct Ticket {
    hash: [u8; 32],
    given_at: Instant,
}

impl Tickets {
    fn issue(&mut self, token: &Arc<str>, now: Instant) -> Result<String, TokenFileError> {
        self.forget_old(now);
        let secret = random_hex::<TICKET_BYTES>()?;
        // With the id of its token in front, as a token has: only that token's tickets are looked at.
        let ticket = format!("{token}_{secret}");
        let tickets = self.of_token.entry(token.clone()).or_default();
        if tickets.len() == TICKETS_PER_TOKEN_MAX {
            tickets.remove(0);
        }
        tickets.push(Ticket { hash: hash(&ticket), given_at: now });
        Ok(ticket)
    }

    /// The token of a ticket, which is no ticket any more.
    fn redeem(&mut self, ticket: &str, now: Instant) -> Option<Arc<str>> {
        use subtle::ConstantTimeEq;
        self.forget_old(now);
        let (id, _) = ticket.split_once('_')?;
        let (id, tickets) = self.of_token.get_key_value(id)?;
        let (id, shown) = (id.clone(), hash(ticket));
        let found = tickets.iter().position(|ticket| ticket.hash.ct_eq(&shown).into())?;
        self.of_token.get_mut(&id)?.remove(found);
        Some(id)
    }

    fn forget_old(&mut self, now: Instant) {
        self.of_token.retain(|_, tickets| {
            tickets.retain(|ticket| now.duration_since(ticket.given_at) < TICKET_LIFETIME);
            !tickets.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_not_for_long() {
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        let (a, b): (Arc<str>, Arc<str>) = ("aa".into(), "bb".into());
        let (first, second) = (tickets.issue(&a, now).unwrap(), tickets.issue(&b, now).unwrap());
        assert_eq!(tickets.redeem(&first, now), Some(a.clone()));
        assert_eq!(tickets.redeem(&first, now), None);
        let forged = second.replacen("bb", "aa", 1);
        assert_eq!(tickets.redeem(&forged, now), None);
        assert_eq!(tickets.redeem("", now), None);
        assert_eq!(tickets.redeem(&second, now + TICKET_LIFETIME), None);
        assert!(tickets.of_token.is_empty(), "nothing stays of old ones");
    }

    #[test]
    fn who_makes_many_tickets_loses_only_their_own() {
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        let (a, b): (Arc<str>, Arc<str>) = ("aa".into(), "bb".into());
        let other = tickets.issue(&b, now).unwrap();
        let made: Vec<String> = (0..=TICKETS_PER_TOKEN_MAX).map(|_| tickets.issue(&a, now).unwrap()).collect();
        assert_eq!(tickets.of_token[&a].len(), TICKETS_PER_TOKEN_MAX);
        assert_eq!(tickets.redeem(&made[0], now), None);
        assert_eq!(tickets.redeem(&made[1], now), Some(a));
        assert_eq!(tickets.redeem(&other, now), Some(b));
    }

    #[test]
    fn only_bearer_tokens_are_ours() {
        let check = |value: &'static str, expected: Option<&str>| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(bearer(&headers), expected, "{value}");
        };
        check("Bearer abc", Some("abc"));
        check("bearer  abc ", Some("abc"));
        check("Basic abc", None);
        check("abc", None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
