// What any hub of wire v1 owes to peers of the original. Run against litemesh and against a hub of real CRSqlite.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Random } from "./random.mjs";
import { insertCounters } from "./schema.mjs";
import { network } from "./site.mjs";
import { assertConverged, count, rowsOf } from "./state.mjs";

const LIVE_MS = 2000;
const BULK_MS = 180_000;
/** Two changes per row: 50,000 changes. */
const BULK_ROWS = 25_000;
/** The original's server takes bodies of 1 MiB; this many changes of the bulk table stay below it. */
const SMALL_PAGE_ROWS = 4000;

export function scenarios(name, startHub) {
  describe(`${name}: rows`, () => rowScenarios(startHub));
  describe(`${name}: conflicts`, () => conflictScenarios(startHub));
  describe(`${name}: live`, () => liveScenarios(startHub));
  describe(`${name}: reconnects`, () => reconnectScenarios(startHub));
  describe(`${name}: volume`, () => volumeScenarios(startHub));
}

function rowScenarios(startHub) {
  test("rows of the hub reach a fresh peer", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    await hub.sql("INSERT INTO todo VALUES ('a', 'first', 0, 1.5), ('b', 'second', 1, NULL)");
    const site = await makeSite();
    await site.connect();
    await assertConverged(hub, [site]);
    assert.deepEqual(await rowsOf(site, "todo"), ["'a' | 'first' | 0 | 1.5", "'b' | 'second' | 1 | NULL"]);
  });

  test("rows of a peer reach the hub", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.write("INSERT INTO todo VALUES ('a', 'first', 0, 1.5), ('b', 'second', 1, NULL)");
    await site.connect();
    await assertConverged(hub, [site]);
    assert.deepEqual(await rowsOf(hub, "todo"), ["'a' | 'first' | 0 | 1.5", "'b' | 'second' | 1 | NULL"]);
  });

  test("rows written on both sides cross", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await hub.sql("INSERT INTO todo VALUES ('hub', 'from the hub', 0, 1.25)");
    await site.write("INSERT INTO todo VALUES ('peer', 'from the peer', 1, 2.5)");
    await site.connect();
    await assertConverged(hub, [site]);
    assert.equal(await count(hub, "todo"), 2);
  });

  test("a table of key columns only converges, deletes included", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await hub.sql("INSERT INTO tag VALUES ('hub'), ('both'), ('')");
    await site.write("INSERT INTO tag VALUES ('peer'), ('both')");
    await site.connect();
    await assertConverged(hub, [site]);
    await site.write("DELETE FROM tag WHERE name = 'hub'");
    await site.client.uploaded();
    await hub.sql("DELETE FROM tag WHERE name = 'peer'");
    await assertConverged(hub, [site]);
    assert.deepEqual(await rowsOf(hub, "tag"), ["''", "'both'"]);
  });

  test("rows of a composite key converge", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await hub.sql("INSERT INTO membership VALUES ('red', 1, 'lead'), ('red', 2, 'member')");
    await site.write("INSERT INTO membership VALUES ('blue', 1, 'lead'), ('red', 2, 'lead'), ('red', -3, NULL)");
    await site.connect();
    await assertConverged(hub, [site]);
    await hub.sql("DELETE FROM membership WHERE team = 'red' AND person = 2");
    await assertConverged(hub, [site]);
    const rows = await rowsOf(site, "membership");
    assert.deepEqual(rows, ["'blue' | 1 | 'lead'", "'red' | -3 | NULL", "'red' | 1 | 'lead'"]);
  });

  test("integer and text keys of every width arrive unchanged", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    const integers = ["0", "1", "127", "128", "255", "256", "65535", "65536", "2147483647", "2147483648", "-1", "-128",
      "1099511627775", "9223372036854775807", "-9223372036854775808"];
    const texts = ["''", "'a'", "'it''s'", "'héllo'", "'日本'", "'😀'", "' '", `'${"x".repeat(300)}'`];
    await hub.sql(`INSERT INTO counter (id, label) VALUES ${integers.map((i) => `(${i}, 'hub')`)}`);
    await hub.sql(`INSERT INTO todo (id, title) VALUES ${texts.map((text) => `(${text}, 'hub')`)}`);
    await site.connect();
    await site.write("UPDATE counter SET label = 'peer'; UPDATE todo SET title = 'peer'");
    await assertConverged(hub, [site]);
    assert.equal(await count(hub, "counter WHERE label = 'peer'"), integers.length);
    assert.equal(await count(hub, "todo WHERE title = 'peer'"), texts.length);
  });

  test("a transaction over several tables arrives whole, from the peer", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.connect();
    await site.write(`
      INSERT INTO todo VALUES ('a', 'one', 0, 0.5);
      INSERT INTO tag VALUES ('urgent');
      INSERT INTO membership VALUES ('red', 7, 'lead');
      UPDATE todo SET done = 1 WHERE id = 'a';`);
    await assertConverged(hub, [site]);
    assert.deepEqual(await rowsOf(hub, "membership"), ["'red' | 7 | 'lead'"]);
  });

  test("a transaction over several tables arrives whole, from the hub", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    // A hub takes one statement at a time; the trigger makes it a transaction of three tables.
    await hub.sql(`CREATE TRIGGER enroll AFTER INSERT ON todo BEGIN
      INSERT INTO tag VALUES ('of ' || NEW.id);
      INSERT INTO membership VALUES (NEW.id, 1, 'lead');
    END`);
    const site = await makeSite();
    await site.connect();
    await hub.sql("INSERT INTO todo VALUES ('a', 'one', 0, 0.5)");
    await assertConverged(hub, [site]);
    assert.deepEqual(await rowsOf(site, "tag"), ["'of a'"]);
    assert.deepEqual(await rowsOf(site, "membership"), ["'a' | 1 | 'lead'"]);
  });
}

function conflictScenarios(startHub) {
  /** Both sides hold `start`, write apart from each other, and meet again. Returns the row that both end with. */
  async function meetAgain(t, { start, atHub, atPeer, table = "todo" }) {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    if (start) await hub.sql(start);
    await site.connect();
    await assertConverged(hub, [site]);
    await site.disconnect();
    for (const statement of [atHub].flat()) await hub.sql(statement);
    for (const statement of [atPeer].flat()) await site.write(statement);
    await site.connect();
    await assertConverged(hub, [site]);
    return rowsOf(hub, table);
  }

  const start = "INSERT INTO todo VALUES ('a', 'start', 0, 0.5)";
  const set = (title) => `UPDATE todo SET title = ${title} WHERE id = 'a'`;

  test("the cell written more often wins, at the hub", async (t) => {
    const rows = await meetAgain(t, { start, atHub: [set("'z'"), set("'hub'")], atPeer: set("'peer'") });
    assert.deepEqual(rows, ["'a' | 'hub' | 0 | 0.5"]);
  });

  test("the cell written more often wins, at the peer", async (t) => {
    const rows = await meetAgain(t, { start, atHub: set("'z'"), atPeer: [set("'y'"), set("'a peer'")] });
    assert.deepEqual(rows, ["'a' | 'a peer' | 0 | 0.5"]);
  });

  test("of equally old cells the greater value wins, at the hub", async (t) => {
    const rows = await meetAgain(t, { start, atHub: set("'n'"), atPeer: set("'m'") });
    assert.deepEqual(rows, ["'a' | 'n' | 0 | 0.5"]);
  });

  test("of equally old cells the greater value wins, at the peer", async (t) => {
    const rows = await meetAgain(t, { start, atHub: set("'m'"), atPeer: set("'n'") });
    assert.deepEqual(rows, ["'a' | 'n' | 0 | 0.5"]);
  });

  test("any value beats NULL, and a longer text beats its prefix", async (t) => {
    const rows = await meetAgain(t, {
      start,
      atHub: [set("NULL"), "UPDATE todo SET rank = 2.5 WHERE id = 'a'"],
      atPeer: [set("''"), "UPDATE todo SET rank = NULL WHERE id = 'a'"],
    });
    assert.deepEqual(rows, ["'a' | '' | 0 | 2.5"]);
  });

  for (const [type, winner, loser] of [
    ["an integer beats a text", "1", "'z'"],
    ["an integer beats a greater real", "1", "9.5"],
    ["a text beats NULL", "'a'", "NULL"],
    ["a negative integer loses against a positive one", "3", "-3"],
  ]) {
    test(`in a column without a type ${type}`, async (t) => {
      const cell = (value) => `UPDATE anything SET a_any = ${value} WHERE id = 1`;
      const table = "anything";
      const first = "INSERT INTO anything (id, a_any) VALUES (1, 'start')";
      const rows = await meetAgain(t, { table, start: first, atHub: cell(winner), atPeer: cell(loser) });
      assert.deepEqual(rows, [`1 | ${winner} | NULL | NULL | NULL | NULL`]);
      const swapped = await meetAgain(t, { table, start: first, atHub: cell(loser), atPeer: cell(winner) });
      assert.deepEqual(swapped, rows);
    });
  }

  test("cells of one row merge one by one", async (t) => {
    const rows = await meetAgain(t, {
      start,
      atHub: "UPDATE todo SET title = 'hub', rank = 9.5 WHERE id = 'a'",
      atPeer: "UPDATE todo SET done = 1, rank = 10.5 WHERE id = 'a'",
    });
    assert.deepEqual(rows, ["'a' | 'hub' | 1 | 10.5"]);
  });

  test("the same row inserted on both sides becomes one row", async (t) => {
    const rows = await meetAgain(t, {
      atHub: "INSERT INTO todo VALUES ('a', 'hub', 1, 0.5)",
      atPeer: "INSERT INTO todo VALUES ('a', 'peer', 0, 1.5)",
    });
    assert.deepEqual(rows, ["'a' | 'peer' | 1 | 1.5"]);
  });

  test("a delete at the hub beats updates at the peer", async (t) => {
    const rows = await meetAgain(t, { start, atHub: "DELETE FROM todo", atPeer: [set("'x'"), set("'y'")] });
    assert.deepEqual(rows, []);
  });

  test("a delete at the peer beats updates at the hub", async (t) => {
    const rows = await meetAgain(t, { start, atHub: [set("'x'"), set("'y'")], atPeer: "DELETE FROM todo" });
    assert.deepEqual(rows, []);
  });

  test("the same row deleted on both sides stays deleted", async (t) => {
    const rows = await meetAgain(t, { start, atHub: "DELETE FROM todo", atPeer: "DELETE FROM todo" });
    assert.deepEqual(rows, []);
  });

  const again = (title) => ["DELETE FROM todo", `INSERT INTO todo VALUES ('a', ${title}, 1, 3.5)`];

  test("a row deleted and inserted again at the hub beats updates at the peer", async (t) => {
    const rows = await meetAgain(t, { start, atHub: again("'born'"), atPeer: [set("'x'"), set("'y'"), set("'z'")] });
    assert.deepEqual(rows, ["'a' | 'born' | 1 | 3.5"]);
  });

  test("a row deleted and inserted again at the peer beats updates at the hub", async (t) => {
    const rows = await meetAgain(t, { start, atHub: [set("'x'"), set("'y'"), set("'z'")], atPeer: again("'born'") });
    assert.deepEqual(rows, ["'a' | 'born' | 1 | 3.5"]);
  });

  test("a row inserted again beats a delete", async (t) => {
    const rows = await meetAgain(t, { start, atHub: "DELETE FROM todo", atPeer: again("'born'") });
    assert.deepEqual(rows, ["'a' | 'born' | 1 | 3.5"]);
  });
}

function liveScenarios(startHub) {
  test("what the hub writes reaches a connected peer within two seconds", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.connect();
    for (let i = 0; i < 5; i++) {
      await hub.sql(`INSERT INTO todo VALUES ('live ${i}', 'now', ${i}, NULL)`);
      const arrived = async () => (await count(site, "todo")) === i + 1;
      await site.peer.waitFor(`row ${i} arrives`, arrived, { timeout: LIVE_MS });
    }
    await assertConverged(hub, [site]);
  });

  test("what a connected peer writes is at the hub within two seconds", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.connect();
    for (let i = 0; i < 5; i++) {
      const begin = performance.now();
      await site.write(`INSERT INTO todo VALUES ('live ${i}', 'now', ${i}, NULL)`);
      await site.client.uploaded();
      // The 200 of the POST promises that the change is committed: no waiting here.
      assert.equal(await count(hub, "todo"), i + 1);
      assert.ok(performance.now() - begin < LIVE_MS, "the write took too long to arrive");
    }
    await assertConverged(hub, [site]);
  });

  test("updates and deletes travel live in both directions", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.connect();
    await hub.sql("INSERT INTO todo VALUES ('a', 'one', 0, NULL), ('b', 'two', 0, NULL)");
    await assertConverged(hub, [site]);
    await site.write("UPDATE todo SET title = 'uno' WHERE id = 'a'; DELETE FROM todo WHERE id = 'b'");
    await assertConverged(hub, [site]);
    await hub.sql("UPDATE todo SET title = 'ein' WHERE id = 'a'");
    await assertConverged(hub, [site]);
    assert.deepEqual(await rowsOf(site, "todo"), ["'a' | 'ein' | 0 | NULL"]);
  });

  test("three peers of one hub converge", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const sites = [await makeSite(), await makeSite(), await makeSite()];
    await hub.sql("INSERT INTO todo VALUES ('shared', 'start', 0, NULL)");
    for (const [i, site] of sites.entries()) {
      await site.write(`INSERT INTO todo VALUES ('early ${i}', '${i}', 0, NULL)`);
    }
    for (const site of sites) await site.connect();
    await assertConverged(hub, sites);
    await Promise.all(
      sites.map((site, i) => site.write(`
        UPDATE todo SET title = 'from ${i}' WHERE id = 'shared';
        INSERT INTO membership VALUES ('team', ${i}, 'member');
        DELETE FROM todo WHERE id = 'early ${(i + 1) % sites.length}'`)),
    );
    await assertConverged(hub, sites);
    assert.deepEqual(await rowsOf(hub, "todo"), ["'shared' | 'from 2' | 0 | NULL"]);
    assert.equal(await count(hub, "membership"), sites.length);
  });

  test("a peer gets nothing back of what it wrote, and nothing twice", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const [writer, reader] = [await makeSite(), await makeSite()];
    await writer.connect();
    await reader.connect();
    for (let i = 0; i < 3; i++) await writer.write(`INSERT INTO counter VALUES (${i}, 'x', ${i})`);
    await assertConverged(hub, [writer, reader]);
    await hub.sql("INSERT INTO tag VALUES ('last')");
    await assertConverged(hub, [writer, reader]);
    assert.equal(writer.peer.received.changes, 1, "changes that came to the writer");
    assert.equal(reader.peer.received.changes, 7, "changes that came to the reader");
  });
}

function reconnectScenarios(startHub) {
  test("a reconnect loses nothing that was written on either side meanwhile", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.connect();
    for (let round = 0; round < 3; round++) {
      await site.write(`INSERT INTO counter VALUES (${round}, 'connected', 0)`);
      await hub.sql(`INSERT INTO counter VALUES (${10 + round}, 'connected', 0)`);
      await assertConverged(hub, [site]);
      await site.disconnect();
      await site.write(`
        INSERT INTO counter VALUES (${20 + round}, 'offline', 0);
        DELETE FROM counter WHERE id = ${round}`);
      await hub.sql(`INSERT INTO counter VALUES (${30 + round}, 'meanwhile', 0)`);
      await hub.sql(`UPDATE counter SET n = ${round} WHERE id = ${10 + round}`);
      await site.connect();
    }
    await assertConverged(hub, [site]);
    assert.equal(await count(hub, "counter"), 9);
  });

  test("a cut connection is dialled again and nothing is lost", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.connect();
    await site.caughtUp(async () => {
      site.client.cut();
      await site.peer.waitFor("the cut is noticed", () => site.client.serverId === null);
      await site.write("INSERT INTO tag VALUES ('written while cut')");
      await hub.sql("INSERT INTO tag VALUES ('meanwhile')");
    });
    await assertConverged(hub, [site]);
    assert.equal(await count(hub, "tag"), 2);
  });

  test("a peer that was away gets what other peers wrote", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const [here, away] = [await makeSite(), await makeSite()];
    await here.connect();
    await away.connect();
    await here.write("INSERT INTO todo VALUES ('a', 'one', 0, NULL)");
    await assertConverged(hub, [here, away]);
    await away.disconnect();
    await here.write("UPDATE todo SET title = 'two' WHERE id = 'a'");
    await here.write("INSERT INTO todo VALUES ('b', 'new', 0, NULL)");
    await here.client.uploaded();
    await here.disconnect();
    await away.connect();
    await assertConverged(hub, [here, away]);
  });

  for (const seed of [1, 2, 3, 4]) {
    test(`random writes and reconnects of three peers converge (seed ${seed})`, async (t) => {
      const { hub, makeSite } = await network(t, startHub);
      const sites = [await makeSite(), await makeSite(), await makeSite()];
      await randomHistory(new Random(seed), hub, sites);
      await assertConverged(hub, sites);
    });
  }
}

/** Writes, deletes and reconnects in an order that the generator decides; ends with every site connected. */
async function randomHistory(random, hub, sites) {
  const connected = new Set();
  for (let step = 0; step < 60; step++) {
    const site = random.pick(sites);
    const dice = random.below(10);
    if (dice < 4) await site.write(randomStatement(random));
    else if (dice < 7) await hub.sql(randomStatement(random));
    else await toggle(site, connected);
  }
  for (const site of sites) {
    if (!connected.has(site)) await toggle(site, connected);
  }
}

async function toggle(site, connected) {
  if (connected.delete(site)) {
    // What is on its way up is let through: a POST that is cut off counts as a failure.
    await site.client.uploaded();
    await site.disconnect();
  } else {
    connected.add(site);
    await site.connect();
  }
}

function randomStatement(random) {
  const key = random.below(5);
  return random.pick([
    `INSERT INTO counter VALUES (${key}, 'i${random.below(100)}', ${random.below(3)})
       ON CONFLICT DO UPDATE SET label = excluded.label, n = excluded.n`,
    `UPDATE counter SET label = 'u${random.below(100)}' WHERE id = ${key}`,
    `UPDATE counter SET n = ${random.below(3)} WHERE id <= ${key}`,
    `DELETE FROM counter WHERE id = ${key}`,
    `INSERT OR IGNORE INTO tag VALUES ('t${key}')`,
    `DELETE FROM tag WHERE name = 't${key}'`,
    `INSERT OR REPLACE INTO membership VALUES ('team ${key % 2}', ${key}, 'r${random.below(3)}')`,
    `DELETE FROM membership WHERE person = ${key}`,
  ]);
}

function volumeScenarios(startHub) {
  test("a fresh peer catches up on 50,000 changes of the hub", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    await hub.sql(insertCounters(1, BULK_ROWS));
    const site = await makeSite();
    await site.connect({ timeout: BULK_MS });
    await assertConverged(hub, [site], { timeout: BULK_MS });
    assert.equal(await count(site, "counter"), BULK_ROWS);
  });

  test("a peer uploads 50,000 changes in bodies below 1 MiB", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite({ pageRows: SMALL_PAGE_ROWS });
    await site.write(insertCounters(1, BULK_ROWS));
    await site.connect({ timeout: BULK_MS });
    await assertConverged(hub, [site], { timeout: BULK_MS });
    assert.equal(await count(hub, "counter"), BULK_ROWS);
  });

  test("many transactions of a peer that was offline arrive in order", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite({ pageRows: 100 });
    for (let i = 0; i < 150; i++) {
      await site.write(`
        INSERT INTO counter VALUES (${i}, 'row ${i}', ${i});
        UPDATE counter SET n = n + 1 WHERE id <= ${i % 7}`);
    }
    await site.connect();
    await assertConverged(hub, [site]);
    assert.equal(await count(hub, "counter"), 150);
  });
}

/**
 * A peer's transaction of 2000 changes is cut after its first page; a hub's of 50,000 after the first message. Returns
 * after the peer has dialled again and both have answered each other.
 */
export async function uploadCutInsideTransaction(t, startHub) {
  const { hub, makeSite } = await network(t, startHub);
  let dataPosts = 0;
  const site = await makeSite({
    pageRows: 500,
    client: { beforePost: (path) => path === "/data" && ++dataPosts === 2 && site.client.cut() },
  });
  await site.write(insertCounters(1, 1000));
  await site.connect();
  assert.ok(site.client.failures.length > 0, "the cut must have cost a POST");
  return { hub, site, rows: 1000 };
}

export async function catchUpCutInsideTransaction(t, startHub) {
  const { hub, makeSite } = await network(t, startHub);
  await hub.sql(insertCounters(1, BULK_ROWS));
  const site = await makeSite();
  site.peer.once("change", () => site.client.cut());
  await site.connect({ timeout: BULK_MS });
  return { hub, site, rows: BULK_ROWS };
}
