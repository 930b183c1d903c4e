//! Runs every example to its end. They are compiled into this one program, so that they are linked once for the tests.
#![allow(dead_code)] // what other tests use of them

macro_rules! examples {
    ($($name:ident = $path:literal)*) => {$(
        #[path = $path]
        mod $name;
    )*

        mod ends_without_error {
            $(#[test]
            fn $name() {
                super::$name::main().unwrap();
            })*
        }

        const LISTED: &[&str] = &[$(stringify!($name)),*];
    };
}

examples! {
    basic_peer = "../examples/basic_peer.rs"
    custom_http_client = "../examples/custom_http_client.rs"
    custom_transport = "../examples/custom_transport.rs"
    events = "../examples/events.rs"
    low_level_flow = "../examples/low_level_flow.rs"
    manual_check = "../examples/manual_check.rs"
    server = "../examples/server.rs"
    several_transports = "../examples/several_transports.rs"
}

#[test]
fn every_example_is_listed_here() {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    let file_stem = |entry: std::fs::DirEntry| entry.path().file_stem().unwrap().to_string_lossy().into_owned();
    let mut found: Vec<String> = folder.map(|entry| file_stem(entry.unwrap())).collect();
    found.sort();
    assert_eq!(found, LISTED);
}

/// docs/transports.md says so: a transport of one's own is no large thing.
#[test]
fn the_transport_of_ones_own_is_short() {
    let lines = include_str!("../examples/custom_transport.rs").lines().count();
    assert!(lines < 120, "{lines} lines");
}
