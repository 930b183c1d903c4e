//! What is committed becomes durable before a remote is told that we have it.
//!
//! Commits with `synchronous=NORMAL` survive the death of the process, and not that of the machine: they stand in the WAL, which the
//! system has not written to the disk yet. A remote that hears of an acknowledgement may forget, or die itself. So the WAL is flushed
//! before, once for all sessions that wait for it, and beside the engine's thread, which goes on meanwhile. Frames that a checkpoint has
//! moved SQLite has flushed itself (<https://www.sqlite.org/pragma.html#pragma_synchronous>).

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Least time between the beginnings of two flushes. Each costs the system as much however little is new, and the engine's writes wait for
/// the disk along with it; a hub of hundreds of peers owes one of them an acknowledgement at any time. An acknowledgement may be 100 ms
/// late anyway (`litemesh_proto::limits::ACK_DELAY`).
const FLUSH_EVERY: Duration = Duration::from_millis(20);

/// Makes what is committed durable.
pub(crate) struct Disk {
    /// `None` for a database in memory, where nothing is.
    wal: Option<PathBuf>,
    /// Calls so far.
    asked: AtomicU64,
    flushed: Mutex<Flushed>,
}

#[derive(Default)]
struct Flushed {
    /// Calls that a flush came after.
    calls: u64,
    /// When the last one began.
    at: Option<Instant>,
}

impl Disk {
    /// A file that is open, or none.
    pub(crate) fn of(database: Option<&Path>) -> Self {
        let wal = database.map(|path| {
            // SQLite has it beside the file itself where the path is a link.
            let mut wal = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
            wal.push("-wal");
            PathBuf::from(wal)
        });
        Self { wal, asked: AtomicU64::new(0), flushed: Mutex::default() }
    }

    /// Waits until everything is durable that was committed before the call. Calls that come while a flush is under way, or soon after one
    /// began, share the next one.
    ///
    /// # Errors
    ///
    /// The disk fails. Whether something is durable is not known then.
    ///
    /// # Cancel safety
    ///
    /// Another call flushes again.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        let Some(wal) = &self.wal else { return Ok(()) };
        let mine = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut flushed = self.flushed.lock().await;
        if flushed.calls >= mine {
            return Ok(());
        }
        if let Some(at) = flushed.at {
            sleep_until(at + FLUSH_EVERY).await;
        }
        flushed.at = Some(Instant::now());
        // All of these have committed what they want to be durable.
        let until = self.asked.load(Ordering::Acquire);
        let wal = wal.clone();
        tokio::task::spawn_blocking(move || flush(&wal)).await.map_err(io::Error::other)??;
        flushed.calls = until;
        Ok(())
    }
}

/// SQLite holds no locks on this file, which closing it here would give up.
fn flush(wal: &Path) -> io::Result<()> {
    // Windows flushes nothing that is open for reading alone.
    match OpenOptions::new().write(true).open(wal) {
        Ok(file) => file.sync_data(),
        // A database without one commits to its file, and flushes that.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Where the WAL would be stands something that cannot be flushed: each call that has to flush says so.
    #[tokio::test]
    async fn who_waits_shares_a_flush_that_comes_after_his_commits_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::of(Some(&folder.path().join("a.db"))));
        disk.flush().await.unwrap();
        std::fs::create_dir(folder.path().join("a.db-wal")).unwrap();
        assert!(disk.flush().await.is_err(), "an earlier flush is none of what was committed since");

        // Three that wait for the one that is under way.
        std::fs::remove_dir(folder.path().join("a.db-wal")).unwrap();
        let under_way = disk.flushed.lock().await;
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                tokio::spawn({
                    let disk = disk.clone();
                    async move { disk.flush().await }
                })
            })
            .collect();
        while disk.asked.load(Ordering::Acquire) < 5 {
            tokio::task::yield_now().await;
        }
        drop(under_way);
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        assert_eq!(disk.flushed.lock().await.calls, 5);
    }

    /// The first waits for nobody, and those that follow it come together.
    #[tokio::test(start_paused = true)]
    async fn flushes_that_follow_each_other_are_one_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::of(Some(&folder.path().join("a.db")));
        let began = Instant::now();
        disk.flush().await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        let (one, two) = tokio::join!(disk.flush(), disk.flush());
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(began.elapsed(), FLUSH_EVERY);
        tokio::time::advance(FLUSH_EVERY).await;
        disk.flush().await.unwrap();
        assert_eq!(began.elapsed(), 2 * FLUSH_EVERY);
    }

    #[tokio::test]
    async fn a_database_in_memory_has_nothing_to_flush() {
        Disk::of(None).flush().await.unwrap();
    }
}
