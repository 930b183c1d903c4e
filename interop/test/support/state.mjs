// What two databases must have in common, in a form that can be compared.
//
// A source is anything with `sql(statement)` that returns rows as objects. Values travel as SQL literals (`quote`),
// because a hub's rows come as JSON, which has neither BLOBs nor 64-bit integers.
import assert from "node:assert/strict";
import { TABLES } from "./schema.mjs";

/** Rows of each table in key order, and the set of changes. */
export async function stateOf(source) {
  const state = {};
  for (const table of Object.keys(TABLES)) state[table] = await rowsOf(source, table);
  state.changes = await changesOf(source);
  return state;
}

export async function rowsOf(source, table) {
  const { key, columns } = TABLES[table];
  const literals = [...key, ...columns].map((column) => `quote("${column}") AS "${column}"`);
  const rows = await source.sql(`SELECT ${literals.join(", ")} FROM "${table}" ORDER BY ${key.join(", ")}`);
  return rows.map((row) => Object.values(row).join(" | "));
}

/** One line per change, sorted: the order of `crsql_changes` follows local versions, which differ between sites. */
export async function changesOf(source) {
  const rows = await source.sql(
    `SELECT "table", hex(pk) AS pk, cid, quote(val) AS val, col_version, cl FROM crsql_changes`,
  );
  return rows.map((row) => Object.values(row).join(" | ")).sort();
}

/** Number of rows of all tables: cheap enough to ask often. */
export async function rowCount(source) {
  const counts = Object.keys(TABLES).map((table) => `(SELECT count(*) FROM "${table}")`);
  const [row] = await source.sql(`SELECT ${counts.join(" + ")} AS n`);
  return row.n;
}

/** One number, under the name `n`. */
export async function count(source, fromWhere) {
  const [row] = await source.sql(`SELECT count(*) AS n FROM ${fromWhere}`);
  return row.n;
}

/**
 * Waits until the peers hold what the hub holds, and asserts it. Whatever the peers have written must have been handed
 * to their clients before. Also asserts that nothing failed on the way, unless `failuresExpected`.
 */
export async function assertConverged(hub, sites, { timeout = 10_000, failuresExpected = false } = {}) {
  for (const site of sites) await site.client.uploaded();
  const [expected, expectedRows] = [await stateOf(hub), await rowCount(hub)];
  for (const site of sites) {
    const equal = async () => (await rowCount(site)) === expectedRows && isEqual(await stateOf(site), expected);
    await site.peer.waitFor("the peer holds what the hub holds", equal, { timeout }).catch(async (error) => {
      assert.deepEqual(await stateOf(site), expected, error.message);
    });
    if (!failuresExpected) site.assertNoFailures();
  }
}

function isEqual(a, b) {
  return JSON.stringify(a) === JSON.stringify(b);
}
