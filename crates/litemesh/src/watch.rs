//! Notices commits of other processes: a watch on the database's files, and a slow poll where that is not to be had.
//!
//! The watch carries no data. It makes the engine thread look at `PRAGMA data_version`, which is what decides.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::engine_thread::Waker;

/// How often the database is looked at in any case: half of the 100 ms within which a foreign write must be noticed, for
/// file systems that report nothing.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A running watch. It ends when dropped.
pub(crate) struct FileWatch {
    _watcher: Option<RecommendedWatcher>,
    poll: tokio::task::JoinHandle<()>,
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

impl FileWatch {
    /// Begins to watch. `path` is `None` for a database in memory, where all writers are in this process.
    pub(crate) fn start(path: Option<&Path>, waker: Waker) -> Self {
        let watcher = path.and_then(|path| match watch(path, waker.clone()) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "cannot watch the database's folder, foreign writes are found by polling");
                None
            }
        });
        let poll = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(POLL_INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while waker.wake() {
                ticks.tick().await;
            }
        });
        Self { _watcher: watcher, poll }
    }
}

fn watch(path: &Path, waker: Waker) -> notify::Result<RecommendedWatcher> {
    let path = path.canonicalize()?;
    let name = path.file_name().map(OsString::from).unwrap_or_default();
    let wal = [name.as_encoded_bytes(), b"-wal"].concat();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reads are reported, too; waking for those would answer every look with another one.
        let Ok(event) = event else { return };
        if matches!(event.kind, notify::EventKind::Access(_)) {
            return;
        }
        let is_ours = |path: &std::path::PathBuf| {
            path.file_name().is_some_and(|file| file == name || file.as_encoded_bytes() == wal)
        };
        if event.paths.iter().any(is_ours) {
            waker.wake();
        }
    })?;
    // The folder, because the WAL comes and goes.
    watcher.watch(path.parent().unwrap_or(&path), RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
