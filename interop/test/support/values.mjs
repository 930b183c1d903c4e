// SQLite values over JSON: what was recorded between two originals, in a form that two databases can be compared in.
import { readFile } from "node:fs/promises";
import { network } from "./site.mjs";
import { count } from "./state.mjs";

const recorded = JSON.parse(await readFile(new URL("../vectors/values_over_json.json", import.meta.url), "utf8"));

export const COLUMNS = ["a_any", "b_int", "c_real", "d_text", "e_blob"];

/** SQL of each recorded value, by the name that the recording gives it. */
const LITERALS = {
  blob: "x'00ff01'",
  empty_blob: "x''",
  int_2p31: "2147483648",
  int_max_safe: "9007199254740991",
  int_2p53_plus1: "9007199254740993",
  int64_max: "9223372036854775807",
  int_neg: "-9007199254740995",
  real_1: "1.0",
  real_pi: "3.141592653589793",
  real_big: "1.7976931348623157e308",
  plus_inf: "9e999",
  minus_inf: "-9e999",
  neg_zero: "-0.0",
  nul: "NULL",
  text_empty: "''",
  text_num: "'0012'",
  text_unicode: "'日本 é 😀'",
  text_nul: "'a' || char(0) || 'b'",
  bool_like: "TRUE",
};

/** The recorded names; a value that this file does not know would go untested in silence. */
export const VALUES = recorded.tested.map((name, id) => {
  if (!(name in LITERALS)) throw new Error(`the recording has a value without SQL here: ${name}`);
  return { id, name, literal: LITERALS[name] };
});

/** One statement that writes each value into each column, one row per value. */
export const INSERT_VALUES = `INSERT INTO anything VALUES ${VALUES.map(
  ({ id, literal }) => `(${[id, ...COLUMNS.map(() => literal)]})`,
)}`;

/** Writes all values at the hub; resolves to what the hub and the peer hold when they have arrived. */
export async function fromHub(t, startHub) {
  const { hub, makeSite } = await network(t, startHub);
  await hub.sql(INSERT_VALUES);
  const site = await makeSite();
  await site.connect();
  await site.peer.waitFor("all values", async () => (await count(site, "anything")) === VALUES.length);
  return { sent: await heldValues(hub), received: await heldValues(site) };
}

/** Writes all values at a connected peer; the 200 of the POST says that the hub has them. */
export async function fromPeer(t, startHub) {
  const { hub, makeSite } = await network(t, startHub);
  const site = await makeSite();
  await site.connect();
  await site.write(INSERT_VALUES);
  await site.client.uploaded();
  site.assertNoFailures();
  return { sent: await heldValues(site), received: await heldValues(hub) };
}

/** What a source holds: `{ "real_1.a_any": "real 1", ... }`. */
export async function heldValues(source) {
  const cells = COLUMNS.map(
    (column) => `typeof(${column}) || ' ' || CASE WHEN typeof(${column}) IN ('text', 'blob')
      THEN hex(${column}) ELSE quote(${column}) END AS ${column}`,
  );
  const rows = await source.sql(`SELECT ${cells} FROM anything ORDER BY id`);
  const held = {};
  rows.forEach((row, id) => {
    for (const column of COLUMNS) held[`${VALUES[id].name}.${column}`] = canonical(row[column]);
  });
  return held;
}

/** What a receiver of the original holds when the sender holds `sent`. */
export function receivedByOriginal(sent) {
  const received = { ...sent };
  for (const { value, col, receiver } of recorded.differences) received[`${value}.${col}`] = fromRecording(receiver);
  return received;
}

/** The recording quotes text; here it is hex. */
function fromRecording(cell) {
  const text = /^text '(.*)'$/.exec(cell);
  return canonical(text ? `text ${Buffer.from(text[1]).toString("hex").toUpperCase()}` : cell);
}

/** SQLite versions print the same REAL with different digits; a JavaScript number has one spelling. */
function canonical(cell) {
  return cell.startsWith("real ") ? `real ${Number(cell.slice(5).replace("Inf", "Infinity"))}` : cell;
}
