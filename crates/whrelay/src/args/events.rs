//! Flags of the commands that list events, show them, or do something to them.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use whrelay_core::bucket::BucketName;
use whrelay_core::delivery::{DeadReason, State};
use whrelay_core::destination::Spec;
use whrelay_core::duration;
use whrelay_core::pace::Rate;

use super::examples;
use super::requests::RequestArgs;
use super::values::{event, when};

#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Only entries at or after this time: a duration back from now (2h) or an RFC 3339 time
    #[arg(long, value_name = "DUR|TIME", value_parser = when)]
    pub(crate) since: Option<i64>,
    /// Only entries at or before this time
    #[arg(long, value_name = "DUR|TIME", value_parser = when)]
    pub(crate) until: Option<i64>,
    /// In this state
    #[arg(
        long,
        value_parser = PossibleValuesParser::new(State::ALL.map(State::as_str))
            .try_map(|word| word.parse::<State>())
    )]
    pub(crate) status: Option<State>,
    /// Given up for this reason
    #[arg(
        long,
        value_parser = PossibleValuesParser::new(DeadReason::ALL.map(DeadReason::as_str))
            .try_map(|word| word.parse::<DeadReason>())
    )]
    pub(crate) reason: Option<DeadReason>,
    /// To the destination of this name or URL
    #[arg(long, value_name = "NAME|URL")]
    pub(crate) target: Option<Spec>,
    /// Of this bucket
    #[arg(long)]
    pub(crate) bucket: Option<BucketName>,
    /// That the sender calls this, as push or invoice.paid
    #[arg(long, value_name = "NAME")]
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::LOGS)]
pub(crate) struct LogsArgs {
    /// Go on with the attempts that come, across every agent, waiting where none runs
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Args)]
#[command(after_help = examples::EVENTS)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct EventsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<EventsCommand>,
    #[command(flatten)]
    pub(crate) list: EventListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// List events, newest last
    List(EventListArgs),
    /// Show one event
    Show(ShowArgs),
    /// Write events with their headers, bodies and attempts to a file
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct EventListArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Count them by how their last attempts ended, instead
    #[arg(long, conflicts_with = "lines")]
    pub(crate) group: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::EXPORT)]
pub(crate) struct ExportArgs {
    /// har (HTTP Archive 1.2, an entry for each attempt) or json (JSON Lines, bodies in base64)
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// How many, the newest [default: all]
    #[arg(short = 'n', long = "lines", value_name = "N")]
    pub(crate) lines: Option<usize>,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// Only this event
    #[arg(long, value_name = "ID", value_parser = event)]
    pub(crate) event: Option<String>,
    /// Where to [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    Har,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// How many, the newest
    #[arg(short = 'n', long = "lines", default_value_t = 50, value_name = "N")]
    pub(crate) lines: usize,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// Only this event
    #[arg(long, value_name = "ID", value_parser = event)]
    pub(crate) event: Option<String>,
    /// JSON Lines
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::SHOW)]
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
    /// Only a curl command that makes the same request, to the byte
    #[arg(long, group = "part")]
    pub(crate) curl: bool,
    /// JSON Lines: the event, then its attempts
    #[arg(long)]
    pub(crate) json: bool,
}

/// The events that something is done to.
#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    /// The events; or use a filter, or --all
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// Every event
    #[arg(long)]
    pub(crate) all: bool,
    /// Only list the events this would be done to
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// JSON Lines
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::REPLAY)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    /// A URL for these replays alone, delivered at once even where no `listen` runs; or the name of a destination
    #[arg(long, value_name = "URL|NAME")]
    pub(crate) to: Option<Spec>,
    /// How fast they begin: 10/s, 600/m, 100/h [default: at once]
    #[arg(long, value_name = "N/UNIT")]
    pub(crate) rate: Option<Rate>,
    /// In any order, instead of the oldest first
    #[arg(long)]
    pub(crate) shuffle: bool,
    /// Deliver each event N times (1 to 1000)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) times: u32,
    /// Wait until all are delivered or given up; exit 1 if any was not delivered
    #[arg(long)]
    pub(crate) wait: bool,
    /// Time for one attempt where no agent runs; 0 for none
    #[arg(long, default_value = "30s", env = "WHRELAY_TIMEOUT", value_name = "DUR", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) requests: RequestArgs,
    /// Those of these flags that were typed: an agent that runs has its own.
    #[arg(skip)]
    pub(crate) typed: Vec<&'static str>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::DISCARD)]
pub(crate) struct DiscardArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
}
