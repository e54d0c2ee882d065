//! Who subscribes to a bucket, over HTTP: listed, ended, and sent again what another had not received. It must not
//! show an event.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use whrelay_core::bucket::{Bucket, BucketName, Seq};
use whrelay_core::time::Timestamp;
use whrelay_store::{StoreError, Subscription};

use crate::Shared;
use crate::access;
use crate::problem::Problem;

/// A subscription, to one who may use its bucket.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SubscriptionView {
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

/// The subscriptions of a bucket.
pub(crate) fn views(shared: &Shared, bucket: &Bucket) -> Result<Vec<SubscriptionView>, StoreError> {
    let store = &shared.store;
    let (last, pruned) = (store.last_seq(bucket.id)?, store.bare_upto(bucket.id)?);
    let view = |subscription: Subscription| {
        let connected = shared.hub.connected(bucket.id, &subscription.name);
        view(subscription, connected, last, pruned)
    };
    let all = store.subscriptions(bucket.id)?;
    Ok(all.into_iter().map(view).collect())
}

pub(crate) fn view(
    subscription: Subscription,
    connected: Option<Timestamp>,
    last: Seq,
    pruned: Seq,
) -> SubscriptionView {
    let waiting = subscription.waiting(last, pruned);
    let Subscription {
        name,
        since: _,
        acked: _,
        seen_at,
        holder,
        ended,
    } = subscription;
    let state = match (ended, connected) {
        (Some(_), _) => "ended",
        (None, Some(_)) => "connected",
        (None, None) => "away",
    };
    SubscriptionView {
        name,
        state,
        waiting,
        host: holder.as_ref().map(|holder| holder.host.clone()),
        user: holder.map(|holder| holder.user),
        connected_since: connected.map(|at| at.to_string()),
        seen_at: seen_at.map(|at| at.to_string()),
        ended_at: ended.map(|(at, _)| at.to_string()),
    }
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
    access::check(&shared.store, &headers)?;
    let bucket = bucket(&shared, &name)?;
    Ok(Json(views(&shared, &bucket)?))
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
    access::check(&shared.store, &headers)?;
    let bucket = bucket(&shared, &bucket_name)?;
    if shared.hub.connected(bucket.id, &name).is_some() {
        let why = format!("an agent is connected with subscription `{name}`: stop it first");
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let now = shared.clock.now();
    let ended = shared.store.end_subscription(bucket.id, &name, now).await?;
    let unclaimed = ended.ok_or_else(|| unknown(&name, &bucket))?;
    tracing::info!(bucket = %bucket.name, subscription = %name.escape_debug(), unclaimed, "subscription ended");
    Ok(Json(EndedView { name, unclaimed }))
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

/// `POST /v1/buckets/{bucket}/subscriptions/{name}/replay`: another subscription, or the same, is sent what this
/// one had not received.
pub(crate) async fn replay(
    State(shared): State<Arc<Shared>>,
    Path((bucket_name, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Json<ReplayAsked>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<ReplayView>, Problem> {
    access::check(&shared.store, &headers)?;
    let Json(ReplayAsked { to, all }) =
        body.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, e.body_text()))?;
    let bucket = bucket(&shared, &bucket_name)?;
    let known = shared.store.subscriptions(bucket.id)?;
    let of = known.iter().find(|known| known.name == name);
    let of = of.ok_or_else(|| unknown(&name, &bucket))?;
    let to = to.unwrap_or_else(|| name.clone());
    let target = known.iter().find(|known| known.name == to);
    let target = target.ok_or_else(|| unknown(&to, &bucket))?;
    if target.ended.is_some() {
        let why = format!("subscription `{to}` was ended: name one that is not");
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let behind = if all { Seq(0) } else { of.acked };
    let rewound = shared.store.rewind_subscription(bucket.id, &to, behind);
    let events = rewound.await?.ok_or_else(|| unknown(&to, &bucket))?;
    // A session that is live goes on where it was; the next one begins where it is to.
    shared
        .hub
        .end(bucket.id, &to, "the subscription is replayed");
    tracing::info!(bucket = %bucket.name, subscription = %to.escape_debug(), events, "subscription replayed");
    Ok(Json(ReplayView { to, events }))
}
