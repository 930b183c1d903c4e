// What two databases must have in common, in a form that can be compared.
//
// A source is anything with `sql(statement)` that returns rows as objects. Values travel as SQL literals (`quote`),
// because a hub's rows come as JSON, which has neither BLOBs nor 64-bit integers.
import assert from "node:assert/strict";
import { TABLES } from "./schema.mjs";

/** One sorted list of lines per table, and one of changes, out of one statement: a hub runs each in a new process. */
export async function stateOf(source) {
  const parts = Object.keys(TABLES).map(
    (table) => `SELECT '${table}' AS part, ${lineOf(table)} AS line FROM "${table}"`,
  );
  parts.push(`SELECT 'changes', ${CHANGE_LINE} FROM crsql_changes`);
  const state = Object.fromEntries([...Object.keys(TABLES), "changes"].map((part) => [part, []]));
  for (const { part, line } of await source.sql(parts.join(" UNION ALL "))) state[part].push(line);
  for (const lines of Object.values(state)) lines.sort();
  return state;
}

/** Lines of one table in key order. */
export async function rowsOf(source, table) {
  const order = TABLES[table].key.join(", ");
  const rows = await source.sql(`SELECT ${lineOf(table)} AS line FROM "${table}" ORDER BY ${order}`);
  return rows.map(({ line }) => line);
}

/** What two sites agree on; local versions and the order that follows from them differ. */
const CHANGE_LINE = joined(['"table"', "hex(pk)", "cid", "quote(val)", "col_version", "cl"]);

function lineOf(table) {
  const { key, columns } = TABLES[table];
  return joined([...key, ...columns].map((column) => `quote("${column}")`));
}

function joined(expressions) {
  return expressions.join(" || ' | ' || ");
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
  const expected = await stateOf(hub);
  const expectedRows = Object.keys(TABLES).reduce((sum, table) => sum + expected[table].length, 0);
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
