//! What the tests stand on, tested itself.

use std::io::ErrorKind;

use tokio::net::{TcpListener, TcpStream};
use whrelay_tests::port::Port;

#[tokio::test]
async fn a_port_that_is_held_refuses_connections_and_is_nobody_elses() {
    let port = Port::hold();
    for _ in 0..2 {
        let refused = TcpStream::connect(port.address).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let taken = TcpListener::bind(port.address).await.unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        let listener = port.listen();
        let (near, far) = tokio::join!(TcpStream::connect(port.address), listener.accept());
        assert_eq!(near.unwrap().local_addr().unwrap(), far.unwrap().1);
    }
}
