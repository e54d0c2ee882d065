//! What the user types and sees. It must not decide anything about events: it turns flags into
//! configurations, and lines into text.

mod agents;
mod args;
mod commands;
mod config;
mod directories;
mod embedded;
mod exposure;
mod failure;
mod files;
mod forwarders;
mod origins;
mod output;
mod paths;
mod private;
mod public;
mod receiver;
mod shutdown;
mod text;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use tracing_subscriber::EnvFilter;
use whrelay_core::target::Target;
use whrelay_store::Panicked;

use crate::args::{Cli, Command};
use crate::config::{Config, prepared};
use crate::failure::{Code, Failure, first_line};
use crate::origins::Origins;
use crate::output::Output;

/// Runs what the process was asked for, and answers with the exit code of the contract.
pub fn main() -> ExitCode {
    let (cli, config) = match parse() {
        Ok(parsed) => parsed,
        Err(Wrong::Typed(error)) => return usage(&error),
        Err(Wrong::Configured(failure)) => return failure.report(&Output::plain()),
    };
    let output = Output::new(&cli.global);
    log_to_stderr(&cli);
    say_panics(output.clone());
    for warning in &config.warnings {
        output.warn(warning);
    }
    // The hook has said what happened; the code tells scripts that it is a bug.
    let ran = catch_unwind(AssertUnwindSafe(|| run(cli.command, &config, &output)));
    match ran {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(&output),
        Err(_) => ExitCode::from(Code::Bug as u8),
    }
}

/// Why there is nothing to run.
enum Wrong {
    Typed(clap::Error),
    Configured(Failure),
}

/// What was typed, over what the environment and the files say.
fn parse() -> Result<(Cli, Config), Wrong> {
    let (typed, command) = (std::env::args_os(), Config::default().apply(Cli::command()));
    // What asks for help needs no file.
    let first = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(typed);
    let mut config = configured(&first.map_err(Wrong::Typed)?, &command)?;
    let matches = prepared(config.apply(command))
        .try_get_matches()
        .map_err(Wrong::Typed)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(Wrong::Typed)?;
    let origins = Origins::new(&matches, &config);
    let seen = origins.typed_secrets(&cli);
    let may_embed = matches!(cli.command, Command::Listen(_) | Command::Test(_));
    if let Some(choice) = cli.command.forwarder() {
        origins.note(choice, may_embed).map_err(Wrong::Configured)?;
    }
    if let Command::Listen(args) = &mut cli.command {
        origins.note_listen(args);
    }
    if let Command::Replay(args) = &mut cli.command {
        args.typed = origins.typed_requests();
    }
    config.warnings.extend(seen);
    Ok((cli, config))
}

/// What the files say, where a command can go on with that.
fn configured(first: &ArgMatches, command: &clap::Command) -> Result<Config, Wrong> {
    let profile = first.get_one::<String>("profile").map(String::as_str);
    let loaded = Config::load(command, profile);
    let name = first.subcommand_name().unwrap_or_default();
    let config = match name {
        // These say what is wrong with the files themselves, or have no use for them.
        "doctor" | "completions" | "man" => loaded.unwrap_or_else(Config::mistaken),
        _ => loaded.map_err(Wrong::Configured)?,
    };
    match &config.untrusted {
        Some(untrusted) if !matches!(name, "doctor" | "completions" | "man" | "config") => {
            Err(Wrong::Configured(untrusted.failure()))
        }
        Some(_) | None => Ok(config),
    }
}

/// Help and versions as clap prints them; wrong use as every other error: one line and a hint.
fn usage(error: &clap::Error) -> ExitCode {
    // Whether anyone reads the help changes nothing.
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(Code::Usage as u8);
    }
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let hint = match meant_command(error).or_else(|| suggested(error)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("`{} --help` lists what it takes", typed_command()),
    };
    let message = match set_by(error) {
        Some(variable) => format!("{variable}: {}", first_line(error)),
        None => first_line(error),
    };
    let failure = Failure::new(Code::Usage, message).hint(hint);
    failure.report(&Output::plain())
}

/// The environment variable that a wrong value is from.
fn set_by(error: &clap::Error) -> Option<String> {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(_) | None => None,
    };
    let (flag, value) = (
        said(ContextKind::InvalidArg)?,
        said(ContextKind::InvalidValue)?,
    );
    let typed = std::env::args().any(|word| word.contains(&value));
    let variable = config::variable(&Cli::command(), &flag, &value);
    variable.filter(|_| !typed)
}

/// The command for a target or an event that stands where a command was to be.
fn meant_command(error: &clap::Error) -> Option<String> {
    let ContextValue::String(word) = error.get(ContextKind::InvalidSubcommand)? else {
        return None;
    };
    let is_target = word.contains(|c: char| c.is_ascii_digit()) && word.parse::<Target>().is_ok();
    match typed_command().as_str() {
        "whrelay" if is_target => Some(format!("whrelay listen {word}")),
        "whrelay events" if word.starts_with("evt_") => Some(format!("whrelay events show {word}")),
        _ => None,
    }
}

/// What was meant, where clap has an idea.
fn suggested(error: &clap::Error) -> Option<String> {
    let kinds = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    let known = kinds.into_iter().find_map(|kind| error.get(kind))?;
    if let ContextValue::Strings(some) = known {
        return some.first().cloned();
    }
    Some(known.to_string())
}

/// The command that was typed, as far as it is one.
fn typed_command() -> String {
    let (mut command, mut name) = (Cli::command(), "whrelay".to_owned());
    for word in std::env::args_os().skip(1) {
        if let Some(sub) = command.find_subcommand(&word) {
            name = format!("{name} {}", sub.get_name());
            command = sub.clone();
        }
    }
    name
}

fn run(command: Command, config: &Config, output: &Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Code::Failed, format!("no runtime: {e}")))?;
    files::forbid_core();
    if matches!(command, Command::Listen(_) | Command::Forwarder(_)) {
        files::raise_limit();
    }
    let finished = runtime.block_on(async {
        match command {
            Command::Listen(args) => Box::pin(commands::listen::run(*args, config, output)).await,
            Command::Logs(args) => Box::pin(commands::logs::run(args, output)).await,
            Command::Events(args) => Box::pin(commands::events::run(args, output)).await,
            Command::Replay(args) => Box::pin(commands::replay::run(args, output)).await,
            Command::Discard(args) => Box::pin(commands::discard::run(args, output)).await,
            Command::Status(args) => Box::pin(commands::status::run(args, output)).await,
            Command::Destination(args) => Box::pin(commands::destination::run(args, output)).await,
            Command::Subscription(args) => {
                Box::pin(commands::subscription::run(args, output)).await
            }
            Command::Doctor(args) => Box::pin(commands::doctor::run(args, config, output)).await,
            Command::Forwarder(args) => {
                Box::pin(commands::forwarder::run(args, config, output)).await
            }
            Command::Demo(args) => Box::pin(commands::demo::run(args, output)).await,
            Command::Flaky(args) => Box::pin(commands::flaky::run(args, output)).await,
            Command::Trigger(args) => Box::pin(commands::trigger::run(args, output)).await,
            Command::Test(args) => Box::pin(commands::test::run(args, output)).await,
            Command::Service(args) => commands::service::run(&args, output),
            Command::Config(args) => commands::config::run(&args, config, output),
            Command::Completions(args) => commands::manual::completions(&args, output),
            Command::Man(args) => commands::manual::man(&args, output),
        }
    });
    // What still runs in the background has nothing left to say.
    runtime.shutdown_background();
    finished
}

/// Says a panic as every other error, and nothing of one that only means that a store's file is damaged: the store
/// answers with an error.
fn say_panics(output: Output) {
    std::panic::set_hook(Box::new(move |info| match whrelay_store::judge(info) {
        Panicked::Damage => {}
        Panicked::DamageAgain => {
            let failure = Failure::new(Code::Failed, "a store is damaged and cannot be closed");
            let failure = failure
                .hint("`whrelay doctor <data-directory>` says which, and saves what is whole");
            // The next thing that would happen is that the process is aborted.
            let _ = failure.report(&output);
            std::process::exit(Code::Failed as i32);
        }
        Panicked::Bug => {
            let payload = info.payload();
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            let message = text.unwrap_or("no message");
            let place = info.location().map(ToString::to_string);
            let place = place.unwrap_or_default();
            output.error(
                &format!("whrelay panicked, which is a bug: {message} ({place})"),
                Some("please report this line"),
            );
        }
    }));
}

fn log_to_stderr(cli: &Cli) {
    let default = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "error",
        // Who came and went, and what was removed, is asked of a server when it is too late to ask for more.
        (false, 0) if matches!(cli.command, Command::Forwarder(_)) => "warn,whrelay_forwarder=info",
        (false, 0) => "warn",
        (false, 1) => "warn,whrelay=info,whrelay_agent=info,whrelay_forwarder=info",
        (false, _) => "info,whrelay=debug,whrelay_agent=debug,whrelay_forwarder=debug",
    };
    let filter = EnvFilter::try_from_env("WHRELAY_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| output::Talk)
        .with_ansi(output::wants_color(&cli.global, &std::io::stderr()))
        .init();
}
