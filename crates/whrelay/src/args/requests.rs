//! The flags that say how requests to targets are made. It must not make them.

use clap::Args;
use whrelay_delivery::{Field, Fields, HostField, Trust};

use super::signatures::SignatureArgs;
use super::values::{CaFile, ca_file};

/// How requests to targets are made.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Requests to targets")]
pub(crate) struct RequestArgs {
    /// A header field for every request to a target, in place of the sender's of that name; repeatable
    #[arg(
        short = 'H',
        long = "header",
        value_name = "NAME: VALUE",
        env = "WHRELAY_HEADER",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    headers: Vec<Field>,
    /// The Host that targets get: rewrite (their own), preserve (the sender's), or a value
    #[arg(
        long,
        default_value = "rewrite",
        value_name = "WHICH",
        env = "WHRELAY_HOST_HEADER"
    )]
    host_header: HostField,
    /// Do not check targets' certificates
    #[arg(
        long,
        alias = "skip-verify",
        env = "WHRELAY_INSECURE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    insecure: bool,
    /// Certificates (PEM) that targets and the forwarder may have been signed with, beside the machine's
    #[arg(long, value_name = "FILE", env = "WHRELAY_CA_FILE", value_parser = ca_file)]
    ca_file: Option<CaFile>,
    #[command(flatten)]
    pub(crate) signatures: SignatureArgs,
}

impl RequestArgs {
    /// What targets get beside what the sender sent.
    pub(crate) fn fields(&self) -> Fields {
        Fields::new(self.host_header.clone(), self.headers.clone())
    }

    /// The names of the fields that are set.
    pub(crate) fn field_names(&self) -> impl Iterator<Item = &str> {
        self.headers.iter().map(Field::name)
    }

    /// Which targets are believed to be who they say.
    pub(crate) fn trust(&self) -> Trust {
        match self.insecure {
            true => Trust::anyone(),
            false => self.tunnel_trust(),
        }
    }

    /// Which forwarder is.
    pub(crate) fn tunnel_trust(&self) -> Trust {
        let given = self.ca_file.clone();
        given.map_or_else(Trust::default, |CaFile(trust)| trust)
    }
}
