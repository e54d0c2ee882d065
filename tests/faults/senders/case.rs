//! What a bad sender sends, and what must come of it. It must not know how either is done.

/// Where the senders' target begins, at the receiver.
pub(crate) const BASE: &str = "/base";
/// A connection that is closed without an answer, among the statuses of a refusal.
pub(crate) const CLOSED: u16 = 0;

/// Refused for what it is.
pub(crate) const BAD: &[u16] = &[400, CLOSED];
/// Nothing is there.
pub(crate) const UNKNOWN: &[u16] = &[404];
/// Not understood here.
pub(crate) const UNSUPPORTED: &[u16] = &[501];
/// Its rest did not come.
pub(crate) const LATE: &[u16] = &[408, CLOSED];

/// A kind of case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Kind {
    Smuggling,
    Paths,
    Fields,
    Methods,
    Bodies,
    Connections,
}

/// Raw bytes on one connection, and every answer to them, in order.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
    /// Whether the sender says that it will send no more.
    pub(crate) hangs_up: bool,
    /// Whether it sends byte by byte.
    pub(crate) drips: bool,
    pub(crate) answers: Vec<Answer>,
}

/// What must come of one request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// 2xx, and exactly this reaches the endpoint, once.
    Accepted(Arrival),
    /// One of these, and nothing reaches the endpoint.
    Refused(&'static [u16]),
}

/// A request as it must reach the endpoint, without what is made anew for it.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: Vec<u8>,
    /// Names in lower case; in order within a name.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Arrival {
    pub(crate) fn new(method: &str, tail: impl AsRef<[u8]>, body: &[u8]) -> Self {
        Self {
            method: method.to_owned(),
            target: [BASE.as_bytes(), tail.as_ref()].concat(),
            fields: Vec::new(),
            body: body.to_vec(),
        }
    }

    pub(crate) fn with(mut self, fields: &[(&str, &[u8])]) -> Self {
        let owned = |(name, value): &(&str, &[u8])| (name.to_ascii_lowercase(), value.to_vec());
        self.fields.extend(fields.iter().map(owned));
        self
    }
}

impl Case {
    pub(crate) fn new(kind: Kind, bytes: Vec<u8>, answers: Vec<Answer>) -> Self {
        Self {
            kind,
            bytes,
            hangs_up: false,
            drips: false,
            answers,
        }
    }

    pub(crate) fn refused(kind: Kind, bytes: Vec<u8>, statuses: &'static [u16]) -> Self {
        Self::new(kind, bytes, vec![Answer::Refused(statuses)])
    }

    pub(crate) fn accepted(kind: Kind, bytes: Vec<u8>, arrival: Arrival) -> Self {
        Self::new(kind, bytes, vec![Answer::Accepted(arrival)])
    }

    pub(crate) fn hanging_up(mut self) -> Self {
        self.hangs_up = true;
        self
    }

    pub(crate) fn dripping(mut self) -> Self {
        self.drips = true;
        self
    }

    /// What was sent, short enough to be told.
    pub(crate) fn shown(&self) -> String {
        let shown = self.bytes[..self.bytes.len().min(300)].escape_ascii();
        format!("{}: {shown}", self.kind)
    }
}

/// A request with these header lines, each of which ends itself.
pub(crate) fn request(
    method: &str,
    target: impl AsRef<[u8]>,
    lines: &[u8],
    body: &[u8],
) -> Vec<u8> {
    let first = [
        method.as_bytes(),
        b" ",
        target.as_ref(),
        b" HTTP/1.1\r\nHost: x\r\n",
    ];
    [&first.concat(), lines, b"\r\n", body].concat()
}
