//! `litemesh completions`: a script that completes our command line.

use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::Output;

pub(crate) fn run(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    // Into memory first: the generator panics where a write fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "litemesh", &mut script);
    Output::new().line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::Ok)
}
