// One database file, two engines: what litemesh writes opens in real CRSqlite, and the other way round.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Database } from "../src/crsqlite.mjs";
import { Hub } from "../src/hub.mjs";
import { AS_CRRS, SCHEMA, TABLE_NAMES } from "./support/schema.mjs";
import { ReferenceHub } from "./support/reference-hub.mjs";
import { assertSameClocks, handToAndFro, ORDERS, SharedFile } from "./support/shared-file.mjs";
import { network } from "./support/site.mjs";
import { assertConverged, stateOf } from "./support/state.mjs";

/** A database as a source of rows. */
const asSource = (database) => ({ sql: (statement) => database.all(statement) });

describe("litemesh: database files", () => {
  test("a file of litemesh opens in real CRSqlite, goes on there and comes back", async (t) => {
    const startHub = () => Hub.start({ schema: SCHEMA, tables: TABLE_NAMES });
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.connect();
    await site.write("INSERT INTO todo VALUES ('a', 'of the peer', 0, 0.5), ('b', 'deleted', 0, NULL)");
    await site.client.uploaded();
    await hub.sql("INSERT INTO membership VALUES ('red', -1, 'lead')");
    await hub.sql("INSERT INTO tag VALUES ('key only')");
    await hub.sql("DELETE FROM todo WHERE id = 'b'");
    await hub.sql("UPDATE todo SET title = 'of the hub' WHERE id = 'a'");
    await assertConverged(hub, [site]);
    const before = await stateOf(hub);
    await site.disconnect();
    await hub.stop();

    const database = await Database.open({ image: await hub.image() });
    t.after(() => database.close());
    assert.equal(database.siteId, hub.siteId);
    assert.deepEqual(await stateOf(asSource(database)), before);
    await database.exec("UPDATE todo SET done = 1 WHERE id = 'a'; INSERT INTO tag VALUES ('of CRSqlite')");
    const after = await stateOf(asSource(database));

    const again = await network(t, () => Hub.start({ image: database.image() }));
    assert.equal(again.hub.siteId, hub.siteId);
    assert.deepEqual(await stateOf(again.hub), after);
    const fresh = await again.makeSite();
    await fresh.connect();
    await assertConverged(again.hub, [fresh]);
  });

  test("a file of real CRSqlite is served to peers with all it holds", async (t) => {
    const database = await Database.open({ image: Buffer.alloc(0) });
    t.after(() => database.close());
    await database.exec(SCHEMA + AS_CRRS);
    await database.exec(`
      INSERT INTO todo VALUES ('a', 'old', 0, 0.5), ('b', 'gone', 0, NULL), ('c', 'born again', 0, NULL);
      UPDATE todo SET title = 'new' WHERE id = 'a';
      DELETE FROM todo WHERE id IN ('b', 'c');
      INSERT INTO todo VALUES ('c', 'alive', 1, 2.5);
      INSERT INTO tag VALUES ('key only');
      INSERT INTO membership VALUES ('red', 1, 'lead');`);
    const held = await stateOf(asSource(database));

    const { hub, makeSite } = await network(t, () => Hub.start({ image: database.image() }));
    assert.equal(hub.siteId, database.siteId);
    assert.deepEqual(await stateOf(hub), held);
    const site = await makeSite();
    await site.connect();
    await site.write("UPDATE todo SET done = 7 WHERE id = 'a'");
    await assertConverged(hub, [site]);
    await hub.sql("UPDATE todo SET rank = 9.5 WHERE id = 'a'");
    await assertConverged(hub, [site]);
  });

  test("a file of the original goes on in litemesh and comes back with all that was merged", async (t) => {
    const before = await network(t, () => ReferenceHub.start({ image: Buffer.alloc(0) }));
    const author = await before.makeSite();
    await author.connect();
    await before.hub.sql("INSERT INTO todo VALUES ('own', 'of the file', 0, 0.5)");
    await before.hub.sql("UPDATE todo SET done = 1");
    await author.write("INSERT INTO todo VALUES ('a', 'of the author', 0, 0.5), ('b', 'gone', 0, NULL)");
    await author.write("DELETE FROM todo WHERE id = 'b'; INSERT INTO tag VALUES ('x')");
    await assertConverged(before.hub, [author]);
    await author.disconnect();

    const during = await network(t, () => Hub.start({ image: before.hub.image() }));
    const { hub } = during;
    assert.equal(hub.siteId, before.hub.siteId);
    // The original's merges have their author's versions.
    const origins = await hub.sql(
      `SELECT lower(hex(s.site_id)) AS site, o.version FROM litemesh_origin o JOIN crsql_site_id s ON s.ordinal = o.site
       ORDER BY o.version`,
    );
    const written = await author.sql(
      "SELECT DISTINCT db_version FROM crsql_changes WHERE site_id = crsql_site_id() ORDER BY db_version",
    );
    assert.deepEqual(origins, written.map((row) => ({ site: author.peer.id, version: row.db_version })));
    const other = await during.makeSite();
    await other.connect();
    await other.write("INSERT INTO membership VALUES ('red', 1, 'lead'); UPDATE todo SET title = 'both' WHERE id = 'a'");
    await other.write("INSERT INTO tag VALUES ('y'); DELETE FROM tag WHERE name = 'x'");
    await assertConverged(hub, [other]);
    await hub.sql("INSERT INTO todo VALUES ('own too', 'of litemesh', 2, 2.5)");
    await assertConverged(hub, [other]);
    const held = await stateOf(hub);
    await other.disconnect();
    await hub.stop();

    // The original answers a newcomer from its history and its own writes alone.
    const image = await hub.image();
    const after = await network(t, () => ReferenceHub.start({ image }));
    assert.deepEqual(await stateOf(asSource(after.hub.database)), held);
    const kept = await after.hub.database.rows(
      `SELECT "table", hex(pk), cid, quote(val), col_version, db_version, cl, seq FROM crsql_change_history
       WHERE lower(hex(site_id)) = '${other.peer.id}' ORDER BY db_version, seq`,
    );
    const sent = await other.database.rows(
      `SELECT "table", hex(pk), cid, quote(val), col_version, db_version, cl, seq FROM crsql_change_history
       WHERE site_id = crsql_site_id() ORDER BY db_version, seq`,
    );
    assert.deepEqual(kept, sent);
    assert.ok(after.hub.peer.cursor.get(other.peer.id) > 0, "the cursor of the original has moved, too");
    const newcomer = await after.makeSite();
    await newcomer.connect();
    await assertConverged(after.hub, [newcomer]);
    assert.deepEqual(await stateOf(newcomer), held);
    await after.hub.sql("UPDATE todo SET done = 9");
    await assertConverged(after.hub, [newcomer]);
  });
});

for (const [first, second] of ORDERS) {
  describe(`litemesh: a file of ${first}, continued by ${second} and so on`, () => {
    test("rows deleted by one come back by the other", async (t) => {
      const steps = [
        "INSERT INTO todo VALUES ('a', 'first life', 0, 0.5), ('b', 'old', 1, NULL), ('c', 'kept', 2, 1.5); " +
          "INSERT INTO tag VALUES ('x'), ('y'); INSERT INTO membership VALUES ('red', 1, 'lead'), ('red', 2, 'none')",
        "DELETE FROM todo WHERE id = 'a'; DELETE FROM tag WHERE name = 'x'; DELETE FROM membership; " +
          "UPDATE todo SET title = 'new' WHERE id = 'b'",
        "INSERT INTO todo VALUES ('a', 'second life', 1, NULL); INSERT INTO tag VALUES ('x'); " +
          "DELETE FROM todo WHERE id = 'b'; INSERT INTO membership (team, person) VALUES ('red', 1)",
        "UPDATE todo SET done = 7 WHERE id = 'a'; DELETE FROM todo WHERE id = 'a'; INSERT INTO todo (id) VALUES ('b'); " +
          "UPDATE membership SET role = 'back'",
        "INSERT OR REPLACE INTO todo VALUES ('a', 'third life', 2, 2.5), ('c', 'replaced', 3, 3.5); " +
          "DELETE FROM tag; DELETE FROM membership",
        "INSERT INTO tag VALUES ('y'), ('z'); UPDATE todo SET title = title || '!' WHERE id <> 'b'; " +
          "BEGIN; DELETE FROM todo WHERE id = 'c'; INSERT INTO todo VALUES ('c', 'at once', 0, 0.0); COMMIT",
        "DELETE FROM todo; INSERT INTO todo VALUES ('a', 'fourth life', 4, 4.5)",
      ];
      const file = await handToAndFro(t, first, steps, assertSameClocks);
      const { todo, tag, changes } = await file.read();
      assert.deepEqual(todo, ["'a' | 'fourth life' | 4 | 4.5"]);
      assert.deepEqual(tag, ["'y'", "'z'"]);
      const lives = changes.filter((line) => / -1 NULL /.test(line)).map((line) => line.replace(/ NULL \d+ /, " "));
      // Lives, as both have counted them: odd where the row is there.
      assert.deepEqual(lives, [
        "membership 020B037265640901 -1 4",
        "membership 020B037265640902 -1 2",
        "tag 010B0178 -1 4",
        "tag 010B0179 -1 3",
        "tag 010B017A -1 1",
        "todo 010B0161 -1 7",
        "todo 010B0162 -1 4",
        "todo 010B0163 -1 4",
      ]);
    });

    test("deletions and returns of a remote, merged by one, are continued by the other", async (t) => {
      const file = await SharedFile.create(t, first);
      const remote = await SharedFile.create(t, "crsqlite");
      await file.write(first, "INSERT INTO todo VALUES ('a', 'ours', 0, 0.5), ('b', 'ours', 0, NULL)");
      await remote.merge("crsqlite", await file.changes());
      await remote.write("crsqlite", "DELETE FROM todo WHERE id = 'a'");
      await remote.write("crsqlite", "INSERT INTO todo VALUES ('a', 'of the remote', 1, NULL); DELETE FROM todo WHERE id = 'b'");
      await file.merge(second, await remote.changes());
      assert.deepEqual((await file.read()).todo, ["'a' | 'of the remote' | 1 | NULL"]);
      await file.write(first, "INSERT INTO todo VALUES ('b', 'back', 2, 2.5); DELETE FROM todo WHERE id = 'a'");
      await remote.merge("crsqlite", await file.changes());
      await remote.write("crsqlite", "INSERT INTO todo VALUES ('a', 'once more', 3, 3.5)");
      await file.merge(first, await remote.changes());
      await file.write(second, "UPDATE todo SET rank = 9.5");
      const { todo, changes } = await file.read();
      assert.deepEqual(todo, ["'a' | 'once more' | 3 | 9.5", "'b' | 'back' | 2 | 9.5"]);
      await remote.merge("crsqlite", await file.changes());
      assert.deepEqual((await remote.read()).changes, changes);
    });

    test("a primary key that one has changed is changed again by the other", async (t) => {
      const steps = [
        "INSERT INTO todo VALUES ('a', 'moves', 1, 0.5), ('b', 'stays', 2, NULL); INSERT INTO tag VALUES ('x'); " +
          "INSERT INTO membership VALUES ('red', 1, 'lead'), ('blue', 2, 'none')",
        "UPDATE todo SET id = 'c' WHERE id = 'a'; UPDATE tag SET name = 'y'; UPDATE membership SET person = person + 10",
        "UPDATE todo SET title = 'moved' WHERE id = 'c'; UPDATE todo SET id = 'd', done = 7 WHERE id = 'c'; " +
          "UPDATE membership SET team = 'green', role = 'new' WHERE team = 'red'",
        // Onto keys that had rows before, and back.
        "UPDATE todo SET id = 'a' WHERE id = 'd'; UPDATE tag SET name = 'x'; UPDATE membership SET person = person - 10",
        "DELETE FROM todo WHERE id = 'a'; UPDATE todo SET id = 'a' WHERE id = 'b'; INSERT INTO todo (id) VALUES ('b')",
        "UPDATE OR REPLACE todo SET id = 'b' WHERE id = 'a'",
        "UPDATE todo SET rank = 9.5; INSERT INTO todo VALUES ('a', 'again', 0, 0.0)",
      ];
      const lengths = ({ changes }) => changes.filter((line) => / -1 NULL /.test(line));
      // Of the cells that move, litemesh makes new versions, so that they reach those who have a cursor; their lives are
      // counted alike.
      const file = await handToAndFro(t, first, steps, (content, expected, message) => {
        assert.deepEqual(lengths(content), lengths(expected), message);
      });
      const { todo, membership } = await file.read();
      assert.deepEqual(todo, ["'a' | 'again' | 0 | 0.0", "'b' | 'stays' | 2 | 9.5"]);
      assert.deepEqual(membership, ["'blue' | 2 | 'none'", "'green' | 1 | 'new'"]);
    });

    test("a table that one alters is altered again by the other", async (t) => {
      const alter = (table, ddl) =>
        `SELECT crsql_begin_alter('${table}'); ${ddl}; SELECT crsql_commit_alter('${table}');`;
      const steps = [
        "INSERT INTO todo VALUES ('a', 'one', 1, 0.5), ('b', 'two', 2, NULL), ('gone', 'x', 0, 0.0); " +
          "DELETE FROM todo WHERE id = 'gone'; INSERT INTO tag VALUES ('x'); INSERT INTO membership VALUES ('red', 1, 'lead')",
        alter("todo", "ALTER TABLE todo ADD COLUMN note TEXT; ALTER TABLE todo ADD COLUMN size INTEGER DEFAULT 5"),
        "UPDATE todo SET note = 'noted', size = 6 WHERE id = 'a'; INSERT INTO todo VALUES ('c', 'three', 3, 3.5, NULL, 7)",
        alter("todo", "ALTER TABLE todo DROP COLUMN done; ALTER TABLE todo RENAME COLUMN note TO remark"),
        "UPDATE todo SET remark = remark || '!', rank = 8.5; INSERT INTO todo (id, title) VALUES ('gone', 'back')",
        // Rows that a migration writes are everybody's own: no tombstone, no change to be sent.
        alter("todo", "DELETE FROM todo WHERE id = 'b'; INSERT INTO todo (id, title) VALUES ('d', 'migrated')"),
        "UPDATE todo SET title = 'after' WHERE id = 'd'; DELETE FROM todo WHERE id = 'c'",
        // The recipe for what ALTER TABLE cannot do; here it adds a column to the key of one table and to a table of keys alone.
        alter(
          "membership",
          "CREATE TABLE fresh (team TEXT NOT NULL, person INTEGER NOT NULL, year INTEGER NOT NULL, role TEXT, " +
            "PRIMARY KEY (team, person, year)); INSERT INTO fresh SELECT team, person, 2024, role FROM membership; " +
            "DROP TABLE membership; ALTER TABLE fresh RENAME TO membership",
        ) + alter("tag", "ALTER TABLE tag ADD COLUMN colour TEXT"),
        "INSERT INTO membership VALUES ('red', 1, 2025, 'none'); UPDATE membership SET role = 'more' WHERE year = 2024; " +
          "UPDATE tag SET colour = 'green'; INSERT INTO tag VALUES ('y', NULL)",
        alter("tag", "ALTER TABLE tag DROP COLUMN colour") + "DELETE FROM membership WHERE year = 2025",
      ];
      await handToAndFro(t, first, steps, assertSameClocks);
    });
  });
}
