//! Accepting connections and letting them go. It must not know what is asked over them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower_service::Service;
use whrelay_core::limits;

/// A connection's place among those that are served. It is given back by the last who serves it: a tunnel
/// goes on when HTTP is done with its connection.
pub(crate) struct Seat {
    _permit: OwnedSemaphorePermit,
    _tracked: TaskTrackerToken,
}

/// Serves until `stop`, then waits for the connections, at most [`limits::DRAIN`].
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: &CancellationToken) {
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(limits::MAX_CONNECTIONS));
    while let Some((stream, permit)) = accept(&listener, &permits, stop).await {
        let seat = Arc::new(Seat {
            _permit: permit,
            _tracked: connections.token(),
        });
        tokio::spawn(connection(stream, router.clone(), stop.clone(), seat));
    }
    connections.close();
    // What has not finished by then is not waited for: its sender got no answer and comes again.
    let _ = tokio::time::timeout(limits::DRAIN, connections.wait()).await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let accepted = async {
        let permit = Arc::clone(permits).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, permit)),
                Err(error) => pause_after(&error).await,
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => None,
        accepted = accepted => accepted,
    }
}

/// A connection that was reset while it waited is nothing; a lack of file descriptors passes.
async fn pause_after(error: &io::Error) {
    if error.kind() != io::ErrorKind::ConnectionAborted {
        tracing::error!(%error, "no connection can be accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken, seat: Arc<Seat>) {
    // Answers are small and must not wait for acknowledgements; without it they only do.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&seat));
        router.clone().call(request)
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
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}
