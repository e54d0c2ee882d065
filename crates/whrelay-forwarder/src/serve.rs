//! Accepting connections and letting them go. It must not know what is asked over them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Error, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower_service::Service;
use whrelay_core::limits;

use crate::Shared;
use crate::budget::Budget;
use crate::refusals::{Reason, Refusal};
use crate::seats::{Phase, Seat, Seats};
use crate::stream::Watched;
use crate::target;

/// Who may connect.
struct Places {
    most: usize,
    permits: Arc<Semaphore>,
    seats: Arc<Seats>,
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
    let heads = Budget::new(limits::MAX_LARGE_HEADS, Duration::ZERO, Reason::EvictedHead);
    loop {
        let (stream, peer, permit) = tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            accepted = places.accept(&listener) => accepted,
        };
        let seat = places.seats.take(peer.ip(), permit, connections.token());
        let (router, heads, shared) = (router.clone(), Arc::clone(&heads), Arc::clone(shared));
        tokio::spawn(async move { connection(stream, router, seat, heads, &shared).await });
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
    heads: Arc<Budget>,
    shared: &Shared,
) {
    // Answers are small and must not wait for acknowledgements; without it they only do.
    let _ = stream.set_nodelay(true);
    // A connection without a byte has no buffer.
    let readable = tokio::select! {
        readable = timeout(limits::HEAD_TIMEOUT, stream.readable()) => readable.is_ok(),
        cause = seat.until_evicted() => {
            cut(shared, &seat, cause);
            false
        }
        () = shared.stop.cancelled() => {
            timeout(limits::STOP_GRACE, stream.readable()).await.is_ok()
        }
    };
    if readable {
        let targets = Arc::<target::Exchange>::default();
        let reader = target::Reader::new(Arc::clone(&targets));
        let stream = Watched::new(stream, Arc::clone(&seat), heads, reader);
        Box::pin(exchange(stream, router, seat, targets, shared)).await;
    }
}

async fn exchange(
    stream: Watched,
    router: Router,
    seat: Arc<Seat>,
    targets: Arc<target::Exchange>,
    shared: &Shared,
) {
    let watched = Arc::clone(&seat);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let seat = Arc::clone(&seat);
        seat.enter(Phase::Busy);
        targets.begin(&mut request);
        request.extensions_mut().insert(Arc::clone(&seat));
        let answer = router.clone().call(request);
        async move {
            let mut answer = answer.await;
            if let Ok(answer) = &mut answer {
                // An answer says what became of one request.
                let none = HeaderValue::from_static("no-store");
                answer
                    .headers_mut()
                    .entry(header::CACHE_CONTROL)
                    .or_insert(none);
            }
            let large = seat.head().is_some();
            if let Ok(answer) = &mut answer
                && large
                && answer.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                // hyper would keep the buffer of a large head for the next one.
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            seat.answered();
            answer
        }
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
    let mut serving = std::pin::pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => served,
        cause = watched.until_evicted() => {
            if !matches!(watched.phase(), Phase::Busy | Phase::Body) {
                return cut(shared, &watched, cause);
            }
            // It has still to be answered.
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = shared.stop.cancelled() => {
            // A request that has come, and was not read yet, is still answered.
            match timeout(limits::STOP_GRACE, serving.as_mut()).await {
                Ok(served) => served,
                Err(_) if matches!(watched.phase(), Phase::Idle | Phase::Head) => return,
                Err(_) => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        }
    };
    if let Err(error) = served {
        ended(shared, &watched, &error);
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
