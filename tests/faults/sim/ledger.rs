//! Who knows better: what was promised to whom, and what really happened, kept outside every node.
//! It judges each step by the invariants (`docs/guarantees.md`); it must not look into a node's
//! memory, only at its disk and at what left it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use whrelay_core::bucket::Bucket;
use whrelay_core::delivery::{Attempt, Delivery, DestinationId};
use whrelay_core::event::{Event, Request};
use whrelay_core::id::{DeliveryId, EventId};
use whrelay_core::outcome::Outcome;
use whrelay_core::pace::Rate;
use whrelay_core::retry::{Pause, RetryPolicy, Verdict};
use whrelay_core::time::{Moment, Timestamp};
use whrelay_engine::{Probing, Settings};
use whrelay_store::NewDelivery;

use super::catching_up::Begun;
use super::node::{AgentNode, Time};
use super::vault::Vault;
use super::verdicts::{ended, handed_over, spaced};

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
#[derive(Clone, Debug, Default)]
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
    /// Attempts that are known to be on disk.
    numbers: HashSet<u32>,
    /// Until when it waits, where it does.
    wait: Option<Wait>,
    /// Whose it is.
    pub(crate) place: Option<(usize, DestinationId)>,
}

/// Until when a delivery waits.
#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Timestamp,
    until: Timestamp,
    /// Its target, or a person, asked for it: no return of an endpoint ends it.
    asked: bool,
}

impl Wait {
    /// Whether it is over, where the endpoint was last seen to return at `back`.
    fn is_over(self, back: Option<Timestamp>, now: Timestamp) -> bool {
        let is_recalled = !self.asked && back.is_some_and(|back| back > self.since);
        is_recalled || self.until <= now
    }
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
    /// The world's own time.
    pub(crate) time: Time,
    /// The destination's, as its engine was told them.
    pub(crate) settings: &'a Settings,
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
    /// When the last attempt at a target started, or a delivery there ended.
    last: HashMap<(usize, DestinationId), Time>,
    /// Targets that were offline when the running process of an agent began, and that it has not probed.
    doubtful: HashSet<(usize, DestinationId)>,
    /// When targets answered, or took a connection, as the running processes of agents heard it.
    alive: HashSet<(usize, DestinationId, Timestamp)>,
    /// When targets were last seen to return.
    back: HashMap<(usize, DestinationId), Timestamp>,
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
            time,
            settings,
        } = *start;
        let Settings {
            max_in_flight,
            rate,
            probing,
            ..
        } = *settings;
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
        let is_over = track.sent || delivery.state.is_finished();
        hold(!is_over, "I6", || {
            format!("{id} is tried after it has ended")
        })?;
        let grows = number > track.last_number || (track.cut && number == track.last_number);
        hold(grows, "I5", || {
            format!("attempt {number} of {id} after {}", track.last_number)
        })?;
        let place = (agent, delivery.destination);
        let back = self.back.get(&place).copied();
        let wait = track.wait.take();
        hold(
            wait.is_none_or(|wait| wait.is_over(back, now.now)),
            "I7",
            || {
                format!(
                    "{id} is tried at {} before its time: {wait:?}, {back:?}",
                    now.now
                )
            },
        )?;
        // An endpoint of somebody else's is tried instead of probed.
        let is_probed = probing != Probing::Public;
        hold(!is_probed || !self.doubtful.contains(&place), "I21", || {
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
        track.place = Some(place);
        self.last.insert(place, time);
        Ok(())
    }

    /// Something was done for a target.
    pub(crate) fn moves(&mut self, place: (usize, DestinationId), time: Time) {
        self.last.insert(place, time);
    }

    /// When something was last done for a target.
    pub(crate) fn moved_at(&self, place: (usize, DestinationId)) -> Option<Time> {
        self.last.get(&place).copied()
    }

    /// A process begins at `began`. Its store says whether a target was away, and when it returned.
    /// A failure in the future was written by a wrong clock: its wait begins now.
    pub(crate) fn begin(
        &mut self,
        place: (usize, DestinationId),
        began: Timestamp,
        (offline, back): (bool, Option<Timestamp>),
    ) {
        self.starts.remove(&place);
        self.doubtful.remove(&place);
        self.doubtful.extend(offline.then_some(place));
        self.back.remove(&place);
        self.back
            .extend(back.filter(|back| *back <= began).map(|back| (place, back)));
        let tracks = self.tracks.values_mut();
        for track in tracks.filter(|track| track.place == Some(place)) {
            if let Some(wait) = &mut track.wait
                && wait.since > began
                && !wait.asked
            {
                let delay = wait.until.since(wait.since);
                (wait.since, wait.until) = (began, began.after(delay));
            }
        }
    }

    /// A target has answered, or taken a connection.
    pub(crate) fn lives(&mut self, place: (usize, DestinationId), heard_at: Timestamp) {
        self.doubtful.remove(&place);
        self.alive.insert((place.0, place.1, heard_at));
    }

    /// C2: a target counts as returned only where it has shown that.
    pub(crate) fn endpoint(
        &mut self,
        place: (usize, DestinationId),
        back: Option<Timestamp>,
    ) -> Verdicts {
        let known = self.back.get(&place).copied();
        let is_new = back.filter(|back| known.is_none_or(|known| *back > known));
        let shows = |at| self.alive.contains(&(place.0, place.1, at));
        hold(is_new.is_none_or(shows), "C2", || {
            format!("destination {place:?} counts as returned, and nothing has shown that")
        })?;
        self.back.extend(is_new.map(|back| (place, back)));
        Ok(())
    }

    /// Whether an attempt that starts now had to wait for the rate.
    pub(crate) fn is_paced(
        &self,
        place: (usize, DestinationId),
        rate: Option<Rate>,
        time: Time,
    ) -> bool {
        let last = self.starts.get(&place).and_then(|starts| starts.last());
        let (Some(last), Some(rate)) = (last, rate) else {
            return false;
        };
        let interval = rate.interval().as_micros() as Time;
        time - last <= interval + interval / 4
    }

    /// A rate begins anew.
    pub(crate) fn forget_pace(&mut self, place: (usize, DestinationId)) {
        self.starts.remove(&place);
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
        if outcome.is_some() && !track.numbers.insert(attempt.number) {
            return Ok(());
        }
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
                handed_over(&mut track.handed_over, policy, before, attempt, phase)?;
                spaced(policy, before, attempt, outcome, now, at)
            }
        }
    }

    /// An attempt and what follows from it are on disk.
    pub(crate) fn waits(&mut self, attempt: &Attempt) {
        if let Verdict::RetryAt { at, pause, .. } = attempt.verdict {
            let track = self.tracks.entry(attempt.delivery).or_default();
            track.wait = Some(Wait {
                since: attempt.at.after(attempt.duration),
                until: at,
                asked: pause == Pause::Asked,
            });
        }
    }

    /// A delivery is tried later, since its event could not be read.
    pub(crate) fn postponed(
        &mut self,
        agent: usize,
        delivery: &Delivery,
        (now, delay): (Timestamp, Duration),
    ) {
        let track = self.tracks.entry(delivery.id).or_default();
        track.place = Some((agent, delivery.destination));
        track.wait = Some(Wait {
            since: now,
            until: now.after(delay),
            asked: false,
        });
    }

    /// A person wants a delivery tried now.
    pub(crate) fn hurried(&mut self, delivery: DeliveryId) {
        self.tracks.entry(delivery).or_default().wait = None;
    }

    /// A person may want a delivery to begin later.
    pub(crate) fn held(&mut self, new: &NewDelivery) {
        let (since, until) = (new.created_at, new.due_at);
        let track = self.tracks.entry(new.id).or_default();
        let asked = true;
        track.wait = (until > since).then_some(Wait {
            since,
            until,
            asked,
        });
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
