// Server-sent events, cut anywhere.
import assert from "node:assert/strict";
import { test } from "node:test";
import { eventData } from "../src/sse.mjs";

async function parse(chunks) {
  const stream = (async function* () {
    yield* chunks;
  })();
  return Array.fromAsync ? Array.fromAsync(eventData(stream)) : collect(eventData(stream));
}

async function collect(events) {
  const all = [];
  for await (const event of events) all.push(event);
  return all;
}

test("events are the same wherever the stream is cut", async () => {
  const bytes = Buffer.from('data: {"a":"日本😀"}\n\ndata: 2\n\n');
  for (let cut = 0; cut <= bytes.length; cut++) {
    assert.deepEqual(await parse([bytes.subarray(0, cut), bytes.subarray(cut)]), ['{"a":"日本😀"}', "2"]);
  }
});

test("comments, other fields and carriage returns are taken as EventSource takes them", async () => {
  const text = ": hello\r\nevent: x\r\nid: 7\r\ndata:no space\r\ndata:  one space kept\r\n\r\n: ping\n\n";
  assert.deepEqual(await parse([Buffer.from(text)]), ["no space\n one space kept"]);
});

test("an event that the end of the stream cuts off is dropped", async () => {
  assert.deepEqual(await parse([Buffer.from("data: whole\n\ndata: half\n")]), ["whole"]);
});
