//! One exchange with a target. The only file that speaks HTTP to one: no redirect is followed,
//! nothing is decompressed, and no header is added but our own. It must not know schedules.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;
use whrelay_core::delivery::Delivery;
use whrelay_core::event::{Event, Header};
use whrelay_core::limits;
use whrelay_core::outcome::{Outcome, RetryAfter};
use whrelay_core::target::Target;
use whrelay_engine::ProbeResult;
use whrelay_providers::Signed;

use crate::dial::{DialError, Socket, Way};
use crate::headers::{Fields, outgoing};
use crate::raw;
use crate::tls::{self, Trust, client_config};
use crate::wire::{Grip, Told, Wire};

/// What came of an exchange.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// For the verdict.
    pub outcome: Outcome,
    /// The answer's status code.
    pub status: Option<u16>,
    /// For a person, where there was no answer.
    pub error: Option<String>,
    /// The answer's header fields, as many as are kept.
    pub answer_headers: Vec<Header>,
    /// The first bytes of the answer's body.
    pub answer: Vec<u8>,
}

impl Reply {
    fn failed(outcome: Outcome, error: impl ToString) -> Self {
        Self {
            outcome,
            status: None,
            error: Some(error.to_string()),
            answer_headers: Vec::new(),
            answer: Vec::new(),
        }
    }
}

type Inner = legacy::Client<Connector, Full<Bytes>>;

/// Sends events to one target over kept connections.
#[derive(Clone)]
pub struct Client {
    target: Target,
    fields: Arc<Fields>,
    way: Arc<Way>,
    inner: Inner,
    /// The same with HTTP/1.1 alone, and a new connection for each request.
    fresh: Inner,
}

impl Client {
    /// For a target, with the user's fields in its requests and at most this many connections kept
    /// idle.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        target: Target,
        fields: Fields,
        trust: &Trust,
        max_idle: usize,
    ) -> Result<Self, rustls::Error> {
        let way = Arc::new(Way::to(&target));
        let tls = client_config(trust)?;
        let tcp = Tcp {
            way: Arc::clone(&way),
        };
        let builder = || HttpsConnectorBuilder::new().with_tls_config(tls.clone());
        let any = builder().https_or_http().enable_all_versions();
        let oldest = builder().https_or_http().enable_http1();
        let any = any.wrap_connector(tcp.clone());
        let oldest = oldest.wrap_connector(tcp);
        Ok(Self {
            target,
            fields: Arc::new(fields),
            way,
            inner: inner(Connector { https: any }, max_idle),
            fresh: inner(Connector { https: oldest }, 0),
        })
    }

    /// The target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Connects, sends nothing, and says whether the connection stays open for `linger`. A port that is
    /// forwarded to nobody closes it, and no server of HTTP does.
    pub async fn probe(&self, linger: Duration) -> ProbeResult {
        let Ok(mut stream) = self.way.dial_within(limits::PROBE_TIMEOUT).await else {
            return ProbeResult::Refused;
        };
        let mut byte = [0];
        match tokio::time::timeout(linger, stream.read(&mut byte)).await {
            Ok(Ok(0) | Err(_)) => ProbeResult::Closed,
            Ok(Ok(_)) | Err(_) => ProbeResult::Open,
        }
    }

    /// Whether the target accepts a connection now, and keeps it open.
    pub async fn takes_connections(&self) -> bool {
        self.probe(whrelay_engine::limits::PROBE_LINGER).await == ProbeResult::Open
    }

    /// Sends an event once, signed anew where that is given, and waits for the answer at most `timeout` (zero: for ever).
    pub(crate) async fn send(
        &self,
        event: &Event,
        delivery: &Delivery,
        number: u32,
        signed: Option<&Signed>,
        timeout: Duration,
    ) -> Reply {
        let request = match self.request(event, delivery, number, signed) {
            Ok(request) => request,
            Err(why) => return Reply::failed(Outcome::Unsendable, why),
        };
        let forever = Duration::from_secs(365 * 86_400);
        let deadline = Instant::now() + if timeout.is_zero() { forever } else { timeout };
        // In HTTP/2 no target can have what is marked.
        let client = match raw::is_marked(request.uri()) {
            true => &self.fresh,
            false => &self.inner,
        };
        let exchange = async {
            let first = exchange(client, request.clone(), deadline).await;
            match first {
                // It may be about what a handler left unread of the request before.
                (reply, Some(told)) if reply.status == Some(400) && told.requests > 1 => {
                    exchange(&self.fresh, request, deadline).await.0
                }
                (reply, _)
                    if reply.outcome == Outcome::Broken
                        && self.probe(limits::CLOSES_AT_ONCE).await == ProbeResult::Closed =>
                {
                    let why = format!(
                        "{} accepts connections and closes them: nothing listens behind it",
                        self.target
                    );
                    Reply::failed(Outcome::Unreachable, why)
                }
                (reply, _) => reply,
            }
        };
        timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
            let said = format!("no answer within {} s", timeout.as_secs_f64());
            Reply::failed(Outcome::TimedOut, said)
        })
    }

    /// The URL an event gets at this target, as text for people even where it cannot be used.
    pub fn url(&self, event: &Event) -> String {
        let request = &event.request;
        let url = self.target.url_for(&request.tail, request.query.as_deref());
        url.unwrap_or_else(|_| self.target.to_string())
    }

    /// The URL that the target sees, put together as its framework does: with the `Host` that it gets.
    pub(crate) fn seen_url(&self, event: &Event) -> String {
        let sent = &event.request;
        let url = self.target.request_url(&sent.tail, sent.query.as_deref());
        let url = url.unwrap_or_else(|_| self.target.to_string());
        let host = self.fields.host(&sent.headers);
        let host = host.as_ref().and_then(|host| host.to_str().ok());
        match (host, url.split_once("://")) {
            (Some(host), Some((scheme, rest))) => {
                let path = &rest[rest.find('/').unwrap_or(rest.len())..];
                format!("{scheme}://{host}{path}")
            }
            (None, _) | (_, None) => url,
        }
    }

    fn request(
        &self,
        event: &Event,
        delivery: &Delivery,
        number: u32,
        signed: Option<&Signed>,
    ) -> Result<Request<Full<Bytes>>, String> {
        let told = |e: &dyn std::fmt::Display| e.to_string();
        let sent = &event.request;
        let url = self
            .target
            .request_url(&sent.tail, sent.query.as_deref())
            .map_err(|e| told(&e))?;
        let uri = Uri::try_from(raw::marked(&url).as_ref()).map_err(|e| told(&e))?;
        let method = Method::from_bytes(sent.method.as_bytes()).map_err(|e| told(&e))?;
        if method == Method::CONNECT {
            return Err("CONNECT cannot be delivered".into());
        }
        let body = signed.and_then(|signed| signed.body.clone());
        let mut request = Request::new(Full::new(body.unwrap_or_else(|| sent.body.clone())));
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        *request.headers_mut() = outgoing(event, delivery, number, &self.fields, signed);
        // RFC 9110 section 8.6: a method that expects content says so when there is none.
        let expects = [Method::POST, Method::PUT, Method::PATCH].contains(request.method());
        if sent.body.is_empty() && expects {
            let none = HeaderValue::from_static("0");
            request
                .headers_mut()
                .insert(http::header::CONTENT_LENGTH, none);
        }
        Ok(request)
    }
}

fn inner(connector: Connector, max_idle: usize) -> Inner {
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(limits::KEPT_IDLE)
        .pool_max_idle_per_host(max_idle)
        .http1_title_case_headers(true)
        .http1_max_buf_size(limits::MAX_ANSWER_HEAD)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .build(connector)
}

/// One request and its answer, with what its connection has shown.
async fn exchange(
    client: &Inner,
    request: Request<Full<Bytes>>,
    deadline: Instant,
) -> (Reply, Option<Told>) {
    match client.request(request).await {
        Ok(response) => {
            let grip = grip(&response);
            let reply = read_answer(response, deadline).await;
            let told = grip.as_ref().map(Grip::told);
            let_go(grip, deadline).await;
            (reply, told)
        }
        Err(error) => {
            let mut extensions = Extensions::new();
            if let Some(connected) = error.connect_info() {
                connected.get_extras(&mut extensions);
            }
            let told = extensions.get().map(Grip::told);
            (failure(&error, told), told)
        }
    }
}

/// Status and headers decide; the body is only kept to be shown, so its failure changes nothing, and
/// it is not waited for long.
async fn read_answer(response: Response<Incoming>, deadline: Instant) -> Reply {
    let deadline = deadline.min(Instant::now() + limits::READ_ANSWER_TIME);
    let status = response.status().as_u16();
    let retry_after = response.headers().get(http::header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| RetryAfter::parse(value.as_bytes()));
    let answer_headers = kept_headers(response.headers());
    let (mut body, mut answer, mut read) = (response.into_body(), Vec::new(), 0);
    while read < limits::READ_ANSWER {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else {
            break;
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        read += data.len();
        let room = limits::KEPT_ANSWER.saturating_sub(answer.len());
        answer.extend_from_slice(&data[..data.len().min(room)]);
    }
    let outcome = Outcome::Answered {
        status,
        retry_after,
    };
    Reply {
        outcome,
        status: Some(status),
        error: None,
        answer_headers,
        answer,
    }
}

/// The first fields of an answer, up to what is kept.
fn kept_headers(headers: &HeaderMap) -> Vec<Header> {
    let mut room = limits::KEPT_ANSWER_HEADERS;
    let fits = |(name, value): &(&HeaderName, &HeaderValue)| {
        let left = room.checked_sub(name.as_str().len() + value.len());
        left.inspect(|left| room = *left).is_some()
    };
    let header = |(name, value): (&HeaderName, &HeaderValue)| Header {
        name: name.to_string(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    headers.iter().take_while(fits).map(header).collect()
}

/// The connection an answer came over, where it is that attempt's alone.
fn grip(response: &Response<Incoming>) -> Option<Grip> {
    let alone = response.version() < Version::HTTP_2;
    response.extensions().get().filter(|_| alone).cloned()
}

/// A target may answer before it has read the request, and still read it: but not for longer than the
/// attempt may take, since hyper keeps connection and body until then.
async fn let_go(grip: Option<Grip>, deadline: Instant) {
    if let Some(grip) = grip
        && timeout_at(deadline, grip.written()).await.is_err()
    {
        grip.cut();
    }
}

/// What came of a request without an answer that is HTTP. Its status line decides, where there is one.
fn failure(error: &legacy::Error, told: Option<Told>) -> Reply {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(inner) = cause {
        let is_parse = inner
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_parse);
        if let Some(status) = told.and_then(|told| told.status).filter(|_| is_parse) {
            let outcome = Outcome::Answered {
                status,
                retry_after: None,
            };
            return Reply {
                outcome,
                status: Some(status),
                error: None,
                answer_headers: Vec::new(),
                answer: Vec::new(),
            };
        }
        if let Some(trouble) = tls::error_in(inner) {
            return Reply::failed(Outcome::Broken, tls::explain(trouble));
        }
        if inner
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_incomplete_message)
        {
            let why = "the target closed the connection without an answer";
            return Reply::failed(Outcome::Broken, why);
        }
        if let Some(dial) = inner.downcast_ref::<DialError>() {
            return Reply::failed(Outcome::Unreachable, dial);
        }
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    Reply::failed(Outcome::Broken, text)
}

/// hyper's way to a target.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<Tcp>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire<MaybeHttpsStream<TokioIo<Socket>>>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.https.call(uri);
        Box::pin(async move { connecting.await.map(Wire::new) })
    }
}

/// The way below TLS: the target was fixed when it was made.
#[derive(Clone)]
struct Tcp {
    way: Arc<Way>,
}

impl Service<Uri> for Tcp {
    type Response = TokioIo<Socket>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let way = Arc::clone(&self.way);
        Box::pin(async move {
            let stream = way.dial_within(limits::CONNECT_TIMEOUT).await;
            stream.map(|stream| TokioIo::new(Socket(stream)))
        })
    }
}
