// The client end of the HTTP transport of wire v1 (section 5.6): an event stream down, POSTs up.
//
// The original drops failed POSTs silently and lets several be in flight at once. Here they go one after another, so
// that a test sees one order, and every failure is written down, so that a test can claim that there was none.
import { eventData } from "./sse.mjs";

const BACKOFF_FIRST_MS = 1000;
const BACKOFF_MAX_MS = 30_000;
/** A POST is answered after the hub has committed; the largest test bodies need a few seconds. */
const POST_TIMEOUT_MS = 120_000;

/** One attempt to hold an event stream open. */
class Connection {
  constructor() {
    this.abort = new AbortController();
    this.serverId = null;
  }
}

export class HttpClientTransport {
  #base;
  #peer = null;
  #connection = null;
  #reader = Promise.resolve();
  #retryTimer = null;
  #attempts = 0;
  #wanted = false;
  #posts = Promise.resolve();
  #beforePost;
  #backoff;

  /**
   * `beforePost(path, body)` runs ahead of each POST and may be async: the place where a test cuts the connection
   * between two messages. `backoff(attempts)` is the wait in milliseconds before the stream is opened again.
   */
  constructor(baseUrl, { beforePost = () => {}, backoff = backoffMs } = {}) {
    this.#base = baseUrl.replace(/\/$/, "");
    this.#beforePost = beforePost;
    this.#backoff = backoff;
    /** POSTs that had no 2xx answer, each as `{ path, bytes, reason }`. */
    this.failures = [];
    /** Frames of type `error`, which the original only logs. */
    this.errorFrames = [];
    /** How many POSTs had a 2xx answer. */
    this.posted = 0;
  }

  start(peer) {
    this.#peer = peer;
    this.connect();
  }

  async stop() {
    await this.disconnect();
    await this.#posts;
  }

  /** Opens the stream, and opens it again after errors, until `disconnect`. */
  connect() {
    this.#wanted = true;
    if (!this.#connection) this.#open();
  }

  /** Closes the stream for good, as an application that goes offline. Resolves when nothing of it runs any more. */
  async disconnect() {
    this.#wanted = false;
    clearTimeout(this.#retryTimer);
    this.#connection?.abort.abort(new Error("disconnected"));
    await this.#reader;
  }

  /** Cuts the stream and the POST in flight as a network failure would: the client notices and dials again. */
  cut() {
    this.#connection?.abort.abort(new Error("connection cut"));
  }

  /** Id of the server that we are connected to, or null. */
  get serverId() {
    return this.#connection?.abort.signal.aborted === false ? this.#connection.serverId : null;
  }

  /** Resolves when every message handed over so far has been answered or has failed. */
  async uploaded() {
    let posts;
    do {
      posts = this.#posts;
      await posts;
    } while (posts !== this.#posts);
  }

  // What the peer calls.

  sync(peerId, cursor) {
    this.#post("/sync", peerId, { type: "sync", peerId: this.#peer.id, cursor });
    return "";
  }

  send(peerId, _streamId, data) {
    this.#post("/data", peerId, { type: "data", peerId: this.#peer.id, data });
  }

  /** Sends any body as it is. Resolves to the status and the text of the answer. */
  async postRaw(path, body, { contentType = "application/json" } = {}) {
    const response = await fetch(this.#base + path, {
      method: "POST",
      headers: contentType ? { "content-type": contentType } : {},
      body,
      signal: AbortSignal.timeout(POST_TIMEOUT_MS),
    });
    return { status: response.status, text: await response.text() };
  }

  #post(path, peerId, message) {
    // Messages for anybody but the connected server are dropped, as in the original.
    if (this.serverId !== peerId) return;
    const connection = this.#connection;
    const body = JSON.stringify(message);
    this.#posts = this.#posts.then(() => this.#deliver(connection, path, body));
  }

  async #deliver(connection, path, body) {
    try {
      await this.#beforePost(path, body);
      // A message belongs to the connection it was written for. In the original it would be in flight already, and
      // die with the connection.
      connection.abort.signal.throwIfAborted();
      const response = await fetch(this.#base + path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body,
        signal: AbortSignal.any([connection.abort.signal, AbortSignal.timeout(POST_TIMEOUT_MS)]),
      });
      const text = await response.text();
      if (!response.ok) throw new Error(`${response.status} ${text}`);
      this.posted += 1;
    } catch (error) {
      this.failures.push({ path, bytes: Buffer.byteLength(body), reason: error.message });
    }
    this.#peer.noteActivity();
  }

  #open() {
    const connection = new Connection();
    this.#connection = connection;
    this.#reader = this.#read(connection).then(
      () => this.#closed(connection),
      () => this.#closed(connection),
    );
  }

  async #read(connection) {
    const url = `${this.#base}/stream?peerId=${encodeURIComponent(this.#peer.id)}`;
    const response = await fetch(url, {
      headers: { accept: "text/event-stream" },
      signal: connection.abort.signal,
    });
    if (!response.ok) throw new Error(`the event stream was refused with ${response.status}`);
    for await (const text of eventData(response.body)) {
      connection.abort.signal.throwIfAborted();
      await this.#frame(connection, JSON.parse(text));
    }
  }

  async #frame(connection, frame) {
    if (frame.type === "connect") {
      connection.serverId = frame.peerId;
      this.#attempts = 0;
      await this.#peer.onConnect(this, frame.peerId);
    } else if (frame.type === "sync") {
      await this.#peer.onSync(this, frame.peerId, "", frame.cursor);
    } else if (frame.type === "data") {
      await this.#peer.onReceive(this, frame.peerId, "", frame.data);
    } else if (frame.type === "error") {
      this.errorFrames.push(frame.error);
    }
  }

  #closed(connection) {
    const { serverId } = connection;
    connection.abort.abort(new Error("the stream has ended"));
    this.#connection = null;
    // The original now calls onDisconnect with the literal id "server". No remote has that id, so the call fails and
    // the peer's record of the hub stays as it was until the next connect. The call is left out, its effect is kept.
    if (serverId) this.#peer.emit("disconnect", serverId);
    this.#peer.noteActivity();
    if (this.#wanted) this.#retryTimer = setTimeout(() => this.#retry(), this.#backoff(this.#attempts));
  }

  #retry() {
    this.#attempts += 1;
    if (this.#wanted && !this.#connection) this.#open();
  }
}

/** 1, 2, 4, 8, 16, 30, 30 ... seconds. */
export function backoffMs(attempts) {
  return Math.min(BACKOFF_FIRST_MS * 2 ** attempts, BACKOFF_MAX_MS);
}
