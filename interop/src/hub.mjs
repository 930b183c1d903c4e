// The `litemesh` program as a child process: one database file in a temporary folder, served on loopback.
import { execFile, spawn } from "node:child_process";
import { access, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const START_MS = 20_000;
const STOP_MS = 20_000;
const COMMAND_MS = 120_000;
/** Output that one command may print: 50,000 changes as JSON are about 10 MB. */
const OUTPUT_BYTES_MAX = 512 * 1024 * 1024;
/** Kept of the hub's standard error for the message when it fails. */
const LOG_CHARS_MAX = 16_000;

/** Path of the program: LITEMESH_BIN, else the release build, else the debug build. */
export async function litemeshBinary() {
  const builds = ["release", "debug"].map((profile) =>
    fileURLToPath(new URL(`../../target/${profile}/litemesh`, import.meta.url)),
  );
  const candidates = process.env.LITEMESH_BIN ? [process.env.LITEMESH_BIN] : builds;
  for (const candidate of candidates) {
    if (await exists(candidate)) return candidate;
  }
  throw new Error(
    `there is no litemesh program at ${candidates.join(" or ")}: ` +
      "run `cargo build --release` first, or set LITEMESH_BIN to its path",
  );
}

/** Runs the program to its end and returns its standard output; an error carries what it printed. */
export async function litemesh(args, { timeout = COMMAND_MS } = {}) {
  const { stdout } = await run(await litemeshBinary(), args, { timeout, maxBuffer: OUTPUT_BYTES_MAX });
  return stdout;
}

/** Runs one statement on a database file in a process of its own and returns the rows as objects. */
export async function litemeshSql(file, statement) {
  const stdout = await litemesh(["sql", file, statement, "--json"]);
  return stdout.trim() === "" ? [] : JSON.parse(stdout);
}

export class Hub {
  #folder;
  #child = null;
  #log = "";

  constructor(folder) {
    this.#folder = folder;
    this.file = join(folder, "hub.db");
    this.url = null;
    this.siteId = null;
  }

  /**
   * Makes a database in a temporary folder and serves it. `schema` is SQL, `tables` are made CRRs; or `image` is the
   * content of an existing database file.
   */
  static async start({ schema, tables = [], image }) {
    const hub = new Hub(await mkdtemp(join(tmpdir(), "litemesh-interop-")));
    try {
      if (image) await writeFile(hub.file, image);
      else await hub.#init(schema, tables);
      await hub.serve();
      return hub;
    } catch (error) {
      await hub.dispose();
      throw error;
    }
  }

  async #init(schema, tables) {
    const schemaFile = join(this.#folder, "schema.sql");
    await writeFile(schemaFile, schema);
    await litemesh(["init", this.file, "--schema", schemaFile, ...tables.flatMap((table) => ["--table", table])]);
  }

  /** Starts the server. `listen` is a socket address; by default a free port. */
  async serve({ listen = "127.0.0.1:0" } = {}) {
    const args = ["serve", this.file, "--listen", listen, "--json"];
    this.#log = "";
    this.#child = spawn(await litemeshBinary(), args, { stdio: ["ignore", "pipe", "pipe"] });
    this.#child.stderr.setEncoding("utf8").on("data", (text) => {
      this.#log = (this.#log + text).slice(-LOG_CHARS_MAX);
    });
    const { url, site_id } = await this.#listening();
    this.url = url;
    this.siteId = site_id;
  }

  /** Resolves to the line that announces the address; later lines are read and forgotten. */
  #listening() {
    const child = this.#child;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => fail(`did not listen within ${START_MS} ms`), START_MS);
      const fail = (reason) => {
        clearTimeout(timer);
        reject(new Error(`litemesh serve ${reason}\n${this.#log}`));
      };
      child.once("error", (error) => fail(`could not be started: ${error.message}`));
      child.once("exit", (code, signal) => fail(`ended with ${signal ?? `exit code ${code}`}`));
      createInterface({ input: child.stdout }).on("line", (line) => {
        const event = parseLine(line);
        if (event?.event !== "listening") return;
        clearTimeout(timer);
        resolve(event);
      });
    });
  }

  /** Socket address of the running server, for starting it again in the same place. */
  get address() {
    return new URL(this.url).host;
  }

  /** Rows of one statement, run from another process while the server runs. */
  sql(statement) {
    return litemeshSql(this.file, statement);
  }

  /** Asks the server to end (or kills it) and waits until it has. */
  async stop(signal = "SIGTERM") {
    const child = this.#child;
    this.#child = null;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    let killed = false;
    const timer = setTimeout(() => {
      killed = child.kill("SIGKILL");
    }, STOP_MS);
    await exited;
    clearTimeout(timer);
    if (killed) throw new Error(`litemesh serve did not end within ${STOP_MS} ms of ${signal}\n${this.#log}`);
  }

  /**
   * The bytes of the database file after the server has ended, in rollback journal mode: an engine whose file system is
   * an array has no shared memory for a write-ahead log.
   */
  async image() {
    await this.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    const bytes = await readFile(this.file);
    // File format, write and read version: 2 is WAL, 1 is a rollback journal. With an empty log they are equivalent.
    bytes.fill(1, 18, 20);
    return bytes;
  }

  /** Stops the server and removes the folder. */
  async dispose() {
    try {
      await this.stop();
    } finally {
      await rm(this.#folder, { recursive: true, force: true });
    }
  }
}

function parseLine(line) {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}

async function exists(path) {
  try {
    await access(path);
    return true;
  } catch {
    return false;
  }
}
