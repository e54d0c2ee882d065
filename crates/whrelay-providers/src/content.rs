//! The text that a signature is over.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};
use whrelay_core::event::Request;

use crate::scheme::{Part, Scheme, Time};

/// The field with the names of the fields that Contentful signs.
const SIGNED_FIELDS: &str = "x-contentful-signed-headers";
/// So many of them at most: the list is the sender's.
const MAX_SIGNED_FIELDS: usize = 128;

/// What a receiver at a URL signs for a request that says that it was signed at `time`. Nothing where the request
/// cannot be signed in this way.
pub(crate) fn content(
    scheme: &Scheme,
    request: &Request,
    body: &[u8],
    url: &str,
    time: &str,
) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(body.len() + 256);
    for part in scheme.content {
        match part {
            Part::Text(fixed) => text.extend_from_slice(fixed.as_bytes()),
            Part::Time => text.extend_from_slice(time.as_bytes()),
            Part::Body => text.extend_from_slice(body),
            Part::Method => text.extend_from_slice(request.method.as_bytes()),
            Part::Field(name) => text.extend_from_slice(request.header(name)?),
            Part::Url => text.extend_from_slice(url.as_bytes()),
            Part::UrlWithForm => text.extend(with_form(request, body, url)?),
            Part::PathAndFields => text.extend(path_and_fields(scheme, request, url, time)?),
        }
    }
    Some(text)
}

/// Twilio: the URL, then each name and value of the form, sorted. A body that is no form is not signed itself: the query
/// has its digest.
fn with_form(request: &Request, body: &[u8], url: &str) -> Option<Vec<u8>> {
    let mut text = url.as_bytes().to_vec();
    if let Some(digest) = query_value(url, "bodySHA256") {
        let ours: String = Sha256::digest(body)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        return ours.eq_ignore_ascii_case(&digest).then_some(text);
    }
    let is_form = request.header("content-type").is_some_and(|value| {
        let form = b"application/x-www-form-urlencoded";
        value.len() >= form.len() && value[..form.len()].eq_ignore_ascii_case(form)
    });
    // Nothing else would vouch for the body.
    if !is_form && !body.is_empty() {
        return None;
    }
    if is_form {
        let mut sorted: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(body) {
            sorted.entry(name).or_default().insert(value);
        }
        for (name, values) in &sorted {
            for value in values {
                text.extend_from_slice(name.as_bytes());
                text.extend_from_slice(value.as_bytes());
            }
        }
    }
    Some(text)
}

fn query_value<'a>(url: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let (_, query) = url.split_once('?')?;
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs
        .find(|(known, _)| known == name)
        .map(|(_, value)| value)
}

/// Contentful: the path with its query escaped, and `name:value` of each field that the sender lists, sorted.
fn path_and_fields(scheme: &Scheme, request: &Request, url: &str, time: &str) -> Option<Vec<u8>> {
    let mut text = encode_uri(&escaped_path(url)).into_bytes();
    text.push(b'\n');
    let names = std::str::from_utf8(request.header(SIGNED_FIELDS)?).ok()?;
    let names: BTreeSet<_> = names
        .split(',')
        .map(|name| name.trim().to_lowercase())
        .collect();
    if names.len() > MAX_SIGNED_FIELDS {
        return None;
    }
    for (n, name) in names.iter().enumerate() {
        let own_time = matches!(scheme.time, Time::Field(field, _) if field == name);
        let value = match own_time {
            true => time.as_bytes(),
            false => request.header(name)?.trim_ascii(),
        };
        if n > 0 {
            text.push(b';');
        }
        text.extend_from_slice(name.as_bytes());
        text.push(b':');
        text.extend_from_slice(value);
    }
    Some(text)
}

/// The path of a URL, and behind `?` its query with everything but unreserved characters escaped.
fn escaped_path(url: &str) -> String {
    let behind = url.split_once("://").map_or(url, |(_, behind)| behind);
    let path = behind.find(['/', '?']).map_or("/", |at| &behind[at..]);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    // A query with a `?` in it ends there.
    let query = query.split('?').next().unwrap_or_default();
    let path = if path.is_empty() { "/" } else { path };
    match query {
        "" => path.to_owned(),
        query => format!("{path}?{}", encode(query, "-_.!~*'()")),
    }
}

/// As JavaScript's `encodeURI`.
fn encode_uri(text: &str) -> String {
    encode(text, "-_.!~*'();/?:@&=+$,#")
}

fn encode(text: &str, plain: &str) -> String {
    text.chars().fold(String::new(), |mut encoded, c| {
        if c.is_ascii_alphanumeric() || plain.contains(c) {
            encoded.push(c);
        } else {
            let mut buffer = [0; 4];
            for byte in c.encode_utf8(&mut buffer).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        encoded
    })
}
