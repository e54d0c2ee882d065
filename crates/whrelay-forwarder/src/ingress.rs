//! The input: one webhook in, on disk, and only then a 2xx. It must not know who will read it.
//!
//! Our own trouble answers 503 with Retry-After, never 4xx: some senders drop an event at the first
//! 4xx.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use bytes::Bytes;
use serde::Serialize;
use tokio::time::timeout;
use whrelay_core::bucket::Bucket;
use whrelay_core::event::{self, Event, Header};
use whrelay_core::id::EventId;
use whrelay_core::token::Token;
use whrelay_core::{limits, tail};
use whrelay_store::NewEvent;

use crate::Shared;
use crate::body::Whole;
use crate::problem::{Problem, RETRY_SOON};
use crate::refusals::{Reason, Refusal, Shown};
use crate::seats::Seat;
use crate::target::Written;

/// The answer to an accepted webhook.
#[derive(Debug, Serialize)]
pub(crate) struct Accepted {
    id: String,
}

/// `ANY /in/{bucket key}[/tail]`
pub(crate) async fn receive(
    State(shared): State<Arc<Shared>>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request<Body>,
) -> Result<Json<Accepted>, Problem> {
    let (mut parts, body) = request.into_parts();
    as_http1(&mut parts);
    let written = parts.extensions.remove::<Written>();
    let (path, query) = written.unwrap_or_default().target(&parts.uri);
    let (key, tail) = split_path(&path);
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "no such input URL");
    let bucket = shared.registry.by_key(key).ok_or_else(unknown)?;
    if tail::climbs(tail) {
        let why = "the path has dot segments (`.` or `..`, plain or encoded)";
        return Err(Problem::new(StatusCode::BAD_REQUEST, why));
    }
    if let Some(why) = unsupported(&parts) {
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, why));
    }
    if let Some(why) = wrong_host(&parts) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, why).closing());
    }
    if is_own(&shared, &bucket, &parts.headers).await {
        let why = "this event was delivered from here: a target is this input URL itself";
        return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, why)
            .hint("give `listen` the address of your app, not the input URL"));
    }
    if let Some(problem) = shared.bodies.refuse_unasked(&parts.headers, &body) {
        return Err(problem);
    }
    let read = shared.bodies.read(body, &seat, bucket.id, &shared.stop);
    // Its memory counts until it is stored.
    let Whole { bytes: body, grant } = read.await?;
    let request = event::Request {
        method: parts.method.as_str().to_owned(),
        tail: tail.to_owned(),
        query,
        headers: copy_headers(&parts.headers),
        body,
    };
    let id = store(&shared, &bucket, request).await;
    drop(grant);
    let id = id?;
    if parts
        .headers
        .iter()
        .any(|(name, value)| is_access_token(name, value))
    {
        shared.refusals.note(&Refusal {
            reason: Reason::AccessTokenRemoved,
            peer: seat.address,
            status: None,
            path: Some(Shown::new(&shared.registry, &parts.uri)),
            why: "the sender has a token of a forwarder: was an input URL given as --forwarder?",
        });
    }
    Ok(Json(Accepted { id: id.to_string() }))
}

/// Writes the fields of HTTP/2 as HTTP/1.1 has them (RFC 9113 sections 8.2.3 and 8.3.1).
fn as_http1(parts: &mut Parts) {
    if parts.version != Version::HTTP_2 {
        return;
    }
    let headers = &mut parts.headers;
    if let Some(host) = parts.uri.authority().map(Authority::as_str)
        && let Ok(value) = HeaderValue::from_str(host)
        && headers.get(header::HOST) != Some(&value)
    {
        // Beside a Host field that names another host, it makes two.
        headers.append(header::HOST, value);
    }
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
    let crumbs: Vec<_> = crumbs.iter().map(|it| it.as_bytes()).collect();
    if crumbs.len() > 1
        && let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, cookie);
    }
}

/// Key and tail of `/in/{key}[/tail]`, raw.
fn split_path(path: &str) -> (&str, &str) {
    let rest = path.strip_prefix("/in/").unwrap_or_default();
    rest.split_at(rest.find('/').unwrap_or(rest.len()))
}

/// Why a request cannot be passed on as it was meant, where it cannot.
fn unsupported(parts: &Parts) -> Option<&'static str> {
    if parts.method == Method::CONNECT {
        return Some("CONNECT asks for a tunnel, which cannot be delivered");
    }
    let codings: Vec<_> = parts
        .headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .collect();
    match codings[..] {
        [] => None,
        [one] if one.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        // Only chunks are taken apart: the body would be stored in its other coding, which nobody
        // would be told of, for the field is of this hop.
        _ => Some("the body has a transfer coding other than `chunked`"),
    }
}

/// What is wrong with the request's `Host` (RFC 9112 section 3.2).
fn wrong_host(parts: &Parts) -> Option<&'static str> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Some("there are two Host fields"),
        (None, _) if parts.version >= Version::HTTP_11 => Some("there is no Host field"),
        (None, _) => None,
        (Some(host), None) => (!is_host(host.as_bytes())).then_some("the Host field is not a host"),
    }
}

/// A host and maybe a port; or nothing, which a target without an authority has.
fn is_host(value: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(value) else {
        return value.is_empty();
    };
    let behind = authority.as_str().rsplit(']').next().unwrap_or_default();
    let port = behind.split_once(':').map(|(_, port)| port);
    let is_port = port.is_none_or(|port| port.is_empty() || port.parse::<u16>().is_ok());
    is_port && !value.contains(&b'@')
}

/// Whether this is a delivery of an event of the same bucket: stored and delivered again, it would go round for ever.
async fn is_own(shared: &Shared, bucket: &Bucket, headers: &HeaderMap) -> bool {
    let id = headers.get("x-whrelay-event-id");
    let id = id.and_then(|id| id.to_str().ok()?.parse::<EventId>().ok());
    let Some(id) = id else { return false };
    // One that cannot be looked up is taken in: nothing may be lost for it.
    let found = shared.store.journal.find_event(id).await.ok().flatten();
    found.is_some_and(|(known, _)| known == bucket.id)
}

fn copy_headers(headers: &HeaderMap) -> Vec<Header> {
    let copy = |(name, value): (&header::HeaderName, &header::HeaderValue)| Header {
        name: name.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    let kept = headers
        .iter()
        .filter(|(name, value)| !is_access_token(name, value));
    kept.map(copy).collect()
}

/// Whether a field carries an access token of a forwarder. A token gives full access, so targets must not get it.
fn is_access_token(name: &header::HeaderName, value: &header::HeaderValue) -> bool {
    const SCHEME: &[u8] = b"bearer";
    let value = value.as_bytes().trim_ascii_start();
    let (scheme, token) = value.split_at(SCHEME.len().min(value.len()));
    let is_bearer = *name == header::AUTHORIZATION && scheme.eq_ignore_ascii_case(SCHEME);
    is_bearer && Token::looks_like_one(token) || Token::is_in(value)
}

async fn store(
    shared: &Shared,
    bucket: &Bucket,
    request: event::Request,
) -> Result<EventId, Problem> {
    let received_at = shared.clock.now();
    let id = EventId::from_parts(received_at, rand::random());
    let event = Event {
        id,
        bucket: bucket.name.clone(),
        received_at,
        request,
        removed_body: None,
    };
    let new = vec![NewEvent {
        event,
        deliveries: Vec::new(),
    }];
    let append = shared.store.journal.receive(bucket.id, new, None);
    let stored = timeout(limits::INGEST_DEADLINE, append).await;
    shared.intake.note(bucket.id, stored.as_ref().ok());
    match stored {
        Ok(Ok(_)) => {
            shared.hub.wake(bucket.id);
            Ok(id)
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Problem::unavailable("the disk is too slow", RETRY_SOON)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_tail_are_split_raw() {
        assert_eq!(split_path("/in/k"), ("k", ""));
        assert_eq!(split_path("/in/k/"), ("k", "/"));
        assert_eq!(split_path("/in/k//a%2Fb"), ("k", "//a%2Fb"));
    }
}
