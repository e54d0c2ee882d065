//! `whrelay config`: what is set, and where; whether the files make sense; and which project's file is trusted. It must
//! not change them.

use std::path::Path;

use clap::CommandFactory;
use serde_json::json;
use whrelay_core::destination::{OptionKey, OptionSet};

use crate::args::{Cli, ConfigArgs, ConfigCommand};
use crate::config::source::{self, Source};
use crate::config::trust::Trusted;
use crate::config::{self, Config, PROJECT};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;

pub(crate) fn run(args: &ConfigArgs, config: &Config, output: &Output) -> Result<(), Failure> {
    match &args.command {
        ConfigCommand::Show { json } => show(config, *json, output),
        ConfigCommand::Check => check(config, output),
        ConfigCommand::Trust { revoke } => trust(*revoke, output),
    }
}

/// Accepts the project's file as it is now, or no more.
fn trust(revoke: bool, output: &Output) -> Result<(), Failure> {
    let path = Path::new(PROJECT);
    let trusted = Trusted::of(Paths::resolve()?.data());
    let failed = |e: std::io::Error| Failure::new(Code::Failed, format!("{PROJECT}: {e}"));
    let text = match source::read(path)? {
        Some(Source::Text(text)) => text,
        Some(Source::Ignored(why)) => {
            return Err(Failure::new(Code::Failed, format!("{PROJECT}: {why}"))
                .hint("make the file yours alone: `chown`, then `chmod go-w`"));
        }
        None => {
            return Err(
                Failure::new(Code::NotFound, format!("there is no {PROJECT} here"))
                    .hint("run this in the project's directory"),
            );
        }
    };
    if revoke {
        let said = match trusted.forget(path).map_err(failed)? {
            true => "is no longer trusted",
            false => "was not trusted",
        };
        output.tell(&format!("{PROJECT} {said}"));
        return Ok(());
    }
    config::file::read(&text).map_err(|mistake| {
        let at = format!("{PROJECT}:{}", mistake.line);
        Failure::new(Code::Usage, format!("{at}: {}", mistake.message)).hint("the format is TOML")
    })?;
    trusted.accept(path, &text).map_err(failed)?;
    output.tell(&format!(
        "{PROJECT} is trusted as it is now; after a change it has to be trusted again"
    ));
    Ok(())
}

fn show(config: &Config, json: bool, output: &Output) -> Result<(), Failure> {
    if let Some(untrusted) = &config.untrusted {
        output.warn(untrusted.failure().message());
    }
    for (key, args) in config::known(&Cli::command()) {
        let Some((_, arg)) = args.first() else {
            continue;
        };
        let name = format!("WHRELAY_{}", key.to_uppercase());
        let typed = std::env::var(&name).ok().filter(|value| !value.is_empty());
        let (values, origin) = match (typed, config.sets.get(&key)) {
            (Some(value), _) => (vec![value], name),
            (None, Some(set)) => (set.values.clone(), set.origin.clone()),
            (None, None) => {
                let defaults = arg.get_default_values().iter();
                let defaults = defaults.map(|value| value.to_string_lossy().into_owned());
                let option = key.parse::<OptionKey>().ok();
                let option = option.and_then(|key| OptionSet::defaults().get(key));
                (defaults.chain(option).collect(), "default".to_owned())
            }
        };
        let hidden = arg.is_hide_env_values_set() && !values.is_empty();
        let values = match (hidden, &key[..]) {
            (true, "header") => values
                .iter()
                .map(|field| without_value(field, ": "))
                .collect(),
            (true, "provider") => values.iter().map(|text| without_value(text, "=")).collect(),
            (true, _) => vec!["…".to_owned()],
            // One with a password is refused where it is used.
            (false, "forwarder") if values.iter().any(|url| url.contains('@')) => {
                vec!["…".to_owned()]
            }
            (false, _) => values,
        };
        if json {
            output.json(&json!({
                "type": "config", "key": key, "values": values, "origin": origin,
            }))?;
        } else {
            output.data(&format!("{key} = {}  # {origin}", toml(&values)))?;
        }
    }
    for (key, value, origin) in config.destinations.values() {
        if json {
            output.json(&json!({
                "type": "config", "key": key, "values": [value], "origin": origin,
            }))?;
        } else {
            let value = toml(&[value.to_owned()]);
            output.data(&format!("{key} = {value}  # {origin}"))?;
        }
    }
    Ok(())
}

/// Names without their values.
fn without_value(pairs: &str, separator: &str) -> String {
    let names = pairs
        .lines()
        .map(|pair| match pair.split_once(separator.trim()) {
            Some((name, _)) => format!("{name}{separator}…"),
            None => "…".to_owned(),
        });
    names.collect::<Vec<_>>().join("\n")
}

/// As it would stand in a file.
fn toml(values: &[String]) -> String {
    let quoted = |value: &String| format!("\"{}\"", crate::text::shown(value).replace('"', "\\\""));
    match values {
        [] => "unset".to_owned(),
        [one] => quoted(one),
        many => format!(
            "[{}]",
            many.iter().map(quoted).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// What the files say was tried when they were read.
fn check(config: &Config, output: &Output) -> Result<(), Failure> {
    if let Some(untrusted) = &config.untrusted {
        return Err(untrusted.failure());
    }
    for path in &config.files {
        output.data(&format!("{}: ok", path.display()))?;
    }
    if config.files.is_empty() {
        let places = config::places()?;
        let places: Vec<_> = places
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(
            Failure::new(Code::NotFound, "there is no configuration file")
                .hint(format!("looked for {}", places.join(" and "))),
        );
    }
    Ok(())
}
