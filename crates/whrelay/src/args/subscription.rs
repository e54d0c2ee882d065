//! The flags of `whrelay subscription`. It must not know what becomes of them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use whrelay_core::bucket::BucketName;

use super::ForwarderChoice;
use super::values::{CaFile, ca_file};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  whrelay subscription ls --bucket shop
  whrelay subscription rm old-laptop --bucket shop
  whrelay subscription replay old-laptop --to laptop --bucket shop

A subscription keeps every event until its agent has received it. Ending one that nobody uses lets the \
forwarder remove its events after --retain; until then `replay` sends them to another subscription.

Exit codes: 0 done, 2 wrong use, 3 there is no such bucket or subscription, 4 the token is missing or not \
valid, 5 the forwarder cannot be reached, 6 an agent is connected with the subscription, or the one that is to get \
the events has ended")]
pub(crate) struct SubscriptionArgs {
    #[command(subcommand)]
    pub(crate) command: SubscriptionCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SubscriptionCommand {
    /// List the subscriptions of a bucket: who has each, and how many events wait for it
    Ls {
        #[command(flatten)]
        place: BucketPlace,
    },
    /// End a subscription; events that it has not received become dead (unclaimed)
    Rm {
        /// The subscription
        name: BucketName,
        #[command(flatten)]
        place: BucketPlace,
    },
    /// Send a subscription the events that it, or another one, has not received
    Replay {
        /// The subscription that has not received them
        name: BucketName,
        /// The subscription that gets them [default: the same]
        #[arg(long, value_name = "NAME")]
        to: Option<BucketName>,
        /// Send all events that the forwarder still has, not only those that it has not received
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: BucketPlace,
    },
}

/// Where a subscription is.
#[derive(Debug, Args)]
pub(crate) struct BucketPlace {
    /// The bucket
    #[arg(long, default_value = "default", env = "WHRELAY_BUCKET")]
    pub(crate) bucket: BucketName,
    #[command(flatten)]
    pub(crate) forwarder: ForwarderChoice,
    /// Where the forwarder of this machine has its store
    #[arg(long, value_name = "DIR", env = "WHRELAY_FORWARDER_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Certificates (PEM) to trust beside the machine's
    #[arg(long, value_name = "FILE", env = "WHRELAY_CA_FILE", value_parser = ca_file)]
    pub(crate) ca_file: Option<CaFile>,
    /// JSON Lines
    #[arg(long)]
    pub(crate) json: bool,
}

impl SubscriptionArgs {
    /// The choice of a forwarder.
    pub(crate) fn forwarder(&mut self) -> &mut ForwarderChoice {
        match &mut self.command {
            SubscriptionCommand::Ls { place }
            | SubscriptionCommand::Rm { place, .. }
            | SubscriptionCommand::Replay { place, .. } => &mut place.forwarder,
        }
    }
}
