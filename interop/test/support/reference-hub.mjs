// A hub made of the same parts as the peers: real CRSqlite behind the server transport of wire v1. Same surface as
// `Hub` of src/hub.mjs, so that the scenarios run against either.
import { Database } from "../../src/crsqlite.mjs";
import { V1Peer } from "../../src/v1-peer.mjs";
import { AS_CRRS, SCHEMA } from "./schema.mjs";
import { HttpServerTransport } from "./v1-server.mjs";

export class ReferenceHub {
  constructor(database, peer, transport) {
    this.database = database;
    this.peer = peer;
    this.url = transport.url;
    this.siteId = peer.id;
  }

  /** On a new database, or on the bytes of one; an empty `image` is a new one that has bytes. */
  static async start({ schema = SCHEMA, asCrrs = AS_CRRS, image } = {}) {
    const database = await Database.open({ image });
    if (!image?.length) await database.exec(schema + asCrrs);
    const peer = new V1Peer(database);
    await peer.start();
    const transport = new HttpServerTransport();
    await transport.listen();
    await peer.attach(transport);
    return new ReferenceHub(database, peer, transport);
  }

  /** Runs one statement as the hub's application would, then looks for local changes. */
  async sql(statement) {
    const rows = await this.database.all(statement);
    await this.peer.checkLocalChanges();
    return rows;
  }

  /** The bytes of its database, if it was made with some. */
  image() {
    return this.database.image();
  }

  async dispose() {
    await this.peer.stop();
    await this.database.close();
  }
}
