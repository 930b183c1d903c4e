// Real CRSqlite in memory, from its npm package.
//
// The package is built for browsers. Under Node it needs two things that a browser has: IndexedDB (a fake one, which
// must exist before the package is imported) and a `fetch` that can read the .wasm file.
import "fake-indexeddb/auto";
import { readFile } from "node:fs/promises";
import assert from "node:assert/strict";
import openEngine from "@vlcn.io/crsqlite-wasm";
import * as sqlite from "@vlcn.io/wa-sqlite";
import { MemoryVFS } from "@vlcn.io/wa-sqlite/src/examples/MemoryVFS.js";

const WASM_URL = import.meta.resolve("@vlcn.io/crsqlite-wasm/crsqlite.wasm");
const EXPECTED_VERSION = /^0\.16\./;
/** Rows that one `all` or `rows` call may return: far above any test, so that a runaway query fails by name. */
const RESULT_ROWS_MAX = 2_000_000;

let enginePromise = null;
let imageFiles = null;
let imageCount = 0;

/** Loads the engine once per process; all databases share the one WASM module. */
function engine() {
  enginePromise ??= loadEngine();
  return enginePromise;
}

async function loadEngine() {
  const manifest = JSON.parse(await readFile(new URL("../package.json", WASM_URL), "utf8"));
  assert.match(manifest.version, EXPECTED_VERSION, "these programs are written for CRSqlite 0.16");
  const api = (await withFileFetch(() => openEngine(() => WASM_URL))).base;
  imageFiles = new MemoryVFS();
  api.vfs_register(imageFiles);
  return api;
}

/** Runs `load` while the global `fetch` also understands file: URLs, and puts the old `fetch` back. */
async function withFileFetch(load) {
  const fetchBefore = globalThis.fetch;
  globalThis.fetch = async (resource, options) => {
    const url = String(resource);
    if (!url.startsWith("file:")) return fetchBefore(resource, options);
    return new Response(await readFile(new URL(url)), { headers: { "content-type": "application/wasm" } });
  };
  try {
    return await load();
  } finally {
    globalThis.fetch = fetchBefore;
  }
}

// The engine's JavaScript binding keeps out-parameters in memory that all databases share and reads them only after an
// await, so two calls in flight would take each other's statement. One lock for the whole module therefore; a
// transaction holds it, which also keeps other users of the database from reading uncommitted rows.
let lockTail = Promise.resolve();

function locked(work) {
  const result = lockTail.then(work);
  lockTail = result.catch(() => {});
  return result;
}

/** One open database, without locking. Given to the callback of `Database.transaction`. */
class Connection {
  #api;
  #handle;

  constructor(api, handle) {
    this.#api = api;
    this.#handle = handle;
  }

  /** Runs any number of statements and forgets their rows. */
  async exec(sql) {
    for await (const statement of this.#api.statements(this.#handle, sql)) {
      await this.#collect(statement, []);
    }
  }

  /** Runs one statement and returns its rows as arrays. */
  async rows(sql, parameters = []) {
    return (await this.#query(sql, parameters)).rows;
  }

  /** Runs one statement and returns its rows as objects. */
  async all(sql, parameters = []) {
    const { rows, columns } = await this.#query(sql, parameters);
    return rows.map((row) => Object.fromEntries(columns.map((column, index) => [column, row[index]])));
  }

  /**
   * Runs one statement and returns its rows with nothing lost: INTEGER as a bigint, REAL as a number (so that 1 and 1.0
   * stay apart), TEXT as `{ text: bytes }`, BLOB as a Uint8Array, NULL as null.
   */
  async exactRows(sql) {
    const rows = [];
    for await (const statement of this.#api.statements(this.#handle, sql)) {
      await this.#collect(statement, rows, (column) => this.#exactValue(statement, column));
    }
    return rows;
  }

  /** Whether no transaction is open. */
  isAutocommit() {
    return this.#api.get_autocommit(this.#handle) !== 0;
  }

  /** Prepares one statement and runs it once for each parameter list. */
  async runMany(sql, parameterLists) {
    for await (const statement of this.#api.statements(this.#handle, sql)) {
      for (const parameters of parameterLists) {
        this.#api.bind_collection(statement, parameters);
        await this.#collect(statement, []);
        await this.#api.reset(statement);
      }
    }
  }

  async close() {
    await this.exec("SELECT crsql_finalize()");
    await this.#api.close(this.#handle);
  }

  async #query(sql, parameters) {
    let columns = [];
    const rows = [];
    for await (const statement of this.#api.statements(this.#handle, sql)) {
      this.#api.bind_collection(statement, parameters);
      columns = this.#api.column_names(statement);
      await this.#collect(statement, rows);
    }
    return { rows, columns };
  }

  async #collect(statement, rows, valueOf = (column) => this.#value(statement, column)) {
    const width = this.#api.column_count(statement);
    while ((await this.#api.step(statement)) === sqlite.SQLITE_ROW) {
      assert.ok(rows.length < RESULT_ROWS_MAX, `a query returned more than ${RESULT_ROWS_MAX} rows`);
      rows.push(Array.from({ length: width }, (_, column) => valueOf(column)));
    }
  }

  #exactValue(statement, column) {
    switch (this.#api.column_type(statement, column)) {
      case sqlite.SQLITE_INTEGER:
        return this.#api.column_int64(statement, column);
      case sqlite.SQLITE_FLOAT:
        return this.#api.column_double(statement, column);
      case sqlite.SQLITE_TEXT:
        return { text: this.#api.column_blob(statement, column) };
      case sqlite.SQLITE_BLOB:
        return this.#api.column_blob(statement, column);
      default:
        return null;
    }
  }

  /** Text is read as bytes: the binding's own function ends at the first NUL character. */
  #value(statement, column) {
    if (this.#api.column_type(statement, column) !== sqlite.SQLITE_TEXT) return this.#api.column(statement, column);
    return Buffer.from(this.#api.column_blob(statement, column)).toString("utf8");
  }
}

/**
 * A real CRSqlite database in memory.
 *
 * Values: INTEGER is a number (a bigint beyond 2^53), REAL a number, TEXT a string, BLOB a Uint8Array, NULL is null.
 * A number parameter is bound as INTEGER when it fits in 32 bits and as REAL otherwise, as the original's binding does.
 */
export class Database {
  #connection;
  #imageName;

  constructor(connection, siteId, imageName) {
    this.#connection = connection;
    this.#imageName = imageName;
    /** 32 lower-case hex digits; this is the peer id on the wire. */
    this.siteId = siteId;
  }

  /** Opens an empty database, or the given image of a database file (bytes; rollback journal mode, not WAL). */
  static async open({ image, readOnly = false } = {}) {
    const api = await engine();
    return locked(async () => {
      const imageName = image && placeImage(image);
      const flags = readOnly
        ? sqlite.SQLITE_OPEN_READONLY
        : sqlite.SQLITE_OPEN_READWRITE | sqlite.SQLITE_OPEN_CREATE;
      const handle = await api.open_v2(imageName ?? ":memory:", flags, imageName && imageFiles.name);
      const connection = new Connection(api, handle);
      await assertLayout(connection);
      const [[siteId]] = await connection.rows("SELECT lower(hex(crsql_site_id()))");
      return new Database(connection, siteId, imageName);
    });
  }

  /** Opens an empty database whose site id is the given one, 32 hex digits. */
  static async openAs(siteId) {
    const first = await Database.open({ image: Buffer.alloc(0) });
    await first.exec(`UPDATE crsql_site_id SET site_id = x'${siteId}' WHERE ordinal = 0`);
    await first.close();
    // The original reads its site id once for each connection.
    const image = first.image();
    first.forget();
    return Database.open({ image });
  }

  exec(sql) {
    return locked(() => this.#connection.exec(sql));
  }

  exactRows(sql) {
    return locked(() => this.#connection.exactRows(sql));
  }

  isAutocommit() {
    return this.#connection.isAutocommit();
  }

  rows(sql, parameters) {
    return locked(() => this.#connection.rows(sql, parameters));
  }

  all(sql, parameters) {
    return locked(() => this.#connection.all(sql, parameters));
  }

  /** Runs `work(connection)` between BEGIN and COMMIT; rolls back and rethrows when it throws. */
  transaction(work) {
    return locked(async () => {
      await this.#connection.exec("BEGIN IMMEDIATE");
      try {
        const result = await work(this.#connection);
        await this.#connection.exec("COMMIT");
        return result;
      } catch (error) {
        await this.#connection.exec("ROLLBACK");
        throw error;
      }
    });
  }

  /** The bytes of a database that was opened from an image. */
  image() {
    const file = imageFiles.mapNameToFile.get(this.#imageName);
    assert.ok(file, "only a database that was opened from an image has bytes");
    return Buffer.from(file.data.slice(0, file.size));
  }

  close() {
    return locked(() => this.#connection.close());
  }

  /** Forgets the bytes of a database that was opened from an image and closed. */
  forget() {
    imageFiles.mapNameToFile.delete(this.#imageName);
  }
}

/** Copies a database file into the memory file system under a new name. An empty image is a new database. */
function placeImage(image) {
  const name = `image-${imageCount++}`;
  const data = new Uint8Array(image).slice().buffer;
  imageFiles.mapNameToFile.set(name, { name, flags: 0, size: data.byteLength, data });
  return name;
}

/** The version stamp in the file does not tell 0.15 from 0.16 in this build; the site table does. */
async function assertLayout(connection) {
  const columns = await connection.rows("SELECT name FROM pragma_table_info('crsql_site_id') ORDER BY cid");
  assert.deepEqual(columns.flat(), ["site_id", "ordinal"], "the database does not have the layout of CRSqlite 0.16");
}
