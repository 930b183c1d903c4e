//! What every transport owes a peer, of standard input and output: those of the program that `ssh://` starts, and those of
//! `litemesh stdio`.
//!
//! The suite goes through the very code that starts `ssh`. In place of that stands this program once more, which joins its input and
//! output to the line; and at the far end of the line once more, which serves its input and output as `litemesh stdio` does.

mod far_end;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use litemesh::channel::Channel;
use litemesh::proto::{BoxFuture, Transport};
use litemesh_testkit::conformance::{self, Kind};

use super::SshTarget;
use far_end::Programs;

/// Tells the program that it stands in for `ssh`, and where the line is.
const LINE_VARIABLE: &str = "LITEMESH_TEST_LINE";

/// Where a program finds its standard output: what the test harness says goes elsewhere.
const OUTPUT: &str = "/dev/fd/3";

struct OverSsh(tempfile::TempDir, AtomicUsize);

/// As impatient as the checks want it.
fn impatient(channel: Channel) -> Channel {
    channel.ping_interval(Duration::from_millis(500)).reconnect_delay_min(Duration::from_millis(100))
}

/// The commands of a shell that run one test of this program, with its standard output at [`OUTPUT`]. On the only thread, since the
/// harness would otherwise have something to say after a minute.
fn run_test(module: &str, test: &str) -> String {
    let (_, module) = module.split_once("::").unwrap();
    let program = std::env::current_exe().unwrap();
    format!("exec 3>&1 >/dev/null\nexec '{}' --exact {module}::{test} --test-threads 1\n", program.display())
}

impl Kind for OverSsh {
    fn listen(&self) -> BoxFuture<'_, (Arc<dyn Transport>, SocketAddr)> {
        Box::pin(async {
            let (programs, address) = Programs::listen().await;
            (Arc::new(programs) as _, address)
        })
    }

    fn dial(&self, address: SocketAddr) -> Arc<dyn Transport> {
        let script = self.0.path().join(self.1.fetch_add(1, Ordering::Relaxed).to_string());
        let lines = format!("export {LINE_VARIABLE}={address}\n{}", run_test(module_path!(), "stands_in_for_ssh"));
        std::fs::write(&script, lines).unwrap();
        let target = SshTarget::parse("ssh://me@far.example/todo.db").unwrap();
        Arc::new(impatient(target.channel(format!("sh {}", script.display())).0))
    }
}

#[test]
fn stands_in_for_ssh() {
    let Ok(address) = std::env::var(LINE_VARIABLE) else { return };
    // Where nobody is, it ends.
    let Ok(mut from_line) = TcpStream::connect(address) else { return };
    let mut to_line = from_line.try_clone().unwrap();
    let mut output = File::options().write(true).open(OUTPUT).unwrap();
    // Ends with the program.
    std::thread::spawn(move || {
        carry(std::io::stdin().lock(), &mut to_line);
        let _ = to_line.shutdown(Shutdown::Write);
    });
    carry(&mut from_line, &mut output);
}

/// As it comes. With `std::io::copy`, which splices pipes and sockets on Linux, this hangs.
fn carry(mut from: impl Read, to: &mut impl Write) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut piece)
        && to.write_all(&piece[..read]).is_ok()
    {}
}

#[tokio::test]
async fn programs_keep_the_contract() {
    conformance::check(&OverSsh(tempfile::tempdir().unwrap(), AtomicUsize::new(0))).await;
}
