//! The `litemesh` program: hub, sync, SQL and inspection of replicated SQLite files.
//!
//! [`args`] says what can be asked for, one module of [`commands`] does it, [`failure`] says why it could not, and
//! [`exit_code`] what a script sees of that.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![forbid(unsafe_code)]

mod args;
mod commands;
mod database_file;
mod event_line;
mod exit_code;
mod failure;
mod output;
mod rows;
mod shutdown;

use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};
use crate::exit_code::ExitCode;
use crate::failure::Failure;

fn main() -> process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that is gone wants no help.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Ok }.into();
        }
    };
    start_tracing(cli.verbose);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("panic").replace('\n', " ");
        say(&Failure::internal(format!("internal error at {place}: {what}")));
    }));
    let result = catch_unwind(AssertUnwindSafe(|| run(cli.command)));
    match result {
        Ok(Ok(code)) => code.into(),
        Ok(Err(failure)) => {
            if !matches!(failure, Failure::BrokenPipe) {
                say(&failure);
            }
            failure.exit_code().into()
        }
        Err(_) => ExitCode::Internal.into(),
    }
}

/// The one line about a failure.
fn say(failure: &Failure) {
    // One line, whatever names and messages from outside are in it.
    let line = output::printable(&failure.to_string()).replace('\n', " ");
    // Where standard error is gone nobody can be told.
    let _ = writeln!(std::io::stderr(), "litemesh: {line}");
}

fn start_tracing(verbose: u8) {
    let level = match verbose {
        // What the verifier says of a certificate is in our own line already; the client of relays logs whole messages.
        0 => "error,rustls_platform_verifier=off,nostr_relay_pool=off",
        1 => "info,nostr_relay_pool=off",
        _ => "debug,nostr_relay_pool=off",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal).init();
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Init(args) => commands::init::run(&args),
        Command::Serve(args) => block_on(commands::serve::run(&args)),
        Command::Sync(args) => block_on(commands::sync::run(&args)),
        Command::Stdio(args) => block_on(commands::stdio::run(&args)),
        Command::Pair(args) => block_on(commands::pairings::pair(&args)),
        Command::Join(args) => block_on(commands::pairings::join(&args)),
        Command::Peers(args) => commands::pairings::peers(&args),
        Command::Unpair(args) => commands::pairings::unpair(&args),
        Command::Sql(args) => commands::sql::run(&args),
        Command::Status(args) => commands::status::run(&args),
        Command::Diff(args) => commands::diff::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Fork(args) => commands::fork::run(&args),
        Command::Token(args) => commands::token::run(&args),
        Command::Demo(args) => block_on(commands::demo::run(&args)),
        Command::Completions(args) => commands::completions::run(&args),
    }
}

fn block_on(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(command);
    // A read of standard input cannot be interrupted; nothing else is left to wait for.
    runtime.shutdown_background();
    result
}
