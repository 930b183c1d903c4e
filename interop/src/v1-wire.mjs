// Wire v1 as pure functions: cursors, the change object, and what JSON does to values. No I/O.

const HEX = /^[0-9a-fA-F]*$/;
const COUNTERS = ["col_version", "db_version", "cl", "seq"];

/** Column order of `crsql_changes`, and key order of a change object. */
export const CHANGE_COLUMNS = ["table", "pk", "cid", "val", "col_version", "db_version", "site_id", "cl", "seq"];

/** Raises each site of the cursor (a Map of site id to db_version) to the newest version among the changes. */
export function updateCursor(cursor, changes) {
  for (const { site_id, db_version } of changes) {
    cursor.set(site_id, Math.max(cursor.get(site_id) ?? 0, db_version));
  }
}

/** Keeps what is not older than the cursor. Equal versions pass: the rest of a transaction may still be on its way. */
export function filterChanges(changes, cursor) {
  return changes.filter((change) => change.db_version >= (cursor.get(change.site_id) ?? 0));
}

/** True if `b` knows a site that `a` lacks, or knows it further. */
export function isCursorOlder(a, b) {
  return [...b].some(([site, version]) => !a.has(site) || a.get(site) < version);
}

export function cursorToJson(cursor) {
  return { peers: Object.fromEntries(cursor) };
}

export function cursorFromJson({ peers }) {
  return new Map(Object.entries(peers));
}

/** Throws for the first change that a receiver must refuse; one bad change refuses the whole message. */
export function validateChanges(changes) {
  changes.forEach((change, index) => {
    const reason = refusal(change);
    if (reason) throw new Error(`Invalid change at index ${index}: ${reason}`);
  });
}

function refusal(change) {
  return (
    refusedText(change, "table") ??
    refusedHex(change, "pk") ??
    refusedText(change, "cid") ??
    refusedCounter(change, "col_version") ??
    refusedCounter(change, "db_version") ??
    refusedHex(change, "site_id") ??
    refusedCounter(change, "cl") ??
    refusedCounter(change, "seq")
  );
}

function refusedText(change, key) {
  const good = typeof change[key] === "string" && change[key].trim() !== "";
  return good ? null : `Change.${key} must be a non-empty string`;
}

function refusedHex(change, key) {
  const text = change[key];
  if (typeof text !== "string") return `Change.${key} must be a hex string`;
  if (!HEX.test(text)) return `Change.${key} must be a valid hex string`;
  return text.length % 2 === 0 ? null : `Change.${key} hex string must have even length`;
}

function refusedCounter(change, key) {
  const good = Number.isInteger(change[key]) && change[key] >= 0;
  return good ? null : `Change.${key} must be a non-negative integer`;
}

/** A row of `crsql_changes` or of the history, as an array in column order, becomes a change object. */
export function changeFromRow(row) {
  const change = Object.fromEntries(CHANGE_COLUMNS.map((column, index) => [column, row[index]]));
  change.pk = Buffer.from(change.pk).toString("hex");
  change.site_id = Buffer.from(change.site_id).toString("hex");
  change.val = valueForJson(change.val);
  for (const counter of COUNTERS) change[counter] = Number(change[counter]);
  return change;
}

/** A change object becomes the nine parameters of an INSERT, in column order. */
export function changeToRow(change) {
  return CHANGE_COLUMNS.map((column) => {
    if (column === "pk" || column === "site_id") return Buffer.from(change[column], "hex");
    return column === "val" ? valueForBinding(change.val) : change[column];
  });
}

/**
 * What the original has in hand before JSON: 64-bit integers rounded to a double, BLOBs as Node buffers.
 * JSON itself then turns -0.0 into 0, infinities into null and 1.0 into 1.
 */
function valueForJson(value) {
  if (typeof value === "bigint") return Number(value);
  return value instanceof Uint8Array ? Buffer.from(value) : value;
}

/** What the original binds for a value out of JSON: objects become their default text, booleans numbers. */
function valueForBinding(value) {
  if (typeof value === "boolean") return Number(value);
  return value !== null && typeof value === "object" ? String(value) : (value ?? null);
}
