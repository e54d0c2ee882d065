//! What lies between here and a forwarder: a proxy that refuses large bodies, or ends idle connections. It must not
//! create anything at the forwarder.

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
use crate::proxy::Proxies;
use crate::socket;

/// Time for an answer to a request whose body does not come. A proxy that waits for the body takes it.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);

/// What becomes of a webhook that is sent to a forwarder's public URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaches {
    /// The forwarder gets it.
    Forwarder,
    /// Something before the forwarder answers it.
    Else(StatusCode),
}

/// Announces a body of a size to a forwarder's public URL, in a bucket that there cannot be, and sees who refuses it.
///
/// # Errors
/// When nobody answers there.
pub async fn who_takes(
    public: &Url,
    proxies: &Proxies,
    trust: &Trust,
    bytes: u64,
) -> Result<Reaches, AgentError> {
    let unreachable = |why: String| AgentError::Unreachable {
        forwarder: public.to_string(),
        why,
    };
    let wire = timeout(
        limits::CONNECT_TIMEOUT,
        socket::wire(public, proxies, trust),
    );
    let wire = wire
        .await
        .map_err(|_| unreachable("no answer in time".into()))??;
    let body = StreamBody::new(futures_util::stream::pending::<
        Result<Frame<Bytes>, Infallible>,
    >());
    let path = format!("{}/in/", public.path().trim_end_matches('/'));
    let request = Request::post(path)
        .header(HOST, &public[Position::BeforeHost..Position::AfterPort])
        .header(CONTENT_LENGTH, bytes)
        .header(EXPECT, "100-continue")
        .body(body)
        .map_err(|e| unreachable(e.to_string()))?;
    let (mut requests, connection) = handshake(TokioIo::new(wire))
        .await
        .map_err(|e| unreachable(chain(&e)))?;
    tokio::spawn(connection);
    let Ok(answer) = timeout(REFUSED_WITHIN, requests.send_request(request)).await else {
        return Ok(Reaches::Forwarder);
    };
    let answer = answer.map_err(|e| unreachable(chain(&e)))?;
    let kind = answer.headers().get(CONTENT_TYPE);
    let is_ours = kind.is_some_and(|kind| kind == "application/problem+json");
    Ok(match is_ours {
        true => Reaches::Forwarder,
        false => Reaches::Else(answer.status()),
    })
}

/// Opens a tunnel's socket and says nothing, for longer than pings are apart. Returns how long that was possible, if
/// it was cut before.
///
/// # Errors
/// When it cannot be opened.
pub async fn cut_when_idle(
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
