// Two databases in two languages exchange what they have through crsql_changes.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { NodePeer } from "../src/node-peer.mjs";
import { PythonPeer } from "../src/python-peer.mjs";
import { Random, seed } from "../src/random.mjs";

const SCHEMA = [
  "CREATE TABLE item (id TEXT PRIMARY KEY NOT NULL, a, b INTEGER NOT NULL DEFAULT 0, c TEXT)",
  "SELECT crsql_as_crr('item')",
  "CREATE TABLE link (x INTEGER NOT NULL, y TEXT NOT NULL, PRIMARY KEY (x, y))",
  "SELECT crsql_as_crr('link')",
];
// BigInt is INTEGER, number is REAL.
const NUMBERS = [0n, 1n, -1n, 2n ** 63n - 1n, -(2n ** 63n), 2n ** 53n + 1n, 0.1, 1.0, 2 ** 60, -Infinity];
const VALUES = [null, ...NUMBERS, "", "é\u{1f600}", "1", Buffer.alloc(0), Buffer.from("00ff", "hex")];

/** Two databases, and how far each has told the other. */
class Pair {
  constructor(...peers) {
    this.peers = peers;
    this.told = [0n, 0n];
  }

  static async open() {
    const pair = new Pair(new PythonPeer(), new NodePeer());
    for (const peer of pair.peers) for (const sql of SCHEMA) await peer.run(sql);
    return pair;
  }

  async tell(from) {
    const [source, target] = [this.peers[from], this.peers[1 - from]];
    const [[site]] = await target.run("SELECT crsql_site_id()");
    const [[version]] = await source.run("SELECT crsql_db_version()");
    await target.merge(await source.changes(this.told[from], site));
    this.told[from] = version;
  }

  async tellAll() {
    for (const from of [0, 1, 0, 1]) await this.tell(from);
  }

  async assertEqual(message) {
    for (const sql of [
      "SELECT * FROM item ORDER BY id",
      "SELECT typeof(a), typeof(b), typeof(c) FROM item ORDER BY id",
      "SELECT * FROM link ORDER BY x, y",
      // Who wrote the same value at the same time is not agreed on, and a sentinel that its cells imply is not kept.
      `SELECT "table", pk, cid, val, col_version, cl FROM crsql_changes WHERE NOT (cid = '-1' AND cl = 1)
       ORDER BY "table", pk, cid`,
    ]) {
      const [python, node] = await Promise.all(this.peers.map((peer) => peer.run(sql)));
      assert.deepEqual(node, python, `${message}: ${sql}`);
    }
  }

  close() {
    return Promise.all(this.peers.map((peer) => peer.close()));
  }
}

describe("Python and Node", () => {
  let pair;
  before(async () => (pair = await Pair.open()));
  after(() => pair.close());

  test("every value arrives as it was stored, both ways", async () => {
    for (const [index, peer] of pair.peers.entries()) {
      for (const [row, value] of VALUES.entries()) {
        await peer.run("INSERT INTO item (id, a) VALUES (?, ?)", [`${index}-${row}`, value]);
      }
    }
    await pair.tellAll();
    for (const peer of pair.peers) {
      const rows = await peer.run("SELECT a FROM item ORDER BY substr(id, 1, 1), CAST(substr(id, 3) AS INTEGER)");
      assert.deepEqual(rows.flat(), [...VALUES, ...VALUES]);
    }
    await pair.assertEqual("values");
  });

  test("concurrent updates of one row keep both columns, and one value of a column", async () => {
    const [python, node] = pair.peers;
    await python.run("INSERT INTO item VALUES ('both', 'first', 0, '')");
    await pair.tellAll();
    await python.run("UPDATE item SET a = 'python', b = 7 WHERE id = 'both'");
    await node.run("UPDATE item SET a = 'node', c = 'c' WHERE id = 'both'");
    await pair.tellAll();
    // Written equally often: the larger value wins.
    assert.deepEqual(await node.run("SELECT * FROM item WHERE id = 'both'"), [["both", "python", 7n, "c"]]);
    await pair.assertEqual("updates");
  });

  test("a deletion beats the update that it did not know of, and the row can come back", async () => {
    const [python, node] = pair.peers;
    await node.run("INSERT INTO item VALUES ('gone', 1, 1, '1')");
    await pair.tellAll();
    await python.run("DELETE FROM item WHERE id = 'gone'");
    await node.run("UPDATE item SET a = 2 WHERE id = 'gone'");
    await pair.tellAll();
    assert.deepEqual(await node.run("SELECT * FROM item WHERE id = 'gone'"), []);
    await node.run("INSERT INTO item (id, a) VALUES ('gone', 'back')");
    await pair.tellAll();
    assert.deepEqual(await python.run("SELECT a FROM item WHERE id = 'gone'"), [["back"]]);
    await pair.assertEqual("deletions");
  });
});

test("random histories converge", async (context) => {
  const start = seed();
  context.diagnostic(`LITEMESH_SEED=${start}`);
  const random = new Random(start);
  const pair = await Pair.open();
  try {
    for (let round = 0; round < 12; round += 1) {
      for (let step = 0; step < 25; step += 1) {
        const statements = Array.from({ length: 1 + random.below(3) }, () => statement(random));
        await random.pick(pair.peers).transaction(statements, { rollback: random.below(8) === 0 });
        if (random.below(10) === 0) await pair.tell(random.below(2));
      }
      await pair.tellAll();
      await pair.assertEqual(`LITEMESH_SEED=${start}, round ${round}`);
    }
    const [[rows]] = await pair.peers[0].run("SELECT count(*) FROM item");
    assert.ok(rows > 0n, "the history wrote something");
  } finally {
    await pair.close();
  }
});

/** One random write, as SQL and values. */
function statement(random) {
  const id = String(random.below(12));
  const value = () => random.pick(VALUES);
  const integer = () => BigInt(random.below(5));
  const text = () => random.pick([null, "", "x", "y", "é"]);
  switch (random.below(8)) {
    case 0:
      return ["INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?)", [id, value(), integer(), text()]];
    case 1:
      return ["INSERT INTO item VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", [id, value(), integer(), text()]];
    case 2:
      return ["INSERT INTO item (id, a) VALUES (?, ?) ON CONFLICT DO UPDATE SET a = excluded.a", [id, value()]];
    case 3:
      return ["UPDATE item SET b = b + 1, c = ? WHERE id = ?", [text(), id]];
    case 4:
      return ["DELETE FROM item WHERE id = ?", [id]];
    case 5:
      return ["UPDATE OR REPLACE item SET id = ? WHERE id = ?", [String(random.below(12)), id]];
    case 6:
      return ["INSERT OR IGNORE INTO link VALUES (?, ?)", [integer(), id]];
    default:
      return ["DELETE FROM link WHERE x = ?", [integer()]];
  }
}
