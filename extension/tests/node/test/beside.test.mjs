// `litemesh sync` beside programs in other languages: it notices what they commit through the extension.
//
//   Python program -> a.db -> litemesh sync -> litemesh serve (hub.db) -> litemesh sync -> b.db -> Node program
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { Litemesh } from "../src/litemesh.mjs";
import { NodePeer } from "../src/node-peer.mjs";
import { PythonPeer } from "../src/python-peer.mjs";

const SCHEMA = ["CREATE TABLE note (id TEXT PRIMARY KEY NOT NULL, title, body)", "SELECT crsql_as_crr('note')"];
const ROWS = "SELECT * FROM note ORDER BY id";

let folder, python, node, beside;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "litemesh-extension-"));
  const [a, b, hub] = ["a.db", "b.db", "hub.db"].map((file) => join(folder, file));
  python = new PythonPeer(a);
  node = new NodePeer(b);
  const setup = new NodePeer(hub);
  // The files are made by the programs themselves: litemesh finds replicated tables in them.
  for (const peer of [python, node, setup]) for (const sql of SCHEMA) await peer.run(sql);
  await setup.close();
  const server = new Litemesh("serve", hub, "--listen", "127.0.0.1:0");
  beside = [server];
  const { url } = await server.event("listening");
  beside.push(new Litemesh("sync", a, url), new Litemesh("sync", b, url));
  await Promise.all(beside.slice(1).map((sync) => sync.event("connect")));
});

after(async () => {
  await Promise.allSettled([python?.close(), node?.close(), ...(beside ?? []).map((program) => program.stop())]);
  await rm(folder, { recursive: true, force: true });
});

/** Waits until the peer's rows are these; it looks whenever the sync beside it reports something. */
async function arrive(sync, peer, rows) {
  let seen;
  const wait = sync.until(async () => {
    seen = await peer.run(ROWS);
    return JSON.stringify(seen) === JSON.stringify(rows);
  }, JSON.stringify(rows));
  await wait.catch((error) => {
    error.message += `\nthe rows are ${JSON.stringify(seen)}`;
    throw error;
  });
}

test("what Python writes, Node reads", async () => {
  const [, syncA, syncB] = beside;
  await python.run("INSERT INTO note VALUES ('1', 'written by Python', NULL)");
  await arrive(syncB, node, [["1", "written by Python", null]]);

  await python.transaction([
    ["UPDATE note SET title = ? WHERE id = '1'", ["again"]],
    ["INSERT INTO note VALUES ('2', ?, ?)", [0.5, "x"]],
  ]);
  await arrive(syncB, node, [["1", "again", null], ["2", 0.5, "x"]]);
  await python.run("DELETE FROM note WHERE id = '1'");
  await arrive(syncB, node, [["2", 0.5, "x"]]);

  await node.run("UPDATE note SET body = 'written by Node'");
  await arrive(syncA, python, [["2", 0.5, "written by Node"]]);
  assert.deepEqual(await python.run(ROWS), await node.run(ROWS));
});

test("many small transactions of both programs arrive, and those that are rolled back do not", async () => {
  const [, syncA, syncB] = beside;
  for (let row = 0; row < 50; row += 1) {
    const write = (peer, rollback) =>
      peer.transaction([["INSERT INTO note (id, title) VALUES (?, ?)", [`${peer === node}-${row}-${rollback}`, "x"]]], {
        rollback,
      });
    await write(python, row % 5 === 0);
    await write(node, row % 7 === 0);
  }
  const count = async (peer) => Number((await peer.run("SELECT count(*) FROM note"))[0][0]);
  // Row 2 of the test before, 40 of Python and 42 of Node.
  await Promise.all([
    syncA.until(async () => (await count(python)) === 83, "83 rows in Python's file"),
    syncB.until(async () => (await count(node)) === 83, "83 rows in Node's file"),
  ]);
  assert.deepEqual(await python.run(ROWS), await node.run(ROWS));
});
