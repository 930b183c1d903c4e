// The scenarios against the litemesh program, and what litemesh promises beyond the original.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Hub } from "../src/hub.mjs";
import { catchUpCutInsideTransaction, scenarios, uploadCutInsideTransaction } from "./support/scenarios.mjs";
import { insertCounters, SCHEMA, TABLE_NAMES } from "./support/schema.mjs";
import { network } from "./support/site.mjs";
import { assertConverged, count } from "./support/state.mjs";

const BULK_MS = 180_000;

const startHub = ({ schema = SCHEMA } = {}) => Hub.start({ schema, tables: TABLE_NAMES });

scenarios("litemesh", startHub);

describe("litemesh: where the original loses data", () => {
  test("an upload cut inside a transaction is completed after the reconnect", async (t) => {
    const { hub, site, rows } = await uploadCutInsideTransaction(t, startHub);
    await assertConverged(hub, [site], { failuresExpected: true });
    assert.equal(await count(hub, "counter"), rows);
  });

  test("a catch-up cut inside a transaction is completed after the reconnect", async (t) => {
    const { hub, site, rows } = await catchUpCutInsideTransaction(t, startHub);
    await assertConverged(hub, [site], { timeout: BULK_MS, failuresExpected: true });
    assert.equal(await count(site, "counter"), rows);
  });

  test("pages of 10,000 changes are accepted although they are above 1 MiB", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.write(insertCounters(1, 25_000));
    await site.connect({ timeout: BULK_MS });
    await assertConverged(hub, [site], { timeout: BULK_MS });
    assert.equal(await count(hub, "counter"), 25_000);
  });

  test("a hub killed in the middle of an upload has lost nothing after it runs again", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    let dataPosts = 0;
    const killAtThird = async (path) => {
      if (path === "/data" && ++dataPosts === 3) await hub.stop("SIGKILL");
    };
    const site = await makeSite({ pageRows: 500, client: { beforePost: killAtThird } });
    const listen = hub.address;
    await site.write(insertCounters(1, 1000));
    await site.write("INSERT INTO tag VALUES ('after the large one')");
    await site.peer.attach(site.client);
    await site.peer.waitFor("the hub is killed", () => dataPosts >= 3 && site.client.serverId === null);
    await site.caughtUp(() => hub.serve({ listen }));
    await assertConverged(hub, [site], { failuresExpected: true });
    assert.equal(await count(hub, "counter"), 1000);
  });

  test("a hub that was stopped and started again goes on where it was", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await hub.sql("INSERT INTO tag VALUES ('before')");
    await site.connect();
    await assertConverged(hub, [site]);
    const listen = hub.address;
    await site.caughtUp(async () => {
      await hub.stop();
      await site.peer.waitFor("the end of the stream is noticed", () => site.client.serverId === null);
      await site.write("INSERT INTO tag VALUES ('while the hub was away')");
      await hub.serve({ listen });
    });
    await assertConverged(hub, [site]);
    assert.equal(await count(hub, "tag"), 2);
  });
});

describe("litemesh: schema versions", () => {
  test("changes of a newer schema are answered with 200 and not merged", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite({ schema: `${SCHEMA} PRAGMA user_version = 2;` });
    await site.write("INSERT INTO tag VALUES ('of tomorrow')");
    await site.connect();
    site.assertNoFailures();
    assert.equal(await count(hub, "tag"), 0);
  });

  test("a peer of an older schema is told so and the connection stays", async (t) => {
    const { hub, makeSite } = await network(t, startHub, { schema: `${SCHEMA} PRAGMA user_version = 2;` });
    await hub.sql("INSERT INTO tag VALUES ('of tomorrow')");
    const site = await makeSite();
    const outdated = [];
    site.peer.on("outdated", (version) => outdated.push(version));
    await site.write("INSERT INTO tag VALUES ('of today')");
    await site.connect();
    site.assertNoFailures();
    assert.deepEqual(outdated, [2]);
    assert.equal(await count(site, "tag"), 1);
    assert.equal(await count(hub, "tag"), 2, "an older schema's changes are accepted");
  });
});
