//! Asking the forwarder for an event once more that is damaged on this disk. It must not know why it is asked.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::StatusCode;
use whrelay_core::id::EventId;
use whrelay_core::limits;
use whrelay_delivery::{Fetch, Fetched, client_config};
use whrelay_proto::codec;
use whrelay_proto::frame::Frame;

use crate::Config;
use crate::provision::{client, read};

/// Asks the forwarder of an agent.
pub(crate) fn from_forwarder(config: &Config) -> Fetch {
    let config = Arc::new(config.clone());
    Arc::new(move |id| {
        let config = Arc::clone(&config);
        Box::pin(async move { fetch(&config, id).await })
    })
}

/// Asks nobody yet: an agent that does not run will.
pub(crate) fn later() -> Fetch {
    Arc::new(|_| Box::pin(std::future::ready(Fetched::Later)))
}

async fn fetch(config: &Config, id: EventId) -> Fetched {
    match ask(config, id).await {
        Ok(fetched) => fetched,
        Err(why) => {
            tracing::warn!(%id, why, "could not fetch a damaged event; trying again later");
            Fetched::Later
        }
    }
}

async fn ask(config: &Config, id: EventId) -> Result<Fetched, String> {
    let Config {
        forwarder,
        proxies,
        trust,
        token,
        bucket,
        ..
    } = config;
    let tls = client_config(trust).map_err(|e| e.to_string())?;
    let client = client(forwarder, proxies, tls).map_err(|e| e.to_string())?;
    let root = forwarder.as_str().trim_end_matches('/');
    let request = client
        .get(format!("{root}/v1/buckets/{bucket}/events/{id}"))
        .bearer_auth(token.expose())
        .timeout(limits::FETCH_TIMEOUT);
    let failed = |e: reqwest::Error| e.without_url().to_string();
    let answer = request.send().await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(Fetched::Gone),
        other => return Err(format!("it answered {other}")),
    }
    let said = read(answer, limits::MAX_FRAME).await.map_err(failed)?;
    let frame = codec::decode(Bytes::from(said)).map_err(|e| e.to_string())?;
    let Frame::Events(mut batch) = frame else {
        return Err("it answered with no event".to_owned());
    };
    let event = batch.events.pop().ok_or("it answered with no event")?;
    Ok(Fetched::Event(Box::new(event.into_event(bucket.clone()))))
}
