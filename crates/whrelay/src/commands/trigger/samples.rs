//! Sample webhooks of our own writing: what providers send for what. It must not know how they are signed.

use super::sign::Stamp;

/// Whose webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    Github,
    Stripe,
    Shopify,
    Slack,
    /// Standard Webhooks, as many smaller providers send them.
    Standard,
}

impl Provider {
    pub(super) const ALL: [Provider; 5] = [
        Provider::Github,
        Provider::Stripe,
        Provider::Shopify,
        Provider::Slack,
        Provider::Standard,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Stripe => "stripe",
            Self::Shopify => "shopify",
            Self::Slack => "slack",
            Self::Standard => "standard",
        }
    }
}

/// A sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) provider: Provider,
    /// What the provider calls it.
    pub(super) name: &'static str,
    template: &'static str,
}

macro_rules! samples {
    ($($provider:ident $name:literal $file:literal),+ $(,)?) => {
        /// All of them.
        pub(super) const SAMPLES: &[Sample] = &[$(Sample {
            provider: Provider::$provider,
            name: $name,
            template: include_str!(concat!("samples/", $file, ".json")),
        }),+];
    };
}

samples! {
    Github "push" "github_push",
    Github "pull_request" "github_pull_request",
    Github "issues" "github_issues",
    Github "ping" "github_ping",
    Stripe "payment_intent.succeeded" "stripe_payment_intent_succeeded",
    Stripe "checkout.session.completed" "stripe_checkout_session_completed",
    Stripe "customer.created" "stripe_customer_created",
    Stripe "invoice.paid" "stripe_invoice_paid",
    Shopify "orders/create" "shopify_orders_create",
    Shopify "app/uninstalled" "shopify_app_uninstalled",
    Slack "app_mention" "slack_app_mention",
    Slack "message" "slack_message",
    Slack "url_verification" "slack_url_verification",
    Standard "message.created" "standard_message_created",
    Standard "user.updated" "standard_user_updated",
}

impl Sample {
    /// The body, of this moment: ids and times are its own.
    pub(super) fn body(&self, stamp: &Stamp) -> String {
        self.template
            .replace("$HEX40", &stamp.hex(40))
            .replace("$ID24", &stamp.hex(24))
            .replace("$ID10", &stamp.hex(10).to_uppercase())
            .replace("$TIME", &stamp.time())
            .replace("$UNIX", &stamp.unix().to_string())
    }

    /// The header fields beside the signature's.
    pub(super) fn fields(&self, stamp: &Stamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![("content-type", "application/json".to_owned())];
        match self.provider {
            Provider::Github => fields.extend([
                ("user-agent", "GitHub-Hookshot/sample".to_owned()),
                ("x-github-event", self.name.to_owned()),
                ("x-github-delivery", stamp.uuid()),
                ("x-github-hook-id", "4400121".to_owned()),
            ]),
            Provider::Stripe => fields.push(("user-agent", "Stripe/1.0 (sample)".to_owned())),
            Provider::Shopify => fields.extend([
                ("x-shopify-topic", self.name.to_owned()),
                ("x-shopify-shop-domain", "northwind-tea.example".to_owned()),
                ("x-shopify-webhook-id", stamp.uuid()),
                ("x-shopify-triggered-at", stamp.time()),
            ]),
            Provider::Slack => fields.push(("user-agent", "Slackbot 1.0 (sample)".to_owned())),
            Provider::Standard => {}
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_json_and_leaves_nothing_to_fill_in() {
        let stamp = Stamp::new(jiff::Timestamp::UNIX_EPOCH, 7);
        for sample in SAMPLES {
            let body = sample.body(&stamp);
            assert!(!body.contains('$'), "{}: {body}", sample.name);
            serde_json::from_str::<serde_json::Value>(&body).expect(sample.name);
        }
    }

    #[test]
    fn no_two_have_the_same_name() {
        for (n, sample) in SAMPLES.iter().enumerate() {
            let same =
                |other: &&Sample| (other.provider, other.name) == (sample.provider, sample.name);
            assert_eq!(SAMPLES.iter().position(|other| same(&other)), Some(n));
        }
    }
}
