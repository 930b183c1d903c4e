// Bad input from a peer: refused with the original's words, nothing merged, the connection and the hub go on.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { describe, test } from "node:test";
import { Hub } from "../src/hub.mjs";
import { SCHEMA, TABLE_NAMES } from "./support/schema.mjs";
import { network } from "./support/site.mjs";
import { assertConverged, count } from "./support/state.mjs";

const transcript = JSON.parse(await readFile(new URL("vectors/http_transcript.json", import.meta.url), "utf8"));
const CLIENT_ID = "c1".repeat(16);

// The recorded messages carry schema version 1; of a newer schema they would be ignored instead of refused.
const VERSIONED = `${SCHEMA} PRAGMA user_version = 1;`;
const startHub = () => Hub.start({ schema: VERSIONED, tables: TABLE_NAMES });

/** Recorded requests with an error answer of the original's own (not of its web framework). */
const refusals = transcript.filter(
  ({ name, response }) =>
    /^(sync|data): /.test(name) &&
    /^\{"type":"error","error":"(Invalid change|Expected|Missing|Connect)/.test(response?.body ?? ""),
);

function change(site, fields) {
  const base = { table: "todo", pk: "010b0161", cid: "title", val: "bad", col_version: 1, db_version: 1 };
  return { ...base, site_id: site.peer.id, cl: 1, seq: 0, ...fields };
}

function post(site, changes) {
  const data = { type: "changes", data: changes, schemaVersion: 1 };
  return site.client.postRaw("/data", JSON.stringify({ type: "data", peerId: site.peer.id, data }));
}

/** The connection that was there before still carries changes in both directions. */
async function assertGoesOn(hub, site) {
  let disconnects = 0;
  site.peer.once("disconnect", () => (disconnects += 1));
  await site.write("INSERT INTO tag VALUES ('from the peer, after')");
  await site.client.uploaded();
  await hub.sql("INSERT INTO tag VALUES ('from the hub, after')");
  await assertConverged(hub, [site]);
  assert.equal(disconnects, 0);
  assert.equal(await count(hub, "tag"), 2);
}

describe("litemesh: bad input", () => {
  test("one invalid change refuses the whole message, by its index", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite({ schema: VERSIONED });
    await site.connect();
    const answer = await post(site, [change(site, {}), change(site, { pk: 7 }), change(site, { seq: 1 })]);
    assert.equal(answer.status, 500);
    const error = "Invalid change at index 1: Change.pk must be a hex string";
    assert.deepEqual(JSON.parse(answer.text), { type: "error", error });
    assert.equal(await count(hub, "todo"), 0);
    await assertGoesOn(hub, site);
  });

  test("recorded bad requests get the recorded status and text", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite({ schema: VERSIONED });
    await site.connect();
    assert.ok(refusals.length >= 20, "the recording must still contain the bad requests");
    for (const { name, request, response } of refusals) {
      const body = request.body.replaceAll(CLIENT_ID, site.peer.id);
      const answer = await site.client.postRaw(request.url, body, { contentType: request.headers["content-type"] });
      assert.equal(answer.status, Number(response.status.split(" ")[1]), name);
      assert.deepEqual(JSON.parse(answer.text), JSON.parse(response.body), name);
    }
    assert.equal(await count(hub, "todo"), 0);
    await assertGoesOn(hub, site);
  });

  test("an unknown table or column is an error that names it, and merges nothing", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite({ schema: VERSIONED });
    await site.connect();
    for (const fields of [{ table: "no_such_table" }, { cid: "no_such_column" }]) {
      const answer = await post(site, [change(site, fields)]);
      assert.equal(answer.status, 500);
      assert.match(JSON.parse(answer.text).error, /no_such_(table|column)/);
    }
    assert.equal(await count(hub, "todo"), 0);
    await assertGoesOn(hub, site);
  });

  test("malformed packed keys harm neither the hub nor other peers", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const [site, bystander] = [await makeSite({ schema: VERSIONED }), await makeSite({ schema: VERSIONED })];
    await site.connect();
    await bystander.connect();
    // Empty; an integer wider than eight bytes; cut off; an unknown type; too few values. The first two abort CRSqlite.
    for (const pk of ["", "0179010203040506070809101112131415", "010b05", "010e", "00"]) {
      await post(site, [change(site, { pk })]);
    }
    assert.equal(await count(hub, "todo"), 0);
    await assertGoesOn(hub, site);
    await assertConverged(hub, [bystander]);
    assert.equal(bystander.peer.received.changes, 2, "a malformed change must not be forwarded");
  });

  test("an absurd version does not silence the hub", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite({ schema: VERSIONED });
    await site.connect();
    await post(site, [change(site, { db_version: Number.MAX_SAFE_INTEGER })]);
    const body = JSON.stringify({
      type: "data",
      peerId: site.peer.id,
      data: { type: "changes", data: [change(site, { db_version: "VERSION" })], schemaVersion: 1 },
    });
    await site.client.postRaw("/data", body.replace('"VERSION"', "9223372036854775807"));
    assert.equal(await count(hub, "todo"), 0);
    await assertGoesOn(hub, site);
  });
});
