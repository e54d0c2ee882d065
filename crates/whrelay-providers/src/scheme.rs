//! How each provider signs, as data: which field has the signature, what is signed, and where its time is. The sources
//! are the providers' public documentation and libraries.

use crate::provider::Provider;

/// One way to sign.
#[derive(Debug)]
pub(crate) struct Scheme {
    /// The field with the signature, in lower case.
    pub(crate) field: &'static str,
    /// How the signature is written there.
    pub(crate) form: Form,
    /// Where the time of signing is written.
    pub(crate) time: Time,
    pub(crate) digest: Digest,
    pub(crate) text: Text,
    /// What is signed: these parts, one behind the other.
    pub(crate) content: &'static [Part],
}

/// How a signature is written in its field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// The signature alone, behind this prefix.
    Whole(&'static str),
    /// `time=…` and `signature=…`, several of them maybe, with a separator; it is read without the space that it may have.
    Pairs {
        separator: &'static str,
        signature: &'static str,
    },
    /// Signatures behind this prefix, separated by spaces.
    List(&'static str),
}

/// Where the time of signing is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Time {
    /// Nowhere.
    None,
    /// In a field of its own.
    Field(&'static str, Unit),
    /// In the signature's field, under this key.
    Pair(&'static str, Unit),
    /// In the body, as a number under this key. A field may repeat it, which nothing signs.
    Body(&'static str, Unit, &'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Digest {
    Sha1,
    Sha256,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Text {
    Hex,
    Base64,
    Base64Url,
}

/// A part of what is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Text(&'static str),
    /// The time of signing, as it is written.
    Time,
    Body,
    Method,
    /// The value of a field.
    Field(&'static str),
    /// The URL that the receiver sees.
    Url,
    /// The URL, and the names and values of a form in the body.
    UrlWithForm,
    /// The path and query of the URL, and the fields that the sender chose.
    PathAndFields,
}

impl Scheme {
    /// Whether the signature is for one URL only.
    pub(crate) fn is_bound_to_url(&self) -> bool {
        self.content.iter().any(|part| match part {
            Part::Url | Part::UrlWithForm | Part::PathAndFields => true,
            Part::Text(_) | Part::Time | Part::Body | Part::Method | Part::Field(_) => false,
        })
    }
}

const BODY: &[Part] = &[Part::Body];
const TIME_DOT_BODY: &[Part] = &[Part::Time, Part::Text("."), Part::Body];
const V0_TIME_BODY: &[Part] = &[Part::Text("v0:"), Part::Time, Part::Text(":"), Part::Body];

/// A signature of the body alone.
const fn of_body(field: &'static str, prefix: &'static str, text: Text) -> Scheme {
    Scheme {
        field,
        form: Form::Whole(prefix),
        time: Time::None,
        digest: Digest::Sha256,
        text,
        content: BODY,
    }
}

/// `v0=…` over `v0:time:body`, with the time in a field of its own.
const fn v0(field: &'static str, time: &'static str) -> Scheme {
    Scheme {
        field,
        form: Form::Whole("v0="),
        time: Time::Field(time, Unit::Seconds),
        digest: Digest::Sha256,
        text: Text::Hex,
        content: V0_TIME_BODY,
    }
}

/// `t=…,v1=…` over `time.body`.
const fn t_v1(field: &'static str, separator: &'static str, unit: Unit, text: Text) -> Scheme {
    Scheme {
        field,
        form: Form::Pairs {
            separator,
            signature: "v1",
        },
        time: Time::Pair("t", unit),
        digest: Digest::Sha256,
        text,
        content: TIME_DOT_BODY,
    }
}

const STRIPE: &[Scheme] = &[t_v1("stripe-signature", ",", Unit::Seconds, Text::Hex)];
/// Its library for Python reads no other separator.
const WORKOS: &[Scheme] = &[t_v1(
    "workos-signature",
    ", ",
    Unit::Milliseconds,
    Text::Hex,
)];
const SANITY: &[Scheme] = &[t_v1(
    "sanity-webhook-signature",
    ",",
    Unit::Milliseconds,
    Text::Base64Url,
)];
const GITHUB: &[Scheme] = &[of_body("x-hub-signature-256", "sha256=", Text::Hex)];
const SHOPIFY: &[Scheme] = &[of_body("x-shopify-hmac-sha256", "", Text::Base64)];
const DROPBOX: &[Scheme] = &[of_body("x-dropbox-signature", "", Text::Hex)];
const LINE: &[Scheme] = &[of_body("x-line-signature", "", Text::Base64)];
const RAZORPAY: &[Scheme] = &[of_body("x-razorpay-signature", "", Text::Hex)];
const SLACK: &[Scheme] = &[v0("x-slack-signature", "x-slack-request-timestamp")];
const ZOOM: &[Scheme] = &[v0("x-zm-signature", "x-zm-request-timestamp")];
const LINEAR: &[Scheme] = &[Scheme {
    time: Time::Body("webhookTimestamp", Unit::Milliseconds, "linear-timestamp"),
    ..of_body("linear-signature", "", Text::Hex)
}];
const PADDLE: &[Scheme] = &[Scheme {
    field: "paddle-signature",
    form: Form::Pairs {
        separator: ";",
        signature: "h1",
    },
    time: Time::Pair("ts", Unit::Seconds),
    digest: Digest::Sha256,
    text: Text::Hex,
    content: &[Part::Time, Part::Text(":"), Part::Body],
}];
/// With an account's own token SHA-1, with a shared key SHA-256.
const TWILIO: &[Scheme] = &[twilio(Digest::Sha1), twilio(Digest::Sha256)];
const SQUARE: &[Scheme] = &[Scheme {
    content: &[Part::Url, Part::Body],
    ..of_body("x-square-hmacsha256-signature", "", Text::Base64)
}];
const HUBSPOT: &[Scheme] = &[Scheme {
    time: Time::Field("x-hubspot-request-timestamp", Unit::Milliseconds),
    content: &[Part::Method, Part::Url, Part::Body, Part::Time],
    ..of_body("x-hubspot-signature-v3", "", Text::Base64)
}];
const CONTENTFUL: &[Scheme] = &[Scheme {
    time: Time::Field("x-contentful-timestamp", Unit::Milliseconds),
    content: &[
        Part::Method,
        Part::Text("\n"),
        Part::PathAndFields,
        Part::Text("\n"),
        Part::Body,
    ],
    ..of_body("x-contentful-signature", "", Text::Hex)
}];
/// Svix names the same fields in two ways, and some of its customers send both.
const STANDARD: &[Scheme] = &[
    standard(
        "webhook-signature",
        "webhook-timestamp",
        &[
            Part::Field("webhook-id"),
            Part::Text("."),
            Part::Time,
            Part::Text("."),
            Part::Body,
        ],
    ),
    standard(
        "svix-signature",
        "svix-timestamp",
        &[
            Part::Field("svix-id"),
            Part::Text("."),
            Part::Time,
            Part::Text("."),
            Part::Body,
        ],
    ),
];

const fn twilio(digest: Digest) -> Scheme {
    Scheme {
        digest,
        content: &[Part::UrlWithForm],
        ..of_body("x-twilio-signature", "", Text::Base64)
    }
}

const fn standard(field: &'static str, time: &'static str, content: &'static [Part]) -> Scheme {
    Scheme {
        field,
        form: Form::List("v1,"),
        time: Time::Field(time, Unit::Seconds),
        digest: Digest::Sha256,
        text: Text::Base64,
        content,
    }
}

/// How a provider signs: in one of these ways, or in several at once.
pub(crate) fn schemes(provider: Provider) -> &'static [Scheme] {
    match provider {
        Provider::Stripe => STRIPE,
        Provider::Standard => STANDARD,
        Provider::Github => GITHUB,
        Provider::Shopify => SHOPIFY,
        Provider::Slack => SLACK,
        Provider::Twilio => TWILIO,
        Provider::Square => SQUARE,
        Provider::Paddle => PADDLE,
        Provider::Zoom => ZOOM,
        Provider::Linear => LINEAR,
        Provider::Workos => WORKOS,
        Provider::Hubspot => HUBSPOT,
        Provider::Contentful => CONTENTFUL,
        Provider::Dropbox => DROPBOX,
        Provider::Line => LINE,
        Provider::Razorpay => RAZORPAY,
        Provider::Sanity => SANITY,
    }
}
