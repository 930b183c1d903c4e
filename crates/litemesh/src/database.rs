//! [`Database`]: the application's side of a database that a peer syncs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use litemesh_engine::rusqlite::{Connection, OpenFlags};
use litemesh_engine::{Engine, OpenError};

/// A database and a connection of the application to it. Cheap to clone; clones share the connection.
///
/// A [`Peer`](crate::Peer) works on connections of its own, so application and sync never wait for each other longer than
/// SQLite's write lock demands. Commits made through a `Database` are noticed at once, those of other connections and
/// processes within milliseconds.
///
/// ```
/// use litemesh::Database;
///
/// let db = Database::open_in_memory()?;
/// db.lock().connection().execute_batch("CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT)")?;
/// db.lock().replicate("todo")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    engine: Mutex<Engine>,
    wakers: Arc<Wakers>,
}

enum Place {
    File(PathBuf),
    /// A name in SQLite's `memdb` file system, which connections of one process share.
    Memory(String),
}

/// Called after each commit of a connection that this database opened.
#[derive(Default)]
pub(crate) struct Wakers(Mutex<Vec<Box<dyn Fn() -> bool + Send + Sync>>>);

impl Wakers {
    /// Adds a waker. It is removed once it answers `false`.
    pub(crate) fn add(&self, waker: impl Fn() -> bool + Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(waker));
    }

    fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|waker| waker());
    }
}

impl Database {
    /// Opens a file, or makes it.
    ///
    /// # Errors
    ///
    /// SQLite cannot open it, or another program's layout is in it ([`OpenError`]).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::at(Place::File(path.as_ref().to_path_buf()))
    }

    /// A database in memory that lives as long as its handles and peers.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_in_memory() -> Result<Self, OpenError> {
        Self::at(Place::Memory(format!("file:/litemesh-{:032x}?vfs=memdb", fastrand::u128(..))))
    }

    fn at(place: Place) -> Result<Self, OpenError> {
        let wakers = Arc::new(Wakers::default());
        let engine = Mutex::new(connect(&place, &wakers)?);
        Ok(Self { inner: Arc::new(Inner { place, engine, wakers }) })
    }

    /// The application's connection. Waits for other threads that hold it.
    pub fn lock(&self) -> MutexGuard<'_, Engine> {
        self.inner.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens one more connection.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn connect(&self) -> Result<Engine, OpenError> {
        connect(&self.inner.place, &self.inner.wakers)
    }

    /// The file; `None` for a database in memory.
    pub fn path(&self) -> Option<&Path> {
        match &self.inner.place {
            Place::File(path) => Some(path),
            Place::Memory(_) => None,
        }
    }

    pub(crate) fn wakers(&self) -> &Wakers {
        &self.inner.wakers
    }
}

fn connect(place: &Place, wakers: &Arc<Wakers>) -> Result<Engine, OpenError> {
    let engine = match place {
        Place::File(path) => Engine::open(path)?,
        Place::Memory(uri) => {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
            Engine::attach(Connection::open_with_flags(uri, flags)?)?
        }
    };
    let wakers = wakers.clone();
    engine.on_commit(move || wakers.wake());
    Ok(engine)
}
