//! An incremental parser of server-sent events: any bytes in any pieces, bounded memory, no I/O.
//!
//! *Source*: HTML Living Standard, 9.2.6 "Interpreting an event stream". Fields other than `data` and `event` have no
//! meaning here and are skipped; so are comments.

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// The `event` field; empty for an ordinary message, which is all that a sync server sends.
    pub name: Vec<u8>,
    /// The `data` lines, joined with line feeds.
    pub data: Vec<u8>,
}

/// An event was larger than the parser may hold. The rest of it is skipped; the next one can be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {max} bytes")]
pub struct EventTooLarge {
    /// What the parser was told to hold at most, in bytes.
    pub max: usize,
}

/// The parser. It holds at most one unfinished event.
///
/// ```
/// use litemesh_http::EventParser;
///
/// let mut parser = EventParser::new(1024);
/// let mut found = Vec::new();
/// for piece in ["data: {\"type\"", ":\"ping\"}\n", "\n: a comment\n\n"] {
///     found.extend(parser.feed(piece.as_bytes()).flatten());
/// }
/// assert_eq!(found.len(), 1);
/// assert_eq!(found[0].data, br#"{"type":"ping"}"#);
/// ```
#[derive(Debug)]
pub struct EventParser {
    event_bytes_max: usize,
    event: Event,
    /// Whether the event has a `data` field yet: one without is dropped, as the standard says.
    has_data: bool,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// The event is too large: skip up to the empty line. What is left of the current line does not count as empty.
    skipping: bool,
    line_is_empty: bool,
    /// A carriage return ended the last line, so a line feed right after it ends no other one.
    after_return: bool,
    /// How much of a byte order mark was seen; beyond its length once the start is over.
    mark: usize,
}

pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl EventParser {
    /// A parser at the start of a stream that holds at most `event_bytes_max` bytes of one event.
    pub fn new(event_bytes_max: usize) -> Self {
        Self {
            event_bytes_max,
            event: Event::default(),
            has_data: false,
            line: Vec::new(),
            skipping: false,
            line_is_empty: true,
            after_return: false,
            mark: 0,
        }
    }

    /// Reads the next piece of the stream and gives the events that end in it, in order.
    ///
    /// Dropping the iterator early skips the rest of the piece.
    pub fn feed<'a>(&'a mut self, bytes: &'a [u8]) -> impl Iterator<Item = Result<Event, EventTooLarge>> + use<'a> {
        let mut rest = self.skip_mark(bytes);
        std::iter::from_fn(move || self.next_event(&mut rest))
    }

    /// Bytes of the unfinished event and its unfinished line.
    #[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.event.name.len() + self.event.data.len() + self.line.len()
    }

    /// The mark may come in pieces. Once it turns out to be none, what was held back of it is put in front of the line.
    fn skip_mark<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while self.mark < BYTE_ORDER_MARK.len() {
            match bytes.split_first() {
                None => return bytes,
                Some((first, rest)) if *first == BYTE_ORDER_MARK[self.mark] => {
                    self.mark += 1;
                    bytes = rest;
                }
                Some(_) => {
                    self.line.extend_from_slice(&BYTE_ORDER_MARK[..self.mark]);
                    self.line_is_empty = self.mark == 0;
                    self.mark = BYTE_ORDER_MARK.len();
                }
            }
        }
        bytes
    }

    fn next_event(&mut self, rest: &mut &[u8]) -> Option<Result<Event, EventTooLarge>> {
        loop {
            if self.after_return && !rest.is_empty() {
                self.after_return = false;
                if let [b'\n', tail @ ..] = *rest {
                    *rest = tail;
                }
            }
            if rest.is_empty() {
                return None;
            }
            // Each byte is looked at once: what was searched before is in `line` and not searched again.
            let Some(end) = memchr::memchr2(b'\n', b'\r', rest) else {
                let part = std::mem::take(rest);
                self.line_is_empty = false;
                return self.hold(part).err().map(Err);
            };
            let part = &rest[..end];
            self.after_return = rest[end] == b'\r';
            *rest = &rest[end + 1..];
            let is_empty = self.line_is_empty && part.is_empty();
            self.line_is_empty = true;
            if let Some(found) = if is_empty { self.end_event() } else { self.end_line(part) } {
                return Some(found);
            }
        }
    }

    /// Keeps the beginning of a line.
    fn hold(&mut self, part: &[u8]) -> Result<(), EventTooLarge> {
        if !self.skipping {
            self.check(part.len())?;
            self.line.extend_from_slice(part);
        }
        Ok(())
    }

    /// Counts whole lines, whatever they hold, so that the verdict does not depend on how the stream was cut.
    fn check(&mut self, more: usize) -> Result<(), EventTooLarge> {
        if self.event.data.len() + self.event.name.len() + self.line.len() + more <= self.event_bytes_max {
            return Ok(());
        }
        self.skipping = true;
        self.event = Event::default();
        self.has_data = false;
        self.line = Vec::new();
        Err(EventTooLarge { max: self.event_bytes_max })
    }

    fn end_line(&mut self, part: &[u8]) -> Option<Result<Event, EventTooLarge>> {
        if self.skipping {
            return None;
        }
        if let Err(error) = self.check(part.len()) {
            return Some(Err(error));
        }
        if self.line.is_empty() {
            self.field(part);
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(part);
            self.field(&line);
            // The next line begins in the same memory, unless this one was unusually long.
            if line.capacity() <= KEPT_LINE_BYTES_MAX {
                line.clear();
                self.line = line;
            }
        }
        None
    }

    fn field(&mut self, line: &[u8]) {
        let (name, value) = match memchr::memchr(b':', line) {
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (line, &b""[..]),
        };
        match name {
            b"data" => {
                if self.has_data {
                    self.event.data.push(b'\n');
                }
                self.has_data = true;
                self.event.data.extend_from_slice(value);
            }
            b"event" => self.event.name = value.to_vec(),
            _ => {}
        }
    }

    fn end_event(&mut self) -> Option<Result<Event, EventTooLarge>> {
        self.skipping = false;
        let event = std::mem::take(&mut self.event);
        std::mem::take(&mut self.has_data).then_some(Ok(event))
    }
}

/// Memory for a line that is kept from event to event, in bytes: room for most, so that it is not asked for anew. What one long line took is
/// given back.
const KEPT_LINE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    type Found = Vec<Result<Event, EventTooLarge>>;

    fn parse(pieces: &[&[u8]], max: usize) -> Found {
        let mut parser = EventParser::new(max);
        pieces.iter().flat_map(|piece| parser.feed(piece).collect::<Vec<_>>()).collect()
    }

    fn data(texts: &[&str]) -> Found {
        texts.iter().map(|text| Ok(Event { name: vec![], data: text.as_bytes().to_vec() })).collect()
    }

    #[test]
    fn lines_end_with_any_of_the_three_line_ends() {
        let stream = b"data: a\n\ndata: b\r\n\r\ndata: c\r\rdata:d\r\n\n";
        assert_eq!(parse(&[stream], 100), data(&["a", "b", "c", "d"]));
    }

    #[test]
    fn data_lines_are_joined_and_one_space_is_taken_off() {
        assert_eq!(parse(&[b"data:  a\ndata\ndata:b\n\n"], 100), data(&[" a\n\nb"]));
    }

    #[test]
    fn comments_other_fields_and_empty_events_are_skipped() {
        assert_eq!(parse(&[b": hello\nid: 1\nretry: 5\n\n\n\ndata: x\nid\n\n"], 100), data(&["x"]));
    }

    #[test]
    fn names_are_kept_and_belong_to_one_event() {
        let found = parse(&[b"event: other\ndata: 1\n\ndata: 2\n\nevent: gone\n\ndata: 3\n\n"], 100);
        let names: Vec<_> = found.into_iter().map(|event| event.unwrap().name).collect();
        assert_eq!(names, [b"other".to_vec(), vec![], vec![]]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once() {
        assert_eq!(parse(&[b"\xef", b"\xbb\xbfdata: x\n\n"], 100), data(&["x"]));
        // Not a mark after all: the field has an odd name then.
        assert_eq!(parse(&[b"\xef\xbb", b"data: x\ndata: y\n\n"], 100), data(&["y"]));
    }

    #[test]
    fn an_unfinished_event_is_not_given() {
        assert_eq!(parse(&[b"data: x\n"], 100), []);
    }

    #[test]
    fn a_large_event_is_one_error_and_the_next_is_read() {
        let found = parse(&[b"data: 0123456789\ndata: more\n\ndata: ok\n\n"], 10);
        assert_eq!(found[0], Err(EventTooLarge { max: 10 }));
        assert_eq!(found[1..], data(&["ok"]));
    }

    #[test]
    fn a_line_without_end_takes_no_more_memory_than_allowed() {
        let mut parser = EventParser::new(1000);
        for _ in 0..1000 {
            parser.feed(&[b'x'; 500]).for_each(drop);
        }
        assert!(parser.line.capacity() <= 2000);
    }
}
