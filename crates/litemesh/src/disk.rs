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

use tokio::sync::Mutex;

/// Makes what is committed durable.
pub(crate) struct Disk {
    /// `None` for a database in memory, where nothing is.
    wal: Option<PathBuf>,
    /// Calls so far.
    asked: AtomicU64,
    /// Calls that a flush came after.
    flushed: Mutex<u64>,
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
        Self { wal, asked: AtomicU64::new(0), flushed: Mutex::new(0) }
    }

    /// Waits until everything is durable that was committed before the call. Calls that come while a flush is under way share the next one.
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
        if *flushed >= mine {
            return Ok(());
        }
        // All of these have committed what they want to be durable.
        let until = self.asked.load(Ordering::Acquire);
        let wal = wal.clone();
        tokio::task::spawn_blocking(move || flush(&wal)).await.map_err(io::Error::other)??;
        *flushed = until;
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
        assert_eq!(*disk.flushed.lock().await, 5);
    }

    #[tokio::test]
    async fn a_database_in_memory_has_nothing_to_flush() {
        Disk::of(None).flush().await.unwrap();
    }
}
