//! What was typed. It must not resolve anything: defaults that depend on the machine come later.

// By path, since a fuzzer has this file as its own.
#[path = "args/delivery.rs"]
mod delivery;
#[path = "args/destination.rs"]
mod destination;
#[path = "args/events.rs"]
mod events;
#[path = "args/examples.rs"]
mod examples;
#[path = "args/requests.rs"]
mod requests;
#[path = "args/service.rs"]
mod service;
#[path = "args/signatures.rs"]
mod signatures;
#[path = "args/subscription.rs"]
mod subscription;
#[path = "args/trigger.rs"]
mod trigger;
#[path = "args/values.rs"]
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use url::Url;
use whrelay_core::bucket::BucketName;
use whrelay_core::destination::{OptionKey, Spec};
use whrelay_core::duration;
use whrelay_core::retention::{Bound, Retention};
use whrelay_core::route::Route;

pub(crate) use self::delivery::DeliveryArgs;
pub(crate) use self::destination::{
    DestinationArgs, DestinationCommand, DestinationPlace, SetArgs, WhichDestination,
};
pub(crate) use self::events::*;
pub(crate) use self::requests::RequestArgs;
pub(crate) use self::service::{Service, ServiceArgs, ServiceCommand};
pub(crate) use self::signatures::{is_reference, key};
pub(crate) use self::subscription::{BucketPlace, SubscriptionArgs, SubscriptionCommand};
pub(crate) use self::trigger::TriggerArgs;
pub(crate) use self::values::{CaFile, Matcher, Newest, Percent, PublicBy, expanded};
use self::values::{
    backlog, bind, bytes, ca_file, forwarder_url, matcher, max_body, past, percent,
};

/// The heading of flags that every command has.
const GLOBAL: &str = "Everywhere";

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
    /// Take what configuration files say for this profile, too
    #[arg(long, value_name = "NAME", env = "WHRELAY_PROFILE", global = true, help_heading = GLOBAL)]
    pub(crate) profile: Option<String>,
    /// Print only results and errors
    #[arg(short, long, env = "WHRELAY_QUIET", value_parser = clap::builder::BoolishValueParser::new(), global = true, help_heading = GLOBAL)]
    pub(crate) quiet: bool,
    /// Log more to stderr; twice for everything
    #[arg(short, long, env = "WHRELAY_VERBOSE", action = clap::ArgAction::Count, global = true, help_heading = GLOBAL)]
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
    /// Stop retrying events: mark them dead
    Discard(DiscardArgs),
    /// Show the state of the agents and forwarders on this machine
    Status(StatusArgs),
    /// List, change, pause or remove the destinations that events go to
    Destination(DestinationArgs),
    /// List, end or replay the subscriptions of a bucket
    Subscription(SubscriptionArgs),
    /// Check what is kept on this machine, and save what is whole in a damaged store
    Doctor(DoctorArgs),
    /// Run the cloud side: public input URLs and tunnels
    Forwarder(ForwarderArgs),
    /// Show the whole way on this machine, with a receiver that fails and goes away
    Demo(DemoArgs),
    /// Run a receiver that fails and goes away, to try retries on
    Flaky(FlakyArgs),
    /// Send a sample webhook of a provider, signed as it signs
    Trigger(TriggerArgs),
    /// Run a command and wait for N deliveries (for CI)
    Test(TestArgs),
    /// Keep listen or forwarder running, as a service of this user
    Service(ServiceArgs),
    /// Show what is configured, and where, or check the files
    Config(ConfigArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(ManArgs),
}

impl Command {
    /// How requests to targets are made, where any are.
    pub(crate) fn requests(&self) -> Option<&RequestArgs> {
        if let Self::Listen(args) = self {
            Some(&args.requests)
        } else if let Self::Test(args) = self {
            Some(&args.requests)
        } else if let Self::Replay(args) = self {
            Some(&args.requests)
        } else {
            None
        }
    }

    /// The choice of a forwarder, where there is one.
    pub(crate) fn forwarder(&mut self) -> Option<&mut ForwarderChoice> {
        if let Self::Listen(args) = self {
            Some(&mut args.forwarder)
        } else if let Self::Test(args) = self {
            Some(&mut args.forwarder)
        } else if let Self::Doctor(args) = self {
            Some(&mut args.forwarder)
        } else if let Self::Status(args) = self {
            Some(&mut args.forwarder)
        } else if let Self::Subscription(args) = self {
            Some(args.forwarder())
        } else {
            None
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = examples::LISTEN)]
pub(crate) struct ListenArgs {
    /// Where events go: 3000, :3000, localhost:3000/base, http(s)://host[:port]/base, unix:/path, or one of these with
    /// a name: api=localhost:3000
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<Spec>,
    /// Destination to deliver to (repeatable; each gets every event): a target, NAME=TARGET, or the NAME of one that is
    /// known. The name keeps the queue when the target changes
    #[arg(
        long,
        short = 'f',
        alias = "forward-to",
        value_name = "TARGET",
        env = "WHRELAY_TO"
    )]
    pub(crate) to: Vec<Spec>,
    /// Whether one of these was typed or set in the environment: then files name no further destinations.
    #[arg(skip)]
    pub(crate) to_is_typed: bool,
    /// Events under a path go to this destination instead; the longest path counts, and several for one path each
    /// get its events
    #[arg(
        long,
        value_name = "/PATH=TARGET",
        env = "WHRELAY_ROUTE",
        value_delimiter = ' '
    )]
    pub(crate) route: Vec<Route>,
    /// Whether routes were typed or set in the environment.
    #[arg(skip)]
    pub(crate) route_is_typed: bool,
    /// Give an option of the destinations its default again; repeatable: schedule, deadline, handoff-after, max-attempts,
    /// retry-on, timeout, max-in-flight, rate or order
    #[arg(long, value_name = "OPTION")]
    pub(crate) reset: Vec<OptionKey>,
    /// The bucket whose events are wanted; created where it is missing
    #[arg(long, default_value = "default", env = "WHRELAY_BUCKET")]
    pub(crate) bucket: BucketName,
    /// Name of this agent's subscription; each name gets its own copy of every event [default: one drawn for
    /// this data directory]
    #[arg(long, env = "WHRELAY_NAME")]
    pub(crate) name: Option<BucketName>,
    /// Take the subscription from another agent that is connected with it
    #[arg(long)]
    pub(crate) take_over: bool,
    #[command(flatten)]
    pub(crate) forwarder: ForwarderChoice,
    /// How many of the events from before are delivered: all, none, or newest=N; the rest is discarded
    /// [default: all that are queued for this subscription; a later subscription of a bucket starts with new events]
    #[arg(long, value_name = "WHICH", env = "WHRELAY_BACKLOG", value_parser = backlog)]
    pub(crate) backlog: Option<Newest>,
    /// Of what came before, only what was received since: a duration back from now (2h) or a time
    #[arg(long, value_name = "DUR|TIME", env = "WHRELAY_SINCE", value_parser = past)]
    pub(crate) since: Option<i64>,
    /// Give the embedded forwarder a public URL by an installed program: auto (cloudflared, else ngrok), cloudflared, ngrok,
    /// or ssh:USER@HOST
    #[arg(
        long,
        value_name = "HOW",
        env = "WHRELAY_PUBLIC",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "auto"
    )]
    pub(crate) public: Option<PublicBy>,
    /// How to show what happens [default: interactive on a terminal, else compact]
    #[arg(long, value_enum, env = "WHRELAY_OUTPUT")]
    pub(crate) output: Option<ListenOutput>,
    /// JSON Lines on stdout: the same as --output json
    #[arg(long, conflicts_with = "output")]
    pub(crate) json: bool,
    /// Exit with code 5 once the tunnel has been down for so long [default: it is dialled for ever]
    #[arg(long, value_name = "DUR", env = "WHRELAY_EXIT_ON_DISCONNECT", value_parser = duration::parse_some)]
    pub(crate) exit_on_disconnect: Option<Duration>,
    /// Write the `ready` line to this file once everything works
    #[arg(long, value_name = "FILE", env = "WHRELAY_READY_FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) requests: RequestArgs,
    #[command(flatten)]
    pub(crate) delivery: DeliveryArgs,
    #[command(flatten)]
    pub(crate) retention: RetentionArgs,
}

/// What a store keeps.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Storage")]
pub(crate) struct RetentionArgs {
    /// How long what has ended is kept; 0 for ever. What waits is kept until it ends
    #[arg(long, default_value = "7d", value_name = "DUR", env = "WHRELAY_RETAIN", value_parser = duration::parse)]
    retain: Duration,
    /// Bytes that a store may hold, such as 2GB; at least 1MB. Before that, what has ended goes, the oldest
    /// first and bodies before the rest; what waits never does, and once only that is left, nothing new is
    /// taken in. A forwarder's buckets share it: a bucket can be refused at three quarters [default: no bound]
    #[arg(long, value_name = "SIZE", env = "WHRELAY_MAX_DISK", value_parser = bytes)]
    max_disk: Option<u64>,
}

impl RetentionArgs {
    /// What these flags ask for, of a store that has one bucket, or that several share.
    pub(crate) fn retention(self, shared: bool) -> Retention {
        let Self { retain, max_disk } = self;
        let bound = |bytes| Bound { bytes, shared };
        Retention {
            retain,
            max_disk: max_disk.map(bound),
            ..Retention::ALL
        }
    }

    /// The same of a forwarder that takes bodies up to a size.
    pub(crate) fn of_forwarder(self, max_body: usize) -> Retention {
        Retention {
            largest: max_body as u64,
            ..self.retention(true)
        }
    }
}

/// Which forwarder, and how it is asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct ForwarderChoice {
    /// The forwarder's URL; without one, an embedded forwarder runs in this process
    #[arg(long = "forwarder", value_name = "URL", env = "WHRELAY_FORWARDER", value_parser = forwarder_url)]
    pub(crate) url: Option<Url>,
    /// The forwarder's access token; other users of this machine can see it in the process list
    #[arg(long, env = "WHRELAY_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Whether the token was typed: then it counts before a file's.
    #[arg(skip)]
    pub(crate) token_is_typed: bool,
    /// Whether the URL is from a place that is less trusted than that of the token.
    #[arg(skip)]
    pub(crate) is_less_trusted: bool,
    /// Send the token to a forwarder on another machine by http, where everyone on the way can read it
    #[arg(
        long,
        env = "WHRELAY_ALLOW_PLAIN_HTTP",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub(crate) allow_plain_http: bool,
    /// A file with the forwarder's access token
    #[arg(long, value_name = "FILE", env = "WHRELAY_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Where the embedded forwarder listens: a port, or an address with its port [default: the port it had
    /// before]
    #[arg(long, value_name = "ADDR:PORT", env = "WHRELAY_BIND", value_parser = bind)]
    pub(crate) bind: Option<SocketAddr>,
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

#[derive(Debug, Args)]
#[command(after_help = examples::STATUS)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) forwarder: ForwarderChoice,
    /// Certificates (PEM) to trust beside the machine's
    #[arg(long, value_name = "FILE", env = "WHRELAY_CA_FILE", value_parser = ca_file)]
    pub(crate) ca_file: Option<CaFile>,
    /// Where the forwarder of this machine has its store
    #[arg(long, value_name = "DIR", env = "WHRELAY_FORWARDER_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// JSON Lines: one for each agent and forwarder
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::DOCTOR)]
pub(crate) struct DoctorArgs {
    /// Only these directories of stores [default: all that are known]
    #[arg(value_name = "DIR")]
    pub(crate) dirs: Vec<PathBuf>,
    /// Put what is whole in each damaged store into a new one; the damaged file is kept beside it
    #[arg(long)]
    pub(crate) salvage: bool,
    /// Give the space that is free in the files of stores back to the disk; those in use do by themselves what
    /// takes no more than a moment
    #[arg(long)]
    pub(crate) compact: bool,
    #[command(flatten)]
    pub(crate) forwarder: ForwarderChoice,
    /// Targets that have to take connections, beside those of the agents that run
    #[arg(long, value_name = "TARGET", env = "WHRELAY_TO")]
    pub(crate) to: Vec<Spec>,
    /// Certificates (PEM) to trust beside the machine's
    #[arg(long, value_name = "FILE", env = "WHRELAY_CA_FILE", value_parser = ca_file)]
    pub(crate) ca_file: Option<CaFile>,
    /// JSON Lines: one for each check
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::FORWARDER)]
pub(crate) struct ForwarderArgs {
    /// Where it listens: a port of this machine, or an address with its port
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", env = "WHRELAY_BIND", value_parser = bind)]
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
    #[command(flatten)]
    pub(crate) retention: RetentionArgs,
    /// End subscriptions whose agents have been away longer than this [default: never]
    #[arg(long, value_name = "DUR", env = "WHRELAY_SUBSCRIPTION_TTL", value_parser = duration::parse_some)]
    pub(crate) subscription_ttl: Option<Duration>,
    /// Largest body that it takes, from 1KiB to 100MiB; a larger one is answered with 413
    #[arg(long, value_name = "SIZE", default_value = "25MiB", env = "WHRELAY_MAX_BODY", value_parser = max_body)]
    pub(crate) max_body: usize,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How many webhooks
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) events: u32,
    /// How long the receiver goes away half-way
    #[arg(long, default_value = "3s", value_name = "DUR", value_parser = duration::parse)]
    pub(crate) down: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = examples::FLAKY)]
pub(crate) struct FlakyArgs {
    /// The port it listens on; 0 for any that is free
    #[arg(long, default_value_t = 4100, env = "WHRELAY_PORT")]
    pub(crate) port: u16,
    /// How many of the requests it answers with 503
    #[arg(long, default_value = "80%", value_name = "PERCENT", value_parser = percent)]
    pub(crate) fail: Percent,
    /// Goes away for so long, stays three times as long, and so on [default: it stays]
    #[arg(long, value_name = "DUR", value_parser = duration::parse_some)]
    pub(crate) down: Option<Duration>,
    /// After that time it answers everything with 200, and stays [default: never]
    #[arg(long, value_name = "DUR", value_parser = duration::parse)]
    pub(crate) always_after: Option<Duration>,
    /// JSON Lines: one for each request
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::TEST)]
pub(crate) struct TestArgs {
    /// How many events have to be delivered: so many and no more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) expect: u32,
    /// As many as --expect says, or more
    #[arg(long)]
    pub(crate) at_least: bool,
    /// Only events that are like this: path=/stripe, method=POST or kind=push; repeatable, all must hold
    #[arg(long = "match", value_name = "WHAT=VALUE", value_parser = matcher)]
    pub(crate) matches: Vec<Matcher>,
    /// How long all of it may take
    #[arg(long, default_value = "30s", value_name = "DUR", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
    /// Where events go
    #[arg(
        long,
        short = 'f',
        alias = "forward-to",
        value_name = "TARGET",
        env = "WHRELAY_TO",
        required = true
    )]
    pub(crate) to: Vec<Spec>,
    /// The bucket whose events are wanted
    #[arg(long, default_value = "test", env = "WHRELAY_BUCKET")]
    pub(crate) bucket: BucketName,
    #[command(flatten)]
    pub(crate) forwarder: ForwarderChoice,
    /// JSON Lines on stdout, as of listen
    #[arg(long)]
    pub(crate) json: bool,
    /// The command to run; it gets the input URL in WHRELAY_URL and has to succeed
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<std::ffi::OsString>,
    #[command(flatten)]
    pub(crate) requests: RequestArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Every key, its value, and where that is from
    Show {
        /// JSON Lines
        #[arg(long)]
        json: bool,
    },
    /// Whether the files make sense
    Check,
    /// Accept this directory's whrelay.toml as it is now, so that it may set everything
    Trust {
        /// Remove the acceptance
        #[arg(long)]
        revoke: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = examples::COMPLETIONS)]
pub(crate) struct CompletionsArgs {
    /// bash, zsh, fish, powershell or elvish
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write a page for each command into this directory, instead
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
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
                .map(Spec::to_string)
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
            (&["listen", "3000", "--reset", "speed"], "--reset"),
            (&["listen", "--to", "a b=3000"], "--to"),
            (&["destination", "set", "api", "--order", "x"], "--order"),
            (&["destination", "pause", "Api"], "NAME"),
            (&["listen", "3000", "--order", "lifo"], "--order"),
            (&["listen", "3000", "--retain", "long"], "--retain"),
            (&["forwarder", "--max-disk", "5"], "--max-disk"),
            (&["forwarder", "--max-body", "0"], "--max-body"),
            (&["forwarder", "--max-body", "101MiB"], "--max-body"),
            (&["forwarder", "--max-body=-1"], "--max-body"),
            (&["listen", "3000", "--route", "stripe=3001"], "--route"),
            (&["listen", "3000", "--backlog", "some"], "--backlog"),
            (&["replay", "--reason", "whim"], "--reason"),
            (&["replay", "--all", "--times", "0"], "--times"),
            (&["listen", "3000", "-H", "no field"], "--header"),
            (&["listen", "3000", "--ca-file", "/nowhere"], "--ca-file"),
            (&["listen", "3000", "--provider", "acme=x"], "--provider"),
            (&["listen", "3000", "--resign", "late"], "--resign"),
            (&["listen", "3000", "--unverified", "x"], "--unverified"),
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
}
