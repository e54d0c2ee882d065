//! What becomes of a provider's signature at delivery: verified, and made anew once it is too old for the target. It
//! must not know how a provider signs.

use std::sync::Arc;
use std::time::Duration;

use whrelay_core::delivery::{Signature, SignatureState};
use whrelay_core::event::Event;
use whrelay_core::time::{Moment, Timestamp};
use whrelay_providers::{Keyring, Provider, Seen, Signed, Verdict, Verified, seen};
use whrelay_store::{SignatureClaim, Store, StoreError, persist};

/// The field that says that an event was made by `whrelay trigger`. It never reaches a target.
pub const TRIGGERED: &str = "x-whrelay-triggered";

/// When a signature that was verified is made anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resign {
    /// Once it is older than half of what the provider's libraries accept, or where it is for another URL.
    #[default]
    Auto,
    /// For every attempt.
    Always,
    /// Never.
    Never,
}

/// What becomes of an event that does not verify, once a secret is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unverified {
    /// It is delivered as it came, and marked.
    #[default]
    Deliver,
    /// It is given up without an attempt.
    Dead,
}

/// What a user wants of signatures.
#[derive(Clone, Debug, Default)]
pub struct Signatures {
    /// The secrets of providers. They are never stored.
    pub keys: Arc<Keyring>,
    /// When a signature is made anew.
    pub resign: Resign,
    /// What becomes of the rest.
    pub unverified: Unverified,
}

/// What is to be done with an event's signature, before it is known whether it is this event's alone.
enum Plan<'a> {
    /// It goes as it came.
    AsItCame(Option<Signature>),
    /// It was verified.
    Verified(Verified<'a>),
    /// It is not delivered.
    Refuse(Signature),
}

/// A request's signature for one attempt.
#[derive(Debug, Default)]
pub(crate) struct Attested {
    /// Fields and maybe a body in place of the sender's.
    pub(crate) signed: Option<Signed>,
    /// What is noted with the attempt.
    pub(crate) note: Option<Signature>,
    /// Makes the signature this event's alone, where it is nobody's yet.
    pub(crate) claim: Option<SignatureClaim>,
}

impl Signatures {
    /// What an event's signature becomes for an attempt now; an error where the event is not to be delivered. `input` is
    /// the input URL, `url` the one that the target sees.
    pub(crate) async fn for_attempt(
        &self,
        store: &Store,
        event: &Event,
        (input, url): (Option<&str>, &str),
        Moment { now, certain }: Moment,
    ) -> Result<Result<Attested, Signature>, StoreError> {
        let verified = match self.plan(event, input, now) {
            Plan::AsItCame(note) => {
                return Ok(Ok(Attested {
                    note,
                    ..Attested::default()
                }));
            }
            Plan::Refuse(refused) => return Ok(Err(refused)),
            Plan::Verified(verified) => verified,
        };
        let claim = verified.signed_at().map(|signed_at| SignatureClaim {
            signed_at,
            digest: verified.digest(),
            event: event.id,
            now: certain,
        });
        let attest = |is_first| self.attest(event, &verified, url, is_first, now);
        let Some(claim) = claim else {
            return Ok(Ok(attest(true)));
        };
        if let Some(is_own) = persist(async || store.journal.has_signature(&claim).await).await? {
            return Ok(Ok(attest(is_own)));
        }
        let attested = attest(true);
        if attested.signed.is_none() {
            // It goes as it came: recorded with the attempt, the claim costs no write of its own.
            let claim = Some(claim);
            return Ok(Ok(Attested { claim, ..attested }));
        }
        let is_own = persist(|| store.journal.claim_signature(claim)).await?;
        Ok(Ok(attest(is_own)))
    }

    /// Looks at an event that came to an input URL, for an attempt now.
    fn plan(&self, event: &Event, input: Option<&str>, now: Timestamp) -> Plan<'_> {
        let request = &event.request;
        let signature =
            |provider: Provider, signed_at, state| noted((provider, signed_at), state, now);
        let as_seen = |seen: Seen, state| signature(seen.provider, seen.signed_at, state);
        let verdict = match self.keys.is_empty() {
            true => Verdict::Unsigned,
            false => self
                .keys
                .check(request, &urls(event, input), event.received_at),
        };
        let (state, provider) = match verdict {
            // What whrelay made itself is nobody's word.
            Verdict::Verified(_) if request.header(TRIGGERED).is_some() => {
                return Plan::AsItCame(
                    seen(request).map(|seen| as_seen(seen, SignatureState::Verified)),
                );
            }
            Verdict::Verified(verified) => return Plan::Verified(verified),
            Verdict::Stale(provider) => (SignatureState::Stale, Some(provider)),
            Verdict::Forged(provider) => (SignatureState::Unverified, Some(provider)),
            Verdict::Unsigned => (SignatureState::Unchecked, None),
        };
        let seen = seen(request);
        let note = match provider {
            Some(provider) => {
                let own = seen.filter(|seen| seen.provider == provider);
                Some(signature(
                    provider,
                    own.and_then(|seen| seen.signed_at),
                    state,
                ))
            }
            // Nothing needs a word that is accepted at any age.
            None => seen
                .map(|seen| as_seen(seen, state))
                .filter(|note| note.expired),
        };
        match (self.keys.is_empty(), self.unverified) {
            (false, Unverified::Dead) => Plan::Refuse(Signature {
                provider: provider
                    .or(seen.map(|seen| seen.provider))
                    .map_or_else(String::new, |p| p.to_string()),
                state: SignatureState::Refused,
                age: note.as_ref().and_then(|note| note.age),
                expired: note.is_some_and(|note| note.expired),
            }),
            (true, _) | (false, Unverified::Deliver) => Plan::AsItCame(note),
        }
    }

    /// What a verified signature becomes for a target that sees this URL. `is_first` says whether no other event had it
    /// before; where one had, its time stays as it is, or a request that was caught and sent again would pass as new.
    fn attest(
        &self,
        event: &Event,
        verified: &Verified<'_>,
        url: &str,
        is_first: bool,
        now: Timestamp,
    ) -> Attested {
        let (provider, signed_at) = (verified.provider(), verified.signed_at());
        let is_old = |at: Timestamp| {
            let half = provider.tolerance().map(|tolerance| tolerance / 2);
            half.is_some_and(|half| now.since(at) > half)
        };
        let wants_time = match self.resign {
            Resign::Never => false,
            Resign::Always => signed_at.is_some(),
            Resign::Auto => signed_at.is_some_and(is_old),
        };
        let wants_url = verified.is_bound_to_url() && self.resign != Resign::Never;
        let time = (wants_time && is_first).then_some(now);
        let signed = match time.is_some() || wants_url {
            true => verified.sign(&event.request, url, time),
            false => None,
        };
        let state = match (&signed, wants_time && !is_first) {
            (_, true) => SignatureState::Repeated,
            (Some(_), false) => SignatureState::Renewed,
            (None, false) => SignatureState::Verified,
        };
        let sent_at = match signed {
            Some(_) => time.or(signed_at),
            None => signed_at,
        };
        let note = noted((provider, sent_at), state, now);
        Attested {
            signed,
            note: Some(note),
            claim: None,
        }
    }
}

fn noted(
    (provider, signed_at): (Provider, Option<Timestamp>),
    state: SignatureState,
    now: Timestamp,
) -> Signature {
    let age = signed_at.map(|at| now.since(at));
    let is_too_old = |age: Duration| {
        provider
            .tolerance()
            .is_some_and(|tolerance| age > tolerance)
    };
    Signature {
        provider: provider.to_string(),
        state,
        age,
        expired: age.is_some_and(is_too_old),
    }
}

/// The URLs at which a provider may have known the input: where it is, and what the request says of the way through
/// tunnels and proxies. Only the one that was signed verifies.
fn urls(event: &Event, input: Option<&str>) -> Vec<String> {
    let Some((scheme, rest)) = input.and_then(|input| input.split_once("://")) else {
        return Vec::new();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = format!("{path}{}", event.request.path_and_query());
    let named = |name: &str| {
        let value = event.request.header(name)?;
        std::str::from_utf8(value).ok().map(str::to_owned)
    };
    let mut urls = vec![format!("{scheme}://{authority}{path}")];
    for host in ["host", "x-forwarded-host"].into_iter().filter_map(named) {
        for scheme in ["https", "http"] {
            urls.push(format!("{scheme}://{host}{path}"));
        }
        // Twilio may sign with the port that its users leave out.
        if !host.contains(':') {
            urls.push(format!("https://{host}:443{path}"));
        }
    }
    urls.dedup();
    urls
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use whrelay_core::event::{Header, Request};
    use whrelay_core::id::EventId;
    use whrelay_providers::{Key, sign};

    const INPUT: &str = "http://127.0.0.1:4040/in/shop-key";
    const TARGET: &str = "http://localhost:3000/hooks";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn key(provider: Provider) -> Key {
        Key::new(provider, &"A".repeat(64)).expect("a secret")
    }

    fn signatures(provider: Provider) -> Signatures {
        Signatures {
            keys: Arc::new(Keyring::new(vec![key(provider)])),
            ..Signatures::default()
        }
    }

    /// An event that the provider signed for a URL at 1,000 s, received a second later.
    fn event(provider: Provider, url: &str, more: &[(&str, &str)]) -> Event {
        let header = |name: &str, value: &str| Header {
            name: name.to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        };
        let mut request = Request {
            method: "POST".into(),
            tail: "/orders".into(),
            query: Some("a=1".into()),
            headers: vec![
                header("webhook-id", "msg_1"),
                header("x-contentful-signed-headers", "webhook-id"),
            ],
            body: Bytes::from_static(b"{\"webhookTimestamp\":1}"),
        };
        // Twilio signs the fields of a form, and no other body.
        if provider == Provider::Twilio {
            let form = header("content-type", "application/x-www-form-urlencoded");
            request.headers.push(form);
        }
        for (name, value) in more {
            request.headers.push(header(name, value));
        }
        let signed = sign(&key(provider), &request, url, at(1_000)).expect("signed");
        for (name, value) in &signed.fields {
            request.headers.push(header(name, value));
        }
        request.body = signed.body.unwrap_or(request.body);
        Event {
            id: EventId::from_parts(at(1_001), 1),
            bucket: "shop".parse().expect("a name"),
            received_at: at(1_001),
            request,
            removed_body: None,
        }
    }

    fn attested(
        signatures: &Signatures,
        event: &Event,
        is_first: bool,
        now: Timestamp,
    ) -> Attested {
        match signatures.plan(event, Some(INPUT), now) {
            Plan::Verified(verified) => signatures.attest(event, &verified, TARGET, is_first, now),
            Plan::AsItCame(note) => Attested {
                note,
                ..Attested::default()
            },
            Plan::Refuse(note) => unreachable!("refused: {note:?}"),
        }
    }

    fn state(attested: &Attested) -> Option<SignatureState> {
        attested.note.as_ref().map(|note| note.state)
    }

    #[test]
    fn a_signature_is_made_anew_once_it_is_older_than_half_of_what_is_accepted() {
        for provider in Provider::ALL {
            let Some(tolerance) = provider.tolerance() else {
                continue;
            };
            let signatures = signatures(provider);
            let url = format!("{INPUT}/orders?a=1");
            let event = event(provider, &url, &[]);
            let half = i64::try_from(tolerance.as_secs() / 2).expect("small");
            let fresh = attested(&signatures, &event, true, at(1_000 + half));
            let is_bound = matches!(provider, Provider::Hubspot | Provider::Contentful);
            assert_eq!(fresh.signed.is_some(), is_bound, "{provider}");
            let late = attested(&signatures, &event, true, at(1_000_000));
            assert_eq!(state(&late), Some(SignatureState::Renewed), "{provider}");
            let note = late.note.expect("a note");
            assert_eq!((note.age, note.expired), (Some(Duration::ZERO), false));
        }
    }

    /// A request that was caught and sent again within the tolerance must not pass hours later.
    #[test]
    fn a_second_event_with_the_same_signature_keeps_its_time() {
        let event_of = |provider| event(provider, &format!("{INPUT}/orders?a=1"), &[]);
        let stripe = attested(
            &signatures(Provider::Stripe),
            &event_of(Provider::Stripe),
            false,
            at(9_000),
        );
        assert_eq!(stripe.signed, None);
        let note = stripe.note.expect("a note");
        assert_eq!(note.state, SignatureState::Repeated);
        assert!(note.expired && note.age == Some(Duration::from_secs(8_000)));
        // Its URL may be another one, its time may not.
        let hubspot = attested(
            &signatures(Provider::Hubspot),
            &event_of(Provider::Hubspot),
            false,
            at(9_000),
        );
        let signed = hubspot.signed.expect("for the target's URL");
        assert!(signed.fields.iter().any(|(_, value)| value == "1000000"));
        assert!(hubspot.note.is_some_and(|note| note.expired));
    }

    #[test]
    fn what_does_not_verify_is_never_made_good() {
        let mut forged = event(Provider::Stripe, "", &[]);
        forged.request.body = Bytes::from_static(b"{}");
        let mut stale = event(Provider::Stripe, "", &[]);
        stale.received_at = at(1_301);
        let unsigned = {
            let mut event = event(Provider::Stripe, "", &[]);
            event.request.headers.clear();
            event
        };
        for resign in [Resign::Auto, Resign::Always, Resign::Never] {
            for (event, wanted) in [
                (&forged, Some(SignatureState::Unverified)),
                (&stale, Some(SignatureState::Stale)),
                (&unsigned, None),
            ] {
                let deliver = Signatures {
                    resign,
                    ..signatures(Provider::Stripe)
                };
                let came = attested(&deliver, event, true, at(9_000));
                assert_eq!((came.signed.is_none(), state(&came)), (true, wanted));
                let dead = Signatures {
                    unverified: Unverified::Dead,
                    ..deliver
                };
                let plan = dead.plan(event, Some(INPUT), at(9_000));
                assert!(matches!(plan, Plan::Refuse(_)));
            }
        }
    }

    #[test]
    fn what_whrelay_made_is_not_signed_anew() {
        let signatures = signatures(Provider::Stripe);
        let triggered = event(Provider::Stripe, "", &[(TRIGGERED, "1")]);
        let came = attested(&signatures, &triggered, true, at(9_000));
        assert_eq!(came.signed, None);
        assert_eq!(state(&came), Some(SignatureState::Verified));
    }

    #[test]
    fn never_and_always() {
        let event = event(Provider::Stripe, "", &[]);
        let with = |resign| Signatures {
            resign,
            ..signatures(Provider::Stripe)
        };
        let never = attested(&with(Resign::Never), &event, true, at(9_000));
        assert_eq!(never.signed, None);
        assert!(never.note.is_some_and(|note| note.expired));
        assert!(
            attested(&with(Resign::Always), &event, true, at(1_002))
                .signed
                .is_some()
        );
        assert!(
            attested(&with(Resign::Auto), &event, true, at(1_002))
                .signed
                .is_none()
        );
    }

    /// A tunnel or proxy before the forwarder has another name than the forwarder itself.
    #[test]
    fn a_url_is_verified_as_the_sender_knew_it_and_signed_as_the_target_sees_it() {
        for (url, more) in [
            (format!("{INPUT}/orders?a=1"), &[][..]),
            (
                "https://abc.example.com/in/shop-key/orders?a=1".to_owned(),
                &[("host", "abc.example.com")],
            ),
            (
                "https://hooks.example.com:443/in/shop-key/orders?a=1".to_owned(),
                &[
                    ("host", "10.0.0.1:80"),
                    ("x-forwarded-host", "hooks.example.com"),
                ],
            ),
        ] {
            for provider in [Provider::Twilio, Provider::Square] {
                let event = event(provider, &url, more);
                let attested = attested(&signatures(provider), &event, true, at(1_002));
                let ours = sign(&key(provider), &event.request, TARGET, at(1_002));
                assert_eq!(attested.signed, ours, "{url}");
                assert_eq!(state(&attested), Some(SignatureState::Renewed));
            }
        }
        let elsewhere = event(
            Provider::Square,
            "https://other.example.com/in/shop-key/orders?a=1",
            &[],
        );
        let came = attested(&signatures(Provider::Square), &elsewhere, true, at(1_002));
        assert_eq!(state(&came), Some(SignatureState::Unverified));
    }

    #[test]
    fn without_a_secret_only_what_is_too_old_gets_a_note() {
        let none = Signatures::default();
        let event = event(Provider::Slack, "", &[]);
        assert_eq!(attested(&none, &event, true, at(1_300)).note, None);
        let note = attested(&none, &event, true, at(1_301))
            .note
            .expect("a note");
        assert_eq!(note.state, SignatureState::Unchecked);
        assert!(note.expired && note.provider == "slack");
    }
}
