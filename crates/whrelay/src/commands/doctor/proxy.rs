//! What a proxy before the forwarder refuses that the forwarder takes, and whether it ends idle connections.

use serde_json::Value;
use url::Url;
use whrelay_agent::{Answerer, Management, probe_idle, probe_input};
use whrelay_core::limits;
use whrelay_core::token::Token;
use whrelay_delivery::Trust;

use super::Check;
use crate::commands::listen::proxies;
use crate::failure::unreachable_hint;
use crate::text::size;

/// Checks both.
pub(super) async fn check(forwarder: &Url, token: Token, trust: Trust) -> Vec<Check> {
    let proxies = proxies();
    let idle = probe_idle(forwarder, &proxies, &trust, &token);
    let asked = Management {
        forwarder: forwarder.clone(),
        proxies: proxies.clone(),
        trust: trust.clone(),
        token: token.clone(),
    };
    let input = async {
        let status = asked.look(&["v1", "status"], &[]).await.ok()?;
        let largest = status["max_body"].as_u64();
        let largest = largest.unwrap_or(limits::MAX_BODY as u64);
        let answerer = probe_input(forwarder, &proxies, &trust, largest).await;
        let input = input(forwarder, largest, answerer.map_err(|e| e.to_string()));
        Some(refusing(&status).chain([input]).collect::<Vec<_>>())
    };
    let (idle, input) = tokio::join!(idle, input);
    let what = forwarder.as_str();
    let idle = match idle {
        Ok(None) => Check::new(
            "tunnel",
            what,
            true,
            "opens, and stays open while idle",
            None,
        ),
        Ok(Some(after)) => {
            let why = format!("cut after {:.0} s without traffic", after.as_secs_f64());
            let hint = "a proxy on the way has to keep idle connections for 25 s or more, such as nginx with \
                        proxy_read_timeout 60s, HAProxy with timeout tunnel 1h";
            Check::new("tunnel", what, false, why, Some(hint))
        }
        Err(error) => {
            let why = error.to_string();
            let hint = unreachable_hint(&why);
            Check::new("tunnel", what, false, why.clone(), Some(hint))
        }
    };
    input.into_iter().flatten().chain([idle]).collect()
}

fn input(forwarder: &Url, largest: u64, answerer: Result<Answerer, String>) -> Check {
    let what = forwarder.as_str();
    let check =
        |ok, result: String, hint: Option<&str>| Check::new("input", what, ok, result, hint);
    let bodies = format!("bodies up to {}", size(largest));
    match answerer {
        Ok(Answerer::Forwarder) => check(true, format!("takes {bodies}"), None),
        Ok(Answerer::Proxy(status)) if status == 413 => {
            let why = format!("a proxy before the forwarder refuses {bodies} with 413");
            let hint = format!(
                "let it pass what the forwarder takes, such as nginx with client_max_body_size {largest}"
            );
            check(false, why, Some(&hint))
        }
        Ok(Answerer::Proxy(status)) => {
            let why = format!("a proxy or another server before the forwarder answers {status}");
            let hint = "let it pass POST /in/… to the forwarder; docs/deploying.md has settings that were tried";
            check(false, why, Some(hint))
        }
        Err(why) => check(false, why, Some("is the forwarder still running?")),
    }
}

/// The buckets that refuse new events.
fn refusing(status: &Value) -> impl Iterator<Item = Check> + '_ {
    let buckets = status["buckets"].as_array().into_iter().flatten();
    buckets.filter_map(|bucket| {
        let (name, why) = (bucket["bucket"].as_str()?, bucket["refuses"].as_str()?);
        let hint = Some("`whrelay status` shows how many events wait there, and for whom");
        let why = format!("refuses new events: {why}");
        Some(Check::new("bucket", name, false, why, hint))
    })
}
