//! A receiver that fails now and then, and goes away. It must not know whrelay.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

type Received = HashMap<String, Vec<Vec<u8>>>;

/// A request, and what it was answered.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) event: String,
    /// Which attempt it was.
    pub(crate) attempt: String,
    pub(crate) status: u16,
}

/// Whether a request fails, by which attempt it is.
pub(crate) type Fails = Arc<dyn Fn(&str) -> bool + Send + Sync>;
/// Told of every exchange.
pub(crate) type Tell = Arc<dyn Fn(Exchange) + Send + Sync>;

/// A running receiver.
pub(crate) struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
    away: mpsc::UnboundedSender<Duration>,
    task: AbortHandle,
}

#[derive(Clone)]
struct Door {
    received: Arc<Mutex<Received>>,
    /// Whether bodies are kept, to be compared.
    keeps: bool,
    fails: Fails,
    tell: Tell,
}

impl Receiver {
    /// One on a loopback port; 0 for any that is free.
    pub(crate) async fn start(
        port: u16,
        keeps: bool,
        fails: Fails,
        tell: Tell,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let received = Arc::<Mutex<Received>>::default();
        let router = Router::new().fallback(any(receive)).with_state(Door {
            received: Arc::clone(&received),
            keeps,
            fails,
            tell,
        });
        let (away, leaves) = mpsc::unbounded_channel();
        let task = tokio::spawn(serve(listener, address, router, leaves)).abort_handle();
        Ok(Self {
            address,
            received,
            away,
            task,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Refuses connections for a while.
    pub(crate) fn go_away(&self, how_long: Duration) {
        // A receiver that has stopped is away already.
        let _ = self.away.send(how_long);
    }

    /// The bodies accepted, by event.
    pub(crate) fn received(&self) -> Received {
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

/// Bodies are read whole, whatever their size: what is sent is what whrelay has taken.
async fn receive(State(door): State<Door>, request: Request<Body>) -> (StatusCode, &'static str) {
    let (head, body) = request.into_parts();
    let text = |name| {
        let value = head.headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (event, attempt) = (text("x-whrelay-event-id"), text("x-whrelay-attempt"));
    let read = axum::body::to_bytes(body, usize::MAX).await;
    let failed = read.is_err() || (door.fails)(&attempt);
    if let (false, true, Ok(body)) = (failed, door.keeps, read) {
        let mut received = door.received.lock().unwrap_or_else(PoisonError::into_inner);
        let bodies = received.entry(event.clone()).or_default();
        bodies.push(body.to_vec());
    }
    let (status, said) = match failed {
        true => (StatusCode::SERVICE_UNAVAILABLE, "not now"),
        false => (StatusCode::OK, "thank you"),
    };
    (door.tell)(Exchange {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        event,
        attempt,
        status: status.as_u16(),
    });
    (status, said)
}
