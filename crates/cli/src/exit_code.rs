//! What the exit status of the program means: one table, which `--help` prints.

use std::process;

/// The class of an outcome, and the number that a script sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Everything that was asked for is done.
    Ok = 0,
    /// A comparison found differences, a check found faults.
    Different = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A file cannot be opened, read or written, or SQL failed.
    Database = 3,
    /// A table breaks a rule of replicated tables.
    CannotReplicate = 4,
    /// An address cannot be listened on, or a hub not reached.
    Network = 5,
    /// A remote refused us, or we refused what it sent.
    Refused = 6,
    /// A mistake in the program itself.
    Internal = 70,
}

/// Every code with its meaning, in the order of the numbers.
const TABLE: [(ExitCode, &str); 8] = [
    (ExitCode::Ok, "done; for `diff` and `demo`: the files are equal; for `doctor`: the file is sound"),
    (ExitCode::Different, "`diff` or `demo` found differences, `doctor` found faults that are left"),
    (ExitCode::Usage, "the command line makes no sense"),
    (ExitCode::Database, "a file cannot be opened, read or written, or SQL failed"),
    (ExitCode::CannotReplicate, "a table cannot be replicated; the reason is printed"),
    (ExitCode::Network, "cannot listen, or the hub cannot be reached in time"),
    (ExitCode::Refused, "the hub or this side refused the other, or what it sent"),
    (ExitCode::Internal, "a mistake in litemesh itself: please report it"),
];

impl From<ExitCode> for process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// The table as a section of the help text.
pub(crate) fn help() -> String {
    let lines = TABLE.map(|(code, meaning)| format!("  {:>2}  {meaning}\n", code as u8));
    format!("Exit codes:\n{}", lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented_once_and_in_order() {
        let numbers = TABLE.map(|(code, _)| code as u8);
        assert!(numbers.is_sorted_by(|a, b| a < b));
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 70]);
    }
}
