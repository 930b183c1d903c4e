//! One named thread owns the peer's connection: a SQLite write never runs inside an async task.
//!
//! Commands are closures with a reply, and come in two [lanes](crate::lanes). After each of them, and whenever somebody says that
//! the database may have changed, the thread looks whether it did, tells the application, and wakes the sessions. Nothing else
//! announces changes, so local writes, merges and writes of other processes are all announced in the same way, once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use litemesh_engine::{Engine, StorageError};
use litemesh_proto::{DbVersion, SiteId};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use crate::event::Event;
use crate::lanes::{Command, Lane, Lanes, Work};
use crate::{PeerError, StartError};

/// Commands of one lane that wait for the engine. Each session has at most four under way.
const COMMANDS_MAX: usize = 256;

/// Versions after which origins are pruned.
const PRUNE_EVERY: i64 = 256;

/// Origins that are looked at for each version. A merged version adds one, and may make another one useless: by two, no more useless ones
/// lie there than are needed, however much is written. One would be too few.
const PRUNE_RATE: i64 = 2;

/// Origins that are looked at in one transaction.
const PRUNE_ROWS: i64 = PRUNE_EVERY * PRUNE_RATE;

/// The state of the database as last announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) db_version: DbVersion,
    pub(crate) schema_version: i64,
    /// A hash of the names of the replicated tables.
    pub(crate) tables: u64,
    /// Grows with every merge that moved our cursor, also where no row changed.
    pub(crate) progress: u64,
}

impl Announced {
    /// Whether the application changed its schema version, or which tables replicate.
    pub(crate) fn is_other_schema(&self, before: &Self) -> bool {
        (self.schema_version, self.tables) != (before.schema_version, before.tables)
    }
}

/// Handle to the thread. The thread ends when it is told to, and when the last handle is gone.
#[derive(Clone)]
pub(crate) struct EngineThread {
    commands: mpsc::Sender<Command>,
    /// The command that finds this set is the last one.
    is_over: Arc<AtomicBool>,
    live: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
    check_is_queued: Arc<AtomicBool>,
    announced: watch::Receiver<Announced>,
}

/// A handle that does not keep the thread alive.
#[derive(Clone)]
pub(crate) struct Waker {
    commands: mpsc::WeakSender<Command>,
    check_is_queued: Arc<AtomicBool>,
}

impl Waker {
    /// Says that the database may have changed. Never waits. `false` when the thread is gone.
    pub(crate) fn wake(&self) -> bool {
        let Some(commands) = self.commands.upgrade() else { return false };
        if !self.check_is_queued.swap(true, Ordering::AcqRel) {
            let queued = self.check_is_queued.clone();
            let check = Box::new(move |_: &mut Engine| queued.store(false, Ordering::Release));
            // A full queue is as good: the thread looks after every command.
            if commands.try_send(Command { lane: Lane::Live, work: check, _place: None }).is_err() {
                self.check_is_queued.store(false, Ordering::Release);
            }
        }
        true
    }
}

impl EngineThread {
    pub(crate) fn spawn(engine: Engine, events: broadcast::Sender<Event>) -> Result<Self, StartError> {
        // Places are what commands wait for; the channel has room for all, and for a look.
        let (commands, receiver) = mpsc::channel(2 * COMMANDS_MAX + 1);
        let looked = look(&engine).map_err(PeerError::from)?;
        let (pruned, (sender, announced)) = (looked.db_version, watch::channel(looked));
        let site = engine.site().map_err(PeerError::from)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            engine,
            site,
            events,
            announced: sender,
            is_over: is_over.clone(),
            pruned,
            // One transaction, anywhere: peers that never run for long prune, too.
            prune_owed: PRUNE_ROWS,
            prune_from: DbVersion::new(fastrand::i64(0..=pruned.get())),
        };
        let run = move || {
            let mut lanes = Lanes::new(receiver);
            worker.run(&mut lanes);
            // The connection is closed. Now whoever waits for that learns of it.
            drop(lanes);
        };
        std::thread::Builder::new().name("litemesh-engine".to_owned()).spawn(run).map_err(StartError::Thread)?;
        let [live, bulk] = [0; 2].map(|_| Arc::new(Semaphore::new(COMMANDS_MAX)));
        Ok(Self { commands, is_over, live, bulk, check_is_queued: Arc::default(), announced })
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker { commands: self.commands.downgrade(), check_is_queued: self.check_is_queued.clone() }
    }

    /// What was announced last, and a way to wait for the next.
    pub(crate) fn announced(&self) -> watch::Receiver<Announced> {
        self.announced.clone()
    }

    /// Runs `work` on the thread, before all that is bulk. Waits for a place in the queue.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, PeerError> {
        self.call_in(Lane::Live, work).await
    }

    /// Runs `work` on the thread, when it is its lane's turn. It is done also where the caller gives up meanwhile.
    pub(crate) async fn call_in<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, PeerError> {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |engine: &mut Engine| drop(reply.send(work(engine))));
        self.order(lane, work, answer).await
    }

    /// The same, for what nobody else has anything of: it is not done once the caller has given up.
    pub(crate) async fn call_while_awaited<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, PeerError> {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |engine: &mut Engine| {
            if !reply.is_closed() {
                drop(reply.send(work(engine)));
            }
        });
        self.order(lane, work, answer).await
    }

    async fn order<T>(&self, lane: Lane, work: Work, answer: oneshot::Receiver<T>) -> Result<T, PeerError> {
        let places = match lane {
            Lane::Live => &self.live,
            Lane::Bulk => &self.bulk,
        };
        let _place = Some(places.clone().acquire_owned().await.map_err(|_| PeerError::Stopped)?);
        self.commands.send(Command { lane, work, _place }).await.map_err(|_| PeerError::Stopped)?;
        self.answer(answer).await
    }

    async fn answer<T>(&self, mut answer: oneshot::Receiver<T>) -> Result<T, PeerError> {
        // A command that finds the thread gone stays in the queue, as its reply does.
        tokio::select! {
            biased;
            answer = &mut answer => answer.map_err(|_| PeerError::Stopped),
            () = self.commands.closed() => answer.try_recv().map_err(|_| PeerError::Stopped),
        }
    }

    /// Ends the thread. Everything that was ordered before is done first, also what nobody waits for any more: a merge of a session that
    /// was stopped must not come after what the application does next, a fork as it may be. Afterwards the connection is closed: closing
    /// it later would write to a file that the application has put in the place of this one.
    pub(crate) async fn end(&self) {
        for lane in [Lane::Live, Lane::Bulk] {
            // An error means that the thread has ended, and does nothing more.
            let _ = self.call_in(lane, |_| ()).await;
        }
        self.is_over.store(true, Ordering::Release);
        let _ = self.call(|_| ()).await;
        self.commands.closed().await;
    }

    /// Looks at the database now. When this resolves, everything committed before is announced.
    pub(crate) async fn check(&self) -> Result<(), PeerError> {
        // The first command is followed by the look, the second is answered after it.
        self.call(|_| ()).await?;
        self.call(|_| ()).await
    }
}

pub(crate) fn look(engine: &Engine) -> Result<Announced, StorageError> {
    let mut hasher = DefaultHasher::new();
    engine.tables()?.hash(&mut hasher);
    Ok(Announced {
        db_version: engine.db_version()?,
        schema_version: engine.schema_version()?,
        tables: hasher.finish(),
        progress: engine.progress_count(),
    })
}

struct Worker {
    engine: Engine,
    /// Whose peer this is. Remotes know us by it, so it must not change under them.
    site: SiteId,
    events: broadcast::Sender<Event>,
    announced: watch::Sender<Announced>,
    is_over: Arc<AtomicBool>,
    /// The version up to which it is known how many origins are to be looked at.
    pruned: DbVersion,
    prune_owed: i64,
    prune_from: DbVersion,
}

impl Worker {
    fn run(mut self, lanes: &mut Lanes) {
        let mut failed = false;
        while let Some((lane, work)) = lanes.next() {
            let began = Instant::now();
            // Also after what the last command did: whoever waits for this one learns that the thread has ended.
            if self.is_forked() {
                return;
            }
            // A panic is a bug, but not a reason to leave a peer that dials and never syncs again: whoever waits for the
            // command learns that it failed, and the engine's state is only a cache of the database.
            if catch_unwind(AssertUnwindSafe(|| work(&mut self.engine))).is_err() {
                let message = "internal error in the engine thread, please report it".to_owned();
                let _ = self.events.send(Event::Error { peer: None, transport: None, message });
            }
            match self.announce() {
                Ok(()) => failed = false,
                // Said once, not with every command; the next look may succeed.
                Err(error) if !failed => {
                    failed = true;
                    let message = format!("cannot look for changes: {error}");
                    let _ = self.events.send(Event::Error { peer: None, transport: None, message });
                }
                Err(_) => {}
            }
            lanes.took(lane, began.elapsed());
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// Whether somebody gave the database another site id. What remotes asked of the old one is not for the new one to answer.
    fn is_forked(&self) -> bool {
        let Ok(site) = self.engine.site() else { return false };
        if site == self.site {
            return false;
        }
        let message =
            format!("this database was forked: its site id was {} and is {site} now. Start the peer again", self.site);
        // An error means that nobody listens.
        let _ = self.events.send(Event::Error { peer: None, transport: None, message });
        true
    }

    fn announce(&mut self) -> Result<(), StorageError> {
        let before = *self.announced.borrow();
        let now = look(&self.engine)?;
        if now == before {
            return Ok(());
        }
        if now.db_version > before.db_version {
            let tables = self.engine.tables_changed_since(before.db_version)?;
            if !tables.is_empty() {
                // An error means that nobody listens.
                let _ = self.events.send(Event::Change { tables });
            }
        }
        self.announced.send_replace(now);
        self.prune(now.db_version)
    }

    fn prune(&mut self, version: DbVersion) -> Result<(), StorageError> {
        let new = version.get() - self.pruned.get();
        if new >= PRUNE_EVERY {
            self.prune_owed = self.prune_owed.saturating_add(new.saturating_mul(PRUNE_RATE));
            self.pruned = version;
        }
        if self.prune_owed <= 0 {
            return Ok(());
        }
        // It is only upkeep, and waits for no writer.
        let connection = self.engine.connection();
        let patience: u32 = connection.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
        connection.busy_timeout(Duration::ZERO)?;
        let pruned = self.engine.prune_origins(self.prune_from, PRUNE_ROWS as usize);
        self.engine.connection().busy_timeout(Duration::from_millis(patience.into()))?;
        match pruned {
            Ok(next) => {
                let is_at_end = next == DbVersion::ZERO;
                self.prune_owed = if is_at_end { 0 } else { self.prune_owed - PRUNE_ROWS };
                self.prune_from = next;
                Ok(())
            }
            Err(error) if error.is_transient() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was ordered by who has given up is done before the end.
    #[tokio::test]
    async fn to_end_is_to_have_done_everything_and_to_have_closed_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.db");
        let thread = EngineThread::spawn(Engine::open(&file).unwrap(), broadcast::channel(1).0).unwrap();
        let wal = folder.path().join("a.db-wal");
        assert!(wal.exists());
        let (go, may_go) = std::sync::mpsc::sync_channel::<()>(1);
        let done = Arc::new(AtomicBool::new(false));
        let is_done = done.clone();
        let ordered = thread.call_in(Lane::Bulk, move |_| {
            may_go.recv().unwrap();
            is_done.store(true, Ordering::SeqCst);
        });
        // It is ordered when this is over, and given up.
        assert!(tokio::time::timeout(std::time::Duration::ZERO, ordered).await.is_err());
        let end = tokio::spawn({
            let thread = thread.clone();
            async move { thread.end().await }
        });
        go.send(()).unwrap();
        end.await.unwrap();
        assert!(done.load(Ordering::SeqCst));
        assert!(!wal.exists(), "the last connection to a file removes it");
    }

    /// Whoever asks while the thread ends is answered.
    #[tokio::test]
    async fn a_call_to_a_thread_that_ends_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.db");
        let thread = EngineThread::spawn(Engine::open(&file).unwrap(), broadcast::channel(1).0).unwrap();
        let place = thread.commands.clone().reserve_owned().await.unwrap();
        // It ends when somebody gives its database another id.
        Engine::open(&file).unwrap().fork(None).unwrap();
        assert!(matches!(thread.call(|_| ()).await, Err(PeerError::Stopped)));
        thread.commands.closed().await;
        assert!(matches!(thread.call(|_| ()).await, Err(PeerError::Stopped)));
        // A command that had its place before.
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |_| reply.send(()).unwrap());
        place.send(Command { lane: Lane::Live, work, _place: None });
        assert!(matches!(thread.answer(answer).await, Err(PeerError::Stopped)));
    }
}
