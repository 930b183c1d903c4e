//! Their side: real CRSqlite in a Node process, spoken to over pipes (`interop/src/engine-server.mjs`).

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;

use serde_json::{Value, json};

use crate::Result;
use crate::engine::{Engine, Literal, Outcome, blob_literal, hex, real_literal, text_literal};

/// The folder of the Node programs, as seen from this crate.
fn interop_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../interop")
}

/// The process. It ends when this is dropped, because its input does.
pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Server {
    fn start() -> Result<Self> {
        let mut child = Command::new("node")
            .arg("src/engine-server.mjs")
            .current_dir(interop_folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot run node: {error}"))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().ok_or("no pipe from node")?);
        Ok(Self { child, input, output })
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        let input = self.input.as_mut().ok_or("the pipe to node is closed")?;
        writeln!(input, "{request}")?;
        input.flush()?;
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("CRSqlite's process ended; run `npm ci` in interop/ first".into());
        }
        let answer: Value = serde_json::from_str(&line)?;
        match answer["dead"].as_str() {
            Some(reason) => Err(format!("CRSqlite died: {reason}").into()),
            None => Ok(answer),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        // It may have ended already.
        let _ = self.child.wait();
    }
}

/// Where databases of the original are opened. Shared by all of them.
#[derive(Clone)]
pub(crate) struct Originals {
    server: Rc<RefCell<Server>>,
}

impl Originals {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self { server: Rc::new(RefCell::new(Server::start()?)) })
    }

    pub(crate) fn open(&self, site: [u8; 16]) -> Result<Original> {
        self.opened(&json!({ "open": hex(&site) }))
    }

    /// Opens the bytes of a database file.
    pub(crate) fn open_file(&self, bytes: &[u8], read_only: bool) -> Result<Original> {
        self.opened(&json!({ "openFile": hex(bytes), "readOnly": read_only }))
    }

    fn opened(&self, request: &Value) -> Result<Original> {
        let answer = self.server.borrow_mut().ask(request)?;
        let database = answer["database"].as_u64().ok_or_else(|| format!("it cannot be opened: {answer}"))?;
        Ok(Original { server: self.server.clone(), database, autocommit: true })
    }
}

/// A database of real CRSqlite, in memory.
pub(crate) struct Original {
    server: Rc<RefCell<Server>>,
    database: u64,
    autocommit: bool,
}

impl Drop for Original {
    fn drop(&mut self) {
        // Fails only where the process is gone, and then there is nothing left to close.
        let _ = self.server.borrow_mut().ask(&json!({ "close": self.database }));
    }
}

impl Engine for Original {
    fn run(&mut self, texts: &[String]) -> Result<Vec<Outcome>> {
        let answer = self.server.borrow_mut().ask(&json!({ "run": texts, "database": self.database }))?;
        self.autocommit = answer["autocommit"].as_bool().ok_or("no autocommit in the answer")?;
        answer["outcomes"].as_array().ok_or("no outcomes in the answer")?.iter().map(outcome).collect()
    }

    fn is_autocommit(&self) -> bool {
        self.autocommit
    }
}

fn outcome(answer: &Value) -> Result<Outcome> {
    if let Some(rows) = answer["rows"].as_array() {
        let row = |row: &Value| row.as_array().ok_or("a row")?.iter().map(literal).collect();
        return Ok(Outcome::Rows(rows.iter().map(row).collect::<Result<_>>()?));
    }
    let code = answer["code"].as_i64().and_then(|code| i32::try_from(code & 0xff).ok()).ok_or("a result code")?;
    Ok(Outcome::Error { code, message: answer["message"].as_str().unwrap_or_default().to_owned() })
}

fn literal(value: &Value) -> Result<Literal> {
    let Some(text) = value.as_str() else { return Ok("NULL".to_owned()) };
    let (kind, rest) = text.split_at_checked(1).ok_or("a value")?;
    Ok(match kind {
        "i" => rest.to_owned(),
        "r" => real_literal(f64::from_bits(u64::from_str_radix(rest, 16)?)),
        "t" => text_literal(&const_hex::decode(rest)?),
        "b" => blob_literal(&const_hex::decode(rest)?),
        _ => return Err(format!("unknown value {text}").into()),
    })
}
