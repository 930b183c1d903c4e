// A database in a Python program of its own (tests/python/peer.py). Debian's Python: others may not load extensions.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { EXTENSION } from "./extension.mjs";

const PROGRAM = fileURLToPath(new URL("../../python/peer.py", import.meta.url));
const PYTHON = process.env.PYTHON ?? "/usr/bin/python3";
const ANSWER_MS = 60_000;

export class PythonPeer {
  #child;
  #lines;
  #errors = "";

  constructor(path = ":memory:") {
    this.#child = spawn(PYTHON, ["-B", PROGRAM, path], {
      env: { ...process.env, LITEMESH_EXTENSION: EXTENSION },
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.#child.stderr.setEncoding("utf8").on("data", (text) => (this.#errors += text));
    // A program that ended shows in what it did not answer.
    this.#child.stdin.on("error", () => {});
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  run(sql, values = []) {
    return this.#ask({ run: sql, with: values.map(encode) });
  }

  async transaction(statements, { rollback = false } = {}) {
    await this.#ask({ transaction: statements.map(([sql, values]) => [sql, values.map(encode)]), rollback });
  }

  changes(since, site) {
    return this.#ask({ changes: Number(since), for: encode(site) });
  }

  async merge(changes) {
    await this.#ask({ merge: changes.map((change) => change.map(encode)) });
  }

  /** Ends the program by ending its input; it closes its database. */
  async close() {
    if (this.#child.exitCode !== null) return;
    const exited = once(this.#child, "exit");
    this.#child.stdin.end();
    const [code, signal] = await exited;
    if (code !== 0) throw new Error(`the Python program ended with ${signal ?? code}\n${this.#errors}`);
  }

  async #ask(order) {
    this.#child.stdin.write(`${JSON.stringify(order)}\n`);
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`no answer from Python within ${ANSWER_MS} ms`)), ANSWER_MS);
    });
    try {
      const { value, done } = await Promise.race([this.#lines.next(), late]);
      if (done) throw new Error(`the Python program ended early\n${this.#errors}`);
      const { rows, error } = JSON.parse(value);
      if (error !== undefined) throw new Error(error);
      return rows.map((row) => row.map(decode));
    } finally {
      clearTimeout(timer);
    }
  }
}

function encode(value) {
  if (value === null) return null;
  if (typeof value === "bigint") return { integer: String(value) };
  if (typeof value === "string") return { text: value };
  if (typeof value === "number") {
    const bytes = Buffer.alloc(8);
    bytes.writeDoubleBE(value);
    return { real: bytes.toString("hex") };
  }
  return { blob: Buffer.from(value).toString("hex") };
}

function decode(value) {
  if (value === null) return null;
  if ("integer" in value) return BigInt(value.integer);
  if ("real" in value) return Buffer.from(value.real, "hex").readDoubleBE();
  return "text" in value ? value.text : Buffer.from(value.blob, "hex");
}
