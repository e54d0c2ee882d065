//! The websocket under a tunnel: its handshake, and large messages in small frames. It must not know what a message
//! says.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::SinkExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use whrelay_core::limits;

use crate::problem::Problem;

/// An open websocket of an agent.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Answers a request for a websocket of a subprotocol (RFC 6455 section 4.2).
pub(crate) fn accept(
    parts: &mut Parts,
    protocol: &'static str,
) -> Result<(Response, OnUpgrade), Problem> {
    let needed = |status| Problem::new(status, "a websocket is needed");
    let headers = &parts.headers;
    if parts.method != Method::GET {
        return Err(needed(StatusCode::METHOD_NOT_ALLOWED));
    }
    let asks = lists(headers, header::CONNECTION, "upgrade")
        && lists(headers, header::UPGRADE, "websocket")
        && lists(headers, header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asks);
    let key = key.ok_or_else(|| needed(StatusCode::BAD_REQUEST))?;
    let protocols = listed(headers, header::SEC_WEBSOCKET_PROTOCOL);
    if !protocols.into_iter().any(|listed| listed == protocol) {
        let why = format!("the websocket subprotocol {protocol} is needed");
        return Err(Problem::new(StatusCode::BAD_REQUEST, why));
    }
    let accepted = derive_accept_key(key.as_bytes());
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(|| needed(StatusCode::UPGRADE_REQUIRED))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(protocol),
    );
    let accepted = HeaderValue::try_from(accepted);
    let accepted = accepted.map_err(|_| needed(StatusCode::BAD_REQUEST))?;
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    Ok((response, upgrade))
}

/// What a field lists.
fn listed(headers: &HeaderMap, name: HeaderName) -> Vec<&str> {
    let values = headers.get_all(name).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .collect()
}

/// Whether a field lists a word, in whatever case.
fn lists(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let listed = listed(headers, name);
    listed
        .into_iter()
        .any(|listed| listed.eq_ignore_ascii_case(word))
}

/// The websocket, once the answer is written.
pub(crate) async fn open(upgrade: OnUpgrade) -> Result<Socket, hyper::Error> {
    let config = WebSocketConfig::default()
        .read_buffer_size(limits::TUNNEL_READ_BUFFER)
        .write_buffer_size(limits::TUNNEL_WRITE_BUFFER)
        .max_message_size(Some(limits::MAX_AGENT_FRAME))
        .max_frame_size(Some(limits::MAX_AGENT_FRAME));
    let upgraded = TokioIo::new(upgrade.await?);
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await)
}

/// Writes a message. tungstenite copies a whole frame and keeps a buffer of its size for as long as the tunnel
/// lives, so that a large message goes in many.
pub(crate) async fn send(socket: &mut Socket, message: Message) -> Result<(), Error> {
    if message.is_binary() && message.len() > limits::TUNNEL_FRAGMENT {
        return send_large(socket, message.into_data()).await;
    }
    socket.send(message).await
}

async fn send_large(socket: &mut Socket, mut bytes: Bytes) -> Result<(), Error> {
    let mut kind = Data::Binary;
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(limits::TUNNEL_FRAGMENT));
        let frame = Frame::message(piece, OpCode::Data(kind), bytes.is_empty());
        socket.feed(Message::Frame(frame)).await?;
        kind = Data::Continue;
    }
    socket.flush().await
}
