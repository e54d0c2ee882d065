//! Sample webhooks of our own writing: what providers send for what, and which fields they send with it. It must not
//! know how they are signed.

use whrelay_providers::Provider;

use super::stamp::Stamp;

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
    Stripe "invoice.payment_failed" "stripe_invoice_payment_failed",
    Stripe "payment_intent.payment_failed" "stripe_payment_intent_payment_failed",
    Stripe "checkout.session.expired" "stripe_checkout_session_expired",
    Stripe "customer.subscription.created" "stripe_customer_subscription_created",
    Stripe "customer.subscription.updated" "stripe_customer_subscription_updated",
    Stripe "customer.subscription.deleted" "stripe_customer_subscription_deleted",
    Stripe "charge.succeeded" "stripe_charge_succeeded",
    Stripe "charge.refunded" "stripe_charge_refunded",
    Stripe "charge.dispute.created" "stripe_charge_dispute_created",
    Stripe "payout.paid" "stripe_payout_paid",
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
}

/// The header fields of a provider's webhook, beside those of its signature.
pub(super) fn fields(
    provider: Provider,
    name: Option<&str>,
    stamp: &Stamp,
) -> Vec<(&'static str, String)> {
    let named = |field| name.map(|name| (field, name.to_owned()));
    match provider {
        Provider::Github => [
            Some(("user-agent", "GitHub-Hookshot/sample".to_owned())),
            named("x-github-event"),
            Some(("x-github-delivery", stamp.uuid())),
            Some(("x-github-hook-id", "4400121".to_owned())),
        ]
        .into_iter()
        .flatten()
        .collect(),
        Provider::Stripe => vec![("user-agent", "Stripe/1.0 (sample)".to_owned())],
        Provider::Shopify => [
            named("x-shopify-topic"),
            Some((
                "x-shopify-shop-domain",
                "northwind-tea.myshopify.com".to_owned(),
            )),
            Some(("x-shopify-api-version", "2026-10".to_owned())),
            Some(("x-shopify-webhook-id", stamp.uuid())),
            Some(("x-shopify-event-id", stamp.uuid())),
            Some(("x-shopify-triggered-at", stamp.time())),
        ]
        .into_iter()
        .flatten()
        .collect(),
        Provider::Slack => vec![
            ("user-agent", "Slackbot 1.0 (sample)".to_owned()),
            ("x-slack-request-timestamp", stamp.unix().to_string()),
        ],
        Provider::Standard => {
            let (id, time) = (format!("msg_{}", stamp.hex(24)), stamp.unix().to_string());
            vec![
                ("webhook-id", id.clone()),
                ("webhook-timestamp", time.clone()),
                // Customers of Svix read these.
                ("svix-id", id),
                ("svix-timestamp", time),
            ]
        }
        Provider::Contentful => vec![
            (
                "x-contentful-signed-headers",
                "x-contentful-signed-headers,x-contentful-timestamp".to_owned(),
            ),
            ("x-contentful-timestamp", (stamp.unix() * 1_000).to_string()),
        ],
        Provider::Twilio
        | Provider::Square
        | Provider::Paddle
        | Provider::Zoom
        | Provider::Linear
        | Provider::Workos
        | Provider::Hubspot
        | Provider::Dropbox
        | Provider::Line
        | Provider::Razorpay
        | Provider::Sanity => Vec::new(),
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
