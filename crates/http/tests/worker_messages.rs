//! What two peers of the original posted to each other over a `MessagePort`, and over a WebSocket of JSON the same
//! (docs/transports.md, "Do you need one?").
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::VecDeque;

use futures_util::{SinkExt, StreamExt};
use litemesh_http::HttpServer;
use litemesh_proto::codec::v1::Envelope;
use litemesh_proto::{Limits, PeerMessage, Transport};
use serde_json::Value as Json;
use support::{CLIENT, Report, SERVER, soon, started};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// The messages of one side, with our ids in place of theirs.
fn messages_of(side: &str) -> VecDeque<Json> {
    let text = include_str!("vectors/worker_messages.json");
    let text = text.replace("<WORKER_ID>", &SERVER.to_string()).replace("<TAB_ID>", &CLIENT.to_string());
    let all: Json = serde_json::from_str(&text).unwrap();
    let messages = all["messages"].as_array().unwrap().iter();
    messages.filter(|message| message["from"] == side).map(|message| message["message"].clone()).collect()
}

fn kinds(messages: &VecDeque<Json>) -> Vec<&str> {
    messages.iter().map(|message| message["type"].as_str().unwrap()).collect()
}

fn message_of(envelope: &Envelope<'_>) -> PeerMessage {
    envelope.message().unwrap().verify(&Limits::default()).unwrap()
}

/// The tab is a client by hand, and the worker is our server.
#[tokio::test]
async fn what_a_tab_and_a_worker_say_goes_over_a_socket_as_it_is() {
    let (mut tab, mut worker) = (messages_of("tab"), messages_of("worker"));
    assert_eq!(kinds(&tab), ["connect", "sync", "data", "data", "disconnect"]);
    assert_eq!(kinds(&worker), ["connect", "sync", "data", "data"]);
    let (server, _peer, mut reports) = started(HttpServer::new(), Limits::default()).await;

    // The first `connect` opens the socket. The server says the same as the worker, which asks with the cursor of the peer in these tests.
    let connect = tab.pop_front().unwrap();
    let url = format!("ws://{}/ws?peerId={}", server.address, connect["peerId"].as_str().unwrap());
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "litemesh.v1".parse().unwrap());
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let (mut socket, _) = soon(tokio_tungstenite::client_async(request, stream)).await.unwrap();
    let remote = reports.connect().await;
    assert_eq!((remote.site, remote.is_litemesh), (CLIENT, false));
    for _ in 0..2 {
        let Message::Text(said) = soon(socket.next()).await.unwrap().unwrap() else { panic!("JSON is text") };
        assert_eq!(serde_json::from_str::<Json>(&said).unwrap(), worker.pop_front().unwrap());
    }

    let disconnect = tab.pop_back().unwrap();
    for message in tab {
        soon(socket.send(Message::text(message.to_string()))).await.unwrap();
        let text = message.to_string();
        let envelope = Envelope::parse(text.as_bytes()).unwrap();
        match reports.next().await {
            Report::Sync(from, request) => {
                assert_eq!((envelope.kind(), from, Ok(request)), ("sync", remote, envelope.sync_request()));
            }
            Report::Receive(from, received) => {
                assert_eq!((envelope.kind(), from, received), ("data", remote, message_of(&envelope)));
            }
            other => panic!("{other:?}"),
        }
    }
    for expected in worker {
        let text = expected.to_string();
        let message = message_of(&Envelope::parse(text.as_bytes()).unwrap());
        soon(server.transport.send(remote, message)).await.unwrap();
        let Message::Text(said) = soon(socket.next()).await.unwrap().unwrap() else { panic!("JSON is text") };
        assert_eq!(serde_json::from_str::<Json>(&said).unwrap(), expected);
    }

    // Of a `disconnect` the server takes no notice: whoever joins a port to the socket closes that.
    soon(socket.send(Message::text(disconnect.to_string()))).await.unwrap();
    soon(socket.send(Message::Ping("still?".into()))).await.unwrap();
    assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::Pong("still?".into()));
    soon(socket.close(None)).await.unwrap();
    assert_eq!(reports.disconnect().await.0, remote);
}
