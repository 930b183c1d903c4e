//! `litemesh sql`: runs SQL with the engine loaded, from the command line, standard input or a prompt.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use litemesh::engine::Engine;
use litemesh::rusqlite::fallible_iterator::FallibleIterator;
use litemesh::rusqlite::{self, Batch};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::args::SqlArgs;
use crate::database_file;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, message};
use crate::output::{Output, counted};
use crate::rows::Rows;

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Json,
    Csv,
}

pub(crate) fn run(args: &SqlArgs) -> Result<ExitCode, Failure> {
    let database = database_file::open(&args.file)?;
    let engine = database.lock();
    let form = match (args.json, args.csv) {
        (true, _) => Form::Json,
        (_, true) => Form::Csv,
        _ => Form::Table,
    };
    let session = Session { file: &args.file, engine: &engine, form };
    let mut output = Output::new();
    if let Some(sql) = &args.sql {
        session.run(sql, &mut output)?;
    } else if io::stdin().is_terminal() {
        session.prompt(&mut output)?;
    } else {
        let mut sql = String::new();
        io::stdin().read_to_string(&mut sql).map_err(|error| {
            Failure::database(format!("cannot read standard input: {error}"), "give SQL as UTF-8 text")
        })?;
        session.run(&sql, &mut output)?;
    }
    Ok(ExitCode::Ok)
}

struct Session<'a> {
    file: &'a Path,
    engine: &'a Engine,
    form: Form,
}

impl Session<'_> {
    /// Runs SQL or one command that begins with a dot.
    fn run(&self, sql: &str, output: &mut Output) -> Result<(), Failure> {
        if let Some(command) = sql.trim().strip_prefix('.') {
            return self.dot_command(command, output);
        }
        let mut last = None;
        let connection = self.engine.connection();
        let mut batch = Batch::new(connection, sql);
        let failed = |error: rusqlite::Error| self.failed(&error);
        while let Some(mut statement) = batch.next().map_err(failed)? {
            if statement.column_count() == 0 {
                let changed_before = connection.total_changes();
                statement.execute([]).map_err(failed)?;
                let changed = connection.total_changes() - changed_before;
                if self.form == Form::Table && Output::is_terminal() && !statement.readonly() && changed > 0 {
                    output.line(format_args!("{} changed", counted(connection.changes(), "row")))?;
                }
                continue;
            }
            let rows = Rows::read(&mut statement).map_err(failed)?;
            if self.form == Form::Table {
                rows.write_table(output)?;
            } else {
                last = Some(rows);
            }
        }
        match self.form {
            Form::Table => Ok(()),
            // A script can parse this without asking whether there was a query.
            Form::Json => last.unwrap_or_default().write_json(output),
            Form::Csv => last.map_or(Ok(()), |rows| rows.write_csv(output)),
        }
    }

    fn failed(&self, error: &rusqlite::Error) -> Failure {
        match error {
            rusqlite::Error::SqlInputError { .. } => Failure::database(
                format!("SQL: {}", message(error)),
                "correct the statement; `.schema` shows the tables",
            ),
            other => Failure::sqlite(self.file, other),
        }
    }

    fn dot_command(&self, command: &str, output: &mut Output) -> Result<(), Failure> {
        match command.trim().trim_end_matches(';') {
            "help" => output.line(HELP),
            "tables" => self.run(TABLES, output),
            "schema" => {
                let connection = self.engine.connection();
                let mut statement = connection.prepare(SCHEMA).map_err(|error| self.failed(&error))?;
                let mut rows = statement.query([]).map_err(|error| self.failed(&error))?;
                while let Some(row) = rows.next().map_err(|error| self.failed(&error))? {
                    let sql: String = row.get(0).map_err(|error| self.failed(&error))?;
                    output.line(format_args!("{};", crate::output::printable(&sql)))?;
                }
                Ok(())
            }
            other => Err(Failure::usage(format!("there is no command .{other}"), ".help lists those that there are")),
        }
    }

    /// Reads statements from the terminal until the user leaves.
    fn prompt(&self, output: &mut Output) -> Result<(), Failure> {
        let terminal = |error: ReadlineError| Failure::internal(format!("the terminal cannot be read: {error}"));
        let mut editor = DefaultEditor::new().map_err(terminal)?;
        let history = history_file();
        if let Some(history) = &history {
            // A first run has none.
            let _ = editor.load_history(history);
        }
        output.line(format_args!(
            "{} with the engine of litemesh. .help helps, .quit or Ctrl-D ends.",
            self.file.display()
        ))?;
        let mut pending = String::new();
        loop {
            let line = match editor.readline(if pending.is_empty() { "litemesh> " } else { "     ...> " }) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    pending.clear();
                    continue;
                }
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(terminal(error)),
            };
            if pending.is_empty() && matches!(line.trim(), ".quit" | ".exit") {
                break;
            }
            if !pending.is_empty() {
                pending.push('\n');
            }
            pending.push_str(&line);
            if !is_complete(&pending) {
                continue;
            }
            let statement = std::mem::take(&mut pending);
            if statement.trim().is_empty() {
                continue;
            }
            // The history is a comfort; without it the prompt goes on.
            let _ = editor.add_history_entry(&statement);
            match self.run(&statement, output) {
                Ok(()) => {}
                Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
                Err(failure) => output.line(format_args!("error: {failure}"))?,
            }
        }
        if let Some(history) = &history {
            let _ = history.parent().map(std::fs::create_dir_all);
            let _ = editor.save_history(history);
        }
        Ok(())
    }
}

const HELP: &str = "\
.tables   the tables, and which of them are replicated
.schema   the statements that made the tables
.quit     ends, as does Ctrl-D
.help     this

Everything else is SQL, and ends with a semicolon. Ctrl-C forgets what was typed.
crsql_as_crr('t') makes a table replicated, crsql_changes holds the changes,
crsql_site_id() and crsql_db_version() say who and where we are.";

/// Tables that a user made; the engine's own and their shadows would hide them.
const TABLES: &str = "SELECT t.name AS \"table\",
    CASE WHEN EXISTS (SELECT 1 FROM sqlite_master c WHERE c.type = 'table' AND c.name = t.name || '__crsql_clock')
         THEN 'yes' ELSE 'no' END AS replicated
    FROM pragma_table_list t
    WHERE t.schema = 'main' AND t.type IN ('table', 'virtual') AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
      AND t.name NOT LIKE 'crsql\\_%' ESCAPE '\\' AND t.name NOT LIKE 'litemesh\\_%' ESCAPE '\\'
      AND t.name NOT LIKE '%\\_\\_crsql\\_clock' ESCAPE '\\' AND t.name NOT LIKE '%\\_\\_crsql\\_pks' ESCAPE '\\'
    ORDER BY t.name";

/// Without triggers and tables of the engine.
const SCHEMA: &str = "SELECT sql FROM sqlite_master
    WHERE sql IS NOT NULL AND name NOT LIKE '%\\_\\_crsql\\_%' ESCAPE '\\' AND tbl_name NOT LIKE '%\\_\\_crsql\\_%' ESCAPE '\\'
      AND tbl_name NOT LIKE 'crsql\\_%' ESCAPE '\\' AND tbl_name NOT LIKE 'litemesh\\_%' ESCAPE '\\'
      AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    ORDER BY tbl_name, type DESC, name";

/// Whether the prompt should run what was typed: one line with a dot, or SQL up to a semicolon. The semicolons inside of a
/// trigger's body do not count.
fn is_complete(typed: &str) -> bool {
    let typed = typed.trim();
    if typed.is_empty() || typed.starts_with('.') {
        return true;
    }
    let upper = typed.to_ascii_uppercase();
    let mut words = upper.split_whitespace();
    let is_trigger = words.next() == Some("CREATE") && words.take(2).any(|word| word == "TRIGGER");
    let before_end = upper.strip_suffix(';').map(str::trim_end);
    match before_end {
        None => false,
        Some(body) => !is_trigger || body.ends_with("END"),
    }
}

/// The history of the prompt, in the user's folder for such things.
fn history_file() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = if cfg!(windows) {
        from("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        from("HOME").map(|home| home.join("Library/Application Support"))
    } else {
        from("XDG_STATE_HOME").or_else(|| from("HOME").map(|home| home.join(".local/state")))
    };
    Some(state?.join("litemesh").join("sql_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_waits_for_the_end_of_a_statement() {
        for complete in ["", ".tables", "SELECT 1;", "SELECT\n1 ; ", "CREATE TEMP TRIGGER t BEGIN SELECT 1; END;"] {
            assert!(is_complete(complete), "{complete}");
        }
        for open in ["SELECT 1", "CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT 1;"] {
            assert!(!is_complete(open), "{open}");
        }
    }
}
