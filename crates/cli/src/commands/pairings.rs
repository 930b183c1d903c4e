//! `litemesh pair`, `join`, `peers` and `unpair`: devices that sync through Nostr relays.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use litemesh::SiteId;
use litemesh::engine::StorageError;
use litemesh_nostr::nostr::RelayUrl;
use litemesh_nostr::{ConnectionString, JOIN_TIMEOUT, Listener, PairError, Pairing, Store, StoreError};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::{Value, json};

use crate::args::{JoinArgs, PairArgs, PeersArgs, UnpairArgs};
use crate::database_file;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::{Output, printable, table};
use crate::shutdown::Shutdown;

/// What to do about a connection string that is of no use.
const STRING_ADVICE: &str = "copy the whole line that `litemesh pair` printed";

/// Bytes of standard input that are read for a connection string; one with ten relays has about 600.
const STRING_BYTES_MAX: u64 = 16 * 1024;

/// How long people wait for a relay until they are told why none is reached. Dialling one takes much less.
pub(crate) const RELAYS_PATIENCE: Duration = Duration::from_secs(3);

/// What to do about relays that cannot be reached.
pub(crate) const RELAYS_ADVICE: &str = "check the addresses of the relays, and that this machine is online";

/// Opens the pairings of a file, and makes their file where there is none.
pub(crate) fn open(file: &Path) -> Result<Store, Failure> {
    Store::open(&Store::path_beside(file)).map_err(|error| store(&error))
}

/// The devices that a file is paired with.
pub(crate) fn list(file: &Path, store: &Store) -> Result<Vec<Pairing>, Failure> {
    store.pairings(site(file)?).map_err(|error| self::store(&error))
}

pub(crate) async fn pair(args: &PairArgs) -> Result<ExitCode, Failure> {
    let mut shutdown = Shutdown::listen()?;
    let (site, store) = (site(&args.file)?, open(&args.file)?);
    let device = device_name(args.name.as_deref());
    let listener = Listener::start(site, &device, &args.relays);
    let listener = listener.await.map_err(|error| failure(&error))?;
    let mut output = Output::new();
    let string = listener.connection_string().to_string();
    if args.json {
        output.json(&json!({ "event": "connection_string", "connection_string": string }))?;
    } else {
        output.line(&string)?;
        if let Ok(code) = QrCode::new(&string)
            && Output::is_terminal()
        {
            output.line(in_black_on_white(&code))?;
        }
        output.line("give it to `litemesh join FILE STRING` on the other device within ten minutes; it is a secret")?;
    }
    let relays = listener.relays();
    let paired = listener.paired(&store);
    tokio::pin!(paired);
    let mut has_told_relays = false;
    // Losing a branch loses nothing: what is stored is stored.
    let paired = loop {
        tokio::select! {
            paired = &mut paired => break paired.map_err(|error| failure(&error))?,
            () = shutdown.requested() => return Err(Failure::network("interrupted before anybody joined", "")),
            () = tokio::time::sleep(RELAYS_PATIENCE), if !has_told_relays => {
                if let Some(reason) = relays.unreached() {
                    has_told_relays = true;
                    tell_relays(&mut output, &reason, args.json)?;
                }
            }
        }
    };
    tell(&mut output, &args.file, &paired, args.json)
}

fn tell_relays(output: &mut Output, reason: &str, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return output.json(&json!({
            "event": "unreachable", "kind": "relays", "reason": reason, "advice": RELAYS_ADVICE,
        }));
    }
    output.line(printable(&format!("no relay is reached yet: {reason}: {RELAYS_ADVICE}; dialling on")))
}

/// A code as block characters. In colors of its own, since cameras do not read one that is light on dark, as most terminals are.
fn in_black_on_white(code: &QrCode) -> String {
    let rows = code.render::<Dense1x2>().build();
    let rows: Vec<String> = rows.lines().map(|row| format!("\x1b[30;107m{row}\x1b[0m")).collect();
    rows.join("\n")
}

pub(crate) async fn join(args: &JoinArgs) -> Result<ExitCode, Failure> {
    let mut shutdown = Shutdown::listen()?;
    let (site, store) = (site(&args.file)?, open(&args.file)?);
    let string = read_string(&args.string)?;
    let device = device_name(args.name.as_deref());
    let joining = litemesh_nostr::join(site, &device, &string, &store);
    let paired = tokio::select! {
        paired = joining => paired.map_err(|error| match error {
            // Of the string, whatever it is.
            PairError::Invalid { .. } => Failure::usage(error.to_string(), STRING_ADVICE),
            _ => failure(&error),
        })?,
        () = shutdown.requested() => return Err(Failure::network("interrupted before the other device answered", "")),
    };
    tell(&mut Output::new(), &args.file, &paired, args.json)
}

pub(crate) fn peers(args: &PeersArgs) -> Result<ExitCode, Failure> {
    let pairings = known(&args.file)?.map_or_else(|| Ok(Vec::new()), |store| list(&args.file, &store))?;
    let mut output = Output::new();
    if args.json {
        output.json(&pairings.iter().map(describe).collect::<Vec<Value>>())?;
    } else if pairings.is_empty() {
        output.line(format_args!("{} is not paired with any device", printable(&args.file.display().to_string())))?;
    } else {
        let mut rows = table(["device", "site id", "paired", "relays"]);
        for pairing in &pairings {
            let paired = pairing.paired_at.to_human_datetime();
            let relays = relays(pairing).join("\n");
            rows.add_row([printable(&pairing.device), pairing.peer.to_string(), paired, printable(&relays)]);
        }
        output.line(rows)?;
    }
    Ok(ExitCode::Ok)
}

pub(crate) fn unpair(args: &UnpairArgs) -> Result<ExitCode, Failure> {
    let none = || {
        let what = format!("{} is not paired with {}", args.file.display(), args.device);
        Failure::usage(what, "`litemesh peers FILE` lists the devices")
    };
    let store = known(&args.file)?.ok_or_else(none)?;
    let pairings = list(&args.file, &store)?;
    let is_meant = |pairing: &&Pairing| {
        pairing.device == args.device || pairing.peer.to_string().starts_with(&args.device.to_ascii_lowercase())
    };
    let mut meant = pairings.iter().filter(is_meant);
    let pairing = meant.next().ok_or_else(none)?;
    if meant.next().is_some() {
        let what = format!("{} is the name of more than one device", args.device);
        return Err(Failure::usage(what, "give more of the site id, as `litemesh peers FILE` shows it"));
    }
    store.unpair(pairing.site, pairing.peer).map_err(|error| self::store(&error))?;
    let mut output = Output::new();
    if args.json {
        output.json(&describe(pairing))?;
    } else {
        output.line(format_args!("no longer paired with {} ({})", printable(&pairing.device), pairing.peer))?;
    }
    Ok(ExitCode::Ok)
}

/// The site id of a file. One that never had any gets it, since both sides know each other by it.
fn site(file: &Path) -> Result<SiteId, Failure> {
    let database = database_file::open(file)?;
    let site = database.lock().site();
    site.map_err(|StorageError(error)| Failure::sqlite(file, &error))
}

/// The pairings of a file, where it has any: to look for them makes no file.
fn known(file: &Path) -> Result<Option<Store>, Failure> {
    // Of what is no database nothing is known either.
    drop(database_file::open_read_only(file)?);
    let path = Store::path_beside(file);
    if path.exists() { Store::open(&path).map(Some).map_err(|error| store(&error)) } else { Ok(None) }
}

fn read_string(given: &str) -> Result<ConnectionString, Failure> {
    let wrong = |what: String| Failure::usage(what, STRING_ADVICE);
    let mut read = String::new();
    let text = if given == "-" {
        let result = std::io::stdin().take(STRING_BYTES_MAX).read_to_string(&mut read);
        result.map_err(|error| wrong(format!("standard input: {error}")))?;
        read.as_str()
    } else {
        given
    };
    text.trim().parse().map_err(|error: litemesh_nostr::ConnectionStringError| wrong(error.to_string()))
}

fn device_name(given: Option<&str>) -> String {
    given.map_or_else(|| gethostname::gethostname().to_string_lossy().into_owned(), str::to_owned)
}

fn tell(output: &mut Output, file: &Path, pairing: &Pairing, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        let mut line = describe(pairing);
        line["event"] = json!("paired");
        output.json(&line)?;
    } else {
        output.line(format_args!("paired with {} ({})", printable(&pairing.device), pairing.peer))?;
        output.line(format_args!("litemesh sync {} nostr:", printable(&file.display().to_string())))?;
    }
    Ok(ExitCode::Ok)
}

fn describe(pairing: &Pairing) -> Value {
    json!({
        "peer": pairing.peer.to_string(),
        "device": pairing.device,
        "relays": relays(pairing),
        "paired_at": pairing.paired_at.as_secs(),
        "is_litemesh": pairing.is_litemesh,
    })
}

fn relays(pairing: &Pairing) -> Vec<&str> {
    pairing.relays.iter().map(RelayUrl::as_str).collect()
}

fn store(error: &StoreError) -> Failure {
    Failure::database(error.to_string(), "check the file FILE-nostr and the permissions of its folder")
}

/// Why two devices were not paired.
pub(crate) fn failure(error: &PairError) -> Failure {
    let what = error.to_string();
    match error {
        PairError::Store(error) => store(error),
        PairError::Invalid { .. } => Failure::usage(what, "give relays as wss://HOST or ws://HOST:PORT"),
        PairError::Timeout => Failure::network(
            what,
            format!(
                "nobody answered for {} s: check that `litemesh pair` still waits there, and the relays",
                JOIN_TIMEOUT.as_secs()
            ),
        ),
        PairError::Rejected | PairError::SameSite => Failure::refused(what, ""),
        PairError::Relays { .. } => Failure::network(what, RELAYS_ADVICE),
        _ => Failure::network(what, "check the relays, and that both devices are online"),
    }
}
