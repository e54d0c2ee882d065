//! Management and health over HTTP. It must not touch events.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;
use whrelay_core::bucket::{Bucket, BucketKey, BucketName};

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

/// `GET /v1/buckets`
pub(crate) async fn list_buckets(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<Vec<BucketView>>, Problem> {
    access::check(&shared.store, &headers)?;
    Ok(Json(
        shared
            .registry
            .all()
            .iter()
            .map(|bucket| view(&shared, bucket))
            .collect(),
    ))
}

/// `PUT /v1/buckets/{name}`: the bucket of that name, created where it is missing.
pub(crate) async fn ensure_bucket(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<BucketView>), Problem> {
    access::check(&shared.store, &headers)?;
    let name: BucketName = name
        .parse()
        .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("{e}")))?;
    if let Some(bucket) = shared.registry.by_name(&name) {
        return Ok((StatusCode::OK, Json(view(&shared, &bucket))));
    }
    let key = BucketKey::mint(&name, rand::random());
    let stored = shared.store.ensure_bucket(&name, key).await;
    let (bucket, created) =
        stored.map_err(|e| Problem::unavailable(e.to_string(), Duration::from_secs(1)))?;
    let answer = Json(view(&shared, &bucket));
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

/// `GET /healthz`: the process answers.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the store can be read, so requests can be served.
pub(crate) async fn readyz(State(shared): State<Arc<Shared>>) -> Result<&'static str, Problem> {
    let readable = shared.store.note("ready");
    readable.map_err(|e| Problem::unavailable(e.to_string(), Duration::from_secs(1)))?;
    Ok("ready\n")
}
