//! Bytes to changes, in one pass over the rows. Everything here reads a stranger's bytes: no panic, no recursion, and nothing
//! is reserved for what the bytes that are there cannot hold.

use std::sync::Arc;

use super::super::keys::Keys;
use super::super::numbers::Numbers;
use super::super::reader::Reader;
use super::super::values::Values;
use crate::limits::FRAME_CHANGES_MAX;
use crate::{CausalLength, Change, ColVersion, Column, DbVersion, DecodeError, Seq, SiteId};

/// Reads what [`write_changes`](super::write_changes) wrote.
pub(in super::super) fn read_changes(from: &mut Reader<'_>) -> Result<Vec<Change>, DecodeError> {
    let layout = from.byte()?;
    if layout != super::LAYOUT {
        return Err(DecodeError::UnknownLayout { layout, known: super::LAYOUT });
    }
    let sites = read_sites(from)?;
    let names = read_names(from)?;
    let shapes = read_shapes(from, &names)?;
    let rows = RowHeads::read(from)?;
    let rows_of_shapes = rows.count_by_shape(shapes.len())?;
    let changes = shapes.iter().zip(&rows_of_shapes).map(|(shape, rows)| shape.columns.len().saturating_mul(*rows));
    let changes = changes.fold(0, usize::saturating_add);
    if changes > FRAME_CHANGES_MAX {
        return Err(DecodeError::TooManyChanges { changes, max: FRAME_CHANGES_MAX });
    }
    // Each of these finds a byte for every value, so there is at least one for every change when space is reserved.
    let shapes = shapes.into_iter().zip(rows_of_shapes);
    let shapes = shapes.map(|(shape, rows)| ShapeColumns::read(from, shape, rows)).collect::<Result<Vec<_>, _>>()?;
    read_rows(rows, &sites, shapes, changes)
}

fn read_sites(from: &mut Reader<'_>) -> Result<Vec<SiteId>, DecodeError> {
    let count = from.count(16)?;
    (0..count).map(|_| Ok(SiteId::from_bytes(from.array()?))).collect()
}

fn read_names(from: &mut Reader<'_>) -> Result<Vec<Arc<str>>, DecodeError> {
    let count = from.count(1)?;
    let name = |_| {
        let name = std::str::from_utf8(from.prefixed()?).map_err(|_| DecodeError::NotUtf8 { what: "name" })?;
        Ok(Arc::from(name))
    };
    (0..count).map(name).collect()
}

/// A table and the columns of a row, in order.
struct Shape {
    table: Arc<str>,
    columns: Vec<Column>,
}

fn read_shapes(from: &mut Reader<'_>, names: &[Arc<str>]) -> Result<Vec<Shape>, DecodeError> {
    // Table, number of cells, one cell.
    let count = from.count(3)?;
    (0..count).map(|_| read_shape(from, names)).collect()
}

fn read_shape(from: &mut Reader<'_>, names: &[Arc<str>]) -> Result<Shape, DecodeError> {
    let table = Arc::clone(nth(names, "name", from.size()?)?);
    let cells = from.count(1)?;
    if cells == 0 {
        return Err(DecodeError::EmptyRow);
    }
    let column = |_| {
        let name = nth(names, "name", from.size()?)?;
        Ok(if **name == *Column::ROW_NAME { Column::Row } else { Column::Cell(Arc::clone(name)) })
    };
    Ok(Shape { table, columns: (0..cells).map(column).collect::<Result<_, _>>()? })
}

fn nth<'a, T>(all: &'a [T], what: &'static str, number: usize) -> Result<&'a T, DecodeError> {
    all.get(number).ok_or(DecodeError::NotThere { what, number, count: all.len() })
}

/// What each row has only once.
struct RowHeads<'a> {
    count: usize,
    shapes: Numbers<'a>,
    sites: Numbers<'a>,
    version_steps: Numbers<'a>,
    causal_lengths: Numbers<'a>,
    seqs: Numbers<'a>,
}

impl<'a> RowHeads<'a> {
    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        // At least two bytes of its key, and one of a value.
        let count = from.count(3)?;
        if count > FRAME_CHANGES_MAX {
            return Err(DecodeError::TooManyChanges { changes: count, max: FRAME_CHANGES_MAX });
        }
        Ok(Self {
            count,
            shapes: Numbers::read(from, "shapes of rows")?,
            sites: Numbers::read(from, "sites")?,
            version_steps: Numbers::read(from, "versions")?,
            causal_lengths: Numbers::read(from, "causal lengths")?,
            seqs: Numbers::read(from, "seqs")?,
        })
    }

    fn count_by_shape(&self, shapes: usize) -> Result<Vec<usize>, DecodeError> {
        let mut counts = vec![0; shapes];
        let mut numbers = self.shapes.clone();
        for _ in 0..self.count {
            let number = numbers.next_index()?;
            *counts.get_mut(number).ok_or(DecodeError::NotThere { what: "shape", number, count: shapes })? += 1;
        }
        Ok(counts)
    }

    fn finish(self) -> Result<(), DecodeError> {
        [self.shapes, self.sites, self.version_steps, self.causal_lengths, self.seqs]
            .into_iter()
            .try_for_each(Numbers::finish)
    }
}

/// The columns of all rows of one shape.
struct ShapeColumns<'a> {
    table: Arc<str>,
    keys: Keys<'a>,
    cells: Vec<CellColumns<'a>>,
}

struct CellColumns<'a> {
    column: Column,
    versions: Numbers<'a>,
    seqs: Numbers<'a>,
    values: Values<'a>,
}

impl<'a> ShapeColumns<'a> {
    fn read(from: &mut Reader<'a>, shape: Shape, rows: usize) -> Result<Self, DecodeError> {
        let keys = Keys::read(from, rows)?;
        let mut cells = Vec::with_capacity(shape.columns.len());
        for column in shape.columns {
            let versions = Numbers::read(from, "column versions")?;
            // The seq of the first cell is that of the row.
            let seqs = if cells.is_empty() { Numbers::Constant(0) } else { Numbers::read(from, "seqs")? };
            cells.push(CellColumns { column, versions, seqs, values: Values::read(from, rows)? });
        }
        Ok(Self { table: shape.table, keys, cells })
    }

    fn finish(self) -> Result<(), DecodeError> {
        self.keys.finish()?;
        self.cells.into_iter().try_for_each(|cell| {
            cell.versions.finish()?;
            cell.seqs.finish()?;
            cell.values.finish()
        })
    }
}

fn read_rows(
    mut rows: RowHeads<'_>,
    sites: &[SiteId],
    mut shapes: Vec<ShapeColumns<'_>>,
    changes: usize,
) -> Result<Vec<Change>, DecodeError> {
    let mut out = Vec::with_capacity(changes);
    let shape_count = shapes.len();
    let (mut last_site, mut version, mut seq) = (None, 0_i64, 0_i64);
    for _ in 0..rows.count {
        let number = rows.shapes.next_index()?;
        let shape =
            shapes.get_mut(number).ok_or(DecodeError::NotThere { what: "shape", number, count: shape_count })?;
        let site = *nth(sites, "site", rows.sites.next_index()?)?;
        let step = rows.version_steps.next()?;
        version = version.wrapping_add(step);
        let causal_length = CausalLength::new(rows.causal_lengths.next()?);
        let expected = if step == 0 && last_site == Some(site) { seq.wrapping_add(1) } else { 0 };
        // As if the change before the first cell had the seq before.
        seq = rows.seqs.next()?.wrapping_add(expected).wrapping_sub(1);
        last_site = Some(site);
        let key = shape.keys.next()?;
        for cell in &mut shape.cells {
            seq = seq.wrapping_add(1).wrapping_add(cell.seqs.next()?);
            out.push(Change {
                table: Arc::clone(&shape.table),
                key: key.clone(),
                column: cell.column.clone(),
                value: cell.values.next()?,
                col_version: ColVersion::new(cell.versions.next()?),
                db_version: DbVersion::new(version),
                site,
                causal_length,
                seq: Seq::new(seq),
            });
        }
    }
    rows.finish()?;
    shapes.into_iter().try_for_each(ShapeColumns::finish)?;
    Ok(out)
}
