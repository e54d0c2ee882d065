//! What surrounds the stores: configuration, the data directory, the forwarder, agents and their targets. It
//! must not look into stores.

use std::time::Duration;

use url::Url;
use whrelay_agent::control::{Ask, Client as Agent, Piece, Unanswered};
use whrelay_agent::lines::{Line, LinkState, StatusLine};
use whrelay_agent::{Looked, look_at};
use whrelay_core::destination::Spec;
use whrelay_core::limits;
use whrelay_core::target::Target;
use whrelay_core::token::Token;
use whrelay_delivery::{Client, Clock, Fields, Trust};

use super::{Check, proxy};
use crate::args::DoctorArgs;
use crate::commands::listen::{given_token, proxies};
use crate::config::Config;
use crate::embedded::{TOKEN_FILE, last_announced};
use crate::exposure;
use crate::failure::{Failure, unreachable_hint};
use crate::forwarders;
use crate::output::Output;
use crate::paths::Paths;

/// A difference of clocks that is worth a word: signatures and schedules are off by as much.
const SKEW: Duration = Duration::from_secs(30);

/// Checks all of it.
pub(super) async fn check(
    args: &DoctorArgs,
    config: &Config,
    output: &Output,
) -> Result<Vec<Check>, Failure> {
    let paths = Paths::resolve()?;
    let mut checks = vec![files(config), data(&paths)];
    let own = paths.forwarder().join(TOKEN_FILE);
    let tokens: Vec<_> = args
        .forwarder
        .token_file
        .iter()
        .cloned()
        .chain([own])
        .collect();
    let open = exposure::files(&tokens, config).into_iter();
    checks.extend(open.map(|path| {
        let why = "it has a secret, and other users of this machine can read it";
        let hint = Some("make it private: chmod 600");
        Check::new("secret", &path.display().to_string(), false, why, hint)
    }));
    let trust = args.ca_file.clone().map(|ca| ca.0).unwrap_or_default();
    match &args.forwarder.url {
        None => checks.push(Check::new(
            "forwarder",
            "",
            true,
            "none is configured: `listen` runs an embedded one",
            None,
        )),
        Some(url) => {
            let token = given_token(&args.forwarder);
            let given = token.as_ref().ok().and_then(Option::as_ref).cloned();
            checks.extend(forwarder(url, token, &trust).await);
            if let Some(token) = given
                && checks
                    .iter()
                    .any(|check| check.check == "token" && check.ok)
                && !is_on_this_machine(url)?
            {
                output.tell(&format!(
                    "measuring for {} s how idle connections to the forwarder are treated",
                    limits::HELLO_TIMEOUT.as_secs()
                ));
                checks.extend(proxy::check(url, token, trust.clone()).await);
            }
        }
    }
    let typed = args.to.iter().filter_map(Spec::target);
    let mut targets: Vec<Target> = typed.cloned().collect();
    for status in running(&paths, &mut checks).await {
        checks.push(agent(&status));
        checks.extend(status.incidents.iter().map(|incident| {
            let what = format!("{} as {}", status.bucket, status.name);
            super::happened(&what, &incident.at, &incident.message)
        }));
        let served = status.targets.iter().filter(|target| target.served);
        for target in served.filter_map(|target| target.target.parse().ok()) {
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
    }
    for target in targets {
        checks.push(answers(target, &trust).await);
    }
    Ok(checks)
}

/// Whether an address is that of a forwarder of this machine: no proxy is between here and there.
fn is_on_this_machine(url: &Url) -> Result<bool, Failure> {
    let dirs = forwarders::on_this_machine(None)?;
    let mut known = dirs.iter().filter_map(|dir| last_announced(dir));
    Ok(known.any(|(known, _)| known == *url))
}

/// Files were tried when they were read.
fn files(config: &Config) -> Check {
    if let Some(mistake) = &config.mistake {
        let hint = "fix this file: other commands do not start until it can be read";
        return Check::new("config", "", false, mistake.clone(), Some(hint));
    }
    if let Some(untrusted) = &config.untrusted {
        let (what, failure) = (&untrusted.origin, untrusted.failure());
        let hint = "read the file, then run `whrelay config trust` to accept it as it is";
        return Check::new("config", what, false, failure.message(), Some(hint));
    }
    if let Some(ignored) = config.warnings.first() {
        let hint = "make the file yours alone: `chown`, then `chmod go-w`";
        return Check::new("config", "", false, ignored.clone(), Some(hint));
    }
    let files: Vec<_> = config
        .files
        .iter()
        .map(|f| f.display().to_string())
        .collect();
    let result = match files.len() {
        0 => "no file, so defaults",
        _ => "every key and value makes sense",
    };
    Check::new("config", &files.join(", "), true, result, None)
}

fn data(paths: &Paths) -> Check {
    let dir = &std::path::absolute(paths.data()).unwrap_or_else(|_| paths.data().to_owned());
    let check =
        |ok, result: String, hint| Check::new("data", &dir.display().to_string(), ok, result, hint);
    let elsewhere = Some("say where data may go with WHRELAY_DATA_DIR");
    let writable = dir
        .ancestors()
        .find(|dir| dir.exists())
        .is_some_and(may_write);
    match (dir.is_dir(), writable) {
        (_, false) => check(false, "it cannot be written".into(), elsewhere),
        (false, true) => check(
            true,
            "not there yet: the first `listen` makes it".into(),
            None,
        ),
        (true, true) if exposure::is_open(dir) => {
            let hint = Some("make it private: chmod 700");
            check(
                false,
                "other users of this machine can look into it".into(),
                hint,
            )
        }
        (true, true) => check(true, "there, and private".into(), None),
    }
}

fn may_write(dir: &std::path::Path) -> bool {
    #[cfg(unix)]
    {
        rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
    }
    #[cfg(not(unix))]
    {
        dir.metadata().is_ok_and(|m| !m.permissions().readonly())
    }
}

async fn forwarder(url: &Url, given: Result<Option<Token>, Failure>, trust: &Trust) -> Vec<Check> {
    let here = Clock::default();
    let token = given.as_ref().ok().and_then(Option::as_ref);
    let is_given = token.is_some();
    let looked = look_at(url, &proxies(), trust, token).await;
    let Looked { token, clock, took } = match looked {
        Ok(looked) => Looked {
            token: match given {
                Ok(_) => looked.token,
                Err(failure) => Err(failure.message().to_owned()),
            },
            ..looked
        },
        Err(error) => {
            let why = error.to_string();
            let hint = Some(unreachable_hint(&why));
            return vec![Check::new(
                "forwarder",
                url.as_str(),
                false,
                why.clone(),
                hint,
            )];
        }
    };
    let answered = format!("answers in {} ms", took.as_millis());
    let mut checks = vec![Check::new("forwarder", url.as_str(), true, answered, None)];
    checks.push(match token {
        Ok(()) => Check::new("token", url.as_str(), true, "accepted", None),
        Err(why) => {
            let hint = match is_given {
                true => "a token was sent: is it this forwarder's, and does a proxy before it pass Authorization?",
                false => "give it with --token-file or WHRELAY_TOKEN",
            };
            Check::new("token", url.as_str(), false, why, Some(hint))
        }
    });
    if let Some(there) = clock {
        let now = here.now();
        let skew = now.since(there).max(there.since(now));
        let result = match skew < Duration::from_secs(2) {
            true => "the same as here".to_owned(),
            false => format!("{} s away from here", skew.as_secs()),
        };
        let hint = Some("set both clocks by NTP: ages and signatures go by them");
        let hint = hint.filter(|_| skew > SKEW);
        checks.push(Check::new(
            "clock",
            url.as_str(),
            skew <= SKEW,
            result,
            hint,
        ));
    }
    checks
}

/// How the agents stand that run; where one does not answer, a check says so.
async fn running(paths: &Paths, checks: &mut Vec<Check>) -> Vec<StatusLine> {
    let mut all = Vec::new();
    for dir in paths.all_agents() {
        let Some(agent) = Agent::find(&dir) else {
            continue;
        };
        let mut pieces = match agent.ask(&Ask::Status).await {
            Ok(pieces) => pieces,
            // Its store is looked at as that of any agent that does not run.
            Err(Unanswered::Gone | Unanswered::Refused { .. }) => continue,
            Err(why @ Unanswered::Silent(_)) => {
                let hint = Some("start its `listen` again; nothing is lost");
                let place = dir.display().to_string();
                checks.push(Check::new("agent", &place, false, why.to_string(), hint));
                continue;
            }
        };
        while let Some(piece) = pieces.recv().await {
            if let Piece::Line(line) = piece
                && let Line::Status(status) = *line
            {
                all.push(status);
            }
        }
    }
    all
}

fn agent(status: &StatusLine) -> Check {
    let what = format!("{} as {}", status.bucket, status.name);
    let check = |ok, result: &str, hint| Check::new("agent", &what, ok, result, hint);
    if let Some(why) = &status.refuses {
        let hint = Some("make room, raise --max-disk, or let what waits be delivered");
        return check(false, &format!("takes nothing new in: {why}"), hint);
    }
    match (status.link, status.paused) {
        (LinkState::Connected, false) => check(true, "runs, tunnel connected", None),
        (LinkState::Connected, true) => check(false, "paused", Some("press p where it runs")),
        (LinkState::Disconnected | LinkState::Stopped, _) => {
            let hint = Some("it dials until that is over; nothing is lost");
            let why = status.link_error.as_deref().unwrap_or("no reason is known");
            check(false, &format!("runs, tunnel down: {why}"), hint)
        }
    }
}

async fn answers(target: Target, trust: &Trust) -> Check {
    let what = target.to_string();
    let check = |ok, result: String, hint| Check::new("target", &what, ok, result, hint);
    match Client::new(target, Fields::default(), trust, 1) {
        Err(error) => check(false, error.to_string(), None),
        Ok(client) if client.takes_connections().await => {
            check(true, "takes connections".into(), None)
        }
        Ok(_) => {
            let hint = Some("start it: what waits is delivered within a second");
            check(false, "takes no connection".into(), hint)
        }
    }
}
