// The litemesh program as child processes, whose events are its lines of JSON.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const BINARY =
  process.env.LITEMESH_BIN ?? fileURLToPath(new URL("../../../../target/debug/litemesh", import.meta.url));
const EVENT_MS = 30_000;
const LOG_CHARS_MAX = 16_000;

/** A command that stays: `serve` or `sync`. */
export class Litemesh {
  #child;
  #log = "";
  #events = [];
  #waiting = new Set();

  constructor(...args) {
    this.name = `litemesh ${args.join(" ")}`;
    this.#child = spawn(BINARY, [...args, "--json"], { stdio: ["ignore", "pipe", "pipe"] });
    this.#child.on("error", (error) => this.#fail(error.message));
    this.#child.on("exit", (code, signal) => this.#fail(`ended with ${signal ?? code}`));
    this.#child.stderr.setEncoding("utf8").on("data", (text) => (this.#log = (this.#log + text).slice(-LOG_CHARS_MAX)));
    createInterface({ input: this.#child.stdout }).on("line", (line) => {
      this.#log = (this.#log + line + "\n").slice(-LOG_CHARS_MAX);
      this.#events.push(JSON.parse(line));
      for (const look of this.#waiting) look();
    });
  }

  /** The first event of a kind, also one that came already. */
  event(kind) {
    return this.until(() => this.#events.find((event) => event.event === kind), `the event ${kind}`);
  }

  /** Asks `predicate` at each event until its answer is true, and gives that. It may be asynchronous. */
  until(predicate, what) {
    return new Promise((resolve, reject) => {
      const end = (settle, value) => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        settle(value);
      };
      const look = (failure) => {
        if (failure) return end(reject, failure);
        Promise.resolve()
          .then(predicate)
          .then((answer) => answer && end(resolve, answer))
          .catch((error) => end(reject, error));
      };
      const late = () => end(reject, new Error(`${this.name}: ${what} did not come in ${EVENT_MS} ms\n${this.#log}`));
      const timer = setTimeout(late, EVENT_MS);
      this.#waiting.add(look);
      look();
    });
  }

  #fail(reason) {
    for (const look of this.#waiting) look(new Error(`${this.name} ${reason}\n${this.#log}`));
  }

  /** Asks the program to end and waits until it has. */
  async stop() {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, "exit");
    this.#child.kill("SIGTERM");
    await exited;
  }
}
