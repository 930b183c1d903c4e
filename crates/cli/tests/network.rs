//! The commands that talk to each other: serve, sync, demo.
#![cfg(unix)] // signals

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::{Files, Hub, Running, SCHEMA, litemesh, rows};

/// How many changes `sync` says that it received and sent.
fn counts(text: &str) -> (u64, u64) {
    let line = text.lines().find_map(|line| line.strip_prefix("in sync; ")).unwrap_or_else(|| panic!("{text}"));
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn sync_once_brings_both_sides_to_the_same_rows() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    litemesh(&["sql", &hub_file, "INSERT INTO todo (id, title) VALUES ('h', 'from the hub')"]).ok();
    litemesh(&[
        "sql",
        &copy,
        "INSERT INTO todo (id, title) VALUES ('c', 'from the copy'); INSERT INTO tag VALUES (1, 'x')",
    ])
    .ok();
    let hub = Hub::start(&hub_file, &[]);
    assert_eq!(hub.site, rows(&hub_file, "SELECT lower(hex(crsql_site_id())) AS s")[0]["s"]);

    let text = litemesh(&["sync", &copy, &hub.url, "--once"]).ok();
    // At least: on a busy machine a side can ask before the answer to its first request came, and gets changes twice.
    let (received, sent) = counts(&text);
    assert!(received >= 2 && sent >= 3, "{text}");
    assert_eq!(litemesh(&["diff", &hub_file, &copy]).ok(), "equal: 2 tables, 3 rows\n");

    // Nothing is left to do, and what is told is told as JSON.
    let text = litemesh(&["sync", &copy, &hub.url, "--once", "--json"]).ok();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let found = (&last["event"], &last["peer"], &last["changes_received"], &last["changes_sent"]);
    assert_eq!(found, (&json!("done"), &json!(hub.site), &json!(0), &json!(0)));

    let stats = hub.running.stats_at_stop();
    let count = |name: &str| stats[name].as_u64().unwrap();
    assert_eq!((count("streams_total"), count("refused_by_peer"), count("refused_streams")), (2, 0, 0), "{stats}");
    // Each connection posted its request at least.
    assert!(count("messages_in") >= 3 && count("bytes_in") > 0 && count("bytes_out") > 0, "{stats}");
}

#[test]
fn sync_takes_a_websocket_where_the_url_says_so() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let hub = Hub::start(&hub_file, &[]);
    let address = hub.url.strip_prefix("http://").unwrap();
    for (scheme, id) in [("ws", "1"), ("WS", "2")] {
        litemesh(&["sql", &hub_file, &format!("INSERT INTO todo (id) VALUES ('of hub {id}')")]).ok();
        litemesh(&["sql", &copy, &format!("INSERT INTO todo (id) VALUES ('of copy {id}')")]).ok();
        litemesh(&["sync", &copy, &format!("{scheme}://{address}"), "--once"]).ok();
        litemesh(&["diff", &hub_file, &copy]).ok();
    }
    assert_eq!(hub.running.stats_at_stop()["streams_total"], 2);
}

/// `known-failures.md` E7: the original counts nothing.
#[test]
fn a_hub_says_what_it_has_done_when_it_stops() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.path("copy.db"));
    let more = files.write("more.sql", &format!("{SCHEMA} CREATE TABLE more (id TEXT PRIMARY KEY NOT NULL);"));
    litemesh(&["init", &copy, "--schema", &more]).ok();
    litemesh(&["sql", &copy, "INSERT INTO more VALUES ('a')"]).ok();
    let hub = Hub::start(&hub_file, &[]);
    litemesh(&["sync", &copy, &hub.url, "--once", "--timeout", "10"]).fails(6, &["more"]);
    let stats = hub.running.stats_at_stop();
    assert!(stats["refused_by_peer"].as_u64() > Some(0), "{stats}");

    let hub = Running::start(&["serve", &hub_file, "--listen", "127.0.0.1:0"]);
    while hub.line() != "Ctrl-C stops it" {}
    hub.signal("-TERM");
    assert_eq!(hub.line(), "stopped; 0 connections, 0 messages in (0 B), 0 messages out (0 B)");
    hub.end();
}

#[test]
fn sync_stays_and_carries_what_other_processes_write() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let hub = Hub::start(&hub_file, &[]);
    let sync = Running::start(&["sync", &copy, &hub.url, "--json"]);
    sync.events(&["eose", "served"]);

    litemesh(&["sql", &copy, "INSERT INTO todo (id) VALUES ('from another process')"]).ok();
    assert_eq!(hub.running.event("change")["tables"], json!(["todo"]));
    assert_eq!(rows(&hub_file, "SELECT id FROM todo"), json!([{ "id": "from another process" }]));

    sync.event("change");
    litemesh(&["sql", &hub_file, "INSERT INTO tag VALUES (1, 'at the hub')"]).ok();
    assert_eq!(sync.event("change")["tables"], json!(["tag"]));
    assert_eq!(rows(&copy, "SELECT name FROM tag"), json!([{ "name": "at the hub" }]));

    let (status, stderr) = sync.stop("-INT");
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    hub.running.event("disconnect");
    let (status, _) = hub.running.stop("-INT");
    assert_eq!(status.code(), Some(0));
}

/// The delay itself is a measurement (bench/, `latency`): about a millisecond, at most the 50 ms of the look that needs no
/// help of the file system (`known-failures.md` D8).
#[test]
fn each_write_of_another_process_reaches_the_hub_soon() {
    // Far above what it takes on a machine that is busy, far below what a look that was forgotten would take.
    const SOON: Duration = Duration::from_secs(20);
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let hub = Hub::start(&hub_file, &[]);
    let sync = Running::start(&["sync", &copy, &hub.url, "--json"]);
    sync.events(&["eose", "served"]);
    for n in 0..10 {
        litemesh(&["sql", &copy, &format!("INSERT INTO todo (id) VALUES ('{n}')")]).ok();
        let committed = Instant::now();
        hub.running.event("change");
        assert!(committed.elapsed() < SOON, "{n}: {:?}", committed.elapsed());
        assert_eq!(rows(&hub_file, "SELECT count(*) AS n FROM todo"), json!([{ "n": n + 1 }]));
    }
}

#[test]
fn a_hub_can_be_served_under_a_path() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let hub = Hub::start(&hub_file, &["--path", "api/worker/", "--max-body", "1M"]);
    assert!(hub.url.ends_with("/api/worker"), "{}", hub.url);
    litemesh(&["sql", &copy, "INSERT INTO todo (id) VALUES ('a')"]).ok();
    litemesh(&["sync", &copy, &hub.url, "--once"]).ok();
    assert_eq!(rows(&hub_file, "SELECT count(*) AS n FROM todo"), json!([{ "n": 1 }]));
    let root = hub.url.trim_end_matches("/api/worker").to_owned();
    litemesh(&["sync", &copy, &root, "--once", "--timeout", "1"])
        .fails(5, &["no hub reached", "the server answered 404: Not Found", "check the path"]);
}

#[test]
fn a_file_that_is_connected_already_is_told_so() {
    let files = Files::new();
    let (hub_file, file) = (files.database("hub.db"), files.database("file.db"));
    let hub = Hub::start(&hub_file, &[]);
    let first = Running::start(&["sync", &file, &hub.url, "--json"]);
    first.events(&["eose", "served"]);
    let words = ["cannot join the hub at", "ALREADY_CONNECTED", "this file is connected already", "litemesh fork"];
    litemesh(&["sync", &file, &hub.url, "--once", "--timeout", "1"]).fails(6, &words);
    // One that stays says it as well, and joins when the place is free.
    let second = Running::start(&["sync", &file, &hub.url, "--json"]);
    let line = second.event("unreachable");
    assert_eq!(line["kind"], "already_connected", "{line}");
    assert!(line["advice"].as_str().unwrap().contains("connected already"), "{line}");
    first.stop("-TERM");
    second.events(&["eose", "served"]);
}

#[test]
fn a_copied_file_is_told_what_it_is() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.path("copy.db"));
    litemesh(&["sql", &hub_file, "PRAGMA wal_checkpoint(TRUNCATE)"]).ok();
    std::fs::copy(&hub_file, &copy).unwrap();
    let hub = Hub::start(&hub_file, &[]);
    // At once: no dial would end otherwise.
    let words = ["cannot join the hub at", &hub.site, "is our own", "copy of the other", "litemesh fork COPY"];
    let done = litemesh(&["sync", &copy, &hub.url, "--once", "--timeout", "1000"]).fails(6, &words);
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    let stays = Running::start(&["sync", &copy, &hub.url, "--json"]);
    // VER-16: both sides say so, as an event.
    for side in [&hub.running, &stays] {
        let error = side.event("error");
        assert_eq!(error["peer"], hub.site.as_str(), "{error}");
        assert!(error["message"].as_str().unwrap().contains("`litemesh fork`"), "{error}");
    }
    assert_eq!(stays.event("unreachable")["kind"], "same_site");
    drop(stays);

    litemesh(&["sql", &copy, "INSERT INTO todo (id) VALUES ('of the copy')"]).ok();
    let forked = litemesh(&["fork", &copy, "--json", "--copied-at", "0"]).json();
    assert_eq!((&forked["site_id_before"], &forked["version"]), (&hub.site.as_str().into(), &0.into()));
    litemesh(&["sync", &copy, &hub.url, "--once"]).ok();
    litemesh(&["diff", &hub_file, &copy]).ok();
    assert_eq!(rows(&hub_file, "SELECT id FROM todo"), serde_json::json!([{ "id": "of the copy" }]));
}

/// VER-16: a file is not forked under somebody who is at work on it.
#[test]
fn a_file_in_use_is_not_forked() {
    let files = Files::new();
    let file = files.database("hub.db");
    let hub = Hub::start(&file, &[]);
    litemesh(&["fork", &file]).fails(3, &["hub.db", "in use", "stop"]);
    assert_eq!(rows(&file, "SELECT lower(hex(crsql_site_id())) AS id"), serde_json::json!([{ "id": hub.site }]));

    // A program can, with the library. Then who serves or syncs the file ends, and says why.
    let copy = files.database("copy.db");
    let sync = Running::start(&["sync", &copy, &hub.url, "--json"]);
    sync.events(&["eose", "served"]);
    for (file, running) in [(copy, sync), (file, hub.running)] {
        let forked = litemesh::engine::Engine::open(file).unwrap().fork(None).unwrap();
        let (status, stderr) = running.end();
        assert_eq!(status.code(), Some(3), "{stderr}");
        for words in ["this database was forked", &forked.after.to_string(), "Start the peer again"] {
            assert!(stderr.contains(words), "{words}: {stderr}");
        }
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn every_way_to_reach_no_hub_has_its_advice() {
    use std::io::{Read, Write};
    let files = Files::new();
    let copy = files.database("copy.db");
    let once = |url: &str| litemesh(&["sync", &copy, url, "--once", "--timeout", "1"]);
    // Too long for a name, so that no name server is asked.
    let words = ["no hub reached", "has no address", "check the name"];
    once(&format!("http://{}.localhost", "x".repeat(64))).fails(5, &words);

    // Answers everybody with this.
    let answering = |answer: &'static str| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut socket in listener.incoming().map_while(Result::ok) {
                let _ = socket.read(&mut [0; 1024]);
                let _ = socket.write_all(answer.as_bytes());
            }
        });
        address
    };
    let plain = answering("HTTP/1.1 400 Bad Request\r\n\r\n");
    once(&format!("https://{plain}")).fails(5, &["no hub reached", "no TLS connection", "https and port"]);
    let proxy = answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\nnot you");
    once(&format!("http://{proxy}")).fails(5, &["answered 403: not you", "credentials"]);
    let busy = answering("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
    once(&format!("http://{busy}")).fails(5, &["answered 502: Bad Gateway", "try again later"]);
    let page = answering("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>");
    once(&format!("http://{page}")).fails(5, &["no sync server", "what answers there is no hub"]);
    // Takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    once(&format!("http://{}", silent.local_addr().unwrap())).fails(5, &["no answer in time", "check the URL"]);
}

#[test]
fn a_proxy_has_no_business_on_the_loopback() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let hub = Hub::start(&hub_file, &[]);
    // A port that was free a moment ago: whoever takes the proxy reaches nobody.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = format!("http://{free}");
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_litemesh"))
            .args(["sync", &copy, &hub.url, "--once", "--timeout", "2"])
            .env_remove("no_proxy")
            .env_remove("NO_PROXY")
            .env(name, &proxy)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(0), "{name}: {done:?}");
    }
}

#[test]
fn a_hub_that_is_not_there_is_a_network_error() {
    let files = Files::new();
    let copy = files.database("copy.db");
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let words = ["no hub reached at", "refused", "litemesh serve"];
    litemesh(&["sync", &copy, &url, "--once", "--timeout", "1"]).fails(5, &words);
    for url in ["nonsense", "ftp://127.0.0.1", "http://127.0.0.1/?a=b"] {
        litemesh(&["sync", &copy, url, "--once"]).fails(2, &["http"]);
    }
}

#[test]
fn sync_that_stays_says_that_it_waits_and_joins_a_hub_that_comes_later() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let sync = Running::start(&["sync", &copy, &format!("http://{address}"), "--json"]);
    let line = sync.event("unreachable");
    assert!(line["reason"].as_str().unwrap().contains("refused"), "{line}");
    let hub = Running::start(&["serve", &hub_file, "--listen", &address, "--json"]);
    sync.events(&["eose", "served"]);
    drop((sync, hub));
}

#[test]
fn a_hub_serves_on_when_nobody_reads_its_output() {
    use std::io::{BufRead, BufReader};
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_litemesh"))
        .args(["serve", &hub_file, "--listen", "127.0.0.1:0", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let listening: serde_json::Value = serde_json::from_str(&line).unwrap();
    for _ in 0..2 {
        litemesh(&["sync", &copy, listening["url"].as_str().unwrap(), "--once"]).ok();
    }
    std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn an_address_in_use_is_a_network_error() {
    let files = Files::new();
    let file = files.database("hub.db");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    litemesh(&["serve", &file, "--listen", &address]).fails(5, &["cannot listen on", &address, "--listen"]);
}

/// `known-failures.md` E8: one direction waits for the upgrade, and nothing is lost.
#[test]
fn a_hub_with_a_newer_schema_is_refused_and_still_gets_our_rows() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    litemesh(&["sql", &hub_file, "PRAGMA user_version = 2; INSERT INTO todo (id) VALUES ('new')"]).ok();
    litemesh(&["sql", &copy, "INSERT INTO todo (id) VALUES ('old')"]).ok();
    let hub = Hub::start(&hub_file, &[]);
    let done = litemesh(&["sync", &copy, &hub.url, "--once"]);
    done.fails(6, &["the other side's schema version is 2, ours 0", "user_version"]);
    assert_eq!(rows(&hub_file, "SELECT count(*) AS n FROM todo"), json!([{ "n": 2 }]));
    assert_eq!(rows(&copy, "SELECT count(*) AS n FROM todo"), json!([{ "n": 1 }]));
    // After the upgrade what waited comes.
    litemesh(&["sql", &copy, "PRAGMA user_version = 2"]).ok();
    litemesh(&["sync", &copy, &hub.url, "--once"]).ok();
    litemesh(&["diff", &hub_file, &copy]).ok();
}

#[test]
fn changes_of_a_table_that_the_other_side_lacks_are_refused() {
    let files = Files::new();
    let more =
        files.write("more.sql", "CREATE TABLE more (id TEXT PRIMARY KEY NOT NULL); INSERT INTO more VALUES ('a');");
    let (hub_file, copy, other) = (files.database("hub.db"), files.database("copy.db"), files.database("other.db"));
    litemesh(&["init", &copy, "--schema", &more]).ok();
    let hub = Hub::start(&hub_file, &[]);
    litemesh(&["sync", &copy, &hub.url, "--once", "--timeout", "10"]).fails(6, &["more"]);
    drop(hub);
    let hub = Hub::start(&copy, &[]);
    litemesh(&["sync", &other, &hub.url, "--once", "--timeout", "10"]).fails(6, &["more"]);
}

#[test]
fn serving_a_file_without_replicated_tables_warns() {
    let files = Files::new();
    let file = files.path("plain.db");
    litemesh::rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let hub = Hub::start(&file, &[]);
    let (status, stderr) = hub.running.stop("-TERM");
    assert_eq!(status.code(), Some(0));
    assert!(stderr.contains("warning") && stderr.contains("litemesh init"), "{stderr}");
}

#[test]
fn the_demo_ends_with_equal_files() {
    let files = Files::new();
    let folder = files.path("demo");
    let report = litemesh(&["demo", "--rows", "300", "--json", "--dir", &folder]).json();
    assert_eq!(report["equal"], true, "{report}");
    for conflict in report["conflicts"].as_array().unwrap() {
        assert_eq!(conflict["as_expected"], true, "{conflict}");
    }
    assert_eq!(report["conflicts"].as_array().unwrap().len(), 7);
    for table in report["tables"].as_array().unwrap() {
        let digests = &table["digests"];
        assert!(table["equal"] == true && digests["hub"] == digests["phone"] && digests["hub"] == digests["laptop"]);
    }
    assert!(report["speed"]["catch_up"]["changes"].as_u64() > Some(1200), "{report}");

    let (hub, phone) = (files.path("demo/hub.db"), files.path("demo/phone.db"));
    assert!(litemesh(&["diff", &hub, &phone]).ok().starts_with("equal: 3 tables"));
    // Its files are real, and not written over.
    litemesh(&["demo", "--dir", &folder]).fails(2, &["is there already"]);
}

#[test]
fn the_demo_ends_well_by_every_way() {
    for way in ["ws", "channel", "nostr"] {
        let report = litemesh(&["demo", "--rows", "300", "--json", "--transport", way]).json();
        assert_eq!(report["equal"], true, "{way}: {report}");
        for conflict in report["conflicts"].as_array().unwrap() {
            assert_eq!(conflict["as_expected"], true, "{way}: {conflict}");
        }
    }
    litemesh(&["demo", "--transport", "nostr", "--keep"]).fails(2, &["only a hub can be joined"]);
}

#[test]
fn the_demo_tells_its_story() {
    let done = litemesh(&["demo", "--rows", "50"]);
    for words in ["2. laptop and phone join http://127.0.0.1:", "they come back", "changes/s"] {
        assert!(done.stderr.contains(words), "{words}: {done:?}");
    }
    let text = done.ok();
    for words in ["What the conflicts came to", "a deletion beats updates", "The three files are equal.", "changes/s"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn the_hub_of_a_kept_demo_can_be_joined() {
    let files = Files::new();
    let folder = files.path("demo");
    let demo = Running::start(&["demo", "--rows", "50", "--json", "--keep", "--dir", &folder]);
    let report = demo.line();
    let (mine, schema) = (files.path("mine.db"), files.path("demo/schema.sql"));
    litemesh(&["init", &mine, "--schema", &schema]).ok();
    litemesh(&["sync", &mine, report["hub_url"].as_str().unwrap(), "--once"]).ok();
    litemesh(&["diff", &mine, &files.path("demo/hub.db")]).ok();
    let (status, stderr) = demo.stop("-TERM");
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

/// Otherwise what fills a body of that size would never be taken, and its client would come again for ever.
#[test]
fn a_hub_has_room_for_one_body_of_the_largest() {
    let files = Files::new();
    let hub_file = files.database("hub.db");
    let words = &["--max-bodies", "--max-body", "a third more"];
    litemesh(&["serve", &hub_file, "--max-bodies", "40M"]).fails(2, words);
    let hub = Hub::start(&hub_file, &["--max-bodies", "4M", "--max-body", "3M"]);
    assert_eq!(hub.running.stats_at_stop()["refused_busy"], 0);
}
