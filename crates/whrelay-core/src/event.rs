//! One received webhook, bytes untouched. It must not know how it travels or rests.

use bytes::Bytes;

use crate::bucket::BucketName;
use crate::id::EventId;
use crate::time::Timestamp;

/// One header field as it came; repeated fields are repeated here, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The field's name, in lower case.
    pub name: String,
    /// The value's bytes: not always UTF-8.
    pub value: Bytes,
}

/// What the sender asked, without its connection's framing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, as it came.
    pub method: String,
    /// What followed the bucket key in the path: empty, or with its leading slash, never decoded. Bytes that are not
    /// UTF-8 are here as [`crate::octets`] writes them, and in the query.
    pub tail: String,
    /// What followed the first `?`, never decoded.
    pub query: Option<String>,
    /// All header fields.
    pub headers: Vec<Header>,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// The first value of a header field, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|h| h.name == name)
            .map(|h| h.value.as_ref())
    }

    /// Tail and query as the sender wrote them.
    pub fn path_and_query(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.tail),
            None => self.tail.clone(),
        }
    }
}

/// One webhook that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name, the same in every attempt.
    pub id: EventId,
    /// The inbox it came to.
    pub bucket: BucketName,
    /// When the forwarder had read it whole.
    pub received_at: Timestamp,
    /// The request.
    pub request: Request,
    /// How many bytes the body had, where retention has removed it.
    pub removed_body: Option<u64>,
}

impl Event {
    /// How many bytes the body has, or had.
    pub fn body_len(&self) -> u64 {
        self.removed_body.unwrap_or(self.request.body.len() as u64)
    }
}
