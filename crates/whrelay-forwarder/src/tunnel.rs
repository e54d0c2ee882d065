//! One agent's tunnel: the shell around `ForwarderSession`. It must not decide what is sent or
//! acknowledged: the session does; nor keep events: the store does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Extension, Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::event::Event;
use whrelay_core::limits;
use whrelay_proto::frame::{Frame, Hello, Refused, RefusedCode, WireEvent};
use whrelay_proto::liveness::{Liveness, Pulse};
use whrelay_proto::{ForwarderAction, ForwarderSession, Room, SUBPROTOCOL, codec};
use whrelay_store::{Batch, StoreError, StoredEvent};

use crate::Shared;
use crate::access;
use crate::budget::{Grant, Holder, NoRoom};
use crate::hub::Lease;
use crate::joining::{self, Subscription};
use crate::problem::Problem;
use crate::refusals::Reason;
use crate::seats::{Phase, Seat};
use crate::serve;
use crate::websocket::{self, Socket};

const EVICTED: &str = "the agent reads too slowly, and its memory is needed";

/// `GET /v1/tunnel`
pub(crate) async fn open(
    State(shared): State<Arc<Shared>>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    // Only browsers send Origin, and no page has any business here.
    if parts.headers.contains_key(header::ORIGIN) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "tunnels are not for browsers",
        ));
    }
    access::check(&shared.store, &parts.headers).await?;
    let (response, upgrade) = websocket::accept(&mut parts, SUBPROTOCOL)?;
    tokio::spawn(async move {
        // The agent may be gone before it has the answer.
        let Ok(socket) = websocket::open(upgrade).await else {
            return;
        };
        seat.enter(Phase::Tunnel);
        let mut tunnel = Tunnel {
            socket,
            session: ForwarderSession::default(),
            seat: Arc::clone(&seat),
            stop: shared.stop.clone(),
            wanted: 0,
            torn: false,
        };
        if let Err(end) = tunnel.run(&shared).await {
            tunnel.finish(end).await;
        }
        if seat.is_evicted() {
            serve::cut(&shared, &seat, Reason::EvictedTunnel);
        }
    });
    Ok(response)
}

/// Why a tunnel ends.
pub(crate) enum End {
    /// The agent is told, with this code and text.
    Refuse(RefusedCode, String),
    /// The websocket is closed with this code: no session could tell the agent.
    Close(CloseCode, &'static str),
    /// The agent is gone.
    Gone(&'static str),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Refuse(RefusedCode::Unavailable, error.to_string())
    }
}

struct Tunnel {
    socket: Socket,
    session: ForwarderSession,
    seat: Arc<Seat>,
    stop: CancellationToken,
    /// Bytes of the next event, where it is larger than a frame and had no room.
    wanted: usize,
    /// Whether a message was begun and not written to its end: no other may follow.
    torn: bool,
}

impl Tunnel {
    async fn run(&mut self, shared: &Arc<Shared>) -> Result<(), End> {
        let hello = timeout(limits::HELLO_TIMEOUT, self.hello()).await;
        let hello = hello.unwrap_or(Err(End::Close(CloseCode::Policy, "no hello in time")))?;
        let subscription = joining::subscription(shared, &hello)?;
        // Before its place is read: what another session says of it no longer counts.
        let (lease, incumbent) = joining::lease(shared, &subscription, &hello)?;
        let welcome = joining::welcome(shared, &subscription, hello, &lease, incumbent).await?;
        let frame = self.session.start(welcome);
        self.send(Message::Binary(codec::encode(frame))).await?;
        let ended = self.stream(shared, &subscription, &lease).await;
        note_seen(shared, &subscription);
        ended
    }

    /// Sends what there is, and hears what the agent says, until one of them ends it.
    async fn stream(
        &mut self,
        shared: &Arc<Shared>,
        subscription: &Subscription,
        lease: &Lease<'_>,
    ) -> Result<(), End> {
        let mut seen = Instant::now();
        let mut wakes = shared.hub.wakes(subscription.bucket.id);
        let mut liveness = Liveness::new(Instant::now());
        let acked = self.recorder(shared, subscription, lease);
        loop {
            wakes.mark_unchanged();
            let began = Instant::now();
            // An agent that is sent something large is not away, though it says nothing meanwhile.
            let writes = lease.writes();
            let more = self.push(shared, &subscription.bucket).await?;
            drop(writes);
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
                _ = self.seat.until_evicted() => return Err(End::Gone(EVICTED)),
                message = self.socket.next() => {
                    liveness.heard(Instant::now());
                    lease.heard();
                    if seen.elapsed() > limits::NOTE_SEEN_EVERY {
                        seen = Instant::now();
                        note_seen(shared, subscription);
                    }
                    if let Some(ForwarderAction::Acked(upto)) = self.on_message(message).await? {
                        acked.send_replace(Seq(upto));
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
            let message = self.socket.next().await;
            match self.on_message(message).await? {
                Some(ForwarderAction::Subscribe(hello)) => return Ok(*hello),
                Some(ForwarderAction::Acked(_)) | None => {}
            }
        }
    }

    /// Records acks while the tunnel goes on, one after the other, and of those that came meanwhile the newest. One that
    /// is not recorded is made up for by the next one, or by the agent's next hello.
    fn recorder(
        &self,
        shared: &Arc<Shared>,
        subscription: &Subscription,
        lease: &Lease<'_>,
    ) -> watch::Sender<Seq> {
        let (acked, mut newest) = watch::channel(Seq(0));
        let (shared, bucket) = (Arc::clone(shared), subscription.bucket.id);
        let (name, seat) = (subscription.name.clone(), Arc::clone(&self.seat));
        let epoch = lease.epoch;
        tokio::spawn(async move {
            while newest.changed().await.is_ok() {
                let upto = *newest.borrow_and_update();
                if let Err(error) = shared.store.journal.ack(bucket, &name, upto, epoch).await
                    && shared.unrecorded.now()
                {
                    tracing::warn!(%error, "an ack was not recorded");
                }
            }
            drop(seat);
        });
        acked
    }

    /// Sends one batch, if there is credit and something to send. Says whether there may be more.
    async fn push(&mut self, shared: &Shared, bucket: &Bucket) -> Result<bool, End> {
        let Some(room) = self.session.room() else {
            return Ok(false);
        };
        let mut grant = shared.tunnels.begin(Holder {
            seat: Arc::clone(&self.seat),
            bucket: Some(bucket.id),
        });
        let batch = match self.read(shared, bucket, room, &mut grant).await? {
            Read::Batch(batch) => batch,
            Read::Nothing => return Ok(false),
            Read::Later => return Ok(true),
        };
        for seq in &batch.damaged {
            tracing::error!(bucket = %bucket.name, seq = seq.0, "a damaged event is passed over");
        }
        let wire = |StoredEvent { seq, event }: StoredEvent| WireEvent::new(seq.0, event);
        let events = batch.events.into_iter().map(wire).collect();
        if let Some(frame) = self.session.send(batch.upto.0, events) {
            // It is slow from now on, not since its last frame.
            self.seat.enter(Phase::Tunnel);
            self.send(Message::Binary(codec::encode(frame))).await?;
        }
        Ok(true)
    }

    /// Reads what there is room for, in the agent's window and in memory.
    async fn read(
        &mut self,
        shared: &Shared,
        bucket: &Bucket,
        room: Room,
        grant: &mut Grant,
    ) -> Result<Read, End> {
        let mut lacks = room.bytes.min(limits::MAX_FRAME_BYTES).max(self.wanted);
        loop {
            if !grant.try_add(lacks) {
                if shared.store.journal.numbers(bucket.id).await?.last.0 <= room.after {
                    return Ok(Read::Nothing);
                }
                match grant.add(lacks, limits::TUNNEL_WAIT).await {
                    Ok(_) => {}
                    Err(NoRoom::Late) => return Ok(Read::Later),
                    Err(NoRoom::Evicted) => return Err(End::Gone(EVICTED)),
                }
            }
            let read = shared
                .store
                .journal
                .read_after(bucket, Seq(room.after), room.events, room.bytes)
                .await;
            let batch = match read {
                // The store is being reopened, which takes a moment: no reason to lose the agent.
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep(limits::REOPEN_EVERY).await;
                    return Ok(Read::Later);
                }
                read => read?,
            };
            if batch.upto.0 == room.after {
                return Ok(Read::Nothing);
            }
            let weight: usize = batch
                .events
                .iter()
                .map(|stored| weight(&stored.event))
                .sum();
            lacks = weight.saturating_sub(grant.bytes());
            if lacks == 0 || grant.try_add(lacks) {
                self.wanted = 0;
                grant.shrink_to(weight);
                return Ok(Read::Batch(batch));
            }
            // One large event: it is read again once there is memory for it.
            self.wanted = weight;
        }
    }

    async fn on_message(
        &mut self,
        message: Option<Result<Message, Error>>,
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
                let writing = self.socket.flush();
                written(
                    limits::TUNNEL_WRITE_TIMEOUT,
                    writing,
                    &self.seat,
                    &self.stop,
                )
                .await?;
                Ok(None)
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => Ok(None),
            Some(Ok(Message::Text(_))) => Err(breach("text frames are not supported".into())),
            Some(Ok(Message::Close(_))) | None => Err(End::Gone("closed by the agent")),
            Some(Err(Error::Capacity(_))) => Err(End::Close(
                CloseCode::Size,
                "a message is larger than agents may send",
            )),
            Some(Err(Error::Utf8(_))) => Err(End::Close(CloseCode::Invalid, "a text is not UTF-8")),
            Some(Err(Error::Protocol(error))) if error != ResetWithoutClosingHandshake => {
                Err(End::Close(CloseCode::Protocol, "not a websocket's frame"))
            }
            Some(Err(_)) => Err(End::Gone("the connection broke")),
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        let earned = Duration::from_secs(message.len() as u64 / limits::MIN_TUNNEL_RATE);
        let time = limits::TUNNEL_WRITE_TIMEOUT + earned;
        let writing = websocket::send(&mut self.socket, message);
        let written = written(time, writing, &self.seat, &self.stop).await;
        self.torn |= written.is_err();
        written
    }

    /// Tells the agent, and closes the websocket on both sides (RFC 6455 section 5.5.1).
    async fn finish(mut self, end: End) {
        let (frame, close) = match end {
            End::Gone(why) => {
                tracing::info!(why, "agent disconnected");
                (None, None)
            }
            End::Close(code, why) => {
                tracing::info!(why, "agent disconnected");
                (None, Some((code, why)))
            }
            End::Refuse(code, text) => {
                // It may repeat what the agent said.
                tracing::info!(?code, text = %text.escape_debug(), "agent disconnected");
                let close = close_code(code);
                (
                    Some(Frame::Refused(Refused { code, text })),
                    Some((close, "")),
                )
            }
        };
        if self.torn {
            return;
        }
        let seat = Arc::clone(&self.seat);
        // The agent may be gone already, or not listen.
        let farewell = async {
            if let Some(frame) = frame {
                let _ = self.send(Message::Binary(codec::encode(frame))).await;
            }
            if let Some((code, why)) = close {
                let reason = why.into();
                let close = Message::Close(Some(CloseFrame { code, reason }));
                let _ = self.send(close).await;
            }
            // Whatever comes before the agent's own close changes nothing any more.
            let mut ends = close.is_none();
            while let Some(Ok(message)) = self.socket.next().await {
                ends |= message.is_close();
            }
            if !ends {
                // With bytes that nobody read the system would cut the connection, and the close with it.
                let _ = tokio::io::copy(self.socket.get_mut(), &mut tokio::io::sink()).await;
            }
        };
        tokio::select! {
            _ = timeout(limits::FAREWELL, farewell) => {}
            _ = seat.until_evicted() => {}
        }
    }
}

/// The websocket's code beside the session's (RFC 6455 section 7.4.1).
fn close_code(code: RefusedCode) -> CloseCode {
    match code {
        RefusedCode::Protocol => CloseCode::Protocol,
        RefusedCode::Stopping => CloseCode::Away,
        RefusedCode::Unavailable => CloseCode::Again,
        RefusedCode::UnknownBucket
        | RefusedCode::Version
        | RefusedCode::Replaced
        | RefusedCode::InUse
        | RefusedCode::TooManySubscriptions
        | RefusedCode::Unknown => CloseCode::Policy,
    }
}

/// What could be read.
enum Read {
    Batch(Batch),
    Nothing,
    /// There is no memory for it, or the store cannot be read.
    Later,
}

/// About how many bytes an event takes in memory.
fn weight(event: &Event) -> usize {
    const FIELD: usize = 64;
    let request = &event.request;
    let fields = request.headers.iter();
    let fields = fields.map(|field| field.name.len() + field.value.len() + FIELD);
    let path = request.tail.len() + request.query.as_ref().map_or(0, String::len);
    request.body.len() + path + fields.sum::<usize>() + size_of::<Event>()
}

/// Waits until something is written, unless that takes too long, its memory is needed, or the forwarder stops.
async fn written(
    within: Duration,
    writing: impl Future<Output = Result<(), Error>>,
    seat: &Seat,
    stop: &CancellationToken,
) -> Result<(), End> {
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(limits::FAREWELL).await;
    };
    tokio::select! {
        biased;
        written = timeout(within, writing) => match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone("the connection broke")),
            Err(_) => Err(End::Gone("the agent stopped reading")),
        },
        _ = seat.until_evicted() => Err(End::Gone(EVICTED)),
        () = stopped => Err(End::Gone("the forwarder stops, and the agent does not read")),
    }
}

/// Writes down that a subscription's agent is there, while its tunnel goes on.
fn note_seen(shared: &Arc<Shared>, subscription: &Subscription) {
    let (shared, bucket) = (Arc::clone(shared), subscription.bucket.id);
    let name = subscription.name.clone();
    tokio::spawn(async move {
        let now = shared.clock.now();
        if let Err(error) = shared.store.journal.note_seen(bucket, &name, now).await {
            tracing::debug!(%error, "could not record that an agent is connected");
        }
    });
}
