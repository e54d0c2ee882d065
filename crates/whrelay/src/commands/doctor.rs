//! `whrelay doctor`: is everything well, and what helps where it is not? It must not change anything,
//! unless it is asked to salvage or to compact.

mod places;
mod proxy;
mod stores;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use whrelay_core::time::Timestamp;
use whrelay_delivery::Clock;
use whrelay_store::Role;

use crate::args::DoctorArgs;
use crate::config::Config;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;
use crate::text::shown;

/// How long an incident makes a check fail.
const INCIDENT_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What was looked at, and what was found.
#[derive(Clone, Serialize)]
#[serde(tag = "type", rename = "check")]
struct Check {
    check: &'static str,
    what: String,
    ok: bool,
    result: String,
    hint: Option<String>,
}

impl Check {
    fn new(
        check: &'static str,
        what: &str,
        ok: bool,
        result: impl Into<String>,
        hint: Option<&str>,
    ) -> Self {
        Self {
            check,
            what: what.to_owned(),
            ok,
            result: result.into(),
            hint: hint.map(str::to_owned),
        }
    }
}

pub(crate) async fn run(args: DoctorArgs, config: &Config, output: &Output) -> Result<(), Failure> {
    let stores = stores(&args)?;
    let mut failed = 0;
    let mut told = |check: Check| {
        failed += usize::from(!check.ok);
        show(&check, args.json, output)
    };
    if args.dirs.is_empty() {
        for check in places::check(&args, config, output).await? {
            told(check)?;
        }
    }
    for (dir, role) in stores {
        for check in stores::check(&dir, role, &args).await {
            told(check)?;
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(Failure::new(
            Code::Failed,
            format!("checks that failed: {failed}"),
        )),
    }
}

/// Something that has happened to a directory. It is a reason to look for a week.
fn happened(what: &str, at: &str, message: &str) -> Check {
    let age = at.parse::<Timestamp>().ok();
    let age = age.map(|at| Clock::default().now().since(at));
    let is_old = age.is_some_and(|age| age > INCIDENT_AGE);
    let hint = "compare with your own restores and copies; this is reported for 7 days";
    let result = format!("{at} {message}");
    Check::new("history", what, is_old, result, (!is_old).then_some(hint))
}

fn stores(args: &DoctorArgs) -> Result<Vec<(PathBuf, Option<Role>)>, Failure> {
    if args.dirs.is_empty() {
        let all = Paths::resolve()?.all_stores().into_iter();
        return Ok(all.map(|(dir, role)| (dir, Some(role))).collect());
    }
    let nothing = |dir: &&PathBuf| !dir.join("store.redb").exists();
    if let Some(dir) = args.dirs.iter().find(nothing) {
        let why = format!("there is no store in {}", dir.display());
        return Err(Failure::new(Code::NotFound, why)
            .hint("`whrelay doctor` without a directory looks at all that are known"));
    }
    Ok(args.dirs.iter().map(|dir| (dir.clone(), None)).collect())
}

fn show(check: &Check, json: bool, output: &Output) -> Result<(), Failure> {
    if json {
        return output.json(check);
    }
    let Check {
        check,
        what,
        ok,
        result,
        hint,
    } = check;
    let verdict = if *ok { "ok  " } else { "FAIL" };
    let about = match &what[..] {
        "" => String::new(),
        what => format!(" {}", shown(what)),
    };
    output.data(&format!("{verdict} {check}{about}: {}", shown(result)))?;
    match hint {
        Some(hint) => output.data(&format!("     hint: {}", shown(hint))),
        None => Ok(()),
    }
}
