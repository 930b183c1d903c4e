//! `litemesh sync`: joins a hub, a file at the other end of `ssh`, a file beside, or all paired devices, once or for good.

mod ssh;
mod unreached;
mod way;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use litemesh::proto::Access;
use litemesh::{Event, EventError, Peer, PeerBuilder, SiteId};
use serde_json::json;

use crate::args::SyncArgs;
use crate::commands::pairings::{RELAYS_ADVICE, RELAYS_PATIENCE};
use crate::commands::serve::{ended, tell, warn_of_nothing_to_sync};
use crate::commands::token::rights;
use crate::database_file;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{Output, printable, thousands};
use crate::shutdown::Shutdown;
use way::Way;

/// How often progress is looked at. Short beside a second, long beside what looking costs.
const TICK: Duration = Duration::from_millis(100);

/// How long a catch-up runs before a progress bar appears.
const BAR_DELAY: Duration = Duration::from_secs(1);

/// Time between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// How long a run that stays waits for a connection before it says why there is none, and one with `--once` for a paired device before
/// it says for which, and for anything more where something was refused.
const SILENCE_MAX: Duration = Duration::from_secs(3);

pub(crate) async fn run(args: &SyncArgs) -> Result<ExitCode, Failure> {
    let mut shutdown = Shutdown::listen()?;
    let database = database_file::open(&args.file)?;
    if database_file::replicated_tables(&args.file, &database.lock())?.is_empty() {
        warn_of_nothing_to_sync(&args.file);
    }
    let way = Way::find(args).await?;
    let builder = way.join(Peer::builder(database));
    let mut run = Run::start(args, builder, way).await?;
    let ended = run.until_end(&mut shutdown).await;
    run.bar.finish_and_clear();
    run.peer.stop().await;
    run.way.stop().await;
    ended.map(|()| ExitCode::Ok)
}

/// One run of the command.
struct Run<'a> {
    args: &'a SyncArgs,
    peer: Peer,
    way: Way,
    events: litemesh::Events,
    output: Output,
    bar: ProgressBar,
    traffic: Traffic,
    started: Instant,
    /// When something last happened.
    moved: Instant,
    /// When progress was last told in a line, and how many changes that were.
    told: (Instant, u64),
    /// Since when there has been no connection, until that was told.
    offline: Option<Instant>,
    /// Which paired devices are waited for was told.
    has_told_devices: bool,
    /// Since when some of them have no relay that is reached, and whether that was told.
    without_relays: Option<(Instant, bool)>,
    /// The connections that are caught up with, and how far that came. More than one over Nostr alone.
    rounds: BTreeMap<SiteId, Round>,
    /// Why the last connection came to nothing; dialling again would end the same way.
    refused: Option<Failure>,
    /// What the peer last said about itself: why it ends, where it does.
    said: Option<String>,
}

/// A catch-up from the connection to its end.
struct Round {
    started: Instant,
    has_received_all: bool,
    has_sent_all: bool,
    is_done: bool,
    /// Why nothing can be received; what is ours is still sent.
    refusal: Option<Failure>,
}

impl<'a> Run<'a> {
    async fn start(args: &'a SyncArgs, builder: PeerBuilder, way: Way) -> Result<Self, Failure> {
        let events = builder.events();
        let peer = builder.start().await.map_err(|error| Failure::start(&args.file, &error))?;
        let mut output = Output::new();
        if !args.json {
            output.line(format_args!("{} joins {}", args.file.display(), args.far))?;
        }
        let now = Instant::now();
        Ok(Self {
            args,
            peer,
            way,
            events,
            output,
            bar: ProgressBar::hidden(),
            traffic: Traffic::default(),
            started: now,
            moved: now,
            told: (now, 0),
            offline: Some(now),
            has_told_devices: false,
            without_relays: None,
            rounds: BTreeMap::new(),
            refused: None,
            said: None,
        })
    }

    async fn until_end(&mut self, shutdown: &mut Shutdown) -> Result<(), Failure> {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            // Losing a branch loses nothing: events and signals stay in their streams.
            tokio::select! {
                () = shutdown.requested() => {
                    self.bar.finish_and_clear();
                    return self.interrupted();
                }
                event = self.events.recv() => {
                    if matches!(event, Err(EventError::Closed)) {
                        self.bar.finish_and_clear();
                        return Err(ended(&self.args.file, self.said.take()));
                    }
                    match self.hear(event) {
                        // It goes on syncing when nobody reads its output any more.
                        Err(Failure::BrokenPipe) if !self.args.once => self.output.mute(),
                        heard => heard?,
                    }
                }
                _ = ticks.tick() => self.look()?,
            }
            if !self.args.once && self.offline.is_some_and(|since| since.elapsed() >= SILENCE_MAX) {
                self.explain_silence()?;
            }
            if self.args.once && self.is_over()? {
                return self.summary();
            }
            self.look_for_relays()?;
            if self.args.once && !self.has_told_devices && self.moved.elapsed() >= SILENCE_MAX {
                self.tell_devices()?;
            }
            if self.args.once && self.moved.elapsed() >= Duration::from_secs(self.args.timeout) {
                self.bar.finish_and_clear();
                return Err(self.gave_up());
            }
        }
    }

    /// Prints an event, and keeps book of the catch-up.
    fn hear(&mut self, event: Result<Event, EventError>) -> Result<(), Failure> {
        self.look()?;
        // Neither connecting nor losing a connection is progress, or a hub that does nothing else would be tried for ever.
        if let Ok(Event::Sync { .. } | Event::Eose { .. } | Event::Served { .. } | Event::Change { .. }) = &event {
            self.moved = Instant::now();
        }
        match &event {
            Ok(Event::Connect { peer, .. }) => {
                self.traffic.begin();
                self.offline = None;
                self.rounds.insert(*peer, Round::new());
            }
            Ok(Event::Disconnect { peer, .. }) => {
                self.refused = self.rounds.remove(peer).and_then(|round| round.refusal);
                self.offline = self.rounds.is_empty().then(Instant::now);
            }
            Ok(Event::Eose { peer, .. }) => self.with_round(peer, |round| round.has_received_all = true),
            Ok(Event::Served { peer, .. }) => self.with_round(peer, |round| round.has_sent_all = true),
            Ok(Event::Outdated { peer, schema_version, .. }) => {
                let refusal = Failure::refused(
                    format!("the other side's schema version is {schema_version}, ours {}", self.peer.schema_version()),
                    "upgrade the tables of this file and set PRAGMA user_version, then sync again",
                );
                self.with_round(peer, |round| round.refusal = Some(refusal));
            }
            Ok(Event::Error { peer: None, message, .. }) => self.said = Some(message.clone()),
            Ok(Event::Error { peer: Some(peer), message, .. }) => {
                let refusal = Failure::refused(
                    format!("the exchange failed: {message}"),
                    "nothing was lost; compare the tables of both files, then sync again",
                );
                self.with_round(peer, |round| round.refusal = Some(refusal));
            }
            // What was missed may be what we wait for.
            Err(EventError::Lagged(_)) => {
                for status in self.peer.status().iter().filter(|status| status.is_caught_up) {
                    self.with_round(&status.peer, |round| (round.has_received_all, round.has_sent_all) = (true, true));
                }
            }
            _ => {}
        }
        let mut is_done_now = false;
        for round in self.rounds.values_mut() {
            is_done_now |= round.is_caught_up() && !std::mem::replace(&mut round.is_done, true);
        }
        // With some, and with others not yet.
        is_done_now &= self.rounds.values().all(|round| round.is_done);
        let connected = match event {
            Ok(Event::Connect { peer, .. }) => Some(peer),
            _ => None,
        };
        let (bar, output, as_json) = (&self.bar, &mut self.output, self.args.json);
        bar.suspend(|| tell(as_json, event, output))?;
        if let Some(peer) = connected {
            self.tell_limits(peer)?;
        }
        if is_done_now {
            self.bar.finish_and_clear();
            self.bar = ProgressBar::hidden();
            if !self.args.once {
                self.caught_up()?;
            }
        }
        Ok(())
    }

    /// Says what the other side lets us do, where that is not everything: what is written beyond it stays here.
    fn tell_limits(&mut self, hub: SiteId) -> Result<(), Failure> {
        // The access is the hub's here: what it may not read is what we may not write there.
        let access = self.peer.status().into_iter().find(|status| status.peer == hub).map(|status| status.access);
        let Some(access) = access.map(|access| access.mirrored()).filter(|access| *access != Access::FULL) else {
            return Ok(());
        };
        let tables = access.tables().map(|tables| tables.iter().map(AsRef::as_ref).collect::<Vec<&str>>());
        if self.args.json {
            return self.output.json(&json!({ "event": "access", "rights": rights(&access), "tables": tables }));
        }
        let of = tables.map_or_else(String::new, |tables| format!(" of the tables {}", tables.join(", ")));
        let what = match access.may_write() {
            true => format!("only changes{of} are exchanged"),
            false => format!("only changes{of} come here; what is written here is not sent"),
        };
        self.output.line(printable(&format!("the other side allows no more: {what}")))
    }

    fn with_round(&mut self, peer: &SiteId, change: impl FnOnce(&mut Round)) {
        if let Some(round) = self.rounds.get_mut(peer) {
            change(round);
        }
    }

    /// Looks at the counters, and shows them where a catch-up takes long.
    fn look(&mut self) -> Result<(), Failure> {
        let (mut received, mut sent) = (0, 0);
        for status in self.peer.status() {
            received += status.changes_received;
            sent += status.changes_sent;
        }
        if self.traffic.update(received, sent) {
            self.moved = Instant::now();
        }
        let under_way = self.rounds.values().filter(|round| !round.is_done);
        let Some(took) = under_way.map(|round| round.started.elapsed()).max() else { return Ok(()) };
        if self.args.json || took < BAR_DELAY {
            return Ok(());
        }
        let changes = self.traffic.in_round();
        if io::stderr().is_terminal() {
            if self.bar.is_hidden() {
                self.bar = bar();
            }
            self.bar.set_message(format!("{} changes/s", thousands((changes as f64 / took.as_secs_f64()) as u64)));
            self.bar.set_position(changes);
        } else if self.told.0.elapsed() >= LINE_INTERVAL && self.told.1 != changes {
            // Without news there is no progress: a paired device may be away for days.
            self.told = (Instant::now(), changes);
            self.output.line(format_args!("catching up: {} changes {}", thousands(changes), pace(changes, took)))?;
        }
        Ok(())
    }

    /// Whether a run with `--once` has come to its end, good or bad.
    fn is_over(&mut self) -> Result<bool, Failure> {
        if let Some(refused) = self.refused.take() {
            return Err(refused);
        }
        // Dialling again would end the same way, other than with what a hub or a network may get over.
        if let Some(unreached) = self.way.unreached().filter(|unreached| unreached.is_final) {
            return Err(unreached.failure(&self.args.far, ""));
        }
        // Who has refused something says of nothing behind it that it is there.
        let is_still = self.moved.elapsed() >= SILENCE_MAX;
        let mut ending = self.rounds.values_mut().filter(|round| round.has_sent_all || is_still);
        if let Some(refusal) = ending.find_map(|round| round.refusal.take()) {
            return Err(refusal);
        }
        let is_caught_up = |round: &Round| round.is_caught_up() && round.refusal.is_none();
        Ok(self.rounds.len() >= self.way.remotes() && self.rounds.values().all(is_caught_up))
    }

    /// Paired devices that have not caught up yet.
    fn devices(&self) -> Vec<&str> {
        self.way.devices_but(|site| self.rounds.get(site).is_some_and(Round::is_caught_up))
    }

    /// Says once which paired devices a run with `--once` waits for: it ends when all of them have been there, or after `--timeout`.
    fn tell_devices(&mut self) -> Result<(), Failure> {
        self.has_told_devices = true;
        let devices: Vec<String> = self.devices().into_iter().map(str::to_owned).collect();
        if devices.is_empty() {
            return Ok(());
        }
        if self.args.json {
            return self.output.json(&json!({ "event": "waiting", "devices": devices }));
        }
        let (devices, seconds) = (devices.join(", "), self.args.timeout);
        self.output.line(printable(&format!("waiting for {devices}, up to {seconds} s")))
    }

    /// Says of which paired devices no relay is reached, once each time: to the peer they are connected all the same.
    fn look_for_relays(&mut self) -> Result<(), Failure> {
        let Some((devices, reasons)) = self.way.without_relays() else {
            self.without_relays = None;
            return Ok(());
        };
        let (since, is_told) = self.without_relays.get_or_insert((Instant::now(), false));
        if since.elapsed() < RELAYS_PATIENCE || std::mem::replace(is_told, true) {
            return Ok(());
        }
        if self.args.json {
            return self.output.json(&json!({
                "event": "unreachable", "url": self.args.far, "kind": "relays", "devices": devices, "reason": reasons,
                "advice": RELAYS_ADVICE,
            }));
        }
        let what = format!("no relay of {} is reached: {reasons}: {RELAYS_ADVICE}; dialling on", devices.join(", "));
        self.output.line(printable(&what))
    }

    /// Says how a catch-up went, in a run that stays.
    fn caught_up(&mut self) -> Result<(), Failure> {
        let Some(took) = self.rounds.values().map(|round| round.started.elapsed()).max().filter(|_| !self.args.json)
        else {
            return Ok(());
        };
        let changes = self.traffic.in_round();
        self.output.line(format_args!("in sync; {} changes {}", thousands(changes), pace(changes, took)))
    }

    /// Says how a run with `--once` went.
    fn summary(&mut self) -> Result<(), Failure> {
        self.look()?;
        let took = self.started.elapsed();
        let Traffic { received, sent, .. } = self.traffic;
        if self.args.json {
            let hub = self.rounds.keys().next().filter(|_| self.rounds.len() == 1).map(ToString::to_string);
            return self.output.json(&json!({
                "event": "done", "peer": hub, "changes_received": received, "changes_sent": sent,
                "seconds": took.as_secs_f64(),
            }));
        }
        let pace = pace(received + sent, took);
        self.output.line(format_args!(
            "in sync; received {} changes, sent {} {pace}",
            thousands(received),
            thousands(sent)
        ))
    }

    fn interrupted(&mut self) -> Result<(), Failure> {
        if self.args.once {
            return Err(Failure::network(
                "interrupted before both sides had caught up",
                "sync again, it goes on from there",
            ));
        }
        if !self.args.json {
            self.output.line("stopped")?;
        }
        Ok(())
    }

    /// Says once why there is no connection, in a run that waits for one.
    fn explain_silence(&mut self) -> Result<(), Failure> {
        self.offline = None;
        let far = &self.args.far;
        let unreached = self.way.unreached().unwrap_or_else(|| self.way.silence());
        if self.args.json {
            let mut line = json!({
                "event": "unreachable", "url": far, "kind": unreached.kind, "reason": unreached.reason,
                "advice": unreached.advice,
            });
            if let Some(status) = unreached.status {
                line["status"] = json!(status);
            }
            return self.output.json(&line);
        }
        let what = unreached.failure(far, " yet");
        self.output.line(printable(&format!("{what}; dialling on")))
    }

    /// Why a run with `--once` gave up.
    fn gave_up(&mut self) -> Failure {
        if let said @ Some(_) = self.said.take() {
            return ended(&self.args.file, said);
        }
        let (far, seconds) = (&self.args.far, self.args.timeout);
        if let Some(refusal) = self.rounds.values_mut().find_map(|round| round.refusal.take()) {
            return refusal;
        }
        if self.rounds.is_empty() {
            let unreached = self.way.unreached().unwrap_or_else(|| self.way.silence());
            return unreached.failure(far, &format!(" within {seconds} s"));
        }
        if let Some((devices, reasons)) = self.way.without_relays() {
            let what = format!("no relay of {} reached within {seconds} s: {reasons}", devices.join(", "));
            return Failure::network(printable(&what), RELAYS_ADVICE);
        }
        let advice = self.way.patience();
        let devices = self.devices().join(", ");
        if !devices.is_empty() {
            let what = format!("{devices} did not say within {seconds} s that everything is there");
            return Failure::network(printable(&what), advice);
        }
        Failure::network(format!("connected to {far}, but nothing moved for {seconds} s"), advice)
    }
}

impl Round {
    fn new() -> Self {
        Self { started: Instant::now(), has_received_all: false, has_sent_all: false, is_done: false, refusal: None }
    }

    fn is_caught_up(&self) -> bool {
        self.has_received_all && self.has_sent_all
    }
}

/// Changes in both directions, over all connections of a run.
#[derive(Debug, Default)]
struct Traffic {
    received: u64,
    sent: u64,
    /// What the present connection's counters say.
    connection: (u64, u64),
    /// The sum when the present connection began.
    before: u64,
}

impl Traffic {
    /// Counters of a new connection start from zero.
    fn begin(&mut self) {
        self.before = self.received + self.sent;
        self.connection = (0, 0);
    }

    /// Says whether anything moved.
    fn update(&mut self, received: u64, sent: u64) -> bool {
        let (old_received, old_sent) = self.connection;
        // A connection that has ended takes its counters with it.
        let more = (received.saturating_sub(old_received), sent.saturating_sub(old_sent));
        self.connection = (received.max(old_received), sent.max(old_sent));
        self.received += more.0;
        self.sent += more.1;
        more != (0, 0)
    }

    fn in_round(&self) -> u64 {
        self.received + self.sent - self.before
    }
}

/// How many are to come nobody knows before the end, so it counts up.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} changes, {msg}, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

fn pace(changes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if changes == 0 || seconds <= 0.0 {
        return format!("in {seconds:.2} s");
    }
    format!("in {seconds:.2} s ({} changes/s)", thousands((changes as f64 / seconds) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_adds_up_over_connections() {
        let mut traffic = Traffic::default();
        traffic.begin();
        assert!(traffic.update(10, 5));
        assert!(!traffic.update(10, 5));
        assert!(!traffic.update(0, 0));
        traffic.begin();
        assert!(traffic.update(1, 0));
        assert_eq!((traffic.received, traffic.sent, traffic.in_round()), (11, 5, 1));
    }

    #[test]
    fn a_pace_needs_changes() {
        assert_eq!(pace(0, Duration::from_secs(1)), "in 1.00 s");
        assert_eq!(pace(5000, Duration::from_secs(2)), "in 2.00 s (2,500 changes/s)");
    }
}
