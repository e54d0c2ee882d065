//! Bytes that senders write raw in the target of a request to an input, and that most servers take, but a `Uri` does
//! not: others stand for them while hyper reads the target. It must not know what a request asks.
//!
//! Nothing else may be changed. So it is only done where it is known that a request begins: at the start of a
//! connection, and behind a request of which as many bytes have come as it announced.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::HttpBody;
use axum::http::{Request, Uri, header};
use whrelay_core::octets;

/// Characters that a `Uri` does not take. Of bytes that are not ASCII it takes those that are UTF-8.
const RAW: &[u8] = b"\"<>`";
/// What hyper reads in place of each.
const STAND_IN: u8 = b'_';
/// Where they are replaced: a name in the API has none of them.
const INPUTS: &[u8] = b"/in/";
/// What a body announces whose end only its bytes show.
const UNKNOWN: u64 = u64::MAX;

/// The end of a target as its sender wrote it, from the first byte that was replaced.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    begins: u16,
    bytes: Vec<u8>,
}

impl Written {
    /// Path and query as the sender wrote them, as [`octets`] has them.
    pub(crate) fn target(&self, read: &Uri) -> (String, Option<String>) {
        let read = read.path_and_query().map_or("/", |target| target.as_str());
        let mut bytes = read.as_bytes().to_vec();
        let replaced = bytes.iter_mut().skip(usize::from(self.begins));
        for (byte, written) in replaced.zip(&self.bytes) {
            *byte = *written;
        }
        let mut parts = bytes.splitn(2, |byte| *byte == b'?').map(octets::to_text);
        (parts.next().unwrap_or_default(), parts.next())
    }

    /// How many bytes the target has as it is kept.
    pub(crate) fn length(&self, read: &Uri) -> usize {
        let text = read.path_and_query().map_or("/", |target| target.as_str());
        if self.bytes.is_empty() && text.is_ascii() {
            return text.len();
        }
        let (path, query) = self.target(read);
        path.len() + query.map_or(0, |query| "?".len() + query.len())
    }
}

/// What a connection's reader and the one who answers its requests tell each other.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    written: Mutex<Written>,
    /// Bytes that the body of the request under way has, as its head says.
    announced: AtomicU64,
}

impl Exchange {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// hyper has read a head: what was written in its target goes along with it.
    pub(crate) fn begin<B: HttpBody>(&self, request: &mut Request<B>) {
        let has_coding = request.headers().contains_key(header::TRANSFER_ENCODING);
        let length = request.body().size_hint().exact();
        let announced = length.filter(|_| !has_coding).unwrap_or(UNKNOWN);
        self.announced.store(announced, Ordering::Relaxed);
        let written = std::mem::take(&mut *self.written());
        request.extensions_mut().insert(written);
    }
}

/// Reads along on a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    at: At,
    exchange: Arc<Exchange>,
}

#[derive(Debug)]
enum At {
    /// Before the target.
    Method,
    /// In the target, behind so many bytes of it.
    Target(u16),
    /// Behind it, up to the empty line.
    Head { line_is_empty: bool },
    /// Behind the head, of whose body so many bytes have come.
    Body(u64),
    /// Somewhere.
    Lost,
}

impl Reader {
    pub(crate) fn new(exchange: Arc<Exchange>) -> Self {
        let at = At::Method;
        Self { at, exchange }
    }

    /// Reads nothing: the connection speaks no HTTP/1.
    pub(crate) fn idle() -> Self {
        let (at, exchange) = (At::Lost, Arc::default());
        Self { at, exchange }
    }

    /// The request before has its answer: what comes now may be the next one.
    pub(crate) fn next(&mut self) {
        self.at = match self.at {
            At::Method => At::Method,
            At::Body(came) if came == self.exchange.announced.load(Ordering::Relaxed) => At::Method,
            At::Target(_) | At::Head { .. } | At::Body(_) | At::Lost => At::Lost,
        };
    }

    /// Replaces those bytes in what has come.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) {
        let mut rest = bytes.iter_mut();
        while let Some(byte) = rest.next() {
            self.at = match self.at {
                At::Method if *byte == b' ' => At::Target(0),
                At::Method => At::Method,
                At::Target(_) if matches!(*byte, b' ' | b'\n') => At::Head {
                    line_is_empty: *byte == b'\n',
                },
                At::Target(place) => match self.target(place, byte) {
                    true => At::Target(place.saturating_add(1)),
                    false => At::Head {
                        line_is_empty: false,
                    },
                },
                At::Head { line_is_empty } => match (*byte, line_is_empty) {
                    (b'\n', true) => At::Body(0),
                    (b'\n', false) => At::Head {
                        line_is_empty: true,
                    },
                    (b'\r', _) => At::Head { line_is_empty },
                    _ => At::Head {
                        line_is_empty: false,
                    },
                },
                At::Body(came) => At::Body(came + 1 + rest.len() as u64),
                At::Lost => At::Lost,
            };
            if matches!(self.at, At::Body(came) if came > 0) {
                return;
            }
        }
    }

    /// Notes bytes of a body.
    pub(crate) fn pass(&mut self, bytes: usize) {
        if let At::Body(came) = &mut self.at {
            *came += bytes as u64;
        }
    }

    /// Looks at a byte of the target. Says whether to look at the next one.
    fn target(&self, place: u16, byte: &mut u8) -> bool {
        if let Some(begins) = INPUTS.get(usize::from(place)) {
            return byte == begins;
        }
        let is_replaced = RAW.contains(byte) || !byte.is_ascii();
        let mut written = self.exchange.written();
        if written.bytes.is_empty() {
            if !is_replaced {
                return true;
            }
            written.begins = place;
        }
        if place == u16::MAX {
            // hyper refuses a target of this length.
            return false;
        }
        written.bytes.push(*byte);
        if is_replaced {
            *byte = STAND_IN;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use proptest::prelude::*;

    use super::*;

    /// Path and query of a request that comes in pieces of so many bytes, and what hyper reads of all of it.
    fn through(reader: &mut Reader, sent: &[u8], size: usize) -> Vec<u8> {
        let mut read = sent.to_vec();
        for piece in read.chunks_mut(size) {
            reader.read(piece);
        }
        read
    }

    fn reader() -> (Reader, Arc<Exchange>) {
        let exchange = Arc::<Exchange>::default();
        (Reader::new(Arc::clone(&exchange)), exchange)
    }

    /// Path and query of a request of which hyper has read this target, with a body of so many bytes.
    fn written(exchange: &Exchange, target: &str, body: usize) -> (String, Option<String>) {
        let mut request = Request::new(Body::from(vec![7; body]));
        *request.uri_mut() = target.parse().expect("a target");
        exchange.begin(&mut request);
        let written = request.extensions().get::<Written>().expect("noted");
        written.target(request.uri())
    }

    #[test]
    fn raw_characters_are_replaced_in_the_target_alone_and_kept() {
        let sent = b"POST /in/k/a\"b?q=<`> HTTP/1.1\r\nX: <\"`\r\nContent-Length: 4\r\n\r\n\"<>`";
        let hyper = "POST /in/k/a_b?q=___ HTTP/1.1\r\nX: <\"`\r\nContent-Length: 4\r\n\r\n\"<>`";
        for size in [1, 2, 3, 1000] {
            let (mut reader, exchange) = reader();
            for _ in 0..3 {
                let read = through(&mut reader, sent, size);
                assert_eq!(String::from_utf8_lossy(&read), hyper);
                let (path, query) = written(&exchange, "/in/k/a_b?q=___", 4);
                assert_eq!(
                    (path.as_str(), query.as_deref()),
                    ("/in/k/a\"b", Some("q=<`>"))
                );
                reader.next();
            }
        }
    }

    #[test]
    fn where_it_is_not_known_that_a_request_begins_nothing_is_changed() {
        let one = b"POST /in/k HTTP/1.1\r\nContent-Length: 1\r\n\r\nx";
        let odd = b"POST /in/k?\" HTTP/1.1\r\nContent-Length: 1\r\n\r\nx";
        for (more, announced) in [(&b"G"[..], 1), (b"", 2), (b"", 0)] {
            let (mut reader, exchange) = reader();
            through(&mut reader, &[one, more].concat(), 1000);
            written(&exchange, "/in/k", announced);
            reader.next();
            assert_eq!(through(&mut reader, odd, 1000), odd, "{more:?} {announced}");
        }
    }

    #[test]
    fn only_inputs_are_looked_at() {
        for target in ["/v1/buckets/a\"", "/in\"", "http://h/in/k\"", "\"/in/", "*"] {
            let sent = format!("PUT {target} HTTP/1.1\r\n\r\n").into_bytes();
            assert_eq!(through(&mut reader().0, &sent, 3), sent);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_written_as_text() {
        let sent = b"GET /in/k/caf\xe9/\xc3\xa9?q=\xff&r=a HTTP/1.1\r\n\r\n";
        let (mut reader, exchange) = reader();
        let read = through(&mut reader, sent, 7);
        assert_eq!(read, b"GET /in/k/caf_/__?q=_&r=a HTTP/1.1\r\n\r\n");
        let (path, query) = written(&exchange, "/in/k/caf_/__?q=_&r=a", 0);
        assert_eq!(path, "/in/k/caf\u{10ffe9}/\u{e9}");
        assert_eq!(query.as_deref(), Some("q=\u{10ffff}&r=a"));
    }

    #[test]
    fn a_target_too_long_for_hyper_is_not_kept() {
        let target = format!("/in/{}", "<".repeat(70_000));
        let sent = format!("GET {target} HTTP/1.1\r\n\r\n").into_bytes();
        let (mut reader, exchange) = reader();
        through(&mut reader, &sent, 100);
        assert!(exchange.written().bytes.len() < usize::from(u16::MAX));
    }

    proptest! {
        #[test]
        fn whatever_comes_keeps_its_length_and_all_but_those_bytes(
            sent in proptest::collection::vec(any::<u8>(), 0..200),
            size in 1..50usize,
        ) {
            let sent = [b"GET /in/", &sent[..]].concat();
            let (mut reader, exchange) = reader();
            let mut read = through(&mut reader, &sent, size);
            let written = exchange.written();
            let begins = b"GET ".len() + usize::from(written.begins);
            read[begins..][..written.bytes.len()].copy_from_slice(&written.bytes);
            prop_assert_eq!(read, sent);
        }
    }
}
