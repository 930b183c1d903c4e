// The recipes of docs/extension.md, run as they are printed.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { copyFile, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { EXTENSION } from "../src/extension.mjs";

const DOCUMENT = new URL("../../../../docs/extension.md", import.meta.url);
const MODULES = fileURLToPath(new URL("../node_modules", import.meta.url));
const RUN_MS = 60_000;
const PYTHON = process.env.PYTHON ?? "/usr/bin/python3";

let folder;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "litemesh-recipes-"));
});
after(() => rm(folder, { recursive: true, force: true }));

/** The code of a recipe: the fenced block that begins with a comment of its name. */
async function recipe(name) {
  const blocks = (await readFile(DOCUMENT, "utf8")).matchAll(/^```\w+\n(.*?)^```$/gms);
  const found = [...blocks].map(([, code]) => code).filter((code) => new RegExp(`^\\S+ recipe: ${name}\n`).test(code));
  assert.equal(found.length, 1, `recipes called ${name}`);
  return found[0];
}

async function run(name, program, file, options = {}) {
  const place = await mkdtemp(join(folder, `${name}-`));
  await copyFile(EXTENSION, join(place, basename(EXTENSION)));
  await symlink(MODULES, join(place, "node_modules"));
  await writeFile(join(place, file), await recipe(name));
  const { stdout } = await promisify(execFile)(program, [...(options.args ?? []), file], { cwd: place, timeout: RUN_MS });
  // The shell also prints what as_crr answers.
  assert.equal(stdout.trim().split("\n").at(-1), "buy milk");
}

test("shell", () => run("shell", "bash", "recipe.sh", { args: ["-euo", "pipefail"] }));
test("Python", () => run("python", PYTHON, "recipe.py"));
test("better-sqlite3", () => run("better-sqlite3", process.execPath, "recipe.mjs"));

const [major, minor] = process.versions.node.split(".").map(Number);
const hasSqlite = major > 22 || (major === 22 && minor >= 13);
test("node:sqlite", { skip: !hasSqlite && "this Node has no node:sqlite" }, () =>
  run("node", process.execPath, "recipe.mjs"));
