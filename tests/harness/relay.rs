//! A forwarder in this process, on a free port, with its store in a directory of its own.

use std::net::SocketAddr;
use std::time::Duration;

use crate::stores;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;
use whrelay_agent::Proxies;
use whrelay_core::limits;
use whrelay_core::retention::{Bound, Retention};
use whrelay_core::token::Token;
use whrelay_delivery::Trust;
use whrelay_forwarder::Config;
use whrelay_store::{Medium, Options, RedbStore, Role, Store, StoreError};

use crate::port::Port;

/// A forwarder.
pub struct Relay {
    dir: TempDir,
    port: Port,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its admin token.
    pub token: Token,
    /// Its store.
    pub store: Store,
    stop: CancellationToken,
    task: JoinHandle<Result<(), StoreError>>,
}

fn options() -> Options {
    Options {
        role: Role::Forwarder,
        cache: 8 << 20,
        name_seed: rand::random(),
        purpose: "test",
        bound: None,
    }
}

/// What a forwarder allows.
struct Allowed {
    max_connections: usize,
    subscription_ttl: Option<Duration>,
    max_body: usize,
}

impl Default for Allowed {
    fn default() -> Self {
        Self {
            max_connections: limits::MAX_CONNECTIONS,
            subscription_ttl: None,
            max_body: limits::MAX_BODY,
        }
    }
}

impl Relay {
    /// A new one.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = stores::open(dir.path(), &options());
        Self::run(dir, store, Port::hold(), Allowed::default()).await
    }

    /// A new one that takes bodies up to this size.
    pub async fn start_taking(max_body: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = stores::open(dir.path(), &options());
        let allowed = Allowed {
            max_body,
            ..Allowed::default()
        };
        Self::run(dir, store, Port::hold(), allowed).await
    }

    /// A new one that serves only so many connections at once.
    pub async fn start_small(max_connections: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = stores::open(dir.path(), &options());
        let allowed = Allowed {
            max_connections,
            ..Allowed::default()
        };
        Self::run(dir, store, Port::hold(), allowed).await
    }

    /// A new one whose store takes in only so many bytes.
    pub async fn start_bounded(max_size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bounded = Options {
            bound: Some(Bound {
                bytes: max_size,
                shared: false,
            }),
            ..options()
        };
        let store = stores::open(dir.path(), &bounded);
        Self::run(dir, store, Port::hold(), Allowed::default()).await
    }

    /// Asks it to stop.
    pub fn ask_to_stop(&self) {
        self.stop.cancel();
    }

    /// Waits until it has stopped.
    pub async fn stopped(self) {
        self.task.await.unwrap().unwrap();
        self.store.journal.close().await;
    }

    /// A new one on a medium of the test's own.
    pub async fn start_on(medium: Medium) -> Self {
        Self::start_expiring(medium, None).await
    }

    /// The same; it ends subscriptions whose agents were not seen for so long.
    pub async fn start_expiring(medium: Medium, ttl: Option<Duration>) -> Self {
        let store = Store::from(RedbStore::open_on(medium, &options()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let allowed = Allowed {
            subscription_ttl: ttl,
            ..Allowed::default()
        };
        Self::run(dir, store, Port::hold(), allowed).await
    }

    /// Stops it, and starts it again on the same port and data.
    pub async fn restart(self) -> Self {
        let Self {
            dir,
            port,
            store,
            stop,
            task,
            ..
        } = self;
        stop.cancel();
        task.await.unwrap().unwrap();
        store.journal.close().await;
        let store = stores::open(dir.path(), &options());
        Self::run(dir, store, port, Allowed::default()).await
    }

    async fn run(dir: TempDir, store: Store, port: Port, allowed: Allowed) -> Self {
        let path = dir.path().join("admin-token");
        let (token, _) = whrelay_forwarder::admin_token(&store, &path).await.unwrap();
        let (listener, address) = (port.listen(), port.address);
        let stop = CancellationToken::new();
        let config = Config {
            public_url: format!("http://{address}"),
            retention: Retention::ALL,
            subscription_ttl: allowed.subscription_ttl,
            max_connections: allowed.max_connections,
            max_body: allowed.max_body,
        };
        let task = tokio::spawn(whrelay_forwarder::run(
            listener,
            store.clone(),
            config,
            stop.clone(),
        ));
        Self {
            dir,
            port,
            address,
            token,
            store,
            stop,
            task,
        }
    }

    /// Its URL.
    pub fn url(&self) -> Url {
        format!("http://{}", self.address).parse().unwrap()
    }

    /// The input URL of a bucket, created where it is missing.
    pub async fn input(&self, bucket: &str) -> String {
        let bucket = bucket.parse().unwrap();
        whrelay_agent::ensure_bucket(
            &self.url(),
            &Proxies::none(),
            &Trust::default(),
            &self.token,
            &bucket,
        )
        .await
        .unwrap()
        .url
    }
}
