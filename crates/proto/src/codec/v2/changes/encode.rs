//! Changes to bytes: first the rows and their shapes, then their columns.

use super::super::interner::Interner;
use super::super::keys::write_keys;
use super::super::numbers::write_numbers;
use super::super::values::write_values;
use super::super::writer::Writer;
use crate::{Change, SiteId};

pub(in super::super) fn write_changes(out: &mut Writer, changes: &[Change]) {
    let plan = Plan::new(changes);
    out.byte(super::LAYOUT);
    plan.write_dictionaries(out);
    let mut scratch = [Writer::default(), Writer::default()];
    plan.write_rows(out, &mut scratch[0]);
    for (shape, rows) in plan.shapes.known().iter().zip(&plan.rows_of_shapes) {
        // A shape begins with its table.
        write_shape(out, &mut scratch, changes, &rows.first_changes, shape.len() - 1);
    }
}

/// The columns of all rows of one shape. `rows` are the positions of their first changes.
fn write_shape(out: &mut Writer, scratch: &mut [Writer; 2], changes: &[Change], rows: &[u32], cells: usize) {
    let nth = |cell: usize| rows.iter().map(move |first| &changes[*first as usize + cell]);
    write_keys(out, scratch, nth(0).map(|change| &change.key));
    for cell in 0..cells {
        write_numbers(out, &mut scratch[0], nth(cell).map(|change| change.col_version.get()));
        if cell > 0 {
            let seqs = nth(cell - 1).zip(nth(cell));
            let steps = seqs.map(|(before, change)| beyond_next(before, change));
            write_numbers(out, &mut scratch[0], steps);
        }
        write_values(out, scratch, nth(cell).map(|change| &change.value));
    }
}

/// The seq of a change, minus the one expected after another change.
fn beyond_next(before: &Change, change: &Change) -> i64 {
    change.seq.get().wrapping_sub(before.seq.get()).wrapping_sub(1)
}

/// What is found out before anything is written.
struct Plan<'a> {
    sites: Interner<SiteId>,
    names: Interner<&'a str>,
    /// Each the number of its table, then those of its columns.
    shapes: Interner<Box<[u32]>>,
    rows_of_shapes: Vec<RowsOfShape<'a>>,
    rows: Vec<RowHead>,
}

struct RowsOfShape<'a> {
    /// The first of them: what other rows are compared with before anything is looked up.
    example: &'a [Change],
    /// The positions of their first changes.
    first_changes: Vec<u32>,
}

/// What a row has only once.
struct RowHead {
    shape: u32,
    site: u32,
    version_step: i64,
    causal_length: i64,
    seq_beyond_expected: i64,
}

impl<'a> Plan<'a> {
    fn new(changes: &'a [Change]) -> Self {
        let mut plan = Self {
            sites: Interner::new(),
            names: Interner::new(),
            shapes: Interner::new(),
            rows_of_shapes: Vec::new(),
            rows: Vec::new(),
        };
        let mut scratch = Vec::new();
        let mut last: Option<&Change> = None;
        let mut position = 0;
        for row in changes.chunk_by(is_same_row) {
            plan.add_row(row, position, last, &mut scratch);
            position += row.len() as u32;
            last = row.last();
        }
        plan
    }

    fn add_row(&mut self, row: &'a [Change], position: u32, last: Option<&Change>, scratch: &mut Vec<u32>) {
        let first = &row[0];
        let guess = self.shapes.guess();
        let shape = if self.rows_of_shapes.get(guess as usize).is_some_and(|rows| has_same_shape(row, rows.example)) {
            self.shapes.follow(guess)
        } else {
            self.shape_of(row, scratch)
        };
        self.rows_of_shapes[shape as usize].first_changes.push(position);
        let seq_beyond_expected = match last {
            Some(last) if last.db_version == first.db_version && last.site == first.site => beyond_next(last, first),
            _ => first.seq.get(),
        };
        let last_version = last.map_or(0, |last| last.db_version.get());
        self.rows.push(RowHead {
            shape,
            site: self.sites.number(&first.site, || first.site),
            version_step: first.db_version.get().wrapping_sub(last_version),
            causal_length: first.causal_length.get(),
            seq_beyond_expected,
        });
    }

    fn shape_of(&mut self, row: &'a [Change], shape: &mut Vec<u32>) -> u32 {
        let table = &*row[0].table;
        shape.clear();
        shape.push(self.names.number(table, || table));
        for change in row {
            let name = change.column.as_str();
            shape.push(self.names.number(name, || name));
        }
        let number = self.shapes.number(shape.as_slice(), || shape.as_slice().into());
        if self.rows_of_shapes.len() == number as usize {
            self.rows_of_shapes.push(RowsOfShape { example: row, first_changes: Vec::new() });
        }
        number
    }

    fn write_dictionaries(&self, out: &mut Writer) {
        out.size(self.sites.known().len());
        self.sites.known().iter().for_each(|site| out.bytes(site.as_bytes()));
        out.size(self.names.known().len());
        self.names.known().iter().for_each(|name| out.prefixed(name.as_bytes()));
        out.size(self.shapes.known().len());
        for shape in self.shapes.known() {
            out.unsigned(u64::from(shape[0]));
            out.size(shape.len() - 1);
            shape[1..].iter().for_each(|name| out.unsigned(u64::from(*name)));
        }
    }

    fn write_rows(&self, out: &mut Writer, scratch: &mut Writer) {
        out.size(self.rows.len());
        let mut column = |field: fn(&RowHead) -> i64| write_numbers(out, scratch, self.rows.iter().map(field));
        column(|row| i64::from(row.shape));
        column(|row| i64::from(row.site));
        column(|row| row.version_step);
        column(|row| row.causal_length);
        column(|row| row.seq_beyond_expected);
    }
}

fn has_same_shape(row: &[Change], example: &[Change]) -> bool {
    row.len() == example.len()
        && row[0].table == example[0].table
        && row.iter().zip(example).all(|(a, b)| a.column == b.column)
}

fn is_same_row(a: &Change, b: &Change) -> bool {
    a.db_version == b.db_version
        && a.causal_length == b.causal_length
        && a.site == b.site
        && a.key == b.key
        && a.table == b.table
}
