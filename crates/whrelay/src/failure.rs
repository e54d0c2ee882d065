//! What went wrong, for people and scripts: a code, one line, and where possible a hint. It must
//! not know how to avoid it.

use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use whrelay_agent::control::Unanswered;
use whrelay_agent::{AgentError, ManagementError};
use whrelay_store::{Fault, OpenError, StoreError};

use crate::agents::LISTEN;
use crate::embedded::FORWARDER;
use crate::output::Output;

/// The exit codes of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// What was asked for failed.
    Failed = 1,
    /// Wrong use.
    Usage = 2,
    /// Something does not exist.
    NotFound = 3,
    /// The token is missing or not valid.
    Unauthorised = 4,
    /// The network or the forwarder cannot be reached.
    Unreachable = 5,
    /// Another process has it.
    InUse = 6,
    /// A bug of ours.
    Bug = 70,
}

/// Why a command ends.
#[derive(Debug)]
pub(crate) enum Failure {
    /// To be told.
    Told {
        code: Code,
        message: String,
        hint: Option<String>,
    },
    /// A command that was run ended with this code, which is then ours.
    Ran { code: u8, message: String },
    /// Whoever read our output has closed it: that is success.
    BrokenPipe,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self::Told {
            code,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Told { code, message, .. } => Self::Told {
                code,
                message,
                hint: Some(text.into()),
            },
            Self::Ran { .. } | Self::BrokenPipe => self,
        }
    }

    /// Whether another process has what is needed.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(
            self,
            Self::Told {
                code: Code::InUse,
                ..
            }
        )
    }

    /// Whether the network or a forwarder cannot be reached.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Told {
                code: Code::Unreachable,
                ..
            }
        )
    }

    /// What went wrong, in one line.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Told { message, .. } | Self::Ran { message, .. } => message,
            Self::BrokenPipe => "the output was closed",
        }
    }

    /// Says it on stderr and answers with its code.
    pub(crate) fn report(self, output: &Output) -> ExitCode {
        match self {
            Self::BrokenPipe => ExitCode::SUCCESS,
            Self::Ran { code, message } => {
                output.error(&message, None);
                ExitCode::from(code)
            }
            Self::Told {
                code,
                message,
                hint,
            } => {
                output.error(&message, hint.as_deref());
                ExitCode::from(code as u8)
            }
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::new(Code::Failed, format!("cannot write the output: {error}"))
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let message = error.to_string();
        match error {
            OpenError::InUse { purpose, .. } => Self::new(Code::InUse, message).hint(
                match purpose.as_str() {
                    LISTEN => {
                        "add the destination there (`listen --to A --to B`), or give this one another --bucket"
                    }
                    FORWARDER => "stop that process, or give this one another --data-dir",
                    _ => "try again once that process has ended",
                },
            ),
            OpenError::Io { .. } => {
                Self::new(Code::Failed, message).hint("choose another place with WHRELAY_DATA_DIR")
            }
            OpenError::Newer { .. } => {
                Self::new(Code::Failed, message).hint("install the newer whrelay")
            }
            OpenError::Damaged { path, .. } => {
                Self::new(Code::Failed, message).hint(see_doctor(&path))
            }
            OpenError::Foreign { .. } | OpenError::Older { .. } | OpenError::Role { .. } => {
                Self::new(Code::Failed, message)
                    .hint("move the file away to begin with an empty store")
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let failure = Self::new(Code::Failed, format!("the store failed: {error}"));
        match error {
            StoreError::Broken(Fault::Structure { file, .. }) => failure.hint(see_doctor(&file)),
            StoreError::Damaged(_) => failure.hint("`whrelay doctor` says what is damaged"),
            StoreError::Full
            | StoreError::Bound
            | StoreError::Share
            | StoreError::Reopening
            | StoreError::Broken(Fault::Failed(_)) => failure,
        }
    }
}

impl From<Unanswered> for Failure {
    fn from(error: Unanswered) -> Self {
        let hint = match error {
            Unanswered::Gone => "try again".to_owned(),
            Unanswered::Silent(pid) => format!("`kill -CONT {pid}` lets it go on"),
            Unanswered::Refused { .. } => {
                "where it is a `listen` of another version, start it again".to_owned()
            }
        };
        Self::new(Code::Failed, error.to_string()).hint(hint)
    }
}

/// What helps where a forwarder cannot be reached for a reason.
pub(crate) fn unreachable_hint(why: &str) -> &'static str {
    if why.contains("websocket upgrades") {
        "let the proxy pass them, such as nginx with proxy_set_header Upgrade $http_upgrade; docs/deploying.md has \
         settings that were tried"
    } else if why.contains("before it does not reach") {
        "does `whrelay forwarder` run there, and does the proxy pass requests to its address?"
    } else if why.contains("--ca-file") {
        "--ca-file FILE trusts the certificate of the forwarder, or of who vouches for it"
    } else {
        "is the address right, and does `whrelay forwarder` run there?"
    }
}

impl From<ManagementError> for Failure {
    fn from(error: ManagementError) -> Self {
        match error {
            ManagementError::Agent(error) => error.into(),
            ManagementError::NotFound(why) => Self::new(Code::NotFound, why),
            ManagementError::InUse(why) => Self::new(Code::InUse, why),
        }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let message = error.to_string();
        match error {
            AgentError::Unreachable { why, .. } => {
                let hint = unreachable_hint(&why);
                Self::new(Code::Unreachable, message).hint(hint)
            }
            AgentError::Unauthorised(_) => Self::new(Code::Unauthorised, message)
                .hint("give the forwarder's token with --token-file or WHRELAY_TOKEN"),
            AgentError::Replaced(_) | AgentError::InUse(_) => Self::new(Code::InUse, message).hint(
                "--name NAME gives this agent a subscription of its own; --take-over takes this one",
            ),
            AgentError::Setup(error) => Self::new(Code::Usage, message).hint(error.hint()),
            AgentError::Store(error) => Self::from(error),
            AgentError::Refused(_) | AgentError::Tls(_) | AgentError::Control(_) => {
                Self::new(Code::Failed, message)
            }
        }
    }
}

/// What helps with a damaged file of a store.
fn see_doctor(file: &Path) -> String {
    let dir = file.parent().unwrap_or(file).display();
    format!("`whrelay doctor {dir}` says what is damaged; with --salvage it saves what is whole")
}

/// Flags whose values may have secrets in them.
const SECRET_FLAGS: [&str; 5] = [
    "--header",
    "--token",
    "--secret",
    "--forwarder",
    "--provider",
];

/// What clap says is wrong, without its advice and without secrets.
pub(crate) fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(_) | None => None,
    };
    let flag = said(ContextKind::InvalidArg).filter(|flag| {
        let mut secret = SECRET_FLAGS.iter();
        secret.any(|secret| flag.starts_with(secret))
    });
    let value = said(ContextKind::InvalidValue).filter(|value| !value.is_empty());
    let text = match (flag, value) {
        // What a provider's secret lacks is told without it.
        (Some(flag), Some(value)) if flag.starts_with("--provider") => {
            text.replacen(&format!("'{value}'"), "'…'", 1)
        }
        (Some(_), Some(value)) => text.replace(value, "…"),
        (_, _) => text,
    };
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = first.lines().map(str::trim).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}
