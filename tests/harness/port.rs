//! A port that stays a test's own while nothing listens there.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::net::{TcpListener, TcpSocket};

/// How many connections wait to be accepted, as tokio has it.
const BACKLOG: u32 = 1024;

/// A port of the loopback interface. Until a listener is opened it refuses connections, and the
/// system gives it to nobody else: tests that run at once would deliver to each other.
pub struct Port {
    /// Where it is.
    pub address: SocketAddr,
    _held: TcpSocket,
}

impl Port {
    /// One that is free.
    pub fn hold() -> Self {
        let held = shared("127.0.0.1:0".parse().unwrap());
        Self {
            address: held.local_addr().unwrap(),
            _held: held,
        }
    }

    /// Listens there. Whoever listened there before has to be gone.
    pub fn listen(&self) -> TcpListener {
        shared(self.address).listen(BACKLOG).unwrap()
    }
}

/// Where programs of this process's tests may listen, come and go: the system gives these ports to nobody.
const QUIET: Range<u16> = 20_000..30_000;

/// An address for a program that is to find its port free again when it starts anew.
pub fn quiet() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let n = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)) + std::process::id() * 97;
        let port = QUIET.start + (n % QUIET.len() as u32) as u16;
        if let Ok(listener) = std::net::TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap().to_string();
        }
    }
}

/// A socket that others of this user may share the port of, if they ask for it as well (SO_REUSEPORT,
/// socket(7)).
fn shared(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}
