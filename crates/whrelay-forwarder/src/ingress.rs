//! The input: one webhook in, on disk, and only then a 2xx. It must not know who will read it.
//!
//! Our own trouble answers 503 with Retry-After, never 4xx: some senders drop an event at the first
//! 4xx.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use whrelay_core::bucket::Bucket;
use whrelay_core::event::{self, Event, Header};
use whrelay_core::id::EventId;
use whrelay_core::{limits, tail};
use whrelay_store::{NewEvent, StoreError};

use crate::Shared;
use crate::problem::{self, Problem};

const RETRY_SOON: Duration = Duration::from_secs(5);
/// How much of a body that is too large is read and thrown away, and for how long, so that the
/// sender gets to read why.
const DISCARD_BYTES: usize = 2 * limits::MAX_BODY;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// The answer to an accepted webhook.
#[derive(Debug, Serialize)]
pub(crate) struct Accepted {
    id: String,
}

/// `ANY /in/{bucket key}[/tail]`
pub(crate) async fn receive(
    State(shared): State<Arc<Shared>>,
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
    let (body, _permit) = read_body(&shared, body).await?;
    let request = event::Request {
        method: parts.method.as_str().to_owned(),
        tail: tail.to_owned(),
        query: parts.uri.query().map(str::to_owned),
        headers: copy_headers(&parts.headers),
        body,
    };
    let id = store(&shared, &bucket, request).await?;
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
    headers.iter().map(copy).collect()
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
    match timeout(limits::INGEST_DEADLINE, append).await {
        Ok(Ok(_)) => {
            shared.hub.wake(bucket.id);
            Ok(id)
        }
        Ok(Err(error)) => {
            // The sender is told 503, which all of them retry; 507 is what it is (RFC 4918 section 11.5).
            let status = match error {
                StoreError::Full | StoreError::Bound | StoreError::Share => {
                    StatusCode::INSUFFICIENT_STORAGE
                }
                StoreError::Reopening | StoreError::Broken(_) | StoreError::Damaged(_) => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            };
            let status = status.as_u16();
            tracing::error!(%error, status, bucket = %bucket.name, "an event was refused");
            Err(Problem::unavailable(error.to_string(), RETRY_SOON))
        }
        Err(_) => {
            tracing::error!(bucket = %bucket.name, "the disk is too slow: an event was refused");
            Err(Problem::unavailable("the disk is too slow", RETRY_SOON))
        }
    }
}

/// Reads the body whole, within its size, its time and its share of memory.
async fn read_body(
    shared: &Shared,
    mut body: Body,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Problem> {
    let declared = body.size_hint().lower();
    if declared > limits::MAX_BODY as u64 {
        return Err(too_large(body, declared).await);
    }
    let began = Instant::now();
    let (mut gathered, mut permit) = (Gathered::default(), None);
    loop {
        let received = gathered.len();
        let frame = match timeout_at(began + time_for(received), body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                let why = format!("the body ended early: {error}");
                return Err(Problem::new(StatusCode::BAD_REQUEST, why));
            }
            Err(_) => {
                let why = "the body came too slowly";
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, why));
            }
        };
        // Trailers are not merged into the header fields.
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(other) => match other.trailers_ref().and_then(|t| problem::too_large(t, 0)) {
                Some(problem) => return Err(problem),
                None => continue,
            },
        };
        if received + data.len() > limits::MAX_BODY {
            return Err(too_large(body, (received + data.len()) as u64).await);
        }
        reserve(shared, &mut permit, data.len())?;
        gathered.add(data);
    }
    Ok((gathered.into_bytes(), permit))
}

/// A body as it comes: most come in one piece, which is not copied.
#[derive(Debug, Default)]
enum Gathered {
    #[default]
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Gathered {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn add(&mut self, data: Bytes) {
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(data),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(2 * (first.len() + data.len()));
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
                Self::Many(all)
            }
            Self::Many(mut all) => {
                all.extend_from_slice(&data);
                Self::Many(all)
            }
        };
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

/// The time by which a body of which so much has come must have come further.
fn time_for(received: usize) -> Duration {
    let earned = Duration::from_secs(received as u64 / limits::MIN_BODY_RATE);
    (limits::BODY_GRACE + earned).min(limits::BODY_TIMEOUT)
}

fn reserve(
    shared: &Shared,
    permit: &mut Option<OwnedSemaphorePermit>,
    bytes: usize,
) -> Result<(), Problem> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let more = Arc::clone(&shared.ingest_bytes).try_acquire_many_owned(bytes);
    let more = more.map_err(|_| Problem::unavailable("too many bodies at once", RETRY_SOON))?;
    match permit {
        Some(permit) => permit.merge(more),
        None => *permit = Some(more),
    }
    Ok(())
}

async fn too_large(mut body: Body, seen: u64) -> Problem {
    tracing::warn!(
        bytes = seen,
        limit = limits::MAX_BODY,
        "a body was too large"
    );
    let mut left = DISCARD_BYTES;
    let discard = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            if length > left {
                break;
            }
            left -= length;
        }
    };
    if seen <= DISCARD_BYTES as u64 {
        // Whether all of it came in time changes nothing.
        let _ = timeout(DISCARD_TIME, discard).await;
    }
    let why = format!("the body is larger than {} bytes", limits::MAX_BODY);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why)
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

    #[test]
    fn a_body_in_many_pieces_keeps_every_piece() {
        let all: Vec<u8> = (0..=255).collect();
        for size in [1, 2, 100, 256, 1000] {
            let mut gathered = Gathered::default();
            for piece in all.chunks(size) {
                gathered.add(Bytes::copy_from_slice(piece));
            }
            assert_eq!(gathered.len(), all.len());
            assert_eq!(gathered.into_bytes(), all, "in pieces of {size}");
        }
    }

    #[test]
    fn a_body_earns_time_as_it_comes_but_not_for_ever() {
        assert_eq!(time_for(0), limits::BODY_GRACE);
        assert_eq!(
            time_for(10 * 1024),
            limits::BODY_GRACE + Duration::from_secs(10)
        );
        assert_eq!(time_for(limits::MAX_BODY), limits::BODY_TIMEOUT);
    }
}
