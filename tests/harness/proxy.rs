//! A wire between an agent and its forwarder that can be cut at any moment.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A TCP proxy.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    wires: Arc<Mutex<CancellationToken>>,
}

impl Proxy {
    /// To a server.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let wires = Arc::<Mutex<CancellationToken>>::default();
        let current = Arc::clone(&wires);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let cut = current.lock().unwrap().clone();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(server).await else {
                        return;
                    };
                    tokio::select! {
                        () = cut.cancelled() => {}
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self { address, wires }
    }

    /// Cuts every connection; new ones are let through.
    pub fn cut(&self) {
        let wires = std::mem::take(&mut *self.wires.lock().unwrap());
        wires.cancel();
    }
}
