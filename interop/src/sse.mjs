// Server-sent events out of a byte stream.

/** Characters that one event may have. A catch-up frame of 10,000 long values is far smaller. */
const EVENT_CHARS_MAX = 256 * 1024 * 1024;

/** Yields the data text of each event. Lines that are not `data` (comments, ids) are skipped, as EventSource does. */
export async function* eventData(byteStream) {
  let data = [];
  for await (const line of lines(byteStream)) {
    if (line === "") {
      if (data.length > 0) yield data.join("\n");
      data = [];
    } else if (line.startsWith("data:")) {
      data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
    }
  }
}

/** Yields complete lines, without their end. What follows the last line end is dropped: the event was cut. */
async function* lines(byteStream) {
  const decoder = new TextDecoder();
  let parts = [];
  let partsLength = 0;
  for await (const chunk of byteStream) {
    const pieces = decoder.decode(chunk, { stream: true }).split("\n");
    const rest = pieces.pop();
    for (const piece of pieces) {
      const line = parts.join("") + piece;
      parts = [];
      partsLength = 0;
      yield line.endsWith("\r") ? line.slice(0, -1) : line;
    }
    parts.push(rest);
    partsLength += rest.length;
    if (partsLength > EVENT_CHARS_MAX) throw new Error(`an event is longer than ${EVENT_CHARS_MAX} characters`);
  }
}
