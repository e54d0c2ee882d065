//! Finding out how a proxy before a forwarder treats large bodies and idle connections. It must not create anything at the
//! forwarder.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST};
use http::{Request, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use url::{Position, Url};
use whrelay_core::limits;
use whrelay_core::token::Token;
use whrelay_delivery::Trust;

use crate::error::{AgentError, chain};
use crate::provision::PROBLEM;
use crate::proxy::Proxies;
use crate::socket;

/// Time for an answer to a request whose body does not come. A proxy that waits for the body takes it.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);

/// Who answers a webhook that is sent to a forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// The forwarder itself.
    Forwarder,
    /// A proxy or another server before it.
    Proxy(StatusCode),
}

/// Announces a webhook of a size, for a bucket that does not exist. No token and no body are sent.
///
/// # Errors
/// When nobody answers there.
pub async fn probe_input(
    forwarder: &Url,
    proxies: &Proxies,
    trust: &Trust,
    bytes: u64,
) -> Result<Answerer, AgentError> {
    let unreachable = |why: String| AgentError::Unreachable {
        forwarder: forwarder.to_string(),
        why,
    };
    let wire = timeout(
        limits::CONNECT_TIMEOUT,
        socket::wire(forwarder, proxies, trust),
    );
    let wire = wire
        .await
        .map_err(|_| unreachable("no answer in time".into()))??;
    let body = StreamBody::new(futures_util::stream::pending::<
        Result<Frame<Bytes>, Infallible>,
    >());
    let path = format!("{}/in/", forwarder.path().trim_end_matches('/'));
    let request = Request::post(path)
        .header(HOST, &forwarder[Position::BeforeHost..Position::AfterPort])
        .header(CONTENT_LENGTH, bytes)
        .header(EXPECT, "100-continue")
        .body(body)
        .map_err(|e| unreachable(e.to_string()))?;
    let (mut requests, connection) = handshake(TokioIo::new(wire))
        .await
        .map_err(|e| unreachable(chain(&e)))?;
    tokio::spawn(connection);
    let Ok(answer) = timeout(REFUSED_WITHIN, requests.send_request(request)).await else {
        return Ok(Answerer::Forwarder);
    };
    let answer = answer.map_err(|e| unreachable(chain(&e)))?;
    let kind = answer.headers().get(CONTENT_TYPE);
    let is_problem = kind.is_some_and(|kind| kind.as_bytes().starts_with(PROBLEM));
    Ok(match answer.status() {
        StatusCode::NOT_FOUND if is_problem => Answerer::Forwarder,
        status => Answerer::Proxy(status),
    })
}

/// Opens a tunnel's socket and stays silent for longer than pings are apart. Returns the time after which the connection
/// was cut, if it was.
///
/// # Errors
/// When it cannot be opened.
pub async fn probe_idle(
    forwarder: &Url,
    proxies: &Proxies,
    trust: &Trust,
    token: &Token,
) -> Result<Option<Duration>, AgentError> {
    let mut socket = socket::open(forwarder, proxies, trust, token).await?;
    let began = Instant::now();
    let ended = timeout(limits::HELLO_TIMEOUT, socket.stream.next()).await;
    let is_forwarder = match ended {
        Err(_) => true,
        Ok(Some(Ok(Message::Close(Some(frame))))) => frame.code == CloseCode::Policy,
        Ok(_) => false,
    };
    Ok((!is_forwarder).then(|| began.elapsed()))
}
