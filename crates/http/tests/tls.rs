//! TLS of the server and of the client, with certificates made here.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use litemesh_http::{DialError, HttpClient, HttpServer, TlsError, TokenFile};
use litemesh_proto::{Access, Limits, Transport, TransportError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::{CLIENT, PATIENCE, RecordingPeer, Report, SERVER, change, changes, eose, started};

/// An authority of a test, and a folder with what it signed.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), issuer }
    }

    fn files(&self) -> (PathBuf, PathBuf) {
        (self.folder.path().join("cert.pem"), self.folder.path().join("key.pem"))
    }

    /// Signs a certificate for this name, and puts it where the server looks.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let (cert_file, key_file) = self.files();
        std::fs::write(&cert_file, cert.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (cert_file, key_file)
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }
}

fn client(server: &support::Running, ca: &str) -> HttpClient {
    let url = format!("https://localhost:{}", server.address.port());
    HttpClient::builder(url).ca(ca).reconnect_delay_min(Duration::from_millis(5)).build()
}

/// Why the last dial failed, once one has.
async fn failure(client: &HttpClient, is_right: impl Fn(&DialError) -> bool) -> DialError {
    let failed = async {
        loop {
            match client.last_error() {
                Some(error) if is_right(&error) => return error,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, failed).await.unwrap_or_else(|_| panic!("{:?}", client.last_error()))
}

/// `known-failures.md` C7: the original speaks plain HTTP.
#[tokio::test]
async fn peers_exchange_messages_over_tls_with_a_token() {
    exchange("https", false).await;
    exchange("https", true).await;
    exchange("wss", true).await;
}

async fn exchange(scheme: &str, is_websocket: bool) {
    let authority = Authority::new();
    let (cert, key) = authority.sign("localhost");
    let tokens = TokenFile::new(authority.folder.path().join("tokens"));
    let token = tokens.add("test", &Access::FULL).unwrap();
    let transport = HttpServer::builder().tls(cert, key).unwrap().tokens(tokens).unwrap().build();
    let (server, _peer, mut reports) = started(transport, Limits::default()).await;
    let url = format!("{scheme}://localhost:{}", server.address.port());
    let builder = HttpClient::builder(url).ca(authority.pem()).token(&token.token);
    let client = builder.websocket(is_websocket).build();
    let (peer, mut client_reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(client.clone())).await;
    let (hub, leaf) = (client_reports.connect().await, reports.connect().await);
    assert_eq!((hub.site, leaf.site), (SERVER, CLIENT));
    assert_eq!(client.is_websocket(), is_websocket);
    server.transport.send(leaf, eose()).await.unwrap();
    client.send(hub, changes(vec![change(1, "x".repeat(100_000))])).await.unwrap();
    loop {
        if let Report::Receive(_, message) = reports.next().await {
            assert_eq!(message.change_count(), 1);
            break;
        }
    }
    loop {
        if let Report::Receive(_, message) = client_reports.next().await {
            assert_eq!(message, eose());
            break;
        }
    }
    client.stop().await;
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_not_spoken_to() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (cert, key) = authority.sign("localhost");
    let (server, _peer, mut reports) =
        started(HttpServer::builder().tls(cert, key).unwrap().build(), Limits::default()).await;
    let untrusting = client(&server, &stranger.pem());
    let (peer, _client_reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(untrusting.clone())).await;
    failure(&untrusting, |error| matches!(error, DialError::Tls { .. })).await;
    untrusting.stop().await;
    // Of another name: the same.
    let other = Authority::new();
    let (cert, key) = other.sign("elsewhere.example");
    let (server, _peer, _reports) =
        started(HttpServer::builder().tls(cert, key).unwrap().build(), Limits::default()).await;
    let misnamed = client(&server, &other.pem());
    let (peer, _client_reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(misnamed.clone())).await;
    failure(&misnamed, |error| matches!(error, DialError::Tls { .. })).await;
    misnamed.stop().await;
    reports.assert_none();
}

#[tokio::test]
async fn a_certificate_is_read_again_when_its_files_change() {
    let (authority, next) = (Authority::new(), Authority::new());
    let (cert, key) = authority.sign("localhost");
    let builder = HttpServer::builder().reload_interval(Duration::from_millis(10));
    let transport = builder.tls(&cert, &key).unwrap().build();
    let (server, _peer, _reports) = started(transport, Limits::default()).await;
    let waiting = client(&server, &next.pem());
    let (peer, mut reports) = RecordingPeer::new(CLIENT);
    peer.start(Arc::new(waiting.clone())).await;
    failure(&waiting, |error| matches!(error, DialError::Tls { .. })).await;
    // One file after the other: in between they do not fit.
    let (new_cert, new_key) = next.sign("localhost");
    std::fs::copy(new_cert, cert).unwrap();
    tokio::task::yield_now().await;
    std::fs::copy(new_key, key).unwrap();
    assert_eq!(reports.connect().await.site, SERVER);
    waiting.stop().await;
}

#[test]
fn files_that_are_no_certificate_and_key_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (cert, key) = authority.sign("localhost");
    let (_, other_key) = other.sign("localhost");
    let refused = |cert: &PathBuf, key: &PathBuf| HttpServer::builder().tls(cert, key).unwrap_err();
    assert!(matches!(refused(&cert, &other_key), TlsError::Pair { .. }));
    assert!(matches!(refused(&key, &key), TlsError::Pem { expected: "certificates", .. }));
    assert!(matches!(refused(&cert, &cert), TlsError::Pem { expected: "a private key", .. }));
    assert!(matches!(refused(&cert.with_extension("none"), &key), TlsError::Io { .. }));
}

#[tokio::test]
async fn a_file_without_an_authority_is_refused_at_start() {
    let client = HttpClient::builder("https://localhost").ca("nonsense").build();
    let (peer, _reports) = RecordingPeer::new(CLIENT);
    assert!(matches!(client.start(peer).await, Err(TransportError::Endpoint { .. })));
}

#[tokio::test]
async fn a_handshake_that_does_not_come_ends_its_socket() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("localhost");
    // A second at most; strangers have 30.
    let transport = HttpServer::builder().tls(cert, key).unwrap().head_timeout(Duration::from_secs(1)).build();
    let (server, _peer, _reports) = started(transport, Limits::default()).await;
    let begun = std::time::Instant::now();
    let mut silent = support::raw::Wire::connect(server.address).await;
    // The head of a record that announces 512 bytes (RFC 8446, 5.1).
    silent.write(&[22, 3, 1, 2, 0]).await;
    assert!(support::soon(silent.is_closed()).await);
    assert_eq!(server.transport.counters().refused_sockets, 0, "closed by the handshake's own limit");
    assert!(begun.elapsed() >= Duration::from_secs(1));
}
