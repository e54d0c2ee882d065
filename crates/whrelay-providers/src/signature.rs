//! Signatures: read, verified, and made anew.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use whrelay_core::event::Request;
use whrelay_core::time::Timestamp;

use crate::content::content;
use crate::json;
use crate::key::Key;
use crate::provider::Provider;
use crate::scheme::{Digest, Form, Scheme, Text, Time, Unit, schemes};

/// A provider's signature, as it is seen without the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whose it says to be.
    pub provider: Provider,
    /// When it says to have been made, where it does.
    pub signed_at: Option<Timestamp>,
}

/// The signature of a request, if a known provider's field is there.
pub fn seen(request: &Request) -> Option<Seen> {
    Provider::ALL.into_iter().find_map(|provider| {
        let mut all = schemes(provider).iter();
        let scheme = all.find(|scheme| request.header(scheme.field).is_some())?;
        let signed_at = parse(scheme, request).and_then(|parsed| parsed.signed_at);
        Some(Seen {
            provider,
            signed_at,
        })
    })
}

/// The secrets of a user's providers; several of one provider while one is rolled.
#[derive(Clone, Debug, Default)]
pub struct Keyring(Vec<Key>);

/// What the secrets say about a request.
#[derive(Clone, Debug)]
pub enum Verdict<'a> {
    /// It has no signature of a provider whose secret is here.
    Unsigned,
    /// It was signed with one of the secrets, and fresh when it was received.
    Verified(Verified<'a>),
    /// It was signed with one of the secrets, but its signature was too old, or from the future, when it was received.
    Stale(Provider),
    /// It was not signed with any of the secrets.
    Forged(Provider),
}

/// A signature that was verified.
#[derive(Clone, Debug)]
pub struct Verified<'a> {
    provider: Provider,
    /// The ways in which it was signed, each with the keys it was signed with.
    signatures: Vec<(&'static Scheme, Vec<&'a Key>)>,
    /// The time of signing, as it is written.
    time: String,
    signed_at: Option<Timestamp>,
    digest: [u8; 16],
}

/// What makes a request signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Fields with their values, in place of those of the same names.
    pub fields: Vec<(&'static str, String)>,
    /// The body, where the time of signing is written in it.
    pub body: Option<Bytes>,
}

impl Keyring {
    /// Of these secrets; one that is given twice signs once.
    pub fn new(keys: Vec<Key>) -> Self {
        let mut all: Vec<Key> = Vec::with_capacity(keys.len());
        for key in keys {
            if !all.contains(&key) {
                all.push(key);
            }
        }
        Self(all)
    }

    /// Whether it has no secret.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Verifies a request that was received at one of these URLs.
    pub fn check(&self, request: &Request, urls: &[String], received_at: Timestamp) -> Verdict<'_> {
        for provider in Provider::ALL {
            let keys: Vec<_> = self
                .0
                .iter()
                .filter(|key| key.provider == provider)
                .collect();
            let mut all = schemes(provider).iter();
            if keys.is_empty() || !all.any(|scheme| request.header(scheme.field).is_some()) {
                continue;
            }
            return match verified(provider, &keys, request, urls) {
                Some(verified) if verified.was_fresh_at(received_at) => Verdict::Verified(verified),
                Some(_) => Verdict::Stale(provider),
                None => Verdict::Forged(provider),
            };
        }
        Verdict::Unsigned
    }
}

fn verified<'a>(
    provider: Provider,
    keys: &[&'a Key],
    request: &Request,
    urls: &[String],
) -> Option<Verified<'a>> {
    let mut found: Option<Verified<'a>> = None;
    for scheme in schemes(provider) {
        let Some(parsed) = parse(scheme, request) else {
            continue;
        };
        // What does not depend on the URL is signed for none.
        let none = [String::new()];
        let urls = match scheme.is_bound_to_url() {
            true => urls,
            false => &none[..],
        };
        for url in urls {
            let text = content(scheme, request, &request.body, url, &parsed.time);
            let Some(text) = text else { continue };
            let signed_with = |key: &&&Key| {
                let ours = encode(scheme, &mac(scheme, key, &text));
                let mut theirs = parsed.signatures.iter();
                theirs.any(|theirs| bool::from(theirs.as_bytes().ct_eq(ours.as_bytes())))
            };
            let good: Vec<_> = keys.iter().filter(signed_with).copied().collect();
            if good.is_empty() {
                continue;
            }
            let found = found.get_or_insert_with(|| Verified {
                provider,
                signatures: Vec::new(),
                time: parsed.time.clone(),
                signed_at: parsed.signed_at,
                digest: digest_of(provider, &text),
            });
            // Fields of two names that disagree about the time are not one signature.
            if found.signed_at == parsed.signed_at {
                found.signatures.push((scheme, good));
            }
            break;
        }
    }
    found
}

impl Verified<'_> {
    /// Whose signature it is.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// When it was made, where it says so.
    pub fn signed_at(&self) -> Option<Timestamp> {
        self.signed_at
    }

    /// Whether it is for one URL only.
    pub fn is_bound_to_url(&self) -> bool {
        let mut schemes = self.signatures.iter();
        schemes.any(|(scheme, _)| scheme.is_bound_to_url())
    }

    /// Names what was signed and when, whatever else is in the fields: a request that is sent again has the same.
    pub fn digest(&self) -> [u8; 16] {
        self.digest
    }

    fn was_fresh_at(&self, received_at: Timestamp) -> bool {
        match (self.signed_at, self.provider.tolerance()) {
            (Some(at), Some(tolerance)) => {
                received_at.since(at) <= tolerance && at.since(received_at) <= tolerance
            }
            (Some(_) | None, _) => true,
        }
    }

    /// Signs it for another URL, at another time where one is given.
    pub fn sign(&self, request: &Request, url: &str, at: Option<Timestamp>) -> Option<Signed> {
        let mut signed = Signed {
            fields: Vec::new(),
            body: None,
        };
        for (scheme, keys) in &self.signatures {
            let time = at.map_or_else(|| self.time.clone(), |at| written(scheme, at));
            let one = sign_with(scheme, keys, request, url, &time)?;
            signed.fields.extend(one.fields);
            signed.body = one.body.or(signed.body);
        }
        Some(signed)
    }
}

/// Signs a request that has no signature yet, in each field for which it has what is signed there. Nothing where there is
/// none.
pub fn sign(key: &Key, request: &Request, url: &str, at: Timestamp) -> Option<Signed> {
    let mut all: Option<Signed> = None;
    for scheme in schemes(key.provider) {
        let is_signed = |all: &Signed| all.fields.iter().any(|(name, _)| *name == scheme.field);
        if all.as_ref().is_some_and(is_signed) {
            continue;
        }
        let Some(one) = sign_with(scheme, &[key], request, url, &written(scheme, at)) else {
            continue;
        };
        match &mut all {
            Some(all) => all.fields.extend(one.fields),
            None => all = Some(one),
        }
    }
    all
}

fn sign_with(
    scheme: &'static Scheme,
    keys: &[&Key],
    request: &Request,
    url: &str,
    time: &str,
) -> Option<Signed> {
    let body = match scheme.time {
        Time::Body(member, ..) => Some(with_time(&request.body, member, time)?),
        Time::None | Time::Field(..) | Time::Pair(..) => None,
    };
    let text = content(
        scheme,
        request,
        body.as_ref().unwrap_or(&request.body),
        url,
        time,
    )?;
    let signatures = keys
        .iter()
        .map(|key| encode(scheme, &mac(scheme, key, &text)));
    let value = match (scheme.form, scheme.time) {
        (Form::Whole(_), _) => signatures.take(1).collect(),
        (Form::List(_), _) => signatures.collect::<Vec<_>>().join(" "),
        (Form::Pairs { separator, .. }, Time::Pair(name, _)) => {
            let time = std::iter::once(format!("{name}={time}"));
            let all: Vec<_> = time.chain(signatures).collect();
            all.join(separator)
        }
        (Form::Pairs { separator, .. }, Time::None | Time::Field(..) | Time::Body(..)) => {
            signatures.collect::<Vec<_>>().join(separator)
        }
    };
    let mut fields = vec![(scheme.field, value)];
    let also = match scheme.time {
        Time::Field(name, _) => Some(name),
        Time::Body(_, _, name) => request.header(name).map(|_| name),
        Time::None | Time::Pair(..) => None,
    };
    fields.extend(also.map(|name| (name, time.to_owned())));
    Some(Signed { fields, body })
}

/// The body with another number under a member's name.
fn with_time(body: &[u8], member: &str, time: &str) -> Option<Bytes> {
    let members = json::members(body)?;
    let range = json::range_in(body, members.get(member)?)?;
    let (before, behind) = (&body[..range.start], &body[range.end..]);
    Some([before, time.as_bytes(), behind].concat().into())
}

/// A signature as it is written, before it is verified.
struct Parsed {
    time: String,
    signed_at: Option<Timestamp>,
    signatures: Vec<String>,
}

/// Reads a scheme's fields; nothing where they are missing or malformed.
fn parse(scheme: &Scheme, request: &Request) -> Option<Parsed> {
    let value = single(request, scheme.field)?;
    let (mut times, mut signatures) = (Vec::new(), Vec::new());
    match scheme.form {
        Form::Whole(_) => signatures.push(value.clone()),
        Form::List(_) => signatures.extend(value.split(' ').map(str::to_owned)),
        Form::Pairs {
            separator,
            signature,
        } => {
            for pair in value.split(separator.trim()).map(str::trim) {
                let (name, text) = pair.split_once('=')?;
                if name == signature {
                    signatures.push(pair.to_owned());
                } else if matches!(scheme.time, Time::Pair(time, _) if time == name) {
                    times.push(text.to_owned());
                }
            }
        }
    }
    let unit = match scheme.time {
        Time::None => None,
        Time::Pair(_, unit) => Some(unit),
        Time::Field(name, unit) => {
            times.push(single(request, name)?);
            Some(unit)
        }
        Time::Body(member, unit, _) => {
            let members = json::members(&request.body)?;
            times.push(members.get(member)?.get().to_owned());
            Some(unit)
        }
    };
    let Some(unit) = unit else {
        return Some(Parsed {
            time: String::new(),
            signed_at: None,
            signatures,
        });
    };
    // Receivers differ in which of several they take.
    let [time] = <[String; 1]>::try_from(times).ok()?;
    let signed_at = Some(read(&time, unit)?);
    Some(Parsed {
        time,
        signed_at,
        signatures,
    })
}

/// The value of a field that is there once.
fn single(request: &Request, name: &str) -> Option<String> {
    let mut all = request.headers.iter().filter(|header| header.name == name);
    let value = all.next().filter(|_| all.next().is_none())?;
    let text = std::str::from_utf8(&value.value).ok()?;
    Some(text.trim().to_owned())
}

fn read(text: &str, unit: Unit) -> Option<Timestamp> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: i64 = text.parse().ok()?;
    let micros = match unit {
        Unit::Seconds => number.checked_mul(1_000_000)?,
        Unit::Milliseconds => number.checked_mul(1_000)?,
    };
    Some(Timestamp::from_micros(micros))
}

fn written(scheme: &Scheme, at: Timestamp) -> String {
    let unit = match scheme.time {
        Time::None => return String::new(),
        Time::Field(_, unit) | Time::Pair(_, unit) | Time::Body(_, unit, _) => unit,
    };
    let micros = at.as_micros();
    let number = match unit {
        Unit::Seconds => micros.div_euclid(1_000_000),
        Unit::Milliseconds => micros.div_euclid(1_000),
    };
    number.to_string()
}

fn mac(scheme: &Scheme, key: &Key, text: &[u8]) -> Vec<u8> {
    // HMAC takes keys of any length.
    match scheme.digest {
        Digest::Sha256 => Hmac::<Sha256>::new_from_slice(&key.bytes).map_or_else(
            |_| Vec::new(),
            |mac| mac.chain_update(text).finalize().into_bytes().to_vec(),
        ),
        Digest::Sha1 => Hmac::<Sha1>::new_from_slice(&key.bytes).map_or_else(
            |_| Vec::new(),
            |mac| mac.chain_update(text).finalize().into_bytes().to_vec(),
        ),
    }
}

/// A signature as its scheme writes it, with its prefix or name.
fn encode(scheme: &Scheme, mac: &[u8]) -> String {
    let text = match scheme.text {
        Text::Hex => mac.iter().map(|b| format!("{b:02x}")).collect(),
        Text::Base64 => STANDARD.encode(mac),
        Text::Base64Url => URL_SAFE_NO_PAD.encode(mac),
    };
    match scheme.form {
        Form::Whole(prefix) | Form::List(prefix) => format!("{prefix}{text}"),
        Form::Pairs { signature, .. } => format!("{signature}={text}"),
    }
}

fn digest_of(provider: Provider, text: &[u8]) -> [u8; 16] {
    let all = Sha256::new()
        .chain_update(provider.as_str())
        .chain_update(text);
    let mut digest = [0; 16];
    digest.copy_from_slice(&all.finalize()[..16]);
    digest
}
