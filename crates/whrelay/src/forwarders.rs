//! The forwarders that can be asked from here: one that is configured, or those whose directories are on this
//! machine, running or not. It must not show answers.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::time::Instant;
use url::Url;
use whrelay_agent::{Management, Method};
use whrelay_core::bucket::BucketName;
use whrelay_core::subscription::LeaseEpoch;
use whrelay_core::token::Token;
use whrelay_delivery::{Clock, Trust};
use whrelay_forwarder::ReplayError;
use whrelay_store::{Ending, OpenError, Store};

use crate::agents::{LISTEN, PATIENCE, PAUSE};
use crate::args::ForwarderChoice;
use crate::commands::listen::{given_token, proxies};
use crate::embedded::{FORWARDER, TOKEN_FILE, announced, store_options};
use crate::failure::{Code, Failure};
use crate::paths::Paths;

/// Pages of a forwarder's buckets that are read.
const MAX_PAGES: usize = 100;
const PURPOSE: &str = "a command";

/// A forwarder that can be asked.
pub(crate) enum Door {
    /// It runs.
    Running(Management),
    /// It does not: this process has its store.
    Idle(Store),
}

impl Door {
    /// The forwarder that has a bucket: the configured one, else that of this machine, whose directory may be
    /// given, else the embedded one.
    pub(crate) async fn of(
        choice: &ForwarderChoice,
        trust: Trust,
        (bucket, dir): (&BucketName, Option<&Path>),
    ) -> Result<Self, Failure> {
        if let Some(configured) = Self::configured(choice, trust)? {
            return Ok(configured);
        }
        let paths = Paths::resolve()?;
        let here = dir.map_or_else(|| paths.forwarder(), Path::to_owned);
        for dir in [here, paths.embedded(bucket)] {
            if let Some(door) = Self::open(&dir).await? {
                if door.has(bucket).await? {
                    return Ok(door);
                }
                door.close().await;
            }
        }
        let why = format!("no forwarder on this machine has bucket `{bucket}`");
        Err(Failure::new(Code::NotFound, why).hint("name its forwarder with --forwarder"))
    }

    /// The forwarder that is configured, if one is.
    pub(crate) fn configured(
        choice: &ForwarderChoice,
        trust: Trust,
    ) -> Result<Option<Self>, Failure> {
        let Some(forwarder) = &choice.url else {
            return Ok(None);
        };
        let token = given_token(choice)?.ok_or_else(|| {
            Failure::new(
                Code::Unauthorised,
                format!("{forwarder} needs an access token"),
            )
            .hint("give it with --token-file or WHRELAY_TOKEN")
        })?;
        Ok(Some(Self::Running(Management {
            forwarder: forwarder.clone(),
            proxies: proxies(),
            trust,
            token,
        })))
    }

    /// The forwarder of a directory. Returns `None` if the directory has no store. Waits for a command that holds the
    /// lock for a moment and for a forwarder that is starting.
    pub(crate) async fn open(dir: &Path) -> Result<Option<Self>, Failure> {
        if !dir.join("store.redb").exists() {
            return Ok(None);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match Store::open(dir, &store_options(PURPOSE, None)) {
                Ok(store) => return Ok(Some(Self::Idle(store))),
                Err(OpenError::InUse { pid, purpose, path }) => {
                    let serves = purpose == FORWARDER || purpose == LISTEN;
                    if let Some(door) = serves.then(|| Self::running(dir, pid)).flatten() {
                        return Ok(Some(door));
                    }
                    if Instant::now() > until {
                        return Err(OpenError::InUse { path, pid, purpose }.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The forwarder of a process that has the lock of its directory, once it listens.
    fn running(dir: &Path, pid: u32) -> Option<Self> {
        let forwarder = announced(dir, pid)?;
        let token = fs::read_to_string(dir.join(TOKEN_FILE)).ok()?;
        Some(Self::Running(Management {
            forwarder,
            proxies: whrelay_agent::Proxies::none(),
            trust: Trust::default(),
            token: Token::parse(&token).ok()?,
        }))
    }

    /// Whether it runs.
    pub(crate) fn runs(&self) -> bool {
        matches!(self, Self::Running(_))
    }

    /// Where it is, if it runs.
    pub(crate) fn address(&self) -> Option<&Url> {
        match self {
            Self::Running(management) => Some(&management.forwarder),
            Self::Idle(_) => None,
        }
    }

    async fn has(&self, bucket: &BucketName) -> Result<bool, Failure> {
        match self {
            Self::Idle(store) => Ok(store
                .catalog
                .buckets()
                .await?
                .iter()
                .any(|known| known.name == *bucket)),
            Self::Running(management) => {
                let path = ["v1", "buckets", bucket.as_str(), "subscriptions"];
                match management.ask(Method::GET, &path, None).await {
                    Ok(_) => Ok(true),
                    Err(whrelay_agent::ManagementError::NotFound(_)) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// How it stands, as `GET /v1/status` says it, with all its buckets.
    pub(crate) async fn status(&self) -> Result<Value, Failure> {
        match self {
            Self::Running(management) => {
                let page =
                    async |query: &[(&str, &str)]| management.look(&["v1", "status"], query).await;
                let mut status = page(&[]).await?;
                for _ in 1..MAX_PAGES {
                    let Some(last) = last_of_page(&status) else {
                        break;
                    };
                    let mut next = page(&[("after", &last)]).await?;
                    if let (Some(all), Some(more)) = (
                        status["buckets"].as_array_mut(),
                        next["buckets"].as_array_mut(),
                    ) {
                        all.append(more);
                    }
                    status["more"] = next["more"].take();
                }
                Ok(status)
            }
            Self::Idle(store) => {
                let status = whrelay_forwarder::of_store(store).await?;
                serde_json::to_value(status).map_err(|e| Failure::new(Code::Bug, e.to_string()))
            }
        }
    }

    /// The subscriptions of a bucket, as `GET /v1/buckets/NAME/subscriptions` lists them.
    pub(crate) async fn subscriptions(&self, bucket: &BucketName) -> Result<Vec<Value>, Failure> {
        let listed = match self {
            Self::Running(management) => {
                let path = ["v1", "buckets", bucket.as_str(), "subscriptions"];
                management.ask(Method::GET, &path, None).await?
            }
            Self::Idle(store) => {
                let all = whrelay_forwarder::subscriptions_of(store, stored(store, bucket).await?)
                    .await?;
                serde_json::to_value(all).map_err(|e| Failure::new(Code::Bug, e.to_string()))?
            }
        };
        let strange = || Failure::new(Code::Unreachable, "the forwarder's answer is no list");
        listed.as_array().cloned().ok_or_else(strange)
    }

    /// Ends a subscription. Answers how many events are unclaimed.
    pub(crate) async fn end(&self, bucket: &BucketName, name: &str) -> Result<u64, Failure> {
        match self {
            Self::Running(management) => {
                let path = ["v1", "buckets", bucket.as_str(), "subscriptions", name];
                let ended = management.ask(Method::DELETE, &path, None).await?;
                Ok(ended["unclaimed"].as_u64().unwrap_or(0))
            }
            Self::Idle(store) => {
                let now = Clock::default().now();
                let of = stored(store, bucket).await?;
                let ended = whrelay_forwarder::end_subscription(store, of, name, now, || false);
                match ended.await? {
                    Ending::Ended { unclaimed } => Ok(unclaimed),
                    Ending::Unknown | Ending::InUse => Err(unknown(bucket, name)),
                }
            }
        }
    }

    /// Has a subscription sent what another has not received. Answers how many events that are at most.
    pub(crate) async fn replay(
        &self,
        bucket: &BucketName,
        name: &str,
        to: Option<&str>,
        all: bool,
    ) -> Result<u64, Failure> {
        match self {
            Self::Running(management) => {
                let path = [
                    "v1",
                    "buckets",
                    bucket.as_str(),
                    "subscriptions",
                    name,
                    "replay",
                ];
                let body = serde_json::json!({ "to": to, "all": all });
                let asked = management.ask(Method::POST, &path, Some(&body)).await?;
                Ok(asked["events"].as_u64().unwrap_or(0))
            }
            Self::Idle(store) => {
                let names = (name, to.unwrap_or(name));
                let of = stored(store, bucket).await?;
                // No process has had the store since it was opened.
                let newest = || LeaseEpoch::before_first(store.journal.epoch().opens).next();
                let asked = whrelay_forwarder::replay_subscription(store, of, names, all, newest);
                asked.await.map_err(|error| match error {
                    ReplayError::Unknown(name) => unknown(bucket, &name),
                    ReplayError::Ended(_) => Failure::new(Code::InUse, error.to_string()),
                    ReplayError::Store(error) => error.into(),
                })
            }
        }
    }

    /// Lets go of it.
    pub(crate) async fn close(self) {
        match self {
            Self::Running(_) => {}
            Self::Idle(store) => store.journal.close().await,
        }
    }
}

/// The last bucket of a status that says that there are more.
fn last_of_page(status: &Value) -> Option<String> {
    let buckets = status["buckets"]
        .as_array()
        .filter(|_| status["more"] == true);
    Some(buckets?.last()?["bucket"].as_str()?.to_owned())
}

/// The directories of forwarders on this machine, with one that is given.
pub(crate) fn on_this_machine(given: Option<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    if let Some(dir) = given
        .as_ref()
        .filter(|dir| !dir.join("store.redb").exists())
    {
        let why = format!("there is no store in {}", dir.display());
        return Err(Failure::new(Code::NotFound, why)
            .hint("--data-dir is the directory that `whrelay forwarder` was given"));
    }
    let all = Paths::resolve()?.all_stores().into_iter();
    let forwarders = all.filter(|(_, role)| *role == whrelay_store::Role::Forwarder);
    let mut dirs: Vec<_> = forwarders.map(|(dir, _)| dir).collect();
    if let Some(given) = given.filter(|given| !dirs.contains(given)) {
        dirs.push(given);
    }
    Ok(dirs)
}

async fn stored(
    store: &Store,
    bucket: &BucketName,
) -> Result<whrelay_core::bucket::BucketId, Failure> {
    let known = store
        .catalog
        .buckets()
        .await?
        .into_iter()
        .find(|known| known.name == *bucket);
    let missing = || Failure::new(Code::NotFound, format!("there is no bucket `{bucket}`"));
    known.map(|known| known.id).ok_or_else(missing)
}

fn unknown(bucket: &BucketName, name: &str) -> Failure {
    let why = format!("bucket `{bucket}` has no subscription `{name}`");
    Failure::new(Code::NotFound, why).hint("`whrelay subscription ls` lists them")
}
