// Ordered lists: the same keys as real CRSqlite, whoever made the triggers.
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { Database } from "../src/crsqlite.mjs";
import { litemesh, litemeshSql } from "../src/hub.mjs";
import { Random } from "./support/random.mjs";

const SEED = Number(process.env.LITEMESH_SEED ?? 14);
// `spot` has no type: in a TEXT column, CRSqlite's trigger does not see an UPDATE to -1 or 1.
const CREATE = `
  CREATE TABLE item (id INTEGER PRIMARY KEY NOT NULL, spot, list TEXT);
  SELECT crsql_as_crr('item');
  CREATE TABLE log (step, id, spot, list);`;
const ORDER = "SELECT crsql_fract_as_ordered('item', 'spot', 'list');";

/** A statement as an application writes it. Keys are copied now and then, as two peers that append make equal ones. */
function statement(random, step) {
  const list = random.pick(["a", "b"]);
  const row = 1 + random.below(Math.max(step, 1));
  const after = 1 + random.below(Math.max(step, 1));
  const copied = `(SELECT spot FROM item WHERE list = '${list}' AND id >= ${row} ORDER BY id LIMIT 1)`;
  return random.pick([
    `INSERT INTO item VALUES (${step}, ${random.pick([-1, 1])}, '${list}')`,
    `INSERT INTO item_fractindex (id, list, after_id) SELECT ${step}, list, id FROM item WHERE id = ${after}`,
    `INSERT INTO item_fractindex (id, list, after_id) VALUES (${step}, '${list}', NULL)`,
    `INSERT INTO item SELECT ${step}, ${copied}, '${list}' WHERE ${copied} IS NOT NULL`,
    `UPDATE item SET spot = ${random.pick([-1, 1])} WHERE id = ${row}`,
    `UPDATE item_fractindex SET after_id = ${after}
       WHERE id = ${row} AND id <> ${after} AND list = (SELECT list FROM item WHERE id = ${after})`,
    `DELETE FROM item WHERE id = ${row}`,
  ]);
}

/** A random history as one script that logs the table after each step. */
function script(random, steps) {
  const log = (step) => `INSERT INTO log SELECT ${step}, id, spot, list FROM item`;
  return Array.from({ length: steps }, (_, n) => `${statement(random, n + 1)}; ${log(n + 1)};`).join("\n");
}

/** A valid key. Digits at the ends of the alphabet come more often than others: there the carries are. */
function key(random) {
  const digit = () => random.pick([" ", "!", "~", "}", String.fromCharCode(32 + random.below(95))]);
  const digits = (count) => Array.from({ length: count }, digit).join("");
  const [head, count] = random.pick([["a", 1], ["b", 2], ["c", 3], ["Z", 1], ["Y", 2], ["X", 3], ["z", 26], ["B", 25]]);
  return head + digits(count) + digits(random.below(4)).replace(/ +$/, "");
}

const literal = (value) => (value === null ? "NULL" : `'${value.replaceAll("'", "''")}'`);

async function file(t, content = Buffer.alloc(0)) {
  const folder = await mkdtemp(join(tmpdir(), "litemesh-interop-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const path = join(folder, "list.db");
  await writeFile(path, content);
  return path;
}

const LOG = "SELECT step, id, spot, list FROM log ORDER BY step, id";

describe("litemesh: ordered lists", () => {
  test(`keys between keys are those of real CRSqlite (LITEMESH_SEED=${SEED})`, async (t) => {
    const random = new Random(SEED);
    const pairs = [[null, null]];
    while (pairs.length < 2000) {
      const [lo, hi] = [key(random), key(random)].sort((a, b) => (a < b ? -1 : 1));
      pairs.push(...(lo === hi ? [] : [[lo, hi]]), [lo, null], [null, hi]);
    }
    const between = ([lo, hi]) => `crsql_fract_key_between(${literal(lo)}, ${literal(hi)})`;
    const select = (some) => `VALUES ${some.map((pair) => `(${between(pair)})`).join(", ")}`;
    const database = await Database.open({ image: Buffer.alloc(0) });
    t.after(() => database.close());
    const path = await file(t);
    for (let start = 0; start < pairs.length; start += 400) {
      const some = pairs.slice(start, start + 400);
      const [theirs, ours] = [await database.all(select(some)), await litemeshSql(path, select(some))];
      some.forEach((pair, n) => assert.deepEqual(ours[n], theirs[n], `between ${JSON.stringify(pair)}`));
    }
  });

  for (const seed of [SEED, SEED + 1, SEED + 2]) {
    test(`a history of moves gives the same keys (LITEMESH_SEED=${seed})`, async (t) => {
      const history = script(new Random(seed), 200);
      // The triggers of CRSqlite in a file that litemesh writes to.
      const donor = await Database.open({ image: Buffer.alloc(0) });
      await donor.exec(CREATE + ORDER);
      const adopted = await file(t, donor.image());
      await litemesh(["sql", adopted, history]);
      await donor.exec(history);
      const expected = await donor.all(LOG);
      await donor.close();
      assert.ok(expected.length > 1000, "a history that does something");
      // Our own triggers.
      const own = await file(t);
      await litemesh(["sql", own, CREATE + ORDER + history]);
      const check = async (path, what) => {
        const found = await litemeshSql(path, LOG);
        const first = expected.findIndex((row, n) => JSON.stringify(row) !== JSON.stringify(found[n]));
        if (first < 0 && found.length === expected.length) return;
        const { step } = expected[first] ?? found[expected.length];
        assert.deepEqual(
          found.filter((row) => row.step === step),
          expected.filter((row) => row.step === step),
          `${what}, after step ${step}: ${history.split("\n").find((line) => line.includes(`SELECT ${step}, id, spot, list`))}`,
        );
      };
      await check(adopted, "triggers of CRSqlite");
      await check(own, "our triggers");
    });
  }
});
