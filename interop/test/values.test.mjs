// What SQLite values become on their way through JSON: from and to real CRSqlite, and from and to litemesh.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Hub } from "../src/hub.mjs";
import { ReferenceHub } from "./support/reference-hub.mjs";
import { SCHEMA, TABLE_NAMES } from "./support/schema.mjs";
import { network } from "./support/site.mjs";
import { count } from "./support/state.mjs";
import { heldValues, INSERT_VALUES, receivedByOriginal, VALUES } from "./support/values.mjs";

const startReference = () => ReferenceHub.start();
const startLitemesh = () => Hub.start({ schema: SCHEMA, tables: TABLE_NAMES });

/** Writes all values at the hub; resolves to what the hub and the peer hold when they have arrived. */
async function fromHub(t, startHub) {
  const { hub, makeSite } = await network(t, startHub);
  await hub.sql(INSERT_VALUES);
  const site = await makeSite();
  await site.connect();
  await site.peer.waitFor("all values", async () => (await count(site, "anything")) === VALUES.length);
  return { sent: await heldValues(hub), received: await heldValues(site) };
}

/** Writes all values at a connected peer; the 200 of the POST says that the hub has them. */
async function fromPeer(t, startHub) {
  const { hub, makeSite } = await network(t, startHub);
  const site = await makeSite();
  await site.connect();
  await site.write(INSERT_VALUES);
  await site.client.uploaded();
  site.assertNoFailures();
  return { sent: await heldValues(site), received: await heldValues(hub) };
}

describe("values between two peers of the original", () => {
  test("are damaged as recorded, from hub to peer", async (t) => {
    const { sent, received } = await fromHub(t, startReference);
    assert.deepEqual(received, receivedByOriginal(sent));
  });

  test("are damaged as recorded, from peer to hub", async (t) => {
    const { sent, received } = await fromPeer(t, startReference);
    assert.deepEqual(received, receivedByOriginal(sent));
  });
});

describe("values between litemesh and a peer of the original", () => {
  test("are damaged no more than recorded, from hub to peer", async (t) => {
    const { sent, received } = await fromHub(t, startLitemesh);
    const expected = receivedByOriginal(sent);
    // JSON can spell an infinity as a number that is too large; NULL, as recorded, is as good as it has to be.
    for (const cell of Object.keys(sent).filter((name) => /^(plus|minus)_inf\./.test(name))) {
      if (received[cell] === sent[cell]) expected[cell] = sent[cell];
    }
    assert.deepEqual(received, expected);
  });

  test("keep integers and BLOBs, as far as the peer spells them out, from peer to hub", async (t) => {
    const { sent, received } = await fromPeer(t, startLitemesh);
    const expected = receivedByOriginal(sent);
    for (const column of ["a_any", "b_int", "c_real", "d_text", "e_blob"]) {
      expected[`blob.${column}`] = sent[`blob.${column}`];
      expected[`empty_blob.${column}`] = sent[`empty_blob.${column}`];
    }
    for (const column of ["a_any", "e_blob"]) {
      expected[`int_2p31.${column}`] = "integer 2147483648";
      expected[`int_max_safe.${column}`] = "integer 9007199254740991";
      expected[`int_2p53_plus1.${column}`] = "integer 9007199254740992";
      expected[`int_neg.${column}`] = "integer -9007199254740996";
    }
    assert.deepEqual(received, expected);
  });
});
