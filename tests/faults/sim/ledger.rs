//! Who knows better: what was promised to whom, and what really happened, kept outside every node.
//! It judges each step by the invariants (`docs/guarantees.md`); it must not look into a node's
//! memory, only at its disk and at what left it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Attempt, DeadReason, Delivery, DestinationId};
use whrelay_core::event::{Event, Request};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::limits;
use whrelay_core::outcome::{Outcome, RetryOn};
use whrelay_core::pace::Rate;
use whrelay_core::retry::{Pause, Phase, RetryPolicy, Schedule, Verdict};
use whrelay_core::time::{Moment, Timestamp};
use whrelay_store::Release;

use super::catching_up::Begun;
use super::node::{AgentNode, Time};
use super::vault::Vault;

/// An invariant that does not hold, and how that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
}

pub(crate) type Verdicts = Result<(), Violation>;

/// Says what is wrong unless it holds.
pub(crate) fn hold(
    holds: bool,
    invariant: &'static str,
    what: impl FnOnce() -> String,
) -> Verdicts {
    if holds {
        return Ok(());
    }
    Err(Violation {
        invariant,
        what: what(),
    })
}

/// What was accepted with a 2xx.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) bucket: usize,
    request: Request,
}

/// What is known of one delivery from outside.
#[derive(Clone, Debug)]
pub(crate) struct Track {
    last_number: u32,
    /// The last attempt was cut off by a crash, so its number may come again.
    cut: bool,
    running: bool,
    /// Requests that reached the endpoint, and those it answered 2xx.
    hits: u32,
    answered: u32,
    /// Attempts recorded, and attempts that a crash cut off.
    recorded: u32,
    cuts: u32,
    sent: bool,
    handed_over: bool,
    /// Not to be tried before this, unless that is cut short: then it is the target that asked for it.
    not_before: Timestamp,
    asked: bool,
    /// Whose it is.
    pub(crate) place: Option<(usize, DestinationId)>,
}

impl Track {
    /// Nothing is known of it but whose it is.
    pub(crate) fn begin_anew(&mut self) {
        *self = Self {
            place: self.place,
            ..Self::default()
        };
    }
}

const WHENEVER: Timestamp = Timestamp::from_micros(i64::MIN);

impl Default for Track {
    fn default() -> Self {
        Self {
            last_number: 0,
            cut: false,
            running: false,
            hits: 0,
            answered: 0,
            recorded: 0,
            cuts: 0,
            sent: false,
            handed_over: false,
            not_before: WHENEVER,
            asked: false,
            place: None,
        }
    }
}

/// I10: from any start until now there are no more than the rate allows, and one burst.
fn keeps_rate(starts: &[Time], rate: Rate) -> Verdicts {
    let now = starts.last().copied().unwrap_or_default();
    let interval = rate.interval().as_micros() as Time;
    let broken = starts
        .iter()
        .zip((1..=starts.len()).rev())
        .find(|(at, count)| {
            let allowed = (now - **at) / interval + Time::from(rate.burst());
            *count as Time > allowed
        });
    hold(broken.is_none(), "I10", || {
        let (at, count) = broken.unwrap_or((&now, 0));
        format!("{count} attempts start within {} us at {rate}", now - at)
    })
}

/// An attempt about to start.
pub(crate) struct Start<'a> {
    pub(crate) agent: usize,
    pub(crate) delivery: &'a Delivery,
    pub(crate) number: u32,
    pub(crate) now: Moment,
    /// Attempts at the destination, this one included.
    pub(crate) running: usize,
    pub(crate) max_in_flight: usize,
    /// The world's own time.
    pub(crate) time: Time,
    pub(crate) rate: Option<Rate>,
}

/// An attempt, what it was made on and when it was judged: it is on disk.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) before: Delivery,
    pub(crate) attempt: Attempt,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) now: Moment,
}

/// The truth.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) accepted: BTreeMap<EventId, Accepted>,
    pub(crate) tracks: HashMap<DeliveryId, Track>,
    /// The one delivery that an event begins at each target of each agent.
    pub(crate) first: HashMap<(usize, EventId, DestinationId), DeliveryId>,
    /// What retention may have removed from an agent: it had ended.
    pub(crate) gone: HashSet<(usize, EventId)>,
    /// What it may have removed from the forwarder: everyone had it.
    pub(crate) dropped: HashSet<EventId>,
    /// What an agent lost with its directory, or the forwarder with its own: it is owed only as long as the
    /// forwarder has it.
    pub(crate) forgotten: HashSet<(usize, EventId)>,
    /// When attempts of the running process started, for each agent and target.
    starts: HashMap<(usize, DestinationId), Vec<Time>>,
    /// Targets that were offline when the running process of an agent began, and that it has not probed.
    doubtful: HashSet<(usize, DestinationId)>,
    /// How the running process of an agent began.
    pub(crate) begun: HashMap<usize, Begun>,
}

impl Ledger {
    /// I1: what a 2xx is given for is on the forwarder's disk, whole.
    pub(crate) fn accept<V: Vault>(
        &mut self,
        vault: &V,
        buckets: &[Bucket],
        bucket: usize,
        event: &Event,
    ) -> Verdicts {
        let place = vault.find(event.id);
        let stored = place.and_then(|(_, seq)| vault.event_at(&buckets[bucket], seq));
        // Everyone may have it, and retention removed it, before its sender hears.
        let there = stored.as_ref() == Some(event) || self.dropped.contains(&event.id);
        hold(there, "I1", || {
            format!("{} was answered 2xx and is not on disk", event.id)
        })?;
        self.believe(bucket, event);
        Ok(())
    }

    /// A sender has heard a 2xx.
    pub(crate) fn believe(&mut self, bucket: usize, event: &Event) {
        let accepted = Accepted {
            bucket,
            request: event.request.clone(),
        };
        self.accepted.insert(event.id, accepted);
    }

    /// I2: what an agent acknowledges is on its disk. `sent` are the events up to the ack.
    pub(crate) fn acked<V: Vault>(&self, n: usize, vault: &V, sent: &[EventId]) -> Verdicts {
        let is_lost = |id: &&EventId| vault.find(**id).is_none() && !self.gone.contains(&(n, **id));
        let lost = sent.iter().find(is_lost);
        hold(lost.is_none(), "I2", || {
            format!(
                "{} was acknowledged and is not on disk",
                lost.map_or_else(String::new, EventId::to_string)
            )
        })
    }

    /// I5 to I8 and I10, as an attempt starts.
    pub(crate) fn start(&mut self, start: &Start<'_>) -> Verdicts {
        let Start {
            agent,
            delivery,
            number,
            now,
            running,
            max_in_flight,
            time,
            rate,
        } = *start;
        let id = delivery.id;
        if !delivery.replay {
            let place = (agent, delivery.event, delivery.destination);
            let first = *self.first.entry(place).or_insert(id);
            hold(first == id, "I3", || {
                format!("{first} and {id} are the same event to one target")
            })?;
        }
        let track = self.tracks.entry(id).or_default();
        hold(!track.running, "I15", || {
            format!("{id} is tried twice at once")
        })?;
        hold(!track.sent, "I6", || {
            format!("{id} is tried after it was sent")
        })?;
        let grows = number > track.last_number || (track.cut && number == track.last_number);
        hold(grows, "I5", || {
            format!("attempt {number} of {id} after {}", track.last_number)
        })?;
        let due = delivery.next_attempt_at.is_some_and(|at| at <= now.now);
        hold(due && track.not_before <= now.now, "I7", || {
            format!("{id} is tried at {} before its time", now.now)
        })?;
        let place = (agent, delivery.destination);
        hold(!self.doubtful.contains(&place), "I21", || {
            format!("{id} is tried where nobody has looked whether the endpoint is back")
        })?;
        hold(now.certain <= delivery.deadline_at, "I8", || {
            format!("{id} is tried at {} after its deadline", now.certain)
        })?;
        hold(running <= max_in_flight, "I10", || {
            format!("{running} attempts at once, {max_in_flight} allowed")
        })?;
        if let Some(rate) = rate {
            let starts = self
                .starts
                .entry((agent, delivery.destination))
                .or_default();
            starts.push(time);
            keeps_rate(starts, rate)?;
        }
        (track.last_number, track.running, track.cut) = (number, true, false);
        (track.not_before, track.place) = (WHENEVER, Some(place));
        Ok(())
    }

    /// A process begins; what waits says whether the target was offline.
    pub(crate) fn doubt(&mut self, agent: usize, destination: DestinationId, offline: bool) {
        self.doubtful.remove(&(agent, destination));
        if offline {
            self.doubtful.insert((agent, destination));
        }
    }

    /// A target has accepted a probe.
    pub(crate) fn probed(&mut self, agent: usize, destination: DestinationId) {
        self.doubtful.remove(&(agent, destination));
    }

    /// A new process begins its pace anew.
    pub(crate) fn forget_pace(&mut self, agent: usize, destination: DestinationId) {
        self.starts.remove(&(agent, destination));
    }

    /// A crash cut the attempt off.
    pub(crate) fn cut(&mut self, delivery: DeliveryId) {
        let track = self.tracks.entry(delivery).or_default();
        if std::mem::take(&mut track.running) {
            track.cut = true;
            track.cuts += 1;
        }
    }

    /// I11, I12 and I14, as a request reaches an endpoint of `bucket`.
    pub(crate) fn hit(
        &mut self,
        delivery: &Delivery,
        bucket: usize,
        request: &Request,
        answered: bool,
    ) -> Verdicts {
        // One that is not known here was stored, and its sender never heard of it.
        if let Some(accepted) = self.accepted.get(&delivery.event) {
            hold(accepted.bucket == bucket, "I12", || {
                format!("{} reached another tenant", delivery.event)
            })?;
            hold(accepted.request == *request, "I11", || {
                format!("{} reached its target changed", delivery.event)
            })?;
        }
        let track = self.tracks.entry(delivery.id).or_default();
        track.hits += 1;
        track.answered += u32::from(answered);
        hold(track.hits <= track.recorded + track.cuts + 1, "I14", || {
            format!("{} hits of {} without a reason", track.hits, delivery.id)
        })
    }

    /// I9 and I16, and that a delivery ends for a reason, as an attempt's record is on disk.
    pub(crate) fn recorded(&mut self, policy: &RetryPolicy, recorded: &Recorded) -> Verdicts {
        let Recorded {
            before,
            attempt,
            outcome,
            now,
        } = recorded;
        let (id, outcome, now) = (before.id, outcome.as_ref(), *now);
        let track = self.tracks.entry(id).or_default();
        track.running = false;
        track.recorded += u32::from(outcome.is_some());
        match attempt.verdict {
            Verdict::Sent => {
                track.sent = true;
                hold(track.answered > 0, "C2", || {
                    format!("{id} counts as sent, and no target has said so")
                })
            }
            Verdict::Dead(reason) => ended(policy, before, outcome, reason, now),
            Verdict::RetryAt { at, phase, .. } => {
                handed_over(track, policy, before, attempt, phase)?;
                spaced(policy, before, attempt, outcome, now, at)
            }
        }
    }

    /// An attempt and what follows from it are on disk.
    pub(crate) fn waits(&mut self, attempt: &Attempt) {
        if let Verdict::RetryAt { at, pause, .. } = attempt.verdict {
            let track = self.tracks.entry(attempt.delivery).or_default();
            (track.not_before, track.asked) = (at, pause == Pause::Asked);
        }
    }

    /// The return of an endpoint cuts its backoffs short; anything else only what nothing can have asked for.
    pub(crate) fn released(
        &mut self,
        place: (usize, DestinationId),
        now: Timestamp,
        release: Release,
    ) {
        for track in self.tracks.values_mut() {
            let is_behind = |longest| track.not_before > now.after(longest);
            let free = match release {
                _ if track.asked => is_behind(limits::MAX_RETRY_AFTER),
                Release::Back => track.place == Some(place),
                Release::Begin { longest } => is_behind(longest),
            };
            if free {
                track.not_before = WHENEVER;
            }
        }
    }

    /// C4: in a line nothing starts before what is ahead of it has ended.
    pub(crate) fn in_line<V: Vault>(vault: &V, delivery: &Delivery) -> Verdicts {
        let key = delivery.key;
        let ahead = (1..=key.seq.0)
            .flat_map(|seq| vault.deliveries_of(key.bucket, Seq(seq)))
            .find(|other| {
                other.destination == delivery.destination
                    && other.key < key
                    && !other.replay
                    && !other.state.is_finished()
            });
        hold(ahead.is_none() || delivery.replay, "C4", || {
            format!(
                "{} is tried, and {ahead:?} is before it in line",
                delivery.id
            )
        })
    }

    /// A person may want a delivery to begin later.
    pub(crate) fn held(&mut self, delivery: &Delivery) {
        let later = |at: &Timestamp| *at > delivery.created_at;
        if let Some(at) = delivery.next_attempt_at.filter(later) {
            let track = self.tracks.entry(delivery.id).or_default();
            (track.not_before, track.asked) = (at, true);
        }
    }

    /// I4: what was accepted for a bucket is on the disk of one of the agents that share a subscription, and has
    /// ended wherever it is. Answers the first event of which that is not so.
    pub(crate) fn settled<V: Vault>(
        &self,
        group: &[(usize, &AgentNode<V>)],
        tenant: usize,
        forwarder: &V,
    ) -> Result<Option<EventId>, Violation> {
        for (event, _) in self.accepted.iter().filter(|(_, a)| a.bucket == tenant) {
            let mut found = false;
            for (n, node) in group {
                let Some((_, seq)) = node.vault.find(*event) else {
                    let forgotten = self.forgotten.contains(&(*n, *event));
                    found |= self.gone.contains(&(*n, *event));
                    found |= forgotten && !can_send(forwarder, *event);
                    continue;
                };
                found = true;
                let deliveries = node.vault.deliveries_of(node.bucket.id, seq);
                let waits = deliveries.iter().any(|d| !d.state.is_finished());
                hold(!deliveries.is_empty(), "I4", || {
                    format!("{event} is stored and will never be delivered")
                })?;
                if waits {
                    return Ok(Some(*event));
                }
            }
            if !found {
                return Ok(Some(*event));
            }
        }
        Ok(None)
    }
}

/// Whether a forwarder can send an event: it has it, with its body.
fn can_send<V: Vault>(forwarder: &V, event: EventId) -> bool {
    let place = forwarder.find(event);
    place.is_some_and(|(bucket, seq)| seq > forwarder.bare_upto(bucket))
}

/// A delivery ends only for a reason that is one.
fn ended(
    policy: &RetryPolicy,
    before: &Delivery,
    outcome: Option<&Outcome>,
    reason: DeadReason,
    now: Moment,
) -> Verdicts {
    let holds = match reason {
        DeadReason::Rejected => match (outcome, policy.retry_on) {
            (Some(Outcome::Answered { status: 410, .. }), _) => true,
            (Some(Outcome::Answered { status, .. }), RetryOn::Transient) => {
                matches!(status, 300..=407 | 409..=424 | 426..=428 | 430..=499)
            }
            _ => false,
        },
        DeadReason::Deadline => now.certain >= before.deadline_at,
        DeadReason::Attempts => {
            let number = before.attempts + 1;
            let listed = match &policy.schedule {
                Schedule::Listed(pauses) => number as usize > pauses.len(),
                Schedule::Seconds | Schedule::Medium | Schedule::Long => false,
            };
            listed || (policy.max_attempts > 0 && number >= policy.max_attempts)
        }
        DeadReason::Discarded | DeadReason::Damaged | DeadReason::Unclaimed => false,
    };
    hold(holds, "C2", || {
        format!(
            "{} is dead ({}) after {outcome:?}",
            before.id,
            reason.as_str()
        )
    })
}

/// I16: the handoff happens once, and not before its time.
fn handed_over(
    track: &mut Track,
    policy: &RetryPolicy,
    before: &Delivery,
    attempt: &Attempt,
    phase: Phase,
) -> Verdicts {
    let holds = match (before.phase, phase) {
        (Phase::Fast, Phase::Fast) => !track.handed_over,
        (Phase::Fast, Phase::Durable { since }) => {
            let first = before.first_failed_at.unwrap_or(attempt.at);
            let failed_for = attempt.at.after(attempt.duration).since(first);
            let first_time = !std::mem::replace(&mut track.handed_over, true);
            // The verdict reads the clock a moment after the attempt's end.
            let time = failed_for + limits::JUMP >= policy.handoff_after;
            first_time && since == attempt.number && time
        }
        (was @ Phase::Durable { .. }, is) => was == is,
    };
    hold(holds, "I16", || {
        format!("{} went from {:?} to {phase:?}", before.id, before.phase)
    })
}

/// I9: the pause is the schedule's, lengthened by at most 30 %, or what the target asked for, or
/// what was left until the deadline.
fn spaced(
    policy: &RetryPolicy,
    before: &Delivery,
    attempt: &Attempt,
    outcome: Option<&Outcome>,
    now: Moment,
    at: Timestamp,
) -> Verdicts {
    let scheduled = scheduled_pause(policy, attempt);
    let asked = match outcome {
        Some(Outcome::Answered {
            retry_after: Some(asked),
            ..
        }) => asked.wait(now.now),
        Some(_) | None => Duration::ZERO,
    };
    let pause = at.since(now.now);
    let left = before.deadline_at.since(now.certain);
    let least = scheduled.max(asked).min(left);
    let most = (scheduled + scheduled * 3 / 10).max(asked);
    hold(pause >= least && pause <= most, "I9", || {
        format!(
            "{} waits {pause:?} after attempt {}: {least:?} to {most:?} are allowed",
            before.id, attempt.number
        )
    })
}

/// The contract's table, written a second time.
fn scheduled_pause(policy: &RetryPolicy, attempt: &Attempt) -> Duration {
    let doubled = |base: u64, cap: u64, times: u32| {
        let seconds = base.saturating_mul(1u64.checked_shl(times.min(40)).unwrap_or(u64::MAX));
        Duration::from_secs(seconds.min(cap))
    };
    let cap = match &policy.schedule {
        Schedule::Listed(pauses) => return pauses[attempt.number as usize - 1],
        Schedule::Seconds => 60,
        Schedule::Medium => 3600,
        Schedule::Long => 6 * 3600,
    };
    match attempt.next_phase() {
        Phase::Fast => doubled(1, 30, attempt.number - 1),
        Phase::Durable { since } => doubled(30, cap, attempt.number - since),
    }
}
