//! Management, what became of an event, and health, over HTTP. It must not show a body.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::LINK;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use whrelay_core::bucket::{Bucket, BucketKey, BucketName, NameError, Seq};
use whrelay_core::delivery::DeadReason;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_core::subscription::{Fate, Subscription};
use whrelay_proto::codec;
use whrelay_proto::frame::{Events, Frame, WireEvent};
use whrelay_store::{NamedSubscription, StoreError};

use crate::Shared;
use crate::access;
use crate::problem::Problem;

/// A bucket, to one who may use it.
#[derive(Debug, Serialize)]
pub(crate) struct BucketView {
    name: String,
    url: String,
}

fn view(shared: &Shared, bucket: &Bucket) -> BucketView {
    BucketView {
        name: bucket.name.to_string(),
        url: shared.config.input_url(&bucket.key),
    }
}

/// Which buckets are listed.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Page {
    limit: Option<String>,
    after: Option<String>,
}

impl Page {
    /// How many, and behind which name.
    fn parse(self) -> Result<(usize, Option<BucketName>), Problem> {
        let wrong = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
        let limit = match self.limit {
            None => limits::BUCKETS_LISTED,
            Some(text) => {
                let limit = text.parse().ok();
                let limit = limit.filter(|limit| (1..=limits::MAX_BUCKETS_LISTED).contains(limit));
                limit.ok_or_else(|| {
                    let hint = format!("use a number from 1 to {}", limits::MAX_BUCKETS_LISTED);
                    wrong(format!("`{text}` is not a valid limit")).hint(hint)
                })?
            }
        };
        let after = self.after.map(|name| name.parse()).transpose();
        let after = after.map_err(|e: NameError| {
            let hint = "`after` takes the name of the last bucket of the page before";
            wrong(e.to_string()).hint(hint)
        })?;
        Ok((limit, after))
    }
}

/// `GET /v1/buckets`: a page of them, by name. Where there are more, `Link` says where they are (RFC 8288).
pub(crate) async fn list_buckets(
    State(shared): State<Arc<Shared>>,
    page: Result<Query<Page>, QueryRejection>,
    headers: HeaderMap,
) -> Result<(HeaderMap, Json<Vec<BucketView>>), Problem> {
    access::check(&shared.store, &headers).await?;
    let page = page.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, e.body_text()))?;
    let (limit, after) = page.0.parse()?;
    let mut some = shared.registry.after(after.as_ref(), limit + 1);
    let mut links = HeaderMap::new();
    if some.len() > limit {
        some.truncate(limit);
        let last = some.last().map_or("", |bucket| bucket.name.as_str());
        let next = format!("</v1/buckets?limit={limit}&after={last}>; rel=\"next\"");
        // A name has no character that a field's value could not have.
        links.extend(HeaderValue::try_from(next).ok().map(|next| (LINK, next)));
    }
    let views = some.iter().map(|bucket| view(&shared, bucket));
    Ok((links, Json(views.collect())))
}

/// A bucket, to one whose agents receive its events.
#[derive(Debug, Serialize)]
pub(crate) struct ProvisionedView {
    #[serde(flatten)]
    bucket: BucketView,
    /// The name of this forwarder's store, by which agents know it under every URL.
    store: String,
}

impl ProvisionedView {
    fn new(shared: &Shared, bucket: &Bucket) -> Json<Self> {
        Json(Self {
            bucket: view(shared, bucket),
            store: shared.store.journal.epoch().store.clone(),
        })
    }
}

/// `PUT /v1/buckets/{name}`: the bucket of that name, created where it is missing.
pub(crate) async fn ensure_bucket(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<ProvisionedView>), Problem> {
    access::check(&shared.store, &headers).await?;
    let name: BucketName = name
        .parse()
        .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("{e}")))?;
    if let Some(bucket) = shared.registry.by_name(&name) {
        return Ok((StatusCode::OK, ProvisionedView::new(&shared, &bucket)));
    }
    let key = BucketKey::mint(&name, rand::random());
    let stored = shared.store.catalog.ensure_bucket(&name, key).await;
    let (bucket, created) = stored?;
    let answer = ProvisionedView::new(&shared, &bucket);
    shared.registry.add(bucket);
    Ok((
        if created {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        },
        answer,
    ))
}

/// An event, to one who may know of it: what it was, and who has it.
#[derive(Debug, Serialize)]
pub(crate) struct EventView {
    event: String,
    bucket: String,
    method: String,
    path: String,
    bytes: u64,
    received_at: String,
    /// Whether it can still be sent.
    body: bool,
    subscriptions: Vec<EventSubscriptionView>,
}

/// What became of an event for a subscription.
#[derive(Debug, Serialize)]
pub(crate) struct EventSubscriptionView {
    name: String,
    /// Whether its agent has said that it has the event on its disk.
    receipted: bool,
    /// `received`, `queued`, `dead`, or nothing where the event was never meant for it.
    state: Option<&'static str>,
    reason: Option<&'static str>,
}

impl EventSubscriptionView {
    fn new(name: &str, subscription: &Subscription, seq: Seq) -> Self {
        let fate = subscription.fate(seq);
        let (state, reason) = match fate {
            Fate::NotMeant => (None, None),
            Fate::Acknowledged => (Some("received"), None),
            Fate::Queued => (Some("queued"), None),
            Fate::Unclaimed => (Some("dead"), Some(DeadReason::Unclaimed.as_str())),
        };
        Self {
            name: name.to_owned(),
            receipted: fate == Fate::Acknowledged,
            state,
            reason,
        }
    }
}

/// `GET /v1/events/{id}`
pub(crate) async fn show_event(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<EventView>, Problem> {
    access::check(&shared.store, &headers).await?;
    let id: EventId = id
        .parse()
        .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("{e}")))?;
    match find(&shared, id).await {
        Ok(Some(event)) => Ok(Json(event)),
        Ok(None) => Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!("{id} was never received here, or retention has removed it"),
        )),
        // Coming again does not help.
        Err(error @ StoreError::Damaged(_)) => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
        )),
        Err(error) => Err(error.into()),
    }
}

async fn find(shared: &Shared, id: EventId) -> Result<Option<EventView>, StoreError> {
    let store = &shared.store;
    let Some((bucket, seq)) = store.journal.find_event(id).await? else {
        return Ok(None);
    };
    let Some(bucket) = shared.registry.by_id(bucket) else {
        return Ok(None);
    };
    let Some((event, has_body)) = store.journal.head_at(&bucket, seq).await? else {
        return Ok(None);
    };
    let subscriptions = store.journal.subscriptions(Some(bucket.id)).await?;
    let view = |one: &NamedSubscription| {
        let known = one.stored.known()?;
        Some(EventSubscriptionView::new(&one.name, known, seq))
    };
    Ok(Some(EventView {
        event: id.to_string(),
        bucket: bucket.name.to_string(),
        path: event.request.path_and_query(),
        bytes: event.body_len(),
        received_at: event.received_at.to_string(),
        body: has_body && seq > store.journal.numbers(bucket.id).await?.pruned,
        method: event.request.method,
        subscriptions: subscriptions.iter().filter_map(view).collect(),
    }))
}

/// `GET /v1/buckets/{name}/events/{id}`: an event as it travels, for an agent whose copy is damaged.
pub(crate) async fn event_frame(
    State(shared): State<Arc<Shared>>,
    Path((name, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<([(HeaderName, &'static str); 1], Bytes), Problem> {
    access::check(&shared.store, &headers).await?;
    let id: EventId = id
        .parse()
        .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("{e}")))?;
    let gone = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("this forwarder no longer has event {id}"),
        )
    };
    let bucket = name.parse().ok();
    let bucket = bucket.and_then(|name: BucketName| shared.registry.by_name(&name));
    let bucket = bucket.ok_or_else(gone)?;
    let place = shared.store.journal.find_event(id).await?;
    let (_, seq) = place.filter(|(of, _)| *of == bucket.id).ok_or_else(gone)?;
    let event = match shared.store.journal.event_at(&bucket, seq).await {
        // Damaged here too: nobody has it.
        Err(StoreError::Damaged(_)) => None,
        found => found?,
    };
    let event = event.filter(|event| event.removed_body.is_none());
    let frame = Frame::Events(Events {
        after: seq.0 - 1,
        upto: seq.0,
        events: vec![WireEvent::new(seq.0, event.ok_or_else(gone)?)],
    });
    let binary = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((binary, codec::encode(frame)))
}

/// `GET /healthz`: the process answers.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Most buckets that are named: a probe's answer is small.
const NAMED: usize = 20;

/// `GET /readyz`: the store takes new events; a line for each bucket that takes none.
pub(crate) async fn readyz(State(shared): State<Arc<Shared>>) -> Result<String, Problem> {
    let ready = shared.intake.check(&shared).await;
    let refusing = ready.map_err(|why| Problem::unavailable(why, limits::READY_EVERY))?;
    let more = refusing.len().saturating_sub(NAMED);
    let more = (more > 0).then(|| format!("{more} further buckets take no events"));
    let lines = ["ready".to_owned()].into_iter();
    let lines = lines.chain(refusing.into_iter().take(NAMED)).chain(more);
    Ok(lines.map(|line| line + "\n").collect())
}
