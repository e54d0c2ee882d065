//! The cloud side: webhooks in over HTTP, on disk, and down the tunnels.
//!
//! The caller owns the listener, the store and the stop signal. Nothing here learns where an agent
//! delivers to, and no request waits for an agent.

mod access;
mod api;
mod hub;
mod ingress;
mod problem;
mod registry;
mod retention;
mod serve;
mod tunnel;

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, get, put};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::{BucketKey, BucketName};
use whrelay_core::limits;
use whrelay_core::retention::Retention;
use whrelay_delivery::Clock;
use whrelay_proto::TUNNEL_PATH;
use whrelay_store::{Store, StoreError};

pub use access::{TokenFileError, admin_token};

/// How a forwarder runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// What senders put before `/in/…`: scheme, host and port, without a trailing slash.
    pub public_url: String,
    /// What is kept of what every subscription has receipted.
    pub retention: Retention,
}

impl Config {
    /// The input URL of a bucket's key.
    pub fn input_url(&self, key: &BucketKey) -> String {
        format!("{}/in/{}", self.public_url, key.expose())
    }
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) registry: registry::Registry,
    /// Buckets that can take nothing in, since they are damaged on disk.
    pub(crate) refusing: Vec<BucketName>,
    pub(crate) hub: hub::Hub,
    pub(crate) clock: Clock,
    /// One permit for each byte of a body in memory at the input.
    pub(crate) ingest_bytes: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
}

/// Serves until `stop`, then finishes what was begun.
///
/// # Errors
/// When the store cannot be read at the start, or has stopped for good.
pub async fn run(
    listener: TcpListener,
    store: Store,
    config: Config,
    stop: CancellationToken,
) -> Result<(), StoreError> {
    let retention = config.retention;
    let registry = registry::Registry::load(&store)?;
    let shared = Arc::new(Shared {
        config,
        refusing: refusing(&store, &registry)?,
        registry,
        store: store.clone(),
        hub: hub::Hub::default(),
        clock: Clock::default(),
        ingest_bytes: Arc::new(Semaphore::new(limits::MAX_INGEST_BYTES)),
        stop: stop.child_token(),
    });
    let router = Router::new()
        .route("/in/{*rest}", any(ingress::receive))
        .route(TUNNEL_PATH, get(tunnel::open))
        .route("/v1/buckets", get(api::list_buckets))
        .route("/v1/buckets/{name}", put(api::ensure_bucket))
        .route("/v1/events/{id}", get(api::show_event))
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::not_allowed)
        .layer(axum::middleware::from_fn(problem::within_limits))
        .with_state(Arc::clone(&shared));
    tokio::select! {
        () = serve::serve(listener, router, &shared.stop) => Ok(()),
        error = store.broken() => Err(error),
        Err(error) = retention::run(Arc::clone(&shared), retention) => Err(error),
    }
}

/// The buckets that can take nothing in, which is said.
fn refusing(store: &Store, registry: &registry::Registry) -> Result<Vec<BucketName>, StoreError> {
    let all: Vec<_> = registry.all().iter().map(|bucket| bucket.id).collect();
    let mut names = Vec::new();
    for (id, why) in store.refusing(&all)? {
        if let Some(bucket) = registry.by_id(id) {
            tracing::error!(bucket = %bucket.name, why, "the bucket takes nothing in: `whrelay doctor` helps");
            names.push(bucket.name.clone());
        }
    }
    Ok(names)
}
