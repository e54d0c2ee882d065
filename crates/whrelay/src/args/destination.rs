//! The flags of `whrelay destination`.

use std::time::Duration;

use clap::{Args, Subcommand};
use url::Url;
use whrelay_core::bucket::BucketName;
use whrelay_core::destination::{self, DestinationName, OptionKey, OptionSet};
use whrelay_core::duration;
use whrelay_core::order::Order;
use whrelay_core::outcome::RetryOn;
use whrelay_core::pace::Rate;
use whrelay_core::retry::Schedule;
use whrelay_core::target::Target;

use super::delivery::{max_in_flight, order, retry_on, schedule};
use super::values::forwarder_url;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  whrelay destination ls
  whrelay destination set api --to localhost:4000 --rate 10/s
  whrelay destination pause api
  whrelay destination rm old --move-to api

A destination owns the queue of the deliveries to it: its URL, its options, and whether it is paused, are \
stored on this machine and hold until they are changed. `listen` delivers to those that it is started with.

Exit codes: 0 done, 1 refused (a queue, or a `listen` that delivers there), 2 wrong use, 3 there is no such destination")]
pub(crate) struct DestinationArgs {
    #[command(subcommand)]
    pub(crate) command: DestinationCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DestinationCommand {
    /// List the destinations: their URLs, and what is queued for each
    Ls {
        #[command(flatten)]
        place: DestinationPlace,
    },
    /// Show one destination with its options
    Show {
        #[command(flatten)]
        which: WhichDestination,
    },
    /// Change the URL or the options of a destination; its queue stays
    Set(Box<SetArgs>),
    /// Deliver nothing to a destination until it is resumed; events go on being stored for it
    Pause {
        #[command(flatten)]
        which: WhichDestination,
    },
    /// Deliver to a paused destination again
    Resume {
        #[command(flatten)]
        which: WhichDestination,
    },
    /// Remove a destination that no `listen` delivers to
    Rm {
        #[command(flatten)]
        which: WhichDestination,
        /// Drop its queue: the deliveries become dead (discarded)
        #[arg(long, group = "queue")]
        discard: bool,
        /// Let its queue go to this destination
        #[arg(long, value_name = "NAME", group = "queue")]
        move_to: Option<DestinationName>,
    },
}

/// Where destinations are looked for.
#[derive(Debug, Args)]
pub(crate) struct DestinationPlace {
    /// Only those of this bucket
    #[arg(long, value_name = "BUCKET")]
    pub(crate) bucket: Option<BucketName>,
    /// Only those of the `listen` of this name
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) subscription: Option<BucketName>,
    /// Only those whose events come from the forwarder with this URL
    #[arg(long, value_name = "URL", value_parser = forwarder_url)]
    pub(crate) forwarder: Option<Url>,
    /// JSON Lines
    #[arg(long)]
    pub(crate) json: bool,
}

/// A destination.
#[derive(Debug, Args)]
pub(crate) struct WhichDestination {
    /// Its name
    #[arg(value_name = "NAME")]
    pub(crate) destination: DestinationName,
    #[command(flatten)]
    pub(crate) place: DestinationPlace,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    pub(crate) which: WhichDestination,
    /// Its URL; what is queued goes there
    #[arg(long, value_name = "TARGET", value_parser = destination::url)]
    pub(crate) to: Option<Target>,
    /// Retry schedule: seconds, medium, long, or pauses such as 30s,5m,1h
    #[arg(long, value_parser = schedule)]
    schedule: Option<Schedule>,
    /// Time after which a new delivery is given up; 0 for the schedule's own
    #[arg(long, value_name = "DUR", value_parser = duration::parse)]
    deadline: Option<Duration>,
    /// Time from the first failure until retries become rare
    #[arg(long, value_name = "DUR", value_parser = duration::parse)]
    handoff_after: Option<Duration>,
    /// Attempts after which a delivery is given up; 0 for no bound but the deadline
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Answers that are tried again: transient or non-2xx
    #[arg(long, value_parser = retry_on())]
    retry_on: Option<RetryOn>,
    /// Time for one attempt; 0 for none
    #[arg(long, value_name = "DUR", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// Deliveries at once: 1 to 1024
    #[arg(long, value_name = "N", value_parser = max_in_flight)]
    max_in_flight: Option<usize>,
    /// Attempts in a second, minute or hour: 10/s, 600/m, 100/h
    #[arg(long, value_name = "N/UNIT")]
    rate: Option<Rate>,
    /// Order of deliveries: arrival or fifo
    #[arg(long, value_parser = order())]
    order: Option<Order>,
    /// Give an option its default again; repeatable
    #[arg(long, value_name = "OPTION")]
    pub(crate) reset: Vec<OptionKey>,
}

impl SetArgs {
    /// The options that are set.
    pub(crate) fn options(&self) -> OptionSet {
        OptionSet {
            schedule: self.schedule.clone(),
            deadline: self.deadline,
            handoff_after: self.handoff_after,
            max_attempts: self.max_attempts,
            retry_on: self.retry_on,
            timeout: self.timeout,
            max_in_flight: self.max_in_flight,
            rate: self.rate,
            order: self.order,
        }
    }
}
