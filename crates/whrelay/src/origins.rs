//! Where a flag's value is from, and what follows from that. It must not know what a value means.

use clap::ArgMatches;
use clap::parser::ValueSource;
use whrelay_core::destination::OptionKey;

use crate::args::{Cli, ForwarderChoice, ListenArgs, is_reference};
use crate::config::trust::Level;
use crate::config::{Config, Untrusted};
use crate::exposure;
use crate::failure::Failure;

/// The flags of a command, and the files behind them.
pub(crate) struct Origins<'a> {
    flags: &'a ArgMatches,
    config: &'a Config,
}

impl<'a> Origins<'a> {
    pub(crate) fn new(matches: &'a ArgMatches, config: &'a Config) -> Self {
        let mut flags = matches;
        while let Some((_, sub)) = flags.subcommand() {
            flags = sub;
        }
        Self { flags, config }
    }

    fn source(&self, id: &str) -> Option<ValueSource> {
        let is_there = self.flags.try_contains_id(id).is_ok();
        is_there.then(|| self.flags.value_source(id)).flatten()
    }

    fn text(&self, id: &str) -> Option<&str> {
        let text = self.flags.try_get_one::<String>(id).ok().flatten();
        text.map(String::as_str)
    }

    /// Whether it stands on the command line.
    pub(crate) fn typed(&self, id: &str) -> bool {
        self.source(id) == Some(ValueSource::CommandLine)
    }

    /// Whether it stands on the command line or is set in the environment.
    fn is_given(&self, id: &str) -> bool {
        matches!(
            self.source(id),
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        )
    }

    /// Notes which of a `listen`'s values a file has set. A target that was typed takes the place of those of files.
    pub(crate) fn note_listen(&self, args: &mut ListenArgs) {
        if self.typed("targets") && !self.typed("to") {
            args.to.clear();
        }
        args.to_is_typed = self.typed("targets") || self.is_given("to");
        args.route_is_typed = self.is_given("route");
        args.delivery.from_file = self.options_from_file();
    }

    /// The options of deliveries that are from a file.
    fn options_from_file(&self) -> Vec<OptionKey> {
        let is_from_file = |key: &OptionKey| !self.is_given(&key.as_str().replace('-', "_"));
        OptionKey::ALL.into_iter().filter(is_from_file).collect()
    }

    /// The flags about requests that stand on the command line.
    pub(crate) fn typed_requests(&self) -> Vec<&'static str> {
        let flags = [
            ("timeout", "--timeout"),
            ("headers", "-H"),
            ("host_header", "--host-header"),
            ("insecure", "--insecure"),
            ("ca_file", "--ca-file"),
            ("providers", "--provider"),
            ("resign", "--resign"),
            ("unverified", "--unverified"),
        ];
        let typed = flags.into_iter().filter(|(id, _)| self.typed(id));
        typed.map(|(_, flag)| flag).collect()
    }

    /// How far a flag's value is trusted.
    fn level(&self, id: &str, key: &str) -> Level {
        match (self.source(id), self.config.sets.get(key)) {
            (Some(ValueSource::DefaultValue), Some(set)) => set.level,
            (_, _) => Level::User,
        }
    }

    /// Notes at a choice of a forwarder what may be sent there. Fails where a project's file chooses a bucket of a
    /// forwarder that is not this process's own.
    pub(crate) fn note(
        &self,
        choice: &mut ForwarderChoice,
        may_embed: bool,
    ) -> Result<(), Failure> {
        choice.token_is_typed = self.typed("token");
        let token = match (&choice.token_file, choice.token_is_typed) {
            (Some(_), false) => "token_file",
            (_, _) => "token",
        };
        choice.is_less_trusted = self.level("url", "forwarder") < self.level(token, token);
        match self.config.sets.get("bucket") {
            Some(set)
                if (choice.url.is_some() || !may_embed)
                    && self.level("bucket", "bucket") == Level::Project =>
            {
                let untrusted = Untrusted {
                    key: "bucket".to_owned(),
                    origin: set.origin.clone(),
                };
                Err(untrusted.failure())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What was typed though every user of the machine sees command lines.
    pub(crate) fn typed_secrets(&self, cli: &Cli) -> Vec<String> {
        let secrets = [("token", "a token"), ("secret", "a secret")];
        let is_reference = |id| match id {
            "secret" => self.text(id).is_some_and(is_reference),
            _ => false,
        };
        let secrets = secrets
            .iter()
            .filter(|(id, _)| self.typed(id) && !is_reference(id));
        let requests = cli.command.requests().into_iter();
        let mut fields = requests.flat_map(|requests| requests.field_names());
        let field = self.typed("headers") && fields.any(exposure::is_secret_field);
        let mut requests = cli.command.requests().into_iter();
        let provider =
            self.typed("providers") && requests.any(|requests| requests.signatures.has_text());
        let seen = secrets
            .map(|(_, what)| *what)
            .chain(field.then_some("a secret header field"))
            .chain(provider.then_some("a provider's secret"));
        seen.map(|what| {
            format!("{what} on the command line can be seen by every user of this machine")
        })
        .collect()
    }
}
