//! [`RowKey`]: the primary key of a row that is being merged, as the base table stores it (BUG-8, BUG-16).

use std::cmp::Ordering;

use litemesh_proto::{Change, KeyValue, Value};
use smallvec::SmallVec;

use crate::core::Core;
use crate::error::MergeError;
use crate::schema::Table;
use crate::statement::{Bind, Binds};

/// The values, in PRIMARY KEY order. Those that are stored as they were sent are not copied.
pub(crate) struct RowKey<'a>(SmallVec<[Part<'a>; 2]>);

enum Part<'a> {
    Sent(KeyValue<'a>),
    Stored(Value),
}

impl Part<'_> {
    fn value(&self) -> KeyValue<'_> {
        match self {
            Self::Sent(value) => *value,
            Self::Stored(value) => value.into(),
        }
    }
}

impl<'a> RowKey<'a> {
    /// The key of a change. `index` is for errors.
    pub(crate) fn of(core: &Core, table: &Table, change: &'a Change, index: usize) -> Result<Self, MergeError> {
        let name = || table.name.to_string();
        let mut parts: SmallVec<[Part<'a>; 2]> = SmallVec::new();
        let read = change.key.read_values(|value| parts.push(Part::Sent(value)));
        read.map_err(|source| MergeError::Key { index, table: name(), source })?;
        if parts.len() != table.keys.len() {
            let (expected, found) = (table.keys.len(), parts.len());
            return Err(MergeError::KeyArity { index, table: name(), expected, found });
        }
        for (part, column) in parts.iter_mut().zip(&table.keys) {
            let value = part.value();
            if value == KeyValue::Null {
                return Err(MergeError::NullKey { index, table: name() });
            }
            if column.affinity.keeps(value) {
                continue;
            }
            let sent = Value::from(value);
            *part = Part::Stored(match column.affinity.apply(&sent) {
                Some(stored) => stored,
                // Only a REAL in a TEXT column comes here; SQLite itself writes the digits.
                None => {
                    let print = core.db.prepare("SELECT ?1 || ''")?;
                    let rows = print.query(&[(&sent).into()])?;
                    rows.next()?;
                    rows.value(0)
                }
            });
        }
        Ok(Self(parts))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = Bind<'_>> {
        self.0.iter().map(|part| Bind::from(part.value()))
    }

    pub(crate) fn binds(&self) -> Binds<'_> {
        self.values().collect()
    }

    /// The same, for longer than the change lives.
    pub(crate) fn into_owned(self) -> RowKey<'static> {
        let own = |part| {
            Part::Stored(match part {
                Part::Sent(value) => value.into(),
                Part::Stored(value) => value,
            })
        };
        RowKey(self.0.into_iter().map(own).collect())
    }

    /// A number that rows have in common that are one to SQLite: 1 and 1.0 are the same key (DSK-7).
    pub(crate) fn hash(&self, table: usize) -> u64 {
        self.0.iter().fold(table as u64, |hash, part| match part.value() {
            KeyValue::Null => mix(hash, 0),
            KeyValue::Integer(integer) => mix(hash, integer.cast_unsigned()),
            KeyValue::Real(real) => mix(hash, (real as i64).cast_unsigned()),
            KeyValue::Text(bytes) | KeyValue::Blob(bytes) => mix_bytes(hash, bytes),
        })
    }

    /// Whether it comes after another, as far as that can be said without asking for collations.
    pub(crate) fn is_after(&self, before: &Self) -> bool {
        let order = |(before, after): (&Part<'_>, &Part<'_>)| match (before.value(), after.value()) {
            (KeyValue::Integer(before), KeyValue::Integer(after)) => after.cmp(&before),
            (KeyValue::Real(before), KeyValue::Real(after)) => after.total_cmp(&before),
            (KeyValue::Text(before), KeyValue::Text(after)) | (KeyValue::Blob(before), KeyValue::Blob(after)) => {
                after.cmp(before)
            }
            _ => Ordering::Less,
        };
        before.0.iter().zip(&self.0).map(order).fold(Ordering::Equal, Ordering::then) == Ordering::Greater
    }
}

fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

fn mix_bytes(hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut padded = [0; 8];
    padded[..rest.len()].copy_from_slice(rest);
    mix(hash, u64::from_le_bytes(padded) ^ bytes.len() as u64)
}
