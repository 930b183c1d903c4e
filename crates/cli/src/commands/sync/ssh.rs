//! [`SshTarget`]: a file at the other end of `ssh`, and the program that is started to get there.

use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use litemesh::channel::Channel;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::exit_code::ExitCode;
use crate::failure::Failure;

#[cfg(all(test, unix))] // a shell
mod conformance;

/// A file on another machine.
pub(super) struct SshTarget {
    destination: String,
    port: Option<u16>,
    path: String,
}

impl SshTarget {
    /// `ssh://[user@]host[:port]/path`; `/~/` begins a path in the user's folder.
    pub(super) fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = |what: &str| {
            let advice = "write ssh://[USER@]HOST[:PORT]/PATH, with /~/ for a path in the folder of the user";
            Failure::usage(format!("{url}: {what}"), advice)
        };
        let rest = url.strip_prefix("ssh://").unwrap_or(url);
        let (authority, path) = rest.split_once('/').ok_or_else(|| wrong("no path"))?;
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        // An address of IPv6 stands in brackets, which `ssh` does not want.
        let (host, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => host.rsplit_once(':').map_or((host, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map(str::parse).transpose().map_err(|_| wrong("the port is no number from 0 to 65535"))?;
        let is_option = |word: &str| word.is_empty() || word.starts_with('-');
        if is_option(host) || user.is_some_and(is_option) {
            return Err(wrong("no host"));
        }
        let path = match path.strip_prefix("~/") {
            Some(of_user) => format!("./{of_user}"),
            None => format!("/{path}"),
        };
        if path.ends_with('/') {
            return Err(wrong("no file"));
        }
        let destination = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
        Ok(Self { destination, port, path })
    }

    /// What the shell at the other end runs.
    fn command(&self) -> String {
        format!("litemesh stdio '{}'", self.path.replace('\'', r"'\''"))
    }

    /// A channel that starts `ssh` for each connection: a program, and options of it. And how that ended last.
    pub(super) fn channel(self, ssh: String) -> (Channel, Ending) {
        let ending = Ending::default();
        let told = ending.clone();
        let channel = Channel::dialling("ssh", move || {
            let child = self.start(&ssh, &ending);
            async move { child }
        });
        (channel, told)
    }

    fn start(&self, ssh: &str, ending: &Ending) -> std::io::Result<(ProgramOutput, ChildStdin)> {
        let mut words = ssh.split_whitespace();
        let program = words.next().unwrap_or("ssh");
        let mut command = Command::new(program);
        command.args(words);
        if let Some(port) = self.port {
            command.arg("-p").arg(port.to_string());
        }
        command.arg("--").arg(&self.destination).arg(self.command());
        // It ends with its pipes. Killed while it asks for a password it would leave the terminal without echo.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| std::io::Error::other(format!("{program}: {error}")))?;
        match (child.stdout.take(), child.stdin.take()) {
            (Some(output), Some(input)) => {
                ending.set(None);
                Ok((ProgramOutput { output, program: Some(child), has_spoken: false, ending: ending.clone() }, input))
            }
            _ => Err(std::io::Error::other(format!("{program} has no input and output"))),
        }
    }
}

/// With which status the program ended that was started last, where it had said nothing.
#[derive(Clone, Default)]
pub(super) struct Ending(Arc<Mutex<Option<i32>>>);

/// What shells end with where a command cannot be executed, or is not found.
const SHELL_FOUND_NONE: [i32; 2] = [126, 127];

impl Ending {
    fn set(&self, status: Option<i32>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// The status, where the next program would end with the same: there is no `litemesh`, it is too old, or it cannot open the file. `ssh`
    /// itself ends with 255.
    pub(super) fn lasting(&self) -> Option<i32> {
        let is_lasting = |status: &i32| {
            let own = [ExitCode::Usage, ExitCode::Database].map(|code| code as i32);
            own.contains(status) || SHELL_FOUND_NONE.contains(status)
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).filter(is_lasting)
    }
}

/// What a program writes.
struct ProgramOutput {
    output: ChildStdout,
    program: Option<Child>,
    has_spoken: bool,
    ending: Ending,
}

impl AsyncRead for ProgramOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.output).poll_read(context, buffer);
        let is_read = matches!(polled, Poll::Ready(Ok(())));
        let is_end = is_read && buffer.filled().len() == before && buffer.remaining() > 0;
        self.has_spoken |= is_read && !is_end;
        if is_end
            && !self.has_spoken
            && let Some(mut program) = self.program.take()
        {
            let ending = self.ending.clone();
            tokio::spawn(async move { ending.set(program.wait().await.ok().and_then(|status| status.code())) });
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_ssh_reads_them() {
        let read = |url: &str| {
            let target = SshTarget::parse(url).unwrap();
            (target.destination.clone(), target.port, target.command())
        };
        let of = |destination: &str, port, path: &str| (destination.to_owned(), port, format!("litemesh stdio {path}"));
        assert_eq!(read("ssh://host/path/to/file.db"), of("host", None, "'/path/to/file.db'"));
        assert_eq!(read("ssh://me@host:2222/~/file.db"), of("me@host", Some(2222), "'./file.db'"));
        assert_eq!(read("ssh://[::1]:22/it's here.db"), of("::1", Some(22), r"'/it'\''s here.db'"));
        assert_eq!(read("ssh://a@b@host/x"), of("a@b@host", None, "'/x'"));
        for wrong in
            ["ssh://host", "ssh://host/", "ssh:///x", "ssh://-oProxyCommand=x/y", "ssh://-u@host/y", "ssh://host:ssh/x"]
        {
            assert!(SshTarget::parse(wrong).is_err(), "{wrong}");
        }
    }
}
