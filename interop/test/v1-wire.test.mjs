// The pure parts of wire v1 against the recorded vectors.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { backoffMs } from "../src/http-client.mjs";
import {
  changeFromRow,
  changeToRow,
  cursorFromJson,
  cursorToJson,
  filterChanges,
  isCursorOlder,
  updateCursor,
  validateChanges,
} from "../src/v1-wire.mjs";

const vectors = JSON.parse(await readFile(new URL("vectors/cursor_logic.json", import.meta.url), "utf8"));
const cursor = (peers) => cursorFromJson({ peers });
const pairs = (list) => list.map(([site_id, db_version]) => ({ site_id, db_version }));

describe("cursors", () => {
  test("an update follows the recorded vectors", () => {
    for (const vector of vectors.updateCursor) {
      const updated = cursor(vector.cursor);
      updateCursor(updated, pairs(vector.changes));
      assert.deepEqual(cursorToJson(updated), { peers: vector.result });
    }
  });

  test("the filter keeps what the recorded vectors keep", () => {
    for (const vector of vectors.filterChanges) {
      const kept = filterChanges(pairs(vector.changes), cursor(vector.cursor));
      assert.deepEqual(kept, pairs(vector.kept));
    }
  });

  test("age is judged as the recorded vectors judge it", () => {
    for (const { a, b, a_is_older } of vectors.isCursorOlder) {
      assert.equal(isCursorOlder(cursor(a), cursor(b)), a_is_older);
    }
  });
});

describe("changes", () => {
  const cell = { table: "t", pk: "0109ff", cid: "a", val: 1 };
  const good = { ...cell, col_version: 1, db_version: 2, site_id: "c1", cl: 1, seq: 0 };

  test("a refusal names the index and the field", () => {
    const refused = (change) => () => validateChanges([good, { ...good, ...change }]);
    assert.throws(refused({ table: " " }), /Invalid change at index 1: Change.table must be a non-empty string$/);
    assert.throws(refused({ pk: undefined }), /index 1: Change.pk must be a hex string$/);
    assert.throws(refused({ pk: "xy" }), /index 1: Change.pk must be a valid hex string$/);
    assert.throws(refused({ site_id: "abc" }), /index 1: Change.site_id hex string must have even length$/);
    assert.throws(refused({ cl: -1 }), /index 1: Change.cl must be a non-negative integer$/);
    assert.throws(refused({ seq: 0.5 }), /index 1: Change.seq must be a non-negative integer$/);
  });

  test("upper-case hex, an empty key and integral floats pass", () => {
    const integralFloat = JSON.parse(JSON.stringify(good).replace("2", "2.0"));
    validateChanges([{ ...good, pk: "" }, { ...good, pk: "0109FF" }, integralFloat]);
  });

  test("keys are written in the order of the original", () => {
    const row = ["t", new Uint8Array([1, 9, 255]), "a", 1, 1, 2, new Uint8Array([0xc1]), 1, 0];
    assert.equal(JSON.stringify(changeFromRow(row)), JSON.stringify(good));
  });

  test("JSON takes from values what it takes in the original", () => {
    const received = (val) => {
      const row = ["t", new Uint8Array([0]), "a", val, 1, 2, new Uint8Array([0xc1]), 1, 0];
      return changeToRow(JSON.parse(JSON.stringify(changeFromRow(row))))[3];
    };
    assert.equal(received(null), null);
    assert.equal(received("a\0b"), "a\0b");
    assert.equal(received(9007199254740993n), 9007199254740992);
    assert.equal(received(9223372036854775807n), 9223372036854775807);
    assert.ok(Object.is(received(-0.0), 0));
    assert.equal(received(Infinity), null);
    assert.equal(received(new Uint8Array([0, 255, 1])), "[object Object]");
  });

  test("booleans are bound as numbers", () => {
    assert.equal(changeToRow({ ...good, val: true })[3], 1);
    assert.equal(changeToRow({ ...good, val: false })[3], 0);
  });
});

test("the client waits 1, 2, 4, 8, 16, 30, 30 seconds", () => {
  const waits = [0, 1, 2, 3, 4, 5, 6].map(backoffMs);
  assert.deepEqual(waits, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
});
