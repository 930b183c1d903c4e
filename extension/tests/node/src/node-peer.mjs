// A database in this Node process. The same interface as PythonPeer; integers are BigInt.
import Database from "better-sqlite3";

import { EXTENSION } from "./extension.mjs";

const CHANGES = `SELECT "table", pk, cid, val, col_version, db_version, site_id, cl, seq FROM crsql_changes
                 WHERE db_version > ? AND site_id IS NOT ? ORDER BY db_version, seq`;
const MERGE = "INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";

export class NodePeer {
  constructor(path = ":memory:") {
    this.db = new Database(path, { timeout: 30_000 });
    this.db.loadExtension(EXTENSION);
    // Without this an INTEGER would come as a number, and a number goes back as a REAL.
    this.db.defaultSafeIntegers();
  }

  async run(sql, values = []) {
    const statement = this.db.prepare(sql);
    if (statement.reader) return statement.raw().all(...values);
    statement.run(...values);
    return [];
  }

  async transaction(statements, { rollback = false } = {}) {
    this.db.exec("BEGIN IMMEDIATE");
    try {
      for (const [sql, values] of statements) this.db.prepare(sql).run(...values);
    } catch (error) {
      this.db.exec("ROLLBACK");
      throw error;
    }
    this.db.exec(rollback ? "ROLLBACK" : "COMMIT");
  }

  async changes(since, site) {
    return this.db.prepare(CHANGES).raw().all(since, site);
  }

  async merge(changes) {
    const statement = this.db.prepare(MERGE);
    this.db.transaction(() => changes.forEach((change) => statement.run(...change))).immediate();
  }

  async close() {
    this.db.close();
  }
}
