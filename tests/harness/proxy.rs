//! A wire between an agent and its forwarder that can be cut at any moment.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
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
        Self::impatient(server, Duration::MAX).await
    }

    /// To a server; it cuts a connection over which nothing came for so long.
    pub async fn impatient(server: SocketAddr, patience: Duration) -> Self {
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
                        _ = copy(&mut near, &mut far, patience) => {}
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

/// Copies both ways until an end closes, or nothing comes from either for so long.
async fn copy(near: &mut TcpStream, far: &mut TcpStream, patience: Duration) -> io::Result<()> {
    let (mut sent, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    loop {
        let step = async {
            tokio::select! {
                length = near.read(&mut sent) => far.write_all(some(&sent[..length?])?).await,
                length = far.read(&mut answered) => near.write_all(some(&answered[..length?])?).await,
            }
        };
        timeout(patience, step).await??;
    }
}

/// What was read, unless that is the end.
fn some(bytes: &[u8]) -> io::Result<&[u8]> {
    match bytes {
        [] => Err(io::ErrorKind::UnexpectedEof.into()),
        some => Ok(some),
    }
}
