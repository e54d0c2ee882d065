//! The state of a forwarder: events that wait, by bucket and subscription, refused requests and why, and incidents.
//! The same for one that runs and for the store of one that does not. It must not show an event.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use whrelay_core::bucket::{Bucket, BucketId, Seq};
use whrelay_core::limits;
use whrelay_core::time::Timestamp;
use whrelay_store::{Incident, Numbers, Store, StoreError};

use crate::Shared;
use crate::access;
use crate::problem::Problem;
use crate::subscriptions::{SubscriptionView, view};

/// How a forwarder stands.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename = "forwarder")]
pub struct Status {
    /// What senders put before `/in/…`, where it runs.
    pub url: Option<String>,
    /// Its process, where it runs.
    pub pid: Option<u32>,
    /// Bytes of the largest body that it takes, where it runs.
    pub max_body: Option<usize>,
    /// Bytes that events take in its store.
    pub stored_bytes: u64,
    /// How many of those there may be.
    pub max_disk: Option<u64>,
    /// Its buckets, by name, as many as were asked for.
    pub buckets: Vec<BucketStatus>,
    /// Whether there are more of them.
    pub more: bool,
    /// How often it refused something or cut it off since it was started, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// What has happened to its directory or its agents', oldest first.
    pub incidents: Vec<IncidentView>,
}

/// How a bucket stands.
#[derive(Debug, Default, Serialize)]
pub struct BucketStatus {
    /// Its name.
    pub bucket: String,
    /// Events that are kept with their bodies.
    pub events: u64,
    /// Events that wait for the subscription that has most of them to receive; all, where nobody subscribes.
    pub waiting: u64,
    /// When the oldest of those was received.
    pub oldest_waiting_at: Option<String>,
    /// Bytes that they take.
    pub stored_bytes: u64,
    /// Why nothing new is taken in, where nothing is.
    pub refuses: Option<String>,
    /// Who subscribes.
    subscriptions: Vec<SubscriptionView>,
}

/// Something that its owner should know of.
#[derive(Debug, Serialize)]
pub struct IncidentView {
    at: String,
    kind: String,
    message: String,
}

/// Which buckets are shown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    #[serde(default = "all_of_a_page")]
    limit: usize,
    after: Option<String>,
}

fn all_of_a_page() -> usize {
    limits::MAX_STATUS_BUCKETS
}

/// `GET /v1/status`
pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Status>, Problem> {
    access::check(&shared.store, &headers).await?;
    let Query(Page { limit, after }) =
        page.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, e.body_text()))?;
    let connected = |bucket, name: &str| shared.hub.connected(bucket, name);
    let limit = limit.min(limits::MAX_STATUS_BUCKETS);
    // What was refused before may be taken in by now; what it answers is read from its notes, bucket by bucket.
    let _ = shared.intake.check(&shared).await;
    let refuses = |bucket| shared.intake.refusal(bucket);
    let status = of(&shared.store, connected, refuses, (after.as_deref(), limit)).await?;
    let refused = shared.refusals.snapshot().into_iter();
    Ok(Json(Status {
        refused: refused.filter(|(_, count)| *count > 0).collect(),
        url: Some(shared.config.public_url.clone()),
        pid: Some(std::process::id()),
        max_body: Some(shared.config.max_body),
        ..status
    }))
}

/// How the store of a forwarder stands that does not run.
///
/// # Errors
/// When the store cannot be read.
pub async fn of_store(store: &Store) -> Result<Status, StoreError> {
    of(store, |_, _| None, |_| None, (None, usize::MAX)).await
}

async fn of(
    store: &Store,
    connected: impl Fn(BucketId, &str) -> Option<Timestamp>,
    refuses: impl Fn(BucketId) -> Option<String>,
    (after, limit): (Option<&str>, usize),
) -> Result<Status, StoreError> {
    let mut all = store.catalog.buckets().await?;
    all.retain(|bucket| after.is_none_or(|after| bucket.name.as_str() > after));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let more = all.len() > limit;
    all.truncate(limit);
    let mut buckets = Vec::with_capacity(all.len());
    for bucket in &all {
        let mut status = match of_bucket(store, bucket, &connected).await {
            // One that is damaged must not hide the others.
            Err(StoreError::Damaged(what)) => BucketStatus {
                bucket: bucket.name.to_string(),
                refuses: Some(StoreError::Damaged(what).to_string()),
                ..BucketStatus::default()
            },
            status => status?,
        };
        status.refuses = refuses(bucket.id).or(status.refuses);
        buckets.push(status);
    }
    let incident = |Incident { at, kind, text }: Incident| IncidentView {
        at: at.to_string(),
        kind,
        message: text,
    };
    Ok(Status {
        url: None,
        pid: None,
        max_body: None,
        stored_bytes: store.view.size(),
        max_disk: store.journal.bound().map(|bound| bound.bytes),
        buckets,
        more,
        refused: BTreeMap::new(),
        incidents: store
            .catalog
            .incidents()
            .await?
            .into_iter()
            .map(incident)
            .collect(),
    })
}

async fn of_bucket(
    store: &Store,
    bucket: &Bucket,
    connected: impl Fn(BucketId, &str) -> Option<Timestamp>,
) -> Result<BucketStatus, StoreError> {
    let Numbers { pruned, last } = store.journal.numbers(bucket.id).await?;
    let all = store.journal.subscriptions(Some(bucket.id)).await?;
    let known = || all.iter().filter_map(|one| one.stored.known());
    let active = known().filter(|known| known.ended.is_none());
    // Nobody waits for what came before the last end.
    let ends = known().filter_map(|known| known.ended);
    let last_end = ends.map(|ended| ended.through).max();
    let behind = active.map(|known| known.acked).min().or(last_end);
    let behind = behind.unwrap_or(Seq(0)).max(pruned);
    let oldest = store.journal.read_after(bucket, behind, 1, 0).await?.events;
    let mut subscriptions = Vec::with_capacity(all.len());
    for one in &all {
        let connected = connected(bucket.id, &one.name);
        subscriptions.extend(view(store, one, connected, last).await?);
    }
    Ok(BucketStatus {
        bucket: bucket.name.to_string(),
        events: store.journal.count(bucket.id, pruned, last).await?,
        waiting: store.journal.count(bucket.id, behind, last).await?,
        oldest_waiting_at: oldest
            .first()
            .map(|first| first.event.received_at.to_string()),
        stored_bytes: store.view.bucket_size(bucket.id),
        refuses: store
            .journal
            .over_bound(bucket.id)
            .map(|why| why.to_string()),
        subscriptions,
    })
}
