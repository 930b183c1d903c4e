//! The SQL functions (`crsqlite-compat.md` section 7), but those that triggers call ([`crate::trigger_functions`]). Each is a
//! thin door to the room where the work is done.

use std::sync::Arc;

use litemesh_proto::PackedKey;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use rusqlite::{Connection, Result};

use crate::alter::{self, Compaction};
use crate::bootstrap::LAYOUT_VERSION;
use crate::core::{Shared, module_error};
use crate::error::{ReplicateError, to_sql};
use crate::heal::{self_heal, set_self_heal};
use crate::statement::to_value;
use crate::{automigrate, fractional, replicate};

/// The commit of upstream whose behaviour is specified; what `crsql_sha()` answers there.
const UPSTREAM_SHA: &str = "891fe9e0";

/// Which engine answers: not CRSqlite, whose functions have the same names as ours otherwise.
pub(crate) const VERSION_FUNCTION: &str = "litemesh_version";

pub(crate) fn register(connection: &Connection, shared: &Arc<Shared>) -> Result<()> {
    let innocuous = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let constant = innocuous | FunctionFlags::SQLITE_DETERMINISTIC;
    let plain = FunctionFlags::SQLITE_UTF8;
    let register = Registrar { connection, shared };

    register
        .function("crsql_site_id", 0, constant, |shared, _| Ok(shared.lock()?.current_site()?.as_bytes().to_vec()))?;
    register.function("crsql_db_version", 0, innocuous, |shared, _| shared.lock()?.db_version())?;
    register.function("crsql_next_db_version", -1, innocuous, next_db_version)?;
    register.function("crsql_get_seq", 0, innocuous, |shared, _| {
        let mut core = shared.lock()?;
        core.refresh()?;
        Ok(core.seq())
    })?;
    register.function("crsql_increment_and_get_seq", 0, innocuous, |shared, _| {
        let mut core = shared.lock()?;
        core.enlist()?;
        Ok(core.take_seqs(1))
    })?;
    // Asked after each change, maybe: what the steps noted has no part in it.
    register.function("crsql_rows_impacted", 0, innocuous, |shared, _| {
        let mut core = shared.lock_for_step()?;
        core.refresh()?;
        Ok(core.rows_impacted())
    })?;
    register.function("crsql_sha", 0, constant, |_, _| Ok(UPSTREAM_SHA))?;
    register.function("crsql_version", 0, constant, |_, _| Ok(LAYOUT_VERSION))?;
    register.function(VERSION_FUNCTION, 0, constant, |_, _| Ok(env!("CARGO_PKG_VERSION")))?;
    register.function("crsql_as_crr", -1, plain, as_crr)?;
    register.function("crsql_as_table", 1, plain, as_table)?;
    let direct = plain | FunctionFlags::SQLITE_DIRECTONLY;
    register.function("crsql_begin_alter", -1, direct, begin_alter)?;
    register.function("crsql_commit_alter", -1, direct, commit_alter)?;
    register.function("crsql_automigrate", -1, plain, automigrate)?;
    register.function("crsql_finalize", -1, direct, |shared, _| {
        shared.lock()?.finalize_statements();
        Ok("finalized")
    })?;
    register.function("crsql_pack_columns", -1, plain, pack_columns)?;
    register.function("litemesh_pack", -1, innocuous, pack_columns)?;
    register.function("crsql_config_set", 2, plain, config_set)?;
    register.function("crsql_config_get", 1, innocuous, config_get)?;
    register.function("crsql_fract_as_ordered", -1, direct, fractional::as_ordered)?;
    register.function("crsql_fract_key_between", 2, constant, fractional::sql_key_between)?;
    register.function("crsql_fract_fix_conflict_return_old_key", -1, innocuous, fractional::fix_conflict)?;
    Ok(())
}

struct Registrar<'a> {
    connection: &'a Connection,
    shared: &'a Arc<Shared>,
}

impl Registrar<'_> {
    fn function<T: rusqlite::functions::SqlFnOutput>(
        &self,
        name: &'static str,
        arguments: i32,
        flags: FunctionFlags,
        body: impl Fn(&Shared, &Context<'_>) -> Result<T> + Send + 'static,
    ) -> Result<()> {
        let shared = self.shared.clone();
        self.connection.create_scalar_function(name, arguments, flags, move |context| body(&shared, context))
    }
}

/// FN-3: with exactly one argument at least that; anything that is no integer counts as 0.
fn next_db_version(shared: &Shared, context: &Context<'_>) -> Result<i64> {
    let at_least = if context.len() == 1 { context.get_raw(0).as_i64().unwrap_or_default() } else { 0 };
    let mut core = shared.lock()?;
    core.db_version()?;
    Ok(core.promise_version(at_least))
}

fn text<'a>(context: &'a Context<'_>, index: usize, what: &str) -> Result<&'a str> {
    context.get_raw(index).as_str().map_err(|_| module_error(format!("{what} must be text")))
}

const WRONG_NUMBER: &str = "wrong number of args: give the table, or 'main' and the table";

/// A schema name, which must be that of the main database (TX-13).
fn main_schema(context: &Context<'_>) -> Result<()> {
    let schema = text(context, 0, "the schema name")?;
    if schema.eq_ignore_ascii_case("main") {
        return Ok(());
    }
    Err(to_sql(ReplicateError::OtherSchema { schema: schema.to_owned() }))
}

/// `(table)` or `('main', table)`.
fn table_argument<'a>(context: &'a Context<'_>) -> Result<&'a str> {
    match context.len() {
        1 => text(context, 0, "the table name"),
        2 => {
            main_schema(context)?;
            text(context, 1, "the table name")
        }
        _ => Err(module_error(WRONG_NUMBER)),
    }
}

/// CRR-1, where more than two arguments count as one.
fn as_crr(shared: &Shared, context: &Context<'_>) -> Result<&'static str> {
    let table = if context.len() > 2 { text(context, 0, "the table name")? } else { table_argument(context)? };
    replicate::replicate(shared, table).map_err(to_sql)?;
    Ok("OK")
}

/// ALT-1.
fn begin_alter(shared: &Shared, context: &Context<'_>) -> Result<&'static str> {
    alter::begin_alter(shared, table_argument(context)?).map_err(to_sql)?;
    Ok("OK")
}

/// ALT-3: `([schema,] table [, non_destructive])`; a last argument of 1 says that nothing has to be compacted.
fn commit_alter(shared: &Shared, context: &Context<'_>) -> Result<Option<i64>> {
    let last = context.len().checked_sub(1).map(|last| context.get_raw(last));
    let (table, compaction) = match (context.len(), last) {
        (2, Some(ValueRef::Integer(flag))) => (text(context, 0, "the table name")?, flag),
        (3, Some(ValueRef::Integer(flag))) => {
            main_schema(context)?;
            (text(context, 1, "the table name")?, flag)
        }
        (3, _) => return Err(module_error("the last argument must be 0 or 1")),
        _ => (table_argument(context)?, 0),
    };
    let compaction = if compaction == 1 { Compaction::Skipped } else { Compaction::Needed };
    alter::commit_alter(shared, table, compaction).map_err(to_sql)?;
    Ok(None)
}

/// AM-1: `(schema [, cleanup])`. No schema is one without tables.
fn automigrate(shared: &Shared, context: &Context<'_>) -> Result<&'static str> {
    if context.is_empty() {
        return Err(module_error("expected a schema: give the SQL text that makes it"));
    }
    let schema = match context.get_raw(0) {
        ValueRef::Null => "",
        _ => text(context, 0, "the schema")?,
    };
    let cleanup = match (context.len() == 2).then(|| context.get_raw(1)) {
        None | Some(ValueRef::Null) => None,
        Some(_) => Some(text(context, 1, "the cleanup")?),
    };
    automigrate::automigrate(shared, schema, cleanup).map_err(to_sql)?;
    Ok("migration complete")
}

fn as_table(shared: &Shared, context: &Context<'_>) -> Result<Option<i64>> {
    let failed = |error| module_error(format!("failed to downgrade the crr: {error}"));
    replicate::unreplicate(shared, text(context, 0, "the table name")?).map_err(failed)?;
    Ok(None)
}

/// FN-6.
fn pack_columns(_: &Shared, context: &Context<'_>) -> Result<Vec<u8>> {
    let values: Vec<_> = (0..context.len()).map(|index| to_value(context.get_raw(index))).collect();
    Ok(PackedKey::pack(&values)
        .map_err(|error| module_error(format!("failed to pack columns: {error}")))?
        .as_bytes()
        .to_vec())
}

/// The settings there are.
#[derive(Clone, Copy)]
enum Setting {
    /// CFG-1.
    MergeEqualValues,
    /// ALT-7.
    SelfHeal,
}

impl Setting {
    const ALL: [(&str, Self); 2] = [("merge-equal-values", Self::MergeEqualValues), ("self-heal", Self::SelfHeal)];

    fn named_by(context: &Context<'_>) -> Result<Self> {
        let name = context.get_raw(0).as_str().ok();
        let found = Self::ALL.iter().find(|(known, _)| Some(*known) == name);
        found
            .map(|(_, setting)| *setting)
            .ok_or_else(|| module_error("Unknown setting name: the settings are merge-equal-values and self-heal"))
    }
}

/// CFG-2, with the FIX of CFG-4 and CFG-5: only integers are stored.
fn config_set(shared: &Shared, context: &Context<'_>) -> Result<i64> {
    let setting = Setting::named_by(context)?;
    let ValueRef::Integer(value) = context.get_raw(1) else {
        return Err(module_error("could not persist config: settings take 0 or 1"));
    };
    let mut core = shared.lock()?;
    core.refresh()?;
    match setting {
        Setting::MergeEqualValues => {
            const SET: &str =
                "INSERT OR REPLACE INTO crsql_master (key, value) VALUES ('config.merge-equal-values', ?1)";
            core.statement(SET)?.run(&[value.into()])?;
            core.merge_equal_values = value;
        }
        Setting::SelfHeal => set_self_heal(&mut core, value)?,
    }
    Ok(value)
}

/// CFG-3, with its FIX: read from the database, so that all connections agree.
fn config_get(shared: &Shared, context: &Context<'_>) -> Result<ToSqlOutput<'static>> {
    let setting = Setting::named_by(context)?;
    let mut core = shared.lock()?;
    core.refresh()?;
    let value = match setting {
        Setting::MergeEqualValues => {
            core.refresh_config()?;
            core.merge_equal_values
        }
        Setting::SelfHeal => self_heal(&mut core)?,
    };
    Ok(ToSqlOutput::Owned(SqlValue::Integer(value)))
}
