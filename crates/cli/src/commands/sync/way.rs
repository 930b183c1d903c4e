//! [`Way`]: what FAR names, and how it is reached.

use std::io::Read;
use std::path::Path;

use litemesh::channel::{self, Channel, ChannelError};
use litemesh::{Peer, PeerBuilder, SiteId};
use litemesh_http::{DialError, HttpClient};
use litemesh_nostr::NostrTransport;

use super::ssh::{Ending, SshTarget};
use super::unreached::Unreached;
use crate::args::SyncArgs;
use crate::commands::pairings;
use crate::commands::serve::{warn, warn_of_nothing_to_sync};
use crate::database_file;
use crate::failure::Failure;

/// The way to the other side.
pub(super) enum Way {
    Hub(HttpClient),
    /// `litemesh stdio` at the other end of `ssh`.
    Ssh {
        near: Channel,
        ending: Ending,
    },
    /// A file beside, with a peer of its own in this process.
    File {
        near: Channel,
        peer: Peer,
    },
    /// Everyone that the file is paired with, through relays.
    Paired {
        transport: NostrTransport,
        /// What they are called.
        devices: Vec<(SiteId, String)>,
    },
}

/// What stands for all paired devices.
const PAIRED: &str = "nostr:";

impl Way {
    pub(super) async fn find(args: &SyncArgs) -> Result<Self, Failure> {
        let is_hub = args.far.contains("://") && !args.far.starts_with("ssh://");
        if !is_hub && (args.token_file.is_some() || args.ca.is_some()) {
            let advice = "leave them out; `ssh` has options of its own, see --ssh, and relays are told nothing";
            return Err(Failure::usage(format!("--token-file and --ca are for hubs, not for {}", args.far), advice));
        }
        if args.far == PAIRED {
            return Self::paired(&args.file);
        }
        if args.far.starts_with("ssh://") {
            let (near, ending) = SshTarget::parse(&args.far)?.channel(args.ssh.clone());
            return Ok(Self::Ssh { near, ending });
        }
        if !is_hub {
            return Self::file(&args.file, Path::new(&args.far)).await;
        }
        let client = client(args)?;
        if client.exposes_token() {
            warn(&format!("the token goes to {} without encryption: everybody on the way can read it", args.far));
        }
        Ok(Self::Hub(client))
    }

    fn paired(file: &Path) -> Result<Self, Failure> {
        let store = pairings::open(file)?;
        let pairings = pairings::list(file, &store)?.into_iter();
        let devices: Vec<_> = pairings.map(|pairing| (pairing.peer, pairing.device)).collect();
        if devices.is_empty() {
            let advice = "`litemesh pair FILE` here and `litemesh join FILE STRING` on the other device make a pairing";
            return Err(Failure::usage(format!("{} is not paired with any device", file.display()), advice));
        }
        Ok(Self::Paired { transport: NostrTransport::new(store.into()), devices })
    }

    async fn file(own: &Path, path: &Path) -> Result<Self, Failure> {
        if !path.exists() {
            let advice = "name a SQLite file, ssh://HOST/PATH, nostr: for all paired devices, or a hub as `litemesh serve` prints it, \
                          with http:// or https:// before it";
            return Err(Failure::usage(format!("{:?} is no file", path.display().to_string()), advice));
        }
        if let (Ok(own), Ok(path)) = (own.canonicalize(), path.canonicalize())
            && own == path
        {
            return Err(Failure::usage(format!("both sides are {}", path.display()), "name another file"));
        }
        let database = database_file::open(path)?;
        if database_file::replicated_tables(path, &database.lock())?.is_empty() {
            warn_of_nothing_to_sync(path);
        }
        let (near, far) = channel::pair();
        let peer = Peer::builder(database).transport(far).start().await;
        Ok(Self::File { near, peer: peer.map_err(|error| Failure::start(path, &error))? })
    }

    /// Lets a peer go this way.
    pub(super) fn join(&self, builder: PeerBuilder) -> PeerBuilder {
        match self {
            Self::Hub(client) => builder.transport(client.clone()),
            Self::Ssh { near, .. } | Self::File { near, .. } => builder.transport(near.clone()),
            Self::Paired { transport, .. } => builder.transport(transport.clone()),
        }
    }

    /// Why there is no connection, where that is known.
    pub(super) fn unreached(&self) -> Option<Unreached> {
        match self {
            Self::Hub(client) => client.last_error().as_ref().map(Unreached::of_hub),
            Self::Ssh { near, ending } => {
                near.last_error().as_ref().map(|error| Unreached::of_program(error, ending.lasting()))
            }
            Self::File { near, .. } => near.last_error().as_ref().map(Unreached::of_stream),
            Self::Paired { transport, .. } => transport.last_error().map(Unreached::of_pairings),
        }
    }

    /// Before the first dial has ended nothing is known yet but that.
    pub(super) fn silence(&self) -> Unreached {
        match self {
            Self::Hub(_) => Unreached::of_hub(&DialError::TimedOut),
            Self::Ssh { .. } | Self::File { .. } => {
                Unreached::of_stream(&ChannelError::NoPeer { reason: "it has said nothing yet".to_owned() })
            }
            Self::Paired { .. } => Unreached::of_pairings("no relay has been dialled yet".to_owned()),
        }
    }

    /// How many remotes there are.
    pub(super) fn remotes(&self) -> usize {
        match self {
            Self::Hub(_) | Self::Ssh { .. } | Self::File { .. } => 1,
            Self::Paired { devices, .. } => devices.len(),
        }
    }

    /// The paired devices of which this is not so.
    pub(super) fn devices_but(&self, is_so: impl Fn(&SiteId) -> bool) -> Vec<&str> {
        match self {
            Self::Hub(_) | Self::Ssh { .. } | Self::File { .. } => Vec::new(),
            Self::Paired { devices, .. } => {
                devices.iter().filter(|(site, _)| !is_so(site)).map(|(_, device)| device.as_str()).collect()
            }
        }
    }

    /// The paired devices of which no relay can be reached now, and why of each.
    pub(super) fn without_relays(&self) -> Option<(Vec<&str>, String)> {
        let Self::Paired { transport, devices } = self else { return None };
        let unreached = transport.unreached();
        let of_each =
            devices.iter().filter_map(|(site, device)| Some((device.as_str(), unreached.get(site)?.as_str())));
        let (devices, mut reasons): (Vec<&str>, Vec<&str>) = of_each.unzip();
        // Devices that share their relays lack them for the same reasons.
        reasons.dedup();
        (!devices.is_empty()).then(|| (devices, reasons.join("; ")))
    }

    /// What to do where a run with `--once` comes to no end.
    pub(super) fn patience(&self) -> &'static str {
        match self {
            Self::Hub(_) | Self::Ssh { .. } | Self::File { .. } => {
                "sync again, it goes on from there; --timeout gives the other side more time. Where its schema version is older than ours \
                 (`litemesh status`), it takes nothing newer before its upgrade"
            }
            Self::Paired { .. } => {
                "a device that is not there cannot say that it has everything; what was sent is kept by the relays, and --timeout \
                 waits longer. Check the addresses that `litemesh peers` lists; `litemesh unpair` ends what is of no use any more"
            }
        }
    }

    /// Ends what stands at the other end of it, where that is ours.
    pub(super) async fn stop(&self) {
        if let Self::File { peer, .. } = self {
            peer.stop().await;
        }
    }
}

/// The variable that has the token, where no file is given.
const TOKEN_VARIABLE: &str = "LITEMESH_TOKEN";

/// Bytes of a token file that are read; a token has 90.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The client that the options ask for. The token never stands on the command line, which others on the machine can read.
fn client(args: &SyncArgs) -> Result<HttpClient, Failure> {
    let mut builder = HttpClient::builder(args.far.as_str());
    let token = match &args.token_file {
        Some(path) => Some(read_token(path)?),
        None => std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.trim().is_empty()),
    };
    if let Some(token) = token {
        builder = builder.token(&token);
    }
    if let Some(path) = &args.ca {
        let pem = std::fs::read(path).map_err(|error| {
            Failure::database(
                format!("{}: {error}", path.display()),
                "check the path of --ca, and that you may read it",
            )
        })?;
        builder = builder.ca(pem);
    }
    if let Some(delay) = args.reconnect_delay {
        builder = builder.reconnect_delay_min(delay);
    }
    if let Some(timeout) = args.idle_timeout {
        builder = builder.idle_timeout(timeout);
    }
    Ok(builder.build())
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let mut token = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut token));
    match read {
        Ok(_) if !token.trim().is_empty() => Ok(token),
        Ok(_) => Err(Failure::usage(format!("{} has no token", path.display()), "`litemesh token new` prints one")),
        Err(error) => Err(Failure::database(
            format!("{}: {error}", path.display()),
            "check the path of --token-file, and that you may read it",
        )),
    }
}
