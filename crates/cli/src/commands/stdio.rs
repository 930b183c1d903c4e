//! `litemesh stdio`: a file over standard input and output, for who starts this program over `ssh`.

use std::io::IsTerminal;

use litemesh::Peer;
use litemesh::channel::{Channel, ChannelError};
use litemesh::proto::{Access, Rights};

use crate::args::StdioArgs;
use crate::database_file;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::shutdown::Shutdown;

pub(crate) async fn run(args: &StdioArgs) -> Result<ExitCode, Failure> {
    let mut shutdown = Shutdown::listen()?;
    if std::io::stdin().is_terminal() || std::io::stdout().is_terminal() {
        return Err(Failure::usage(
            "standard input and output are no streams of another program",
            "`litemesh sync FILE ssh://HOST/PATH` starts this at the other end",
        ));
    }
    let database = database_file::open(&args.file)?;
    let channel = Channel::new();
    let peer = Peer::builder(database).transport(channel.clone()).start().await;
    let peer = peer.map_err(|error| Failure::start(&args.file, &error))?;
    let access = if args.read_only { Access::new(Rights::Read) } else { Access::FULL };
    let ended = tokio::select! {
        () = shutdown.requested() => ChannelError::Stopped,
        ended = serve(&channel, access) => ended,
    };
    peer.stop().await;
    match ended {
        ChannelError::Ended { .. } | ChannelError::Stopped => Ok(ExitCode::Ok),
        ChannelError::Refused { reason } => Err(Failure::refused(reason, "")),
        other => Err(Failure::network(other.to_string(), "`litemesh sync FILE ssh://HOST/PATH` starts this")),
    }
}

/// Serves standard input and output until they end.
pub(crate) async fn serve(channel: &Channel, access: Access) -> ChannelError {
    channel.accept(tokio::io::stdin(), tokio::io::stdout(), access).await
}
