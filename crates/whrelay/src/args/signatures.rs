//! The flags about providers' signatures. It must not sign anything.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use whrelay_delivery::{Resign, Signatures, Unverified};
use whrelay_providers::{Key, Keyring, Provider};

use super::values::expanded;

/// Longest file that can be a secret.
const MAX_FILE: u64 = 64 * 1024;

/// What becomes of providers' signatures.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Signatures of providers")]
pub(crate) struct SignatureArgs {
    /// The secret that a provider signs with, as stripe=env:STRIPE_SECRET or stripe=file:PATH: a late event gets a
    /// signature that still verifies; repeatable, also for one provider
    #[arg(
        long = "provider",
        value_name = "NAME=SECRET",
        env = "WHRELAY_PROVIDER",
        hide_env_values = true,
        value_delimiter = '\n',
        value_parser = provider
    )]
    providers: Vec<ProviderSecret>,
    /// When an event that verified is signed anew: auto (its signature is older than half of what the provider's
    /// libraries accept, or is for another URL), always, or never
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        value_name = "WHEN",
        env = "WHRELAY_RESIGN"
    )]
    resign: ResignArg,
    /// What becomes of an event without a valid signature, where --provider is given: deliver it as it came, or give
    /// it up as dead
    #[arg(
        long,
        value_enum,
        default_value = "deliver",
        value_name = "WHAT",
        env = "WHRELAY_UNVERIFIED"
    )]
    unverified: UnverifiedArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ResignArg {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UnverifiedArg {
    Deliver,
    Dead,
}

impl SignatureArgs {
    /// What these flags ask for.
    pub(crate) fn signatures(&self) -> Signatures {
        let keys = self.providers.iter().map(|secret| secret.key.clone());
        Signatures {
            keys: Arc::new(Keyring::new(keys.collect())),
            resign: match self.resign {
                ResignArg::Auto => Resign::Auto,
                ResignArg::Always => Resign::Always,
                ResignArg::Never => Resign::Never,
            },
            unverified: match self.unverified {
                UnverifiedArg::Deliver => Unverified::Deliver,
                UnverifiedArg::Dead => Unverified::Dead,
            },
        }
    }

    /// Whether a secret stands in the flag itself.
    pub(crate) fn has_text(&self) -> bool {
        self.providers.iter().any(|secret| secret.is_text)
    }
}

/// A provider's secret.
#[derive(Clone, Debug)]
pub(crate) struct ProviderSecret {
    key: Key,
    /// Whether it was given as it is, and not as the name of a place.
    is_text: bool,
}

/// Reads `NAME=SECRET`. What it says is wrong never has the secret in it.
pub(super) fn provider(text: &str) -> Result<ProviderSecret, String> {
    let (name, given) = text
        .split_once('=')
        .ok_or("write NAME=SECRET, such as stripe=env:STRIPE_SECRET")?;
    let provider: Provider = name.trim().parse().map_err(|e| format!("{e}"))?;
    Ok(ProviderSecret {
        key: key(provider, given)?,
        is_text: !is_reference(given),
    })
}

/// Whether a secret was given as the name of the place where it is.
pub(crate) fn is_reference(given: &str) -> bool {
    given.starts_with("env:") || given.starts_with("file:")
}

/// The key of a provider, from its secret or the place where that is.
pub(crate) fn key(provider: Provider, given: &str) -> Result<Key, String> {
    let (secret, place) = match (given.strip_prefix("env:"), given.strip_prefix("file:")) {
        (Some(variable), _) => (from_environment(variable)?, Some(variable)),
        (None, Some(path)) => (from_file(path)?, Some(path)),
        (None, None) => (given.to_owned(), None),
    };
    Key::new(provider, secret.trim()).map_err(|e| match place {
        Some(place) => format!("{place}: {e}"),
        None => e.to_string(),
    })
}

fn from_environment(variable: &str) -> Result<String, String> {
    let set = std::env::var(variable);
    let set = set.map_err(|_| format!("the environment variable {variable} is not set"))?;
    match set.is_empty() {
        true => Err(format!("the environment variable {variable} is empty")),
        false => Ok(set),
    }
}

fn from_file(path: &str) -> Result<String, String> {
    let wrong = |why: String| format!("{path}: {why}");
    let file = expanded(path.into());
    let about = std::fs::metadata(&file).map_err(|e| wrong(e.to_string()))?;
    if !about.is_file() || about.len() > MAX_FILE {
        return Err(wrong("not a file with a secret".into()));
    }
    let text = std::fs::read_to_string(&file).map_err(|e| wrong(e.to_string()))?;
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_secret_is_refused_without_telling_it() {
        for (bad, word) in [
            ("whsec_hidden", "NAME=SECRET"),
            ("=whsec_hidden", "use one of"),
            ("acme=whsec_hidden", "use one of"),
            ("sendgrid=hidden", "only it has"),
            ("stripe=", "empty"),
            ("stripe=env:WHRELAY_NO_SUCH", "WHRELAY_NO_SUCH is not set"),
            ("stripe=file:/nowhere/hidden-not", "/nowhere"),
            ("stripe=file:/dev/zero", "not a file"),
            ("standard=whsec_hid!den", "base64"),
            ("contentful=hidden", "64 characters"),
        ] {
            let refused = provider(bad).expect_err("refused");
            assert!(refused.contains(word), "{bad}: {refused}");
            assert!(!refused.contains("whsec_hid"), "{bad}: {refused}");
        }
        assert!(provider("stripe=whsec_x").is_ok_and(|secret| secret.is_text));
    }
}
