//! Scenarios that a user would name, each printing one JSON object a line.
//!
//!     cargo run --release -- all
//!
//! Hub and peer of a catch-up are processes of their own, so that each reports its own peak memory.

mod catch_up;
mod latency;
mod load;
mod local;
mod nostr;
mod nostr_original;
mod process;
mod workload;

use clap::{Parser, Subcommand};

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
        /// Over streams and POSTs in place of WebSockets.
        #[arg(long)]
        streams: bool,
    },
    /// From commit on one side to commit on the other, both ways, and from a writer in another process: p50 and p99.
    Latency {
        #[arg(long, default_value_t = 1000)]
        writes: usize,
        /// Over streams and POSTs in place of WebSockets.
        #[arg(long)]
        streams: bool,
    },
    /// Local inserts, updates and deletes as ratios to plain SQLite, and merge and read in cells/s.
    Local {
        #[arg(long, default_value_t = 100_000)]
        rows: usize,
    },
    /// Two paired devices and a relay: catch-up, bytes of a change, peak memory of both, live latency.
    Nostr {
        /// Rows of three cells each.
        #[arg(long, default_value_t = 100_000)]
        rows: usize,
        #[arg(long, default_value_t = 1000)]
        writes: usize,
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
    Join {
        file: std::path::PathBuf,
        url: String,
        #[arg(long)]
        v1: bool,
        #[arg(long)]
        streams: bool,
    },
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    match Arguments::parse().scenario {
        Scenario::CatchUp { rows, direction, v1, streams } => print(catch_up::run(rows, direction, v1, streams).await?),
        Scenario::Latency { writes, streams } => print(latency::run(writes, streams).await?),
        Scenario::Local { rows } => print(local::run(rows)?),
        Scenario::Nostr { rows, writes } => print(nostr::run(rows, writes).await?),
        Scenario::Paired { file } => nostr::sync(&file).await?,
        Scenario::Load { scenario } => print(load::run(scenario).await?),
        Scenario::Hub { file, listen } => process::hub(&file, &listen).await?,
        Scenario::Write { file } => process::write(&file)?,
        Scenario::Join { file, url, v1, streams } => process::join(&file, &url, v1, streams).await?,
        Scenario::All => {
            print(local::run(100_000)?);
            print(latency::run(1000, false).await?);
            print(nostr::run(100_000, 1000).await?);
            for v1 in [false, true] {
                for rows in [33_334, 100_000, 333_334] {
                    for direction in [catch_up::Direction::Down, catch_up::Direction::Up] {
                        print(catch_up::run(rows, direction, v1, v1).await?);
                    }
                }
            }
        }
    }
    Ok(())
}

fn print(result: serde_json::Value) {
    println!("{result}");
}
