//! The way to the forwarder: a proxy on it may refuse what the forwarder takes, or end what is idle.

use url::Url;
use whrelay_agent::{Management, Reaches, cut_when_idle, who_takes};
use whrelay_core::limits;
use whrelay_core::token::Token;
use whrelay_delivery::Trust;

use super::Check;
use crate::commands::listen::proxies;
use crate::text::size;

/// Checks it.
pub(super) async fn check(forwarder: &Url, token: Token, trust: Trust) -> Vec<Check> {
    let proxies = proxies();
    let idle = cut_when_idle(forwarder, &proxies, &trust, &token);
    let asked = Management {
        forwarder: forwarder.clone(),
        proxies: proxies.clone(),
        trust: trust.clone(),
        token: token.clone(),
    };
    let input = async {
        let status = asked
            .look(&["v1", "status"], &[("limit", "1")])
            .await
            .ok()?;
        let largest = status["max_body"].as_u64();
        let largest = largest.unwrap_or(limits::MAX_BODY as u64);
        let public: Url = status["url"].as_str()?.parse().ok()?;
        let reaches = who_takes(&public, &proxies, &trust, largest).await;
        Some(input(&public, largest, reaches.map_err(|e| e.to_string())))
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
            let hint = "a proxy before the forwarder has to pass websocket upgrades, such as nginx with \
                        proxy_set_header Upgrade $http_upgrade; docs/deploying.md has settings that were tried";
            Check::new("tunnel", what, false, error.to_string(), Some(hint))
        }
    };
    input.into_iter().chain([idle]).collect()
}

fn input(public: &Url, largest: u64, reaches: Result<Reaches, String>) -> Check {
    let check = |ok, result: String, hint: Option<&str>| {
        Check::new("input", public.as_str(), ok, result, hint)
    };
    let bodies = format!("bodies up to {}", size(largest));
    match reaches {
        Ok(Reaches::Forwarder) => check(true, format!("takes {bodies}"), None),
        Ok(Reaches::Else(status)) if status == 413 => {
            let why = format!("a proxy before the forwarder refuses {bodies} with 413");
            let hint = format!(
                "let it pass what the forwarder takes, such as nginx with client_max_body_size {largest}"
            );
            check(false, why, Some(&hint))
        }
        Ok(Reaches::Else(status)) => {
            let why = format!("something before the forwarder answers {status}");
            let hint = "senders have to reach the forwarder there: see its --public-url and the proxy before it";
            check(false, why, Some(hint))
        }
        // Senders may reach what this machine does not.
        Err(why) => check(true, format!("not looked at from here: {why}"), None),
    }
}
