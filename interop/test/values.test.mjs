// What SQLite values become on their way through JSON, with real CRSqlite on both ends.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ReferenceHub } from "./support/reference-hub.mjs";
import { fromHub, fromPeer, receivedByOriginal } from "./support/values.mjs";

const startReference = () => ReferenceHub.start();

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
