//! The command line itself: help, usage errors, completions.

mod support;

use support::{Files, litemesh};

#[test]
fn help_says_what_a_stranger_must_know() {
    for (command, words) in [
        ("init", &["--schema", "--table", "--json", "one transaction", "litemesh init todo.db"][..]),
        (
            "serve",
            &[
                "--listen",
                "127.0.0.1:4646",
                "--tokens",
                "--public",
                "--tls-cert",
                "--max-connections",
                "--path",
                "--max-body",
                "listening",
                "site_id",
                "SIGTERM",
            ],
        ),
        (
            "sync",
            &[
                "--once",
                "--timeout",
                "--token-file",
                "LITEMESH_TOKEN",
                "--ca",
                "--json",
                "done",
                "http://127.0.0.1:4646",
                "ssh://",
                "litemesh stdio",
                "--ssh",
                "/media/stick/todo.db",
            ],
        ),
        ("pair", &["--relay", "ten minutes", "nostr+keepai://", "FILE-nostr", "sync todo.db nostr:"]),
        ("join", &["nostr+keepai://", "standard input", "30 seconds"]),
        ("peers", &["--json"]),
        ("unpair", &["litemesh unpair todo.db"]),
        ("stdio", &["--read-only", "ssh://HOST/PATH", "wire v2"]),
        ("sql", &["--json", "--csv", "standard input", "prompt", "blob", "crsql_changes"]),
        ("status", &["--json", "tombstones", "Reads only"]),
        ("diff", &["--json", "--limit", "exit code 0", "exit code 1"]),
        ("doctor", &["--repair", "--bury", "--json", "integrity_check", "crsql_check()", "exit code is 0"]),
        ("fork", &["--copied-at", "--json", "site id", "one transaction", "VACUUM INTO"]),
        ("token", &["new", "list", "revoke", "hashes", "printed once"]),
        ("demo", &["--dir", "--keep", "--json", "--rows", "only if the three files are equal"]),
        ("completions", &["bash", "zsh", "fish", "~/.zfunc/_litemesh"]),
    ] {
        let help = litemesh(&[command, "--help"]).ok();
        // Lines are wrapped somewhere.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(help.contains(word), "{command}: {word:?} is not in {help}");
        }
        assert!(help.contains("Examples:"), "{command}");
    }
}

/// `known-failures.md` E7: the original has no program.
#[test]
fn help_lists_every_command_and_every_exit_code() {
    let help = litemesh(&["--help"]).ok();
    for word in [
        "init",
        "serve",
        "sync",
        "pair",
        "join",
        "peers",
        "unpair",
        "stdio",
        "sql",
        "status",
        "diff",
        "doctor",
        "fork",
        "token",
        "demo",
        "completions",
        "Exit codes:",
    ] {
        assert!(help.contains(word), "{word}");
    }
    for code in [0, 1, 2, 3, 4, 5, 6, 70] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{code}: {help}");
    }
    assert!(litemesh(&["--version"]).ok().starts_with("litemesh 0."));
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for args in [
        &[][..],
        &["nonsense"],
        &["init"],
        &["serve", "x.db", "--listen", "nowhere"],
        &["serve", "x.db", "--path", "/a?b"],
        &["serve", "x.db", "--max-body", "1"],
        &["serve", "x.db", "--public=write"],
        &["serve", "x.db", "--tls-cert", "cert.pem"],
        &["token"],
        &["token", "new", "x"],
        &["token", "new", "x", "name", "--rights", "admin"],
        &["sync", "x.db"],
        &["join", "x.db"],
        &["unpair", "x.db"],
        &["sql", "x.db", "--json", "--csv"],
        &["doctor", "x.db", "--bury"],
        &["fork", "x.db", "--copied-at", "-1"],
        &["demo", "--rows", "0"],
        &["completions", "tcl"],
    ] {
        let done = litemesh(args);
        assert_eq!(done.code, Some(2), "{args:?}: {done:?}");
        assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{args:?}: {done:?}");
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = litemesh(&["completions", shell]).ok();
        for word in ["init", "serve", "sync", "--schema"] {
            assert!(script.contains(word.trim_start_matches('-')), "{shell}: {word}");
        }
    }
}

#[test]
fn a_missing_file_is_named_and_not_made() {
    let files = Files::new();
    let missing = files.path("missing.db");
    for args in [
        &["init", &missing][..],
        &["serve", &missing],
        &["sync", &missing, "http://127.0.0.1:1"],
        &["sql", &missing, "SELECT 1"],
        &["status", &missing],
        &["doctor", &missing, "--repair"],
        &["fork", &missing],
        &["diff", &missing, &missing],
        &["peers", &missing],
        &["pair", &missing, "--relay", "ws://127.0.0.1:1"],
    ] {
        litemesh(args).fails(3, &["missing.db does not exist", "litemesh init"]);
    }
    assert_eq!(std::fs::read_dir(files.folder()).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_no_database_is_called_so() {
    let files = Files::new();
    let file = files.write("letter.txt", &"Dear reader, this is no database. ".repeat(100));
    for args in [
        &["init", &file][..],
        &["serve", &file],
        &["sql", &file, "SELECT 1"],
        &["status", &file],
        &["doctor", &file],
        &["fork", &file],
    ] {
        let done = litemesh(args).fails(3, &["letter.txt", "file is not a database"]);
        assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    }
    litemesh(&["sql", files.folder().to_str().unwrap()]).fails(3, &["is a folder"]);
}
