//! The running agent's end of the control API. It must not answer by itself, and reads nothing before it knows whose
//! process asks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Json, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tower_service::Service;
use whrelay_core::limits;
use whrelay_store::write_private;

use super::local::{Listener, Stream};
use super::{Ask, Notice, PATH, Piece, WAITING_PIECES};
use crate::answers::Local;
use crate::error::AgentError;

/// Serves until it is dropped.
pub(crate) struct Server {
    notice: PathBuf,
    serving: JoinHandle<()>,
}

impl Server {
    /// Serves on a socket below the first of these directories that can have one, else in the data directory.
    pub(crate) fn start(dir: &Path, below: &[PathBuf], local: Local) -> Result<Self, AgentError> {
        let listener = Listener::bind(dir, below).map_err(AgentError::Control)?;
        let router = Router::new().route(PATH, post(ask)).with_state(local);
        let path = Notice::path(dir);
        let notice = Notice {
            socket: listener.path().to_owned(),
            pid: std::process::id(),
        };
        let text = serde_json::to_vec(&notice).map_err(|e| AgentError::Control(e.into()))?;
        let announced = write_private(&path, &text);
        let full = announced.as_ref().is_err_and(is_full);
        if !full {
            announced.map_err(AgentError::Control)?;
        }
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
                () = serve(&listener, router) => {}
                () = announcing => {}
            }
        });
        Ok(Self {
            notice: path,
            serving,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
        // A stale notice is recognised: nobody answers at its socket.
        let _ = std::fs::remove_file(&self.notice);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Serves connections of this user's processes, so many at once.
async fn serve(listener: &Listener, router: Router) {
    let permits = Arc::new(Semaphore::new(limits::MAX_CONTROL_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok(stream) => {
                let router = router.clone();
                connections.spawn(async move {
                    connection(stream, router).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a control connection was not accepted");
                tokio::time::sleep(limits::ACCEPT_AGAIN).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: Stream, router: Router) {
    let service = service_fn(move |request: hyper::Request<Incoming>| router.clone().call(request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a control connection ended early");
    }
}

async fn ask(State(local): State<Local>, Json(ask): Json<Ask>) -> Response {
    let (pieces, mut coming) = mpsc::channel(WAITING_PIECES);
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
    (kind, Body::from_stream(encoded)).into_response()
}
