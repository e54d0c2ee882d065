//! What came before an agent began, and how much of it is wanted. What is not is known, and given up as
//! discarded. It must not know how anything is delivered.

use std::sync::atomic::{AtomicU64, Ordering};

use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Attempt, DeadReason, Delivery, State};
use whrelay_core::event::Event;
use whrelay_core::time::Timestamp;
use whrelay_proto::frame::Welcome;
use whrelay_store::{Begin, Search, Store, StoreError};

use crate::lines::Line;

/// Events looked at in one step.
const CHUNK: usize = 256;

/// How much is wanted of what came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Only so many, the newest; everything where nothing is said.
    pub newest: Option<u64>,
    /// Only what was received from then on.
    pub since: Option<Timestamp>,
}

/// What an agent passes over of what its forwarder had when it began; nothing before that is known.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    wanted: Backlog,
    forwarder: String,
    /// What was there before: events after the one place, up to the other.
    before: (u64, u64),
    passed_over: AtomicU64,
}

impl Cut {
    /// From the first welcome of a process.
    pub(crate) fn new(wanted: Backlog, welcome: &Welcome) -> Self {
        Self {
            wanted,
            forwarder: welcome.forwarder.clone(),
            before: (welcome.start, welcome.start.saturating_add(welcome.waiting)),
            passed_over: AtomicU64::new(0),
        }
    }

    /// Whether an event of a forwarder's store is passed over.
    pub(crate) fn passes_over(&self, forwarder: &str, seq: u64, event: &Event) -> bool {
        let (_, last) = self.before;
        if seq > last || forwarder != self.forwarder {
            return false;
        }
        let Backlog { newest, since } = self.wanted;
        let behind = newest.is_some_and(|newest| last - seq >= newest);
        behind || since.is_some_and(|since| event.received_at < since)
    }

    /// Counts what was passed over up to a place. Answers with all of it, once everything that was there
    /// before has come.
    pub(crate) fn passed_over(&self, count: u64, reached: u64) -> Option<u64> {
        let (_, last) = self.before;
        self.passed_over.fetch_add(count, Ordering::Relaxed);
        let passed_over = (reached >= last).then(|| self.passed_over.swap(0, Ordering::Relaxed));
        passed_over.filter(|count| *count > 0)
    }

    /// How many of the forwarder's are wanted, as far as that can be told before they come.
    pub(crate) fn expected(&self) -> u64 {
        let (start, last) = self.before;
        (last - start).min(self.wanted.newest.unwrap_or(u64::MAX))
    }

    /// How many of the agent's own are wanted, the newest; those at the forwarder are newer still.
    fn wanted_here(&self) -> u64 {
        let (start, last) = self.before;
        let newest = self.wanted.newest.unwrap_or(u64::MAX);
        newest.saturating_sub(last - start)
    }

    /// Gives up what waits in the agent's own store and is not wanted. Answers how many deliveries.
    pub(crate) async fn pass_over_here(
        &self,
        store: &Store,
        bucket: &Bucket,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        if self.wanted == Backlog::default() {
            return Ok(0);
        }
        let search = Search {
            bucket: bucket.id,
            states: vec![State::Queued, State::Stalled],
            since: None,
            until: None,
        };
        let (mut after, mut seen, mut passed) = (None, 0, 0);
        loop {
            let found = store.search(&search, Begin::Newest, after, CHUNK)?;
            let Some((last, _)) = found.last() else {
                return Ok(passed);
            };
            after = Some(*last);
            let mut given_up = Vec::new();
            for (id, seq) in found {
                seen += 1;
                let old = self
                    .wanted
                    .since
                    .is_some_and(|since| id.minted_at() < since);
                if seen > self.wanted_here() || old {
                    given_up.extend(given_up_at(store, bucket, seq, now)?);
                }
            }
            passed += store.give_up(given_up).await?.len() as u64;
        }
    }
}

/// Tells that something was passed over.
pub(crate) fn told(count: u64, what: &str, whose: &str) -> Line {
    Line::warning(format!(
        "{count} {what} {whose} are passed over; `whrelay events --reason discarded` lists them"
    ))
}

/// What the log will say of what waits of an event. What is damaged is left for the engine to find.
fn given_up_at(
    store: &Store,
    bucket: &Bucket,
    seq: Seq,
    now: Timestamp,
) -> Result<Vec<Attempt>, StoreError> {
    let event = match store.event_at(bucket, seq) {
        Err(StoreError::Damaged(_)) | Ok(None) => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(Some(event)) => event,
    };
    let deliveries = match store.deliveries_of(bucket.id, seq) {
        Err(StoreError::Damaged(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let targets = store.destinations()?;
    let waits = deliveries.into_iter().filter(|d| !d.state.is_finished());
    let attempt = |delivery: Delivery| {
        let target = targets.iter().find(|(id, _)| *id == delivery.destination);
        let target = target.map_or_else(String::new, |(_, target)| target.clone());
        let request = (target, event.request.method.clone());
        let why = "passed over: it came before";
        Attempt::given_up(&delivery, request, now, DeadReason::Discarded, why)
    };
    Ok(waits.map(attempt).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use whrelay_core::event::Request;
    use whrelay_core::id::EventId;

    fn welcome(start: u64, waiting: u64) -> Welcome {
        Welcome {
            version: 1,
            forwarder: "f".into(),
            start,
            waiting,
            clock: 0,
            oldest: None,
        }
    }

    fn event(seconds: i64) -> Event {
        let received_at = Timestamp::from_micros(seconds * 1_000_000);
        Event {
            id: EventId::from_parts(received_at, 1),
            bucket: "shop".parse().expect("a name"),
            received_at,
            request: Request {
                method: "POST".into(),
                tail: String::new(),
                query: None,
                headers: Vec::new(),
                body: Bytes::new(),
            },
            removed_body: None,
        }
    }

    fn kept(wanted: Backlog, seqs: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        let cut = Cut::new(wanted, &welcome(10, 5));
        let keeps = |seq: &u64| !cut.passes_over("f", *seq, &event(*seq as i64));
        seqs.filter(keeps).collect()
    }

    #[test]
    fn what_comes_later_is_never_passed_over() {
        let none = Backlog {
            newest: Some(0),
            since: None,
        };
        assert_eq!(kept(none, 11..=18), [16, 17, 18]);
        let cut = Cut::new(none, &welcome(10, 5));
        assert!(!cut.passes_over("another store", 11, &event(1)));
        assert_eq!(cut.passed_over(0, 15), None, "nothing was");
        assert_eq!(cut.passed_over(2, 14), None, "not all has come");
        assert_eq!(cut.passed_over(1, 15), Some(3));
        assert_eq!(cut.passed_over(0, 16), None, "it is said once");
    }

    #[test]
    fn the_newest_and_those_since_then_are_kept() {
        let newest = |n| Backlog {
            newest: Some(n),
            since: None,
        };
        assert_eq!(kept(newest(2), 11..=16), [14, 15, 16]);
        assert_eq!(kept(newest(9), 11..=16), [11, 12, 13, 14, 15, 16]);
        let since = Backlog {
            newest: None,
            since: Some(Timestamp::from_micros(13_000_000)),
        };
        assert_eq!(kept(since, 11..=16), [13, 14, 15, 16]);
        let here = |n| Cut::new(newest(n), &welcome(10, 5)).wanted_here();
        assert_eq!([here(0), here(5), here(7)], [0, 0, 2]);
    }
}
