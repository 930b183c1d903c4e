//! [`ConnectionString`]: what one person shows and the other enters, so that two databases are paired.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use nostr::PublicKey;
use url::Url;

use crate::KeyError;

/// How long a listener waits for the connector after it made a connection string. The string itself does not say when that was.
pub const CONNECTION_STRING_VALIDITY: Duration = Duration::from_secs(10 * 60);

/// How every connection string begins, in lower case.
const SCHEME: &str = "nostr+keepai://";
/// Random bytes of the secret, and of the nonce.
const TOKEN_BYTES: usize = 16;

/// An offer of pairing: whom to talk to, over which relays, and the secret that proves that the offer was seen.
///
/// Whoever has the string can be paired with, and be sent everything: it is shown on one screen and entered on another, and is
/// worth nothing after [`CONNECTION_STRING_VALIDITY`], nor once somebody has used it. `Display` gives the string, `Debug` hides
/// the secret.
///
/// Its parts are kept as they stand in the string, the public key too: the original checks nothing of them but that they are
/// there.
///
/// ```
/// use litemesh_nostr::ConnectionString;
/// use litemesh_nostr::nostr::Keys;
///
/// let keys = Keys::generate();
/// let offer = ConnectionString::generate(&keys.public_key(), ["wss://relay.example/sub path"])?;
/// let text = offer.to_string();
/// assert!(text.starts_with("nostr+keepai://"));
/// assert!(text.contains("?relay=wss%3A%2F%2Frelay.example%2Fsub%20path&secret="));
///
/// let read: ConnectionString = text.parse()?;
/// assert_eq!(read, offer);
/// assert_eq!(read.listener()?, keys.public_key());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Source: `wire-protocol.md` 7.5.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionString {
    public_key: String,
    relays: Vec<String>,
    secret: String,
    nonce: String,
}

impl ConnectionString {
    /// Makes an offer with a fresh secret and nonce. The key should be fresh, too: one pair of keys for each pairing.
    ///
    /// # Errors
    ///
    /// No relay, or the system has no random bytes.
    pub fn generate<R: Into<String>>(
        listener: &PublicKey,
        relays: impl IntoIterator<Item = R>,
    ) -> Result<Self, GenerateError> {
        let relays: Vec<String> = relays.into_iter().map(Into::into).collect();
        if relays.is_empty() {
            return Err(GenerateError::NoRelay);
        }
        Ok(Self { public_key: listener.to_hex(), relays, secret: random_token()?, nonce: random_token()? })
    }

    /// The listener's public key, as it stands in the string.
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// The listener's public key.
    ///
    /// # Errors
    ///
    /// What stands in the string is no public key.
    pub fn listener(&self) -> Result<PublicKey, KeyError> {
        let key = PublicKey::from_hex(&self.public_key).map_err(|_| KeyError)?;
        key.xonly().map_err(|_| KeyError)?;
        Ok(key)
    }

    /// Addresses of the relays, at least one, as they stand in the string: they need not be URLs.
    pub fn relays(&self) -> &[String] {
        &self.relays
    }

    /// What the connector sends back, encrypted, to show that it has the string.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// By which the listener finds the connector's request among those of others. Relays see it.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }
}

impl FromStr for ConnectionString {
    type Err = ConnectionStringError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.starts_with(SCHEME) {
            return Err(ConnectionStringError::Format);
        }
        let url = Url::parse(text).map_err(|_| ConnectionStringError::Format)?;
        let all = |name: &'static str| {
            url.query_pairs().filter(move |(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        // The first one counts, and an empty one is none.
        let one = |name| all(name).next().filter(|value| !value.is_empty());
        let public_key = url.host_str().filter(|host| !host.is_empty());
        let (Some(public_key), Some(secret), Some(nonce)) = (public_key, one("secret"), one("nonce")) else {
            return Err(ConnectionStringError::MissingParameters);
        };
        let relays: Vec<String> = all("relay").collect();
        if relays.is_empty() {
            return Err(ConnectionStringError::MissingParameters);
        }
        Ok(Self { public_key: public_key.to_owned(), relays, secret, nonce })
    }
}

impl fmt::Display for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}?", self.public_key)?;
        for relay in &self.relays {
            write!(f, "relay={}&", Component(relay))?;
        }
        write!(f, "secret={}&nonce={}", Component(&self.secret), Component(&self.nonce))
    }
}

impl fmt::Debug for ConnectionString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionString")
            .field("public_key", &self.public_key)
            .field("relays", &self.relays)
            .field("nonce", &self.nonce)
            .finish_non_exhaustive()
    }
}

/// A text with everything escaped that JavaScript's `encodeURIComponent` escapes.
struct Component<'a>(&'a str);

impl fmt::Display for Component<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => write!(f, "{}", char::from(byte)),
            b'-' | b'_' | b'.' | b'!' | b'~' | b'*' | b'\'' | b'(' | b')' => write!(f, "{}", char::from(byte)),
            _ => write!(f, "%{byte:02X}"),
        })
    }
}

fn random_token() -> Result<String, GenerateError> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| GenerateError::Random { reason: error.to_string() })?;
    Ok(const_hex::encode(bytes))
}

/// Why a text is no connection string. The texts are those of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// It does not begin with `nostr+keepai://`, or is no URL.
    #[error("Invalid connection string format")]
    Format,
    /// No public key, no relay, no secret or no nonce.
    #[error("Invalid connection string: missing required parameters")]
    MissingParameters,
}

/// Why no connection string was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum GenerateError {
    /// Both sides need a place to meet.
    #[error("a connection string needs at least one relay")]
    NoRelay,
    /// The system has no random bytes.
    #[error("no random bytes for a secret: {reason}")]
    Random { reason: String },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;

    fn vectors() -> Json {
        serde_json::from_str(include_str!("../tests/vectors/connection_strings.json")).unwrap()
    }

    fn text(case: &Json, name: &str) -> String {
        case[name].as_str().unwrap_or_else(|| panic!("{name} of {case}")).to_owned()
    }

    fn texts(case: &Json, name: &str) -> Vec<String> {
        case[name].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn strings_are_read_as_the_original_reads_them() {
        let vectors = vectors();
        let cases = vectors["parse"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let read = text(case, "str").parse::<ConnectionString>();
            if let Some(error) = case["error"].as_str() {
                assert_eq!(read.unwrap_err().to_string(), error, "{case}");
                continue;
            }
            let read = read.unwrap_or_else(|error| panic!("{error}: {case}"));
            let ok = &case["ok"];
            assert_eq!(read.public_key(), text(ok, "peerPubkey"));
            assert_eq!(read.relays(), texts(ok, "relays"));
            assert_eq!(read.secret(), text(ok, "secret"));
            assert_eq!(read.nonce(), text(ok, "nonce"));
            assert_eq!(read.to_string().parse::<ConnectionString>().as_ref(), Ok(&read));
            assert_eq!(read.listener().is_ok(), read.public_key().len() == 64);
        }
        let validity = u128::from(vectors["ttl_ms"].as_u64().unwrap());
        assert_eq!(CONNECTION_STRING_VALIDITY.as_millis(), validity);
    }

    #[test]
    fn strings_are_written_as_the_original_writes_them() {
        let vectors = vectors();
        let example = &vectors["generate_example"];
        let keys = nostr::Keys::parse(&text(example, "key")).unwrap();
        let written = ConnectionString {
            public_key: keys.public_key().to_hex(),
            relays: texts(example, "relays"),
            secret: text(example, "secret"),
            nonce: text(example, "nonce"),
        };
        assert_eq!(written.to_string(), text(example, "str"));
        assert_eq!(text(example, "str").parse(), Ok(written));
    }

    #[test]
    fn each_string_has_its_own_secret_and_nonce() {
        let key = nostr::Keys::generate().public_key();
        let [one, two] = [(); 2].map(|()| ConnectionString::generate(&key, ["wss://r.example"]).unwrap());
        let tokens = [one.secret(), one.nonce(), two.secret(), two.nonce()];
        for (index, token) in tokens.iter().enumerate() {
            assert_eq!(token.len(), 32);
            assert!(!tokens[..index].contains(token));
        }
        assert_eq!(ConnectionString::generate(&key, [""; 0]), Err(GenerateError::NoRelay));
    }

    #[test]
    fn debug_hides_the_secret() {
        let key = nostr::Keys::generate().public_key();
        let offer = ConnectionString::generate(&key, ["wss://r.example"]).unwrap();
        let shown = format!("{offer:?}");
        assert!(shown.contains(offer.nonce()) && !shown.contains(offer.secret()), "{shown}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            relays in prop::collection::vec(any::<String>(), 1..4),
            secret in "\\PC{1,20}",
            nonce in "(?s).{1,20}",
        ) {
            let public_key = "1e57a1388e445f433a624a16cdd93ca32205e5a119cb9c34f5d0599a8d50d237".to_owned();
            let written = ConnectionString { public_key, relays, secret, nonce };
            prop_assert_eq!(written.to_string().parse(), Ok(written));
        }

        #[test]
        fn any_text_is_read_or_refused(start in "(nostr\\+keepai://)?", rest in "(?s).{0,60}", query in "[?&=a-z%+#]{0,60}") {
            if let Ok(read) = format!("{start}{rest}{query}&relay=r&secret=s&nonce=n").parse::<ConnectionString>() {
                // The key may be anything that a host may be, and is written as it was read.
                prop_assert_eq!(read.to_string().parse(), Ok(read));
            }
        }
    }
}
