//! Two files without a hub: beside each other, and at the ends of what stands for `ssh`.
#![cfg(unix)] // a shell

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use litemesh::proto::codec::v2;
use support::{Files, Running, litemesh, rows};

/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that takes the arguments of `ssh`, and runs the command on this machine as the shell of another one would.
fn fake_ssh(files: &Files) -> String {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_litemesh"));
    let script = format!(
        "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\necho \"host $2\" >&2\nPATH='{}':$PATH\nexec sh -c \"$3\"\n",
        program.parent().unwrap().display()
    );
    let path = files.write("ssh", &script);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn add(file: &str, id: &str) {
    litemesh(&["sql", file, &format!("INSERT INTO todo (id, title) VALUES ('{id}', 'x')")]).ok();
}

#[test]
fn two_files_become_equal() {
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    add(&a, "of a");
    add(&b, "of b");
    litemesh(&["sync", &a, &b, "--once"]).ok();
    assert_eq!(litemesh(&["diff", &a, &b]).ok(), "equal: 2 tables, 2 rows\n");
    // A file with itself, and with a copy of itself.
    litemesh(&["sync", &a, &a, "--once"]).fails(2, &["both sides are", "a.db", "name another"]);
    let copy = files.path("copy.db");
    litemesh(&["sql", &a, &format!("VACUUM INTO '{copy}'")]).ok();
    let refused = litemesh(&["sync", &a, &copy, "--once"]);
    assert_eq!(refused.stderr.matches("litemesh fork").count(), 1, "{refused:?}");
    refused.fails(6, &["copy of the other", "litemesh fork"]);
    litemesh(&["sync", &a, &files.path("nowhere.db"), "--once"])
        .fails(2, &["is no file", "https://", "ssh://", "nostr:"]);
}

#[test]
fn files_that_stay_in_sync_hear_of_each_other() {
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    let sync = Running::start(&["sync", &a, &b]);
    for (file, other, id) in [(&a, &b, "1"), (&b, &a, "2"), (&a, &b, "3")] {
        add(file, id);
        let begun = Instant::now();
        while rows(other, &format!("SELECT id FROM todo WHERE id = '{id}'")).as_array().unwrap().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "{id} does not arrive");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let (status, stderr) = sync.stop("-INT");
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_file_at_the_other_end_of_ssh_is_synced() {
    let files = Files::new();
    let (a, b) = (files.database("a.db"), files.database("it's b.db"));
    let ssh = fake_ssh(&files);
    add(&a, "of a");
    add(&b, "of b");
    let url = format!("ssh://me@far.example:2222{b}");
    let done = litemesh(&["sync", &a, &url, "--ssh", &format!("{ssh} -o Anything=yes"), "--once"]);
    assert!(done.stderr.contains("host me@far.example"), "{done:?}");
    done.ok();
    assert_eq!(litemesh(&["diff", &a, &b]).ok(), "equal: 2 tables, 2 rows\n");

    // What is wrong at the other end is said there, and here.
    let nowhere = format!("ssh://host{}", files.path("nowhere.db"));
    let failed = litemesh(&["sync", &a, &nowhere, "--ssh", &ssh, "--once"]);
    assert_eq!(failed.code, Some(5), "{failed:?}");
    // Once: to start it again would help nothing.
    assert_eq!(failed.stderr.matches("nowhere.db does not exist").count(), 1, "{failed:?}");
    assert!(failed.stderr.contains("no peer reached") && failed.stderr.contains("status 3"), "{failed:?}");
    let without = files.write("bare", "#!/bin/sh\nexec sh -c 'no-such-litemesh'\n");
    std::fs::set_permissions(&without, std::fs::Permissions::from_mode(0o755)).unwrap();
    let failed = litemesh(&["sync", &a, &url, "--ssh", &without, "--once"]);
    assert_eq!(failed.code, Some(5), "{failed:?}");
    assert_eq!(failed.stderr.matches("no-such-litemesh").count(), 1, "{failed:?}");
    assert!(failed.stderr.contains("status 127") && failed.stderr.contains("in the PATH there"), "{failed:?}");
    // A host may come back: that is waited for.
    let away = files.write("away", "#!/bin/sh\necho nobody >&2; exit 255\n");
    std::fs::set_permissions(&away, std::fs::Permissions::from_mode(0o755)).unwrap();
    let failed = litemesh(&["sync", &a, &url, "--ssh", &away, "--once", "--timeout", "3"]);
    assert_eq!(failed.code, Some(5), "{failed:?}");
    assert!(failed.stderr.matches("nobody").count() > 1, "{failed:?}");
    let missing = litemesh(&["sync", &a, &url, "--ssh", "/nowhere/ssh", "--once"]);
    missing.fails(5, &["no peer reached", "/nowhere/ssh", "--ssh"]);
    litemesh(&["sync", &a, "ssh://host", "--once"]).fails(2, &["no path", "ssh://[USER@]HOST"]);
    // What would have no effect is said.
    for far in [url.as_str(), b.as_str()] {
        litemesh(&["sync", &a, far, "--ca", "ca.pem", "--once"]).fails(2, &["--ca are for hubs", "b.db"]);
    }
}

/// Nobody looks at the other side, so that says here what it does not take.
#[test]
fn changes_of_a_table_that_the_other_file_lacks_are_refused() {
    let files = Files::new();
    let more =
        files.write("more.sql", "CREATE TABLE more (id TEXT PRIMARY KEY NOT NULL); INSERT INTO more VALUES ('a');");
    let (a, b) = (files.database("a.db"), files.database("b.db"));
    litemesh(&["init", &a, "--schema", &more]).ok();
    let (ssh, far) = (fake_ssh(&files), format!("ssh://host{b}"));
    let refused = ["the remote refused a message", "more"];
    let told = litemesh(&["sync", &a, &b, "--once", "--timeout", "120"]).fails(6, &refused);
    // Long before the other side asks again, over another connection.
    assert!(!told.stdout.contains("disconnected"), "{told:?}");
    let over_ssh = litemesh(&["sync", &a, &far, "--ssh", &ssh, "--once"]);
    assert_eq!(over_ssh.code, Some(6), "{over_ssh:?}");
    assert!(refused.iter().all(|part| over_ssh.stderr.contains(part)), "{over_ssh:?}");
    litemesh(&["sync", &b, &a, "--once"]).fails(6, &["the exchange failed", "more"]);
    let stays = Running::start(&["sync", &a, &b, "--json"]);
    let error = stays.event("error");
    assert!(refused.iter().all(|part| error["message"].as_str().unwrap().contains(part)), "{error}");
    assert_eq!(stays.stop("-INT").0.code(), Some(0));
}

/// Any program can stand at the other end of `stdio`, and none can make it fail badly.
#[test]
fn stdio_refuses_what_is_no_peer_and_lets_readers_read_only() {
    let files = Files::new();
    let file = files.database("a.db");
    let stdio = |arguments: &[&str], input: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_litemesh"))
            .args(["stdio", &file])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let (mut output, mut errors) = (Vec::new(), String::new());
        child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (child.wait().unwrap().code(), output, errors)
    };
    let (code, _, errors) = stdio(&[], b"GET / HTTP/1.1\r\n\r\n");
    assert!(code == Some(5) && errors.contains("no Litemesh peer answers"), "{code:?} {errors}");
    let (code, output, errors) = stdio(&["--read-only"], b"");
    assert!(code == Some(5) && errors.contains("closed the stream"), "{code:?} {errors}");
    let mut output = output.as_slice();
    let limits = litemesh::Limits::default();
    let hello = v2::Deframer::new(&limits).feed(&mut output).unwrap().unwrap();
    let v2::Frame::Hello(hello) = v2::decode(&hello, &limits).unwrap() else { panic!("{hello:?}") };
    assert!(hello.access.may_read() && !hello.access.may_write());
}
