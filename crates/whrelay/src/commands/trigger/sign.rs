//! How providers sign (docs/using.md names the sources). It must not know what is in a body.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;

use super::samples::{Provider, Sample};

/// When a webhook is sent, and what makes it different from others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    at: Timestamp,
    random: u128,
}

impl Stamp {
    pub(super) fn new(at: Timestamp, random: u128) -> Self {
        Self { at, random }
    }

    /// Seconds since 1970.
    pub(super) fn unix(&self) -> i64 {
        self.at.as_second()
    }

    /// RFC 3339, to the second.
    pub(super) fn time(&self) -> String {
        self.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// So many hexadecimal digits.
    pub(super) fn hex(&self, digits: usize) -> String {
        let all = format!("{:032x}{:032x}", self.random, !self.random);
        all[..digits].to_owned()
    }

    /// A UUID of version 4 (RFC 9562).
    pub(super) fn uuid(&self) -> String {
        let hex = self.hex(32);
        let (a, b, c, d) = (&hex[..8], &hex[8..12], &hex[13..16], &hex[17..20]);
        format!("{a}-{b}-4{c}-8{d}-{}", &hex[20..])
    }
}

/// The fields that make a webhook its provider's; without a secret it goes unsigned.
pub(super) fn fields(
    sample: &Sample,
    stamp: &Stamp,
    body: &str,
    secret: Option<&str>,
) -> Result<Vec<(&'static str, String)>, String> {
    let unix = stamp.unix();
    let signed = |content: &str| secret.map(|secret| hmac(secret.as_bytes(), content));
    let mut fields = Vec::new();
    match sample.provider {
        Provider::Github => {
            let signature = signed(body).map(|mac| format!("sha256={}", hex(&mac)));
            fields.extend(signature.map(|value| ("x-hub-signature-256", value)));
        }
        Provider::Stripe => {
            let mac = signed(&format!("{unix}.{body}"));
            let signature = mac.map(|mac| format!("t={unix},v1={}", hex(&mac)));
            fields.extend(signature.map(|value| ("stripe-signature", value)));
        }
        Provider::Shopify => {
            let signature = signed(body).map(|mac| STANDARD.encode(mac));
            fields.extend(signature.map(|value| ("x-shopify-hmac-sha256", value)));
        }
        Provider::Slack => {
            fields.push(("x-slack-request-timestamp", unix.to_string()));
            let mac = signed(&format!("v0:{unix}:{body}"));
            let signature = mac.map(|mac| format!("v0={}", hex(&mac)));
            fields.extend(signature.map(|value| ("x-slack-signature", value)));
        }
        Provider::Standard => {
            let id = format!("msg_{}", stamp.hex(24));
            if let Some(secret) = secret {
                let mac = hmac(&standard_key(secret)?, &format!("{id}.{unix}.{body}"));
                fields.push(("webhook-signature", format!("v1,{}", STANDARD.encode(mac))));
            }
            fields.push(("webhook-id", id));
            fields.push(("webhook-timestamp", unix.to_string()));
        }
    }
    Ok(fields)
}

/// The key of a Standard Webhooks secret: base64 behind `whsec_`, padded or not.
fn standard_key(secret: &str) -> Result<Vec<u8>, String> {
    let text = secret.strip_prefix("whsec_").unwrap_or(secret);
    STANDARD_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|_| "a secret of Standard Webhooks is whsec_ and base64".to_owned())
}

fn hmac(key: &[u8], content: &str) -> Vec<u8> {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return Vec::new();
    };
    mac.update(content.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published vectors of each scheme.
    #[test]
    fn the_providers_own_examples() {
        let mac = |key: &str, content: &str| hmac(key.as_bytes(), content);
        assert_eq!(
            hex(&mac("It's a Secret to Everybody", "Hello, World!")),
            "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
        let stripe = r#"1492774577.{"id":"evt_test_webhook","object":"event"}"#;
        assert_eq!(
            hex(&mac("whsec_test_secret", stripe)),
            "88a022085c6bdb887b02cb26ff76dd681234d9675c0f22844059f55552a8883a"
        );
        assert_eq!(
            STANDARD.encode(mac("test_secret_key", r#"{"foo": "bar"}"#)),
            "B23tXN681gZ0qIWNRrgtzBE9XSDo5yaUu6wfmhu3a7g="
        );
        let key = standard_key("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").expect("a secret");
        let content = r#"msg_27UH4WbU6Z5A5EzD8u03UvzRbpk.1649367553.{"email":"test@example.com","username":"test_user"}"#;
        assert_eq!(
            STANDARD.encode(hmac(&key, content)),
            "tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
        );
    }

    #[test]
    fn stamps_have_the_shapes_that_providers_use() {
        let stamp = Stamp::new(Timestamp::UNIX_EPOCH, 0x1234);
        assert_eq!(stamp.time(), "1970-01-01T00:00:00Z");
        assert_eq!(stamp.hex(40).len(), 40);
        let uuid = stamp.uuid();
        assert_eq!((uuid.len(), &uuid[14..15], &uuid[19..20]), (36, "4", "8"));
        assert!(standard_key("whsec_not base64!").is_err());
    }
}
