//! Published examples of each provider, and what must not pass for one.

use bytes::Bytes;
use proptest::prelude::*;
use whrelay_core::event::{Header, Request};
use whrelay_core::time::Timestamp;
use whrelay_providers::{Key, Keyring, Provider, Verdict, delivery_id, kind, seen, sign};

fn request(fields: &[(&str, &str)], body: &str) -> Request {
    let header = |(name, value): &(&str, &str)| Header {
        name: (*name).to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    Request {
        method: "POST".into(),
        tail: String::new(),
        query: None,
        headers: fields.iter().map(header).collect(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn keyring(provider: Provider, secret: &str) -> Keyring {
    Keyring::new(vec![Key::new(provider, secret).expect("a secret")])
}

/// A published example.
struct Example {
    provider: Provider,
    secret: &'static str,
    url: &'static str,
    seconds: i64,
    fields: &'static [(&'static str, &'static str)],
    body: &'static str,
}

const TWILIO_FORM: &str = "CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212";
const SQUARE_BODY: &str = r#"{"merchant_id":"MLEFBHHSJGVHD","type":"webhooks.test_notification","event_id":"ac3ac95b-f97d-458c-a6e6-18981597e05f","created_at":"2022-07-13T20:30:59.037339943Z","data":{"type":"webhooks","id":"bc368e64-01aa-407e-b46e-3231809b1129"}}"#;

/// From the providers' documentation, and the tests of their libraries.
const EXAMPLES: &[Example] = &[
    Example {
        provider: Provider::Github,
        secret: "It's a Secret to Everybody",
        url: "",
        seconds: 0,
        fields: &[(
            "x-hub-signature-256",
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        )],
        body: "Hello, World!",
    },
    Example {
        provider: Provider::Shopify,
        secret: "test_secret_key",
        url: "",
        seconds: 0,
        fields: &[(
            "x-shopify-hmac-sha256",
            "B23tXN681gZ0qIWNRrgtzBE9XSDo5yaUu6wfmhu3a7g=",
        )],
        body: r#"{"foo": "bar"}"#,
    },
    Example {
        provider: Provider::Stripe,
        secret: "whsec_test_secret",
        url: "",
        seconds: 1_492_774_577,
        fields: &[(
            "stripe-signature",
            "t=1492774577,v1=88a022085c6bdb887b02cb26ff76dd681234d9675c0f22844059f55552a8883a,v0=ff",
        )],
        body: r#"{"id":"evt_test_webhook","object":"event"}"#,
    },
    Example {
        provider: Provider::Standard,
        secret: "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        url: "",
        seconds: 1_649_367_553,
        fields: &[
            ("webhook-id", "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"),
            ("webhook-timestamp", "1649367553"),
            (
                "webhook-signature",
                "v1,AAAA v1a,BBBB v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            ),
        ],
        body: r#"{"email":"test@example.com","username":"test_user"}"#,
    },
    Example {
        provider: Provider::Standard,
        secret: "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        url: "",
        seconds: 1_614_265_330,
        fields: &[
            ("svix-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("svix-timestamp", "1614265330"),
            (
                "svix-signature",
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
        ],
        body: r#"{"test": 2432232314}"#,
    },
    Example {
        provider: Provider::Slack,
        secret: "8f742231b10e8888abcd99yyyzzz85a5",
        url: "",
        seconds: 1_531_420_618,
        fields: &[
            ("x-slack-request-timestamp", "1531420618"),
            (
                "x-slack-signature",
                "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
            ),
        ],
        body: "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
    },
    Example {
        provider: Provider::Zoom,
        secret: "zoomsecret",
        url: "",
        seconds: 1_646_419_465,
        fields: &[
            ("x-zm-request-timestamp", "1646419465"),
            (
                "x-zm-signature",
                "v0=c2190da32df5219a18b195517a97ed486ab9c0919a865067717837c872a326f1",
            ),
        ],
        body: r#"{"event":"meeting.started","event_ts":1626230691572,"payload":{}}"#,
    },
    Example {
        provider: Provider::Paddle,
        secret: "pdl_ntf_01hbpjmytsa32fhr36nqgc3kgb_WvRO0eL4Bj9rgYYIBZY6wZhG4EHy9jzh",
        url: "",
        seconds: 1_696_195_954,
        fields: &[(
            "paddle-signature",
            "ts=1696195954;h1=dummy;h1=d96299976a6eb066f484d7fde011ac56fc32b38fc9940bc419d6e537fdc6ef02",
        )],
        body: "hello-world",
    },
    Example {
        provider: Provider::Dropbox,
        secret: "the_secret",
        url: "",
        seconds: 0,
        fields: &[(
            "x-dropbox-signature",
            "0a8c16b085420b960dc78664279fe09e936a2a01b1f91064869d9e77dfd64529",
        )],
        body: r#"{"delta": {"users": [12345]}}"#,
    },
    Example {
        provider: Provider::Twilio,
        secret: "12345",
        url: "https://mycompany.com/myapp.php?foo=1&bar=2",
        seconds: 0,
        fields: &[
            ("content-type", "application/x-www-form-urlencoded"),
            ("x-twilio-signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
        ],
        body: TWILIO_FORM,
    },
    Example {
        provider: Provider::Twilio,
        secret: "12345",
        url: "https://mycompany.com/myapp.php?foo=1&bar=2",
        seconds: 0,
        fields: &[
            ("content-type", "application/x-www-form-urlencoded"),
            (
                "x-twilio-signature",
                "033hgUJA9M/hXIZsYjwkerEP/DBm35nEri5FhCYjA5s=",
            ),
        ],
        body: TWILIO_FORM,
    },
    Example {
        provider: Provider::Twilio,
        secret: "12345",
        url: "https://mycompany.com:443/myapp.php?foo=1&bar=2",
        seconds: 0,
        fields: &[
            ("content-type", "application/x-www-form-urlencoded"),
            ("x-twilio-signature", "kvajT1Ptam85bY51eRf/AJRuM3w="),
        ],
        body: TWILIO_FORM,
    },
    Example {
        provider: Provider::Twilio,
        secret: "12345",
        url: "https://mycompany.com/myapp.php?foo=1&bar=2&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620",
        seconds: 0,
        fields: &[("x-twilio-signature", "a9nBmqA0ju/hNViExpshrM61xv4=")],
        body: r#"{"property": "value", "boolean": true}"#,
    },
    Example {
        provider: Provider::Square,
        secret: "Ibxx_5AKakO-3qeNVR61Dw",
        url: "https://webhook.site/679a4f3a-dcfa-49ee-bac5-9d0edad886b9",
        seconds: 0,
        fields: &[(
            "x-square-hmacsha256-signature",
            "GF4YkrJgGBDZ9NIYbNXBnMzqb2HoL4RW/S6vkZ9/2N4=",
        )],
        body: SQUARE_BODY,
    },
];

#[test]
fn published_examples_verify() {
    for (n, example) in EXAMPLES.iter().enumerate() {
        let keys = keyring(example.provider, example.secret);
        let sent = request(example.fields, example.body);
        let urls = [example.url.to_owned()];
        let verdict = keys.check(&sent, &urls, at(example.seconds));
        assert!(matches!(verdict, Verdict::Verified(_)), "{n}: {verdict:?}");
        let seen = seen(&sent).expect("a signature");
        assert_eq!(seen.provider, example.provider, "{n}");
        let signed_at = seen.signed_at.map_or(0, |at| at.as_micros() / 1_000_000);
        assert_eq!(signed_at, example.seconds, "{n}");
    }
}

/// Another byte, secret or URL is enough.
#[test]
fn what_differs_in_anything_does_not_verify() {
    for (n, example) in EXAMPLES.iter().enumerate() {
        let (now, urls) = (at(example.seconds), [example.url.to_owned()]);
        let keys = keyring(example.provider, example.secret);
        let other = request(example.fields, &format!("{} ", example.body));
        assert!(
            matches!(keys.check(&other, &urls, now), Verdict::Forged(_)),
            "{n}"
        );
        let sent = request(example.fields, example.body);
        let wrong = format!("{}BBBB", example.secret);
        let wrong = keyring(example.provider, &wrong);
        assert!(
            matches!(wrong.check(&sent, &urls, now), Verdict::Forged(_)),
            "{n}"
        );
        if !example.url.is_empty() {
            let elsewhere = [format!("{}x", example.url)];
            assert!(
                matches!(keys.check(&sent, &elsewhere, now), Verdict::Forged(_)),
                "{n}"
            );
        }
        assert!(matches!(
            Keyring::default().check(&sent, &urls, now),
            Verdict::Unsigned
        ));
    }
}

#[test]
fn a_signature_is_fresh_for_exactly_its_tolerance_on_both_sides() {
    for (n, example) in EXAMPLES.iter().enumerate() {
        let Some(tolerance) = example.provider.tolerance() else {
            continue;
        };
        let tolerance = i64::try_from(tolerance.as_secs()).expect("small");
        let keys = keyring(example.provider, example.secret);
        let sent = request(example.fields, example.body);
        for (offset, fresh) in [
            (0, true),
            (tolerance, true),
            (-tolerance, true),
            (tolerance + 1, false),
            (-tolerance - 1, false),
        ] {
            let verdict = keys.check(&sent, &[], at(example.seconds + offset));
            assert_eq!(
                matches!(verdict, Verdict::Verified(_)),
                fresh,
                "{n}: {offset}"
            );
            assert_eq!(
                matches!(verdict, Verdict::Stale(_)),
                !fresh,
                "{n}: {offset}"
            );
        }
    }
}

/// What was verified and signed anew verifies at its new time and URL, and no longer where it came from.
#[test]
fn signed_anew_it_verifies_at_the_new_time_and_url() {
    const LATER: i64 = 1_800_000_000;
    for (n, example) in EXAMPLES.iter().enumerate() {
        let keys = keyring(example.provider, example.secret);
        let mut sent = request(example.fields, example.body);
        let query = example.url.split_once('?').map(|(_, query)| query);
        let query = query.map_or(String::new(), |query| format!("?{query}"));
        let target = format!("http://localhost:3000/hooks{query}");
        let urls = [example.url.to_owned()];
        let Verdict::Verified(verified) = keys.check(&sent, &urls, at(example.seconds)) else {
            unreachable!("{n} verifies")
        };
        let digest = verified.digest();
        let signed = verified
            .sign(&sent, &target, Some(at(LATER)))
            .expect("signed");
        assert_eq!(signed.body, None);
        for (name, value) in &signed.fields {
            let mut fields = sent.headers.iter_mut();
            let field = fields
                .find(|h| h.name == *name)
                .expect("a field to replace");
            field.value = value.clone().into();
        }
        let verdict = keys.check(&sent, std::slice::from_ref(&target), at(LATER));
        let Verdict::Verified(anew) = verdict else {
            unreachable!("{n}: {verdict:?}")
        };
        assert_eq!(
            anew.signed_at().is_some(),
            example.provider.tolerance().is_some()
        );
        let is_other = anew.signed_at().is_some() || anew.is_bound_to_url();
        assert_eq!(anew.digest() != digest, is_other, "{n}");
        if anew.is_bound_to_url() {
            assert!(matches!(
                keys.check(&sent, &urls, at(LATER)),
                Verdict::Forged(_)
            ));
        }
    }
}

#[test]
fn linears_time_is_replaced_in_the_body_and_nothing_else() {
    let body = r#"{ "type":"Issue", "data":{"webhookTimestamp":1}, "webhookTimestamp": 1700000000000 ,"x":"\u00e9"}"#;
    let key = Key::new(Provider::Linear, "lin_wh_x").expect("a secret");
    let mut sent = request(&[("linear-timestamp", "1700000000000")], body);
    let signed = sign(&key, &sent, "", at(1_700_000_000)).expect("signed");
    assert_eq!(signed.body.as_deref(), Some(body.as_bytes()));
    sent.headers.push(Header {
        name: "linear-signature".into(),
        value: signed.fields[0].1.clone().into(),
    });
    let keys = Keyring::new(vec![key]);
    let Verdict::Verified(verified) = keys.check(&sent, &[], at(1_700_000_059)) else {
        unreachable!("it verifies")
    };
    let anew = verified
        .sign(&sent, "", Some(at(1_800_000_000)))
        .expect("signed");
    let expected = body.replace("1700000000000", "1800000000000");
    assert_eq!(anew.body.as_deref(), Some(expected.as_bytes()));
    let repeated = ("linear-timestamp", "1800000000000".to_owned());
    assert!(anew.fields.contains(&repeated), "{:?}", anew.fields);
    assert!(matches!(
        keys.check(&sent, &[], at(1_700_000_061)),
        Verdict::Stale(_)
    ));
}

#[test]
fn while_a_secret_is_rolled_both_are_signed_with() {
    let key = |secret| Key::new(Provider::Stripe, secret).expect("a secret");
    let unsigned = request(&[], "{}");
    let values = ["old", "new", "lost"].map(|secret| {
        let signed = sign(&key(secret), &unsigned, "", at(1_000)).expect("signed");
        signed.fields[0].1.clone()
    });
    let second = values[1].split_once(',').expect("two parts").1;
    let sent = request(
        &[("stripe-signature", &format!("{},{second}", values[0]))],
        "{}",
    );
    let keys = Keyring::new(vec![key("lost"), key("new"), key("old")]);
    let Verdict::Verified(verified) = keys.check(&sent, &[], at(1_000)) else {
        unreachable!("it verifies")
    };
    let anew = verified.sign(&sent, "", Some(at(9_000))).expect("signed");
    assert_eq!(anew.fields[0].1.matches("v1=").count(), 2);
    let alone = request(&[("stripe-signature", &values[2])], "{}");
    let known = Keyring::new(vec![key("old"), key("new")]);
    assert!(matches!(
        known.check(&alone, &[], at(1_000)),
        Verdict::Forged(_)
    ));
}

/// Its digest says what was signed, whatever else its sender puts into the field.
#[test]
fn junk_beside_a_signature_does_not_make_it_another_one() {
    let key = Key::new(Provider::Standard, "whsec_AAAA").expect("a secret");
    let fields = [("webhook-id", "msg_1"), ("webhook-timestamp", "1000")];
    let signed = sign(&key, &request(&fields, "{}"), "", at(1_000)).expect("signed");
    let value = &signed.fields[0].1;
    let keys = Keyring::new(vec![key]);
    let digest = |signature: &str, more: &[(&str, &str)]| {
        let all = [&fields[..], &[("webhook-signature", signature)], more].concat();
        let Verdict::Verified(verified) = keys.check(&request(&all, "{}"), &[], at(1_000)) else {
            unreachable!("{signature} verifies")
        };
        verified.digest()
    };
    let svix = [
        ("svix-id", "msg_1"),
        ("svix-timestamp", "1000"),
        ("svix-signature", &**value),
    ];
    let first = digest(value, &[]);
    assert_eq!(digest(&format!("v1,AAAA {value} v2,x"), &[]), first);
    assert_eq!(digest(value, &svix), first);
}

#[test]
fn malformed_and_doubled_fields_never_verify() {
    let keys = keyring(Provider::Stripe, "whsec_test_secret");
    let body = EXAMPLES[2].body;
    let good = EXAMPLES[2].fields[0].1;
    let doubled = format!("t=1,{good}");
    for bad in [
        "",
        "t",
        "t=",
        "v1=",
        "t=x,v1=y",
        "t=99999999999999999999,v1=a",
        "t=-1,v1=a",
        &doubled,
    ] {
        let sent = request(&[("stripe-signature", bad)], body);
        let verdict = keys.check(&sent, &[], at(1_492_774_577));
        assert!(matches!(verdict, Verdict::Forged(_)), "{bad}: {verdict:?}");
    }
    let twice = request(
        &[("stripe-signature", good), ("stripe-signature", good)],
        body,
    );
    assert!(matches!(
        keys.check(&twice, &[], at(1_492_774_577)),
        Verdict::Forged(_)
    ));
}

#[test]
fn names_and_secrets_that_make_no_sense_are_refused_in_words() {
    for (name, word) in [
        ("acme", "use one of"),
        ("", "use one of"),
        ("sendgrid", "only it has"),
        ("Discord", "only it has"),
    ] {
        let refused = name.parse::<Provider>().expect_err("refused").to_string();
        assert!(refused.contains(word), "{name}: {refused}");
    }
    for name in ["svix", "OpenAI", "resend"] {
        assert_eq!(name.parse(), Ok(Provider::Standard), "{name}");
    }
    for provider in Provider::ALL {
        assert_eq!(provider.as_str().parse(), Ok(provider));
        assert!(Key::new(provider, "").is_err());
    }
    for bad in ["whpk_AAAA", "whsk_AAAA", "whsec_!", "whsec_"] {
        assert!(Key::new(Provider::Standard, bad).is_err(), "{bad}");
    }
    assert!(Key::new(Provider::Contentful, "short").is_err());
    let key = Key::new(Provider::Stripe, "whsec_secret").expect("a secret");
    assert!(!format!("{key:?}").contains("secret"));
}

proptest! {
    #[test]
    fn nothing_that_is_sent_panics(
        provider in 0..Provider::ALL.len(),
        fields in prop::collection::vec(("[a-z0-9-]{1,24}", ".{0,80}"), 0..6),
        signature in "[a-z0-9=,;:. +/-]{0,120}",
        time in "[0-9-]{0,24}",
        url in ".{0,60}",
        body: Vec<u8>,
    ) {
        let provider = Provider::ALL[provider];
        let key = Key::new(provider, &"A".repeat(64)).expect("a secret");
        let names = [
            "stripe-signature", "webhook-signature", "svix-signature", "x-hub-signature-256",
            "x-slack-signature", "x-twilio-signature", "x-square-hmacsha256-signature", "paddle-signature",
            "x-zm-signature", "linear-signature", "workos-signature", "x-hubspot-signature-v3",
            "x-contentful-signature", "sanity-webhook-signature",
        ];
        let times = [
            "webhook-timestamp", "svix-timestamp", "x-slack-request-timestamp", "x-zm-request-timestamp",
            "x-hubspot-request-timestamp", "x-contentful-timestamp",
        ];
        let mut all: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (&**n, &**v)).collect();
        all.extend(names.iter().map(|name| (*name, &*signature)));
        all.extend(times.iter().map(|name| (*name, &*time)));
        all.push(("x-contentful-signed-headers", &signature));
        let mut sent = request(&all, "");
        sent.body = body.into();
        let keys = Keyring::new(vec![key.clone()]);
        let verdict = keys.check(&sent, std::slice::from_ref(&url), at(0));
        prop_assert!(!matches!(verdict, Verdict::Verified(_)));
        let _ = (sign(&key, &sent, &url, at(1)), seen(&sent), kind(&sent), delivery_id(&sent));
    }
}
