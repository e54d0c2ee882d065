//! What a person is told about a signature. It must not decide what becomes of it.

use std::time::Duration;

use whrelay_agent::lines::{AttemptLine, SignatureLine};
use whrelay_core::delivery::{Cause, State};
use whrelay_providers::Provider;

use super::shown;

/// What there is to say of an attempt's signature, and what helps where it was too old.
pub(super) fn of_attempt(line: &AttemptLine) -> Option<String> {
    let signature = line.signature.as_ref()?;
    let provider = shown(&signature.provider);
    if line.cause.as_deref() != Some(Cause::SignatureExpired.as_str()) {
        let said = match &signature.state[..] {
            "renewed" if line.state == State::Sent => "signed anew".to_owned(),
            "repeated" => "not signed anew: another event had this signature first".to_owned(),
            "stale" => "its signature was too old when it was received".to_owned(),
            "unverified" => {
                format!("its signature is not {provider}'s: is the secret the right one?")
            }
            _ => return None,
        };
        return Some(said);
    }
    let then = match &signature.state[..] {
        "unchecked" => format!(
            "start `whrelay listen --provider {provider}=env:SECRET`, then `whrelay replay {}`",
            line.event
        ),
        "stale" => "it was too old already when it was received".to_owned(),
        "repeated" => "another event had this signature first".to_owned(),
        _ => {
            "it is kept as it came, by --resign never or since `whrelay trigger` made it".to_owned()
        }
    };
    Some(format!("({}: {then})", expired(signature)))
}

/// How old a signature is, and how old it may be.
pub(super) fn expired(signature: &SignatureLine) -> String {
    let long = |duration: Duration| {
        let seconds = Duration::from_secs(duration.as_secs());
        humantime::format_duration(seconds).to_string()
    };
    let age = signature.age_ms.map(Duration::from_millis).map(long);
    let provider = signature.provider.parse::<Provider>().ok();
    let accepted = provider.and_then(Provider::tolerance).map(long);
    match (age, accepted) {
        (Some(age), Some(accepted)) => {
            let provider = shown(&signature.provider);
            format!("the signature is {age} old, {provider}'s libraries accept {accepted}")
        }
        (_, _) => Cause::SignatureUnverified.as_str().to_owned(),
    }
}
