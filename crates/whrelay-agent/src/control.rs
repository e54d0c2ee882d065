//! The door for other terminals: questions to a running agent, over loopback HTTP with a token that
//! only the same user can read. It must not answer them itself.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{self, Json};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use whrelay_core::delivery::{Attempt, DeadReason, Delivery, State};
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;
use whrelay_core::token::{Token, TokenDigest};
use whrelay_store::write_private;

use crate::answers::Local;
use crate::error::{AgentError, chain};
use crate::lines::{EventLine, Line};
use crate::words;

const FILE: &str = "control.json";
/// Pieces of an answer that may wait for their reader.
const WAITING_PIECES: usize = 64;
/// How long a stale notice may hold a command up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an agent may take to begin its answer: one that is stopped takes connections, too.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What can be asked of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Attempts, newest last.
    Attempts {
        /// Which.
        filter: Filter,
        /// How many of those that are.
        last: usize,
        /// Whether those that come are wanted too.
        follow: bool,
        /// Those logged after this place, instead of the last ones: a follower goes on.
        after: Option<u64>,
    },
    /// Events, newest last.
    Events {
        /// Which.
        filter: Filter,
        /// How many.
        last: usize,
    },
    /// One event with its attempts, headers and body.
    Show {
        /// Its id.
        event: String,
    },
    /// Events that were given up, counted by what their last attempts came to.
    Groups {
        /// Which.
        filter: Filter,
    },
    /// Deliver events again.
    Replay {
        /// Which.
        which: Which,
        /// How.
        how: ReplayHow,
    },
    /// Give up what waits.
    Discard {
        /// Which.
        which: Which,
        /// Whether only to tell which they are.
        dry_run: bool,
    },
    /// How the agent stands.
    Status,
    /// Start no delivery until further notice, or go on.
    Pause {
        /// Whether to.
        paused: bool,
    },
}

/// The events that something is done to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// These.
    Ids(Vec<String>),
    /// All that a filter lets through.
    Filter(Filter),
}

/// How events are delivered again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReplayHow {
    /// Another target than the agent's.
    pub to: Option<String>,
    /// How fast they begin: a number and a unit, as in `10/s`.
    pub rate: Option<String>,
    /// In any order, instead of the oldest first.
    pub shuffle: bool,
    /// How often each.
    pub times: u32,
    /// How far all have come when the answer ends.
    pub until: Until,
    /// Whether only to tell which they are.
    pub dry_run: bool,
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// It waits its turn.
    #[default]
    Begun,
    /// It was tried, or its endpoint takes no connection.
    Tried,
    /// It was delivered or given up.
    Ended,
}

/// Which attempts or events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// From then on, in microseconds since 1970.
    pub since: Option<i64>,
    /// Until then, in microseconds since 1970.
    pub until: Option<i64>,
    /// In this state.
    #[serde(with = "words::maybe")]
    pub status: Option<State>,
    /// Given up for this reason.
    #[serde(with = "words::maybe")]
    pub reason: Option<DeadReason>,
    /// To this target.
    pub target: Option<String>,
    /// Of this event.
    pub event: Option<String>,
    /// Of this bucket.
    pub bucket: Option<String>,
}

impl Filter {
    pub(crate) fn wants_bucket(&self, bucket: &str) -> bool {
        self.bucket.as_deref().is_none_or(|wanted| wanted == bucket)
    }

    /// The states that are wanted.
    pub(crate) fn states(&self) -> Vec<State> {
        match (self.status, self.reason) {
            (Some(status), _) => vec![status],
            (None, Some(_)) => vec![State::Dead],
            (None, None) => State::ALL.to_vec(),
        }
    }

    pub(crate) fn wants_attempt(&self, attempt: &Attempt, target: &str) -> bool {
        self.wants_time(attempt.at)
            && self.wants_event(attempt.event)
            && self.wants_state(attempt.state(), attempt.reason())
            && self.wants_target(target)
    }

    /// Whether an event as it is shown is what the filter is about.
    pub(crate) fn wants_event_line(&self, line: &EventLine) -> bool {
        self.wants_state(line.state, line.reason)
    }

    /// Whether a delivery is one of those that the filter is about.
    pub(crate) fn wants_delivery(&self, delivery: &Delivery, target: &str) -> bool {
        self.wants_state(delivery.state, delivery.reason) && self.wants_target(target)
    }

    fn wants_state(&self, state: State, reason: Option<DeadReason>) -> bool {
        self.status.is_none_or(|wanted| wanted == state)
            && self.reason.is_none_or(|wanted| Some(wanted) == reason)
    }

    pub(crate) fn wants_target(&self, target: &str) -> bool {
        self.target.as_deref().is_none_or(|wanted| wanted == target)
    }

    fn wants_event(&self, event: EventId) -> bool {
        let wanted = self.event.as_deref();
        wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(&event.to_string()))
    }

    pub(crate) fn wants_time(&self, at: Timestamp) -> bool {
        let at = at.as_micros();
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at <= until)
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// A line.
    Line(Box<Line>),
    /// Raw bytes, as many as the line before said.
    Bytes(Bytes),
}

/// How a running agent is found.
#[derive(Serialize, Deserialize)]
struct Notice {
    address: SocketAddr,
    token: String,
    pid: u32,
}

/// The open door. Dropping it closes it.
pub(crate) struct Server {
    path: PathBuf,
    serving: JoinHandle<()>,
}

struct Door {
    local: Local,
    digest: TokenDigest,
    address: SocketAddr,
}

impl Server {
    pub(crate) async fn start(dir: &Path, local: Local) -> Result<Self, AgentError> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .map_err(AgentError::Control)?;
        let address = listener.local_addr().map_err(AgentError::Control)?;
        let token = Token::mint(&std::array::from_fn(|_| rand::random()));
        let door = Arc::new(Door {
            local,
            digest: token.digest(),
            address,
        });
        let router = Router::new().route("/v1/ask", post(ask)).with_state(door);
        let path = dir.join(FILE);
        let notice = Notice {
            address,
            token: token.expose(),
            pid: std::process::id(),
        };
        let text = serde_json::to_vec(&notice).map_err(|e| AgentError::Control(e.into()))?;
        let announced = write_private(&path, &text);
        let full = announced.as_ref().is_err_and(is_full);
        if !full {
            announced.map_err(AgentError::Control)?;
        }
        // An answer is several small pieces, and each would wait for the one before to be acknowledged.
        let listener = listener.tap_io(|stream| {
            // Without it they only come late.
            let _ = stream.set_nodelay(true);
        });
        let announce = path.clone();
        let serving = tokio::spawn(async move {
            let announcing = async {
                // Deliveries do not wait until other commands can find the agent.
                while full && write_private(&announce, &text).is_err() {
                    tokio::time::sleep(limits::REOPEN_EVERY).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                served = axum::serve(listener, router) => {
                    if let Err(error) = served {
                        tracing::error!(%error, "the control endpoint has stopped");
                    }
                }
                () = announcing => {}
            }
        });
        Ok(Self { path, serving })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
        // A stale notice is recognised: nobody answers at its address.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

async fn ask(
    extract::State(door): extract::State<Arc<Door>>,
    headers: HeaderMap,
    Json(ask): Json<Ask>,
) -> Result<Response, StatusCode> {
    door.check(&headers)?;
    let (pieces, mut coming) = mpsc::channel(WAITING_PIECES);
    let local = door.local.clone();
    tokio::spawn(async move { local.answer(ask, pieces).await });
    let stream = futures_util::stream::poll_fn(move |cx| coming.poll_recv(cx));
    let encoded = stream.map(|piece| match piece {
        Piece::Bytes(bytes) => Ok(bytes),
        Piece::Line(line) => serde_json::to_vec(&line).map(|mut text| {
            text.push(b'\n');
            Bytes::from(text)
        }),
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(encoded)).into_response())
}

impl Door {
    /// A page in a browser can reach loopback too: it has no token, sends an Origin, and after a
    /// DNS trick another Host.
    fn check(&self, headers: &HeaderMap) -> Result<(), StatusCode> {
        let text = |name| {
            headers
                .get(name)
                .and_then(|v: &header::HeaderValue| v.to_str().ok())
        };
        if headers.contains_key(header::ORIGIN)
            || text(header::HOST) != Some(self.address.to_string().as_str())
        {
            return Err(StatusCode::FORBIDDEN);
        }
        let bearer = text(header::AUTHORIZATION).and_then(|v| v.strip_prefix("Bearer "));
        let token = bearer.and_then(|text| Token::parse(text).ok());
        match token {
            Some(token) if token.matches(&self.digest) => Ok(()),
            Some(_) | None => Err(StatusCode::UNAUTHORIZED),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody is there any more.
    #[error("the agent has just stopped")]
    Gone,
    /// It takes connections, and says nothing.
    #[error("the agent does not answer: process {0} may be stopped")]
    Silent(u32),
    /// It answers something else: it is another program, or of another version.
    #[error("the agent does not understand: process {pid} answers {status}")]
    Refused {
        /// Its process, as it said when it started.
        pid: u32,
        /// What it answers.
        status: StatusCode,
    },
}

/// The way to a running agent.
pub struct Client {
    notice: Notice,
    http: reqwest::Client,
}

impl Client {
    /// The agent of a data directory, if its notice is there. Whether it still runs, asking shows.
    pub fn find(dir: &Path) -> Option<Self> {
        let notice = serde_json::from_slice(&std::fs::read(dir.join(FILE)).ok()?).ok()?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .ok()?;
        Some(Self { notice, http })
    }

    /// Asks, and answers with the pieces as they come.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(&self, ask: &Ask) -> Result<mpsc::Receiver<Piece>, Unanswered> {
        let pid = self.notice.pid;
        let request = self
            .http
            .post(format!("http://{}/v1/ask", self.notice.address));
        let request = request.bearer_auth(&self.notice.token).json(ask);
        let response = tokio::time::timeout(ANSWERS_WITHIN, request.send()).await;
        let response = response.map_err(|_| Unanswered::Silent(pid))?;
        let response = response.map_err(|_| Unanswered::Gone)?;
        let status = response.status();
        if !status.is_success() {
            return Err(Unanswered::Refused { pid, status });
        }
        let (pieces, coming) = mpsc::channel(WAITING_PIECES);
        tokio::spawn(async move {
            if let Err(why) = read_pieces(response, &pieces).await {
                let line = Line::Failure {
                    not_found: false,
                    message: why,
                };
                // Where nobody listens any more, nobody needs to know.
                let _ = pieces.send(Piece::Line(Box::new(line))).await;
            }
        });
        Ok(coming)
    }
}

async fn read_pieces(response: reqwest::Response, out: &mpsc::Sender<Piece>) -> Result<(), String> {
    let (mut stream, mut buffer) = (response.bytes_stream(), BytesMut::new());
    let mut raw: Option<usize> = None;
    loop {
        while let Some(piece) = next_piece(&mut buffer, &mut raw)? {
            if out.send(piece).await.is_err() {
                return Ok(());
            }
        }
        match stream.next().await {
            Some(Ok(bytes)) => buffer.extend_from_slice(&bytes),
            Some(Err(error)) => return Err(format!("the agent has gone: {}", chain(&error))),
            None if buffer.is_empty() && raw.is_none() => return Ok(()),
            None => return Err("the agent's answer was cut short".into()),
        }
    }
}

fn next_piece(buffer: &mut BytesMut, raw: &mut Option<usize>) -> Result<Option<Piece>, String> {
    if let Some(length) = *raw {
        if buffer.len() < length {
            return Ok(None);
        }
        *raw = None;
        return Ok(Some(Piece::Bytes(buffer.split_to(length).freeze())));
    }
    let Some(end) = buffer.iter().position(|b| *b == b'\n') else {
        return Ok(None);
    };
    let text = buffer.split_to(end);
    buffer.advance(1);
    let line: Line = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if let Line::Content(content) = &line {
        *raw = Some(usize::try_from(content.body_bytes).map_err(|e| e.to_string())?);
    }
    Ok(Some(Piece::Line(Box::new(line))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::ContentLine;

    #[test]
    fn pieces_are_found_however_the_bytes_are_cut() {
        let content = Line::Content(ContentLine {
            headers: Vec::new(),
            replaced: Vec::new(),
            body_bytes: 3,
        });
        let warning = Line::warning("x\ny");
        let mut whole = serde_json::to_vec(&warning).expect("json");
        whole.push(b'\n');
        whole.extend(serde_json::to_vec(&content).expect("json"));
        whole.extend(b"\n\n\n\n");
        for cut in 0..whole.len() {
            let (mut buffer, mut raw, mut pieces) = (BytesMut::new(), None, Vec::new());
            for part in [&whole[..cut], &whole[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(piece) = next_piece(&mut buffer, &mut raw).expect("well formed") {
                    pieces.push(piece);
                }
            }
            let expected = [
                Piece::Line(Box::new(warning.clone())),
                Piece::Line(Box::new(content.clone())),
                Piece::Bytes(Bytes::from_static(b"\n\n\n")),
            ];
            assert_eq!(pieces, expected, "cut at {cut}");
        }
    }
}
