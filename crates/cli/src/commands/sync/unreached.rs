//! Why the other side was not reached, in words for people and for scripts, and what to do about it.

use litemesh::channel::ChannelError;
use litemesh_http::DialError;

use crate::failure::Failure;

/// A dial that failed.
pub(super) struct Unreached {
    pub(super) reason: String,
    pub(super) advice: &'static str,
    /// One word for scripts.
    pub(super) kind: &'static str,
    /// Of an answer over HTTP.
    pub(super) status: Option<u16>,
    /// There is somebody, and one side does not want the other.
    is_refusal: bool,
    /// Dialling again would end the same way.
    pub(super) is_final: bool,
    /// What was looked for.
    sought: &'static str,
}

impl Unreached {
    pub(super) fn of_hub(error: &DialError) -> Self {
        Self {
            reason: error.to_string(),
            advice: advice(error),
            kind: kind(error),
            status: match error {
                DialError::Status { status, .. } => Some(*status),
                _ => None,
            },
            is_refusal: matches!(
                error,
                DialError::AlreadyConnected
                    | DialError::Status { status: 401, .. }
                    | DialError::SameSite { .. }
                    | DialError::ErrorFrame { .. }
                    | DialError::RefusedByPeer { .. }
            ),
            // Other than with what a hub or a network may get over.
            is_final: matches!(error, DialError::SameSite { .. } | DialError::Status { status: 401, .. }),
            sought: "hub",
        }
    }

    /// Of a program at the other end of a stream.
    pub(super) fn of_stream(error: &ChannelError) -> Self {
        let is_refusal = matches!(error, ChannelError::Refused { .. });
        let (advice, kind) = match error {
            // It is a peer's sentence for people, and says what to do.
            ChannelError::Refused { .. } => ("", "refused"),
            ChannelError::NoStream { .. } => {
                ("check that `ssh` is installed, or name another program with --ssh", "no_stream")
            }
            _ => {
                let advice = "what `ssh` and `litemesh stdio` said stands above; check the host, the path, and that `litemesh` is in \
                              the PATH there";
                (advice, "no_stream")
            }
        };
        let (reason, status) = (error.to_string(), None);
        let is_final = is_refusal || matches!(error, ChannelError::NoStream { .. });
        Self { reason, advice, kind, status, is_refusal, is_final, sought: "peer" }
    }

    /// The same, of one that is started for each stream. `lasting`: with which status it ended, where the next one would do so, too.
    pub(super) fn of_program(error: &ChannelError, lasting: Option<i32>) -> Self {
        let stream = Self::of_stream(error);
        match lasting {
            Some(status) => {
                let reason = format!("the command there ended with status {status} and had said nothing");
                Self { reason, is_final: true, ..stream }
            }
            None => stream,
        }
    }

    /// Of paired devices.
    pub(super) fn of_pairings(reason: String) -> Self {
        Self {
            reason,
            advice: "check the relays that `litemesh peers` lists, and that this machine is online",
            kind: "pairings",
            status: None,
            is_refusal: false,
            is_final: false,
            sought: "device",
        }
    }

    pub(super) fn what(&self, far: &str, when: &str) -> String {
        let (sought, reason) = (self.sought, &self.reason);
        if self.is_refusal {
            format!("cannot join the {sought} at {far}{when}: {reason}")
        } else {
            format!("no {sought} reached at {far}{when}: {reason}")
        }
    }

    /// The failure of a run that was not let in.
    pub(super) fn failure(&self, far: &str, when: &str) -> Failure {
        let what = self.what(far, when);
        if self.is_refusal { Failure::refused(what, self.advice) } else { Failure::network(what, self.advice) }
    }
}

/// What to do about a dial that failed.
fn advice(error: &DialError) -> &'static str {
    match error {
        DialError::UnknownHost { .. } => "check the name in the URL, and that this machine is online",
        DialError::ConnectionRefused => "check the URL, and that `litemesh serve` runs there",
        DialError::Tls { .. } => {
            "check that the URL's https and port are those of the hub or its proxy, and its certificate; --ca trusts an authority \
             of your own"
        }
        DialError::Status { status: 401, .. } => {
            "give the hub's token with --token-file or LITEMESH_TOKEN; `litemesh token new` makes one where the hub runs"
        }
        DialError::Status { status: 403 | 407, .. } => "a proxy in front of the hub wants other credentials",
        DialError::Status { status: 404 | 405, .. } => {
            "check the path of the URL: `litemesh serve` prints the whole URL"
        }
        DialError::Status { status: 429 | 500.., .. } => "the hub or its proxy cannot take us now: try again later",
        DialError::Status { .. } | DialError::NoStream { .. } => {
            "check the URL: what answers there is no hub, or a proxy that does not let the stream through"
        }
        DialError::AlreadyConnected => {
            "this file is connected already: end the other `litemesh sync` of it, or of a copy of it. A copy needs a site \
             id of its own: `litemesh fork COPY` gives it one"
        }
        DialError::SameSite { .. } => {
            "one file is a copy of the other, and needs a site id of its own: `litemesh fork COPY` gives it one"
        }
        DialError::ErrorFrame { .. } | DialError::RefusedByPeer { .. } => "the log of the hub may say more",
        // Those left, and those to come.
        _ => "check the URL and the network, and that `litemesh serve` runs there",
    }
}

/// One word for scripts.
fn kind(error: &DialError) -> &'static str {
    match error {
        DialError::UnknownHost { .. } => "unknown_host",
        DialError::ConnectionRefused => "connection_refused",
        DialError::Unreachable { .. } => "unreachable",
        DialError::Tls { .. } => "tls",
        DialError::TimedOut => "timed_out",
        DialError::Status { .. } => "status",
        DialError::NoStream { .. } => "no_stream",
        DialError::AlreadyConnected => "already_connected",
        DialError::SameSite { .. } => "same_site",
        DialError::ErrorFrame { .. } | DialError::RefusedByPeer { .. } => "refused",
        _ => "other",
    }
}
