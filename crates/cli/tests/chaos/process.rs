//! `litemesh serve` and `litemesh sync` as processes that may be killed, frozen, and kept from writing.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::comes_true;
use crate::support::PATIENCE;

/// Lines of output that are kept, to be shown where a test fails.
const LINES_MAX: usize = 60;

/// Longest wait for the end of a process that was asked to stop: less than any time after which it gives up waiting itself.
const STOP_MAX: Duration = Duration::from_secs(45);

pub(crate) struct Process {
    child: Child,
    said: Arc<Mutex<VecDeque<String>>>,
    first: Receiver<String>,
    is_limited: bool,
}

impl Process {
    /// A hub, and where it listens. `None` where it does not come so far, which is a fault unless it may not write.
    pub(crate) fn serve(file: &str, blocks_max: Option<u64>, more: &[&str]) -> Option<(Self, SocketAddr)> {
        let hub = Self::start(&[&["serve", file, "--listen", "127.0.0.1:0", "--json"], more].concat(), blocks_max);
        let Ok(line) = hub.first.recv_timeout(PATIENCE) else {
            assert!(blocks_max.is_some(), "a hub that does not start: {}", hub.said());
            return None;
        };
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let address = line["url"].as_str().and_then(|url| url.strip_prefix("http://")?.parse().ok());
        Some((hub, address.unwrap_or_else(|| panic!("no address: {line}"))))
    }

    /// A peer of the hub at `url`, which dials again after `delay` seconds.
    pub(crate) fn sync(file: &str, url: &str, delay: &str, blocks_max: Option<u64>, more: &[&str]) -> Self {
        let args = ["sync", file, url, "--json", "--reconnect-delay", delay];
        Self::start(&[&args, more].concat(), blocks_max)
    }

    /// With a limit, no file can grow beyond so many blocks of 512 bytes: a write there fails, as on a full disk. (SQLite calls
    /// it an I/O error, since the system says "file too large" instead of "no space".)
    fn start(args: &[&str], blocks_max: Option<u64>) -> Self {
        let program = env!("CARGO_BIN_EXE_litemesh");
        let mut command = match blocks_max {
            None => Command::new(program),
            Some(blocks) => {
                let mut shell = Command::new("sh");
                let script = "trap '' XFSZ; ulimit -f \"$0\" && exec \"$@\"";
                shell.args(["-c", script, &blocks.to_string(), program]);
                shell
            }
        };
        command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let (sender, first) = sync_channel(1);
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let keep = said.clone();
        std::thread::spawn(move || {
            listen(stdout, |line| {
                // Nobody takes more than the first.
                let _ = sender.try_send(line.clone());
                remember(&keep, line);
            });
        });
        let keep = said.clone();
        std::thread::spawn(move || listen(stderr, |line| remember(&keep, line)));
        Self { child, said, first, is_limited: blocks_max.is_some() }
    }

    /// What it said last.
    pub(crate) fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().map(|line| format!("\n  {line}")).collect()
    }

    /// It must not have ended by itself. Only one that may not write may.
    #[track_caller]
    pub(crate) fn assert_runs(&mut self, name: &str) {
        if let Some(status) = self.child.try_wait().unwrap() {
            assert!(self.is_limited, "{name} ended by itself, {status}: {}", self.said());
        }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// As `kill -9` does it.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success() || self.is_limited, "no process to signal: {}", self.said());
    }

    /// Ends it in order.
    #[track_caller]
    pub(crate) fn stop(mut self, name: &str) {
        self.signal("-TERM");
        let has_ended = comes_true(STOP_MAX, || self.child.try_wait().unwrap().is_some());
        assert!(has_ended, "{name} does not stop: {}", self.said());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{name} did not stop well, {status}: {}", self.said());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(from: impl Read, mut to: impl FnMut(String)) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        to(line);
    }
}

/// Changes come so often that nothing else would be left.
fn remember(said: &Mutex<VecDeque<String>>, line: String) {
    if line.contains("\"event\":\"change\"") {
        return;
    }
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    if said.len() == LINES_MAX {
        said.pop_front();
    }
    said.push_back(line);
}
