//! The local side: events out of the tunnel, on disk, and delivered to targets of its own
//! configuration, never to others.
//!
//! The caller owns the store, the data directory and the stop signal; what happens is told to a
//! callback as [`lines::Line`]s. Nothing here prints.

pub mod control;
pub mod lines;

mod answers;
mod backlog;
mod error;
mod intake;
mod lanes;
mod link;
mod orphans;
mod provision;
mod proxy;
mod retention;
mod socket;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use url::Url;
use whrelay_core::backlog::Backlog;
use whrelay_core::bucket::{BucketKey, BucketName};
use whrelay_core::dispatch::Order;
use whrelay_core::limits;
use whrelay_core::pace::Rate;
use whrelay_core::retention::Retention;
use whrelay_core::retry::RetryPolicy;
use whrelay_core::route::Route;
use whrelay_core::token::Token;
use whrelay_delivery::{Fields, Trust};
use whrelay_store::{Store, persist};

pub use answers::{Local, Offline};
pub use error::{AgentError, chain};
pub use provision::{Looked, ensure_bucket, look_at};
pub use proxy::Proxies;

use crate::lanes::Lanes;
use crate::lines::Line;

/// How deliveries are made: the same for every target of an agent.
#[derive(Clone, Debug)]
pub struct Manner {
    /// How failures are retried.
    pub policy: RetryPolicy,
    /// Time for one attempt, over the whole exchange; zero for no bound.
    pub timeout: Duration,
    /// Attempts at once, for each target.
    pub max_in_flight: usize,
    /// How fast attempts may start, for each target.
    pub rate: Option<Rate>,
    /// In which order deliveries are made, for each target.
    pub order: Order,
    /// What requests say beside what the event does.
    pub fields: Fields,
    /// Which targets are believed to be who they say.
    pub trust: Trust,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            policy: RetryPolicy::default(),
            timeout: Duration::from_secs(30),
            max_in_flight: limits::MAX_IN_FLIGHT,
            rate: None,
            order: Order::default(),
            fields: Fields::default(),
            trust: Trust::default(),
        }
    }
}

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the forwarder is.
    pub forwarder: Url,
    /// What stands between here and there.
    pub proxies: Proxies,
    /// Whom the tunnel trusts.
    pub trust: Trust,
    /// What it is asked with.
    pub token: Token,
    /// Whose events are wanted.
    pub bucket: BucketName,
    /// The agent's own place in the bucket.
    pub subscription: BucketName,
    /// Where events go.
    pub routes: Vec<Route>,
    /// How much is wanted of what came before.
    pub backlog: Backlog,
    /// How long the tunnel may be down before that ends the agent; nothing for ever.
    pub exit_on_disconnect: Option<Duration>,
    /// How they get there.
    pub manner: Manner,
    /// What is kept of what has ended.
    pub retention: Retention,
    /// Where the control endpoint is announced.
    pub dir: PathBuf,
}

/// Called with everything that happens; it must not block.
pub type Tell = Arc<dyn Fn(Line) + Send + Sync>;

/// Runs until `stop`, then lets attempts in flight finish. The first connection fails fast, unless something
/// waits here that can be delivered without it; after it, the tunnel is dialled again for ever.
///
/// # Errors
/// What the first connection ran into, the loss of the subscription to another agent, or a store
/// that has stopped for good.
pub async fn run(
    config: Config,
    store: Store,
    tell: Tell,
    stop: CancellationToken,
) -> Result<(), AgentError> {
    let Config {
        forwarder,
        proxies,
        trust,
        token,
        bucket,
        ..
    } = &config;
    let asked = ensure_bucket(forwarder, proxies, trust, token, bucket);
    let asked = tokio::select! {
        asked = asked => asked,
        () = stop.cancelled() => return Ok(()),
    };
    let (input_url, away) = match asked {
        Ok(url) => (url, None),
        Err(error) => without_forwarder(error, &config, &store)?,
    };
    // An agent's own store has no input URL, so its bucket needs no secret.
    let key = BucketKey::from_text(config.bucket.as_str());
    let ensure = || store.ensure_bucket(&config.bucket, key.clone());
    let (bucket, _) = persist(ensure).await?;
    for (name, value) in [
        ("forwarder", config.forwarder.as_str()),
        ("subscription", config.subscription.as_str()),
        ("input", &input_url),
    ] {
        persist(|| store.set_note(name, value)).await?;
    }

    let ended = stop.child_token();
    let lanes = Lanes::new(
        bucket,
        store.clone(),
        config.manner.clone(),
        tell,
        ended.clone(),
    );
    let lanes = Arc::new(lanes);
    let mut link = link::Link::new(&config, input_url, Arc::clone(&lanes));
    let first = match away {
        Some(error) => {
            lanes.set_down(Some(error.to_string()));
            None
        }
        None => Some(tokio::select! {
            first = link.connect() => first?,
            () = stop.cancelled() => return Ok(()),
        }),
    };
    if let Some(first) = &first {
        link.begin(&first.welcome, config.backlog).await?;
    }
    lanes.configure(&config.routes).await?;
    let control =
        control::Server::start(&config.dir, Local::running(Arc::clone(&lanes), &config.dir))
            .await?;

    let outcome = tokio::select! {
        ended = link.run(first, &stop) => ended,
        error = store.broken() => Err(error.into()),
        error = lanes.broken() => Err(error.into()),
        Err(error) = retention::run(Arc::clone(&lanes), config.retention) => Err(error.into()),
        Err(error) = orphans::run(Arc::clone(&lanes)) => Err(error.into()),
    };
    ended.cancel();
    drop(control);
    lanes.finish().await;
    outcome
}

/// The input URL, as it was when the agent last started, where its store has something to deliver while the
/// forwarder is away. What is passed over of a backlog is decided with the forwarder.
fn without_forwarder(
    away: AgentError,
    config: &Config,
    store: &Store,
) -> Result<(String, Option<AgentError>), AgentError> {
    let buckets = store.buckets()?;
    let known = buckets.iter().find(|known| known.name == config.bucket);
    let waits = match known {
        Some(bucket) => store.oldest_waiting(bucket.id)?.is_some(),
        None => false,
    };
    let is_away = matches!(away, AgentError::Unreachable { .. });
    match store.note("input")? {
        Some(url) if is_away && waits && config.backlog == Backlog::default() => {
            Ok((url, Some(away)))
        }
        Some(_) | None => Err(away),
    }
}
