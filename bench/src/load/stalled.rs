//! Readers that take nothing: they open a stream, ask for everything, and read not one byte more. They acknowledge nothing.

use std::time::Duration;

use litemesh::proto::codec::v2;
use litemesh::proto::limits::CREDIT_MAX;
use litemesh::proto::{SyncRequest, Terms};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::Error;

/// After so long a reader is dropped by the hub, and comes again.
const AGAIN_AFTER: Duration = Duration::from_secs(45);

/// Small, so that the hub's side of the socket is full soon.
const RECEIVE_BUFFER_BYTES: u32 = 4096;

/// Readers that stall until the set is dropped.
pub fn start(address: &str, count: usize) -> JoinSet<()> {
    let mut readers = JoinSet::new();
    for number in 0..count {
        let address = address.to_owned();
        readers.spawn(async move {
            loop {
                match stall(&address, number).await {
                    Ok(_sockets) => tokio::time::sleep(AGAIN_AFTER).await,
                    Err(error) => {
                        eprintln!("a stalled reader could not connect: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        });
    }
    readers
}

async fn stall(address: &str, number: usize) -> Result<[TcpStream; 2], Error> {
    let id = format!("57a11ed0{number:024x}");
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    let mut stream = socket.connect(address.parse()?).await?;
    let request = format!(
        "GET /stream?peerId={id} HTTP/1.1\r\nHost: {address}\r\nAccept: application/vnd.litemesh.frames\r\n\
         Litemesh-Version: 2\r\nLitemesh-Instance: {id}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // The head, and perhaps the hello.
    let mut start = [0; 512];
    if stream.read(&mut start).await? == 0 {
        return Err("no stream".into());
    }
    let terms = Terms { answer: 1, credit: CREDIT_MAX, ..Terms::default() };
    let body = v2::framed(&v2::sync(&SyncRequest { terms: Some(terms), ..SyncRequest::default() }));
    let mut post = TcpStream::connect(address).await?;
    let head = format!(
        "POST /sync HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/vnd.litemesh.frames\r\n\
         Litemesh-Peer: {id}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    post.write_all(&[head.as_bytes(), &body].concat()).await?;
    let read = post.read(&mut start).await?;
    if !start[..read].starts_with(b"HTTP/1.1 200") {
        return Err(String::from_utf8_lossy(&start[..read]).into_owned().into());
    }
    Ok([stream, post])
}
