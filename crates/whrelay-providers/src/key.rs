//! A provider's secret, as it is used to sign.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::provider::Provider;

/// The key that a provider's webhooks are signed with. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pub(crate) provider: Provider,
    pub(crate) bytes: Vec<u8>,
}

/// Why a text is not a provider's secret. The text itself is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is empty.
    #[error("the secret is empty")]
    Empty,
    /// It is a public key, or a private one.
    #[error(
        "this is a key of an asymmetric scheme: only secrets that start with whsec_ can sign anew"
    )]
    Asymmetric,
    /// It is not base64.
    #[error("a secret of Standard Webhooks is whsec_ and base64")]
    NotBase64,
    /// It is a key of Stripe's API.
    #[error("this is an API key: the secret of a webhook is whsec_…")]
    ApiKey,
    /// Contentful's secrets have 64 characters.
    #[error("a secret of Contentful has 64 characters")]
    Length,
}

impl Key {
    /// Reads a provider's secret as its dashboard shows it.
    ///
    /// # Errors
    /// When the provider has no secrets like this one.
    pub fn new(provider: Provider, secret: &str) -> Result<Self, KeyError> {
        if secret.is_empty() {
            return Err(KeyError::Empty);
        }
        let bytes = match provider {
            Provider::Standard => standard(secret)?,
            Provider::Contentful if secret.len() != 64 => return Err(KeyError::Length),
            Provider::Stripe
                if ["sk_", "pk_", "rk_"]
                    .iter()
                    .any(|it| secret.starts_with(it)) =>
            {
                return Err(KeyError::ApiKey);
            }
            Provider::Stripe
            | Provider::Github
            | Provider::Shopify
            | Provider::Slack
            | Provider::Twilio
            | Provider::Square
            | Provider::Paddle
            | Provider::Zoom
            | Provider::Linear
            | Provider::Workos
            | Provider::Hubspot
            | Provider::Contentful
            | Provider::Dropbox
            | Provider::Line
            | Provider::Razorpay
            | Provider::Sanity => secret.as_bytes().to_vec(),
        };
        Ok(Self { provider, bytes })
    }

    /// Whose it is.
    pub fn provider(&self) -> Provider {
        self.provider
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.provider).finish()
    }
}

/// base64 behind `whsec_`, padded or not (Standard Webhooks 1.0, "Signature scheme").
fn standard(secret: &str) -> Result<Vec<u8>, KeyError> {
    if secret.starts_with("whpk_") || secret.starts_with("whsk_") {
        return Err(KeyError::Asymmetric);
    }
    let text = secret.strip_prefix("whsec_").unwrap_or(secret);
    match STANDARD_NO_PAD.decode(text.trim_end_matches('=')) {
        Ok(bytes) if bytes.is_empty() => Err(KeyError::Empty),
        decoded => decoded.map_err(|_| KeyError::NotBase64),
    }
}
