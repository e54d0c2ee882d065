//! `whrelay config`: what is set, and where; and whether the files make sense. It must not change them.

use clap::CommandFactory;
use serde_json::json;

use crate::args::{Cli, ConfigArgs, ConfigCommand};
use crate::config::{self, Config};
use crate::failure::{Code, Failure};
use crate::output::Output;

pub(crate) fn run(args: &ConfigArgs, config: &Config, output: &Output) -> Result<(), Failure> {
    match &args.command {
        ConfigCommand::Show { json } => show(config, *json, output),
        ConfigCommand::Check => check(config, output),
    }
}

fn show(config: &Config, json: bool, output: &Output) -> Result<(), Failure> {
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
                (defaults.collect(), "default".to_owned())
            }
        };
        let hidden = arg.is_hide_env_values_set() && !values.is_empty();
        let values = if hidden {
            vec!["…".to_owned()]
        } else {
            values
        };
        if json {
            output.json(&json!({
                "type": "config", "key": key, "values": values, "origin": origin,
            }))?;
        } else {
            output.data(&format!("{key} = {}  # {origin}", toml(&values)))?;
        }
    }
    Ok(())
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
