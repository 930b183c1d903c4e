// One database file, two engines: what litemesh writes opens in real CRSqlite, and the other way round.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Database } from "../src/crsqlite.mjs";
import { Hub } from "../src/hub.mjs";
import { AS_CRRS, SCHEMA, TABLE_NAMES } from "./support/schema.mjs";
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
});
