//! Bearer tokens: what they look like, and the file that holds their hashes.
//!
//! A token is `litemesh_<id>_<secret>`: an id of 8 bytes that finds its entry, and a secret of 32 random bytes, both in hex. The
//! file has the SHA-256 of the token and never the token. Nothing slower than SHA-256 is needed: a slow hash
//! protects words that people choose, and these 256 bits nobody guesses.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use litemesh_proto::limits::NAME_BYTES_MAX;
use litemesh_proto::{Access, Rights};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Largest file of tokens that is read, in bytes: some ten thousand tokens. It is held in memory, and read again whenever it
/// changes.
pub const TOKEN_FILE_BYTES_MAX: usize = 4 << 20;

/// Longest name of a token, in bytes. It is a label for people and stands in lists and logs.
pub const TOKEN_NAME_BYTES_MAX: usize = 128;

/// What every token begins with, so that a token that ended up in the wrong place is recognised for what it is.
const PREFIX: &str = "litemesh_";

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
const HASH_BYTES: usize = 32;

/// A file of hashed tokens, as `litemesh token` writes it and [`HttpServerBuilder::tokens`](crate::HttpServerBuilder::tokens)
/// reads it.
///
/// *Shape*: one JSON object a line, and lines are only ever added, each with one write: whoever reads meanwhile sees whole
/// lines, and two writers lose nothing to each other. `{"revoke":"<id>"}` ends a token. Lines may also be removed by hand.
///
/// ```
/// use litemesh_http::TokenFile;
/// use litemesh_proto::{Access, Rights};
///
/// let folder = tempfile::tempdir()?;
/// let file = TokenFile::new(folder.path().join("tokens"));
/// let made = file.add("phone of Ada", &Access::new(Rights::Read).only(["todo"])?)?;
/// assert!(made.token.starts_with("litemesh_"));
/// let entries = file.read()?;
/// assert_eq!((entries.len(), &*entries[0].name, &entries[0].id), (1, "phone of Ada", &made.id));
///
/// file.revoke(&made.id)?;
/// assert!(file.read()?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
}

/// A token that was just made. The only time that it can be seen.
#[derive(Clone)]
pub struct NewToken {
    /// Finds its entry, and is no secret.
    pub id: String,
    /// The token itself.
    pub token: String,
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One token of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenEntry {
    /// Finds the token, and is no secret.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What its holder may do.
    pub access: Access,
}

/// Why a file of tokens could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages explain the fields
pub enum TokenFileError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: larger than {max} bytes", path.display())]
    TooLarge { path: PathBuf, max: usize },
    #[error("{} line {line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("a name must have 1 to {TOKEN_NAME_BYTES_MAX} bytes, without control characters")]
    Name,
    #[error("a token reads, or reads and writes")]
    Rights,
    #[error("a table must have a name of 1 to {NAME_BYTES_MAX} bytes")]
    Table,
    #[error("no randomness: {0}")]
    Random(String),
    #[error("{} has no token with the id {id}", path.display())]
    NoSuchToken { path: PathBuf, id: String },
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Token(TokenLine),
    Revocation(Revocation),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenLine {
    id: String,
    name: String,
    rights: WireRights,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tables: Option<Vec<String>>,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    revoke: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WireRights {
    Read,
    ReadWrite,
}

impl TokenFile {
    /// The file at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens that are valid now, in the order in which they were made.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a line of it is wrong: then none of it counts, rather than all but a revocation.
    pub fn read(&self) -> Result<Vec<TokenEntry>, TokenFileError> {
        let tokens = self.parse(&self.read_bytes()?)?;
        Ok(tokens.in_order.into_iter().filter_map(|id| Some(tokens.known.get(&id)?.entry.clone())).collect())
    }

    /// Makes a token with this access, and adds its hash to the file; makes the file where there is none.
    ///
    /// # Errors
    ///
    /// The name or the rights are not possible, or the file cannot be written.
    pub fn add(&self, name: &str, access: &Access) -> Result<NewToken, TokenFileError> {
        if name.is_empty() || name.len() > TOKEN_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(TokenFileError::Name);
        }
        let rights = match access.rights() {
            Rights::Read => WireRights::Read,
            Rights::ReadWrite => WireRights::ReadWrite,
            Rights::Write => return Err(TokenFileError::Rights),
        };
        let tables = access.tables().map(|tables| tables.iter().map(ToString::to_string).collect::<Vec<_>>());
        if tables.iter().flatten().any(|table| table.is_empty() || table.len() > NAME_BYTES_MAX) {
            return Err(TokenFileError::Table);
        }
        let (id, secret) = (random_hex::<ID_BYTES>()?, random_hex::<SECRET_BYTES>()?);
        let token = format!("{PREFIX}{id}_{secret}");
        let sha256 = const_hex::encode(hash(&token));
        self.append(&Line::Token(TokenLine { id: id.clone(), name: name.to_owned(), rights, tables, sha256 }))?;
        Ok(NewToken { id, token })
    }

    /// Ends the token with this id.
    ///
    /// # Errors
    ///
    /// There is no such token, or the file cannot be read and written.
    pub fn revoke(&self, id: &str) -> Result<TokenEntry, TokenFileError> {
        let entry = self.read()?.into_iter().find(|entry| entry.id == id);
        let entry = entry.ok_or_else(|| TokenFileError::NoSuchToken { path: self.path.clone(), id: id.to_owned() })?;
        self.append(&Line::Revocation(Revocation { revoke: id.to_owned() }))?;
        Ok(entry)
    }

    fn io(&self, source: io::Error) -> TokenFileError {
        TokenFileError::Io { path: self.path.clone(), source }
    }

    /// Adds one line with one write, and waits for the disk.
    fn append(&self, line: &Line) -> Result<(), TokenFileError> {
        let mut text = serde_json::to_string(line).map_err(|error| self.io(error.into()))?;
        text.push('\n');
        // Whoever edited the file by hand may have left its last line open.
        if self.read_bytes().is_ok_and(|bytes| bytes.last().is_some_and(|last| *last != b'\n')) {
            text.insert(0, '\n');
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&self.path).map_err(|error| self.io(error))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| self.io(error))
    }

    pub(crate) fn read_bytes(&self) -> Result<Vec<u8>, TokenFileError> {
        let mut bytes = Vec::new();
        let file = fs::File::open(&self.path).map_err(|error| self.io(error))?;
        file.take(TOKEN_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|error| self.io(error))?;
        if bytes.len() > TOKEN_FILE_BYTES_MAX {
            return Err(TokenFileError::TooLarge { path: self.path.clone(), max: TOKEN_FILE_BYTES_MAX });
        }
        Ok(bytes)
    }

    pub(crate) fn parse(&self, bytes: &[u8]) -> Result<TokenSet, TokenFileError> {
        TokenSet::parse(bytes).map_err(|(line, reason)| TokenFileError::Line { path: self.path.clone(), line, reason })
    }
}

/// The valid tokens of a file, found by their ids.
#[derive(Debug, Default)]
pub(crate) struct TokenSet {
    known: HashMap<String, Known>,
    in_order: Vec<String>,
}

#[derive(Debug)]
struct Known {
    id: Arc<str>,
    entry: TokenEntry,
    hash: [u8; HASH_BYTES],
}

impl TokenSet {
    /// Reads a file; an error has the number of its line and never its content.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, (usize, String)> {
        let mut tokens = Self::default();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let wrong = |reason: &str| (number + 1, reason.to_owned());
            match serde_json::from_slice(line).map_err(|_| wrong("neither a token nor a revocation"))? {
                Line::Revocation(Revocation { revoke }) => drop(tokens.known.remove(&revoke)),
                Line::Token(line) => {
                    let mut hash = [0; HASH_BYTES];
                    let is_hash = const_hex::decode_to_slice(&line.sha256, &mut hash).is_ok();
                    let is_id = line.id.len() == 2 * ID_BYTES && line.id.bytes().all(|byte| byte.is_ascii_hexdigit());
                    if !is_hash || !is_id {
                        return Err(wrong("id or hash is not as `litemesh token` makes them"));
                    }
                    let access = Access::new(match line.rights {
                        WireRights::Read => Rights::Read,
                        WireRights::ReadWrite => Rights::ReadWrite,
                    });
                    let access = match line.tables {
                        Some(tables) => access.only(tables).map_err(|error| wrong(&error.to_string()))?,
                        None => access,
                    };
                    let id: Arc<str> = line.id.as_str().into();
                    let entry = TokenEntry { id: line.id.clone(), name: line.name, access };
                    if tokens.known.insert(line.id.clone(), Known { id, entry, hash }).is_none() {
                        tokens.in_order.retain(|known| *known != line.id);
                        tokens.in_order.push(line.id);
                    }
                }
            }
        }
        Ok(tokens)
    }

    /// Whose token this is. The comparison takes the same time wherever the secrets begin to differ.
    pub(crate) fn find(&self, token: &str) -> Option<(Arc<str>, Access)> {
        let (id, _) = token.strip_prefix(PREFIX)?.split_once('_')?;
        let known = self.known.get(id)?;
        let is_same: bool = hash(token).ct_eq(&known.hash).into();
        is_same.then(|| (known.id.clone(), known.entry.access.clone()))
    }

    /// What the token with this id gives.
    pub(crate) fn access_of(&self, id: &str) -> Option<&Access> {
        self.known.get(id).map(|known| &known.entry.access)
    }
}

/// SHA-256, for tokens and tickets.
pub(crate) fn hash(secret: &str) -> [u8; HASH_BYTES] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Random bytes of the operating system, in hex.
pub(crate) fn random_hex<const BYTES: usize>() -> Result<String, TokenFileError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(|error| TokenFileError::Random(error.to_string()))?;
    Ok(const_hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn folder() -> (tempfile::TempDir, TokenFile) {
        let folder = tempfile::tempdir().unwrap();
        let file = TokenFile::new(folder.path().join("tokens"));
        (folder, file)
    }

    fn set(file: &TokenFile) -> TokenSet {
        file.parse(&file.read_bytes().unwrap()).unwrap()
    }

    #[test]
    fn a_token_opens_what_it_was_made_for_until_it_is_revoked() {
        let (_folder, file) = folder();
        let some = Access::FULL.only(["Todo"]).unwrap();
        let reader = file.add("a reader", &Access::new(Rights::Read)).unwrap();
        let writer = file.add("a writer", &some).unwrap();
        let tokens = set(&file);
        assert_eq!(tokens.find(&reader.token).unwrap(), (reader.id.as_str().into(), Access::new(Rights::Read)));
        assert_eq!(tokens.find(&writer.token).unwrap().1, some);
        assert_eq!(tokens.access_of(&writer.id), Some(&some));
        let by_hand = fs::read_to_string(file.path()).unwrap();
        fs::write(file.path(), by_hand.trim_end()).unwrap();
        file.revoke(&reader.id).unwrap();
        assert_eq!(set(&file).find(&reader.token), None);
        assert!(set(&file).find(&writer.token).is_some());
        assert!(matches!(file.revoke(&reader.id), Err(TokenFileError::NoSuchToken { .. })));
        assert_eq!(file.read().unwrap().iter().map(|entry| &*entry.name).collect::<Vec<_>>(), ["a writer"]);
    }

    #[test]
    fn the_secret_is_in_no_file_and_no_log() {
        let (_folder, file) = folder();
        let made = file.add("x", &Access::FULL).unwrap();
        let secret = made.token.rsplit('_').next().unwrap();
        assert_eq!(secret.len(), 2 * SECRET_BYTES);
        let written = fs::read_to_string(file.path()).unwrap();
        assert!(!written.contains(secret) && written.contains(&made.id), "{written}");
        assert!(!format!("{made:?} {:?}", set(&file)).contains(secret));
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_for_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let (_folder, file) = folder();
        file.add("x", &Access::FULL).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_almost_a_token_is_none() {
        let (_folder, file) = folder();
        let made = file.add("x", &Access::FULL).unwrap();
        let other = file.add("y", &Access::FULL).unwrap();
        let tokens = set(&file);
        let (id, secret) = (&made.id, made.token.rsplit('_').next().unwrap());
        let mut flipped = made.token.clone();
        let last = if flipped.pop() == Some('0') { '1' } else { '0' };
        flipped.push(last);
        for wrong in [
            "",
            "litemesh_",
            "litemesh__",
            &made.token[1..],
            &made.token[..made.token.len() - 1],
            &format!("{}0", made.token),
            &format!("{PREFIX}{}_{secret}", other.id),
            &format!("{PREFIX}{id}_"),
            &format!("{PREFIX}{id}_{}", const_hex::encode(hash(&made.token))),
            &made.token.to_uppercase(),
            &flipped,
        ] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_line_is_named_and_nothing_of_the_file_counts() {
        let (_folder, file) = folder();
        let made = file.add("x", &Access::FULL).unwrap();
        let good = fs::read_to_string(file.path()).unwrap();
        for wrong in [
            "x",
            "{}",
            r#"{"revoke":1}"#,
            &good.replace("read-write", "admin"),
            &good.replace(&made.id, "short"),
            &good.replace("\"sha256\":\"", "\"sha256\":\"0"),
            &good.replace("\"name\"", "\"more\":1,\"name\""),
        ] {
            fs::write(file.path(), format!("{good}\n{wrong}")).unwrap();
            let error = file.read().unwrap_err();
            assert!(matches!(error, TokenFileError::Line { line: 3, .. }), "{wrong}: {error}");
        }
    }

    #[test]
    fn names_and_rights_that_make_no_sense_are_refused() {
        let (_folder, file) = folder();
        for name in ["", "a\nb", &"x".repeat(TOKEN_NAME_BYTES_MAX + 1)] {
            assert!(matches!(file.add(name, &Access::FULL), Err(TokenFileError::Name)), "{name}");
        }
        assert!(matches!(file.add("x", &Access::new(Rights::Write)), Err(TokenFileError::Rights)));
        assert!(matches!(file.add("x", &Access::FULL.only([""]).unwrap()), Err(TokenFileError::Table)));
        assert!(matches!(file.read(), Err(TokenFileError::Io { .. })));
    }

    #[test]
    fn a_file_without_end_is_not_read() {
        let (_folder, file) = folder();
        fs::write(file.path(), vec![b'\n'; TOKEN_FILE_BYTES_MAX + 1]).unwrap();
        assert!(matches!(file.read(), Err(TokenFileError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn any_file_and_any_token_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), token in ".{0,80}") {
            if let Ok(tokens) = TokenSet::parse(&bytes) {
                prop_assert_eq!(tokens.find(&token), None);
            }
        }
    }
}
