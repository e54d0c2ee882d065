//! Events in a file: as an HTTP Archive, or as JSON Lines. It must not choose them.

use serde::Serialize;
use serde_json::{Value, json};
use whrelay_agent::lines::{AttemptLine, ContentLine, EventLine};
use whrelay_core::octets;
use whrelay_core::target::Target;

/// An event, and all that is known of it.
pub(super) struct Whole {
    pub(super) event: EventLine,
    pub(super) content: ContentLine,
    pub(super) body: Vec<u8>,
    pub(super) attempts: Vec<AttemptLine>,
}

#[derive(Serialize)]
struct Exported<'a> {
    #[serde(flatten)]
    event: &'a EventLine,
    headers: Vec<Value>,
    body_base64: String,
    log: &'a [AttemptLine],
}

/// One JSON line.
pub(super) fn json_line(whole: &Whole) -> serde_json::Result<String> {
    serde_json::to_string(&Exported {
        event: &whole.event,
        headers: whole.content.fields().map(field).collect(),
        body_base64: super::base64(&whole.body),
        log: &whole.attempts,
    })
}

/// A header field; a value that is no UTF-8 is given in base64.
fn field((name, value): (&str, &[u8])) -> Value {
    match std::str::from_utf8(value) {
        Ok(value) => json!({"name": name, "value": value}),
        Err(_) => json!({"name": name, "value_base64": super::base64(value)}),
    }
}

/// What stands before the entries of an HTTP Archive (version 1.2), and behind them.
pub(super) fn har_frame() -> (String, &'static str) {
    let creator = json!({"name": "whrelay", "version": env!("CARGO_PKG_VERSION")});
    let begin = format!(r#"{{"log":{{"version":"1.2","creator":{creator},"entries":["#);
    (begin, "]}}")
}

/// The entries of an event: one for each attempt, and one without an answer where there was none. The first has the body,
/// which is the same for all.
pub(super) fn har_entries(whole: &Whole) -> Vec<Value> {
    if whole.attempts.is_empty() {
        let url = whole.event.deliveries.first().and_then(|first| {
            let target: Target = first.target.parse().ok()?;
            let (tail, query) = match whole.event.path.split_once('?') {
                Some((tail, query)) => (tail, Some(query)),
                None => (whole.event.path.as_str(), None),
            };
            target.url_for(tail, query).ok()
        });
        let url = url.unwrap_or_else(|| whole.event.path.clone());
        return vec![entry(whole, &url, None, true)];
    }
    let attempts = whole.attempts.iter().enumerate();
    attempts
        .map(|(n, attempt)| entry(whole, &attempt.url, Some(attempt), n == 0))
        .collect()
}

/// A URL for others to read: bytes that are not UTF-8 are percent-encoded.
fn as_url(written: &str) -> String {
    let mut url = String::with_capacity(written.len());
    for character in written.chars() {
        match octets::of_char(character) {
            Some(byte) => url += &format!("%{byte:02X}"),
            None => url.push(character),
        }
    }
    url
}

fn entry(whole: &Whole, url: &str, attempt: Option<&AttemptLine>, has_body: bool) -> Value {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = octets::of_text(query);
    let pairs = url::form_urlencoded::parse(&query);
    let pairs: Vec<_> = pairs
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    let headers: Vec<_> = whole.content.fields().map(header).collect();
    let kind = whole.content.fields();
    let kind = kind
        .into_iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let kind = kind.map_or_else(String::new, |(_, value)| {
        String::from_utf8_lossy(value).into_owned()
    });
    let mut request = json!({
        "method": whole.event.method,
        "url": as_url(url),
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": headers,
        "queryString": pairs,
        "headersSize": -1,
        "bodySize": whole.event.bytes,
    });
    if !whole.body.is_empty() && !has_body {
        let why = "the body is in the first entry of this event";
        request["postData"] = json!({"mimeType": kind, "text": "", "comment": why});
    } else if !whole.body.is_empty() {
        request["postData"] = match std::str::from_utf8(&whole.body) {
            Ok(text) => json!({"mimeType": kind, "text": text}),
            Err(_) => {
                let text = super::base64(&whole.body);
                json!({"mimeType": kind, "text": text, "encoding": "base64"})
            }
        };
    }
    let time = attempt.map_or(0.0, |attempt| attempt.duration_ms);
    let answer = attempt.and_then(|attempt| attempt.answer.as_deref());
    let answer = answer.unwrap_or_default();
    let fields = attempt.map_or(&[][..], |attempt| &attempt.answer_headers);
    let value = |name: &str| {
        let mut same = fields
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name));
        same.next().map_or("", |(_, value)| value)
    };
    let answered = |(name, value): &(String, String)| json!({"name": name, "value": value});
    json!({
        "startedDateTime": attempt.map_or(&whole.event.received_at, |attempt| &attempt.at),
        "time": time,
        "request": request,
        "response": {
            "status": attempt.and_then(|attempt| attempt.status).unwrap_or(0),
            "statusText": "",
            "httpVersion": "HTTP/1.1",
            "cookies": [],
            "headers": fields.iter().map(answered).collect::<Vec<_>>(),
            "content": {"size": answer.len(), "mimeType": value("content-type"), "text": answer},
            "redirectURL": value("location"),
            "headersSize": -1,
            "bodySize": -1,
            "_error": attempt.and_then(|attempt| attempt.error.as_ref()),
        },
        "cache": {},
        "timings": {"send": 0, "wait": time, "receive": 0},
        "_event": whole.event.event,
        "_attempt": attempt.map(|attempt| attempt.attempt),
    })
}

fn header((name, value): (&str, &[u8])) -> Value {
    json!({"name": name, "value": String::from_utf8_lossy(value)})
}
