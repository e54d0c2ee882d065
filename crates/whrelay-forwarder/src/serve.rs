//! Accepting connections and letting them go. It must not know what is asked over them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Error, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower_service::Service;
use whrelay_core::limits;

use crate::Shared;
use crate::budget::{Budget, Holder};
use crate::refusals::{Reason, Refusal};
use crate::seats::{Phase, Seat, Seats};
use crate::stream::Watched;
use crate::target;

/// What a client of HTTP/2 says first (RFC 9113 section 3.4).
const H2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Who may connect.
struct Places {
    most: usize,
    permits: Arc<Semaphore>,
    seats: Arc<Seats>,
}

/// Memory that connections take for what is no body.
#[derive(Clone)]
struct Memory {
    heads: Arc<Budget>,
    http2: Arc<Budget>,
}

/// Serves until the forwarder stops, then waits for the connections, at most [`limits::DRAIN`].
pub(crate) async fn serve(listener: TcpListener, router: Router, shared: &Arc<Shared>) {
    let connections = TaskTracker::new();
    let most = shared.config.max_connections;
    let most = most.clamp(limits::MIN_CONNECTIONS, limits::MAX_CONNECTIONS);
    let places = Places {
        most,
        permits: Arc::new(Semaphore::new(most)),
        seats: Arc::default(),
    };
    let budget = |total, cause| Budget::new(total, Duration::ZERO, cause);
    let memory = Memory {
        heads: budget(limits::MAX_LARGE_HEADS, Reason::EvictedHead),
        http2: budget(limits::MAX_HTTP2_BYTES, Reason::EvictedIdle),
    };
    loop {
        let (stream, peer, permit) = tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            accepted = places.accept(&listener) => accepted,
        };
        let seat = places.seats.take(peer.ip(), permit, connections.token());
        let (router, memory, shared) = (router.clone(), memory.clone(), Arc::clone(shared));
        tokio::spawn(async move { connection(stream, router, seat, memory, &shared).await });
    }
    // New senders are told at once that nobody is here, and go to another forwarder or come again.
    drop(listener);
    connections.close();
    // What has not finished by then is not waited for: its sender got no answer and comes again.
    let _ = timeout(limits::DRAIN, connections.wait()).await;
    if !shared.refusals.to_string().is_empty() {
        tracing::info!(counts = %shared.refusals, "refused since the start");
    }
}

impl Places {
    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        let permit = self.permit().await;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => return (stream, peer, permit),
                // One that was reset while it waited is nothing.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Where files are missing, those of idle connections will do.
                    self.seats.evict(self.at_once());
                    tracing::error!(%error, "no connection can be accepted");
                    tokio::time::sleep(limits::ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn at_once(&self) -> usize {
        (self.most / limits::EVICTED_AT_ONCE).max(1)
    }

    /// A place for one more, for which idle and unfinished connections are closed where all are taken.
    async fn permit(&self) -> OwnedSemaphorePermit {
        loop {
            if self.permits.available_permits() == 0 {
                self.seats.evict(self.at_once());
            }
            let permit = Arc::clone(&self.permits).acquire_owned();
            if let Ok(Ok(permit)) = timeout(limits::EVICT_AGAIN, permit).await {
                return permit;
            }
        }
    }
}

/// Serves a connection until it ends or has to.
async fn connection(
    stream: TcpStream,
    router: Router,
    seat: Arc<Seat>,
    memory: Memory,
    shared: &Shared,
) {
    // Answers are small and must not wait for acknowledgements; without it they only do.
    let _ = stream.set_nodelay(true);
    // A connection without a byte has no buffer.
    let mut begin = [0; H2_BEGIN.len()];
    let length = tokio::select! {
        read = timeout(limits::HEAD_TIMEOUT, stream.peek(&mut begin)) => read.map_or(None, Result::ok),
        cause = seat.until_evicted() => {
            cut(shared, &seat, cause);
            None
        }
        () = shared.stop.cancelled() => {
            let read = timeout(limits::STOP_GRACE, stream.peek(&mut begin));
            read.await.map_or(None, Result::ok)
        }
    };
    match length {
        None => {}
        Some(length) if is_h2(&begin[..length]) => {
            Box::pin(over_h2(stream, router, seat, memory, shared)).await;
        }
        Some(_) => Box::pin(over_h1(stream, router, seat, memory, shared)).await,
    }
}

/// Whether a client begins with HTTP/2 without having asked (RFC 9113 section 3.3).
fn is_h2(begin: &[u8]) -> bool {
    // No request of HTTP/1 begins like this.
    const ENOUGH: usize = b"PRI ".len();
    begin.len() >= ENOUGH && H2_BEGIN.starts_with(begin)
}

async fn over_h1(
    stream: TcpStream,
    router: Router,
    seat: Arc<Seat>,
    memory: Memory,
    shared: &Shared,
) {
    let targets = Arc::<target::Exchange>::default();
    let reader = target::Reader::new(Arc::clone(&targets));
    let stream = Watched::new(stream, Arc::clone(&seat), memory.heads, reader);
    let answering = Arc::clone(&seat);
    let service = service_fn(move |mut request: Request<Incoming>| {
        answering.enter(Phase::Busy);
        targets.begin(&mut request);
        let answer = answer(router.clone(), request, Arc::clone(&answering));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        // Larger than what is accepted, so that its sender is told more than hyper says.
        .max_header_size(2 * limits::MAX_HEAD)
        .max_headers(2 * limits::MAX_HEADERS)
        // A sender that says no more still wants to know whether its event is on disk.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // hyper ends what is idle.
    let idle = std::future::pending();
    conduct(serving, |it| it.graceful_shutdown(), idle, &seat, shared).await;
}

/// One request at a time, as over HTTP/1: a connection counts as one sender.
async fn over_h2(
    stream: TcpStream,
    router: Router,
    seat: Arc<Seat>,
    memory: Memory,
    shared: &Shared,
) {
    let mut held = memory.http2.begin(Holder {
        seat: Arc::clone(&seat),
        bucket: None,
    });
    let room = tokio::select! {
        room = held.add(limits::HTTP2_BYTES, limits::HEAD_TIMEOUT) => room,
        () = shared.stop.cancelled() => return,
    };
    if room.is_err() {
        return cut(shared, &seat, Reason::EvictedIdle);
    }
    let stream = Watched::of_h2(stream, Arc::clone(&seat), memory.heads);
    let (answering, turns) = (Arc::clone(&seat), Arc::new(Semaphore::new(1)));
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, seat) = (router.clone(), Arc::clone(&answering));
        let turn = Arc::clone(&turns).acquire_owned();
        async move {
            let turn = turn.await.map_err(io::Error::other)?;
            // A sender that resets its stream ends neither what is stored, nor its turn before that.
            let answering = tokio::spawn(async move {
                let _turn = turn;
                seat.enter(Phase::Busy);
                answer(router, request, seat).await
            });
            answering.await.map_err(io::Error::other)
        }
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(1)
        .initial_stream_window_size(limits::HTTP2_WINDOW)
        .initial_connection_window_size(limits::HTTP2_WINDOW)
        .max_header_list_size(limits::MAX_HEAD as u32)
        .serve_connection(TokioIo::new(stream), service);
    let idle = until_idle(&seat);
    conduct(serving, |it| it.graceful_shutdown(), idle, &seat, shared).await;
}

/// Waits until a connection has been idle for as long as one of HTTP/1 may be. Frames that are no request change nothing.
async fn until_idle(seat: &Seat) {
    loop {
        let idle = match seat.phase() {
            Phase::Idle => seat.stalled().unwrap_or_default(),
            Phase::Head | Phase::Body | Phase::Busy | Phase::Tunnel => Duration::ZERO,
        };
        let left = limits::HEAD_TIMEOUT.saturating_sub(idle);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// A request that gets its answer.
struct UnderWay(Arc<Seat>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.answered();
    }
}

/// Answers a request.
async fn answer(mut router: Router, mut request: Request<Incoming>, seat: Arc<Seat>) -> Response {
    let under_way = UnderWay(seat);
    let seat = &under_way.0;
    request.extensions_mut().insert(Arc::clone(seat));
    let Ok(mut answer) = router.call(request).await;
    // An answer says what became of one request.
    let none = HeaderValue::from_static("no-store");
    let headers = answer.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(none);
    let has_large_head = seat.head().is_some();
    if has_large_head && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        // hyper would keep the buffer of a large head for the next one.
        let close = HeaderValue::from_static("close");
        answer.headers_mut().insert(header::CONNECTION, close);
    }
    answer
}

/// Serves a connection until it ends, its place is needed, it is idle, or the forwarder stops.
async fn conduct<C: Future<Output = Result<(), Error>>>(
    serving: C,
    wind_down: impl Fn(Pin<&mut C>),
    idle: impl Future<Output = ()>,
    seat: &Seat,
    shared: &Shared,
) {
    let mut serving = std::pin::pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => served,
        cause = seat.until_evicted() => {
            if !matches!(seat.phase(), Phase::Busy | Phase::Body) {
                return cut(shared, seat, cause);
            }
            // It has still to be answered.
            wind_down(serving.as_mut());
            until_left(serving, seat).await
        }
        () = idle => {
            wind_down(serving.as_mut());
            until_left(serving, seat).await
        }
        () = shared.stop.cancelled() => {
            // A request that has come, and was not read yet, is still answered.
            match timeout(limits::STOP_GRACE, serving.as_mut()).await {
                Ok(served) => served,
                Err(_) if matches!(seat.phase(), Phase::Idle | Phase::Head) => {
                    wind_down(serving.as_mut());
                    timeout(limits::STOP_GRACE, serving).await.unwrap_or(Ok(()))
                }
                Err(_) => {
                    wind_down(serving.as_mut());
                    until_left(serving, seat).await
                }
            }
        }
    };
    if let Err(error) = served {
        ended(shared, seat, &error);
    }
}

/// Waits until a connection that was asked to end has ended. One that has its answer and stays is left.
async fn until_left<C: Future<Output = Result<(), Error>>>(
    mut serving: Pin<&mut C>,
    seat: &Seat,
) -> Result<(), Error> {
    loop {
        match timeout(limits::FAREWELL, serving.as_mut()).await {
            Ok(served) => return served,
            Err(_) if matches!(seat.phase(), Phase::Idle | Phase::Head) => return Ok(()),
            Err(_) => {}
        }
    }
}

/// Counts a connection that was closed because its place or its memory is needed.
pub(crate) fn cut(shared: &Shared, seat: &Seat, cause: Reason) {
    shared.refusals.note(&Refusal {
        reason: cause,
        peer: seat.address,
        status: None,
        path: None,
        why: "the connection was closed to make room for others",
    });
}

/// Counts what hyper refused by itself.
fn ended(shared: &Shared, seat: &Seat, error: &Error) {
    let (reason, status) = if error.is_parse_too_large() {
        (Reason::HeadTooLarge, Some(431))
    } else if error.is_parse() {
        (Reason::BadRequest, Some(400))
    } else if error.is_timeout() && seat.phase() == Phase::Head {
        (Reason::SlowHead, None)
    } else {
        tracing::debug!(%error, "a connection ended early");
        return;
    };
    shared.refusals.note(&Refusal {
        reason,
        peer: seat.address,
        status,
        path: None,
        why: &error.to_string(),
    });
}
