//! A websocket by hand, for either side: it sends whatever bytes it is told to, and reads what
//! comes. It must not keep the rules for its caller, for breaking them is what it is for.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use whrelay_proto::frame::{Events, Frame, Refused, Welcome};
use whrelay_proto::{SUBPROTOCOL, TUNNEL_PATH, codec};

pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
/// The first, a further and the last frame of a binary message that comes in several.
const BEGIN: u8 = 0x02;
const GO_ON: u8 = 0x00;
const END: u8 = 0x80;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;
/// The bit that says that a payload is masked.
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x5a, 0x01, 0xfe, 0x33];
/// Longest wait for a handshake: far beyond what a busy machine takes.
const SHAKES_WITHIN: Duration = Duration::from_secs(20);

/// The bytes of a websocket frame of a client's: its first byte, and its payload.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len() as u64, MASKED);
    bytes.extend(MASK);
    let hidden = payload.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b);
    bytes.extend(hidden);
    bytes
}

/// The bytes of a websocket frame of a server's.
pub(crate) fn plain(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len() as u64, 0);
    bytes.extend(payload);
    bytes
}

/// A frame of an agent's, as a websocket message.
pub(crate) fn said(frame: Frame) -> Vec<u8> {
    masked(BINARY, &codec::encode(frame))
}

/// The header alone, with any length.
pub(crate) fn header(first: u8, length: u64, mask: u8) -> Vec<u8> {
    let mut bytes = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..126), _) => bytes.push(mask | short),
        (_, Ok(middle)) => {
            bytes.push(mask | 126);
            bytes.extend(middle.to_be_bytes());
        }
        (..) => {
            bytes.push(mask | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes
}

/// What has come over a tunnel.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) welcome: Option<Welcome>,
    pub(crate) refused: Option<Refused>,
    /// The places of the events, in the order in which they came.
    pub(crate) places: Vec<u64>,
    /// The last ack.
    pub(crate) acked: u64,
    pub(crate) hello: Option<whrelay_proto::frame::Hello>,
}

/// One side of a connection that speaks websocket, or should.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) stream: TcpStream,
    coming: BytesMut,
    /// The frames so far of a message that comes in several.
    begun: BytesMut,
    /// Whether pings are answered.
    answers: bool,
    pub(crate) heard: Heard,
}

impl Socket {
    fn of_client(stream: TcpStream) -> Self {
        Self {
            stream,
            coming: BytesMut::new(),
            begun: BytesMut::new(),
            answers: true,
            heard: Heard::default(),
        }
    }

    /// One that answers no pings.
    pub(crate) fn of_server(stream: TcpStream) -> Self {
        Self {
            answers: false,
            ..Self::of_client(stream)
        }
    }

    /// Sends bytes; that the other side has closed is seen when reading.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Reads one message and notes what it says. False once the other side has closed.
    pub(crate) async fn read(&mut self) -> bool {
        loop {
            if let Some((opcode, payload)) = self.whole() {
                self.note(opcode, payload).await;
                return true;
            }
            match self.stream.read_buf(&mut self.coming).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return false,
            }
        }
    }

    /// Reads until what has been heard is enough. False where that does not come in time.
    pub(crate) async fn until(
        &mut self,
        within: Duration,
        enough: impl Fn(&Heard) -> bool,
    ) -> bool {
        let reading = async {
            while !enough(&self.heard) {
                if !self.read().await {
                    return enough(&self.heard);
                }
            }
            true
        };
        timeout(within, reading).await.unwrap_or(false)
    }

    /// Reads until the other side closes. False where it does not in time.
    pub(crate) async fn until_cut(&mut self, within: Duration) -> bool {
        timeout(within, async { while self.read().await {} })
            .await
            .is_ok()
    }

    /// The next message, once all of it has come.
    fn whole(&mut self) -> Option<(u8, Bytes)> {
        let (first, second) = (*self.coming.first()?, *self.coming.get(1)?);
        let (length, mut start) = match second & 0x7f {
            126 => (
                u64::from(u16::from_be_bytes(*self.coming.get(2..)?.first_chunk()?)),
                4,
            ),
            127 => (
                u64::from_be_bytes(*self.coming.get(2..)?.first_chunk()?),
                10,
            ),
            short => (u64::from(short), 2),
        };
        let mask = match second & MASKED {
            0 => [0; 4],
            _ => {
                start += 4;
                *self.coming.get(start - 4..)?.first_chunk()?
            }
        };
        let end = start + length as usize;
        if self.coming.len() < end {
            return None;
        }
        let mut message = self.coming.split_to(end);
        message.advance(start);
        for (byte, mask) in message.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        Some((first, message.freeze()))
    }

    async fn note(&mut self, opcode: u8, payload: Bytes) {
        if opcode == PING && self.answers {
            self.send(&masked(PONG, &payload)).await;
        }
        let payload = match opcode {
            BINARY => payload,
            BEGIN | GO_ON | END => {
                self.begun.extend_from_slice(&payload);
                if opcode != END {
                    return;
                }
                self.begun.split().freeze()
            }
            _ => return,
        };
        match codec::decode(payload) {
            Ok(Frame::Welcome(welcome)) => self.heard.welcome = Some(welcome),
            Ok(Frame::Refused(refused)) => self.heard.refused = Some(refused),
            Ok(Frame::Events(Events { events, .. })) => {
                self.heard
                    .places
                    .extend(events.iter().map(|event| event.seq));
            }
            Ok(Frame::Ack(ack)) => self.heard.acked = ack.upto,
            Ok(Frame::Hello(hello)) => self.heard.hello = Some(hello),
            Err(error) => panic!("what the other side sent is no frame: {error}"),
        }
    }
}

/// Where a forwarder's tunnel is, and what opens it.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
}

impl Gate {
    /// The request that opens it: everything about it is right.
    pub(crate) fn request(&self) -> String {
        let Self { address, token } = self;
        format!(
            "GET {TUNNEL_PATH} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
    }

    /// Opens it.
    pub(crate) async fn enter(&self) -> Result<Socket, String> {
        let stream = TcpStream::connect(self.address).await;
        self.shake(stream.map_err(|error| error.to_string())?).await
    }

    /// Opens it with a small buffer for what comes.
    pub(crate) async fn enter_narrow(&self) -> Result<Socket, String> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(self.address).await;
        self.shake(stream.map_err(|error| error.to_string())?).await
    }

    async fn shake(&self, mut stream: TcpStream) -> Result<Socket, String> {
        let request = self.request();
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|error| error.to_string())?;
        let head = timeout(SHAKES_WITHIN, read_head(&mut stream)).await;
        let head = head.map_err(|_| "no answer to the handshake".to_owned())?;
        match head.split(' ').nth(1) {
            Some("101") => Ok(Socket::of_client(stream)),
            _ => Err(format!("no tunnel: {head:?}")),
        }
    }
}

/// A head up to its empty line, byte by byte: what follows belongs to somebody else.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}
