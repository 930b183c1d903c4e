//! [`Hub`]: the process that a peer comes to, and what it is told, a line at a time.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use litemesh::{Database, Peer};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};

use crate::way::Carrier;
use crate::{Error, latency, process, workload};

pub struct Hub {
    /// Where it is, for [`Way::open`](crate::way::Way::open).
    pub far: String,
    process: Process,
}

enum Process {
    /// It stands, and is told by its standard input.
    Ours(Box<Talk>),
    /// The peer starts it, and it is told by a socket.
    OfPeer(UnixListener),
}

/// Orders and their answers.
pub struct Talk {
    orders: Box<dyn AsyncWrite + Send + Unpin>,
    answers: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
    child: Option<Child>,
}

impl Hub {
    pub async fn start(carrier: Carrier, file: &Path) -> Result<Self, Error> {
        if carrier == Carrier::Channel {
            let far = file.to_str().ok_or("the path is no text")?.to_owned();
            return Ok(Self { far, process: Process::OfPeer(UnixListener::bind(socket_of(file))?) });
        }
        let mut child = Command::new(std::env::current_exe()?)
            .arg("hub")
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = child.stdin.take().ok_or("no stdin")?;
        let answers = child.stdout.take().ok_or("no stdout")?;
        let mut talk = Talk::new(answers, orders, Some(child));
        Ok(Self { far: talk.answer().await?, process: Process::Ours(Box::new(talk)) })
    }

    /// With whom to talk. For a channel the peer must have come.
    pub async fn talk(self) -> Result<Talk, Error> {
        match self.process {
            Process::Ours(talk) => Ok(*talk),
            Process::OfPeer(listener) => {
                let (read, write) = listener.accept().await?.0.into_split();
                Ok(Talk::new(read, write, None))
            }
        }
    }
}

impl Talk {
    fn new(
        answers: impl AsyncRead + Send + Unpin + 'static,
        orders: impl AsyncWrite + Send + Unpin + 'static,
        child: Option<Child>,
    ) -> Self {
        let answers: Box<dyn AsyncRead + Send + Unpin> = Box::new(answers);
        Self { orders: Box::new(orders), answers: BufReader::new(answers).lines(), child }
    }

    pub async fn order(&mut self, order: &str) -> Result<(), Error> {
        Ok(self.orders.write_all(format!("{order}\n").as_bytes()).await?)
    }

    pub async fn answer(&mut self) -> Result<String, Error> {
        Ok(self.answers.next_line().await?.ok_or("the hub ended")?)
    }

    /// Ends the hub; gives its peak memory in KiB.
    pub async fn end(mut self) -> Result<u64, Error> {
        self.orders.shutdown().await?;
        drop(self.orders);
        let memory = self.answers.next_line().await?.ok_or("the hub failed")?.parse()?;
        if let Some(mut child) = self.child {
            child.wait().await?;
        }
        Ok(memory)
    }
}

/// By which a process is told what to do whose input and output are a channel.
pub fn socket_of(file: &Path) -> PathBuf {
    file.with_extension("orders")
}

/// Does what it is told, until there is nothing more: `write KEY` inserts a row, and is answered when it is committed; `arrivals COUNT`
/// is answered at once, and then for each row that comes. Times are nanoseconds of the wall clock, which is the one that processes
/// share.
pub async fn obey(
    db: &Database,
    peer: &Peer,
    mut orders: Lines<impl AsyncBufRead + Unpin>,
    mut answers: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let mut answer = async |line: String| -> Result<(), Error> {
        answers.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(answers.flush().await?)
    };
    while let Some(order) = orders.next_line().await? {
        match order.split_once(' ') {
            Some(("write", key)) => answer(process::insert(db, key)?.to_string()).await?,
            Some(("arrivals", count)) => {
                let mut events = peer.events();
                let before = workload::count(db.lock().connection())?;
                answer("ready".to_owned()).await?;
                for n in 1..=count.parse()? {
                    latency::wait_for_rows(&mut events, db, before + n).await?;
                    answer(process::nanos_now()?.to_string()).await?;
                }
            }
            _ => return Err(format!("no such order: {order}").into()),
        }
    }
    Ok(())
}
