//! Any events of a stream in any order: the body of the fuzz target `nostr_chain`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // to panic is what it is for

use std::collections::{HashMap, HashSet};

use nostr::secp256k1::schnorr::Signature;
use nostr::{Event, EventId, PublicKey, Tag, Timestamp};

use super::{Chain, Forked, WAITING_BYTES_MAX, WAITING_MAX, held_bytes};
use crate::CHANGES_KIND;

const STEPS_MAX: usize = 24;

/// Bytes of an event. The third is what one with a part of a frame has, the last one is the longest.
const SIZES: [usize; 4] = [10, 1_000, 54_000, 1_398_196];

/// Later than all that is published.
const NOW: Timestamp = Timestamp::from_secs(1_000_000_000);

/// The author may fork the stream, or date its events as it likes.
const IS_FORKED: u8 = 1;
const IS_DATED_BACK: u8 = 2;
/// There are events of the longest kind.
const IS_LONG: u8 = 4;
/// Tags are as long as the content otherwise is.
const HAS_TAGS: u8 = 8;

/// What kind of author it is, how many pairs of events there are, after which one the chain begins, and how many bytes describe the events,
/// over and over. Then, of two bytes each, what is done with the chain.
///
/// What waits is bounded, and the next event is always taken. Events are taken once and in their order; all of them, if they come again
/// and their author is honest, who is never said to have forked its stream.
pub fn chain(bytes: &[u8]) {
    let [kind, pairs, start, traits, rest @ ..] = bytes else { return };
    let (traits, steps) = rest.split_at(usize::from(traits % 32).min(rest.len()));
    let stream = Stream::new(*kind, 2 * usize::from(*pairs), traits);
    let mut scene = Scene::new(&stream, usize::from(*start));
    for step in steps.chunks_exact(2).take(STEPS_MAX) {
        if scene.step(step[0], step[1]).is_err() {
            assert!(!stream.is_honest());
            return;
        }
        scene.check();
    }
    if stream.is_honest() {
        scene.check_all_come();
    }
}

/// What its author has published.
struct Stream {
    kind: u8,
    traits: Vec<u8>,
    previous: Vec<Option<EventId>>,
    created_at: Vec<u64>,
}

impl Stream {
    fn new(kind: u8, count: usize, traits: &[u8]) -> Self {
        let traits = if traits.is_empty() { vec![0] } else { traits.to_vec() };
        let mut stream = Self { kind, traits, previous: Vec::new(), created_at: Vec::new() };
        let mut now = 1_000_000;
        for index in 0..count {
            let of_this = stream.traits[index % stream.traits.len()];
            now += [0, 0, 1, 60][usize::from(of_this & 3)];
            let is_dated_back = kind & IS_DATED_BACK != 0 && of_this.is_multiple_of(7);
            stream.created_at.push(if is_dated_back { now - u64::from(of_this) } else { now });
            stream.previous.push(match of_this >> 4 {
                back @ 12..=14 if kind & IS_FORKED != 0 => index.checked_sub(usize::from(back) - 10).map(id),
                // One that nobody has.
                15 if kind & IS_FORKED != 0 => Some(id(usize::MAX)),
                _ => index.checked_sub(1).map(id),
            });
        }
        stream
    }

    fn is_honest(&self) -> bool {
        self.kind & (IS_FORKED | IS_DATED_BACK) == 0
    }

    fn event(&self, index: usize) -> Event {
        let size = match usize::from(self.traits[index % self.traits.len()] >> 2 & 3) {
            3 if self.kind & IS_LONG == 0 => SIZES[1],
            size => SIZES[size],
        };
        let filling = "x".repeat(size);
        let (content, tags) = match self.kind & HAS_TAGS {
            0 => (filling, Vec::new()),
            _ => (String::new(), vec![Tag::parse(["x".to_owned(), filling]).expect("a tag")]),
        };
        let signature = Signature::from_slice(&[0; 64]).expect("of this length");
        let author = PublicKey::from_byte_array([1; 32]);
        Event::new(
            id(index),
            author,
            Timestamp::from_secs(self.created_at[index]),
            CHANGES_KIND,
            tags,
            content,
            signature,
        )
    }
}

fn id(index: usize) -> EventId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&index.wrapping_add(1).to_le_bytes());
    EventId::from_byte_array(bytes)
}

fn index(id: EventId) -> usize {
    usize::from_le_bytes(*id.as_bytes().first_chunk().expect("an id is longer")) - 1
}

struct Scene<'a> {
    stream: &'a Stream,
    chain: Chain,
    /// Where it began.
    start: Option<EventId>,
    offered: HashMap<Option<EventId>, HashSet<EventId>>,
    taken: Vec<EventId>,
}

impl<'a> Scene<'a> {
    /// The stream is to be gone on with after so many events of it.
    fn new(stream: &'a Stream, start: usize) -> Self {
        let start = start.min(stream.previous.len()).checked_sub(1);
        let start_at = start.map_or(0, |index| stream.created_at[index]);
        let start = start.map(id);
        let chain = Chain::after(start, Timestamp::from_secs(start_at));
        Self { stream, chain, start, offered: HashMap::new(), taken: Vec::new() }
    }

    fn step(&mut self, what: u8, from: u8) -> Result<(), Forked> {
        let count = self.stream.previous.len();
        let (run, first) = (1 + usize::from(what >> 2), usize::from(from) * count / 256);
        match what & 3 {
            0 => (0..run).for_each(|_| self.next()),
            // As they were published, or as relays send them.
            1 => (first..count.min(first + run)).try_for_each(|index| self.offer(index))?,
            2 => (first..count.min(first + run)).rev().try_for_each(|index| self.offer(index))?,
            // Some of them.
            _ => (first..count).step_by(run).try_for_each(|index| self.offer(index))?,
        }
        Ok(())
    }

    fn offer(&mut self, index: usize) -> Result<(), Forked> {
        let (previous, id) = (self.stream.previous[index], id(index));
        self.offered.entry(previous).or_default().insert(id);
        let offered = self.chain.offer(previous, self.stream.event(index), NOW);
        if offered.is_err() {
            let is_first_again = previous.is_none() && self.chain.head().is_some();
            assert!(is_first_again || self.offered[&previous].len() > 1, "{index} follows what nothing else follows");
        } else if previous == self.chain.head() {
            assert!(self.chain.has_next());
        }
        let next = self.chain.waiting.get(&self.chain.head());
        assert!(self.chain.waiting.len() - usize::from(next.is_some()) <= WAITING_MAX);
        assert!(self.chain.bytes - next.map_or(0, held_bytes) <= WAITING_BYTES_MAX);
        offered
    }

    fn next(&mut self) {
        let (head, has_next) = (self.chain.head(), self.chain.has_next());
        let event = self.chain.next(NOW);
        assert_eq!(event.is_some(), has_next);
        let Some(event) = event else { return };
        assert_eq!((self.stream.previous[index(event.id)], self.chain.head()), (head, Some(event.id)));
        assert!(Some(event.id) != self.start && !self.taken.contains(&event.id));
        self.taken.push(event.id);
    }

    fn check(&self) {
        let chain = &self.chain;
        assert_eq!(chain.bytes, chain.waiting.values().map(held_bytes).sum::<usize>());
        assert_eq!(chain.has_gap(), !chain.waiting.is_empty() && !chain.has_next());
        for (previous, event) in &chain.waiting {
            assert_eq!(self.stream.previous[index(event.id)], *previous);
            assert!(!self.taken.contains(&event.id) && Some(event.id) != self.start);
        }
    }

    /// Relays have everything, and send it again.
    fn check_all_come(&mut self) {
        let count = self.stream.previous.len();
        for index in 0..count {
            self.offer(index).expect("there is no fork");
            while self.chain.has_next() {
                self.next();
            }
        }
        self.check();
        let first = self.start.map_or(0, |start| index(start) + 1);
        assert_eq!(self.taken, (first..count).map(id).collect::<Vec<_>>());
        if count <= WAITING_MAX
            && (0..count).map(|index| held_bytes(&self.stream.event(index))).sum::<usize>() <= WAITING_BYTES_MAX
        {
            assert!(self.chain.waiting.is_empty() && !self.chain.has_gap());
        }
        // One for which there was no room is missing between those before the head. The newest first, none is.
        (0..count).rev().for_each(|index| self.offer(index).expect("there is no fork"));
        assert!(self.chain.waiting.is_empty() && !self.chain.has_gap());
    }
}
