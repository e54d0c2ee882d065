//! The local side: events out of the tunnel, on disk, and delivered to targets of its own
//! configuration, never to others.
//!
//! The caller owns the store, the data directory and the stop signal; what happens is told to a
//! callback as [`lines::Line`]s. Nothing here prints.

pub mod control;
pub mod lines;

mod access;
mod answer;
mod answers;
mod audit;
mod backlog;
mod configured;
mod error;
mod intake;
mod link;
mod management;
mod noticed;
mod probes;
mod provision;
mod proxy;
mod refetch;
mod retention;
mod runtime;
mod socket;
mod unconfigured;
mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use url::Url;
use whrelay_core::backlog::Backlog;
use whrelay_core::bucket::{BucketKey, BucketName};
use whrelay_core::destination::Setup;
use whrelay_core::retention::Retention;
use whrelay_delivery::{Fields, Signatures, Trust};
use whrelay_store::{Store, persist};

pub use access::Access;
pub use answers::{Local, Offline};
pub use error::{AgentError, chain};
pub use management::{Management, ManagementError};
pub use probes::{Answerer, probe_idle, probe_input};
pub use provision::{Looked, ProvisionedBucket, ensure_bucket, look_at};
pub use proxy::Proxies;
pub use reqwest::Method;

use crate::lines::Line;
use crate::provision::provision;
use crate::runtime::Runtime;

/// How requests to destinations are made in this run; nothing of it is stored.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// What requests say beside what the event does.
    pub fields: Fields,
    /// Which targets are believed to be who they say.
    pub trust: Trust,
    /// What becomes of providers' signatures.
    pub signatures: Signatures,
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
    /// The token it sends.
    pub access: Access,
    /// Whose events are wanted.
    pub bucket: BucketName,
    /// The agent's own subscription to the bucket.
    pub subscription: BucketName,
    /// What people know the agent by.
    pub label: Label,
    /// Whether the subscription is taken from another agent that has it.
    pub take_over: bool,
    /// Whether what came before is wanted, should the subscription be new; nothing to let the forwarder decide.
    pub wants_backlog: Option<bool>,
    /// Where events go, and how deliveries are made.
    pub setup: Setup,
    /// How much is wanted of what came before.
    pub backlog: Backlog,
    /// How long the tunnel may be down before that ends the agent; nothing for ever.
    pub exit_on_disconnect: Option<Duration>,
    /// How requests are made.
    pub requests: Requests,
    /// What is kept of what has ended.
    pub retention: Retention,
    /// The data directory: it tells other commands where the control socket is.
    pub dir: PathBuf,
    /// Directories below which that socket may be, the best first.
    pub runtime_dirs: Vec<PathBuf>,
}

/// Where an agent runs, for people.
#[derive(Clone, Debug, Default)]
pub struct Label {
    /// The machine.
    pub host: String,
    /// The user there.
    pub user: String,
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
    configured::check(&store, &config.setup).await?;
    let known = store.catalog.note("input").await?.is_some();
    // A first start that fails leaves nothing behind.
    let asked = match known {
        true => None,
        false => Some(tokio::select! {
            url = provision(&config) => url?,
            () = stop.cancelled() => return Ok(()),
        }),
    };
    // An agent's own store has no input URL, so its bucket needs no secret.
    let key = BucketKey::from_text(config.bucket.as_str());
    let ensure = || store.catalog.ensure_bucket(&config.bucket, key.clone());
    let (bucket, _) = persist(ensure).await?;
    let notes = [
        ("forwarder", Some(config.forwarder.as_str())),
        ("subscription", Some(config.subscription.as_str())),
        ("input", asked.as_deref()),
    ];
    for (name, value) in notes {
        if let Some(value) = value {
            persist(|| store.catalog.set_note(name, value)).await?;
        }
    }

    let ended = stop.child_token();
    let runtime = Runtime::new(
        bucket,
        store.clone(),
        (config.requests.clone(), config.setup.replay_options()),
        tell,
        refetch::from_forwarder(&config),
        ended.clone(),
    );
    let runtime = Arc::new(runtime);
    let mut link = link::Link::new(&config, asked, Arc::clone(&runtime));
    let first = tokio::select! {
        first = link.connect() => first,
        () = stop.cancelled() => return Ok(()),
    };
    let first = match first {
        Ok(first) => {
            link.begin(&first.welcome, config.backlog).await?;
            configured::configure(&runtime, &config.setup).await?;
            Some(first)
        }
        Err(away) if known => {
            without_forwarder(&config, &runtime, away).await?;
            None
        }
        Err(error) => return Err(error),
    };
    let local = Local::running(Arc::clone(&runtime), &config.dir);
    let control = control::Server::start(&config.dir, &config.runtime_dirs, local)?;

    let expiring = tokio::spawn(unconfigured::run(Arc::clone(&runtime)));
    let auditing = tokio::spawn(audit::run(Arc::clone(&runtime)));
    let outcome = tokio::select! {
        ended = link.run(first, &stop) => ended,
        error = store.journal.stopped() => Err(error.into()),
        error = runtime.broken() => Err(error.into()),
        Err(error) = retention::run(Arc::clone(&runtime), config.retention) => Err(error.into()),
        Ok(Err(error)) = expiring => Err(error.into()),
        Ok(Err(error)) = auditing => Err(error.into()),
    };
    ended.cancel();
    drop(control);
    runtime.finish().await;
    outcome
}

/// Begins to deliver what waits here while the forwarder is away, if anything does.
async fn without_forwarder(
    config: &Config,
    runtime: &Arc<Runtime>,
    away: AgentError,
) -> Result<(), AgentError> {
    let is_away = matches!(away, AgentError::Unreachable { .. });
    // What is passed over of a backlog is decided with the forwarder.
    if !is_away || config.backlog != Backlog::default() {
        return Err(away);
    }
    configured::configure(runtime, &config.setup).await?;
    if runtime.waiting().await == 0 {
        runtime.stop().cancel();
        runtime.finish().await;
        return Err(away);
    }
    runtime.set_down(&away);
    Ok(())
}
