//! The providers whose signatures are known.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Who sent a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Stripe.
    Stripe,
    /// Standard Webhooks, and Svix, from whom it comes: Clerk, Resend, OpenAI and many more.
    Standard,
    /// GitHub, and those that sign as it does.
    Github,
    /// Shopify.
    Shopify,
    /// Slack.
    Slack,
    /// Twilio.
    Twilio,
    /// Square.
    Square,
    /// Paddle Billing.
    Paddle,
    /// Zoom.
    Zoom,
    /// Linear.
    Linear,
    /// `WorkOS`.
    Workos,
    /// `HubSpot`, signatures of version 3.
    Hubspot,
    /// Contentful.
    Contentful,
    /// Dropbox.
    Dropbox,
    /// LINE.
    Line,
    /// Razorpay.
    Razorpay,
    /// Sanity.
    Sanity,
}

/// A name that is not a provider's, or one whose webhooks cannot be signed anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownProvider {
    /// No provider has this name.
    #[error("unknown provider: use one of {}", names())]
    Name,
    /// Only the provider has the key that signs.
    #[error(
        "{0} signs with a key that only it has: its signatures cannot be made anew, and events are delivered as they came"
    )]
    Asymmetric(&'static str),
}

/// Providers that sign with a private key.
const ASYMMETRIC: [(&str, &str); 3] = [
    ("sendgrid", "SendGrid"),
    ("discord", "Discord"),
    ("paypal", "PayPal"),
];

impl Provider {
    /// All of them.
    pub const ALL: [Provider; 17] = [
        Provider::Stripe,
        Provider::Standard,
        Provider::Github,
        Provider::Shopify,
        Provider::Slack,
        Provider::Twilio,
        Provider::Square,
        Provider::Paddle,
        Provider::Zoom,
        Provider::Linear,
        Provider::Workos,
        Provider::Hubspot,
        Provider::Contentful,
        Provider::Dropbox,
        Provider::Line,
        Provider::Razorpay,
        Provider::Sanity,
    ];

    /// Its name in flags and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stripe => "stripe",
            Self::Standard => "standard",
            Self::Github => "github",
            Self::Shopify => "shopify",
            Self::Slack => "slack",
            Self::Twilio => "twilio",
            Self::Square => "square",
            Self::Paddle => "paddle",
            Self::Zoom => "zoom",
            Self::Linear => "linear",
            Self::Workos => "workos",
            Self::Hubspot => "hubspot",
            Self::Contentful => "contentful",
            Self::Dropbox => "dropbox",
            Self::Line => "line",
            Self::Razorpay => "razorpay",
            Self::Sanity => "sanity",
        }
    }

    /// How old a signature may be for the provider's own libraries; nothing where its age does not matter.
    pub fn tolerance(self) -> Option<Duration> {
        let seconds = match self {
            Self::Stripe | Self::Standard | Self::Slack | Self::Zoom | Self::Hubspot => 300,
            Self::Workos => 180,
            Self::Linear => 60,
            Self::Contentful => 30,
            Self::Paddle => 5,
            Self::Github
            | Self::Shopify
            | Self::Twilio
            | Self::Square
            | Self::Dropbox
            | Self::Line
            | Self::Razorpay
            | Self::Sanity => return None,
        };
        Some(Duration::from_secs(seconds))
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(text: &str) -> Result<Self, UnknownProvider> {
        let name = text.to_ascii_lowercase();
        if let Some(found) = Self::ALL.into_iter().find(|p| p.as_str() == name) {
            return Ok(found);
        }
        if let Some((_, title)) = ASYMMETRIC.into_iter().find(|(known, _)| *known == name) {
            return Err(UnknownProvider::Asymmetric(title));
        }
        match &*name {
            "svix" | "standardwebhooks" | "standard-webhooks" | "clerk" | "resend" | "openai" => {
                Ok(Self::Standard)
            }
            "meta" | "whatsapp" | "instagram" | "facebook" | "gitea" | "forgejo" => {
                Ok(Self::Github)
            }
            _ => Err(UnknownProvider::Name),
        }
    }
}

fn names() -> String {
    Provider::ALL.map(Provider::as_str).join(", ")
}
