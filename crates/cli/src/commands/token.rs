//! `litemesh token`: makes, lists and revokes tokens.

use std::path::Path;

use litemesh::proto::{Access, Rights};
use litemesh_http::{TokenEntry, TokenFile, TokenFileError};
use serde_json::{Value, json};

use crate::args::{ListTokensArgs, NewTokenArgs, RevokeTokenArgs, TokenArgs, TokenCommand};
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{Output, printable, table};

pub(crate) fn run(args: &TokenArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        TokenCommand::New(args) => new(args),
        TokenCommand::List(args) => list(args),
        TokenCommand::Revoke(args) => revoke(args),
    }
}

fn new(args: &NewTokenArgs) -> Result<ExitCode, Failure> {
    let access = args.rights.access();
    let access = match args.tables.as_slice() {
        [] => access,
        tables => access.only(tables).map_err(|error| Failure::usage(error.to_string(), ""))?,
    };
    let file = TokenFile::new(&args.file);
    if args.file.exists() {
        // Whatever else it is must not get a line added.
        file.read().map_err(|error| failure(&error))?;
    }
    let made = file.add(&args.name, &access).map_err(|error| failure(&error))?;
    let mut output = Output::new();
    if args.json {
        let entry = describe(&made.id, &args.name, &access);
        let mut line = entry;
        line["token"] = json!(made.token);
        output.json(&line)?;
    } else {
        // Alone, so that the output is a file for `litemesh sync --token-file`.
        output.line(&made.token)?;
    }
    Ok(ExitCode::Ok)
}

fn list(args: &ListTokensArgs) -> Result<ExitCode, Failure> {
    let entries = TokenFile::new(&args.file).read().map_err(|error| failure(&error))?;
    let mut output = Output::new();
    if args.json {
        let entries: Vec<Value> =
            entries.iter().map(|TokenEntry { id, name, access, .. }| describe(id, name, access)).collect();
        output.json(&entries)?;
    } else if entries.is_empty() {
        output.line(format_args!("{} has no token", printable(&args.file.display().to_string())))?;
    } else {
        let mut rows = table(["id", "rights", "tables", "name"]);
        for entry in &entries {
            let tables = entry.access.tables().map_or_else(|| "all".to_owned(), |tables| tables.join(", "));
            rows.add_row([&entry.id, rights(&entry.access), &printable(&tables), &printable(&entry.name)]);
        }
        output.line(rows)?;
    }
    Ok(ExitCode::Ok)
}

fn revoke(args: &RevokeTokenArgs) -> Result<ExitCode, Failure> {
    let entry = TokenFile::new(&args.file).revoke(&args.id).map_err(|error| failure(&error))?;
    let mut output = Output::new();
    if args.json {
        output.json(&describe(&entry.id, &entry.name, &entry.access))?;
    } else {
        output.line(format_args!("revoked {} ({})", entry.id, printable(&entry.name)))?;
    }
    Ok(ExitCode::Ok)
}

fn describe(id: &str, name: &str, access: &Access) -> Value {
    let tables = access.tables().map(|tables| tables.iter().map(AsRef::as_ref).collect::<Vec<&str>>());
    json!({ "id": id, "name": name, "rights": rights(access), "tables": tables })
}

/// The rights in the word of the options.
pub(crate) fn rights(access: &Access) -> &'static str {
    match access.rights() {
        Rights::ReadWrite => "read-write",
        Rights::Read => "read",
        Rights::Write => "write",
    }
}

/// Opens the file of a hub.
pub(crate) fn open(path: &Path) -> Result<TokenFile, Failure> {
    let file = TokenFile::new(path);
    file.read().map_err(|error| failure(&error))?;
    Ok(file)
}

/// Why a file of tokens is of no use.
pub(crate) fn failure(error: &TokenFileError) -> Failure {
    match error {
        TokenFileError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::database(error.to_string(), "`litemesh token new FILE NAME` makes one")
        }
        TokenFileError::Io { .. } => Failure::database(error.to_string(), "check the path, and that you may use it"),
        TokenFileError::Line { .. } | TokenFileError::TooLarge { .. } => {
            Failure::database(error.to_string(), "check that it is a file of `litemesh token`")
        }
        TokenFileError::NoSuchToken { .. } => {
            Failure::usage(error.to_string(), "`litemesh token list FILE` shows those that there are")
        }
        other => Failure::usage(other.to_string(), ""),
    }
}
