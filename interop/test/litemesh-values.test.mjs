// What SQLite values become on their way through JSON between litemesh and a peer of the original.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Hub } from "../src/hub.mjs";
import { SCHEMA, TABLE_NAMES } from "./support/schema.mjs";
import { COLUMNS, fromHub, fromPeer, receivedByOriginal } from "./support/values.mjs";

const startLitemesh = () => Hub.start({ schema: SCHEMA, tables: TABLE_NAMES });

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
    for (const column of COLUMNS) {
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
