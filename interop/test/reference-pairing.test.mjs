// The scenarios with real CRSqlite on both ends. They show that the peer of these programs follows the specification,
// so that a scenario that fails against litemesh says something about litemesh.
//
// Three known failures of the original are pinned as well: if the harness did not lose data where the original does,
// a hub that passes the same test would have proved nothing.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ReferenceHub } from "./support/reference-hub.mjs";
import { catchUpCutInsideTransaction, scenarios, uploadCutInsideTransaction } from "./support/scenarios.mjs";
import { insertCounters } from "./support/schema.mjs";
import { network } from "./support/site.mjs";
import { count } from "./support/state.mjs";

const startHub = (options) => ReferenceHub.start(options);

scenarios("reference pairing", startHub);

describe("reference pairing: known failures of the original", () => {
  test("a body above 1 MiB is refused with 413 and its changes are lost", async (t) => {
    const { hub, makeSite } = await network(t, startHub);
    const site = await makeSite();
    await site.write(insertCounters(1, 5000));
    await site.connect();
    assert.equal(site.client.failures.length, 1);
    assert.match(site.client.failures[0].reason, /^413 .*FST_ERR_CTP_BODY_TOO_LARGE/);
    assert.equal(await count(hub, "counter"), 0);
  });

  test("an upload cut inside a transaction is never completed", async (t) => {
    const { hub, site, rows } = await uploadCutInsideTransaction(t, startHub);
    assert.equal(await count(site, "counter"), rows);
    assert.equal(await count(hub, "counter"), rows / 4);
  });

  test("a catch-up cut inside a transaction is never completed", async (t) => {
    const { site } = await catchUpCutInsideTransaction(t, startHub);
    assert.equal(await count(site, "counter"), 5000);
  });
});
