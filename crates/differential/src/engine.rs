//! The two engines behind one interface: SQL texts in, exact outcomes out.

use std::fmt;

use crate::Result;

/// A value as the SQL literal that makes it. Equal literals mean equal values, to the bit of a REAL and the byte of a
/// TEXT.
pub(crate) type Literal = String;

/// One row of a result.
pub(crate) type Row = Vec<Literal>;

/// What one SQL text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran. Statements that give no rows have none.
    Rows(Vec<Row>),
    /// It failed, with SQLite's primary result code.
    Error {
        /// SQLite's primary result code.
        code: i32,
        /// SQLite's message.
        message: String,
    },
}

impl Outcome {
    pub(crate) fn is_error(&self) -> bool {
        matches!(self, Self::Error { .. })
    }

    /// The rows, where it ran.
    pub(crate) fn rows(self) -> Result<Vec<Row>> {
        match self {
            Self::Rows(rows) => Ok(rows),
            error => Err(error.to_string().into()),
        }
    }
}

impl fmt::Display for Outcome {
    /// Rows separated by `; `, values by `, `.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => {
                let rows: Vec<_> = rows.iter().map(|row| row.join(", ")).collect();
                f.write_str(&rows.join("; "))
            }
            Self::Error { code, message } => write!(f, "error {code}: {message}"),
        }
    }
}

/// An open database.
pub(crate) trait Engine {
    /// Runs each text, whatever came of the one before.
    fn run(&mut self, texts: &[String]) -> Result<Vec<Outcome>>;

    /// Whether no transaction is open, after the last run.
    fn is_autocommit(&self) -> bool;

    /// Runs one text.
    fn run_one(&mut self, text: &str) -> Result<Outcome> {
        let mut outcomes = self.run(&[text.to_owned()])?;
        outcomes.pop().ok_or_else(|| "an outcome for each text".into())
    }

    /// Runs texts that must not fail.
    fn must(&mut self, texts: &[String]) -> Result<()> {
        for (text, outcome) in texts.iter().zip(self.run(texts)?) {
            if outcome.is_error() {
                return Err(format!("{text}: {outcome}").into());
            }
        }
        Ok(())
    }
}

/// The bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const_hex::encode(bytes)
}

pub(crate) fn text_literal(bytes: &[u8]) -> Literal {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => format!("'{}'", text.replace('\'', "''")),
        _ => format!("CAST(x'{}' AS TEXT)", hex(bytes)),
    }
}

pub(crate) fn blob_literal(bytes: &[u8]) -> Literal {
    format!("x'{}'", hex(bytes))
}

/// The shortest digits that give the same bits again.
pub(crate) fn real_literal(value: f64) -> Literal {
    match value {
        f64::INFINITY => "9e999".to_owned(),
        f64::NEG_INFINITY => "-9e999".to_owned(),
        _ => format!("{value:?}"),
    }
}
