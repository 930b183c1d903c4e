// The recorded transcript of the original server, replayed.
//
// Against the reference server, so that the other end of the reference pairing is what the original is; and its last
// frames against our peer, so that the peer meets bytes that it did not help to write.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { describe, test } from "node:test";
import { eventData } from "../src/sse.mjs";
import { HttpServerTransport } from "./support/v1-server.mjs";
import { ReferenceHub } from "./support/reference-hub.mjs";
import { Site } from "./support/site.mjs";

const transcript = JSON.parse(await readFile(new URL("vectors/http_transcript.json", import.meta.url), "utf8"));
const exchanges = transcript.filter(({ request, response }) => request && response.status !== "");
const unstarted = exchanges.filter(({ name }) => name.startsWith("transport not started"));
const started = exchanges.filter(({ name, request }) => !unstarted.some((u) => u.name === name) && request.method);
const recorded = transcript.find(({ frames }) => frames).frames;

// The tables of the recording: the server had written two rows, in one transaction, before it started.
const SCHEMA = "CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title, done, ts); PRAGMA user_version = 1;";
const AS_CRRS = "SELECT crsql_as_crr('todo');";
const ROWS = `INSERT INTO todo VALUES
  ('r-00000000', 'title of r 0', 0, 1700000000), ('r-00000001', 'title of r 1', 1, 1700000001)`;
const LIVE_ROW = "INSERT INTO todo VALUES ('live-00000000', 'title of live 0', 0, 1700000000)";
const CLIENT_ID = "c1".repeat(16);
const FRESH_ID = "c3".repeat(16);

/** Sends a recorded request as it was; big bodies are only described in the recording. */
function replay(url, { method, url: path, headers, body }) {
  const large = /^<(\d+) bytes>$/.exec(body ?? "");
  return fetch(url + path, {
    method,
    headers,
    // Bytes, because fetch adds a content type of its own to text.
    body: large ? Buffer.alloc(Number(large[1]), " ") : body && Buffer.from(body),
  });
}

async function assertAnswer(url, { name, request, response }) {
  const answer = await replay(url, request);
  assert.equal(answer.status, Number(response.status.split(" ")[1]), name);
  const text = await answer.text();
  // The original's SQLite binding puts the result code in front of the engine's message.
  assert.equal(text, response.body.replace("SQLITE_ERROR: ", ""), name);
  assert.equal(answer.headers.get("vary"), "Origin", name);
  assert.equal(answer.headers.get("access-control-allow-origin"), request.headers.origin ?? null, name);
}

/** An open event stream of which frames can be taken one by one. */
async function openStream(url, peerId) {
  const abort = new AbortController();
  const response = await fetch(`${url}/stream?peerId=${peerId}`, { signal: abort.signal });
  const events = eventData(response.body)[Symbol.asyncIterator]();
  return {
    next: async () => JSON.parse((await events.next()).value),
    close: () => abort.abort(),
  };
}

/** The recording has names in place of what differs each time. Sites come in the order of their random ids. */
function comparable(frame, serverId) {
  const named = JSON.parse(JSON.stringify(frame).replaceAll(serverId, "<SERVER_ID>"));
  if (named.data?.data) named.data.data.sort((a, b) => compare(a.site_id, b.site_id));
  return named;
}

function compare(a, b) {
  return a < b ? -1 : Number(a > b);
}

async function recordedHub(t) {
  const hub = await ReferenceHub.start({ schema: SCHEMA, asCrrs: AS_CRRS });
  t.after(() => hub.dispose());
  await hub.sql(ROWS);
  return hub;
}

describe("the recorded transcript", () => {
  test("every request gets the recorded answer from the reference server", async (t) => {
    const hub = await recordedHub(t);
    let stream = null;
    for (const exchange of started) {
      if (exchange.name.startsWith("stream: connect")) {
        stream = await openStream(hub.url, CLIENT_ID);
        assert.deepEqual(await stream.next(), { type: "connect", peerId: hub.siteId });
        assert.equal((await stream.next()).type, "sync");
      } else if (exchange.name.startsWith("stream: same peerId")) {
        const refused = await openStream(hub.url, CLIENT_ID);
        assert.deepEqual(await refused.next(), { type: "error", peerId: hub.siteId, error: "ALREADY_CONNECTED" });
      } else {
        await assertAnswer(hub.url, exchange);
      }
    }
    stream.close();
  });

  test("a fresh client sees the recorded frames from the reference server", async (t) => {
    const hub = await recordedHub(t);
    // What the client of the recording had uploaded before.
    const earlier = await openStream(hub.url, CLIENT_ID);
    await earlier.next();
    for (const exchange of started.filter(({ name }) => /^data: (ok changes|no schemaVersion)$/.test(name))) {
      await assertAnswer(hub.url, exchange);
    }
    earlier.close();

    const stream = await openStream(hub.url, FRESH_ID);
    const frames = [await stream.next(), await stream.next()];
    const syncBody = JSON.stringify({ type: "sync", peerId: FRESH_ID, cursor: { peers: {} } });
    await fetch(`${hub.url}/sync`, { method: "POST", headers: { "content-type": "application/json" }, body: syncBody });
    frames.push(await stream.next(), await stream.next());
    await hub.sql(LIVE_ROW);
    frames.push(await stream.next());
    stream.close();

    const expected = recorded.filter(({ type }) => type !== "ping").map((frame) => comparable(frame, "<SERVER_ID>"));
    assert.deepEqual(frames.map((frame) => comparable(frame, hub.siteId)), expected);
  });

  test("before its transport is started the reference server answers as recorded", async (t) => {
    const transport = new HttpServerTransport();
    await transport.listen();
    t.after(() => transport.stop());
    for (const exchange of unstarted) await assertAnswer(transport.url, exchange);
  });
});

describe("our peer on the recorded frames", () => {
  test("merges them, keeps the cursor and posts what the original posts", async (t) => {
    const server = await scriptedServer(t, recorded);
    const site = await Site.create(server.url, { schema: SCHEMA, asCrrs: AS_CRRS });
    t.after(() => site.dispose());
    await site.peer.attach(site.client);
    await site.peer.waitFor("the live row", async () => (await site.sql("SELECT id FROM todo")).length === 4);
    await site.client.uploaded();

    const todo = await site.sql("SELECT * FROM todo ORDER BY id");
    assert.deepEqual(todo.map(({ id }) => id), ["live-00000000", "r-00000000", "r-00000001", "z"]);
    assert.deepEqual(todo[0], { id: "live-00000000", title: "title of live 0", done: 0, ts: 1700000000 });
    const stored = await site.sql("SELECT lower(hex(site_id)) AS site, db_version FROM all_peers ORDER BY site");
    assert.deepEqual(stored, [{ site: server.id, db_version: 3 }, { site: CLIENT_ID, db_version: 2 }]);
    const history = await site.sql("SELECT count(*) AS n FROM crsql_change_history");
    assert.deepEqual(history, [{ n: 11 }], "every received change is remembered, superseded ones too");

    assert.deepEqual(server.posts, [
      ["/sync", { type: "sync", peerId: site.peer.id, cursor: { peers: {} } }],
      ["/data", { type: "data", peerId: site.peer.id, data: { type: "eose", data: [] } }],
    ]);
    site.assertNoFailures();
  });
});

/** A server that sends the given frames on its stream, whatever the client does, and writes down the POSTs. */
async function scriptedServer(t, frames) {
  const id = "5e".repeat(16);
  const posts = [];
  const server = createServer(async (request, response) => {
    if (request.method === "GET") {
      response.writeHead(200, { "content-type": "text/event-stream" });
      for (const frame of frames) response.write(`data: ${JSON.stringify(frame).replaceAll("<SERVER_ID>", id)}\n\n`);
      return;
    }
    const body = Buffer.concat(await request.toArray()).toString("utf8");
    posts.push([request.url, JSON.parse(body)]);
    response.end('{"success":true}');
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return { id, posts, url: `http://127.0.0.1:${server.address().port}` };
}
