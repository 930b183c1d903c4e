//! What must outlive the process: who is paired, our keys, and how far the streams of each pairing are. A SQLite file beside the
//! database, readable by its owner only.
//!
//! Not in the database itself, where the original has it: that file is copied and sent around, and a table in it can be made to
//! replicate (`known-failures.md` C2).

// The simulation sees it.
#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
mod streams;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use litemesh_proto::SiteId;
use nostr::{Keys, PublicKey, RelayUrl, SecretKey, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use tokio::sync::watch;

#[cfg_attr(not(feature = "simulation"), allow(unreachable_pub))]
pub use streams::{Inbound, Outbound, Stand, Taking, Told};

/// What the file of a database is called: its own name and this.
const SUFFIX: &str = "-nostr";

/// What the file is called by which one transport keeps others away: the file's name and this.
const LOCK_SUFFIX: &str = "-lock";

/// How long a call waits for another process that writes: those of ours take milliseconds. It is what the engine waits, too.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS pairing (
        local_key TEXT NOT NULL, peer_key TEXT NOT NULL, site BLOB NOT NULL, peer BLOB NOT NULL, device TEXT NOT NULL,
        relays TEXT NOT NULL, paired_at INTEGER NOT NULL, is_litemesh INTEGER NOT NULL, secret TEXT,
        PRIMARY KEY (local_key, peer_key)) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS inbound (
        local_key TEXT NOT NULL, peer_key TEXT NOT NULL, stream TEXT NOT NULL, request BLOB NOT NULL,
        asked_at INTEGER NOT NULL, head TEXT, head_at INTEGER NOT NULL, reach BLOB NOT NULL,
        taking TEXT, taking_at INTEGER, taking_reach BLOB,
        PRIMARY KEY (local_key, peer_key)) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS outbound (
        local_key TEXT NOT NULL, peer_key TEXT NOT NULL, stream TEXT NOT NULL, request BLOB NOT NULL,
        asked_at INTEGER NOT NULL, last TEXT NOT NULL, head TEXT, head_at INTEGER NOT NULL, reach BLOB NOT NULL,
        taken_at INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (local_key, peer_key)) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS elsewhere (
        local_key TEXT NOT NULL, peer_key TEXT NOT NULL, stream TEXT NOT NULL,
        acknowledged INTEGER NOT NULL, acknowledged_incarnation INTEGER NOT NULL,
        reached INTEGER NOT NULL, reached_incarnation INTEGER NOT NULL,
        PRIMARY KEY (local_key, peer_key)) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;
";

/// Two databases that were paired: what one row of the original's `nostr_peers` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairing {
    /// Our site id when they were. A copied database has another one, and no pairings.
    pub site: SiteId,
    /// Our key in this pairing.
    pub local_key: PublicKey,
    /// The remote's site id.
    pub peer: SiteId,
    /// Its key in this pairing.
    pub peer_key: PublicKey,
    /// What it calls itself.
    pub device: String,
    /// Where both meet.
    pub relays: Vec<RelayUrl>,
    /// When they were paired.
    pub paired_at: Timestamp,
    /// Whether the remote was last seen to be a Litemesh peer.
    pub is_litemesh: bool,
}

/// Pairings, keys and streams, in one file.
///
/// ```
/// use litemesh_nostr::Store;
///
/// let folder = tempfile::tempdir()?;
/// let path = Store::path_beside(&folder.path().join("app.db"));
/// assert!(path.ends_with("app.db-nostr"));
/// let store = Store::open(&path)?;
/// # let site = litemesh_proto::SiteId::from_bytes([7; 16]);
/// assert!(store.pairings(site)?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Store {
    connection: Mutex<Connection>,
    /// A pairing was made or ended over this handle.
    changed: watch::Sender<()>,
    /// `None` for one in memory.
    path: Option<PathBuf>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be made, or its permissions not be set.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// SQLite says no.
    #[error("the file of pairings: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Something in it is not what this version writes.
    #[error("the file of pairings: {what} cannot be read: {reason}")]
    Content {
        /// Which thing.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// Another transport publishes with its keys.
    #[error("another program syncs over these pairings")]
    InUse,
    /// A later version made it.
    #[error("the file of pairings has version {version}, this program knows 1: use a newer one")]
    Newer {
        /// Its `PRAGMA user_version`.
        version: i64,
    },
}

impl Store {
    /// Where the file of a database lies.
    pub fn path_beside(database: &Path) -> PathBuf {
        with_suffix(database, SUFFIX)
    }

    /// Opens the file, or makes it, so that only its owner can read it.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or is of a later version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        own(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
        // What a process left there that was killed has the keys, too. A new one gets the permissions of the file.
        for suffix in ["-wal", "-shm"] {
            let path = with_suffix(path, suffix);
            narrow(&path).map_err(|source| StoreError::File { path, source })?;
        }
        Self::new(Connection::open(path)?, Some(path.to_owned()))
    }

    /// A store that is gone with the process.
    ///
    /// # Errors
    ///
    /// SQLite's.
    pub fn open_in_memory() -> Result<Self, StoreError> {
        Self::new(Connection::open_in_memory()?, None)
    }

    fn new(mut connection: Connection, path: Option<PathBuf>) -> Result<Self, StoreError> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let version: i64 = connection.query_row("PRAGMA user_version", (), |row| row.get(0))?;
        if version > 1 {
            return Err(StoreError::Newer { version });
        }
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        // Keys that are forgotten are gone.
        connection.pragma_update(None, "secure_delete", true)?;
        connection.execute_batch(SCHEMA)?;
        add_columns(&mut connection)?;
        Ok(Self { connection: Mutex::new(connection), changed: watch::Sender::default(), path })
    }

    /// Makes sure that no other transport publishes with these keys, here or in another process, as long as what this gives is kept:
    /// two of them would break each other's streams.
    pub(crate) fn claim(&self) -> Result<Option<File>, StoreError> {
        let Some(path) = &self.path else { return Ok(None) };
        let path = with_suffix(path, LOCK_SUFFIX);
        let failed = |source| StoreError::File { path: path.clone(), source };
        let file = own(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Tells of pairings that are made or ended over this handle, from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // Nothing here panics between two statements that belong together: they are in transactions.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a pairing, and our secret key in it. Another one with the same remote is forgotten, and its streams with it.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn pair(&self, pairing: &Pairing, secret: Option<&SecretKey>) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        forget(&transaction, pairing.site, pairing.peer)?;
        let relays: Vec<&str> = pairing.relays.iter().map(RelayUrl::as_str).collect();
        transaction.execute(
            "INSERT INTO pairing (local_key, peer_key, site, peer, device, relays, paired_at, is_litemesh, secret)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                pairing.local_key.to_hex(),
                pairing.peer_key.to_hex(),
                pairing.site.as_bytes(),
                pairing.peer.as_bytes(),
                pairing.device,
                relays.join("\n"),
                seconds(pairing.paired_at),
                pairing.is_litemesh,
                secret.map(SecretKey::to_secret_hex),
            ],
        )?;
        transaction.commit()?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Ends the pairing with a remote. Says whether there was one.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn unpair(&self, site: SiteId, peer: SiteId) -> Result<bool, StoreError> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let was_paired = forget(&transaction, site, peer)?;
        transaction.commit()?;
        self.changed.send_replace(());
        Ok(was_paired)
    }

    /// The pairings of a database, the newest first.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn pairings(&self, site: SiteId) -> Result<Vec<Pairing>, StoreError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(
            "SELECT local_key, peer_key, site, peer, device, relays, paired_at, is_litemesh FROM pairing
             WHERE site = ?1 ORDER BY paired_at DESC, peer",
        )?;
        let rows = statement.query_and_then([site.as_bytes()], read_pairing)?;
        rows.collect()
    }

    /// The remote turned out to be of the other kind: what it is sent begins anew. So does what comes from it, since it is asked in another
    /// way; when it was asked last is kept.
    pub(crate) fn set_litemesh(&self, pairing: &Pairing, is_litemesh: bool) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let transaction = connection.transaction()?;
        let (local_key, peer_key) = (pairing.local_key.to_hex(), pairing.peer_key.to_hex());
        for table in ["outbound", "elsewhere"] {
            let delete = format!("DELETE FROM {table} WHERE local_key = ?1 AND peer_key = ?2");
            transaction.execute(&delete, [&local_key, &peer_key])?;
        }
        transaction.execute(
            "UPDATE pairing SET is_litemesh = ?3 WHERE local_key = ?1 AND peer_key = ?2",
            params![local_key, peer_key, is_litemesh],
        )?;
        Ok(transaction.commit()?)
    }

    /// Our keys in a pairing, where the store has them.
    pub(crate) fn keys(&self, local_key: PublicKey) -> Result<Option<Keys>, StoreError> {
        let connection = self.connection();
        let mut statement = connection
            .prepare_cached("SELECT secret FROM pairing WHERE local_key = ?1 AND secret IS NOT NULL LIMIT 1")?;
        let secret: Option<String> = statement.query_row([local_key.to_hex()], |row| row.get(0)).optional()?;
        secret.map(|secret| secret.parse().map(Keys::new).map_err(|error| content("a secret key", &error))).transpose()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// Adds what files of before do not have.
fn add_columns(connection: &mut Connection) -> Result<(), StoreError> {
    const IS_MISSING: &str = "SELECT NOT EXISTS (SELECT 1 FROM pragma_table_info('outbound') WHERE name = 'taken_at')";
    let is_missing = |connection: &Connection| connection.query_row(IS_MISSING, (), |row| row.get::<_, bool>(0));
    if is_missing(connection)? {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Nobody else has added it meanwhile.
        if is_missing(&transaction)? {
            transaction.execute_batch("ALTER TABLE outbound ADD COLUMN taken_at INTEGER NOT NULL DEFAULT 0")?;
        }
        transaction.commit()?;
    }
    Ok(())
}

/// Makes the file, and takes it away from all but its owner. SQLite gives the files beside it the same permissions.
fn own(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(file)
}

/// Lets nobody but its owner read a file, if it is there.
fn narrow(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    match std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn forget(connection: &Connection, site: SiteId, peer: SiteId) -> Result<bool, StoreError> {
    let ids = [site.as_bytes(), peer.as_bytes()];
    for table in ["inbound", "outbound", "elsewhere"] {
        let delete = format!(
            "DELETE FROM {table} WHERE (local_key, peer_key) IN
             (SELECT local_key, peer_key FROM pairing WHERE site = ?1 AND peer = ?2)"
        );
        connection.execute(&delete, ids)?;
    }
    Ok(connection.execute("DELETE FROM pairing WHERE site = ?1 AND peer = ?2", ids)? > 0)
}

fn read_pairing(row: &Row<'_>) -> Result<Pairing, StoreError> {
    let key = |index| {
        let hex: String = row.get(index)?;
        PublicKey::from_hex(&hex).map_err(|error| content("a key", &error))
    };
    let site = |index| Ok::<_, StoreError>(SiteId::from_bytes(row.get(index)?));
    let relays: String = row.get(5)?;
    let relays =
        relays.lines().map(|relay| RelayUrl::parse(relay).map_err(|error| content("a relay's address", &error)));
    Ok(Pairing {
        local_key: key(0)?,
        peer_key: key(1)?,
        site: site(2)?,
        peer: site(3)?,
        device: row.get(4)?,
        relays: relays.collect::<Result<_, _>>()?,
        paired_at: timestamp(row.get(6)?),
        is_litemesh: row.get(7)?,
    })
}

fn content(what: &'static str, reason: &impl ToString) -> StoreError {
    StoreError::Content { what, reason: reason.to_string() }
}

/// SQLite's integers have a sign.
fn seconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_secs(seconds.max(0).cast_unsigned())
}

#[cfg(test)]
mod tests;
