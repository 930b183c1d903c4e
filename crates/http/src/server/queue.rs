//! The frames that wait to go out on one stream: a bounded queue that knows whether its reader moves.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::form::CHUNK_BYTES;

/// The queue of one stream: many writers, one reader.
///
/// No channel, because a stream that is shed must free its frames at once. The reader is a body in the hands of the HTTP
/// server, which does not look at it while the client takes nothing; frames in a channel would stay until TCP gives up,
/// for every connection that a client abandons (`known-failures.md` C4).
pub(crate) struct FrameQueue {
    state: Mutex<State>,
    /// One permit for each frame that may still be added. A frame gives its permit back when its last byte is taken.
    places: Semaphore,
    changed: Notify,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Bytes>,
    /// What is left of the frame that is being read.
    current: Bytes,
    end: End,
    /// When the reader last took something, or last had nothing to take.
    moved_at: Option<Instant>,
}

#[derive(Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// What is queued still goes out.
    Finished,
    /// Nothing goes out any more.
    Shed,
}

/// A piece of a frame for the carrier.
pub(crate) struct Chunk {
    pub(super) bytes: Bytes,
    /// Whether it is the last of its frame.
    pub(super) ends_frame: bool,
}

impl FrameQueue {
    /// A queue for `len_max` frames.
    pub(crate) fn new(len_max: usize) -> Self {
        Self { state: Mutex::default(), places: Semaphore::new(len_max), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame, which is made only when there is a place; waits for one. Frames wait in order.
    ///
    /// Resolves to the size of the frame, or to `None` where the stream has ended. Cancel safe: a frame is added in whole
    /// or not at all.
    pub(super) async fn push(&self, frame: impl FnOnce() -> Bytes) -> Option<usize> {
        self.places.acquire().await.ok()?.forget();
        self.add(frame())
    }

    /// Adds a frame if there is a place for it.
    pub(crate) fn try_push(&self, frame: Bytes) -> Option<usize> {
        self.places.try_acquire().ok()?.forget();
        self.add(frame)
    }

    fn add(&self, frame: Bytes) -> Option<usize> {
        let mut state = self.lock();
        if state.end != End::Open {
            return None;
        }
        if state.is_empty() {
            state.moved_at = Some(Instant::now());
        }
        let bytes = frame.len();
        state.frames.push_back(frame);
        drop(state);
        self.changed.notify_one();
        Some(bytes)
    }

    /// How long the reader has left something lying. Zero while there is nothing to take.
    pub(super) fn stalled_for(&self) -> Duration {
        let state = self.lock();
        match state.moved_at {
            Some(moved_at) if !state.is_empty() => moved_at.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// The next piece; `None` at the end. For one reader.
    pub(super) async fn next_chunk(&self) -> Option<Chunk> {
        loop {
            if let Some(chunk) = self.try_next_chunk() {
                return Some(chunk);
            }
            if self.is_over() {
                return None;
            }
            self.changed.notified().await;
        }
    }

    /// The next piece, if there is one now.
    pub(crate) fn try_next_chunk(&self) -> Option<Chunk> {
        let chunk = self.lock().take()?;
        if chunk.ends_frame {
            self.places.add_permits(1);
        }
        Some(chunk)
    }

    /// Whether nothing waits any more, nor ever will.
    fn is_over(&self) -> bool {
        let state = self.lock();
        state.end != End::Open && state.is_empty()
    }

    /// Takes no more frames; those that wait still go out.
    pub(super) fn finish(&self) {
        self.end(End::Finished);
    }

    /// Ends the stream at once and frees what waits.
    pub(super) fn shed(&self) {
        self.end(End::Shed);
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        if end == End::Shed {
            state.frames = VecDeque::new();
            state.current = Bytes::new();
        }
        state.end = end;
        drop(state);
        self.places.close();
        self.changed.notify_one();
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.current.is_empty()
    }

    fn take(&mut self) -> Option<Chunk> {
        if self.current.is_empty() {
            self.current = self.frames.pop_front()?;
        }
        let bytes = self.current.split_to(self.current.len().min(CHUNK_BYTES));
        self.moved_at = Some(Instant::now());
        let ends_frame = self.current.is_empty();
        if ends_frame {
            // The last piece holds the frame's memory; the queue must not.
            self.current = Bytes::new();
        }
        Some(Chunk { bytes, ends_frame })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Bytes {
        Bytes::from(vec![b'x'; len])
    }

    #[tokio::test]
    async fn a_place_is_free_when_the_last_byte_of_a_frame_is_taken() {
        let queue = FrameQueue::new(1);
        assert_eq!(queue.try_push(frame(CHUNK_BYTES + 1)), Some(CHUNK_BYTES + 1));
        assert_eq!(queue.try_push(frame(1)), None);
        assert!(!queue.next_chunk().await.unwrap().ends_frame);
        assert_eq!(queue.try_push(frame(1)), None);
        assert!(queue.next_chunk().await.unwrap().ends_frame);
        assert_eq!(queue.try_push(frame(1)), Some(1));
    }

    #[tokio::test]
    async fn finishing_delivers_and_shedding_forgets() {
        let queue = FrameQueue::new(2);
        queue.try_push(frame(5)).unwrap();
        queue.finish();
        assert_eq!(queue.try_push(frame(1)), None);
        assert_eq!(queue.next_chunk().await.unwrap().bytes.len(), 5);
        assert!(queue.next_chunk().await.is_none());

        let queue = FrameQueue::new(2);
        queue.try_push(frame(5)).unwrap();
        queue.shed();
        assert!(queue.next_chunk().await.is_none());
        assert_eq!(queue.push(|| frame(1)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_stalls_only_while_something_waits_for_it() {
        let queue = FrameQueue::new(2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(queue.stalled_for(), Duration::ZERO);
        queue.try_push(frame(2 * CHUNK_BYTES)).unwrap();
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(queue.stalled_for(), Duration::from_secs(7));
        queue.next_chunk().await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(queue.stalled_for(), Duration::from_secs(1));
        queue.next_chunk().await.unwrap();
        assert_eq!(queue.stalled_for(), Duration::ZERO);
    }
}
