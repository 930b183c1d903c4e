//! Column affinity: what SQLite makes of a value that is stored in a column of a declared type
//! (<https://sqlite.org/datatype3.html>, sections 3 and 3.1).
//!
//! A key from a peer whose column has another type would otherwise be looked up as sent, but stored as converted, and the
//! row would have two identities (BUG-16).

use litemesh_proto::{KeyValue, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

impl Affinity {
    /// The five rules, in their order. They say nothing of `ANY`: only in a STRICT table it keeps everything.
    pub(crate) fn of_type(declared: &str) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |words: &[&str]| words.iter().any(|word| declared.contains(word));
        if has(&["INT"]) {
            Self::Integer
        } else if has(&["CHAR", "CLOB", "TEXT"]) {
            Self::Text
        } else if declared.is_empty() || has(&["BLOB"]) {
            Self::Blob
        } else if has(&["REAL", "FLOA", "DOUB"]) {
            Self::Real
        } else {
            Self::Numeric
        }
    }

    /// Whether a value is stored as it is.
    pub(crate) fn keeps(self, value: KeyValue<'_>) -> bool {
        match value {
            KeyValue::Null | KeyValue::Blob(_) => true,
            KeyValue::Text(_) => matches!(self, Self::Text | Self::Blob),
            KeyValue::Integer(_) => matches!(self, Self::Integer | Self::Numeric | Self::Blob),
            KeyValue::Real(_) => matches!(self, Self::Real | Self::Blob),
        }
    }

    /// The value as a column of this affinity stores it. `None` where only SQLite itself can tell (a REAL as TEXT).
    pub(crate) fn apply(self, value: &Value) -> Option<Value> {
        Some(match (self, value) {
            (Self::Text, Value::Integer(value)) => Value::text(value.to_string()),
            (Self::Text, Value::Real(_)) => return None,
            (Self::Integer | Self::Numeric, Value::Real(real)) => as_integer(*real).unwrap_or_else(|| value.clone()),
            (Self::Real, Value::Integer(integer)) => Value::Real(*integer as f64),
            (Self::Integer | Self::Numeric | Self::Real, Value::Text(_)) => self.apply_to_text(value),
            _ => value.clone(),
        })
    }

    fn apply_to_text(self, value: &Value) -> Value {
        // What SQLite takes for space, a vertical tab included.
        let is_space = |c| matches!(c, ' ' | '\t'..='\r');
        let Some(text) = value.as_str().map(|text| text.trim_matches(is_space)) else { return value.clone() };
        // Rust also reads `inf`, `nan` and a leading `+` without digits; SQLite's numbers start with a digit, sign or dot.
        if !text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) {
            return value.clone();
        }
        match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(integer), _) if self != Self::Real => Value::Integer(integer),
            (_, Ok(real)) if self == Self::Real => Value::Real(real),
            (_, Ok(real)) => as_integer(real).unwrap_or(Value::Real(real)),
            _ => value.clone(),
        }
    }
}

/// A REAL that is exactly an integer of at most 51 bits becomes one; larger ones SQLite leaves alone.
fn as_integer(real: f64) -> Option<Value> {
    let exact = real.fract() == 0.0 && real.abs() < (1_i64 << 51) as f64;
    exact.then_some(Value::Integer(real as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types_follow_the_five_rules() {
        for (declared, affinity) in [
            ("INTEGER", Affinity::Integer),
            ("bigint", Affinity::Integer),
            ("FLOATING POINT", Affinity::Integer),
            ("VARCHAR(10)", Affinity::Text),
            ("", Affinity::Blob),
            ("blob", Affinity::Blob),
            ("DOUBLE", Affinity::Real),
            ("DECIMAL", Affinity::Numeric),
            ("DATE", Affinity::Numeric),
        ] {
            assert_eq!(Affinity::of_type(declared), affinity, "{declared}");
        }
    }

    /// Each conversion must be the one that SQLite itself makes.
    #[test]
    fn values_convert_as_sqlite_does() {
        let db = rusqlite::Connection::open_in_memory().unwrap();
        let values = [
            Value::text("1"),
            Value::text(" 12 "),
            Value::text("\x0b13\x0c"),
            Value::text("1.0"),
            Value::text("1.5"),
            Value::text("1e3"),
            Value::text("abc"),
            Value::text("1x"),
            Value::text("nan"),
            Value::text("inf"),
            Value::text(""),
            Value::Integer(7),
            Value::Real(7.0),
            Value::Real(7.25),
            Value::Real(1e300),
            Value::blob(*b"1"),
            Value::Null,
        ];
        for declared in ["INTEGER", "TEXT", "BLOB", "REAL", "NUMERIC", "ANY", ""] {
            db.execute_batch(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t (a {declared})")).unwrap();
            for value in &values {
                let Some(applied) = Affinity::of_type(declared).apply(value) else { continue };
                let bound: rusqlite::types::Value = match value.clone() {
                    Value::Null => rusqlite::types::Value::Null,
                    Value::Integer(value) => value.into(),
                    Value::Real(value) => value.into(),
                    Value::Text(bytes) => String::from_utf8(bytes.into()).unwrap().into(),
                    Value::Blob(bytes) => bytes.into_vec().into(),
                };
                db.execute("DELETE FROM t", []).unwrap();
                db.execute("INSERT INTO t VALUES (?1)", [bound]).unwrap();
                let stored = db.query_row("SELECT a FROM t", [], |row| Ok(crate::statement::to_value(row.get_ref(0)?)));
                assert_eq!(applied, stored.unwrap(), "{value:?} in a column of type {declared:?}");
            }
        }
    }
}
