//! The demo's receiver: it fails now and then, and goes away. It must not know whrelay.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Of ten first attempts, so many fail.
const FAILING_OF_TEN: u8 = 3;

type Received = HashMap<String, Vec<Vec<u8>>>;

/// A running receiver.
pub(super) struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
    away: mpsc::UnboundedSender<Duration>,
    task: AbortHandle,
}

impl Receiver {
    pub(super) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let received = Arc::<Mutex<Received>>::default();
        let router = Router::new()
            .fallback(any(receive))
            .with_state(Arc::clone(&received));
        let (away, leaves) = mpsc::unbounded_channel();
        let task = tokio::spawn(serve(listener, address, router, leaves)).abort_handle();
        Ok(Self {
            address,
            received,
            away,
            task,
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Refuses connections for a while.
    pub(super) fn go_away(&self, how_long: Duration) {
        // A receiver that has stopped is away already.
        let _ = self.away.send(how_long);
    }

    /// The bodies accepted, by event.
    pub(super) fn received(&self) -> Received {
        self.received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    mut leaves: mpsc::UnboundedReceiver<Duration>,
) {
    let mut listener = Some(listener);
    loop {
        let open = match listener.take() {
            Some(open) => open,
            None => match TcpListener::bind(address).await {
                Ok(open) => open,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let serving = tokio::spawn(axum::serve(open, router.clone()).into_future());
        let Some(how_long) = leaves.recv().await else {
            return;
        };
        serving.abort();
        tokio::time::sleep(how_long).await;
    }
}

async fn receive(
    State(received): State<Arc<Mutex<Received>>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    if text("x-whrelay-attempt") == "1" && rand::random::<u8>() % 10 < FAILING_OF_TEN {
        return (StatusCode::SERVICE_UNAVAILABLE, "not now");
    }
    let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
    received
        .entry(text("x-whrelay-event-id"))
        .or_default()
        .push(body.to_vec());
    (StatusCode::OK, "thank you")
}
