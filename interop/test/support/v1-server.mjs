// The server end of the HTTP transport of wire v1 (sections 5.2 to 5.5), for pairing real CRSqlite with real CRSqlite.
//
// It answers as the original's web framework does, error bodies included, so that the recorded transcript can be
// replayed against it. It is a test double of the original, not a hub to use.
import { createServer } from "node:http";

const BODY_BYTES_MAX = 1024 * 1024;
const PING_MS = 30_000;
const JSON_TYPE = "application/json; charset=utf-8";

/** Message of a POST, and what it must carry. */
const POSTS = {
  "/sync": { type: "sync", field: "cursor", callback: "onSync" },
  "/data": { type: "data", field: "data", callback: "onReceive" },
};

const STREAM_HEADERS = {
  "Content-Type": "text/event-stream",
  "Cache-Control": "no-cache",
  Connection: "keep-alive",
  "Access-Control-Allow-Origin": "*",
  "Access-Control-Allow-Headers": "Cache-Control",
};

/** An answer that is thrown from wherever a request turns out to be bad. */
class Refusal extends Error {
  constructor(status, body) {
    super(JSON.stringify(body));
    this.status = status;
    this.body = body;
  }
}

export class HttpServerTransport {
  #peer = null;
  #streams = new Map();
  #server = createServer((request, response) => this.#serve(request, response));

  /** Listens on a free port of the loopback interface. Requests before `start` get `Transport not started`. */
  async listen() {
    await new Promise((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${this.#server.address().port}`;
  }

  start(peer) {
    this.#peer = peer;
  }

  async stop() {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  // What the peer calls.

  sync(peerId, cursor) {
    this.#frame(this.#streams.get(peerId), { type: "sync", peerId: this.#peer.id, cursor });
    return "";
  }

  send(peerId, _streamId, data) {
    this.#frame(this.#streams.get(peerId), { type: "data", peerId: this.#peer.id, data });
  }

  #frame(stream, frame) {
    stream?.write(`data: ${JSON.stringify(frame)}\n\n`);
  }

  async #serve(request, response) {
    const { pathname, searchParams } = new URL(request.url, "http://localhost");
    try {
      if (request.method === "OPTIONS") return preflight(request, response);
      if (request.method === "GET" && pathname === "/stream") return this.#openStream(request, response, searchParams);
      const post = request.method === "POST" && POSTS[pathname];
      if (!post) throw notFound(request);
      await this.#receive(post, await readJson(request));
      answer(request, response, 200, { success: true });
    } catch (error) {
      const body = error instanceof Refusal ? error.body : errorBody(error.message);
      answer(request, response, error.status ?? 500, body);
    }
  }

  async #receive({ type, field, callback }, message) {
    if (message.type !== type) throw new Refusal(400, errorBody(`Expected ${type} message`));
    if (!message.peerId || !message[field]) {
      throw new Refusal(400, errorBody(`Missing peerId or ${field} in ${type} message`));
    }
    if (!this.#peer) throw new Refusal(500, errorBody("Transport not started"));
    if (!this.#streams.has(message.peerId)) throw new Refusal(400, errorBody("Connect to /stream first"));
    await this.#peer[callback](this, message.peerId, "", message[field]);
  }

  #openStream(request, response, searchParams) {
    const peerId = streamPeerId(searchParams);
    response.writeHead(200, STREAM_HEADERS);
    response.flushHeaders();
    if (!this.#peer) return;
    if (this.#streams.has(peerId)) {
      this.#frame(response, { type: "error", peerId: this.#peer.id, error: "ALREADY_CONNECTED" });
      response.end();
      return;
    }
    this.#frame(response, { type: "connect", peerId: this.#peer.id });
    this.#streams.set(peerId, response);
    const ping = setInterval(() => this.#frame(response, { type: "ping", peerId: this.#peer.id }), PING_MS);
    // The first thing that ends the stream, in either direction, also ends the peer's record of the client.
    response.once("close", () => {
      clearInterval(ping);
      this.#streams.delete(peerId);
      this.#peer.onDisconnect(this, peerId);
    });
    this.#peer.onConnect(this, peerId);
  }
}

function streamPeerId(searchParams) {
  const ids = searchParams.getAll("peerId");
  if (ids.length === 0) throw invalidQuery("querystring must have required property 'peerId'");
  if (ids.length > 1) throw invalidQuery("querystring/peerId must be string");
  if (ids[0] === "") throw new Refusal(400, errorBody("Missing peerId query parameter"));
  return ids[0];
}

async function readJson(request) {
  const mediaType = request.headers["content-type"]?.split(";")[0].trim();
  const text = await readBody(request);
  if (mediaType === "text/plain") return text;
  if (mediaType !== "application/json") {
    throw framework(415, "FST_ERR_CTP_INVALID_MEDIA_TYPE", "Unsupported Media Type",
      `Unsupported Media Type: ${mediaType}`);
  }
  if (text === "") {
    throw framework(400, "FST_ERR_CTP_EMPTY_JSON_BODY", "Bad Request",
      "Body cannot be empty when content-type is set to 'application/json'");
  }
  try {
    return JSON.parse(text, refuseProtoKey);
  } catch {
    throw framework(400, "FST_ERR_CTP_INVALID_JSON_BODY", "Bad Request",
      "Body is not valid JSON but content-type is set to 'application/json'");
  }
}

async function readBody(request) {
  const chunks = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    // The rest is still read, so that the client sees the answer instead of a reset connection.
    if (length <= BODY_BYTES_MAX) chunks.push(chunk);
  }
  if (length > BODY_BYTES_MAX) {
    throw framework(413, "FST_ERR_CTP_BODY_TOO_LARGE", "Payload Too Large", "Request body is too large");
  }
  return Buffer.concat(chunks).toString("utf8");
}

function refuseProtoKey(key, value) {
  if (key === "__proto__") throw new SyntaxError("forbidden key");
  return value;
}

function preflight(request, response) {
  const { origin } = request.headers;
  if (!origin || !request.headers["access-control-request-method"]) {
    response.writeHead(400, { ...corsHeaders(request), "content-type": "text/plain" });
    response.end("Invalid Preflight Request");
    return;
  }
  response.writeHead(204, {
    ...corsHeaders(request),
    "access-control-allow-methods": "GET, POST, OPTIONS",
    "access-control-allow-headers": "Content-Type, Cache-Control",
    "content-length": "0",
  });
  response.end();
}

function answer(request, response, status, body) {
  if (response.headersSent || response.destroyed) return;
  response.writeHead(status, { ...corsHeaders(request), "content-type": JSON_TYPE });
  response.end(JSON.stringify(body));
}

function corsHeaders(request) {
  const { origin } = request.headers;
  return { vary: "Origin", ...(origin && { "access-control-allow-origin": origin }) };
}

function errorBody(error) {
  return { type: "error", error };
}

function framework(status, code, error, message) {
  return new Refusal(status, { statusCode: status, code, error, message });
}

function invalidQuery(message) {
  return framework(400, "FST_ERR_VALIDATION", "Bad Request", message);
}

function notFound({ method, url }) {
  const message = `Route ${method}:${url} not found`;
  return new Refusal(404, { message, error: "Not Found", statusCode: 404 });
}
