//! The cloud side: webhooks in over HTTP, on disk, and down the tunnels.
//!
//! The caller owns the listener, the store and the stop signal. Nothing here learns where an agent
//! delivers to, and no request waits for an agent.

mod access;
mod api;
mod body;
mod budget;
mod expiry;
mod hub;
mod ingress;
mod intake;
mod joining;
mod problem;
mod refusals;
mod registry;
mod retention;
mod seats;
mod serve;
mod status;
mod stream;
mod subscriptions;
mod target;
mod tunnel;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{any, delete, get, post, put};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::BucketKey;
use whrelay_core::limits;
use whrelay_core::retention::Retention;
use whrelay_delivery::Clock;
use whrelay_proto::TUNNEL_PATH;
use whrelay_store::{Store, StoreError};

pub use access::{TokenFileError, admin_token};
use budget::Budget;
use refusals::Reason;
pub use status::{BucketStatus, IncidentView, Status, of_store};
pub use subscriptions::{
    ReplayError, SubscriptionView, end_subscription, replay_subscription, subscriptions_of,
};

/// How a forwarder runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// What senders put before `/in/…`: scheme, host and port, without a trailing slash.
    pub public_url: String,
    /// What is kept of what every subscription has receipted.
    pub retention: Retention,
    /// How long a subscription lives whose agent does not come back; nothing for ever.
    pub subscription_ttl: Option<Duration>,
    /// Connections served at once, [`limits::MAX_CONNECTIONS`] at most: fewer where the process may open few files.
    pub max_connections: usize,
    /// The largest body that the input takes, [`limits::LARGEST_MAX_BODY`] at most.
    pub max_body: usize,
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
    pub(crate) hub: hub::Hub,
    pub(crate) clock: Clock,
    pub(crate) bodies: body::Room,
    /// Memory for what is on its way down all tunnels.
    pub(crate) tunnels: Arc<Budget>,
    pub(crate) intake: intake::Intake,
    pub(crate) refusals: refusals::Refusals,
    /// Acks that were not recorded are logged at this rate.
    pub(crate) unrecorded: refusals::Seldom,
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
    let (retention, max_body) = (config.retention, config.max_body);
    let registry = registry::Registry::load(&store).await?;
    log_damaged(&store, &registry).await?;
    let shared = Arc::new(Shared {
        config,
        registry,
        store: store.clone(),
        hub: hub::Hub::new(store.journal.epoch()),
        clock: Clock::default(),
        bodies: body::Room::new(max_body),
        tunnels: Budget::new(
            limits::MAX_TUNNEL_BYTES.max(limits::LARGEST_AT_ONCE * max_body),
            limits::TUNNEL_STALLED,
            Reason::EvictedTunnel,
        ),
        intake: intake::Intake::default(),
        refusals: refusals::Refusals::default(),
        unrecorded: refusals::Seldom::new(limits::REFUSALS_EVERY),
        stop: stop.child_token(),
    });
    let router = Router::new()
        .route("/in/{*rest}", any(ingress::receive))
        .route(TUNNEL_PATH, get(tunnel::open))
        .route("/v1/buckets", get(api::list_buckets))
        .route("/v1/buckets/{name}", put(api::ensure_bucket))
        .route("/v1/buckets/{name}/subscriptions", get(subscriptions::list))
        .route(
            "/v1/buckets/{name}/subscriptions/{subscription}",
            delete(subscriptions::end),
        )
        .route(
            "/v1/buckets/{name}/subscriptions/{subscription}/replay",
            post(subscriptions::replay),
        )
        .route("/v1/buckets/{name}/events/{event}", get(api::event_frame))
        .route("/v1/status", get(status::show))
        .route("/v1/events/{id}", get(api::show_event))
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::not_allowed)
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&shared),
            problem::within_limits,
        ))
        .with_state(Arc::clone(&shared));
    tokio::select! {
        () = serve::serve(listener, router, &shared) => Ok(()),
        error = store.journal.stopped() => Err(error),
        Err(error) = retention::run(Arc::clone(&shared), retention) => Err(error),
        Err(error) = expiry::run(&shared) => Err(error),
    }
}

/// Logs which buckets take no events, since what is known of their last places is damaged.
async fn log_damaged(store: &Store, registry: &registry::Registry) -> Result<(), StoreError> {
    let all: Vec<_> = registry.all().iter().map(|bucket| bucket.id).collect();
    for (id, why) in store.journal.refusing(&all).await? {
        if let Some(bucket) = registry.by_id(id) {
            tracing::error!(bucket = %bucket.name, why, "this bucket takes no events; run `whrelay doctor`");
        }
    }
    Ok(())
}
