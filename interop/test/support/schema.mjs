// The tables that all scenarios share: one of each kind that merges differently.

export const TABLES = {
  todo: { key: ["id"], columns: ["title", "done", "rank"] },
  counter: { key: ["id"], columns: ["label", "n"] },
  tag: { key: ["name"], columns: [] },
  membership: { key: ["team", "person"], columns: ["role"] },
  anything: { key: ["id"], columns: ["a_any", "b_int", "c_real", "d_text", "e_blob"] },
};

export const TABLE_NAMES = Object.keys(TABLES);

export const SCHEMA = `
  CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER, rank REAL);
  CREATE TABLE counter (id INTEGER PRIMARY KEY NOT NULL, label TEXT, n INTEGER);
  CREATE TABLE tag (name TEXT PRIMARY KEY NOT NULL);
  CREATE TABLE membership (team TEXT NOT NULL, person INTEGER NOT NULL, role TEXT, PRIMARY KEY (team, person));
  CREATE TABLE anything (id INTEGER PRIMARY KEY NOT NULL, a_any, b_int INTEGER, c_real REAL, d_text TEXT, e_blob BLOB);
`;

/** SQL that makes all tables CRRs, for engines that have no `init` command. */
export const AS_CRRS = TABLE_NAMES.map((table) => `SELECT crsql_as_crr('${table}');`).join("\n");

/** SQL that inserts rows `from` .. `from + count - 1` into `counter`, two changes each, as one transaction. */
export function insertCounters(from, count) {
  return `WITH RECURSIVE c(i) AS (SELECT ${from} UNION ALL SELECT i + 1 FROM c WHERE i < ${from + count - 1})
          INSERT INTO counter SELECT i, 'label of ' || i, i * 7 FROM c`;
}
