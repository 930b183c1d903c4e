//! The command line, as clap types. The help texts are written for somebody who meets the program for the first time.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use litemesh::proto::{Access, Rights};

use crate::exit_code;

/// Keep copies of an SQLite database the same on any number of machines.
///
/// Litemesh makes chosen tables of an ordinary SQLite file replicated. Every copy can be written at any time, online or
/// not, by any program that loads the engine; copies that meet end up with the same rows, and nobody has to resolve
/// conflicts.
#[derive(Debug, Parser)]
#[command(
    name = "litemesh",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_long_help = after_help()
)]
pub(crate) struct Cli {
    /// Say more on standard error: -v for what happens, -vv for details. RUST_LOG has the last word.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

fn after_help() -> String {
    format!(
        "See it work:\n  litemesh demo\n\n\
         From nothing to two copies that stay the same:\n  \
         echo 'CREATE TABLE todo (id TEXT PRIMARY KEY NOT NULL, title TEXT);' > schema.sql\n  \
         litemesh init hub.db --schema schema.sql\n  \
         litemesh serve hub.db &\n  \
         litemesh init copy.db --schema schema.sql\n  \
         litemesh sql copy.db \"INSERT INTO todo VALUES ('a', 'write docs')\"\n  \
         litemesh sync copy.db http://127.0.0.1:4646 --once\n  \
         litemesh diff hub.db copy.db\n\n{}",
        exit_code::help()
    )
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(InitArgs),
    Serve(ServeArgs),
    Sync(SyncArgs),
    Stdio(StdioArgs),
    Pair(PairArgs),
    Join(JoinArgs),
    Peers(PeersArgs),
    Unpair(UnpairArgs),
    Sql(SqlArgs),
    Status(StatusArgs),
    Diff(DiffArgs),
    Doctor(DoctorArgs),
    Fork(ForkArgs),
    Token(TokenArgs),
    Demo(DemoArgs),
    Completions(CompletionsArgs),
}

/// Make tables of a file replicated
///
/// Makes the tables named by --table replicated, or all tables of the file. A table that cannot replicate is refused with
/// the reason and what to write instead. Everything happens in one transaction: after an error the file is as it was.
/// Tables that are replicated already stay as they are.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh init todo.db --schema schema.sql       make a new file and replicate all its tables\n  \
    litemesh init todo.db --table todo --table tag  replicate two tables of an existing file")]
pub(crate) struct InitArgs {
    /// The SQLite file
    pub(crate) file: PathBuf,

    /// Run the SQL of this file first; makes FILE where it does not exist
    #[arg(long, value_name = "SQL_FILE")]
    pub(crate) schema: Option<PathBuf>,

    /// A table to replicate; may be given several times [default: all tables]
    #[arg(long = "table", value_name = "T")]
    pub(crate) tables: Vec<String>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Serve a file as a hub over HTTP
///
/// Other copies join with `litemesh sync`, or with any peer that speaks the protocol. The hub syncs with all of them, and
/// passes on what each of them writes. Programs may go on writing to FILE meanwhile. SIGINT (Ctrl-C) and SIGTERM end it.
///
/// On a loopback address everybody may read and write. On any other, and wherever --tokens is given, a client must show a
/// token that `litemesh token new` made, unless --public lets in those that have none.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh serve hub.db\n  \
    litemesh serve hub.db --listen 127.0.0.1:0 --json        a free port; the first line of output tells which\n  \
    litemesh serve hub.db --listen 0.0.0.0:4646 --tokens hub.tokens --tls-cert cert.pem --tls-key key.pem\n  \
    litemesh serve hub.db --listen 0.0.0.0:4646 --tokens hub.tokens --public=read\n\n\
With --json, each line of standard output is one JSON object with the member `event`. The first is\n  \
    {\"event\":\"listening\",\"url\":\"http://127.0.0.1:4646\",\"site_id\":\"<32 hex digits>\"}\n\
then `connect`, `sync`, `eose`, `served`, `change`, `outdated`, `disconnect`, `error` and `lagged` as they happen.\n\
The last is `stats`, with what the server has done: connections, messages, bytes, and what was refused.")]
pub(crate) struct ServeArgs {
    /// The SQLite file, made replicated by `litemesh init`
    pub(crate) file: PathBuf,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4646")]
    pub(crate) listen: SocketAddr,

    /// The path under which the routes stream, sync and data are served
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = parse_base_path)]
    pub(crate) path: String,

    /// Let in those who show a token of this file, which `litemesh token` writes; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,

    /// Let in those who show no token, too: to read, or to read and write [without =RIGHTS: read-write]
    #[arg(long, value_name = "RIGHTS", num_args = 0..=1, require_equals = true, default_missing_value = "read-write")]
    pub(crate) public: Option<RightsArg>,

    /// Speak TLS with the certificates of this PEM file; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Most clients that are connected at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_connections: u32,

    /// Most sockets of one address, of which a client has two; behind a proxy on another machine all have its address
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_sockets_per_address: u32,

    /// Largest request body that is read, in bytes; K, M and G are understood
    #[arg(long, value_name = "BYTES", default_value = "32M", value_parser = parse_bytes)]
    pub(crate) max_body: usize,

    /// Most bytes of request bodies, of all clients, that are held at once; K, M and G are understood
    #[arg(long, value_name = "BYTES", default_value = "512M", value_parser = parse_bytes)]
    pub(crate) max_bodies: usize,

    /// How often a silent stream is sent a sign of life [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, hide = true)]
    pub(crate) ping_interval: Option<Duration>,

    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Sync a file with a hub, with another file, or with paired devices
///
/// Sends what the other side lacks and merges what it has. Then it stays: what any program writes to FILE goes there at once,
/// and what the other side hears of is merged here. A lost connection is dialled again, and nothing is lost. SIGINT (Ctrl-C) and
/// SIGTERM end it.
///
/// With --once it ends when both sides have everything that the other had.
///
/// The other side is a hub, a file on another machine, or a file on this one. A hub is talked to over a WebSocket where the way there
/// lets one through, else over a stream and POSTs; ws:// and wss:// take the first or nothing. For ssh://HOST/PATH `ssh` starts
/// `litemesh stdio PATH` on HOST, where litemesh must be in the PATH; /~/ begins a path in the folder of the user. nostr: stands for all
/// devices that `litemesh pair` and `litemesh join` paired this file with; with --once all of them must be there.
///
/// A hub that asks for a token gets that of --token-file, or that of the variable LITEMESH_TOKEN. Where the token is to read
/// only, or for some tables only, nothing else is sent.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh sync todo.db http://127.0.0.1:4646          stay in sync\n  \
    litemesh sync todo.db http://127.0.0.1:4646 --once   exchange what there is, then end\n  \
    litemesh sync todo.db https://hub.example.com --token-file ~/.hub-token\n  \
    litemesh sync todo.db wss://hub.example.com          by a WebSocket, or not at all\n  \
    litemesh sync todo.db ssh://me@example.com/~/todo.db --once\n  \
    litemesh sync todo.db /media/stick/todo.db --once\n  \
    litemesh sync todo.db nostr:\n\n\
With --json, each line of standard output is one JSON object with the member `event`, as of `litemesh serve --json`;\n\
`unreachable` says why no hub or relay was reached yet, its member `kind` in one word; `access` what the hub lets us do, where\n\
that is not everything; `waiting` which paired devices a run with --once waits for; the last of such a run is `done`.")]
pub(crate) struct SyncArgs {
    /// The SQLite file, made replicated by `litemesh init`
    pub(crate) file: PathBuf,

    /// A hub as `litemesh serve` prints it, ssh://[USER@]HOST[:PORT]/PATH, a SQLite file, or nostr:
    pub(crate) far: String,

    /// Show a hub the token in this file [default: the variable LITEMESH_TOKEN, if it is set]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Trust the certificates of this PEM file, and no others, instead of those that the system trusts
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// For ssh://: the program to start, with its options
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub(crate) ssh: String,

    /// End when both sides have caught up
    #[arg(long)]
    pub(crate) once: bool,

    /// With --once: give up after so long without a connection, or without anything moving on it
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,

    /// How long to wait before the first new dial; each one that fails doubles it [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, hide = true)]
    pub(crate) reconnect_delay: Option<Duration>,

    /// Silence of the hub after which the connection counts as dead, at least three of its ping intervals [default: 90]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, hide = true)]
    pub(crate) idle_timeout: Option<Duration>,

    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Sync a file over standard input and output
///
/// What `litemesh sync FILE ssh://HOST/PATH` starts at the other end; any program that connects two pairs of pipes can do the same.
/// Frames of wire v2 go both ways (docs/protocol.md). It ends when its input does.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh sync todo.db ssh://me@example.com/~/todo.db        starts `litemesh stdio ./todo.db` there\n  \
    command=\"litemesh stdio --read-only todo.db\" ssh-ed25519 AAAA...   a line of ~/.ssh/authorized_keys")]
pub(crate) struct StdioArgs {
    /// The SQLite file, made replicated by `litemesh init`
    pub(crate) file: PathBuf,

    /// The other side may read, and change nothing
    #[arg(long)]
    pub(crate) read_only: bool,
}

/// Pair a file with one on another device, through Nostr relays
///
/// Prints a connection string, also as a QR code, and waits up to ten minutes for `litemesh join` on the other device. Both then keep
/// the pairing, with a key of their own for it, in FILE-nostr, which only the owner can read. `litemesh sync FILE nostr:` syncs with
/// everyone paired. The devices need not reach each other, nor be there at the same time: relays keep what one sends until the
/// other reads it, encrypted, for a week.
///
/// Whoever has the connection string within the ten minutes is paired, and may read and write everything that replicates.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh pair todo.db --relay wss://relay.example.org --relay wss://relay.example.net\n  \
    litemesh join todo.db 'nostr+keepai://...'      on the other device\n  \
    litemesh sync todo.db nostr:                    on both\n\n\
With --json, each line of standard output is one JSON object: first `connection_string`, then `paired`;\nin between `unreachable` where no relay is reached, with the reason.")]
pub(crate) struct PairArgs {
    /// The SQLite file, made replicated by `litemesh init`
    pub(crate) file: PathBuf,

    /// A relay where both meet, ws:// or wss://; may be given several times, and one that works is enough
    #[arg(long = "relay", value_name = "URL", required = true)]
    pub(crate) relays: Vec<String>,

    /// What the other side will call this device [default: the name of this machine]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Join the device that shows a connection string
///
/// The other half of `litemesh pair`. Waits 30 seconds for the other device to answer.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh join todo.db 'nostr+keepai://...'\n  \
    litemesh join todo.db - < string.txt      others on this machine cannot read it from the list of processes")]
pub(crate) struct JoinArgs {
    /// The SQLite file, made replicated by `litemesh init`
    pub(crate) file: PathBuf,

    /// What `litemesh pair` printed; - reads it from standard input
    #[arg(value_name = "STRING")]
    pub(crate) string: String,

    /// What the other side will call this device [default: the name of this machine]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// List the devices that a file is paired with
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  litemesh peers todo.db\n  litemesh peers todo.db --json | jq -r '.[].peer'")]
pub(crate) struct PeersArgs {
    /// The SQLite file
    pub(crate) file: PathBuf,

    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// End a pairing
///
/// Forgets the keys and how far the streams were. A `litemesh sync FILE nostr:` that runs lets go of the device within seconds. The
/// other side is told nothing: it keeps what it has, and what it sends is read by nobody.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  litemesh unpair todo.db 4f1c9a")]
pub(crate) struct UnpairArgs {
    /// The SQLite file
    pub(crate) file: PathBuf,

    /// The device, by its name or by the beginning of its site id, as `litemesh peers` shows them
    pub(crate) device: String,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Run SQL with the engine loaded
///
/// Writes to replicated tables are recorded, so that they reach other copies. The SQL comes from the command line, else
/// from standard input, else from a prompt with history. The SQL surface of CRSqlite is there: crsql_changes, crsql_as_crr(),
/// crsql_begin_alter() and crsql_commit_alter(), crsql_fract_as_ordered() and the others. crsql_check() lists what is wrong
/// with the file.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh sql todo.db \"SELECT * FROM todo\"\n  \
    litemesh sql todo.db --json \"SELECT id, title FROM todo\" | jq '.[].title'\n  \
    litemesh sql todo.db < migration.sql\n  \
    litemesh sql todo.db                                 a prompt; .help lists its commands\n\n\
--json prints the rows of the last query as one array of objects. A BLOB is {\"blob\":\"<hex>\"}, an infinite real\n\
{\"real\":\"Infinity\"} or {\"real\":\"-Infinity\"}; integers are exact, whatever their size.")]
pub(crate) struct SqlArgs {
    /// The SQLite file
    pub(crate) file: PathBuf,

    /// One or more statements, separated by semicolons [default: standard input, or a prompt]
    pub(crate) sql: Option<String>,

    /// Print the rows of the last query as JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,

    /// Print the rows of the last query as CSV with a header line
    #[arg(long)]
    pub(crate) csv: bool,
}

/// Show what a file holds
///
/// The site id, versions, the replicated tables with their rows, tombstones and sizes, and how far every other site's
/// changes are held. Reads only; the file may be in use.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  litemesh status todo.db\n  litemesh status todo.db --json | jq .db_version")]
pub(crate) struct StatusArgs {
    /// The SQLite file
    pub(crate) file: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compare the replicated tables of two files
///
/// Says that they are equal (exit code 0), or which rows and cells differ (exit code 1). Reads only; the files may be in
/// use.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  litemesh diff hub.db copy.db\n  litemesh diff hub.db copy.db --json --limit 1000"
)]
pub(crate) struct DiffArgs {
    /// One SQLite file
    pub(crate) a: PathBuf,

    /// The other
    pub(crate) b: PathBuf,

    /// Show at most so many differing rows of each table; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: usize,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Find what is wrong with a file, and repair it
///
/// Checks that rows and their clocks agree, that triggers, indexes and shadow tables are there and do what they must, and
/// that the file itself is whole (`PRAGMA integrity_check`). Each finding says what can be done about it. The same list is
/// there in SQL: SELECT * FROM crsql_check().
///
/// Reads only, and the file may be in use, unless --repair, --merge-staged or --forget-staged is given. --repair mends what can be mended without a decision, in one
/// transaction. No row of a table is changed by it; rows and cells that were written past the triggers are sent to other
/// copies as if they were written now.
///
/// The exit code is 0 if the file is sound (or is now), 1 if something worse than a note is left.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh doctor todo.db\n  \
    litemesh doctor todo.db --repair\n  \
    litemesh doctor todo.db --json | jq '.groups[] | {kind, table, count}'")]
pub(crate) struct DoctorArgs {
    /// The SQLite file
    pub(crate) file: PathBuf,

    /// Repair what needs no decision
    #[arg(long)]
    pub(crate) repair: bool,

    /// With --repair: rows that are gone here although nobody was told are deleted at all other copies, too
    #[arg(long, requires = "repair")]
    pub(crate) bury: bool,

    /// Merge what came of catch-ups that broke off and will not go on: what is there of them becomes visible without the rest
    #[arg(long)]
    pub(crate) merge_staged: bool,

    /// Forget what came of catch-ups that broke off and is not merged; a sender that comes back after all sends it again
    #[arg(long)]
    pub(crate) forget_staged: bool,

    /// Show at most so many findings of each kind and table; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: usize,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a copied file a site of its own
///
/// A copy of a file has the site id of its original, and two files that write under one id hide changes from everybody who
/// hears of both; `litemesh sync` and `litemesh serve` refuse each other then. This gives the copy a new site id, in one
/// transaction: what it took over counts as the original's, what it writes from now on as its own. Nothing that copy and
/// original have in common is sent again when they meet.
///
/// Fork a copy before anything is written to it. If that is too late, --copied-at keeps apart what it wrote.
///
/// No other program may have the file open.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh sql hub.db \"VACUUM INTO 'copy.db'\" && litemesh fork copy.db\n  \
    litemesh fork copy.db --copied-at 1200   what was written to the copy after version 1200 is its own")]
pub(crate) struct ForkArgs {
    /// The SQLite file: the copy
    pub(crate) file: PathBuf,

    /// The db version of the original when it was copied, as `litemesh status` shows it [default: that of the copy now]
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i64).range(0..))]
    pub(crate) copied_at: Option<i64>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make, list and revoke tokens for a hub
///
/// A token lets its holder read, or read and write, all replicated tables or some. The hub has a file with the tokens'
/// hashes (`litemesh serve --tokens FILE`) and looks at it again when it changes. The token itself is printed once, when it
/// is made.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh token new hub.tokens \"Ada's phone\"\n  \
    litemesh token new hub.tokens kiosk --rights read --table menu --table hours\n  \
    litemesh token list hub.tokens\n  \
    litemesh token revoke hub.tokens 0123456789abcdef")]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    New(NewTokenArgs),
    List(ListTokensArgs),
    Revoke(RevokeTokenArgs),
}

/// Make a token and print it
///
/// The token is printed this once and kept nowhere: put it into a file for `litemesh sync --token-file`. FILE gets a line with its
/// hash, and is made where it does not exist.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh token new hub.tokens \"Ada's phone\" > ada.token\n  \
    litemesh token new hub.tokens kiosk --rights read --table menu --table hours")]
pub(crate) struct NewTokenArgs {
    /// The file of hashed tokens
    pub(crate) file: PathBuf,

    /// What you call it, for lists
    pub(crate) name: String,

    /// What the holder may do
    #[arg(long, value_name = "RIGHTS", default_value = "read-write")]
    pub(crate) rights: RightsArg,

    /// Only this table, both ways; may be given several times [default: all tables]
    #[arg(long = "table", value_name = "T")]
    pub(crate) tables: Vec<String>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// List the tokens of a file
///
/// Shows the id, the rights, the tables and the name of each. The tokens themselves nobody can show.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  litemesh token list hub.tokens\n  litemesh token list hub.tokens --json | jq '.[].id'"
)]
pub(crate) struct ListTokensArgs {
    /// The file of hashed tokens
    pub(crate) file: PathBuf,

    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// Revoke a token
///
/// A hub that runs ends the connections of its holder within a second or two.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  litemesh token revoke hub.tokens 0123456789abcdef")]
pub(crate) struct RevokeTokenArgs {
    /// The file of hashed tokens
    pub(crate) file: PathBuf,

    /// The id, as `litemesh token list` shows it: 16 hex digits, the middle part of the token
    pub(crate) id: String,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RightsArg {
    /// Get all changes
    Read,
    /// Get all changes, and send some
    ReadWrite,
}

impl RightsArg {
    pub(crate) fn access(self) -> Access {
        Access::new(match self {
            Self::Read => Rights::Read,
            Self::ReadWrite => Rights::ReadWrite,
        })
    }
}

/// Watch three real files become equal
///
/// Makes three SQLite files, serves one as a hub on a free loopback port over HTTP, and syncs the other two with it; or through a
/// Nostr relay of its own, where the other two are paired with it by strings, or through channels in memory. All three write at
/// once: inserts, updates of the same cells, deletes against updates, a transaction of several tables.
/// Two go offline, all go on writing, and they meet again. Then it compares the files and says what each conflict came to
/// and how fast it went. The exit code is 0 only if the three files are equal.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh demo\n  \
    litemesh demo --rows 100000\n  \
    litemesh demo --transport nostr\n  \
    litemesh demo --dir /tmp/demo --keep   look at the files, join the hub with a copy of your own")]
pub(crate) struct DemoArgs {
    /// Make the files in this folder and keep them [default: a temporary folder, removed at the end]
    #[arg(long, value_name = "D")]
    pub(crate) dir: Option<PathBuf>,

    /// Leave the hub running until Ctrl-C, and say how to join it
    #[arg(long)]
    pub(crate) keep: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    /// How the three are connected
    #[arg(long, value_name = "KIND", default_value = "http")]
    pub(crate) transport: DemoTransport,

    /// Rows that the hub has before the others join
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) rows: u32,
}

/// How the files of the demo are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DemoTransport {
    /// A hub over HTTP: streams and POSTs
    Http,
    /// A hub over WebSockets
    Ws,
    /// A Nostr relay
    Nostr,
    /// Streams of bytes in memory
    Channel,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    litemesh completions bash > ~/.local/share/bash-completion/completions/litemesh\n  \
    litemesh completions zsh > ~/.zfunc/_litemesh\n  \
    litemesh completions fish > ~/.config/fish/completions/litemesh.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

fn parse_base_path(text: &str) -> Result<String, String> {
    let path = text.trim_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    if path.chars().all(is_plain) && !path.contains("//") {
        Ok(format!("/{path}"))
    } else {
        Err("a path such as /sync, of letters, digits, '-', '.', '_', '~' and '/'".to_owned())
    }
}

/// Smallest body limit that still lets every batch of an ordinary peer in.
const MAX_BODY_MIN: usize = litemesh::proto::limits::V1_BODY_BYTES_MAX;

fn parse_bytes(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: usize = digits.parse().map_err(|_| "a number of bytes such as 33554432 or 32M".to_owned())?;
    let bytes = number.checked_mul(1 << shift).ok_or("too large")?;
    if bytes < MAX_BODY_MIN {
        return Err(format!("at least {MAX_BODY_MIN}, or ordinary peers could not send their batches"));
    }
    Ok(bytes)
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.filter(|duration| !duration.is_zero()).ok_or_else(|| "a number of seconds such as 30 or 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(parse_bytes("2M"), Ok(2 << 20));
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
        assert_eq!(parse_bytes("1g"), Ok(1 << 30));
        for wrong in ["", "M", "-1", "1T", "1K", "99999999999999999999", "99999999999G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn seconds_may_have_a_fraction() {
        assert_eq!(parse_seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_seconds("0.05"), Ok(Duration::from_millis(50)));
        for wrong in ["", "0", "-1", "NaN", "inf", "1e99", "1s"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn base_paths_get_one_leading_slash() {
        for (text, path) in [("/", "/"), ("", "/"), ("sync", "/sync"), ("/api/worker/", "/api/worker")] {
            assert_eq!(parse_base_path(text).as_deref(), Ok(path));
        }
        for wrong in ["/a b", "/a?b", "/{x}", "/a//b", "/*x"] {
            assert!(parse_base_path(wrong).is_err(), "{wrong}");
        }
    }
}
