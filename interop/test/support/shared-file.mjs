// One file, handed from engine to engine. Whichever has written, both must read the same of it, to the last number; and
// where they do the same by specification, it must be what CRSqlite alone would have made of the same statements.
import assert from "node:assert/strict";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Database } from "../../src/crsqlite.mjs";
import { litemeshSql } from "../../src/hub.mjs";
import { SCHEMA } from "./schema.mjs";

const OTHER = { crsqlite: "litemesh", litemesh: "crsqlite" };

/** The two ways to begin. */
export const ORDERS = Object.keys(OTHER).map((first) => [first, OTHER[first]]);

const SHARED_TABLES = ["todo", "tag", "membership"];

/** A database file that one engine after the other opens, writes to and closes. */
export class SharedFile {
  #path;

  constructor(path) {
    this.#path = path;
  }

  /** Makes a file with the tables of SHARED_TABLES, by the engine of that name. */
  static async create(t, engine, schema = SCHEMA) {
    const folder = await mkdtemp(join(tmpdir(), "litemesh-interop-"));
    t.after(() => rm(folder, { recursive: true, force: true }));
    const file = new SharedFile(join(folder, "shared.db"));
    await writeFile(file.#path, Buffer.alloc(0));
    await file.write(engine, schema + SHARED_TABLES.map((table) => `SELECT crsql_as_crr('${table}');`).join("\n"));
    return file;
  }

  /** Runs statements in one of the engines. */
  async write(engine, sql) {
    if (engine === "litemesh") {
      await litemeshSql(this.#path, sql);
      return;
    }
    const image = await this.#withCrsqlite((database) => database.exec(sql));
    await writeFile(this.#path, image);
  }

  /** Merges changes as one transaction of plain SQL. */
  merge(engine, changes) {
    const inserts = changes.map((change) => `INSERT INTO crsql_changes VALUES (${change});`);
    return this.write(engine, `BEGIN; ${inserts.join("\n")} COMMIT`);
  }

  /** Rows and clocks, which both engines must read alike. */
  async read() {
    const ofLitemesh = await contentOf({ sql: (statement) => litemeshSql(this.#path, statement) });
    let ofCrsqlite = null;
    await this.#withCrsqlite(async (database) => {
      ofCrsqlite = await contentOf({ sql: (statement) => database.all(statement) });
    });
    assert.deepEqual(ofLitemesh, ofCrsqlite, "both engines read the same");
    return ofLitemesh;
  }

  /** Everything that `crsql_changes` has, as SQL literals. */
  async changes() {
    const columns = ["table", "pk", "cid", "val", "col_version", "db_version", "site_id", "cl", "seq"];
    const change = columns.map((column) => `quote("${column}")`).join(" || ', ' || ");
    return (await this.#select(`SELECT ${change} AS line FROM crsql_changes`)).map(({ line }) => line);
  }

  /** What makes the tables as they are by now. */
  async schema() {
    const names = SHARED_TABLES.map((table) => `'${table}'`).join(", ");
    const tables = await this.#select(`SELECT sql FROM sqlite_master WHERE type = 'table' AND name IN (${names})`);
    return tables.map(({ sql }) => `${sql};`).join("\n");
  }

  async #select(statement) {
    let rows = null;
    await this.#withCrsqlite(async (database) => {
      rows = await database.all(statement);
    });
    return rows;
  }

  /** Opens a copy in real CRSqlite; returns its bytes afterwards. */
  async #withCrsqlite(work) {
    const bytes = await readFile(this.#path);
    // As in Hub.image: there is no log beside a file that was closed.
    if (bytes.length > 0) bytes.fill(1, 18, 20);
    const database = await Database.open({ image: bytes });
    try {
      await work(database);
    } finally {
      await database.close();
    }
    const image = database.image();
    database.forget();
    return image;
  }
}

/** Lines of each table with whatever columns it has by now, and of `crsql_changes`, in two degrees of detail. */
async function contentOf(source) {
  const content = {};
  for (const table of SHARED_TABLES) {
    const columns = await source.sql(`SELECT name FROM pragma_table_info('${table}')`);
    const line = columns.map(({ name }) => `quote("${name}")`).join(" || ' | ' || ");
    const rows = await source.sql(`SELECT ${line} AS line FROM "${table}" ORDER BY 1`);
    content[table] = rows.map(({ line }) => line);
  }
  const rows = await source.sql(
    `SELECT "table" || ' ' || hex(pk) || ' ' || cid || ' ' || quote(val) || ' ' || col_version || ' ' || cl AS line,
            ' ' || db_version || ' ' || seq || ' ' || hex(site_id) AS stamp FROM crsql_changes ORDER BY 1, 2`,
  );
  content.changes = rows.map(({ line }) => line);
  content.stamped = rows.map(({ line, stamp }) => line + stamp);
  return content;
}

/** A check of `handToAndFro`: the clocks are those that CRSqlite alone would have made. */
export function assertSameClocks(content, expected, message) {
  assert.deepEqual(content.changes, expected.changes, message);
}

/** Runs the steps in turn on one file, beginning with `first`, and all of them in real CRSqlite on another. */
export async function handToAndFro(t, first, steps, check) {
  const file = await SharedFile.create(t, first);
  const alone = await SharedFile.create(t, "crsqlite");
  let engine = first;
  for (const [index, sql] of steps.entries()) {
    await file.write(engine, sql);
    await alone.write("crsqlite", sql);
    const [content, expected] = [await file.read(), await alone.read()];
    const message = `after step ${index + 1}, by ${engine}: ${sql}`;
    for (const table of SHARED_TABLES) assert.deepEqual(content[table], expected[table], message);
    check(content, expected, message);
    engine = OTHER[engine];
  }
  // And a database that knows nothing of all that makes the same of it.
  const reader = await SharedFile.create(t, "crsqlite", await file.schema());
  await reader.merge("crsqlite", await file.changes());
  const [merged, content] = [await reader.read(), await file.read()];
  for (const table of SHARED_TABLES) assert.deepEqual(merged[table], content[table], `${table} at a reader`);
  return file;
}
