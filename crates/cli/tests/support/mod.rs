//! Runs the real program: to its end, or as a child that is talked to. Every wait is bounded, none is a sleep.
#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Far above what any step takes, so that a slow machine fails no test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Lines that wait to be looked at.
const LINES_MAX: usize = 4096;

pub(crate) const SCHEMA: &str =
    "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE tag (id INTEGER PRIMARY KEY NOT NULL, name TEXT);";

/// What a run of the program came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// The run must have succeeded; gives what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// The run must have failed with this code, with one line that holds all of `words`, and without a backtrace.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.starts_with("litemesh: "), "{self:?}");
        let errors = self.stderr.lines().filter(|line| !line.starts_with("litemesh: warning: "));
        assert_eq!(errors.count(), 1, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {self:?}");
        }
        assert!(!self.stderr.contains("stack backtrace"), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// The program, with its output to be read.
pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litemesh"));
    command.args(args);
    piped(command)
}

/// A command whose output is read.
pub(crate) fn piped(mut command: Command) -> Command {
    command
        .env_remove("RUST_LOG")
        .env_remove("LITEMESH_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn read_to_end(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Runs the program to its end.
#[track_caller]
pub(crate) fn litemesh(args: &[&str]) -> Done {
    litemesh_with_input(args, "")
}

/// Runs the program to its end, with `input` as its standard input.
#[track_caller]
pub(crate) fn litemesh_with_input(args: &[&str], input: &str) -> Done {
    run(program(args), input)
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(mut command: Command, input: &str) -> Done {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdout = read_to_end(child.stdout.take().unwrap());
    let stderr = read_to_end(child.stderr.take().unwrap());
    // A program that reads no input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Ok(stdout) = stdout.recv_timeout(PATIENCE) else {
        let _ = child.kill();
        panic!("{command:?} did not end; {}", stderr.recv_timeout(PATIENCE).unwrap_or_default());
    };
    let stderr = stderr.recv_timeout(PATIENCE).unwrap();
    Done { code: child.wait().unwrap().code(), stdout, stderr }
}

/// The program as a child that prints JSON lines.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<Value>,
    stderr: Receiver<String>,
}

impl Running {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(&mut program(args))
    }

    /// One that logs everything that there is to log.
    pub(crate) fn start_tracing(args: &[&str]) -> Self {
        Self::spawn(program(args).env("RUST_LOG", "trace"))
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        Self::of(child, stdout)
    }

    /// One that was started, and where its output is to be read.
    pub(crate) fn of(mut child: Child, stdout: impl Read + Send + 'static) -> Self {
        let stdout = BufReader::new(stdout);
        let stderr = read_to_end(child.stderr.take().unwrap());
        let (sender, lines) = sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, stderr }
    }

    /// The next line.
    #[track_caller]
    pub(crate) fn line(&self) -> Value {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!("no line: {error}; {:?}", self.stderr.try_recv()),
        }
    }

    /// The next line whose member `event` is this.
    #[track_caller]
    pub(crate) fn event(&self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let line = self.line();
            if line["event"] == name {
                return line;
            }
        }
        panic!("no event {name}");
    }

    /// Reads lines until each of these events came, in whatever order.
    #[track_caller]
    pub(crate) fn events(&self, names: &[&str]) {
        let mut missing = names.to_vec();
        while !missing.is_empty() {
            let line = self.line();
            missing.retain(|name| line["event"] != *name);
        }
    }

    #[cfg(unix)]
    #[track_caller]
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let stderr = self.stderr.recv_timeout(PATIENCE).expect("it ends after a signal");
        (self.child.wait().unwrap(), stderr)
    }

    /// Sends a signal, and waits for the end.
    #[cfg(unix)]
    #[track_caller]
    pub(crate) fn stop(self, signal: &str) -> (ExitStatus, String) {
        self.signal(signal);
        self.end()
    }

    /// Stops a hub, which must end well; what it has done.
    #[cfg(unix)]
    #[track_caller]
    pub(crate) fn stats_at_stop(self) -> Value {
        self.signal("-TERM");
        let stats = self.event("stats");
        let (status, stderr) = self.end();
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
        stats
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with database files.
pub(crate) struct Files {
    folder: TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> String {
        std::fs::write(self.folder.path().join(name), content).unwrap();
        self.path(name)
    }

    /// A new file with the replicated tables of [`SCHEMA`].
    #[track_caller]
    pub(crate) fn database(&self, name: &str) -> String {
        let (file, schema) = (self.path(name), self.write("schema.sql", SCHEMA));
        litemesh(&["init", &file, "--schema", &schema]).ok();
        file
    }
}

/// Rows of a query, as JSON.
#[track_caller]
pub(crate) fn rows(file: &str, sql: &str) -> Value {
    litemesh(&["sql", file, sql, "--json"]).json()
}

/// A hub on a free port.
pub(crate) struct Hub {
    pub(crate) running: Running,
    pub(crate) url: String,
    pub(crate) site: String,
}

impl Hub {
    #[track_caller]
    pub(crate) fn start(file: &str, more: &[&str]) -> Self {
        Self::of(Running::start(&[&["serve", file, "--listen", "127.0.0.1:0", "--json"], more].concat()))
    }

    /// One that was started with `--json`.
    #[track_caller]
    pub(crate) fn of(running: Running) -> Self {
        let first = running.line();
        assert_eq!(first["event"], "listening", "{first}");
        let text = |name: &str| first[name].as_str().unwrap().to_owned();
        Self { url: text("url"), site: text("site_id"), running }
    }
}
