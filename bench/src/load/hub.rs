//! The hub: a process of this program, and what the kernel says of it.

use std::path::Path;
use std::process::Stdio;

use litemesh::Database;
use litemesh::engine::MergeProgress;
use litemesh::proto::{DbVersion, SiteId};
use litemesh::rusqlite::params;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::Error;

/// Each transaction inserts one row: a key, and a body that begins with the time.
pub const SCHEMA: &str = "CREATE TABLE message (id TEXT PRIMARY KEY NOT NULL, body TEXT)";

pub struct Hub {
    child: Child,
    pub url: String,
}

impl Hub {
    /// `listen`: an address, with port 0 for any.
    pub async fn start(file: &Path, listen: &str) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("hub")
            .arg(file)
            .args(["--listen", listen])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        let url = lines.next_line().await?.ok_or("the hub did not start")?;
        Ok(Self { child, url })
    }

    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap_or(&self.url)
    }

    /// Ends it as a crash does.
    pub async fn kill(mut self) -> Result<(), Error> {
        Ok(self.child.kill().await?)
    }

    /// Resident memory, in KiB.
    pub fn memory_kib(&self) -> Result<u64, Error> {
        self.status("VmRSS:")
    }

    /// Most resident memory so far, in KiB.
    pub fn peak_memory_kib(&self) -> Result<u64, Error> {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> Result<u64, Error> {
        let id = self.child.id().ok_or("the hub has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find(|line| line.starts_with(name)).ok_or("no such line in /proc")?;
        Ok(line.split_whitespace().nth(1).ok_or("no number in /proc")?.parse()?)
    }

    /// Seconds of CPU time so far.
    pub fn cpu_seconds(&self) -> Result<f64, Error> {
        cpu_seconds(&self.child.id().ok_or("the hub has ended")?.to_string())
    }
}

/// Seconds of CPU time of a process, `self` for this one.
pub fn cpu_seconds(id: &str) -> Result<f64, Error> {
    /// The kernel's unit in /proc, whatever its own tick is.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')').ok_or("no name in /proc")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64, Error> { Ok(fields.get(index).ok_or("a short line in /proc")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

pub fn create(db: &Database) -> Result<(), Error> {
    db.lock().connection().execute_batch(SCHEMA)?;
    db.lock().replicate("message")?;
    Ok(())
}

/// Inserts rows that carry no time, in transactions of `batch`.
pub fn fill(db: &Database, name: &str, rows: usize, batch: usize) -> Result<(), Error> {
    let engine = db.lock();
    let mut row = 0;
    while row < rows {
        let transaction = engine.connection().unchecked_transaction()?;
        for n in row..rows.min(row + batch) {
            let body = format!("0 what {name} {n} said, a sentence or so");
            transaction.execute("INSERT INTO message VALUES (?1, ?2)", params![format!("{name}-{n:08}"), body])?;
        }
        transaction.commit()?;
        row += batch;
    }
    Ok(())
}

/// Makes the database know so many sites that are not there any more.
pub fn know_sites(db: &Database, sites: usize) -> Result<(), Error> {
    let site = |number: usize| SiteId::from_bytes((number as u128 + (0x5173 << 112)).to_be_bytes());
    let cursor = (0..sites).map(|number| (site(number), DbVersion::new(1))).collect();
    db.lock().merge(&[], &MergeProgress { cursor, ..MergeProgress::default() })?;
    Ok(())
}

pub fn count(db: &Database) -> Result<usize, Error> {
    let count: i64 = db.lock().connection().query_row("SELECT count(*) FROM message", [], |row| row.get(0))?;
    Ok(usize::try_from(count)?)
}
