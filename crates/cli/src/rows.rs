//! [`Rows`]: the result of a query, and its three ways to the output.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment};
use litemesh::rusqlite::Statement;
use litemesh::rusqlite::types::{Value as SqlValue, ValueRef};

use crate::failure::Failure;
use crate::output::{Output, printable, table};

/// The columns and rows of one query, held in memory: only the last query of a run is printed as JSON or CSV, and which is
/// the last is known late.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    columns: Vec<String>,
    rows: Vec<Vec<SqlValue>>,
}

impl Rows {
    /// Runs a query to its end.
    pub(crate) fn read(statement: &mut Statement<'_>) -> litemesh::rusqlite::Result<Self> {
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut found = statement.query([])?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            let values = (0..columns.len()).map(|index| row.get_ref(index).map(owned));
            rows.push(values.collect::<Result<_, _>>()?);
        }
        Ok(Self { columns, rows })
    }

    /// Draws a table; nothing but the header where there is no row.
    pub(crate) fn write_table(&self, output: &mut Output) -> Result<(), Failure> {
        let mut drawn = table(self.columns.iter().map(String::as_str));
        for row in &self.rows {
            drawn.add_row(row.iter().map(cell).collect::<Vec<_>>());
        }
        output.line(drawn)
    }

    /// Writes one array with an object for each row, one row a line.
    pub(crate) fn write_json(&self, output: &mut Output) -> Result<(), Failure> {
        let names: Vec<String> =
            self.columns.iter().map(|name| serde_json::Value::from(name.as_str()).to_string()).collect();
        // By hand, so that the columns keep their order.
        output.write_all(b"[")?;
        for (index, row) in self.rows.iter().enumerate() {
            output.write_all(if index == 0 { b"{" } else { b",\n{" })?;
            for (place, (name, value)) in names.iter().zip(row).enumerate() {
                let comma = if place == 0 { "" } else { "," };
                write!(output, "{comma}{name}:{}", json(value))?;
            }
            output.write_all(b"}")?;
        }
        output.line("]")
    }

    /// Writes CSV (RFC 4180) with a header line. NULL is an empty field, a BLOB its hex digits.
    pub(crate) fn write_csv(&self, output: &mut Output) -> Result<(), Failure> {
        csv_line(output, self.columns.iter().map(String::as_str))?;
        for row in &self.rows {
            let fields: Vec<String> = row.iter().map(csv_field).collect();
            csv_line(output, fields.iter().map(String::as_str))?;
        }
        output.flush()
    }
}

/// Text that is no UTF-8 keeps what can be read of it.
pub(crate) fn owned(value: ValueRef<'_>) -> SqlValue {
    match value {
        ValueRef::Null => SqlValue::Null,
        ValueRef::Integer(integer) => SqlValue::Integer(integer),
        ValueRef::Real(real) => SqlValue::Real(real),
        ValueRef::Text(text) => SqlValue::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(blob) => SqlValue::Blob(blob.to_vec()),
    }
}

/// A value as JSON; the SQL command's help says how BLOBs and infinities look.
pub(crate) fn json(value: &SqlValue) -> serde_json::Value {
    match value {
        SqlValue::Null => serde_json::Value::Null,
        SqlValue::Integer(integer) => (*integer).into(),
        SqlValue::Real(real) if real.is_finite() => (*real).into(),
        SqlValue::Real(real) => {
            serde_json::json!({ "real": if *real > 0.0 { "Infinity" } else { "-Infinity" } })
        }
        SqlValue::Text(text) => text.as_str().into(),
        SqlValue::Blob(blob) => serde_json::json!({ "blob": const_hex::encode(blob) }),
    }
}

/// A value as people read it: SQL, except that text stands without quotes.
pub(crate) fn text(value: &SqlValue) -> String {
    match value {
        SqlValue::Null => "NULL".to_owned(),
        SqlValue::Integer(integer) => integer.to_string(),
        SqlValue::Real(real) if real.is_infinite() => if *real > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        SqlValue::Real(real) => format!("{real:?}"),
        SqlValue::Text(text) => printable(text),
        SqlValue::Blob(blob) => format!("x'{}'", const_hex::encode(blob)),
    }
}

fn cell(value: &SqlValue) -> Cell {
    let cell = Cell::new(text(value));
    match value {
        SqlValue::Integer(_) | SqlValue::Real(_) => cell.set_alignment(CellAlignment::Right),
        _ => cell,
    }
}

fn csv_field(value: &SqlValue) -> String {
    match value {
        SqlValue::Null => String::new(),
        SqlValue::Text(text) => text.clone(),
        SqlValue::Blob(blob) => const_hex::encode(blob),
        other => text(other),
    }
}

fn csv_line<'a>(out: &mut impl Write, fields: impl Iterator<Item = &'a str>) -> io::Result<()> {
    for (index, field) in fields.enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        if field.contains([',', '"', '\n', '\r']) {
            write!(out, "\"{}\"", field.replace('"', "\"\""))?;
        } else {
            out.write_all(field.as_bytes())?;
        }
    }
    out.write_all(b"\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_type_in_json() {
        for (value, expected) in [
            (SqlValue::Null, "null"),
            (SqlValue::Integer(i64::MAX), "9223372036854775807"),
            (SqlValue::Real(1.0), "1.0"),
            (SqlValue::Real(f64::NEG_INFINITY), "{\"real\":\"-Infinity\"}"),
            (SqlValue::Text("a\"\u{1}".to_owned()), "\"a\\\"\\u0001\""),
            (SqlValue::Blob(vec![0, 255]), "{\"blob\":\"00ff\"}"),
        ] {
            assert_eq!(json(&value).to_string(), expected);
        }
    }

    #[test]
    fn csv_fields_are_quoted_where_they_must() {
        let mut line = Vec::new();
        csv_line(&mut line, ["a", "b,c", "d\"e", ""].into_iter()).unwrap();
        assert_eq!(line, b"a,\"b,c\",\"d\"\"e\",\r\n");
    }
}
