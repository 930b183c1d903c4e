//! The text of every statement on a replicated table and its shadow tables. Everything is quoted, whatever its name (CRR-6).
//!
//! Order of parameters: the key of the row first, or the primary key values; then what the method says.

use crate::base_rows::MASK_BITS;
use crate::schema::{CLOCK_SUFFIX, ColumnInfo, KEY_COLUMN, KEYS_SUFFIX, Table};

/// A batch, which is the first parameter of every statement that reads from one ([`crate::batch_table`]).
const BATCH: &str = "litemesh_batch(?1)";

/// An identifier in double quotes.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn join(parts: impl IntoIterator<Item = String>, separator: &str) -> String {
    parts.into_iter().collect::<Vec<_>>().join(separator)
}

/// `(?1, ?2), (?3, ?4)`.
fn rows_of_parameters(rows: usize, columns: usize) -> String {
    let row = |row: usize| format!("({})", join((1..=columns).map(|n| format!("?{}", row * columns + n)), ", "));
    join((0..rows).map(row), ", ")
}

/// `c0, c1, c2`.
fn batch_columns(count: usize) -> String {
    join((0..count).map(|n| format!("c{n}")), ", ")
}

/// About how many clocks of new rows one statement writes.
const NEW_CLOCKS: usize = 64;

/// `col_version` after an insert (4.5): even, that is dead, to the next odd; odd to the next odd.
const INSERTED: &str = "col_version + 1 + (col_version % 2)";
/// `col_version` after a delete (4.5 with its FIX): always the next even number.
const DELETED: &str = "col_version + 2 - (col_version % 2)";

impl Table {
    // With the schema: a temporary table of the same name would be found first.

    pub(crate) fn clock(&self) -> String {
        format!("main.{}", quote(&format!("{}{CLOCK_SUFFIX}", self.shadow)))
    }

    pub(crate) fn keys_table(&self) -> String {
        format!("main.{}", quote(&format!("{}{KEYS_SUFFIX}", self.shadow)))
    }

    pub(crate) fn base(&self) -> String {
        format!("main.{}", quote(&self.name))
    }

    pub(crate) fn key_names(&self) -> String {
        join(self.keys.iter().map(|column| quote(&column.name)), ", ")
    }

    /// `?1, ?2` for the primary key values.
    fn key_parameters(&self) -> String {
        join((1..=self.keys.len()).map(|n| format!("?{n}")), ", ")
    }

    /// `"a" = ?1 AND "b" = ?2`. Not IS: no key is NULL, and only `=` tells SQLite that there is at most one row.
    fn keys_match(&self) -> String {
        self.keys_match_from(1)
    }

    fn keys_match_from(&self, first: usize) -> String {
        join(self.keys.iter().zip(first..).map(|(column, n)| format!("{} = ?{n}", quote(&column.name))), " AND ")
    }

    pub(crate) fn sql_newest(&self) -> String {
        format!("SELECT max(db_version) FROM {}", self.clock())
    }

    pub(crate) fn sql_find_key(&self) -> String {
        format!("SELECT {KEY_COLUMN} FROM {} WHERE {}", self.keys_table(), self.keys_match())
    }

    pub(crate) fn sql_drop_key(&self) -> String {
        format!("DELETE FROM {} WHERE {KEY_COLUMN} = ?1", self.keys_table())
    }

    /// Adds a primary key unless it is there; `changes()` tells.
    pub(crate) fn sql_add_key(&self) -> String {
        let (keys, names, values) = (self.keys_table(), self.key_names(), self.key_parameters());
        format!("INSERT INTO {keys} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING")
    }

    /// All clocks of one row: name, col_version, ordinal, db_version.
    pub(crate) fn sql_row_clocks(&self) -> String {
        format!("SELECT col_name, col_version, site_id, db_version FROM {} WHERE key = ?1", self.clock())
    }

    /// Who wrote a cell, and its local version: key, name.
    pub(crate) fn sql_clock_stamp(&self) -> String {
        format!("SELECT site_id, db_version FROM {} WHERE key = ?1 AND col_name = ?2", self.clock())
    }

    /// The clocks of one row by its primary key: key, name, col_version. A sub-query rather than a
    /// join: SQLite plans a join anew for every value that is bound.
    pub(crate) fn sql_row_state(&self) -> String {
        format!(
            "SELECT key, col_name, col_version FROM {}
             WHERE key = (SELECT {KEY_COLUMN} FROM {} WHERE {})",
            self.clock(),
            self.keys_table(),
            self.keys_match()
        )
    }

    /// All cells of one base row.
    pub(crate) fn sql_base_row(&self) -> String {
        let cells = join(self.cells.iter().map(|cell| quote(&cell.name)), ", ");
        format!("SELECT {cells} FROM {} WHERE {}", self.base(), self.keys_match())
    }

    /// The clocks of the rows of a batch, in its order. Of each row the batch has the primary key. As
    /// [`sql_row_state`](Self::sql_row_state).
    pub(crate) fn sql_row_states(&self) -> String {
        format!(
            "SELECT c.key, c.col_name, c.col_version FROM {BATCH} k
             CROSS JOIN {} p ON {} CROSS JOIN {} c ON c.key = p.{KEY_COLUMN}",
            self.keys_table(),
            self.keys_match_batch("p"),
            self.clock()
        )
    }

    /// The same, where the number of a row's key is mostly the batch's `guess`: then the primary key is compared instead of
    /// searched for.
    pub(crate) fn sql_row_states_near(&self) -> String {
        format!(
            "SELECT c.key, c.col_name, c.col_version FROM {} CROSS JOIN {} c ON c.key = {}",
            self.batch_near(),
            self.clock(),
            self.key_near()
        )
    }

    /// Steps over keys from ?2 on, in their order, until the walk ([`crate::key_walk`]), which comes first, says where it ends.
    pub(crate) fn sql_walk_keys(&self) -> String {
        format!(
            "SELECT 1 FROM {} WHERE {KEY_COLUMN} >= ?2 AND litemesh_ends_walk(?1, {KEY_COLUMN}, {}) ORDER BY {KEY_COLUMN}",
            self.keys_table(),
            self.key_names()
        )
    }

    /// The clocks of keys from ?1 on: key, name, col_version. Whoever steps through them stops: to be compared with a last key, each
    /// would have to be taken apart once more.
    pub(crate) fn sql_beside_clocks(&self) -> String {
        self.beside_clocks("")
    }

    /// The same, up to key ?2 of the cell ?3 and of sentinels alone. As a CASE: where a parameter is compared in a term of its own,
    /// SQLite plans the statement anew for each value that is bound.
    pub(crate) fn sql_beside_clocks_of_cell(&self) -> String {
        self.beside_clocks(" AND CASE col_name WHEN ?3 THEN 1 WHEN '-1' THEN 1 ELSE key > ?2 END")
    }

    fn beside_clocks(&self, of: &str) -> String {
        format!("SELECT key, col_name, col_version FROM {} WHERE key >= ?1{of} ORDER BY key, col_name", self.clock())
    }

    /// The key of each row of a batch, or NULL. Of each row the batch has the primary key; the key is guessed as for
    /// [`sql_row_states_near`](Self::sql_row_states_near).
    pub(crate) fn sql_find_keys(&self) -> String {
        format!("SELECT {} FROM {}", self.key_near(), self.batch_near())
    }

    /// The rows of a batch `k`, and those of the keys table `g` whose keys were guessed.
    fn batch_near(&self) -> String {
        let (keys, guessed) = (self.keys_table(), self.keys_match_batch("+g"));
        format!("{BATCH} k LEFT JOIN {keys} g ON g.{KEY_COLUMN} = k.guess AND {guessed}")
    }

    /// The key that was guessed, or else searched for: the sub-query only runs then.
    fn key_near(&self) -> String {
        let (keys, searched) = (self.keys_table(), self.keys_match_batch("p"));
        format!("ifnull(g.{KEY_COLUMN}, (SELECT p.{KEY_COLUMN} FROM {keys} p WHERE {searched}))")
    }

    /// The base rows of a batch, in its order, where they are there: rowid (NULL where there is none), cells. Of each row the
    /// batch has the primary key.
    pub(crate) fn sql_base_rows(&self) -> String {
        let rowid = self.known_rowid().map_or_else(|| "NULL".to_owned(), |rowid| format!("b.{rowid}"));
        self.base_rows(&rowid, &self.keys_match_batch("b"))
    }

    /// The same, of rows whose rowid is that of their key, which follows the primary key in the batch, and ?2. The unary plus
    /// keeps SQLite from searching for the primary key.
    pub(crate) fn sql_base_rows_near(&self) -> String {
        let rowid = self.known_rowid().unwrap_or("rowid");
        let on = format!("b.{rowid} = k.c{} + ?2 AND {}", self.keys.len(), self.keys_match_batch("+b"));
        self.base_rows(&format!("b.{rowid}"), &on)
    }

    fn base_rows(&self, first: &str, on: &str) -> String {
        let cells = join(self.cells.iter().map(|cell| format!(", b.{}", quote(&cell.name))), "");
        format!("SELECT {first}{cells} FROM {BATCH} k CROSS JOIN {} b ON {on}", self.base())
    }

    /// `p."a" = k.c0 AND p."b" = k.c1`.
    fn keys_match_batch(&self, of: &str) -> String {
        let same = |(column, n): (&ColumnInfo, u32)| format!("{of}.{} = k.c{n}", quote(&column.name));
        join(self.keys.iter().zip(0..).map(same), " AND ")
    }

    /// Keys of a batch, numbered by SQLite: a number of ours would make it keep a journal. `changes()` tells whether all were new.
    pub(crate) fn sql_add_keys(&self) -> String {
        let columns = batch_columns(self.keys.len());
        let (keys, names) = (self.keys_table(), self.key_names());
        format!("INSERT OR IGNORE INTO {keys} ({names}) SELECT {columns} FROM {BATCH}")
    }

    /// Base rows of a batch with these cells: of each the primary key, then the cells.
    pub(crate) fn sql_insert_rows(&self, cells: &[usize]) -> String {
        let columns = batch_columns(self.keys.len() + cells.len());
        // WHERE tells the parser that no ON of a join follows.
        self.sql_insert(cells, &format!("SELECT {columns} FROM {BATCH} WHERE true"))
    }

    /// Clocks of a batch under keys that have none: key, name, seq, col_version, local version, ordinal. OR IGNORE: then the
    /// statement cannot fail half-way, and SQLite keeps no journal for it.
    pub(crate) fn sql_add_clocks(&self) -> String {
        self.clocks_of_batch("IGNORE", "c3, c4, c5")
    }

    /// The same of one stamp and version, which follow the batch: local version, ordinal, col_version.
    pub(crate) fn sql_add_clocks_alike(&self) -> String {
        self.clocks_of_batch("IGNORE", "?4, ?2, ?3")
    }

    fn clocks_of_batch(&self, or: &str, rest: &str) -> String {
        format!(
            "INSERT OR {or} INTO {} (key, col_name, seq, col_version, db_version, site_id)
             SELECT c0, c1, c2, {rest} FROM {BATCH}",
            self.clock()
        )
    }

    /// Clocks of a batch, whatever lies there: key, name, seq, col_version, local version, ordinal.
    pub(crate) fn sql_put_clocks(&self) -> String {
        self.clocks_of_batch("REPLACE", "c3, c4, c5")
    }

    /// Clocks of one cell: of a batch the key, col_version and seq; name, local version, ordinal.
    pub(crate) fn sql_put_clocks_of_cell(&self) -> String {
        format!(
            "INSERT OR REPLACE INTO {} (key, col_name, col_version, seq, db_version, site_id)
             SELECT c0, ?2, c1, c2, ?3, ?4 FROM {BATCH}",
            self.clock()
        )
    }

    /// First clocks of rows inserted here: version, first seq, then the key of each. In the order of names, so that the
    /// B-tree is appended to; the seqs follow table order (LW-4). OR IGNORE: then the statement cannot fail half-way, and
    /// SQLite keeps no journal for it. Clocks that lie under a new key all the same are left to be counted on.
    fn sql_first_clocks(&self, rows: usize) -> String {
        self.clocks_of_rows(rows, 3, "1", "0")
    }

    /// First clocks of rows that were merged: as many as [`new_rows`](Self::new_rows), of one stamp and version, and with sequence
    /// numbers as where they were inserted. Local version, first seq, ordinal, col_version, then the key of each.
    pub(crate) fn sql_add_clocks_whole(&self) -> String {
        format!("INSERT OR IGNORE {}", self.clocks_of_rows(self.new_rows(), 5, "?4", "?3"))
    }

    /// All clocks of rows whose keys are parameters from `first` on: ?1 is the version, ?2 the first seq.
    fn clocks_of_rows(&self, rows: usize, first: usize, col_version: &str, ordinal: &str) -> String {
        let mut cells: Vec<_> = self.cells.iter().enumerate().collect();
        cells.sort_by(|a, b| a.1.name.as_bytes().cmp(b.1.name.as_bytes()));
        let clock = |row: usize, index: usize, name: &str| {
            let (key, name, seq) = (first + row, literal(name), row * self.cells.len() + index);
            format!("(?{key}, {name}, {col_version}, ?1, {ordinal}, ?2 + {seq})")
        };
        let clocks = (0..rows)
            .flat_map(|row| cells.iter().map(move |(index, column)| (row, *index, &column.name)))
            .map(|(row, index, name)| clock(row, index, name));
        let clocks = join(clocks, ", ");
        format!("INTO {} (key, col_name, col_version, db_version, site_id, seq) VALUES {clocks}", self.clock())
    }

    /// For one row.
    pub(crate) fn sql_clocks_of_new_row(&self) -> String {
        format!("INSERT OR IGNORE {}", self.sql_first_clocks(1))
    }

    /// For [`new_rows`](Self::new_rows).
    pub(crate) fn sql_clocks_of_new_rows(&self) -> String {
        format!("INSERT OR IGNORE {}", self.sql_first_clocks(self.new_rows()))
    }

    /// How many rows get their first clocks by one statement.
    pub(crate) fn new_rows(&self) -> usize {
        (NEW_CLOCKS / self.cells.len().max(1)).max(1)
    }

    /// The same for a row whose key was known: counts on.
    pub(crate) fn sql_clocks_of_known_row(&self) -> String {
        format!(
            "INSERT {} ON CONFLICT (key, col_name) DO UPDATE SET col_version = col_version + 1,
             db_version = excluded.db_version, site_id = 0, seq = excluded.seq",
            self.sql_first_clocks(1)
        )
    }

    /// One cell written here: key, name, version, seq.
    pub(crate) fn sql_count_cell(&self) -> String {
        format!(
            "INSERT INTO {} (key, col_name, col_version, db_version, site_id, seq) VALUES (?1, ?2, 1, ?3, 0, ?4)
             ON CONFLICT (key, col_name) DO UPDATE SET col_version = col_version + 1,
             db_version = excluded.db_version, site_id = 0, seq = excluded.seq",
            self.clock()
        )
    }

    /// Cells written here, of a batch: key, name, seq; version.
    pub(crate) fn sql_count_cells(&self) -> String {
        format!(
            "INSERT INTO {} (key, col_name, col_version, db_version, site_id, seq)
             SELECT c0, c1, 1, ?2, 0, c2 FROM {BATCH} WHERE true
             ON CONFLICT (key, col_name) DO UPDATE SET col_version = col_version + 1,
             db_version = excluded.db_version, site_id = 0, seq = excluded.seq",
            self.clock()
        )
    }

    /// One cell written here that has a clock, by its primary key: name, version, seq, keys. `changes()` tells.
    pub(crate) fn sql_count_cell_of(&self) -> String {
        let keys_match = self.keys_match_from(4);
        format!(
            "UPDATE {} SET col_version = col_version + 1, db_version = ?2, site_id = 0, seq = ?3
             WHERE key = (SELECT {KEY_COLUMN} FROM {} WHERE {keys_match}) AND col_name = ?1",
            self.clock(),
            self.keys_table()
        )
    }

    /// One cell written here of each row whose key lies in a range, where it has a clock: first and last key, name, version, by how
    /// much the seq rises from key to key, and seq of the first. `changes()` tells. OR FAIL: then SQLite keeps no journal for it.
    pub(crate) fn sql_count_cell_of_run(&self) -> String {
        format!(
            "UPDATE OR FAIL {} SET col_version = col_version + 1, db_version = ?4, site_id = 0, seq = ?6 + (key - ?1) * ?5
             WHERE key BETWEEN ?1 AND ?2 AND col_name = ?3",
            self.clock()
        )
    }

    fn sentinel_upsert(&self, first: i64, next: &str) -> String {
        format!(
            "INSERT INTO {} (key, col_name, col_version, db_version, site_id, seq) VALUES (?1, '-1', {first}, ?2, 0, ?3)
             ON CONFLICT (key, col_name) DO UPDATE SET col_version = {next},
             db_version = excluded.db_version, site_id = 0, seq = excluded.seq",
            self.clock()
        )
    }

    /// Sentinel of an insert that must leave one: key, version, seq (LW-2).
    pub(crate) fn sql_insert_sentinel(&self) -> String {
        self.sentinel_upsert(1, INSERTED)
    }

    /// Sentinel of an insert over a known key, where there is one: key, version, seq (LW-3).
    pub(crate) fn sql_reinsert_sentinel(&self) -> String {
        format!(
            "UPDATE {} SET col_version = {INSERTED}, db_version = ?2, site_id = 0, seq = ?3
             WHERE key = ?1 AND col_name = '-1'",
            self.clock()
        )
    }

    /// Sentinel of a delete: key, version, seq (LW-8).
    pub(crate) fn sql_delete_sentinel(&self) -> String {
        self.sentinel_upsert(2, DELETED)
    }

    /// One merged clock: key, version, ordinal, name, col_version, seq.
    pub(crate) fn sql_put_clock(&self) -> String {
        format!(
            "INSERT INTO {} (key, col_name, col_version, db_version, site_id, seq) VALUES (?1, ?4, ?5, ?2, ?3, ?6)
             ON CONFLICT (key, col_name) DO UPDATE SET col_version = excluded.col_version,
             db_version = excluded.db_version, site_id = excluded.site_id, seq = excluded.seq",
            self.clock()
        )
    }

    /// The same where probably none is there; `changes()` tells.
    pub(crate) fn sql_add_clock(&self) -> String {
        format!(
            "INSERT OR IGNORE INTO {} (key, col_name, col_version, db_version, site_id, seq) VALUES (?1, ?4, ?5, ?2, ?3, ?6)",
            self.clock()
        )
    }

    /// The same where the clock is known to be there.
    pub(crate) fn sql_move_clock(&self) -> String {
        format!(
            "UPDATE {} SET col_version = ?5, db_version = ?2, site_id = ?3, seq = ?6 WHERE key = ?1 AND col_name = ?4",
            self.clock()
        )
    }

    /// The same of one cell in rows whose keys follow each other: first and last key, name, col_version, local version, ordinal, seq of
    /// the first, and by how much it rises from key to key. `changes()` tells. OR FAIL: then SQLite keeps no journal for it.
    pub(crate) fn sql_move_clocks_of_run(&self) -> String {
        format!(
            "UPDATE OR FAIL {} SET col_version = ?4, db_version = ?5, site_id = ?6, seq = ?7 + (key - ?1) * ?8
             WHERE key BETWEEN ?1 AND ?2 AND CASE col_name WHEN ?3 THEN 1 END",
            self.clock()
        )
    }

    /// The same, of the rows of a run ([`crate::newer_clocks`]), which comes first: only clocks that are older.
    pub(crate) fn sql_move_older_clocks(&self) -> String {
        format!(
            "UPDATE OR FAIL {} SET col_version = ?5, db_version = ?6, site_id = ?7, seq = ?8 + (key - ?2) * ?9
             WHERE key BETWEEN ?2 AND ?3 AND CASE col_name WHEN ?4 THEN litemesh_is_older(?1, key, col_version)
             WHEN '-1' THEN litemesh_has_life(?1, key, col_version) END",
            self.clock()
        )
    }

    pub(crate) fn sql_drop_cells(&self) -> String {
        format!("DELETE FROM {} WHERE key = ?1 AND col_name <> '-1'", self.clock())
    }

    /// The same of all rows from key ?1 up to ?2.
    pub(crate) fn sql_drop_cells_of_run(&self) -> String {
        format!("DELETE FROM {} WHERE key BETWEEN ?1 AND ?2 AND col_name <> '-1'", self.clock())
    }

    /// Whether rows from key ?1 up to ?2 have clocks.
    pub(crate) fn sql_any_clock_of_run(&self) -> String {
        format!("SELECT 1 FROM {} WHERE key BETWEEN ?1 AND ?2 LIMIT 1", self.clock())
    }

    /// All clocks of the table. Without WHERE, SQLite drops them page by page.
    pub(crate) fn sql_drop_clocks(&self) -> String {
        format!("DELETE FROM {}", self.clock())
    }

    /// How far apart the keys of the first row and the last one are.
    pub(crate) fn sql_key_span(&self) -> String {
        format!("SELECT (SELECT max(key) FROM {0}) - (SELECT min(key) FROM {0})", self.clock())
    }

    /// All sentinels: key, name, seq, col_version, local version, ordinal.
    pub(crate) fn sql_sentinels(&self) -> String {
        self.whole_clocks("col_name = '-1'")
    }

    /// The clocks of keys from ?1 up to ?2, likewise.
    pub(crate) fn sql_whole_clocks(&self) -> String {
        self.whole_clocks("key BETWEEN ?1 AND ?2")
    }

    fn whole_clocks(&self, condition: &str) -> String {
        format!(
            "SELECT key, col_name, seq, col_version, db_version, site_id FROM {} WHERE {condition} ORDER BY key, col_name",
            self.clock()
        )
    }

    /// Sentinels of dead rows, all of the keys from ?1 up to ?2, which have none: version ?3, sequence numbers from ?4 on.
    pub(crate) fn sql_bury_run(&self) -> String {
        format!(
            "INSERT OR IGNORE INTO {} (key, col_name, col_version, db_version, site_id, seq)
             SELECT {KEY_COLUMN}, '-1', 2, ?3, 0, ?4 + ({KEY_COLUMN} - ?1) FROM {}
             WHERE {KEY_COLUMN} BETWEEN ?1 AND ?2 ORDER BY {KEY_COLUMN}",
            self.clock(),
            self.keys_table()
        )
    }

    pub(crate) fn sql_delete_row(&self) -> String {
        format!("DELETE FROM {} WHERE {}", self.base(), self.keys_match())
    }

    /// Cells of a row that came back without its values: key, version (MRG-9).
    pub(crate) fn sql_zero_cells(&self) -> String {
        format!("UPDATE {} SET col_version = 0, db_version = ?2 WHERE key = ?1 AND col_name <> '-1'", self.clock())
    }

    /// A row with these cells; on a row that is there all the same (written past the triggers), only the cells are set. The
    /// conflict target is the primary key, so that any other constraint is an error (MRG-10).
    pub(crate) fn sql_insert_row(&self, cells: &[usize]) -> String {
        self.sql_insert(cells, &format!("VALUES {}", rows_of_parameters(1, self.keys.len() + cells.len())))
    }

    fn sql_insert(&self, cells: &[usize], source: &str) -> String {
        let names = cells.iter().map(|cell| quote(&self.cells[*cell].name)).collect::<Vec<_>>();
        let columns = join([self.key_names()].into_iter().chain(names.iter().cloned()), ", ");
        let action = if names.is_empty() {
            "NOTHING".to_owned()
        } else {
            format!("UPDATE SET {}", join(names.iter().map(|name| format!("{name} = excluded.{name}")), ", "))
        };
        let (base, keys) = (self.base(), self.key_names());
        format!("INSERT INTO {base} ({columns}) {source} ON CONFLICT ({keys}) DO {action}")
    }

    pub(crate) fn sql_update_row(&self, cells: &[usize]) -> String {
        let set = |(cell, n): (&usize, usize)| format!("{} = ?{n}", quote(&self.cells[*cell].name));
        let sets = join(cells.iter().zip(self.keys.len() + 1..).map(set), ", ");
        format!("UPDATE {} SET {sets} WHERE {}", self.base(), self.keys_match())
    }

    /// The same, of the row whose rowid follows the keys, if it is that row. See [`sql_base_rows_near`](Self::sql_base_rows_near).
    pub(crate) fn sql_update_row_near(&self, cells: &[usize]) -> String {
        let set = |(cell, n): (&usize, usize)| format!("{} = ?{n}", quote(&self.cells[*cell].name));
        let sets = join(cells.iter().zip(self.keys.len() + 2..).map(set), ", ");
        let same = |(column, n): (&ColumnInfo, usize)| format!(" AND +{} = ?{n}", quote(&column.name));
        let keys_match = join(self.keys.iter().zip(1..).map(same), "");
        let (rowid, parameter) = (self.known_rowid().unwrap_or("rowid"), self.keys.len() + 1);
        format!("UPDATE {} SET {sets} WHERE {rowid} = ?{parameter}{keys_match}", self.base())
    }

    /// Base rows of a batch with these cells, whose places are from ?2 up to ?3. Of each row the batch has the place, the
    /// primary key unless that is the place, and the cells; in the order of places.
    pub(crate) fn sql_update_rows(&self, cells: &[usize]) -> String {
        let place = self.place();
        let keys: &[ColumnInfo] = if self.integer_key().is_some() { &[] } else { &self.keys };
        let same = join(keys.iter().map(|column| format!(", {}", quote(&column.name))), "");
        let set = |(cell, n): (&usize, usize)| {
            format!("{} = litemesh_batch_value(?1, {place}, {n})", quote(&self.cells[*cell].name))
        };
        let sets = join(cells.iter().zip(keys.len() + 1..).map(set), ", ");
        format!(
            "UPDATE {} SET {sets} WHERE {place} BETWEEN ?2 AND ?3 AND litemesh_batch_at(?1, {place}{same})",
            self.base()
        )
    }

    /// By what base rows are in order: their only key where that is a number, or else their rowid.
    fn place(&self) -> String {
        self.integer_key().map_or_else(|| self.known_rowid().unwrap_or("rowid").to_owned(), |key| quote(&key.name))
    }

    /// The rowid of one base row.
    pub(crate) fn sql_base_rowid(&self) -> String {
        format!("SELECT {} FROM {} WHERE {}", self.known_rowid().unwrap_or("rowid"), self.base(), self.keys_match())
    }

    /// Joins the base row to its key `p`.
    pub(crate) fn base_of_key(&self) -> String {
        let same = |name: String| format!("b.{name} = p.{name}");
        format!("{} b ON {}", self.base(), join(self.keys.iter().map(|column| same(quote(&column.name))), " AND "))
    }

    /// The value of the cell that `name` names, in the base row `b`.
    fn cell_named(&self, name: &str) -> String {
        if self.cells.is_empty() {
            return "NULL".to_owned();
        }
        let cell = |cell: &ColumnInfo| format!("WHEN {} THEN b.{}", literal(&cell.name), quote(&cell.name));
        format!("CASE {name} {} END", join(self.cells.iter().map(cell), " "))
    }

    /// Clocks after version ?1 and up to ?2, row by row: see [`scan_of`](Self::scan_of).
    pub(crate) fn sql_scan(&self) -> String {
        self.scan_of("db_version > ?1 AND db_version <= ?2")
    }

    /// Clocks at exactly version ?1, of rows after key ?2.
    pub(crate) fn sql_scan_version(&self) -> String {
        self.scan_of("db_version = ?1 AND key > ?2")
    }

    /// Clocks of the rows that the version index names, in the order (db_version, key, name): db_version, key; name,
    /// col_version, ordinal, seq and db_version of the clock; whether the base row is there, the cell's value, primary key.
    ///
    /// The sentinel comes with each row, whatever its own version: it tells the causal length. One statement, so that its
    /// cursors stay where they are from row to row; the index is read alone, and each row is looked up once. The unary plus
    /// keeps SQLite from taking the two sides of the OR for two scans.
    fn scan_of(&self, range: &str) -> String {
        let value = self.cell_named("c.col_name");
        format!(
            "SELECT r.db_version, r.key, c.col_name, c.col_version, c.site_id, c.seq, c.db_version, b.{key} IS NOT NULL, {value},
             {keys}
             FROM (SELECT DISTINCT db_version, key FROM {clock} INDEXED BY {index} WHERE {range}
                   ORDER BY db_version, key) r
             CROSS JOIN {pks} p ON p.{KEY_COLUMN} = r.key
             LEFT JOIN {base}
             CROSS JOIN {clock} c ON c.key = r.key AND (+c.db_version = r.db_version OR +c.col_name = '-1')",
            key = quote(&self.keys[0].name),
            keys = join(self.keys.iter().map(|column| format!("p.{}", quote(&column.name))), ", "),
            clock = self.clock(),
            index = self.version_index(),
            pks = self.keys_table(),
            base = self.base_of_key(),
        )
    }

    /// The rows that have clocks from version ?1 up to ?2: db_version, key; in their order.
    pub(crate) fn sql_run_order(&self) -> String {
        format!(
            "SELECT DISTINCT db_version, key FROM {} INDEXED BY {} WHERE db_version >= ?1 AND db_version <= ?2
             ORDER BY db_version, key",
            self.clock(),
            self.version_index()
        )
    }

    /// All clocks of rows after key ?1, in the order of their keys: key, name, col_version, ordinal, seq, db_version.
    pub(crate) fn sql_run_clocks(&self) -> String {
        format!(
            "SELECT key, col_name, col_version, site_id, seq, db_version FROM {} WHERE key > ?1 ORDER BY key, col_name",
            self.clock()
        )
    }

    /// The sentinel's col_version of key ?1.
    pub(crate) fn sql_causal_length(&self) -> String {
        format!("SELECT col_version FROM {} WHERE key = ?1 AND col_name = '-1'", self.clock())
    }

    /// Keys from ?1 on with their base rows, in order: key, a value that is NULL where there is no base row, primary key,
    /// cells; then the row's rowid, where that can be asked. Of the cells only those whose bit is set in ?2 and the parameters
    /// after it, [`MASK_BITS`] in each: others are not read.
    pub(crate) fn sql_run_rows(&self) -> String {
        self.run_rows(&self.base_of_key(), 2, self.known_rowid())
    }

    /// The same, but a base row is seen only if its rowid is the key + ?2; bits in ?3 and after it.
    pub(crate) fn sql_run_rows_near(&self) -> String {
        let rowid = self.known_rowid().unwrap_or("rowid");
        self.run_rows(&format!("{} AND b.{rowid} = p.{KEY_COLUMN} + ?2", self.base_of_key()), 3, None)
    }

    fn run_rows(&self, base: &str, first_mask: usize, rowid: Option<&str>) -> String {
        let cell = |(index, column): (usize, &ColumnInfo)| {
            let (parameter, bit) = (first_mask + index / MASK_BITS, 1_u64 << (index % MASK_BITS));
            format!("CASE WHEN ?{parameter} & {bit} THEN b.{} END", quote(&column.name))
        };
        let keys = self.keys.iter().map(|column| format!("p.{}", quote(&column.name)));
        let rowid = rowid.map(|rowid| format!("b.{rowid}"));
        format!(
            "SELECT p.{KEY_COLUMN}, b.{}, {} FROM {} p LEFT JOIN {base} WHERE p.{KEY_COLUMN} >= ?1
             ORDER BY p.{KEY_COLUMN}",
            quote(&self.keys[0].name),
            join(keys.chain(self.cells.iter().enumerate().map(cell)).chain(rowid), ", "),
            self.keys_table(),
        )
    }

    /// Whether there is a clock of version ?1 and ordinal ?2.
    pub(crate) fn sql_stamped(&self) -> String {
        format!(
            "SELECT 1 FROM {} INDEXED BY {} WHERE db_version = ?1 AND site_id = ?2 LIMIT 1",
            self.clock(),
            self.version_index()
        )
    }

    fn version_index(&self) -> String {
        quote(&format!("{}{CLOCK_SUFFIX}_dbv_idx", self.shadow))
    }
}
