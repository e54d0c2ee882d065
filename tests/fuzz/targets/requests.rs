//! Any bytes at the input of a real forwarder: as many events are stored as are answered with 2xx, and
//! each of them stays under its own input URL.

#![no_main]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;

use libfuzzer_sys::fuzz_target;
use redb::backends::InMemoryBackend;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use whrelay_core::bucket::{Bucket, BucketKey, BucketName, Seq};
use whrelay_core::tail;
use whrelay_forwarder::Config;
use whrelay_store::{Medium, Options, RedbStore, Role, Store};

/// What stands for the input URL's path in an input.
const PATH: &[u8] = b"PATH";
/// Inputs after which a forwarder is replaced: its store is in memory, and only grows.
const INPUTS: u32 = 5000;

struct Forwarder {
    runtime: Runtime,
    address: SocketAddr,
    store: Store,
    bucket: Bucket,
    path: Vec<u8>,
    stop: CancellationToken,
    inputs: u32,
}

static FORWARDER: Mutex<Option<Forwarder>> = Mutex::new(None);

impl Forwarder {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let options = Options {
            role: Role::Forwarder,
            cache: 1 << 20,
            name_seed: 1,
            purpose: "fuzz",
            bound: None,
        };
        let memory = |builder: &redb::Builder| builder.create_with_backend(InMemoryBackend::new());
        let store = RedbStore::open_on(Medium::custom(memory), &options);
        let store = Store::from(store.expect("a store"));
        let name: BucketName = "shop".parse().expect("a name");
        let key = BucketKey::mint(&name, [7; 26]);
        let path = format!("/in/{}", key.expose()).into_bytes();
        let made = runtime.block_on(store.catalog.ensure_bucket(&name, key));
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)));
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, config) = (
            CancellationToken::new(),
            Config {
                public_url: format!("http://{address}"),
                retention: whrelay_core::retention::Retention::ALL,
                subscription_ttl: None,
                max_connections: whrelay_core::limits::MAX_CONNECTIONS,
                max_body: whrelay_core::limits::MAX_BODY,
            },
        );
        runtime.spawn(whrelay_forwarder::run(
            listener,
            store.clone(),
            config,
            stop.clone(),
        ));
        Self {
            runtime,
            address,
            store,
            bucket: made.expect("a bucket").0,
            path,
            stop,
            inputs: 0,
        }
    }

    fn last(&self) -> u64 {
        let last = self.store.journal.numbers(self.bucket.id);
        self.runtime.block_on(last).expect("read").last.0
    }

    fn take(&mut self, data: &[u8]) {
        self.inputs += 1;
        let before = self.last();
        let (answers, whole) = exchange(self.address, &self.with_path(data));
        let text = String::from_utf8_lossy(&answers);
        let good = text.matches("HTTP/1.1 200 ").count() + text.matches("HTTP/1.0 200 ").count();
        let health = text.matches("\r\n\r\nok\n").count() + text.matches("\r\n\r\nready\n").count();
        let (accepted, new) = ((good - health) as u64, self.last() - before);
        // Where the connection is reset, for what is behind a request makes no sense, answers are lost.
        assert!(
            accepted <= new && (accepted == new || !whole),
            "{new} stored: {text}"
        );
        let journal = &self.store.journal;
        let stored = journal.read_after(&self.bucket, Seq(before), 100, usize::MAX);
        let stored = self.runtime.block_on(stored);
        for stored in stored.expect("read").events {
            let path = stored.event.request.tail;
            assert!(path.is_empty() || path.starts_with('/'), "{path}");
            assert!(!tail::climbs(&path), "{path}");
        }
    }

    fn with_path(&self, data: &[u8]) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), data);
        while let Some(at) = rest.windows(PATH.len()).position(|window| window == PATH) {
            bytes.extend_from_slice(&rest[..at]);
            bytes.extend_from_slice(&self.path);
            rest = &rest[at + PATH.len()..];
        }
        bytes.extend_from_slice(rest);
        bytes
    }
}

/// What is answered to some bytes, and whether that is all of it.
fn exchange(address: SocketAddr, bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let mut answers = Vec::new();
    // It may have answered and closed before it has read everything.
    let written = stream.write_all(bytes);
    let shut = stream.shutdown(Shutdown::Write);
    let read = stream.read_to_end(&mut answers);
    let whole = written.is_ok() && shut.is_ok() && read.is_ok();
    (answers, whole)
}

fuzz_target!(|data: &[u8]| {
    let mut current = FORWARDER.lock().expect("one at a time");
    if current.as_ref().is_some_and(|old| old.inputs == INPUTS)
        && let Some(old) = current.take()
    {
        old.stop.cancel();
        old.runtime.shutdown_background();
    }
    current.get_or_insert_with(Forwarder::start).take(data);
});
