//! Errors as senders and agents see them: RFC 9457 problem details. It must not decide what is one.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use whrelay_core::limits;
use whrelay_store::StoreError;

use crate::Shared;
use crate::refusals::{Reason, Refusal, Shown};
use crate::seats::Seat;
use crate::target::Written;

/// When a sender comes again after trouble of our own.
pub(crate) const RETRY_SOON: Duration = Duration::from_secs(5);

/// What frees space.
const WAITS_FOR_AGENTS: &str = "`whrelay subscription ls` lists subscriptions with waiting events; \
    `whrelay subscription rm NAME` or `whrelay forwarder --subscription-ttl DUR` ends unused ones";

/// A refused request.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    detail: String,
    /// What helps. An extension of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip)]
    retry_after: Option<Duration>,
    #[serde(skip)]
    reason: Reason,
    /// What the log says of the status, where that is more exact.
    #[serde(skip)]
    logged: StatusCode,
    /// Whether the connection ends with the answer.
    #[serde(skip)]
    closes: bool,
}

/// Why a request was refused, beside the answer that says so.
#[derive(Clone, Debug)]
struct Refused {
    reason: Reason,
    status: StatusCode,
    why: String,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_u16(status.as_u16())
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self {
            kind: "about:blank",
            title,
            status,
            detail: detail.into(),
            hint: None,
            retry_after: None,
            reason: Reason::of(status),
            logged: status,
            // What comes late would be read as the next request.
            closes: status == StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// Counted for a reason of its own.
    pub(crate) fn because(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }

    /// The log says another status than the sender is told.
    pub(crate) fn logged_as(self, logged: StatusCode) -> Self {
        Self { logged, ..self }
    }

    /// Closes the connection: the rest of the request is not read.
    pub(crate) fn closing(self) -> Self {
        Self {
            closes: true,
            ..self
        }
    }

    /// The same, and what helps.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into());
        Self { hint, ..self }
    }

    /// Our own trouble is never the sender's fault: 503, and when to come back.
    pub(crate) fn unavailable(detail: impl Into<String>, retry_after: Duration) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        Self {
            retry_after: Some(retry_after),
            ..problem
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let problem = Self::unavailable(error.to_string(), RETRY_SOON);
        match error {
            // The sender is told 503, which all of them retry; a full disk is 507 (RFC 4918 section 11.5).
            StoreError::Full => problem.logged_as(StatusCode::INSUFFICIENT_STORAGE),
            StoreError::Bound | StoreError::Share => problem
                .logged_as(StatusCode::INSUFFICIENT_STORAGE)
                .hint(WAITS_FOR_AGENTS),
            StoreError::Reopening | StoreError::Broken(_) | StoreError::Damaged(_) => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after, closes) = (self.status, self.retry_after, self.closes);
        let refused = Refused {
            reason: self.reason,
            status: self.logged,
            why: self.detail.clone(),
        };
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, json);
        if let Some(after) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        if closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(refused);
        response
    }
}

/// Answers requests whose head is too large, and passes on all others. Counts and logs what is refused.
pub(crate) async fn within_limits(
    State(shared): State<Arc<Shared>>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
    next: Next,
) -> Response {
    const LINE: usize = "  HTTP/1.1\r\n".len();
    let uri = request.uri().clone();
    let written = request.extensions().get::<Written>();
    // As it is kept: it has to fit into a head that agents take.
    let length = written.unwrap_or(&Written::default()).length(&uri);
    let line = request.method().as_str().len() + length + LINE;
    let response = match too_large(request.headers(), line) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    if let Some(refused) = response.extensions().get::<Refused>() {
        shared.refusals.note(&Refusal {
            reason: refused.reason,
            peer: seat.address,
            status: Some(refused.status.as_u16()),
            path: Some(Shown::new(&shared.registry, &uri)),
            why: &refused.why,
        });
    }
    response
}

/// What is wrong with header fields behind so many bytes, or with trailers, where they are too large. Bytes are
/// counted as if they had been written without more spaces than needed.
pub(crate) fn too_large(headers: &HeaderMap, line: usize) -> Option<Problem> {
    const FIELD: usize = ": \r\n".len();
    let size =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + FIELD;
    let bytes = line + headers.iter().map(size).sum::<usize>() + "\r\n".len();
    let fields = headers.len();
    let fits = fields <= limits::MAX_HEADERS && bytes <= limits::MAX_HEAD;
    (!fits).then(|| {
        let why = format!(
            "there are {fields} fields and {bytes} bytes: at most {} and {}",
            limits::MAX_HEADERS,
            limits::MAX_HEAD
        );
        Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, why)
    })
}

/// The answer to a method that a path does not know.
pub(crate) async fn not_allowed() -> Problem {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Problem::new(status, "method not allowed for this path")
}

/// The answer to paths that lead nowhere.
pub(crate) async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path")
}
