//! What a channel owes the peer above it (`litemesh_proto::transport`), on virtual time and with the other end played by hand.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use litemesh::SiteId;
use litemesh::channel::{Channel, ChannelError};
use litemesh::proto::codec::v2::{self, Deframer, Frame, Hello};
use litemesh::proto::{
    Access, Ack, BoxFuture, Limits, PeerCallbacks, PeerMessage, Refusal, Remote, SyncRequest, Transport, Unverified,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::task::JoinHandle;

const US: SiteId = SiteId::from_bytes([1; 16]);
const THEM: SiteId = SiteId::from_bytes([2; 16]);
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Writes down what it is told.
#[derive(Default)]
struct Recorder {
    limits: Limits,
    reports: Mutex<Vec<String>>,
    remote: Mutex<Option<Remote>>,
    refuses: bool,
    /// What becomes of messages.
    verdict: Option<Refusal>,
}

impl Recorder {
    fn report(&self, what: impl Into<String>) {
        self.reports.lock().unwrap().push(what.into());
    }

    fn reports(&self) -> Vec<String> {
        self.reports.lock().unwrap().clone()
    }

    fn remote(&self) -> Remote {
        self.remote.lock().unwrap().unwrap()
    }

    /// Waits until so much was reported: time stands still, and who has anything to do has done it long before.
    async fn wait_for(&self, reports: usize) {
        for _ in 0..100_000 {
            if self.reports().len() >= reports {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("only {:?} was reported", self.reports());
    }
}

impl PeerCallbacks for Recorder {
    fn site(&self) -> SiteId {
        US
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn connect(&self, remote: Remote, _access: Access) -> BoxFuture<'_, Result<(), Refusal>> {
        self.report("connect");
        *self.remote.lock().unwrap() = Some(remote);
        let answer = if self.refuses { Err(Refusal::Invalid("not you".to_owned())) } else { Ok(()) };
        Box::pin(async { answer })
    }

    fn sync(&self, _remote: Remote, _request: SyncRequest) -> BoxFuture<'_, Result<(), Refusal>> {
        self.report("sync");
        Box::pin(async { Ok(()) })
    }

    fn receive(&self, _remote: Remote, _message: Unverified) -> BoxFuture<'_, Result<(), Refusal>> {
        self.report("receive");
        let verdict = self.verdict.clone().map_or(Ok(()), Err);
        Box::pin(async { verdict })
    }

    fn garbled(&self, _remote: Remote, _reason: String) -> BoxFuture<'_, ()> {
        self.report("garbled");
        Box::pin(async {})
    }

    fn refused(&self, _remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        self.report(format!("refused: {reason}"));
        Box::pin(async {})
    }

    fn disconnect(&self, _remote: Remote, reason: String) -> BoxFuture<'_, ()> {
        self.report(format!("disconnect: {reason}"));
        Box::pin(async {})
    }
}

/// A started channel that has accepted a stream, and the other end of that.
async fn accepted(
    recorder: Recorder,
    bytes: usize,
) -> (Channel, Arc<Recorder>, DuplexStream, JoinHandle<ChannelError>) {
    let (channel, peer) = (Channel::new(), Arc::new(recorder));
    channel.start(peer.clone()).await.unwrap();
    let (mut theirs, ours) = duplex(bytes);
    let accepting = tokio::spawn({
        let channel = channel.clone();
        let (read, write) = split(ours);
        async move { channel.accept(read, write, Access::FULL).await }
    });
    let hello = Hello { version: 2, site: THEM, access: Access::FULL };
    theirs.write_all(&v2::framed(&v2::hello(&hello))).await.unwrap();
    while peer.reports().is_empty() {
        tokio::task::yield_now().await;
    }
    (channel, peer, theirs, accepting)
}

fn ack() -> PeerMessage {
    PeerMessage::Ack(Ack { answer: 1, number: 2, until: 3 })
}

/// Frames out of everything that came.
fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let limits = Limits::default();
    let mut deframer = Deframer::new(&limits);
    std::iter::from_fn(|| deframer.feed(&mut bytes).unwrap())
        .map(|frame| v2::decode(&frame, &limits).unwrap())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_slow_frame_is_waited_for_and_silence_is_not() {
    let (_channel, peer, mut theirs, accepting) = accepted(Recorder::default(), 1 << 16).await;
    // A byte in twenty seconds: the frame takes minutes.
    for byte in v2::framed(&v2::message(&ack())) {
        theirs.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    assert_eq!(peer.reports(), ["connect", "receive"]);
    let silent_since = tokio::time::Instant::now();
    let ended = accepting.await.unwrap();
    assert!(silent_since.elapsed() <= 3 * PING_INTERVAL);
    assert_eq!(ended, ChannelError::Ended { reason: "nothing came for 90 s".to_owned() });
    assert_eq!(peer.reports(), ["connect", "receive", "disconnect: nothing came for 90 s"]);
    // Our side pinged all the time.
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    let pings = frames(&all).iter().filter(|frame| matches!(frame, Frame::Ping)).count();
    assert!(pings >= 7, "{pings}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_introduce_themselves_in_time_is_told_so() {
    let channel = Channel::new();
    channel.start(Arc::new(Recorder::default())).await.unwrap();
    let (mut theirs, ours) = duplex(1 << 16);
    let (read, write) = split(ours);
    let (began, ended) = (tokio::time::Instant::now(), channel.accept(read, write, Access::FULL).await);
    assert_eq!(ended, ChannelError::NoPeer { reason: "nothing came for 120 s".to_owned() });
    assert_eq!(began.elapsed(), Duration::from_secs(120));
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    match &frames(&all)[..] {
        [Frame::Hello(_), Frame::Error(reason)] => assert_eq!(reason, "nothing came for 120 s"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_remote_that_reads_nothing_holds_up_its_own_sender_until_it_is_closed() {
    let (channel, peer, theirs, accepting) = accepted(Recorder::default(), 64).await;
    let remote = peer.remote();
    let sending = tokio::spawn({
        let channel = channel.clone();
        async move {
            loop {
                if let Err(error) = channel.send(remote, ack()).await {
                    return error;
                }
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!sending.is_finished());
    channel.close(remote).await;
    assert_eq!(accepting.await.unwrap(), ChannelError::Ended { reason: "closed by this side".to_owned() });
    sending.await.unwrap();
    // Who closes is told nothing more.
    assert_eq!(peer.reports(), ["connect"]);
    drop(theirs);
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_who_accepted_it() {
    let (channel, peer, mut theirs, accepting) = accepted(Recorder::default(), 1 << 16).await;
    accepting.abort();
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert_eq!(peer.reports(), ["connect", "disconnect: nobody waits for this connection any more"]);
    assert!(channel.send(peer.remote(), ack()).await.is_err());
}

/// Also while somebody holds the future of an accepted stream and does not poll it.
#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_nobody_and_reports_nothing() {
    let (channel, peer) = (Channel::new(), Arc::new(Recorder::default()));
    channel.start(peer.clone()).await.unwrap();
    let (mut theirs, ours) = duplex(1 << 16);
    let hello = Hello { version: 2, site: THEM, access: Access::FULL };
    theirs.write_all(&v2::framed(&v2::hello(&hello))).await.unwrap();
    let (read, write) = split(ours);
    let mut accepting = std::pin::pin!(channel.accept(read, write, Access::FULL));
    while peer.reports().is_empty() {
        tokio::select! { biased; _ = &mut accepting => panic!("it ended"), () = tokio::task::yield_now() => {} }
    }
    channel.stop().await;
    assert_eq!(accepting.await, ChannelError::Stopped);
    assert_eq!(peer.reports(), ["connect"]);
    // One that comes afterwards finds nobody, whatever it has said already.
    let (mut theirs, ours) = duplex(1 << 16);
    theirs.write_all(&v2::framed(&v2::hello(&hello))).await.unwrap();
    let (read, write) = split(ours);
    assert_eq!(channel.accept(read, write, Access::FULL).await, ChannelError::Stopped);
    assert_eq!(peer.reports(), ["connect"]);
}

/// Each side learns why the other does not want it, also where the stream is closed behind the word.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_and_heard() {
    let refusing = Recorder { refuses: true, ..Recorder::default() };
    let (_channel, peer, mut theirs, accepting) = accepted(refusing, 1 << 16).await;
    assert_eq!(accepting.await.unwrap(), ChannelError::Refused { reason: "not you".to_owned() });
    assert_eq!(peer.reports(), ["connect"]);
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    let frames = frames(&all);
    assert!(matches!(frames.as_slice(), [Frame::Hello(_), Frame::Error(reason)] if reason == "not you"), "{frames:?}");

    let (channel, peer, mut theirs, accepting) = accepted(Recorder::default(), 1 << 16).await;
    theirs.write_all(&v2::framed(&v2::error("nor you"))).await.unwrap();
    drop(theirs);
    // What is written into the closed stream fails first.
    let _ = channel.send(peer.remote(), ack()).await;
    assert_eq!(accepting.await.unwrap(), ChannelError::Refused { reason: "nor you".to_owned() });
    assert_eq!(peer.reports(), ["connect", "disconnect: nor you"]);
}

/// Each side learns that a message of its own was not taken, and the connection goes on.
#[tokio::test(start_paused = true)]
async fn a_message_that_is_not_taken_is_told_and_heard() {
    let message = v2::framed(&v2::message(&ack()));
    let garbage = v2::framed(&[3, 0, 0xff]);
    for (verdict, told) in [
        (Refusal::Invalid("no such table".to_owned()), Some("no such table")),
        // It may be taken the next time.
        (Refusal::Unavailable("not now".to_owned()), None),
    ] {
        let refusing = Recorder { verdict: Some(verdict), ..Recorder::default() };
        let (channel, peer, mut theirs, accepting) = accepted(refusing, 1 << 16).await;
        theirs.write_all(&message).await.unwrap();
        peer.wait_for(2).await;
        // What is sent behind it shows that the connection stands.
        channel.send(peer.remote(), ack()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        channel.stop().await;
        assert_eq!(accepting.await.unwrap(), ChannelError::Stopped);
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        let frames = frames(&all);
        let reasons = frames.iter().filter_map(|frame| match frame {
            Frame::Error(reason) => Some(reason.as_str()),
            _ => None,
        });
        assert_eq!(reasons.collect::<Vec<_>>(), told.into_iter().collect::<Vec<_>>());
        assert!(frames.iter().any(|frame| matches!(frame, Frame::Message(_))), "{frames:?}");
    }

    // What could not even be read, too.
    let (channel, peer, mut theirs, accepting) = accepted(Recorder::default(), 1 << 16).await;
    theirs.write_all(&message).await.unwrap();
    theirs.write_all(&garbage).await.unwrap();
    theirs.write_all(&v2::framed(&v2::error("nor yours"))).await.unwrap();
    theirs.write_all(&message).await.unwrap();
    peer.wait_for(5).await;
    assert_eq!(peer.reports(), ["connect", "receive", "garbled", "refused: nor yours", "receive"]);
    // Not without end.
    for _ in 0..100 {
        theirs.write_all(&v2::framed(&v2::error("nor yours"))).await.unwrap();
    }
    let ended = accepting.await.unwrap();
    assert_eq!(ended, ChannelError::Ended { reason: "the other end refuses too much".to_owned() });
    let heard = peer.reports().iter().filter(|report| report.starts_with("refused")).count();
    assert_eq!(heard, 64);
    channel.stop().await;
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert!(frames(&all).iter().any(|frame| matches!(frame, Frame::Error(_))));
}
