//! Flags of `whrelay trigger`. It must not sign or send anything.

use std::path::PathBuf;

use clap::Args;
use whrelay_core::target::Target;
use whrelay_delivery::Trust;

use super::examples;
use super::values::{CaFile, ca_file};

#[derive(Debug, Args)]
#[command(after_help = examples::TRIGGER)]
pub(crate) struct TriggerArgs {
    /// github, stripe, shopify, slack or standard (Standard Webhooks); with --body any provider of --provider
    pub(crate) provider: Option<String>,
    /// What happened there, as the provider calls it; see --list
    pub(crate) event: Option<String>,
    /// Where to send it: an input URL, or a target to try without a forwarder [default: the input URL of the `listen`
    /// that runs here]
    #[arg(long, value_name = "URL")]
    pub(crate) to: Option<Target>,
    /// Send this file, instead of a sample
    #[arg(long, value_name = "FILE")]
    pub(crate) body: Option<PathBuf>,
    /// The secret to sign with, as your handler knows it, or env:NAME or file:PATH where it is [default: unsigned]
    #[arg(long, env = "WHRELAY_SECRET", hide_env_values = true)]
    pub(crate) secret: Option<String>,
    /// How many, each with ids of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    /// Do not check the certificate of who gets it
    #[arg(
        long,
        alias = "skip-verify",
        env = "WHRELAY_INSECURE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    insecure: bool,
    /// Certificates (PEM) to trust beside the machine's
    #[arg(long, value_name = "FILE", env = "WHRELAY_CA_FILE", value_parser = ca_file)]
    ca_file: Option<CaFile>,
    /// List all samples
    #[arg(long)]
    pub(crate) list: bool,
    /// JSON Lines: one for each answer
    #[arg(long)]
    pub(crate) json: bool,
}

impl TriggerArgs {
    /// Who is believed to be who they say.
    pub(crate) fn trust(&self) -> Trust {
        match (self.insecure, &self.ca_file) {
            (true, _) => Trust::anyone(),
            (false, Some(CaFile(trust))) => trust.clone(),
            (false, None) => Trust::default(),
        }
    }
}
