// A peer of the original, written from the specification of wire v1 (sections 2 to 4), on real CRSqlite.
//
// It keeps the original's weaknesses on purpose: the cursor moves with every message, sync requests are answered with
// "newer than", live filters let equal versions pass. A hub has to be good to exactly this peer.
import { EventEmitter } from "node:events";
import {
  CHANGE_COLUMNS,
  changeFromRow,
  changeToRow,
  cursorFromJson,
  cursorToJson,
  filterChanges,
  updateCursor,
  validateChanges,
} from "./v1-wire.mjs";

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS crsql_change_history (
    id integer primary key autoincrement,
    \`table\` text not null, pk blob not null, cid text not null, val blob,
    col_version int not null, db_version not null, site_id blob not null,
    cl int not null, seq int not null);
  CREATE INDEX IF NOT EXISTS idx_crsql_change_history_site_db_version
    ON crsql_change_history(site_id, db_version);
  CREATE TABLE IF NOT EXISTS all_peers (site_id blob not null primary key, db_version int not null);
`;

const COLUMNS = CHANGE_COLUMNS.map((column) => `"${column}"`).join(", ");
// The engine's JavaScript binding cuts text parameters at the first NUL character and turns an empty BLOB into NULL.
// Such a value is bound as the other type, and the tenth parameter asks for the cast back.
const [NO_CAST, TO_TEXT, TO_BLOB] = [0, 1, 2];
const INSERT_VALUES = `(${COLUMNS}) VALUES (?1, ?2, ?3,
  CASE ?10 WHEN ${TO_TEXT} THEN CAST(?4 AS TEXT) WHEN ${TO_BLOB} THEN CAST(?4 AS BLOB) ELSE ?4 END,
  ?5, ?6, ?7, ?8, ?9)`;
const MERGE_CHANGE = `INSERT INTO crsql_changes ${INSERT_VALUES}`;
const REMEMBER_CHANGE = `INSERT INTO crsql_change_history ${INSERT_VALUES}`;

/** Changes of one message that are merged in one transaction, as the original does. */
const MERGE_ROWS = 2000;
/** Changes in one page of an answer, as the original does. */
const PAGE_ROWS = 10_000;
const WAIT_MS = 10_000;

/** What we know about one remote. */
class Remote {
  constructor(peerId, transport, serial) {
    this.peerId = peerId;
    /** Tells this connection from earlier ones of the same remote. */
    this.serial = serial;
    this.transport = transport;
    this.cursor = new Map();
    this.active = false;
    this.sendStreamId = "";
    this.recvStreamId = "";
    this.pendingChanges = [];
    /** The running answer to a sync request: `{ cancelled, finished }`, or null. */
    this.answer = null;
  }
}

/**
 * Events, as the original's: `connect`, `sync` and `eose` with (peerId), `change` with (tables), `outdated` with
 * (schemaVersion, peerId). For tests: `disconnect` with (peerId), `answered` with (peerId) when an answer to a sync
 * request is handed to the transport completely, and `activity` whenever anything happened at all. `connect`, `eose`
 * and `answered` also carry the serial number of the connection.
 */
export class V1Peer extends EventEmitter {
  #queue = Promise.resolve();
  #remotes = new Map();
  #cursor = new Map();
  #transports = [];
  #activityCount = 0;
  #connectCount = 0;
  #pageRows;

  constructor(database, { pageRows = PAGE_ROWS } = {}) {
    super();
    this.database = database;
    this.id = database.siteId;
    this.schemaVersion = 0;
    /** What the original only logs: exceptions of queue items and of answers, each as `{ step, error }`. */
    this.errors = [];
    /** How much arrived, for tests that claim that nothing comes twice. */
    this.received = { messages: 0, changes: 0 };
    this.#pageRows = pageRows;
  }

  /** Creates the peer's own tables and reads its state. No network, and no look at local changes. */
  async start() {
    await this.database.exec(SCHEMA);
    this.#cursor = await this.#storedCursor();
    const [[version]] = await this.database.rows("PRAGMA user_version");
    this.schemaVersion = version;
  }

  /** Gives a transport this peer's callbacks and lets it connect. */
  async attach(transport) {
    this.#transports.push(transport);
    await transport.start(this);
  }

  async stop() {
    await Promise.all(this.#transports.map((transport) => transport.stop()));
    await this.#queue;
    await Promise.all([...this.#remotes.values()].map((remote) => remote.answer?.finished));
  }

  get cursor() {
    return new Map(this.#cursor);
  }

  isActive(peerId) {
    return this.#remotes.get(peerId)?.active ?? false;
  }

  // Callbacks of transports. Each returns a promise that settles when the queue has run it.

  async onConnect(transport, peerId) {
    const remote = await this.#enqueue("onConnect", () => {
      const fresh = new Remote(peerId, transport, ++this.#connectCount);
      this.#remotes.set(peerId, fresh);
      this.emit("connect", peerId, fresh.serial);
      return fresh;
    });
    // Outside the queue, because the answer to this request may arrive before the request returns.
    remote.recvStreamId = await transport.sync(peerId, cursorToJson(this.#cursor));
  }

  onSync(transport, peerId, streamId, cursorJson) {
    return this.#enqueue("onSync", async () => {
      const remote = this.#remote(transport, peerId);
      if (remote.answer) {
        remote.answer.cancelled = true;
        await remote.answer.finished;
      }
      remote.cursor = cursorFromJson(cursorJson);
      remote.sendStreamId = streamId;
      this.emit("sync", peerId);
      this.#startAnswer(remote);
    });
  }

  onReceive(transport, peerId, streamId, message) {
    return this.#enqueue("onReceive", async () => {
      const remote = this.#remote(transport, peerId);
      if (streamId !== remote.recvStreamId) return;
      if (message.type === "changes") await this.#receiveChanges(remote, message);
      if (message.type === "eose") this.emit("eose", peerId, remote.serial);
    });
  }

  onDisconnect(transport, peerId) {
    return this.#enqueue("onDisconnect", () => {
      const remote = this.#remote(transport, peerId);
      if (remote.answer) remote.answer.cancelled = true;
      this.#remotes.delete(peerId);
      this.emit("disconnect", peerId);
    });
  }

  /** Finds what this site wrote since the last call and sends it to everybody. Returns how many changes there were. */
  checkLocalChanges() {
    return this.#enqueue("checkLocalChanges", async () => {
      const rows = await this.database.rows(
        `SELECT ${COLUMNS} FROM crsql_changes WHERE db_version > ? AND site_id = crsql_site_id()`,
        [this.#cursor.get(this.id) ?? 0],
      );
      if (rows.length === 0) return 0;
      const changes = rows.map(changeFromRow);
      updateCursor(this.#cursor, changes);
      // The rows themselves, not the change objects: values keep in our own history what JSON would take from them.
      await this.database.transaction((connection) =>
        connection.runMany(REMEMBER_CHANGE, rows.map(insertParameters)),
      );
      await this.#storeCursor();
      this.emit("change", distinctTables(changes));
      this.#broadcast(changes, null);
      return changes.length;
    });
  }

  /** Runs SQL as the application would, then tells the remotes. */
  async write(sql) {
    await this.database.transaction((connection) => connection.exec(sql));
    return this.checkLocalChanges();
  }

  /**
   * Resolves when `predicate` (it may be async) is true. It is asked now and again after each thing that happens to
   * this peer, so it must depend on nothing else. Rejects after `timeout` milliseconds, saying `what` was awaited.
   */
  async waitFor(what, predicate, { timeout = WAIT_MS } = {}) {
    const deadline = performance.now() + timeout;
    for (;;) {
      const seen = this.#activityCount;
      if (await predicate()) return;
      if (!(await this.#activityAfter(seen, deadline))) {
        throw new Error(`waited ${timeout} ms in vain: ${what}`);
      }
    }
  }

  /** Tells `waitFor` to look again. Transports call it for what only they see. */
  noteActivity() {
    this.#activityCount += 1;
    this.emit("activity");
  }

  // Receiving.

  async #receiveChanges(remote, message) {
    this.received.messages += 1;
    this.received.changes += message.data.length;
    const schemaVersion = message.schemaVersion ?? 0;
    if (schemaVersion > this.schemaVersion) {
      this.emit("outdated", schemaVersion, remote.peerId);
      return;
    }
    const fresh = filterChanges(message.data, this.#cursor);
    updateCursor(remote.cursor, fresh);
    if (fresh.length === 0) return;
    validateChanges(fresh);
    await this.#merge(fresh);
    updateCursor(this.#cursor, fresh);
    await this.#storeCursor();
    this.emit("change", distinctTables(fresh));
    this.#broadcast(fresh, remote);
  }

  async #merge(changes) {
    for (let start = 0; start < changes.length; start += MERGE_ROWS) {
      const rows = changes.slice(start, start + MERGE_ROWS).map((change) => insertParameters(changeToRow(change)));
      await this.database.transaction(async (connection) => {
        await connection.runMany(MERGE_CHANGE, rows);
        await connection.runMany(REMEMBER_CHANGE, rows);
      });
      this.noteActivity();
    }
  }

  // Sending.

  #startAnswer(remote) {
    const answer = { cancelled: false, finished: null };
    remote.answer = answer;
    answer.finished = this.#answer(remote, answer)
      .catch((error) => this.errors.push({ step: "answer", error }))
      .finally(() => {
        remote.answer = null;
        this.noteActivity();
      });
  }

  async #answer(remote, answer) {
    const { where, parameters } = lackingFilter(remote.cursor, this.#cursor);
    let pageLength = where === "" ? 0 : this.#pageRows;
    for (let offset = 0; pageLength === this.#pageRows && !answer.cancelled; offset += pageLength) {
      const page = await this.#historyPage(where, parameters, offset);
      pageLength = page.length;
      if (pageLength > 0 && !answer.cancelled) {
        this.#sendChanges(remote, page);
        updateCursor(remote.cursor, page);
      }
    }
    if (!answer.cancelled) this.#send(remote, { type: "eose", data: [] });
    this.#flushPending(remote);
    remote.active = true;
    if (!answer.cancelled) this.emit("answered", remote.peerId, remote.serial);
  }

  async #historyPage(where, parameters, offset) {
    const rows = await this.database.rows(
      `SELECT ${COLUMNS} FROM crsql_change_history WHERE ${where}
       ORDER BY site_id, db_version, id LIMIT ${this.#pageRows} OFFSET ${offset}`,
      parameters,
    );
    return rows.map(changeFromRow);
  }

  #broadcast(changes, except) {
    for (const remote of this.#remotes.values()) {
      if (remote === except) continue;
      if (!remote.active) {
        for (const change of changes) remote.pendingChanges.push(change);
        continue;
      }
      this.#flushPending(remote);
      this.#sendChanges(remote, filterChanges(changes, remote.cursor));
    }
  }

  #flushPending(remote) {
    if (remote.pendingChanges.length === 0) return;
    const changes = remote.pendingChanges;
    remote.pendingChanges = [];
    this.#sendChanges(remote, changes);
  }

  #sendChanges(remote, data) {
    this.#send(remote, { type: "changes", data, schemaVersion: this.schemaVersion });
  }

  /** Not awaited, as in the original: what becomes of a message is the transport's affair. */
  #send(remote, message) {
    remote.transport.send(remote.peerId, remote.sendStreamId, message);
  }

  // State.

  #remote(transport, peerId) {
    const remote = this.#remotes.get(peerId);
    if (!remote) throw new Error("Peer not found");
    if (remote.transport !== transport) throw new Error("Wrong transport for peer");
    return remote;
  }

  async #storedCursor() {
    const stored = await this.database.rows("SELECT lower(hex(site_id)), db_version FROM all_peers");
    if (stored.length > 0) return new Map(stored);
    // The original's fallback has no GROUP BY and yields one row at most; an empty history yields a row of NULLs.
    const newest = await this.database.rows(
      "SELECT DISTINCT lower(hex(site_id)), max(db_version) AS version FROM crsql_change_history",
    );
    return new Map(newest.filter(([, version]) => version !== null));
  }

  async #storeCursor() {
    const rows = [...this.#cursor].map(([site, version]) => [Buffer.from(site, "hex"), version]);
    await this.database.transaction(async (connection) => {
      await connection.exec("DELETE FROM all_peers");
      await connection.runMany("INSERT INTO all_peers (site_id, db_version) VALUES (?, ?)", rows);
    });
  }

  /** One thing at a time, in order of arrival. A failing item is written down and the next one runs. */
  #enqueue(step, work) {
    const result = this.#queue.then(work);
    this.#queue = result
      .catch((error) => this.errors.push({ step, error }))
      .then(() => this.noteActivity());
    return result;
  }

  /** False if nothing more happened until the deadline. */
  #activityAfter(seen, deadline) {
    if (this.#activityCount !== seen) return true;
    return new Promise((resolve) => {
      const finish = (woken) => {
        clearTimeout(timer);
        this.off("activity", wake);
        resolve(woken);
      };
      const wake = () => finish(true);
      const timer = setTimeout(() => finish(false), Math.max(0, deadline - performance.now()));
      this.once("activity", wake);
    });
  }
}

/** The WHERE clause for what a remote lacks: its own sites above its cursor, and our sites that it does not know. */
function lackingFilter(theirs, ours) {
  const since = new Map([...[...ours.keys()].map((site) => [site, 0]), ...theirs]);
  const terms = [...since].map(([site, version]) => [siteBytes(site), version]);
  return {
    where: terms.map(() => "(site_id = ? AND db_version > ?)").join(" OR "),
    parameters: terms.flat(),
  };
}

function siteBytes(site) {
  if (!/^([0-9a-f]{2})*$/i.test(site)) throw new Error(`the cursor names a site that is not hex: ${site}`);
  return Buffer.from(site, "hex");
}

/** The nine values of a change row and how the fourth, the cell's value, has to be cast. */
function insertParameters(row) {
  const [value, cast] = bindable(row[3]);
  return [...row.slice(0, 3), value, ...row.slice(4), cast];
}

function bindable(value) {
  if (typeof value === "string" && value.includes("\0")) return [Buffer.from(value), TO_TEXT];
  if (value instanceof Uint8Array && value.length === 0) return ["", TO_BLOB];
  return [value, NO_CAST];
}

function distinctTables(changes) {
  return [...new Set(changes.map((change) => change.table))];
}
