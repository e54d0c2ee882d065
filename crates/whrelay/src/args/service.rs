//! The flags of `whrelay service`. It must not know a service manager.

use clap::{Args, Subcommand};
use whrelay_core::bucket::BucketName;

use super::examples;

#[derive(Debug, Args)]
#[command(after_help = examples::SERVICE)]
pub(crate) struct ServiceArgs {
    #[command(subcommand)]
    pub(crate) command: ServiceCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Let it run from now on, restarted after a failure and begun with this user's session
    Install {
        #[command(flatten)]
        service: Service,
        /// What to run: listen or forwarder, with its flags; configuration files count from this directory
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        run: Vec<String>,
    },
    /// Stop it and forget it; what is stored stays
    Uninstall {
        #[command(flatten)]
        service: Service,
    },
    /// Whether it runs
    Status {
        #[command(flatten)]
        service: Service,
        /// JSON Lines
        #[arg(long)]
        json: bool,
    },
}

/// Which service.
#[derive(Debug, Args)]
pub(crate) struct Service {
    /// Its name, where there are several
    #[arg(long, value_name = "NAME", default_value = "whrelay")]
    pub(crate) label: BucketName,
}
