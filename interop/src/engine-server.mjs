// Real CRSqlite for programs in other languages, over standard input and output: one request a line, one answer a line.
//
//   {"open": "<site id, 32 hex digits>"}             -> {"database": 1}
//   {"openFile": "<bytes in hex>", "readOnly": true} -> {"database": 2}, or {"code": 14, "message": "…"}
//   {"run": ["SELECT 1", "…"], "database": 1}        -> {"outcomes": [{"rows": [["i1"]]}, …], "autocommit": true}
//   {"close": 1}                                     -> {}
//
// `run` runs each text, whatever came of the one before; a text that fails has the outcome `{"code": 19, "message": "…"}`.
// A value is null, or a letter and then the value: `i` digits of an INTEGER, `r` the 16 hex digits of a REAL's bits, `t` and
// `b` the bytes of TEXT and BLOB in hex. Where the engine itself dies (it aborts on some input) the answer is
// `{"dead": "…"}`, and the process ends: its memory cannot be trusted any more.
import { createInterface } from "node:readline";
import { SQLiteError } from "@vlcn.io/wa-sqlite";
import { Database } from "./crsqlite.mjs";

const databases = new Map();
let databaseCount = 0;

function encode(value) {
  if (value === null) return null;
  if (typeof value === "bigint") return `i${value}`;
  if (typeof value === "number") {
    const bits = Buffer.alloc(8);
    bits.writeDoubleBE(value);
    return `r${bits.toString("hex")}`;
  }
  return value instanceof Uint8Array ? `b${hex(value)}` : `t${hex(value.text)}`;
}

function hex(bytes) {
  return Buffer.from(bytes).toString("hex");
}

async function open(siteId) {
  const database = await Database.openAs(siteId);
  // Nothing here has to survive a crash, and every page goes through JavaScript.
  await database.exec("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF");
  databases.set(++databaseCount, database);
  return { database: databaseCount };
}

async function openFile(bytes, readOnly) {
  try {
    databases.set(databaseCount + 1, await Database.open({ image: Buffer.from(bytes, "hex"), readOnly }));
  } catch (error) {
    if (!(error instanceof SQLiteError)) throw error;
    return { code: error.code, message: error.message };
  }
  return { database: ++databaseCount };
}

async function run(database, texts) {
  const outcomes = [];
  for (const sql of texts) {
    try {
      const rows = await database.exactRows(sql);
      outcomes.push({ rows: rows.map((row) => row.map(encode)) });
    } catch (error) {
      if (!(error instanceof SQLiteError)) throw error;
      outcomes.push({ code: error.code, message: error.message });
    }
  }
  return { outcomes, autocommit: database.isAutocommit() };
}

async function close(number) {
  const database = databases.get(number);
  databases.delete(number);
  await database.close();
  database.forget();
  return {};
}

async function answer(request) {
  if ("open" in request) return open(request.open);
  if ("openFile" in request) return openFile(request.openFile, request.readOnly);
  if ("close" in request) return close(request.close);
  return run(databases.get(request.database), request.run);
}

for await (const line of createInterface({ input: process.stdin })) {
  let reply;
  try {
    reply = await answer(JSON.parse(line));
  } catch (error) {
    reply = { dead: String(error) };
  }
  await new Promise((written) => process.stdout.write(`${JSON.stringify(reply)}\n`, written));
  if (reply.dead) process.exit(1);
}
