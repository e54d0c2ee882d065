//! The input: one webhook in, on disk, and only then a 2xx. It must not know who will read it.
//!
//! Our own trouble answers 503 with Retry-After, never 4xx: some senders drop an event at the first
//! 4xx.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri, header};
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
    let (parts, body) = request.into_parts();
    let (key, tail) = split_path(&parts.uri);
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "no such input URL");
    let bucket = shared.registry.by_key(key).ok_or_else(unknown)?;
    if tail::climbs(tail) {
        let why = "the path has dot segments (`.` or `..`, plain or encoded)";
        return Err(Problem::new(StatusCode::BAD_REQUEST, why));
    }
    if let Some(why) = unsupported(&parts) {
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, why));
    }
    let read = shared.bodies.read(body, &seat, bucket.id, &shared.stop);
    // Its memory counts until it is stored.
    let Whole { bytes: body, grant } = read.await?;
    let request = event::Request {
        method: parts.method.as_str().to_owned(),
        tail: tail.to_owned(),
        query: parts.uri.query().map(str::to_owned),
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

/// Key and tail of `/in/{key}[/tail]`, raw.
fn split_path(uri: &Uri) -> (&str, &str) {
    let rest = uri.path().strip_prefix("/in/").unwrap_or_default();
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
    let append = shared.store.append(bucket.id, new, None);
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
        let split = |text: &'static str| {
            let uri = Uri::from_static(text);
            let (key, tail) = split_path(&uri);
            (key.to_owned(), tail.to_owned())
        };
        assert_eq!(split("/in/k"), ("k".into(), String::new()));
        assert_eq!(split("/in/k/"), ("k".into(), "/".into()));
        assert_eq!(split("/in/k//a%2Fb?x=1"), ("k".into(), "//a%2Fb".into()));
    }
}
