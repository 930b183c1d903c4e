//! Scenarios that a user would name, each printing one JSON object a line.
//!
//!     cargo run --release -- all
//!
//! Hub and peer of a catch-up are processes of their own, so that each reports its own peak memory.

mod catch_up;
mod hub;
mod latency;
mod load;
mod local;
mod nostr;
mod nostr_original;
mod process;
mod traffic;
mod way;
mod workload;

use clap::{Parser, Subcommand};

use way::Carrier;
use workload::Text;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// A new peer catches up from a hub, or a hub from a peer: seconds, changes/s, peak memory of both.
    CatchUp {
        /// Rows of three cells each.
        #[arg(long, default_value_t = 100_000)]
        rows: usize,
        #[arg(long, value_enum, default_value = "down")]
        direction: catch_up::Direction,
        /// Both take each other for peers of the original: plain wire v1, without positions and compressed uploads.
        #[arg(long)]
        v1: bool,
        /// Keys like UUIDv4 and random titles, which do not compress.
        #[arg(long)]
        random: bool,
        #[command(flatten)]
        way: way::Options,
    },
    /// From commit on one side to commit on the other, both ways, and from a writer in another process: p50 and p99.
    Latency {
        #[arg(long, default_value_t = 1000)]
        writes: usize,
        #[command(flatten)]
        way: way::Options,
    },
    /// Local inserts, updates and deletes as ratios to plain SQLite, and merge and read in cells/s.
    Local {
        #[arg(long, default_value_t = 100_000)]
        rows: usize,
    },
    /// Two paired devices and a relay: catch-up, bytes of a change, peak memory of both, live latency.
    Nostr {
        #[command(flatten)]
        options: nostr::Options,
    },
    /// Many peers on one hub.
    Load {
        #[command(subcommand)]
        scenario: load::Scenario,
    },
    /// Everything that docs/benchmarks.md shows, but for what many peers do.
    All,
    #[command(hide = true)]
    Hub {
        file: std::path::PathBuf,
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
    },
    #[command(hide = true)]
    Paired { file: std::path::PathBuf },
    #[command(hide = true)]
    Write { file: std::path::PathBuf },
    #[command(hide = true)]
    Stdio { file: std::path::PathBuf },
    #[command(hide = true)]
    Join {
        file: std::path::PathBuf,
        far: String,
        #[arg(long)]
        v1: bool,
        #[command(flatten)]
        way: way::Options,
    },
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    match Arguments::parse().scenario {
        Scenario::CatchUp { rows, direction, v1, random, way } => {
            print(catch_up::run(rows, direction, v1, text(random), way).await?);
        }
        Scenario::Latency { writes, way } => print(latency::run(writes, way).await?),
        Scenario::Local { rows } => print(local::run(rows)?),
        Scenario::Nostr { options } => print(nostr::run(options).await?),
        Scenario::Paired { file } => nostr::sync(&file).await?,
        Scenario::Load { scenario } => print(load::run(scenario).await?),
        Scenario::Hub { file, listen } => process::hub(&file, &listen).await?,
        Scenario::Write { file } => process::write(&file)?,
        Scenario::Stdio { file } => process::stdio(&file).await?,
        Scenario::Join { file, far, v1, way } => process::join(&file, &far, v1, way).await?,
        Scenario::All => {
            print(local::run(100_000)?);
            let over = way::Options::new;
            for carrier in [Carrier::Http, Carrier::Ws, Carrier::Channel] {
                print(latency::run(1000, over(carrier)).await?);
            }
            print(nostr::run(nostr::Options::new(100_000, 1000)).await?);
            for direction in [catch_up::Direction::Down, catch_up::Direction::Up] {
                print(catch_up::run(100_000, direction, false, Text::Counting, over(Carrier::Channel)).await?);
            }
            for (v1, carrier) in [(false, Carrier::Ws), (true, Carrier::Http)] {
                for rows in [33_334, 100_000, 333_334] {
                    for direction in [catch_up::Direction::Down, catch_up::Direction::Up] {
                        print(catch_up::run(rows, direction, v1, Text::Counting, over(carrier)).await?);
                    }
                }
            }
        }
    }
    Ok(())
}

fn text(is_random: bool) -> Text {
    if is_random { Text::Random } else { Text::Counting }
}

fn print(result: serde_json::Value) {
    println!("{result}");
}
