// litemesh as the client of a server of the original: real CRSqlite behind the reference server.
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { litemesh, litemeshSql } from "../src/hub.mjs";
import { ReferenceHub } from "./support/reference-hub.mjs";
import { insertCounters, SCHEMA, TABLE_NAMES } from "./support/schema.mjs";
import { Site } from "./support/site.mjs";
import { assertConverged, count, stateOf } from "./support/state.mjs";

/** A database file of litemesh in a temporary folder, with `sql` and `meet(url)` (one exchange with a server). */
async function litemeshFile(t) {
  const folder = await mkdtemp(join(tmpdir(), "litemesh-interop-"));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const [file, schemaFile] = [join(folder, "client.db"), join(folder, "schema.sql")];
  await writeFile(schemaFile, SCHEMA);
  await litemesh(["init", file, "--schema", schemaFile, ...TABLE_NAMES.flatMap((table) => ["--table", table])]);
  return {
    sql: (statement) => litemeshSql(file, statement),
    meet: (url) => litemesh(["sync", file, url, "--once"]),
  };
}

async function startServer(t) {
  const server = await ReferenceHub.start();
  t.after(() => server.dispose());
  return server;
}

describe("litemesh sync --once with a server of the original", () => {
  test("exchanges rows, and exchanges later ones in the next run", async (t) => {
    const [server, client] = [await startServer(t), await litemeshFile(t)];
    await server.sql("INSERT INTO todo VALUES ('server', 'one', 0, 0.5)");
    await client.sql("INSERT INTO todo VALUES ('client', 'one', 1, NULL)");
    await client.meet(server.url);
    assert.deepEqual(await stateOf(client), await stateOf(server));
    assert.equal(await count(server, "todo"), 2);

    await server.sql("UPDATE todo SET title = 'two' WHERE id = 'client'");
    await client.sql("DELETE FROM todo WHERE id = 'server'");
    await client.sql("INSERT INTO tag VALUES ('late')");
    await client.meet(server.url);
    assert.deepEqual(await stateOf(client), await stateOf(server));
    assert.equal(await count(server, "todo"), 1);
  });

  test("uploads 50,000 changes to a server that refuses bodies above 1 MiB", async (t) => {
    const [server, client] = [await startServer(t), await litemeshFile(t)];
    await client.sql(insertCounters(1, 25_000));
    await client.meet(server.url);
    assert.equal(await count(server, "counter"), 25_000);
    assert.deepEqual(await stateOf(client), await stateOf(server));
  });

  test("downloads 50,000 changes", async (t) => {
    const [server, client] = [await startServer(t), await litemeshFile(t)];
    await server.sql(insertCounters(1, 25_000));
    await client.meet(server.url);
    assert.equal(await count(client, "counter"), 25_000);
    assert.deepEqual(await stateOf(client), await stateOf(server));
  });

  test("carries rows of a third site in both directions", async (t) => {
    const [server, client] = [await startServer(t), await litemeshFile(t)];
    const site = await Site.create(server.url);
    t.after(() => site.dispose());
    await site.write("INSERT INTO todo VALUES ('third', 'one', 0, NULL)");
    await site.connect();
    await client.sql("INSERT INTO todo VALUES ('client', 'one', 1, NULL)");
    await client.meet(server.url);
    await assertConverged(server, [site]);
    assert.deepEqual(await stateOf(client), await stateOf(server));
  });
});
