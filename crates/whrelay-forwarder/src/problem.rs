//! Errors as senders and agents see them: RFC 9457 problem details. It must not know why.

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use whrelay_core::limits;
use whrelay_store::StoreError;

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
        Self::unavailable(error.to_string(), Duration::from_secs(1))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, json);
        if let Some(after) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        if status == StatusCode::REQUEST_TIMEOUT {
            // What comes late would be read as the next request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Answers requests whose head is too large, and passes on all others.
pub(crate) async fn within_limits(request: Request, next: Next) -> Result<Response, Problem> {
    const LINE: usize = "  HTTP/1.1\r\n".len();
    let (method, uri) = (request.method().as_str(), request.uri());
    let uri = uri.path_and_query().map_or(1, |uri| uri.as_str().len());
    let line = method.len() + uri + LINE;
    match too_large(request.headers(), line) {
        Some(problem) => Err(problem),
        None => Ok(next.run(request).await),
    }
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
    Problem::new(status, "this path is asked in another way")
}

/// The answer to paths that lead nowhere.
pub(crate) async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path")
}
