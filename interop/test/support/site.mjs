// One real CRSqlite database with a wire v1 peer and an HTTP client: what a user of the original runs.
import assert from "node:assert/strict";
import { Database } from "../../src/crsqlite.mjs";
import { backoffMs, HttpClientTransport } from "../../src/http-client.mjs";
import { V1Peer } from "../../src/v1-peer.mjs";
import { AS_CRRS, SCHEMA } from "./schema.mjs";

const CATCH_UP_MS = 120_000;
/** Connections that one catch-up may use up before it counts as failed. */
const CONNECTIONS_MAX = 20;
/** The original's waits before it dials again, shortened: a hub that still knows the old stream refuses the new one. */
const quickBackoff = (attempts) => backoffMs(attempts) / 25;

export class Site {
  #attached = false;
  #connected = 0;
  #eose = 0;
  #answered = 0;

  constructor(database, peer, client) {
    this.database = database;
    this.peer = peer;
    this.client = client;
    peer.on("connect", (_, serial) => (this.#connected = serial));
    peer.on("eose", (_, serial) => (this.#eose = serial));
    peer.on("answered", (_, serial) => (this.#answered = serial));
  }

  /** Makes a site that is not connected yet. `client` are options of the HTTP client. */
  static async create(url, { schema = SCHEMA, asCrrs = AS_CRRS, pageRows, client } = {}) {
    const database = await Database.open();
    await database.exec(schema + asCrrs);
    const peer = new V1Peer(database, { pageRows });
    await peer.start();
    return new Site(database, peer, new HttpClientTransport(url, { backoff: quickBackoff, ...client }));
  }

  sql(statement) {
    return this.database.all(statement);
  }

  write(sql) {
    return this.peer.write(sql);
  }

  /** Connects and resolves when both sides have answered each other's sync request completely. */
  async connect({ timeout = CATCH_UP_MS } = {}) {
    await this.caughtUp(() => (this.#attached ? this.client.connect() : this.peer.attach(this.client)), { timeout });
    this.#attached = true;
  }

  /**
   * Runs `action` and resolves when a connection made after this call has caught up in both directions. A connection
   * that breaks on the way, also while the last messages go up, leaves that to its successor.
   */
  async caughtUp(action, { timeout = CATCH_UP_MS } = {}) {
    const before = this.#connected;
    await action();
    for (let round = 0; round < CONNECTIONS_MAX; round++) {
      await this.peer.waitFor("catch-up in both directions", () => this.#isCaughtUp(before), { timeout });
      await this.client.uploaded();
      if (this.#isCaughtUp(before)) return;
    }
    throw new Error(`${CONNECTIONS_MAX} connections broke before one caught up`);
  }

  #isCaughtUp(before) {
    const current = this.#connected;
    const complete = this.#eose === current && this.#answered === current;
    return current > before && complete && this.client.serverId !== null;
  }

  disconnect() {
    return this.client.disconnect();
  }

  assertNoFailures() {
    assert.deepEqual(this.client.failures, [], "every POST must have had a 2xx answer");
    assert.deepEqual(this.peer.errors, [], "the peer must not have failed at anything");
  }

  async dispose() {
    await this.peer.stop();
    await this.client.stop();
    await this.database.close();
  }
}

/** A hub and a maker of sites, all of which end with the test. */
export async function network(t, startHub, hubOptions) {
  const hub = await startHub(hubOptions);
  const sites = [];
  t.after(async () => {
    for (const site of sites) await site.dispose();
    await hub.dispose();
  });
  const makeSite = async (options) => {
    const site = await Site.create(hub.url, options);
    sites.push(site);
    return site;
  };
  return { hub, makeSite };
}
