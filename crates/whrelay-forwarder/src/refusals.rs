//! What the forwarder has refused: counted, and logged at a bounded rate. It must not log a bucket's key.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{StatusCode, Uri};
use whrelay_core::limits;

use crate::registry::Registry;

/// Why something was refused or cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    SlowHead,
    SlowBody,
    BodyTooLarge,
    HeadTooLarge,
    Unsupported,
    Storage,
    Memory,
    Stopping,
    Other,
    EvictedIdle,
    EvictedHead,
    EvictedBody,
    EvictedTunnel,
    AccessTokenRemoved,
}

impl Reason {
    /// Every reason, and what it is called in the log and in the counts.
    const ALL: [(Self, &'static str); 19] = [
        (Self::BadRequest, "bad_request"),
        (Self::Unauthorized, "unauthorized"),
        (Self::Forbidden, "forbidden"),
        (Self::NotFound, "not_found"),
        (Self::MethodNotAllowed, "method_not_allowed"),
        (Self::SlowHead, "slow_head"),
        (Self::SlowBody, "slow_body"),
        (Self::BodyTooLarge, "body_too_large"),
        (Self::HeadTooLarge, "head_too_large"),
        (Self::Unsupported, "unsupported"),
        (Self::Storage, "storage"),
        (Self::Memory, "memory"),
        (Self::Stopping, "stopping"),
        (Self::Other, "other"),
        (Self::EvictedIdle, "evicted_idle"),
        (Self::EvictedHead, "evicted_head"),
        (Self::EvictedBody, "evicted_body"),
        (Self::EvictedTunnel, "evicted_tunnel"),
        (Self::AccessTokenRemoved, "access_token_removed"),
    ];

    /// What an answer's status says, where nothing more is known.
    pub(crate) fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::BAD_REQUEST | StatusCode::UPGRADE_REQUIRED => Self::BadRequest,
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::SlowBody,
            StatusCode::PAYLOAD_TOO_LARGE => Self::BodyTooLarge,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Self::HeadTooLarge,
            StatusCode::NOT_IMPLEMENTED => Self::Unsupported,
            StatusCode::SERVICE_UNAVAILABLE => Self::Storage,
            _ => Self::Other,
        }
    }

    fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(reason, _)| *reason == self);
        named.map_or("other", |(_, name)| name)
    }

    /// How many are logged at once. A full disk refuses everything, for one reason: once a second says it.
    fn at_once(self) -> u32 {
        if self == Self::Storage {
            1
        } else {
            limits::REFUSALS_AT_ONCE
        }
    }
}

/// One reason's count, and how much of it is logged.
#[derive(Debug, Default)]
struct Count {
    all: u64,
    /// Lines that may be logged now; `None` before the first.
    lines: Option<(u32, Instant)>,
    unlogged: u64,
}

impl Count {
    /// Counts one. Says how many before it were not logged, where this one may be.
    fn note(&mut self, at_once: u32, now: Instant) -> Option<u64> {
        self.all += 1;
        let (left, since) = self.lines.unwrap_or((at_once, now));
        let every = limits::REFUSALS_EVERY.as_millis();
        let earned = now.saturating_duration_since(since).as_millis() / every;
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        let left = left.saturating_add(earned).min(at_once);
        let since = match left == at_once {
            true => now,
            false => since + limits::REFUSALS_EVERY * earned,
        };
        self.lines = Some((left.saturating_sub(1), since));
        if left == 0 {
            self.unlogged += 1;
            return None;
        }
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// A refusal, as it is logged.
#[derive(Debug)]
pub(crate) struct Refusal<'a> {
    pub(crate) reason: Reason,
    pub(crate) peer: IpAddr,
    pub(crate) status: Option<u16>,
    /// Where the request went, as far as it may be shown.
    pub(crate) path: Option<Shown>,
    pub(crate) why: &'a str,
}

/// What was refused since the start.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    counts: Mutex<[Count; Reason::ALL.len()]>,
}

impl Refusals {
    /// Counts a refusal, and logs it unless too many were.
    pub(crate) fn note(&self, refusal: &Refusal<'_>) {
        let reason = refusal.reason;
        let Some(unlogged) = self.count(reason, Instant::now()) else {
            return;
        };
        let Refusal {
            peer, status, why, ..
        } = refusal;
        let shown = refusal.path.as_ref();
        let what = match (reason, status) {
            (Reason::AccessTokenRemoved, _) => "an access token was removed from a webhook",
            (_, Some(_)) => "a request was refused",
            (_, None) => "a connection was closed",
        };
        let more = match unlogged {
            0 => String::new(),
            more => format!("; {more} more were not logged"),
        };
        tracing::warn!(
            reason = reason.name(),
            %peer,
            status,
            bucket = shown.and_then(|shown| shown.bucket.as_deref()),
            path = shown.map(|shown| shown.path.as_str()),
            why = %why.escape_debug(),
            "{what}{more}"
        );
    }

    fn count(&self, reason: Reason, now: Instant) -> Option<u64> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get_mut(reason as usize)?;
        count.note(reason.at_once(), now)
    }

    /// How often each reason was counted since the start, in a fixed order.
    pub(crate) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.iter().map(|count| count.all);
        Reason::ALL
            .iter()
            .map(|(_, name)| *name)
            .zip(counts)
            .collect()
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = self.snapshot().into_iter().filter(|(_, count)| *count > 0);
        let counted: Vec<_> = counted
            .map(|(name, count)| format!("{name}: {count}"))
            .collect();
        f.write_str(&counted.join(", "))
    }
}

/// A path without the secret in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    bucket: Option<String>,
    path: String,
}

impl Shown {
    /// A request's path: of a bucket its name and the tail, of an unknown key its first characters.
    pub(crate) fn new(registry: &Registry, uri: &Uri) -> Self {
        // A proxy before the forwarder may leave its own prefix there.
        let Some((prefix, rest)) = uri.path().split_once("/in/") else {
            return Self {
                bucket: None,
                path: printable(uri.path()),
            };
        };
        let (key, tail) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let bucket = registry.by_key(key).map(|bucket| bucket.name.to_string());
        let key = match &bucket {
            Some(name) => format!("{{{name}}}"),
            None => match key.char_indices().nth(limits::LOGGED_KEY) {
                Some((end, _)) => format!("{}…", &key[..end]),
                None => key.to_owned(),
            },
        };
        Self {
            path: printable(&format!("{prefix}/in/{key}{tail}")),
            bucket,
        }
    }
}

fn printable(path: &str) -> String {
    path.chars()
        .take(limits::LOGGED_PATH)
        .flat_map(char::escape_debug)
        .collect()
}

/// Lets one through in each such time.
#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    last: Mutex<Option<Instant>>,
}

impl Seldom {
    pub(crate) fn new(every: Duration) -> Self {
        Self {
            every,
            last: Mutex::default(),
        }
    }

    pub(crate) fn now(&self) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= self.every);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place() {
        for (place, (reason, name)) in Reason::ALL.into_iter().enumerate() {
            assert_eq!((reason as usize, reason.name()), (place, name));
        }
    }

    #[test]
    fn a_flood_of_refusals_logs_a_few_lines_and_says_how_many_are_missing() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let logged = |reason, after: Duration| {
            let all = (0..1000).filter_map(|_| refusals.count(reason, now + after));
            all.collect::<Vec<_>>()
        };
        let second = limits::REFUSALS_EVERY;
        assert_eq!(logged(Reason::NotFound, Duration::ZERO), [0; 5]);
        assert_eq!(logged(Reason::NotFound, second), [995]);
        assert_eq!(logged(Reason::NotFound, 3 * second), [999, 0]);
        assert_eq!(logged(Reason::Storage, Duration::ZERO), [0]);
        assert_eq!(logged(Reason::Storage, second / 2), [0; 0]);
        assert_eq!(logged(Reason::Storage, second), [1999]);
        let counted = refusals.snapshot();
        assert!(counted.contains(&("not_found", 3000)) && counted.contains(&("storage", 3000)));
        assert_eq!(refusals.to_string(), "not_found: 3000, storage: 3000");
    }
}
