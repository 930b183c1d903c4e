//! Who may what: tokens of a hub, and hubs for everybody.
#![cfg(unix)] // signals

mod support;

use serde_json::{Value, json};
use support::{Files, Hub, Running, litemesh, rows};

/// Makes a token, and a file that has it.
fn token(files: &Files, name: &str, more: &[&str]) -> (String, String) {
    let made = litemesh(&[&["token", "new", &files.path("hub.tokens"), name, "--json"], more].concat()).json();
    let token = made["token"].as_str().unwrap();
    (made["id"].as_str().unwrap().to_owned(), files.write(&format!("{name}.token"), &format!("{token}\n")))
}

fn ids(file: &str, table: &str) -> Value {
    let rows = rows(file, &format!("SELECT id FROM {table} ORDER BY 1"));
    rows.as_array().unwrap().iter().map(|row| row["id"].clone()).collect()
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    let files = Files::new();
    let file = files.path("hub.tokens");
    let first = litemesh(&["token", "new", &file, "Ada's phone"]).ok();
    let (id, secret) = first.trim().strip_prefix("litemesh_").unwrap().split_once('_').unwrap();
    assert_eq!((id.len(), secret.len(), first.lines().count()), (16, 64, 1));
    litemesh(&["token", "new", &file, "kiosk", "--rights", "read", "--table", "Todo", "--table", "tag"]).ok();
    let list = litemesh(&["token", "list", &file, "--json"]).json();
    let found = |n: usize| (list[n]["name"].clone(), list[n]["rights"].clone(), list[n]["tables"].clone());
    assert_eq!(found(0), (json!("Ada's phone"), json!("read-write"), Value::Null));
    assert_eq!(found(1), (json!("kiosk"), json!("read"), json!(["tag", "todo"])));
    let text = litemesh(&["token", "list", &file]).ok();
    assert!(text.contains(id) && text.contains("Ada's phone") && !text.contains(secret), "{text}");
    let revoked = litemesh(&["token", "revoke", &file, id]).ok();
    assert!(revoked.contains("Ada's phone"), "{revoked}");
    assert_eq!(litemesh(&["token", "list", &file, "--json"]).json().as_array().unwrap().len(), 1);
    litemesh(&["token", "revoke", &file, id]).fails(2, &["has no token with the id", "token list"]);
}

#[test]
fn no_file_of_something_else_gets_a_token() {
    let files = Files::new();
    let database = files.database("hub.db");
    let before = std::fs::read(&database).unwrap();
    litemesh(&["token", "new", &database, "x"]).fails(3, &["hub.db line 1", "litemesh token"]);
    assert_eq!(std::fs::read(&database).unwrap(), before);
    litemesh(&["token", "list", &files.path("missing")]).fails(3, &["missing", "litemesh token new"]);
    litemesh(&["serve", &database, "--tokens", &files.path("missing")]).fails(3, &["missing", "litemesh token new"]);
    litemesh(&["token", "new", &files.path("new"), ""]).fails(2, &["a name must have"]);
}

#[test]
fn a_hub_with_tokens_gives_each_what_its_token_says() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    litemesh(&["sql", &hub_file, "INSERT INTO todo (id) VALUES ('hub'); INSERT INTO tag VALUES (1, 'hub')"]).ok();
    litemesh(&["sql", &copy, "INSERT INTO todo (id) VALUES ('copy'); INSERT INTO tag VALUES (2, 'copy')"]).ok();
    let (id, full) = token(&files, "full", &[]);
    let (_, reader) = token(&files, "reader", &["--rights", "read"]);
    let (_, some) = token(&files, "some", &["--table", "todo"]);
    let hub = Hub::start(&hub_file, &["--tokens", &files.path("hub.tokens")]);
    let once = |token: &str| litemesh(&["sync", &copy, &hub.url, "--once", "--token-file", token]);

    litemesh(&["sync", &copy, &hub.url, "--once"]).fails(6, &["401", "asks for a token", "--token-file"]);
    once(&files.write("wrong.token", "litemesh_0123456789abcdef_00")).fails(6, &["401", "not valid", "--token-file"]);
    once(&files.write("empty.token", "\n")).fails(2, &["has no token", "token new"]);
    once(&files.path("missing.token")).fails(3, &["missing.token", "--token-file"]);

    let text = once(&reader).ok();
    assert!(text.contains("what is written here is not sent"), "{text}");
    assert_eq!((ids(&copy, "todo"), ids(&copy, "tag")), (json!(["copy", "hub"]), json!([1, 2])));
    assert_eq!((ids(&hub_file, "todo"), ids(&hub_file, "tag")), (json!(["hub"]), json!([1])));

    let text = once(&some).ok();
    assert!(text.contains("only changes of the tables todo"), "{text}");
    assert_eq!((ids(&hub_file, "todo"), ids(&hub_file, "tag")), (json!(["copy", "hub"]), json!([1])));

    let text = once(&full).ok();
    assert!(!text.contains("allows no more"), "{text}");
    assert_eq!(litemesh(&["diff", &hub_file, &copy]).ok(), "equal: 2 tables, 4 rows\n");

    // One that stays is thrown out, and says so.
    let staying = Running::start(&["sync", &copy, &hub.url, "--json", "--token-file", &full]);
    staying.event("eose");
    litemesh(&["token", "revoke", &files.path("hub.tokens"), &id]).ok();
    staying.event("disconnect");
    let refused = staying.event("unreachable");
    assert_eq!(refused["status"], 401, "{refused}");
    staying.stop("-TERM");
    let stats = hub.running.stats_at_stop();
    assert!(stats["refused_unauthorized"].as_u64().unwrap() >= 3, "{stats}");
}

#[test]
fn a_hub_speaks_tls_to_those_who_trust_it() {
    use rcgen::{CertificateParams, KeyPair};
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    litemesh(&["sql", &hub_file, "INSERT INTO todo (id) VALUES ('hub')"]).ok();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (cert, key) = (files.write("cert.pem", &cert.pem()), files.write("key.pem", &key.serialize_pem()));
    litemesh(&["serve", &hub_file, "--tls-cert", &key, "--tls-key", &key]).fails(3, &["key.pem", "--tls-cert"]);
    let hub = Hub::start(&hub_file, &["--tls-cert", &cert, "--tls-key", &key]);
    assert!(hub.url.starts_with("https://127.0.0.1:"), "{}", hub.url);
    litemesh(&["sync", &copy, &hub.url, "--once", "--ca", &cert]).ok();
    assert_eq!(ids(&copy, "todo"), json!(["hub"]));
    litemesh(&["sync", &copy, &hub.url, "--once", "--timeout", "1"]).fails(5, &["no TLS connection", "--ca"]);
    litemesh(&["sync", &copy, &hub.url, "--once", "--ca", &files.path("none")]).fails(3, &["--ca"]);
    hub.running.stop("-TERM");
}

/// Not by us, and not by a library below.
#[test]
fn no_log_has_a_token() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let (_, one) = token(&files, "one", &[]);
    let wrong = format!("litemesh_{}_{}", "0123456789abcdef", "5e".repeat(32));
    let wrong = files.write("wrong.token", &wrong);
    let hub = Running::start_tracing(&[
        "serve",
        &hub_file,
        "--listen",
        "127.0.0.1:0",
        "--json",
        "--tokens",
        &files.path("hub.tokens"),
    ]);
    let url = hub.line()["url"].as_str().unwrap().to_owned();
    let mut logs = String::new();
    for (token, url) in [(&one, url.clone()), (&one, url.replace("http", "ws")), (&wrong, url.clone())] {
        let sync = Running::start_tracing(&["sync", &copy, &url, "--once", "--json", "--token-file", token]);
        let (_, log) = sync.end();
        assert!(log.lines().count() > 10, "it logs: {log}");
        logs += &log;
    }
    logs += &hub.stop("-TERM").1;
    for file in [&one, &wrong] {
        let token = std::fs::read_to_string(file).unwrap();
        let (_, secret) = token.trim().rsplit_once('_').unwrap();
        let line = logs.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}

/// Neither the command line nor a file: the environment, which others on the machine cannot read.
#[test]
fn a_token_may_come_from_the_environment() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    let (_, file) = token(&files, "one", &[]);
    let hub = Hub::start(&hub_file, &["--tokens", &files.path("hub.tokens")]);
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_litemesh"))
        .args(["sync", &copy, &hub.url, "--once"])
        .env("LITEMESH_TOKEN", std::fs::read_to_string(file).unwrap())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// `known-failures.md` C1: the original listens everywhere, to everybody.
#[test]
fn off_the_loopback_nobody_is_let_in_without_a_token_unless_that_is_said_loudly() {
    let files = Files::new();
    let (hub_file, copy) = (files.database("hub.db"), files.database("copy.db"));
    litemesh(&["sql", &copy, "INSERT INTO todo (id) VALUES ('copy')"]).ok();
    let start = |more: &[&str]| {
        let running = Running::start(&[&["serve", &hub_file, "--listen", "0.0.0.0:0", "--json"], more].concat());
        let listening = running.line();
        let url = listening["url"].as_str().unwrap().replace("0.0.0.0", "127.0.0.1");
        (running, url, listening["anonymous"].clone())
    };
    let (running, url, anonymous) = start(&[]);
    litemesh(&["sync", &copy, &url, "--once"]).fails(6, &["asks for a token", "litemesh token new"]);
    let (_, stderr) = running.stop("-TERM");
    assert!(
        stderr.contains("warning") && stderr.contains("litemesh token new") && stderr.contains("--public"),
        "{stderr}"
    );
    assert_eq!((anonymous, ids(&hub_file, "todo")), (Value::Null, json!([])));

    let (running, url, anonymous) = start(&["--public=read"]);
    litemesh(&["sync", &copy, &url, "--once"]).ok();
    let (_, stderr) = running.stop("-TERM");
    assert!(stderr.contains("can READ all replicated tables"), "{stderr}");
    assert_eq!((anonymous, ids(&hub_file, "todo")), (json!("read"), json!([])));

    let (running, url, anonymous) = start(&["--public"]);
    litemesh(&["sync", &copy, &url, "--once"]).ok();
    let (_, stderr) = running.stop("-TERM");
    assert!(stderr.contains("can READ AND WRITE all replicated tables"), "{stderr}");
    assert_eq!((anonymous, ids(&hub_file, "todo")), (json!("read-write"), json!(["copy"])));
}
