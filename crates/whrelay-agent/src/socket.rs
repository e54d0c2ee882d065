//! The tunnel's socket: TCP, TLS where the address says so, and the websocket handshake. It must
//! not know frames.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http::{HeaderValue, StatusCode, header};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Error, Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use url::Url;
use whrelay_core::limits;
use whrelay_core::token::Token;
use whrelay_delivery::{Dialer, Trust, client_config};
use whrelay_proto::{SUBPROTOCOL, TUNNEL_PATH};

use crate::error::{AgentError, chain};
use crate::provision::refused;
use crate::proxy::{self, Proxies};

pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// When bytes last came. A large frame arrives over many seconds, in which the websocket says
/// nothing, but the peer is anything but silent.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    started: Instant,
    millis: Arc<AtomicU64>,
}

impl Heard {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            millis: Arc::default(),
        }
    }

    /// When bytes last came.
    pub(crate) fn at(&self) -> Instant {
        self.started + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }

    fn now(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }
}

/// A connection that notes when it is heard.
pub(crate) struct Listened {
    wire: Box<dyn Wire>,
    heard: Heard,
}

impl AsyncRead for Listened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.wire).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.now();
        }
        polled
    }
}

impl AsyncWrite for Listened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

/// An open tunnel socket.
pub(crate) struct Socket {
    pub(crate) stream: WebSocketStream<Listened>,
    pub(crate) heard: Heard,
}

impl Socket {
    /// Closes the websocket on both sides (RFC 6455 section 5.5.1). A forwarder that does not answer is not waited for
    /// long.
    pub(crate) async fn close(&mut self, code: CloseCode) {
        let reason = Utf8Bytes::default();
        let closing = async {
            // The forwarder may have closed it, or be gone.
            let _ = self.stream.close(Some(CloseFrame { code, reason })).await;
            while let Some(Ok(_)) = self.stream.next().await {}
        };
        let _ = tokio::time::timeout(limits::FAREWELL, closing).await;
    }
}

/// Opens the tunnel's socket. The address is resolved anew each time: servers move.
pub(crate) async fn open(
    forwarder: &Url,
    proxies: &Proxies,
    trust: &Trust,
    token: &Token,
) -> Result<Socket, AgentError> {
    let unreachable = |why: String| AgentError::Unreachable {
        forwarder: forwarder.to_string(),
        why,
    };
    let opened = tokio::time::timeout(limits::CONNECT_TIMEOUT, async {
        let heard = Heard::new();
        let wire = Listened {
            wire: wire(forwarder, proxies, trust).await?,
            heard: heard.clone(),
        };
        let request = request(forwarder, token).map_err(|e| unreachable(e.to_string()))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(limits::MAX_FRAME))
            .max_frame_size(Some(limits::MAX_FRAME))
            .write_buffer_size(limits::TUNNEL_WRITE_BUFFER);
        let shaken = client_async_with_config(request, wire, Some(config)).await;
        let (stream, _) = shaken.map_err(|error| handshake_error(forwarder, error))?;
        Ok(Socket { stream, heard })
    });
    opened
        .await
        .unwrap_or_else(|_| Err(unreachable("no answer in time".into())))
}

pub(crate) async fn wire(
    forwarder: &Url,
    proxies: &Proxies,
    trust: &Trust,
) -> Result<Box<dyn Wire>, AgentError> {
    let unreachable = |why: String| AgentError::Unreachable {
        forwarder: forwarder.to_string(),
        why,
    };
    let host = forwarder.host_str().unwrap_or_default();
    let port = forwarder.port_or_known_default().unwrap_or(443);
    let proxy = proxies.toward(forwarder);
    let tcp = match proxy.map_err(|e| unreachable(e.to_string()))? {
        None => Dialer::new(host, port)
            .v4_first()
            .dial()
            .await
            .map_err(|e| unreachable(e.to_string()))?,
        Some(proxy) => proxy::connect(&proxy, host, port)
            .await
            .map_err(|e| unreachable(e.to_string()))?,
    };
    if forwarder.scheme() != "https" {
        return Ok(Box::new(tcp));
    }
    let config = Arc::new(client_config(trust)?);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|e| unreachable(e.to_string()))?;
    let tls = TlsConnector::from(config).connect(name, tcp).await;
    Ok(Box::new(tls.map_err(|e| unreachable(chain(&e)))?))
}

fn request(forwarder: &Url, token: &Token) -> tungstenite::Result<http::Request<()>> {
    let scheme = if forwarder.scheme() == "https" {
        "wss"
    } else {
        "ws"
    };
    let rest = forwarder.as_str().trim_end_matches('/');
    let rest = rest.strip_prefix(forwarder.scheme()).unwrap_or(rest);
    let mut request = format!("{scheme}{rest}{TUNNEL_PATH}").into_client_request()?;
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()))?;
    bearer.set_sensitive(true);
    let headers = request.headers_mut();
    headers.insert(header::AUTHORIZATION, bearer);
    headers.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(SUBPROTOCOL),
    );
    Ok(request)
}

fn handshake_error(forwarder: &Url, error: Error) -> AgentError {
    if let Error::Http(response) = &error {
        let (status, headers) = (response.status(), response.headers());
        let answer = response.body().as_deref().unwrap_or_default();
        let may_help = match status {
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => "; a proxy before it does not reach the forwarder",
            status if status.is_redirection() => "",
            _ => "; a proxy before it has to pass websocket upgrades",
        };
        return match refused(forwarder, status, headers, answer) {
            // What a proxy takes away today it may pass tomorrow.
            AgentError::Unreachable { why, .. } | AgentError::Refused(why) => {
                AgentError::Unreachable {
                    forwarder: forwarder.to_string(),
                    why: why + may_help,
                }
            }
            other @ (AgentError::Unauthorised(_)
            | AgentError::Replaced(_)
            | AgentError::InUse(_)
            | AgentError::Store(_)
            | AgentError::Setup(_)
            | AgentError::Tls(_)
            | AgentError::Control(_)) => other,
        };
    }
    AgentError::Unreachable {
        forwarder: forwarder.to_string(),
        why: chain(&error),
    }
}

/// Whether the connection ended without a word.
pub(crate) fn is_cut(message: Option<&Result<Message, Error>>) -> bool {
    match message {
        None => true,
        Some(Ok(_)) => false,
        Some(Err(error)) => matches!(
            error,
            Error::Io(_) | Error::Protocol(ResetWithoutClosingHandshake)
        ),
    }
}

/// How the websocket is closed after what could not be read; not at all where nobody is there any more.
pub(crate) fn code_for(error: &Error) -> Option<CloseCode> {
    match error {
        Error::Capacity(_) => Some(CloseCode::Size),
        Error::Utf8(_) => Some(CloseCode::Invalid),
        Error::Protocol(ResetWithoutClosingHandshake)
        | Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Io(_)
        | Error::Tls(_)
        | Error::WriteBufferFull(_)
        | Error::Url(_)
        | Error::Http(_)
        | Error::HttpFormat(_) => None,
        Error::Protocol(_) | Error::AttackAttempt => Some(CloseCode::Protocol),
    }
}
