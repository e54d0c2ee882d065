//! `whrelay service`: `listen` or `forwarder` kept running by the system, as a service of this user. It must not
//! run them itself.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};
use serde_json::json;
use service_manager::{
    RestartPolicy, ServiceInstallCtx, ServiceLabel, ServiceLevel, ServiceManager,
    ServiceManagerKind, ServiceStartCtx, ServiceStatus, ServiceStatusCtx, ServiceStopCtx,
    ServiceUninstallCtx,
};

use crate::args::{Cli, Command, Service, ServiceArgs, ServiceCommand};
use crate::commands::listen;
use crate::config::Config;
use crate::failure::{Code, Failure, first_line};
use crate::origins::Origins;
use crate::output::Output;
use crate::private;
use crate::text::shown;

/// Seconds after which one that has failed is begun again.
const RESTART_AFTER: u32 = 5;

pub(crate) fn run(args: &ServiceArgs, output: &Output) -> Result<(), Failure> {
    let manager = manager()?;
    match &args.command {
        ServiceCommand::Install { service, run } => {
            let has_secret = can_run(run)?;
            install(&*manager, service, (run, has_secret), output)
        }
        ServiceCommand::Uninstall { service } => uninstall(&*manager, service, output),
        ServiceCommand::Status { service, json } => status(&*manager, service, *json, output),
    }
}

/// The system's own: systemd on Linux, launchd on macOS.
fn manager() -> Result<Box<dyn ServiceManager>, Failure> {
    let unsupported = |why: String| {
        Failure::new(Code::Failed, why).hint("have `whrelay listen` begun by what this system has")
    };
    let kind = match std::env::consts::OS {
        "linux" => ServiceManagerKind::Systemd,
        "macos" => ServiceManagerKind::Launchd,
        other => {
            return Err(unsupported(format!(
                "services on {other} are not supported"
            )));
        }
    };
    let mut manager = <dyn ServiceManager>::target(kind);
    match manager.available() {
        Ok(true) => {}
        Ok(false) => return Err(unsupported(format!("there is no {kind:?} here"))),
        Err(error) => return Err(unsupported(error.to_string())),
    }
    manager.set_level(ServiceLevel::User).map_err(failed)?;
    Ok(manager)
}

/// What would fail at each start is refused here. Of this shell's environment the service has its data's places only.
/// Says whether a secret is among the arguments.
fn can_run(run: &[String]) -> Result<bool, Failure> {
    let typed: Vec<_> = std::iter::once("whrelay")
        .chain(run.iter().map(String::as_str))
        .collect();
    let command = without_environment(Cli::command());
    let first = command.clone().ignore_errors(true);
    let first = first.try_get_matches_from(&typed).ok();
    let profile = first.and_then(|first| first.get_one::<String>("profile").cloned());
    let config = Config::load(&command, profile.as_deref())?;
    let wrong = |error: clap::Error| {
        Failure::new(Code::Usage, first_line(&error))
            .hint("whrelay service install listen --to localhost:3000")
    };
    let matches = config.apply(command).try_get_matches_from(typed);
    let matches = matches.map_err(wrong)?;
    let parsed = Cli::from_arg_matches(&matches).map_err(wrong)?;
    let has_secret = !Origins::new(&matches, &config)
        .typed_secrets(&parsed)
        .is_empty();
    if let Command::Listen(mut args) = parsed.command {
        Origins::new(&matches, &config).note_listen(&mut args);
        return listen::setup(&args, &config).map(|_| has_secret);
    }
    if matches!(parsed.command, Command::Forwarder(_)) {
        return Ok(false);
    }
    let why = format!("`{}` does not run for long", run[0]);
    Err(Failure::new(Code::Usage, why).hint("listen and forwarder can be a service"))
}

fn without_environment(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| arg.env(None));
    command.mut_subcommands(without_environment)
}

fn install(
    manager: &dyn ServiceManager,
    service: &Service,
    (run, has_secret): (&[String], bool),
    output: &Output,
) -> Result<(), Failure> {
    let label = label(service)?;
    let before = ask(manager, &label)?;
    let new = before == ServiceStatus::NotInstalled;
    if has_secret {
        output.warn(
            "the service's file can be read by every user of this machine, and has a secret in it: use --token-file, \
             and `header` in your configuration file",
        );
    }
    let working_directory = std::env::current_dir()?;
    let places = places();
    let texts = places.iter().map(|(_, place)| place.as_str());
    let texts = texts.chain(run.iter().map(String::as_str));
    let here = working_directory.to_string_lossy();
    if let Some(text) = texts
        .chain([&*here])
        .find(|text| text.contains(char::is_control))
    {
        let why = format!(
            "a service's file cannot have {} in it: it would be read as lines",
            shown(text)
        );
        return Err(Failure::new(Code::Usage, why)
            .hint("use a directory and arguments without line breaks"));
    }
    refuse_link(&label)?;
    let installed = manager.install(ServiceInstallCtx {
        label: label.clone(),
        program: quoted(&std::env::current_exe()?.to_string_lossy()).into(),
        args: run.iter().map(|arg| quoted(arg)).collect(),
        contents: None,
        username: None,
        working_directory: Some(match cfg!(target_os = "macos") {
            true => working_directory.clone(),
            false => here.replace('%', "%%").into(),
        }),
        environment: Some(places.clone()),
        autostart: true,
        restart_policy: RestartPolicy::OnFailure {
            delay_secs: Some(RESTART_AFTER),
            max_retries: None,
            reset_after_secs: None,
        },
    });
    let begin = || {
        installed?;
        if before == ServiceStatus::Running {
            // What runs goes on as it was begun.
            let label = label.clone();
            manager.stop(ServiceStopCtx { label })?;
        }
        manager.start(ServiceStartCtx {
            label: label.clone(),
        })
    };
    if let Err(error) = begin() {
        if new {
            // What does not run now must not begin by itself one day.
            let _ = manager.uninstall(ServiceUninstallCtx { label });
        }
        return Err(failed(error));
    }
    output.tell(&format!("{} runs from now on", service.label));
    Ok(())
}

/// Refuses a link in the place of systemd's file: what it leads to would be overwritten.
fn refuse_link(label: &ServiceLabel) -> Result<(), Failure> {
    let Some(dirs) = directories::BaseDirs::new() else {
        return Ok(());
    };
    let file = format!("systemd/user/{}.service", label.to_script_name());
    let path = dirs.config_dir().join(file);
    private::is_there(&path).map(drop).map_err(|why| {
        Failure::new(Code::Failed, format!("{}: {why}", path.display())).hint("remove it first")
    })
}

/// Where this user's commands look: the service keeps its data there, too.
fn places() -> Vec<(String, String)> {
    let set = |name: &str| Some((name.to_owned(), std::env::var(name).ok()?));
    let places = ["WHRELAY_DATA_DIR", "WHRELAY_CONFIG"].into_iter();
    let places = places.filter_map(set).map(|(name, place)| {
        let absolute = std::path::absolute(&place);
        let place = absolute.map_or(place, |place| place.display().to_string());
        (name, escaped(&place))
    });
    places.collect()
}

/// A value as the manager's file wants it within quotes. systemd expands what stands in `Environment` (see
/// systemd.exec), but no variables.
fn escaped(value: &str) -> String {
    match cfg!(target_os = "macos") {
        true => value.to_owned(),
        false => value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('%', "%%"),
    }
}

/// An argument as the manager's file wants it. systemd splits and expands what stands in `ExecStart` (see
/// systemd.service, section "Command lines"); launchd takes arguments one by one.
fn quoted(arg: &str) -> OsString {
    if cfg!(target_os = "macos") {
        return arg.into();
    }
    let mut text = String::from("\"");
    for c in arg.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' | '$' => text.extend([c, c]),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    (text + "\"").into()
}

fn uninstall(
    manager: &dyn ServiceManager,
    service: &Service,
    output: &Output,
) -> Result<(), Failure> {
    let label = label(service)?;
    if ask(manager, &label)? == ServiceStatus::NotInstalled {
        let why = format!("there is no service {}", service.label);
        return Err(Failure::new(Code::NotFound, why)
            .hint("`whrelay service status --label …` tells of another"));
    }
    // One that does not run is as good as stopped.
    let _ = manager.stop(ServiceStopCtx {
        label: label.clone(),
    });
    let removed = manager.uninstall(ServiceUninstallCtx { label });
    removed.map_err(failed)?;
    output.tell(&format!("{} is gone; what is stored stays", service.label));
    Ok(())
}

fn status(
    manager: &dyn ServiceManager,
    service: &Service,
    json: bool,
    output: &Output,
) -> Result<(), Failure> {
    let label = label(service)?;
    let state = match ask(manager, &label)? {
        ServiceStatus::Running => "running",
        ServiceStatus::Stopped(_) => "stopped",
        ServiceStatus::NotInstalled => "not installed",
    };
    let name = &service.label;
    match json {
        true => output.json(&json!({"type": "service", "name": name.as_str(), "state": state}))?,
        false => output.data(&format!("{name} {state}"))?,
    }
    match state {
        "not installed" => Err(
            Failure::new(Code::NotFound, format!("{name} is not installed"))
                .hint("whrelay service install listen --to localhost:3000"),
        ),
        _ => Ok(()),
    }
}

fn ask(manager: &dyn ServiceManager, label: &ServiceLabel) -> Result<ServiceStatus, Failure> {
    let label = label.clone();
    manager.status(ServiceStatusCtx { label }).map_err(failed)
}

fn label(service: &Service) -> Result<ServiceLabel, Failure> {
    let label = service.label.as_str().parse();
    label.map_err(|error| Failure::new(Code::Usage, format!("--label: {error}")))
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` has")]
fn failed(error: std::io::Error) -> Failure {
    let hint = match cfg!(target_os = "macos") {
        true => "is this user logged in? launchd runs services of those who are",
        false => "is there a session of this user? `loginctl enable-linger` keeps one",
    };
    Failure::new(Code::Failed, error.to_string().trim().to_owned()).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn an_argument_is_one_argument_whatever_is_in_it() {
        assert_eq!(quoted("plain"), "\"plain\"");
        assert_eq!(quoted("X-A: \"50%\" $b\\"), "\"X-A: \\\"50%%\\\" $$b\\\\\"");
    }
}
