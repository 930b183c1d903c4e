// The database under the peer is real CRSqlite and gives values back as they are.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Database } from "../src/crsqlite.mjs";

describe("real CRSqlite", () => {
  test("a site id is 32 lower-case hex digits and differs between databases", async () => {
    const [a, b] = [await Database.open(), await Database.open()];
    assert.match(a.siteId, /^[0-9a-f]{32}$/);
    assert.notEqual(a.siteId, b.siteId);
    await a.close();
    await b.close();
  });

  test("changes of one database merge into another", async () => {
    const [a, b] = [await Database.open(), await Database.open()];
    for (const database of [a, b]) {
      await database.exec("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('t')");
    }
    await a.exec("INSERT INTO t VALUES (1, 'one'), (2, 'two'); DELETE FROM t WHERE id = 2");
    const changes = await a.rows("SELECT * FROM crsql_changes");
    await b.transaction((connection) =>
      connection.runMany("INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", changes),
    );
    assert.deepEqual(await b.all("SELECT * FROM t"), [{ id: 1, v: "one" }]);
    await a.close();
    await b.close();
  });

  test("values come back with their type", async () => {
    const database = await Database.open();
    const [row] = await database.rows(
      "SELECT NULL, 'a' || char(0) || 'b', 9007199254740991, 9007199254740993, 1.5, x'00ff', 'é😀'",
    );
    assert.deepEqual(row, [null, "a\0b", 9007199254740991, 9007199254740993n, 1.5, new Uint8Array([0, 255]), "é😀"]);
    await database.close();
  });

  test("a transaction that throws leaves nothing behind", async () => {
    const database = await Database.open();
    await database.exec("CREATE TABLE t (v)");
    const failing = database.transaction(async (connection) => {
      await connection.exec("INSERT INTO t VALUES (1)");
      await connection.exec("INSERT INTO no_such_table VALUES (1)");
    });
    await assert.rejects(failing, /no such table/);
    assert.deepEqual(await database.rows("SELECT count(*) FROM t"), [[0]]);
    await database.close();
  });

  test("a database can be written to bytes and opened from them", async () => {
    const first = await Database.open({ image: Buffer.alloc(0) });
    await first.exec("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('t')");
    await first.exec("INSERT INTO t VALUES (1, 'kept')");
    await first.close();
    const second = await Database.open({ image: first.image() });
    assert.equal(second.siteId, first.siteId);
    assert.deepEqual(await second.all("SELECT v, cl FROM t, crsql_changes"), [{ v: "kept", cl: 1 }]);
    await second.close();
  });
});
