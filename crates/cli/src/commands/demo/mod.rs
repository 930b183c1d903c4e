//! `litemesh demo`: three real files, one of them a hub, become equal, whatever happens on the way.
//!
//! [`run`] tells the story; [`cast`] holds the three sites, [`venue`] is where they meet, [`conflicts`] what they do to the same rows, [`report`] what is
//! shown at the end.

mod cast;
mod conflicts;
mod digest;
mod report;
mod venue;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::args::{DemoArgs, DemoTransport};
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{Output, thousands};
use crate::shutdown::Shutdown;
use indicatif::{ProgressBar, ProgressStyle};

use self::cast::{Cast, SCHEMA};
use self::report::{Pace, Report, Speed};
use self::venue::Venue;

/// What one wait may take before the demo counts as failed, beside a second for each thousand rows.
const PATIENCE: Duration = Duration::from_secs(120);

/// Transactions that each site commits while all are connected.
const LIVE_TRANSACTIONS: u32 = 100;

/// Transactions that each site commits while they are apart, beside the conflicts.
const OFFLINE_TRANSACTIONS: u32 = 50;

/// Single writes whose way from one copy to another is timed.
const LATENCY_SAMPLES: usize = 20;

pub(crate) async fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    if args.keep && !matches!(args.transport, DemoTransport::Http | DemoTransport::Ws) {
        return Err(Failure::usage("only a hub can be joined: --keep goes with --transport http and ws", ""));
    }
    let mut shutdown = Shutdown::listen()?;
    let folder = Folder::make(args.dir.as_deref())?;
    let mut stage = Stage::new(args.json);
    // Losing the demo loses nothing that anybody wants to keep.
    let (report, cast, venue) = tokio::select! {
        played = play(args, folder.path(), &mut stage) => played?,
        () = shutdown.requested() => {
            return Err(Failure::network("the demo was interrupted", "run it again to see its end"));
        }
    };
    stage.end();
    let mut output = Output::new();
    if args.json {
        output.json(&report)?;
    } else {
        report.print(&mut output)?;
        if args.dir.is_some() {
            output.line(format_args!("the files are in {}", folder.path().display()))?;
        }
    }
    cast.go_offline().await;
    if args.keep {
        if !args.json {
            explain_how_to_join(folder.path(), venue.address(), &mut output)?;
        }
        shutdown.requested().await;
    }
    venue.close().await?;
    Ok(if report.is_success() { ExitCode::Ok } else { ExitCode::Different })
}

/// The whole story. Gives the report, and what still runs.
async fn play(args: &DemoArgs, folder: &Path, stage: &mut Stage) -> Result<(Report, Cast, Venue), Failure> {
    let started = Instant::now();
    let patience = PATIENCE + Duration::from_secs(u64::from(args.rows) / 1000);

    stage.begin(&format!("three files; {} tasks in the hub", thousands(args.rows.into())));
    let mut cast = Cast::make(folder, patience)?;
    cast.fill_hub(args.rows).await?;
    let (hub, others) = cast.hub_and_others();
    let venue = Venue::open(args.transport, hub, others).await?;
    cast.hub_serves(venue.hub().clone());

    stage.begin(&format!("laptop and phone join {} and catch up", venue.address()));
    let catch_up = timed(&mut cast, async |cast| cast.go_online(&venue).await).await?;
    stage.paced(&catch_up);

    stage.begin("all three write at once: inserts, the same cells, deletes against updates");
    let at_once = timed(&mut cast, async |cast| cast.write_on_all_sides(LIVE_TRANSACTIONS).await).await?;
    stage.paced(&at_once);

    stage.begin("laptop and phone go offline, and all three go on writing");
    cast.go_offline_and_tell_hub(&venue).await?;
    cast.write_on_all_sides(OFFLINE_TRANSACTIONS).await?;
    cast.write_conflicts().await?;

    stage.begin("they come back");
    let reunion = timed(&mut cast, async |cast| cast.go_online(&venue).await).await?;
    stage.paced(&reunion);

    stage.begin("single writes on the laptop, until the phone has them");
    let latencies = cast.latencies(LATENCY_SAMPLES).await?;
    cast.converge().await?;

    stage.begin("comparing the files");
    let speed = Speed::new(catch_up, at_once, reunion, &latencies);
    let report = cast.report(venue.address().to_owned(), speed, started.elapsed()).await?;
    Ok((report, cast, venue))
}

/// Runs a part of the story until all three hold everything, and says how many changes travelled how fast.
async fn timed(cast: &mut Cast, part: impl AsyncFnOnce(&mut Cast) -> Result<(), Failure>) -> Result<Pace, Failure> {
    let (started, before) = (Instant::now(), cast.changes_received());
    part(cast).await?;
    cast.converge().await?;
    Ok(Pace::new(cast.changes_received() - before, started.elapsed()))
}

fn explain_how_to_join(folder: &Path, url: &str, output: &mut Output) -> Result<(), Failure> {
    let schema = folder.join("schema.sql");
    output.line(format_args!("the hub runs on at {url}; join it with a copy of your own:"))?;
    output.line(format_args!("  litemesh init mine.db --schema {}", schema.display()))?;
    output.line(format_args!("  litemesh sync mine.db {url}"))?;
    output.line("Ctrl-C stops it")
}

/// Where the files are; removed with this where the user named no place.
enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    fn make(wanted: Option<&Path>) -> Result<Self, Failure> {
        let failed = |place: &Path, error: std::io::Error| {
            Failure::database(format!("cannot make files in {}: {error}", place.display()), "choose another --dir")
        };
        let folder = match wanted {
            Some(path) => {
                std::fs::create_dir_all(path).map_err(|error| failed(path, error))?;
                for name in cast::NAMES {
                    let file = path.join(format!("{name}.db"));
                    if file.exists() {
                        return Err(Failure::usage(
                            format!("{} is there already", file.display()),
                            "give --dir a folder of its own, or remove the files of the last demo",
                        ));
                    }
                }
                Self::Kept(path.to_owned())
            }
            None => Self::Temporary(
                tempfile::Builder::new()
                    .prefix("litemesh-demo-")
                    .tempdir()
                    .map_err(|error| failed(&std::env::temp_dir(), error))?,
            ),
        };
        std::fs::write(folder.path().join("schema.sql"), SCHEMA).map_err(|error| failed(folder.path(), error))?;
        Ok(folder)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

/// Tells on standard error which part of the story runs: a spinner on a terminal, plain lines elsewhere.
struct Stage {
    bar: ProgressBar,
    is_silent: bool,
    number: usize,
    begun: Option<(String, Instant)>,
}

impl Stage {
    fn new(is_silent: bool) -> Self {
        Self { bar: ProgressBar::hidden(), is_silent, number: 0, begun: None }
    }

    fn begin(&mut self, what: &str) {
        self.end();
        self.number += 1;
        self.begun = Some((format!("{}. {what}", self.number), Instant::now()));
        if self.is_silent {
            return;
        }
        self.bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            self.bar.set_style(style);
        }
        self.bar.set_message(format!("{}. {what}", self.number));
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    /// Adds to the present part how fast it went.
    fn paced(&mut self, pace: &Pace) {
        if let Some((what, _)) = &mut self.begun {
            *what = format!("{what}: {pace}");
        }
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
        if let Some((what, begun)) = self.begun.take().filter(|_| !self.is_silent) {
            use std::io::Write;
            // Where standard error is gone nobody follows.
            let _ = writeln!(std::io::stderr(), "{what} [{:.2} s]", begun.elapsed().as_secs_f64());
        }
    }
}
