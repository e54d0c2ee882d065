//! One agent's tunnel: the shell around `ForwarderSession`. It must not decide what is sent or
//! acknowledged: the session does; nor keep events: the store does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::SinkExt;
use tokio::time::timeout;
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::limits;
use whrelay_proto::frame::{Frame, Hello, Refused, RefusedCode, WireEvent};
use whrelay_proto::liveness::{Liveness, Pulse};
use whrelay_proto::{ForwarderAction, ForwarderSession, SUBPROTOCOL, codec};
use whrelay_store::{StoreError, StoredEvent};

use crate::Shared;
use crate::access;
use crate::hub::Lease;
use crate::joining::{self, Subscription};
use crate::problem::Problem;
use crate::serve::Seat;

/// `GET /v1/tunnel`
pub(crate) async fn open(
    State(shared): State<Arc<Shared>>,
    Extension(seat): Extension<Arc<Seat>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    // Only browsers send Origin, and no page has any business here.
    if headers.contains_key(header::ORIGIN) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "tunnels are not for browsers",
        ));
    }
    access::check(&shared.store, &headers)?;
    let upgrade =
        upgrade.map_err(|e| Problem::new(e.into_response().status(), "a websocket is needed"))?;
    let upgrade = upgrade.protocols([SUBPROTOCOL]);
    if upgrade.selected_protocol().is_none() {
        let why = format!("the websocket subprotocol {SUBPROTOCOL} is needed");
        return Err(Problem::new(StatusCode::BAD_REQUEST, why));
    }
    let upgrade = upgrade
        .read_buffer_size(limits::TUNNEL_READ_BUFFER)
        .write_buffer_size(limits::TUNNEL_WRITE_BUFFER)
        .max_message_size(limits::MAX_AGENT_FRAME)
        .max_frame_size(limits::MAX_AGENT_FRAME);
    Ok(upgrade.on_upgrade(move |socket| async move {
        let mut tunnel = Tunnel {
            socket,
            session: ForwarderSession::default(),
            seat,
        };
        if let Err(end) = tunnel.run(&shared).await {
            tunnel.finish(end).await;
        }
    }))
}

/// Why a tunnel ends.
pub(crate) enum End {
    /// The agent is told, with this code and text.
    Refuse(RefusedCode, String),
    /// The agent is gone.
    Gone(&'static str),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Refuse(RefusedCode::Unavailable, error.to_string())
    }
}

struct Tunnel {
    socket: WebSocket,
    session: ForwarderSession,
    seat: Arc<Seat>,
}

impl Tunnel {
    async fn run(&mut self, shared: &Arc<Shared>) -> Result<(), End> {
        let hello = timeout(limits::HELLO_TIMEOUT, self.hello()).await;
        let hello = hello.unwrap_or(Err(End::Gone("no hello in time")))?;
        let subscription = joining::subscription(shared, &hello)?;
        // Before its place is read: what another session says of it no longer counts.
        let (lease, incumbent) = joining::lease(shared, &subscription, &hello)?;
        let welcome = joining::welcome(shared, &subscription, hello, &lease, incumbent).await?;
        let frame = self.session.start(welcome);
        self.send(Message::Binary(codec::encode(frame))).await?;
        let mut seen = Instant::now();
        let mut wakes = shared.hub.wakes(subscription.bucket.id);
        let mut liveness = Liveness::new(Instant::now());
        loop {
            wakes.mark_unchanged();
            let (began, more) = (
                Instant::now(),
                self.push(shared, &subscription.bucket).await?,
            );
            if began.elapsed() > limits::PING_EVERY {
                // It took long to send, and the agent took all of it: that is no silence.
                liveness.heard(Instant::now());
            }
            let wait = match liveness.pulse(Instant::now()) {
                Pulse::Dead => return Err(End::Gone("silent for too long")),
                Pulse::Ping => {
                    self.send(Message::Ping(Bytes::new())).await?;
                    Duration::ZERO
                }
                Pulse::Wait(until) => until.saturating_duration_since(Instant::now()),
            };
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => {
                    return Err(End::Refuse(RefusedCode::Stopping, "the forwarder stops".into()));
                }
                () = lease.end.lost.cancelled() => {
                    return Err(joining::lost(&subscription.name, lease.end.why()));
                }
                message = self.socket.recv() => {
                    liveness.heard(Instant::now());
                    lease.heard();
                    if seen.elapsed() > limits::NOTE_SEEN_EVERY {
                        seen = Instant::now();
                        note_seen(shared, &subscription);
                    }
                    if let Some(ForwarderAction::Acked(upto)) = self.on_message(message).await? {
                        self.record_ack(shared, &subscription, &lease, Seq(upto));
                    }
                }
                Ok(()) = wakes.changed(), if !more => {}
                () = tokio::time::sleep(wait), if !more => {}
                () = std::future::ready(()), if more => {}
            }
        }
    }

    async fn hello(&mut self) -> Result<Hello, End> {
        loop {
            let message = self.socket.recv().await;
            match self.on_message(message).await? {
                Some(ForwarderAction::Subscribe(hello)) => return Ok(hello),
                Some(ForwarderAction::Acked(_)) | None => {}
            }
        }
    }

    /// Records an ack while the tunnel goes on. One that is not recorded is made up for by the next
    /// one, or by the agent's next hello.
    fn record_ack(
        &self,
        shared: &Arc<Shared>,
        subscription: &Subscription,
        lease: &Lease<'_>,
        upto: Seq,
    ) {
        let (shared, bucket) = (Arc::clone(shared), subscription.bucket.id);
        let (name, seat) = (subscription.name.clone(), Arc::clone(&self.seat));
        let end = Arc::clone(&lease.end);
        tokio::spawn(async move {
            let speaks = move || !end.lost.is_cancelled();
            if let Err(error) = shared.store.ack(bucket, &name, upto, speaks).await {
                tracing::warn!(%error, "an ack was not recorded");
            }
            drop(seat);
        });
    }

    /// Sends one batch, if there is credit and something to send. Says whether there may be more.
    async fn push(&mut self, shared: &Shared, bucket: &Bucket) -> Result<bool, End> {
        let Some(room) = self.session.room() else {
            return Ok(false);
        };
        let read = shared
            .store
            .read_after(bucket, Seq(room.after), room.events, room.bytes);
        let batch = match read {
            // The store is being reopened, which takes a moment: no reason to lose the agent.
            Err(error) if error.is_retryable() => {
                tokio::time::sleep(limits::REOPEN_EVERY).await;
                return Ok(true);
            }
            read => read?,
        };
        for seq in &batch.damaged {
            tracing::error!(bucket = %bucket.name, seq = seq.0, "a damaged event is passed over");
        }
        if batch.upto.0 == room.after {
            return Ok(false);
        }
        let wire = |StoredEvent { seq, event }: StoredEvent| WireEvent::new(seq.0, event);
        let events = batch.events.into_iter().map(wire).collect();
        if let Some(frame) = self.session.send(batch.upto.0, events) {
            self.send(Message::Binary(codec::encode(frame))).await?;
        }
        Ok(true)
    }

    async fn on_message(
        &mut self,
        message: Option<Result<Message, axum::Error>>,
    ) -> Result<Option<ForwarderAction>, End> {
        let breach = |text: String| End::Refuse(RefusedCode::Protocol, text);
        match message {
            Some(Ok(Message::Binary(bytes))) => {
                let frame = codec::decode(bytes).map_err(|e| breach(e.to_string()))?;
                let action = self.session.on_frame(frame).map_err(|error| {
                    let code = if error.is_retryable() {
                        RefusedCode::Protocol
                    } else {
                        RefusedCode::Version
                    };
                    End::Refuse(code, error.to_string())
                })?;
                Ok(Some(action))
            }
            // Its answer goes out before more is read: the answers to an agent that pings and reads
            // nothing would pile up in memory.
            Some(Ok(Message::Ping(_))) => {
                written(limits::TUNNEL_WRITE_TIMEOUT, self.socket.flush()).await?;
                Ok(None)
            }
            Some(Ok(Message::Pong(_))) => Ok(None),
            Some(Ok(Message::Text(_))) => Err(breach("text is not spoken here".into())),
            Some(Ok(Message::Close(_))) | None => Err(End::Gone("closed by the agent")),
            Some(Err(_)) => Err(End::Gone("the connection broke")),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        let earned = Duration::from_secs(message_len(&message) / limits::MIN_TUNNEL_RATE);
        let time = limits::TUNNEL_WRITE_TIMEOUT + earned;
        written(time, self.socket.send(message)).await
    }

    async fn finish(mut self, end: End) {
        match end {
            End::Gone(why) => tracing::info!(why, "agent disconnected"),
            End::Refuse(code, text) => {
                // It may repeat what the agent said.
                tracing::info!(?code, text = %text.escape_debug(), "agent disconnected");
                let frame = Frame::Refused(Refused { code, text });
                // The agent may be gone already.
                let _ = self.send(Message::Binary(codec::encode(frame))).await;
                let _ = self.send(Message::Close(None)).await;
            }
        }
    }
}

async fn written(
    within: Duration,
    writing: impl Future<Output = Result<(), axum::Error>>,
) -> Result<(), End> {
    match timeout(within, writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone("the connection broke")),
        Err(_) => Err(End::Gone("the agent stopped reading")),
    }
}

fn message_len(message: &Message) -> u64 {
    match message {
        Message::Binary(bytes) => bytes.len() as u64,
        Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Close(_) => 0,
    }
}

/// Writes down that a subscription's agent is there, while its tunnel goes on.
fn note_seen(shared: &Arc<Shared>, subscription: &Subscription) {
    let (shared, bucket) = (Arc::clone(shared), subscription.bucket.id);
    let name = subscription.name.clone();
    tokio::spawn(async move {
        let now = shared.clock.now();
        if let Err(error) = shared.store.note_seen(bucket, &name, now).await {
            tracing::debug!(%error, "it was not written down that an agent is there");
        }
    });
}
