//! Who subscribes to a bucket, over HTTP: listed, ended, and sent again what another had not received. It must not
//! show an event.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, Request, StatusCode};
use serde::{Deserialize, Serialize};
use whrelay_core::bucket::{Bucket, BucketId, BucketName, Seq};
use whrelay_core::subscription::{LeaseEpoch, Subscription};
use whrelay_core::time::Timestamp;
use whrelay_store::{Ending, NamedSubscription, Rewound, Store, StoreError};

use crate::Shared;
use crate::access;
use crate::problem::Problem;
use crate::seats::Seat;

/// A subscription, to one who may use its bucket.
#[derive(Clone, Debug, Serialize)]
pub struct SubscriptionView {
    pub(crate) name: String,
    /// `connected`, `away` or `ended`.
    pub(crate) state: &'static str,
    /// Events that wait for it; of one that was ended, events that it had not received.
    pub(crate) waiting: u64,
    pub(crate) host: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) connected_since: Option<String>,
    pub(crate) seen_at: Option<String>,
    pub(crate) ended_at: Option<String>,
}

/// The subscriptions of a bucket of a forwarder that does not run.
///
/// # Errors
/// When the store cannot be read.
pub async fn subscriptions_of(
    store: &Store,
    bucket: BucketId,
) -> Result<Vec<SubscriptionView>, StoreError> {
    views(store, bucket, |_| None).await
}

/// The subscriptions of a bucket, and since when the agent of each is connected.
pub(crate) async fn views(
    store: &Store,
    bucket: BucketId,
    connected: impl Fn(&str) -> Option<Timestamp>,
) -> Result<Vec<SubscriptionView>, StoreError> {
    let numbers = store.journal.numbers(bucket).await?;
    let all = store.journal.subscriptions(Some(bucket)).await?;
    let mut views = Vec::with_capacity(all.len());
    for one in &all {
        let connected = connected(&one.name);
        views.extend(view(store, one, connected, numbers.last).await?);
    }
    Ok(views)
}

/// A subscription of a bucket that has given numbers up to `last`, and since when its agent is connected.
pub(crate) async fn view(
    store: &Store,
    one: &NamedSubscription,
    connected: Option<Timestamp>,
    last: Seq,
) -> Result<Option<SubscriptionView>, StoreError> {
    let Some(known) = one.stored.known() else {
        return Ok(None);
    };
    let through = known.waits_through(last);
    let waiting = store.journal.count(one.bucket, known.acked, through);
    let state = match (known.ended, connected) {
        (Some(_), _) => "ended",
        (None, Some(_)) => "connected",
        (None, None) => "away",
    };
    let holder = known.holder();
    Ok(Some(SubscriptionView {
        name: one.name.clone(),
        state,
        waiting: waiting.await?,
        host: holder.map(|holder| holder.host.clone()),
        user: holder.map(|holder| holder.user.clone()),
        connected_since: connected.map(|at| at.to_string()),
        seen_at: known.seen_at.map(|at| at.to_string()),
        ended_at: known.ended.map(|ended| ended.at.to_string()),
    }))
}

/// The bucket of that name.
fn bucket(shared: &Shared, name: &str) -> Result<Arc<Bucket>, Problem> {
    let unknown = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("there is no bucket `{name}`"),
        )
    };
    let name: BucketName = name.parse().map_err(|_| unknown())?;
    shared.registry.by_name(&name).ok_or_else(unknown)
}

fn unknown(name: &str, bucket: &Bucket) -> Problem {
    let why = format!("bucket `{}` has no subscription `{name}`", bucket.name);
    Problem::new(StatusCode::NOT_FOUND, why)
}

/// `GET /v1/buckets/{bucket}/subscriptions`
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Vec<SubscriptionView>>, Problem> {
    access::check(&shared.store, &headers).await?;
    let bucket = bucket(&shared, &name)?;
    let connected = |name: &str| shared.hub.connected(bucket.id, name);
    Ok(Json(views(&shared.store, bucket.id, connected).await?))
}

/// The end of a subscription.
#[derive(Debug, Serialize)]
pub(crate) struct EndedView {
    name: String,
    /// Events that it had not received: dead, and kept as long as retention says.
    unclaimed: u64,
}

/// `DELETE /v1/buckets/{bucket}/subscriptions/{name}`
pub(crate) async fn end(
    State(shared): State<Arc<Shared>>,
    Path((bucket_name, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<EndedView>, Problem> {
    access::check(&shared.store, &headers).await?;
    let bucket = bucket(&shared, &bucket_name)?;
    let (now, id) = (shared.clock.now(), bucket.id);
    let is_connected = || shared.hub.connected(id, &name).is_some();
    let ended = end_subscription(&shared.store, id, &name, now, is_connected);
    let unclaimed = match ended.await? {
        Ending::Unknown => return Err(unknown(&name, &bucket)),
        Ending::InUse => {
            let why = format!("an agent is connected with subscription `{name}`: stop it first");
            return Err(Problem::new(StatusCode::CONFLICT, why));
        }
        Ending::Ended { unclaimed } => unclaimed,
    };
    tracing::info!(bucket = %bucket.name, subscription = %name.escape_debug(), unclaimed, "subscription ended");
    Ok(Json(EndedView { name, unclaimed }))
}

/// Ends a subscription unless its agent is connected. Its last session is read first: an agent that connects later has a
/// newer one.
///
/// # Errors
/// When the store fails.
pub async fn end_subscription(
    store: &Store,
    bucket: BucketId,
    name: &str,
    now: Timestamp,
    is_connected: impl FnOnce() -> bool,
) -> Result<Ending, StoreError> {
    let stored = store.journal.subscription(bucket, name).await?;
    let last = stored.known().map(Subscription::last_session);
    if is_connected() {
        return Ok(Ending::InUse);
    }
    store
        .journal
        .end_subscription(bucket, name, last, now)
        .await
}

/// What is to be sent again.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayAsked {
    /// The subscription that gets it; the same one where nothing is said.
    to: Option<String>,
    /// Everything that is kept, instead of what the subscription had not received.
    #[serde(default)]
    all: bool,
}

/// What is sent again.
#[derive(Debug, Serialize)]
pub(crate) struct ReplayView {
    to: String,
    /// Events at most: its agent knows those that it has.
    events: u64,
}

/// Why a subscription is not replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The bucket has no subscription of that name.
    #[error("the bucket has no subscription `{0}`")]
    Unknown(String),
    /// The one that was to get the events has ended.
    #[error("subscription `{0}` has ended: name an active one")]
    Ended(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Has a subscription sent what another one has not received, or everything that is kept. `newer` draws a lease that is
/// newer than all others. Answers how many events that are at most.
///
/// # Errors
/// When there is no such subscription, when that which is to get the events has ended, and when the store fails.
pub async fn replay_subscription(
    store: &Store,
    bucket: BucketId,
    (name, to): (&str, &str),
    all: bool,
    newer: impl Fn() -> LeaseEpoch,
) -> Result<u64, ReplayError> {
    let unknown = |name: &str| ReplayError::Unknown(name.to_owned());
    let of = store.journal.subscription(bucket, name).await?;
    let of = of.known().ok_or_else(|| unknown(name))?;
    let gets = store.journal.subscription(bucket, to).await?;
    let gets = gets.known().ok_or_else(|| unknown(to))?;
    if gets.ended.is_some() {
        return Err(ReplayError::Ended(to.to_owned()));
    }
    let behind = if all { Seq(0) } else { of.acked };
    loop {
        let rewinding = store
            .journal
            .rewind_subscription(bucket, to, behind, newer());
        match rewinding.await? {
            Rewound::Overtaken => {}
            Rewound::Sent { events } => return Ok(events),
            Rewound::Unknown => return Err(unknown(to)),
        }
    }
}

/// `POST /v1/buckets/{bucket}/subscriptions/{name}/replay`: another subscription, or the same, is sent what this
/// one had not received.
pub(crate) async fn replay(
    State(shared): State<Arc<Shared>>,
    Path((bucket_name, name)): Path<(String, String)>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request<Body>,
) -> Result<Json<ReplayView>, Problem> {
    let (parts, body) = request.into_parts();
    access::check(&shared.store, &parts.headers).await?;
    let bucket = bucket(&shared, &bucket_name)?;
    let body = shared.bodies.read(body, &seat, bucket.id, &shared.stop);
    let asked = serde_json::from_slice(&body.await?.bytes);
    let ReplayAsked { to, all } =
        asked.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("the body: {e}")))?;
    let to = to.unwrap_or_else(|| name.clone());
    let newer = || shared.hub.newer();
    let replayed = replay_subscription(&shared.store, bucket.id, (&name, &to), all, newer);
    let events = replayed.await.map_err(|error| match error {
        ReplayError::Unknown(name) => unknown(&name, &bucket),
        ReplayError::Ended(_) => Problem::new(StatusCode::CONFLICT, error.to_string()),
        ReplayError::Store(error) => error.into(),
    })?;
    // A session that is live would go on where it was, and what it acknowledges no longer counts.
    shared
        .hub
        .end(bucket.id, &to, "the subscription is replayed");
    tracing::info!(bucket = %bucket.name, subscription = %to.escape_debug(), events, "subscription replayed");
    Ok(Json(ReplayView { to, events }))
}
