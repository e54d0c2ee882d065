//! `whrelay status`: how the agents and the forwarders on this machine stand, and the forwarder that is
//! configured. It must not change anything.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use whrelay_agent::control::Ask;
use whrelay_agent::lines::Line;

use crate::agents::{self, Round};
use crate::args::StatusArgs;
use crate::commands::subscription;
use crate::failure::Failure;
use crate::forwarders::{self, Door};
use crate::output::Output;
use crate::paths::Paths;
use crate::text::{events, local, shown, size};

/// How long a forwarder elsewhere may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Buckets shown to people.
const SHOWN: usize = 100;

pub(crate) async fn run(args: StatusArgs, output: &Output) -> Result<(), Failure> {
    let (dirs, forwarders) = (
        Paths::resolve()?.all_agents(),
        forwarders::on_this_machine(args.data_dir.clone())?,
    );
    if dirs.is_empty() && forwarders.is_empty() {
        output.tell("no agent or forwarder has run here yet: whrelay listen --to localhost:3000");
    }
    let mut round = Round::default();
    for dir in dirs {
        let lines = round.note(agents::gather(&dir, Ask::Status).await);
        for line in lines.unwrap_or_default() {
            output.line(&line, args.json)?;
        }
    }
    let configured = round.note(configured(&args, output)).flatten();
    let elsewhere = configured.as_ref().and_then(Door::address).cloned();
    for dir in forwarders {
        let is_embedded = dir
            .parent()
            .is_some_and(|parent| parent.ends_with("embedded"));
        let asked = async {
            // The agent of an embedded one that runs has said all of it.
            let door = Door::open(&dir).await?;
            let Some(door) = door.filter(|door| !(is_embedded && door.runs())) else {
                return Ok(None);
            };
            let is_configured = door.runs() && door.address() == elsewhere.as_ref();
            let status = match is_configured {
                true => Ok(None),
                false => door.status().await.map(Some),
            };
            door.close().await;
            status
        };
        let status = round.note(asked.await).flatten();
        let status = status.filter(|status| !is_embedded || is_worth_a_word(status));
        if let Some(status) = status {
            show(&status, args.json, output)?;
        }
    }
    if let Some(door) = configured {
        match timeout(PATIENCE, door.status()).await {
            Ok(Ok(status)) => show(&status, args.json, output)?,
            Ok(Err(failure)) if failure.is_unreachable() => {
                warn(failure.message(), args.json, output)?;
            }
            Ok(Err(failure)) => {
                round.note::<()>(Err(failure));
            }
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                let why = format!("the forwarder did not answer within {seconds} s");
                warn(&why, args.json, output)?;
            }
        }
    }
    round.end(output)
}

/// The forwarder that is configured, where a token may be sent there.
fn configured(args: &StatusArgs, output: &Output) -> Result<Option<Door>, Failure> {
    let choice = &args.forwarder;
    let has_token = choice.token.is_some() || choice.token_file.is_some();
    let trust = args.ca_file.clone().map(|ca| ca.0).unwrap_or_default();
    match Door::configured(choice, trust) {
        Err(failure) if choice.is_less_trusted || !has_token => {
            output.warn(&format!("not asked: {}", failure.message()));
            Ok(None)
        }
        configured => configured,
    }
}

fn warn(text: &str, json: bool, output: &Output) -> Result<(), Failure> {
    if json {
        return output.line(&Line::warning(text.to_owned()), json);
    }
    output.warn(text);
    Ok(())
}

fn show(status: &Value, json: bool, output: &Output) -> Result<(), Failure> {
    match json {
        true => output.json(status),
        false => output.data(&text(status)),
    }
}

/// Whether something waits at a forwarder, is refused, or has happened.
fn is_worth_a_word(status: &Value) -> bool {
    let buckets = status["buckets"].as_array().map_or(&[][..], Vec::as_slice);
    let is_worth = |bucket: &Value| bucket["waiting"] != 0 || !bucket["refuses"].is_null();
    let incidents = status["incidents"].as_array();
    buckets.iter().any(is_worth) || incidents.is_some_and(|all| !all.is_empty())
}

/// A forwarder's status for people.
fn text(status: &Value) -> String {
    let word = |value: &Value| value.as_str().map(shown).unwrap_or_default();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let mut text = match status["pid"].as_u64() {
        Some(pid) => format!("forwarder  {} (pid {pid})", word(&status["url"])),
        None => "forwarder  not running".to_owned(),
    };
    let most = status["max_disk"].as_u64().map(size);
    let most = most.map(|most| format!(" of {most}")).unwrap_or_default();
    text += &format!(
        "\n  stored     {}{most}",
        size(number(&status["stored_bytes"]))
    );
    let mut buckets: Vec<_> = status["buckets"].as_array().into_iter().flatten().collect();
    buckets.sort_by_key(|bucket| bucket["refuses"].is_null());
    let more = buckets.len().saturating_sub(SHOWN);
    for bucket in buckets.into_iter().take(SHOWN) {
        let waiting = events(number(&bucket["waiting"]));
        let oldest = match bucket["oldest_waiting_at"].as_str() {
            Some(at) if number(&bucket["waiting"]) > 0 => format!(", the oldest of {}", local(at)),
            _ => String::new(),
        };
        text += &format!(
            "\n  bucket     {}: {waiting} waiting{oldest}",
            word(&bucket["bucket"])
        );
        if let Some(why) = bucket["refuses"].as_str() {
            text += &format!("\n    refuses  new events: {}", shown(why));
            if number(&bucket["waiting"]) > 0 {
                let hint = "`whrelay subscription rm NAME` ends a subscription that nobody uses, \
                            `whrelay forwarder --subscription-ttl DUR` all of them";
                text += &format!("; {hint}");
            }
        }
        for known in bucket["subscriptions"].as_array().into_iter().flatten() {
            text += &format!("\n    {}", subscription::line(known));
        }
    }
    if more > 0 {
        text += &format!("\n  and {more} more buckets: `whrelay status --json` shows all");
    }
    if let Some(refused) = status["refused"].as_object().filter(|all| !all.is_empty()) {
        let counts = refused.iter();
        let counts = counts.map(|(why, count)| format!("{} {}", number(count), shown(why)));
        let counts: Vec<_> = counts.collect();
        text += &format!("\n  refused    {}", counts.join(", "));
    }
    for incident in status["incidents"].as_array().into_iter().flatten() {
        let at = incident["at"].as_str().map(local).unwrap_or_default();
        let what = word(&incident["message"]);
        text += &format!("\n  warning    {at} {what}");
    }
    text
}
