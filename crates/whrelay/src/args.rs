//! What was typed. It must not resolve anything: defaults that depend on the machine come later.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use url::Url;
use whrelay_core::bucket::BucketName;
use whrelay_core::delivery::State;
use whrelay_core::limits;
use whrelay_core::outcome::RetryOn;
use whrelay_core::pace::Rate;
use whrelay_core::retry::{RetryPolicy, Schedule};
use whrelay_core::target::Target;
use whrelay_delivery::{Field, Fields, HostField, Trust};

/// The heading of flags that every command has.
const GLOBAL: &str = "Everywhere";
const REQUESTS: &str = "Requests to targets";

/// Webhooks to machines the internet cannot reach, and none lost.
///
/// Data goes to stdout, everything said to a person to stderr. Exit codes: 0 done, 1 failed, 2 wrong
/// use, 3 not found, 4 unauthorised, 5 network or forwarder unreachable, 6 already in use, 70 a bug.
#[derive(Debug, Parser)]
#[command(name = "whrelay", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// When to use colour
    #[arg(long, value_enum, default_value_t = When::Auto, env = "WHRELAY_COLOR", global = true, help_heading = GLOBAL)]
    pub(crate) color: When,
    /// Say only what was asked for, and errors
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub(crate) quiet: bool,
    /// Log more to stderr; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true, help_heading = GLOBAL)]
    pub(crate) verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Receive webhooks and deliver them to a local or private target
    Listen(Box<ListenArgs>),
    /// Show delivery attempts, newest last
    Logs(LogsArgs),
    /// List events, or show one
    Events(EventsArgs),
    /// Deliver events again
    Replay(ReplayArgs),
    /// Show how the agents stand
    Status(StatusArgs),
    /// Check what is kept on this machine, and save what is whole in a damaged store
    Doctor(DoctorArgs),
    /// Run the cloud side: public input URLs and tunnels
    Forwarder(ForwarderArgs),
    /// Show the whole way on this machine, with a receiver that fails and goes away
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListenArgs {
    /// Where events go: 3000, :3000, localhost:3000/base or http(s)://host[:port]/base
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<Target>,
    /// The same, as a flag; several targets each get every event
    #[arg(
        long,
        short = 'f',
        alias = "forward-to",
        value_name = "TARGET",
        env = "WHRELAY_TO"
    )]
    pub(crate) to: Vec<Target>,
    /// The bucket whose events are wanted; created where it is missing
    #[arg(long, default_value = "default", env = "WHRELAY_BUCKET")]
    pub(crate) bucket: BucketName,
    /// This agent's own place in the bucket: another name gets every event too
    #[arg(long, default_value = "default", env = "WHRELAY_NAME")]
    pub(crate) name: BucketName,
    /// The forwarder's URL; without one, an embedded forwarder runs in this process
    #[arg(long, value_name = "URL", env = "WHRELAY_FORWARDER", value_parser = forwarder_url)]
    pub(crate) forwarder: Option<Url>,
    /// The forwarder's access token; other users of this machine can see it in the process list
    #[arg(long, env = "WHRELAY_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// A file with the forwarder's access token
    #[arg(long, value_name = "FILE", env = "WHRELAY_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Where the embedded forwarder listens; nothing without one [default: the port it had before]
    #[arg(long, value_name = "ADDR:PORT", env = "WHRELAY_BIND")]
    pub(crate) bind: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) delivery: DeliveryArgs,
    /// A header field for every request to a target, in place of the sender's of that name; repeatable
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", help_heading = REQUESTS)]
    pub(crate) headers: Vec<Field>,
    /// The Host that targets get: rewrite (their own), preserve (the sender's), or a value
    #[arg(long, default_value = "rewrite", value_name = "WHICH", env = "WHRELAY_HOST_HEADER", help_heading = REQUESTS)]
    pub(crate) host_header: HostField,
    /// Do not check targets' certificates
    #[arg(long, alias = "skip-verify", env = "WHRELAY_INSECURE", help_heading = REQUESTS)]
    pub(crate) insecure: bool,
    /// Certificates (PEM) that targets and the forwarder may have been signed with, beside the machine's
    #[arg(long, value_name = "FILE", env = "WHRELAY_CA_FILE", value_parser = ca_file, help_heading = REQUESTS)]
    pub(crate) ca_file: Option<CaFile>,
    /// How to show what happens [default: interactive on a terminal, else compact]
    #[arg(long, value_enum, env = "WHRELAY_OUTPUT")]
    pub(crate) output: Option<ListenOutput>,
    /// JSON Lines on stdout: the same as --output json
    #[arg(long, conflicts_with = "output")]
    pub(crate) json: bool,
    /// Write the `ready` line to this file once everything works
    #[arg(long, value_name = "FILE", env = "WHRELAY_READY_FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListenOutput {
    /// A header, then two lines for each delivery
    Interactive,
    /// Two lines for each delivery
    Compact,
    /// JSON Lines
    Json,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Delivery")]
pub(crate) struct DeliveryArgs {
    /// Retry schedule: seconds (25 min), medium (16 h), long (30 d), or pauses such as 30s,5m,1h
    #[arg(long, default_value = "medium", env = "WHRELAY_SCHEDULE", value_parser = schedule)]
    pub(crate) schedule: Schedule,
    /// Time after which a delivery is given up; 0 for the schedule's own
    #[arg(long, default_value = "0s", env = "WHRELAY_DEADLINE", value_name = "DUR", value_parser = duration)]
    pub(crate) deadline: Duration,
    /// Time from the first failure until retries become rare
    #[arg(long, default_value = "15m", env = "WHRELAY_HANDOFF_AFTER", value_name = "DUR", value_parser = duration)]
    pub(crate) handoff_after: Duration,
    /// Attempts after which a delivery is given up; 0 for no bound but the deadline
    #[arg(
        long,
        default_value_t = 0,
        env = "WHRELAY_MAX_ATTEMPTS",
        value_name = "N"
    )]
    pub(crate) max_attempts: u32,
    /// Answers that are tried again: transient (408, 425, 429, 5xx) or non-2xx
    #[arg(long, value_enum, default_value_t = RetryOnArg::Transient, env = "WHRELAY_RETRY_ON")]
    pub(crate) retry_on: RetryOnArg,
    /// Time for one attempt; 0 for none, so that a breakpoint can wait
    #[arg(long, default_value = "30s", env = "WHRELAY_TIMEOUT", value_name = "DUR", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Deliveries at once, for each target
    #[arg(long, default_value_t = limits::MAX_IN_FLIGHT as u32, env = "WHRELAY_MAX_IN_FLIGHT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) max_in_flight: u32,
    /// Attempts in a second, minute or hour, for each target: 10/s, 600/m, 100/h [default: no bound]
    #[arg(long, env = "WHRELAY_RATE", value_name = "N/UNIT")]
    pub(crate) rate: Option<Rate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RetryOnArg {
    Transient,
    #[value(name = "non-2xx")]
    NonSuccess,
}

impl ListenArgs {
    /// The manner of delivery these flags ask for.
    pub(crate) fn manner(&self) -> whrelay_agent::Manner {
        let delivery = &self.delivery;
        let policy = RetryPolicy {
            schedule: delivery.schedule.clone(),
            deadline: delivery.deadline,
            handoff_after: delivery.handoff_after,
            max_attempts: delivery.max_attempts,
            retry_on: match delivery.retry_on {
                RetryOnArg::Transient => RetryOn::Transient,
                RetryOnArg::NonSuccess => RetryOn::NonSuccess,
            },
        };
        whrelay_agent::Manner {
            policy,
            timeout: delivery.timeout,
            max_in_flight: delivery.max_in_flight as usize,
            rate: delivery.rate,
            fields: Fields::new(self.host_header.clone(), self.headers.clone()),
            trust: match (self.insecure, &self.ca_file) {
                (true, _) => Trust::anyone(),
                (false, Some(CaFile(trust))) => trust.clone(),
                (false, None) => Trust::default(),
            },
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// From then on: a duration back from now (2h) or an RFC 3339 time
    #[arg(long, value_name = "DUR|TIME", value_parser = when)]
    pub(crate) since: Option<i64>,
    /// Until then
    #[arg(long, value_name = "DUR|TIME", value_parser = when)]
    pub(crate) until: Option<i64>,
    /// In this state: queued, stalled, sent or dead
    #[arg(long)]
    pub(crate) status: Option<State>,
    /// Of this bucket
    #[arg(long)]
    pub(crate) bucket: Option<BucketName>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on with the attempts that come, across every agent, waiting where none runs
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EventsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<EventsCommand>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// List events, newest last
    List(ListArgs),
    /// Show one event
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// How many
    #[arg(short = 'n', long = "lines", default_value_t = 50, value_name = "N")]
    pub(crate) lines: usize,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// Only this event
    #[arg(long, value_name = "ID")]
    pub(crate) event: Option<String>,
    /// JSON Lines
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The event
    pub(crate) id: String,
    /// Only its header fields
    #[arg(long, group = "part")]
    pub(crate) headers: bool,
    /// Only its body, to the byte
    #[arg(long, group = "part")]
    pub(crate) body: bool,
    /// Only its attempts
    #[arg(long, group = "part")]
    pub(crate) attempts: bool,
    /// JSON Lines: the event, then its attempts
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The events
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Another target than the agent's; delivered at once even where no agent runs
    #[arg(long, value_name = "TARGET")]
    pub(crate) to: Option<Target>,
    /// Wait until all are delivered or given up; exit 1 if any was not delivered
    #[arg(long)]
    pub(crate) wait: bool,
    /// JSON Lines
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// JSON Lines: one for each agent
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Only these directories of stores [default: all that are known]
    #[arg(value_name = "DIR")]
    pub(crate) dirs: Vec<PathBuf>,
    /// Put what is whole in each damaged store into a new one; the damaged file is kept beside it
    #[arg(long)]
    pub(crate) salvage: bool,
    /// JSON Lines: one for each check
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ForwarderArgs {
    /// Where it listens
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:8080",
        env = "WHRELAY_BIND"
    )]
    pub(crate) bind: SocketAddr,
    /// What senders put before /in/… [default: http:// and the address it listens on]
    #[arg(long, value_name = "URL", env = "WHRELAY_PUBLIC_URL", value_parser = forwarder_url)]
    pub(crate) public_url: Option<Url>,
    /// Where its store and token file are
    #[arg(long, value_name = "DIR", env = "WHRELAY_FORWARDER_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// JSON Lines
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How many webhooks
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) events: u32,
    /// How long the receiver goes away half-way
    #[arg(long, default_value = "3s", value_name = "DUR", value_parser = duration)]
    pub(crate) down: Duration,
}

/// Certificates that were read from a file.
#[derive(Clone, Debug)]
pub(crate) struct CaFile(pub(crate) Trust);

fn ca_file(path: &str) -> Result<CaFile, String> {
    let pem = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let trust = Trust::default().with_pem(&pem);
    trust.map(CaFile).map_err(|e| format!("{path}: {e}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let hint = |e| format!("{e}; write a number and a unit, such as 500ms, 30s, 5m, 2h or 7d");
    humantime::parse_duration(text.trim()).map_err(hint)
}

fn schedule(text: &str) -> Result<Schedule, String> {
    match text {
        "seconds" => Ok(Schedule::Seconds),
        "medium" => Ok(Schedule::Medium),
        "long" => Ok(Schedule::Long),
        list => {
            let pauses = list.split(',').map(duration).collect::<Result<_, _>>();
            let hint = |e| format!("{e}; or use seconds, medium or long");
            pauses.map(Schedule::Listed).map_err(hint)
        }
    }
}

/// A point in time, in microseconds since 1970: a time, or a duration back from now.
fn when(text: &str) -> Result<i64, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.as_microsecond());
    }
    let back =
        duration(text).map_err(|e| format!("{e}; or a time such as 2026-11-22T10:15:03Z"))?;
    let back = jiff::SignedDuration::try_from(back).map_err(|e| e.to_string())?;
    let then = jiff::Timestamp::now()
        .checked_sub(back)
        .map_err(|e| e.to_string())?;
    Ok(then.as_microsecond())
}

/// A forwarder's address. Without a scheme it is https, except on this machine: a token must not
/// cross a network in the clear unless somebody says so.
fn forwarder_url(text: &str) -> Result<Url, String> {
    let host = text.split(['/', ':']).next().unwrap_or_default();
    let local = host == "localhost" || host.starts_with("127.") || text.starts_with("[::1]");
    let full = match (text.contains("://"), local) {
        (true, _) => text.to_owned(),
        (false, true) => format!("http://{text}"),
        (false, false) => format!("https://{text}"),
    };
    let url = Url::parse(&full).map_err(|e| e.to_string())?;
    let nobody = url.username().is_empty() && url.password().is_none();
    let plain = url.query().is_none() && url.fragment().is_none() && nobody;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain {
        return Err("a forwarder's URL is http(s)://host[:port]".into());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_spelling_of_the_target_is_the_same() {
        for typed in [
            &["3000"][..],
            &["--to", "3000"],
            &["-f", ":3000"],
            &["--forward-to", "http://localhost:3000/"],
        ] {
            let cli = Cli::try_parse_from(["whrelay", "listen"].iter().chain(typed));
            let Ok(Cli {
                command: Command::Listen(args),
                ..
            }) = cli
            else {
                unreachable!("{typed:?} is a listen")
            };
            let all: Vec<_> = args
                .targets
                .iter()
                .chain(&args.to)
                .map(Target::to_string)
                .collect();
            assert_eq!(all, ["http://localhost:3000"], "{typed:?}");
        }
    }

    #[test]
    fn nonsense_values_are_refused_by_name() {
        for (typed, named) in [
            (&["listen", "--to", "ftp://x"][..], "--to"),
            (&["listen", "3000", "--timeout", "soon"], "--timeout"),
            (&["listen", "3000", "--schedule", "hourly"], "--schedule"),
            (&["listen", "3000", "--bucket", "../x"], "--bucket"),
            (
                &["listen", "3000", "--max-in-flight", "0"],
                "--max-in-flight",
            ),
            (&["listen", "3000", "--rate", "fast"], "--rate"),
            (&["listen", "3000", "-H", "no field"], "--header"),
            (&["listen", "3000", "--ca-file", "/nowhere"], "--ca-file"),
            (&["listen", "3000", "--forwarder", "ftp://x"], "--forwarder"),
            (&["logs", "--since", "yesterday"], "--since"),
            (&["logs", "--status", "happy"], "--status"),
        ] {
            let refused =
                Cli::try_parse_from(["whrelay"].iter().chain(typed)).expect_err("refused");
            assert_eq!(refused.exit_code(), 2);
            assert!(refused.to_string().contains(named), "{refused}");
        }
    }

    #[test]
    fn a_token_crosses_no_network_in_the_clear_by_default() {
        let url = |text| forwarder_url(text).map(|url| url.to_string());
        assert_eq!(
            url("hooks.example.com"),
            Ok("https://hooks.example.com/".into())
        );
        assert_eq!(url("localhost:8080"), Ok("http://localhost:8080/".into()));
        assert_eq!(url("http://10.0.0.1"), Ok("http://10.0.0.1/".into()));
        assert!(url("https://u:p@h").is_err() && url("https://h/?q").is_err());
    }

    #[test]
    fn what_the_environment_sets_for_others_conflicts_with_nothing() {
        let typed = [
            "--forwarder",
            "h",
            "--bind",
            "127.0.0.1:1",
            "--token",
            "t",
            "--token-file",
            "f",
        ];
        assert!(Cli::try_parse_from(["whrelay", "listen", "1"].iter().chain(&typed)).is_ok());
    }

    #[test]
    fn schedules_and_durations() {
        let list = [30, 300, 7200].map(Duration::from_secs).to_vec();
        assert_eq!(schedule("30s,5m,2h"), Ok(Schedule::Listed(list)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(when("2026-11-22T10:15:03Z").is_ok() && when("2h").is_ok());
    }
}
