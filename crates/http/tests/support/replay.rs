//! Replays `http_transcript.json`, which was recorded from the original server, against one of ours.
//!
//! The transcript was made with a database that holds the table `todo(id TEXT primary key not null, title TEXT, done INT,
//! ts INT)` with two rows of one transaction, `r-00000000` and `r-00000001`, with `user_version` 1, and with a body limit of
//! 1 MiB. A peer without a database can play it, too, where it only checks messages; see the callers.

use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::Value;

use super::raw::{EventStream, Head, exchange};

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub request: Option<Request>,
    pub response: Option<Response>,
    /// Of case 61 alone.
    pub frames: Option<Vec<Value>>,
}

#[derive(Deserialize)]
pub struct Request {
    pub method: String,
    pub url: String,
    pub headers: std::collections::BTreeMap<String, String>,
    pub body: Option<String>,
}

#[derive(Deserialize)]
pub struct Response {
    pub status: String,
    pub headers: std::collections::BTreeMap<String, String>,
    pub body: String,
}

/// Cases whose text is an exception of a JavaScript engine or of its SQLite: ours are told apart by status and shape only.
const OWN_TEXT: &[usize] = &[15, 16, 17, 36, 50, 51];

/// Headers that must be as recorded, present or absent.
const HEADERS: &[&str] = &[
    "content-type",
    "vary",
    "cache-control",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "transfer-encoding",
];

/// The stream of the client `c1…`, which most messages of the transcript need.
pub const OPENS_STREAM: usize = 3;
/// Nothing was recorded: the original did not answer.
pub const HEAD_REQUEST: usize = 60;
/// A sequence of frames instead of one exchange.
pub const FRAMES: usize = 61;
/// From here on the transport is not started.
pub const NOT_STARTED: usize = 62;
/// Nothing was recorded: the head comes, and then nothing.
pub const NOT_STARTED_STREAM: usize = 64;

pub fn transcript() -> Vec<Case> {
    serde_json::from_str(include_str!("../vectors/http_transcript.json")).unwrap()
}

/// Plays the cases `cases` in order against the routes that are mounted at `prefix` of `address`, and panics at the first
/// difference. The stream of case [`OPENS_STREAM`] stays open until the end, and is given back.
pub async fn replay(
    address: SocketAddr,
    prefix: &str,
    server_id: &str,
    cases: impl IntoIterator<Item = usize>,
) -> Option<EventStream> {
    let transcript = transcript();
    let mut stream = None;
    for index in cases {
        let case = &transcript[index];
        let (Some(request), Some(expected)) = (&case.request, &case.response) else {
            panic!("case {index}, {}, is no exchange", case.name);
        };
        let name = format!("case {index}, {}", case.name);
        let headers: Vec<String> = request.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let url = format!("{prefix}{}", request.url);
        let expected_body = expected.body.replace("<SERVER_ID>", server_id);
        if index == OPENS_STREAM {
            let mut opened = EventStream::open_with(address, &url, &headers).await;
            check_head(&name, expected, &opened.head);
            // The recorded body is raw; its chunks are one frame each.
            let expected_body = unchunk(&expected.body).replace("<SERVER_ID>", server_id);
            assert_eq!(opened.body(expected_body.len()).await, expected_body, "{name}");
            stream = Some(opened);
            continue;
        }
        let body = request.body.as_ref().map(|body| body_bytes(body));
        let (head, body) = exchange(address, &request.method, &url, &headers, body.as_deref()).await;
        let body = String::from_utf8(body).unwrap();
        check_head(&name, expected, &head);
        let is_chunked = expected.headers.keys().any(|name| name.eq_ignore_ascii_case("transfer-encoding"));
        if OWN_TEXT.contains(&index) {
            let answer: Value = serde_json::from_str(&body).unwrap();
            let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
            assert!(keys == ["error", "type"] || keys == ["type", "error"], "{name}: {body}");
            assert!(answer["type"] == "error" && answer["error"] != "", "{name}: {body}");
        } else if is_chunked {
            assert_eq!(body, unchunk(&expected.body).replace("<SERVER_ID>", server_id), "{name}");
        } else {
            // The 404 of the original names the whole path.
            let expected_body = expected_body.replace(&format!(":{}", request.url), &format!(":{url}"));
            assert_eq!(body, expected_body, "{name}");
        }
    }
    stream
}

fn check_head(name: &str, expected: &Response, head: &Head) {
    assert_eq!(head.line, expected.status, "{name}");
    for header in HEADERS {
        let expected = expected.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(header));
        assert_eq!(head.header(header), expected.map(|(_, value)| value.as_str()), "{name}: {header}");
    }
}

/// `<1048667 bytes>` stands for a message of that size.
fn body_bytes(recorded: &str) -> Vec<u8> {
    let size: Option<usize> =
        recorded.strip_prefix('<').and_then(|rest| rest.strip_suffix(" bytes>")).and_then(|n| n.parse().ok());
    let Some(size) = size else { return recorded.as_bytes().to_vec() };
    let begin = r#"{"type":"sync","peerId":"c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1","cursor":{"peers":{}},"pad":""#;
    let end = "\"}";
    let padding = "x".repeat(size - begin.len() - end.len());
    [begin, &padding, end].concat().into_bytes()
}

fn unchunk(raw: &str) -> String {
    let mut body = String::new();
    let mut rest = raw;
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        // The recording is of ids of 32 digits, and shows them by a shorter name: lengths are those of the real ids.
        let text = tail.split_once("\r\n").map_or(tail, |(text, _)| text);
        assert_eq!(text.replace("<SERVER_ID>", &"0".repeat(32)).len(), size);
        body += text;
        rest = &tail[text.len() + 2..];
    }
    body
}
