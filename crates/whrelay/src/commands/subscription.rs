//! `whrelay subscription`: who gets the events of a bucket. It must not deliver anything.

use serde_json::Value;
use whrelay_core::bucket::BucketName;

use crate::args::{BucketPlace, SubscriptionArgs, SubscriptionCommand};
use crate::failure::Failure;
use crate::forwarders::Door;
use crate::output::Output;
use crate::text::{events, local, shown};

pub(crate) async fn run(args: SubscriptionArgs, output: &Output) -> Result<(), Failure> {
    let (SubscriptionCommand::Ls { place }
    | SubscriptionCommand::Rm { place, .. }
    | SubscriptionCommand::Replay { place, .. }) = &args.command;
    let trust = place.ca_file.clone().map(|ca| ca.0).unwrap_or_default();
    let dir = place.data_dir.as_deref();
    let door = Door::of(&place.forwarder, trust, (&place.bucket, dir)).await?;
    let did = carry_out(&args.command, &door, output).await;
    door.close().await;
    did
}

async fn carry_out(
    command: &SubscriptionCommand,
    door: &Door,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        SubscriptionCommand::Ls { place } => list(place, door, output).await,
        SubscriptionCommand::Rm { name, place } => {
            let unclaimed = door.end(&place.bucket, name.as_str()).await?;
            if place.json {
                return output.json(&serde_json::json!({
                    "type": "subscription", "bucket": place.bucket.as_str(), "name": name.as_str(),
                    "state": "ended", "waiting": unclaimed,
                }));
            }
            output.data(&format!("ended {name}: {} unclaimed", events(unclaimed)))
        }
        SubscriptionCommand::Replay {
            name,
            to,
            all,
            place,
        } => {
            let bucket = &place.bucket;
            let to_name = to.as_ref().map(BucketName::as_str);
            let count = door.replay(bucket, name.as_str(), to_name, *all).await?;
            let to = to.as_ref().unwrap_or(name);
            if place.json {
                return output.json(&serde_json::json!({
                    "type": "subscription_replay", "bucket": bucket.as_str(), "to": to.as_str(),
                    "events": count,
                }));
            }
            output.data(&format!(
                "sending at most {} to {to}; its agent delivers those that it does not have",
                events(count)
            ))
        }
    }
}

async fn list(place: &BucketPlace, door: &Door, output: &Output) -> Result<(), Failure> {
    let all = door.subscriptions(&place.bucket).await?;
    if all.is_empty() {
        output.tell(&format!("bucket {} has no subscriptions", place.bucket));
    }
    for mut subscription in all {
        if place.json {
            subscription["type"] = "subscription".into();
            subscription["bucket"] = place.bucket.as_str().into();
            output.json(&subscription)?;
        } else {
            output.data(&line(&subscription))?;
        }
    }
    Ok(())
}

/// A subscription in one line.
pub(crate) fn line(subscription: &Value) -> String {
    let text = |key: &str| subscription[key].as_str().map(shown);
    let (name, state) = (text("name"), text("state"));
    let count = events(subscription["waiting"].as_u64().unwrap_or(0));
    let what = match subscription["state"].as_str() {
        Some("ended") => "unclaimed",
        Some(_) | None => "waiting",
    };
    let who = match (text("user"), text("host")) {
        (Some(user), Some(host)) => format!("  {user}@{host}"),
        _ => String::new(),
    };
    let time = |key: &str| subscription[key].as_str().map(local);
    let since = time("connected_since").map(|at| format!("  since {at}"));
    let ended = time("ended_at").map(|at| format!("  at {at}"));
    let seen = time("seen_at").map(|at| format!("  seen {at}"));
    let when = since.or(ended).or(seen).unwrap_or_default();
    format!(
        "{}  {}  {count} {what}{who}{when}",
        name.unwrap_or_default(),
        state.unwrap_or_default()
    )
}
