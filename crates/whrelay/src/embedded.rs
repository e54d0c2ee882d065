//! The forwarder inside `listen`: the same one, on loopback, with a store of its own. It must not
//! do anything that `whrelay forwarder` does not.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;
use whrelay_core::limits;
use whrelay_core::retention::{Bound, Retention};
use whrelay_core::token::Token;
use whrelay_forwarder::Config;
use whrelay_store::{OpenError, Options, Role, Store, write_private};

use crate::agents::{LISTEN, PATIENCE, PAUSE};
use crate::failure::{Code, Failure};
use crate::files;

/// Ports tried, in order, for a bucket that has none yet: outside the range that systems hand out.
const PORTS: std::ops::RangeInclusive<u16> = 4141..=4160;
/// Memory a forwarder's store may use as its cache, in bytes.
const CACHE: usize = 16 * 1024 * 1024;
const PORT_FILE: &str = "port";
const URL_FILE: &str = "url";
/// What `forwarder` tells others it does with the store.
pub(crate) const FORWARDER: &str = "forwarder";
pub(crate) const TOKEN_FILE: &str = "admin-token";

/// The forwarder of this process.
pub(crate) struct Embedded {
    pub(crate) url: Url,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    pub(crate) token: Token,
    /// The port of the bucket's own, where somebody else has it.
    pub(crate) away_from: Option<u16>,
    dir: PathBuf,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<(), Failure>>>,
}

/// How a forwarder's store is opened.
pub(crate) fn store_options(purpose: &'static str, bound: Option<Bound>) -> Options {
    Options {
        role: Role::Forwarder,
        cache: CACHE,
        name_seed: rand::random(),
        purpose,
        bound,
    }
}

impl Embedded {
    /// Starts the embedded forwarder of a bucket. A command that has its store for a moment is waited for.
    pub(crate) async fn start(
        dir: &Path,
        bind: Option<SocketAddr>,
        retention: Retention,
    ) -> Result<Self, Failure> {
        let until = Instant::now() + PATIENCE;
        let store = loop {
            match Store::open(dir, &store_options(LISTEN, retention.max_disk)) {
                Ok(store) => break store,
                Err(OpenError::InUse { pid, purpose, .. }) if purpose == LISTEN => {
                    return Err(in_use(dir, pid));
                }
                Err(OpenError::InUse { .. }) if Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let failed = |e: io::Error| Failure::new(Code::Failed, format!("{}: {e}", dir.display()));
        forget_url(dir).map_err(failed)?;
        let (listener, away_from) = bind_listener(dir, bind).await?;
        let (token, _) = whrelay_forwarder::admin_token(&store, &dir.join(TOKEN_FILE))
            .await
            .map_err(|e| Failure::new(Code::Failed, e.to_string()))?;
        let address = listener
            .local_addr()
            .map_err(|e| Failure::new(Code::Failed, e.to_string()))?;
        let text = format!("http://{}", reachable(address));
        let url = Url::parse(&text).map_err(|e| Failure::new(Code::Bug, e.to_string()))?;
        let keep = |name: &str, text: &str| keep(&dir.join(name), text).map_err(failed);
        announce(dir, &text).map_err(failed)?;
        if away_from.is_none() {
            keep(PORT_FILE, &address.port().to_string())?;
        }
        let stop = CancellationToken::new();
        let serving = serve(listener, store, url.clone(), retention, stop.clone());
        Ok(Self {
            url,
            address,
            token,
            away_from,
            dir: dir.to_owned(),
            stop,
            task: Some(tokio::spawn(serving)),
        })
    }

    /// Waits until it has stopped by itself, which it does only when its store has failed.
    pub(crate) async fn failed(&mut self) -> Failure {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let ended = task.await;
        // There is nothing left to stop.
        self.task = None;
        match ended {
            Ok(Err(failure)) => failure,
            Ok(Ok(())) => Failure::new(Code::Bug, "the embedded forwarder has stopped"),
            Err(error) => Failure::new(Code::Bug, error.to_string()),
        }
    }

    /// Stops it.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if let Some(task) = self.task {
            // What it could not finish is on disk, or was never answered.
            let _ = task.await;
        }
        // A later start does it, too.
        let _ = forget_url(&self.dir);
    }
}

async fn serve(
    listener: TcpListener,
    store: Store,
    url: Url,
    retention: Retention,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let config = Config {
        public_url: url.as_str().trim_end_matches('/').to_owned(),
        retention,
        subscription_ttl: None,
        max_connections: files::connections(),
        max_body: limits::MAX_BODY,
    };
    Ok(whrelay_forwarder::run(listener, store, config, stop).await?)
}

/// Another `listen` has the forwarder of the bucket.
fn in_use(dir: &Path, pid: u32) -> Failure {
    let bucket = dir.file_name().unwrap_or_default().to_string_lossy();
    let why = format!("another `listen` (pid {pid}) receives the events of bucket `{bucket}`");
    Failure::new(Code::InUse, why).hint(
        "give that one several targets (`listen --to A --to B`), or this one another --bucket",
    )
}

/// Writes down where the forwarder of a directory listens, for commands on this machine.
pub(crate) fn announce(dir: &Path, url: &str) -> io::Result<()> {
    let text = format!("{url}\n{}\n", std::process::id());
    write_private(&dir.join(URL_FILE), text.as_bytes())
}

/// Where the forwarder of a directory listens, if it is this process that has its lock: somebody else may have the port
/// of another one.
pub(crate) fn announced(dir: &Path, pid: u32) -> Option<Url> {
    let (url, by) = last_announced(dir)?;
    (by == pid).then_some(url)
}

/// Where the forwarder of a directory listens, unless it was killed, and its process.
pub(crate) fn last_announced(dir: &Path) -> Option<(Url, u32)> {
    let text = fs::read_to_string(dir.join(URL_FILE)).ok()?;
    let (url, by) = text.trim_end().split_once('\n')?;
    Some((url.parse().ok()?, by.parse().ok()?))
}

/// Forgets where the forwarder of a directory listened: until it listens again, somebody else may have the port.
pub(crate) fn forget_url(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(URL_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A listener, and the port of the bucket's own where it is not that one.
async fn bind_listener(
    dir: &Path,
    bind: Option<SocketAddr>,
) -> Result<(TcpListener, Option<u16>), Failure> {
    let own = own_port(dir);
    let others = fs::read_dir(dir.with_file_name("")).into_iter().flatten();
    let others: Vec<_> = others
        .filter_map(|entry| own_port(&entry.ok()?.path()))
        .collect();
    let free = PORTS.filter(|port| !others.contains(port));
    let ports = own.into_iter().chain(free).chain([0]);
    let on_loopback = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let wanted = match bind {
        Some(address) => vec![address],
        None => on_loopback.collect(),
    };
    let mut refused = None;
    for address in wanted {
        match listen_on(&[address]) {
            Ok(listener) => {
                let away = own.filter(|own| bind.is_none() && *own != address.port());
                return Ok((listener, away));
            }
            Err(error) => refused = Some(cannot_bind(address, &error, "--bind")),
        }
    }
    Err(refused.unwrap_or_else(|| Failure::new(Code::Bug, "there is no port to try")))
}

/// An address at which this machine reaches a listener: one for all addresses is reached on loopback.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Listens on the first of some addresses that can be had.
pub(crate) fn listen_on(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match listen_at(*address) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // What an earlier process left of its connections does not hold the port; elsewhere this means more.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::LISTEN_BACKLOG)
}

/// Has a file say this, whole and on disk, unless it does.
pub(crate) fn keep(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    write_private(path, text.as_bytes())
}

/// The port that a bucket's senders know.
fn own_port(dir: &Path) -> Option<u16> {
    fs::read_to_string(dir.join(PORT_FILE)).ok()?.parse().ok()
}

/// An address that cannot be had.
pub(crate) fn cannot_bind(address: SocketAddr, error: &io::Error, flag: &str) -> Failure {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
    let code = if error.kind() == AddrInUse {
        Code::InUse
    } else if matches!(error.kind(), AddrNotAvailable | PermissionDenied) {
        Code::Usage
    } else {
        Code::Failed
    };
    Failure::new(code, format!("cannot listen on {address}: {error}"))
        .hint(format!("choose another with {flag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_another_bucket_had_is_not_taken_though_it_is_free() {
        let all = std::env::temp_dir().join(format!("whrelay-{:016x}", rand::random::<u64>()));
        for port in PORTS {
            let dir = all.join(format!("bucket-{port}"));
            fs::create_dir_all(&dir).expect("a directory");
            fs::write(dir.join(PORT_FILE), port.to_string()).expect("written");
        }
        let (listener, away) = bind_listener(&all.join("new"), None).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        assert!(!PORTS.contains(&port) && away.is_none(), "{port}");
        fs::remove_dir_all(all).expect("removed");
    }
}
