//! What goes wrong, and how often: each seed draws its own mix, some none at all.

use whrelay_core::delivery::{Asked, Attempt, DeadReason};
use whrelay_core::id::DeliveryId;
use whrelay_core::outcome::{Outcome, RetryAfter};
use whrelay_engine::ProbeResult;
use whrelay_store::{Again, NewDelivery};

use super::agent::TIMEOUT;
use super::ledger::Verdicts;
use super::node::{Purpose, Stage, Time};
use super::planted::Bug;
use super::seen::Point;
use super::vault::{Vault, Write};
use super::world::World;
use crate::chance::Chance;

const SECOND: i64 = 1_000_000;
/// Longest silence that an end of a cut link bears.
const SILENCE: u64 = 25_000_000;

/// How an endpoint behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Fine,
    /// Answers this, and maybe when to come again.
    Answers(u16, Option<u64>),
    Refuses,
    Hangs,
    /// Takes the request and cuts the connection.
    Cuts,
    /// Takes connections and closes them at once, as a proxy does whose server is away.
    Closes,
}

/// An endpoint: `bad` in a thousand requests meet its mood, the others are answered 200.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Endpoint {
    mood: Mood,
    bad: u32,
}

impl Endpoint {
    /// What a probe shows.
    pub(crate) fn shows(self) -> ProbeResult {
        match self.mood {
            Mood::Refuses => ProbeResult::Refused,
            Mood::Closes => ProbeResult::Closed,
            Mood::Fine | Mood::Answers(..) | Mood::Hangs | Mood::Cuts => ProbeResult::Open,
        }
    }
}

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    CrashForwarder,
    CrashAgent,
    CutLink,
    BendFrames,
    ChangeEndpoint,
    SetClock,
    Sleep,
    Replay,
    Discard,
    Retention,
    PutBack,
    Reconfigure,
    Stop,
}

const KINDS: [Kind; 13] = [
    Kind::CrashForwarder,
    Kind::CrashAgent,
    Kind::CutLink,
    Kind::BendFrames,
    Kind::ChangeEndpoint,
    Kind::SetClock,
    Kind::Sleep,
    Kind::Replay,
    Kind::Discard,
    Kind::Retention,
    Kind::PutBack,
    Kind::Reconfigure,
    Kind::Stop,
];

/// A seed's mix of faults.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    /// Faults per thousand steps.
    pub(crate) rate: u32,
    /// The step at which they end.
    pub(crate) steps: u64,
    kinds: Vec<Kind>,
}

impl Trouble {
    pub(crate) fn draw(chance: &mut Chance) -> Self {
        let mut kinds: Vec<_> = KINDS.into_iter().filter(|_| chance.permille(600)).collect();
        if kinds.contains(&Kind::ChangeEndpoint) {
            // Most of what a scheduler decides follows from endpoints.
            kinds.extend([Kind::ChangeEndpoint; 3]);
        }
        let rate = *chance.pick(&[0, 5, 10, 20, 40]);
        Self {
            rate: if kinds.is_empty() { 0 } else { rate },
            steps: 200 + chance.below(1500),
            kinds,
        }
    }
}

impl Trouble {
    /// Whether what has ended may be removed.
    pub(crate) fn sweeps(&self) -> bool {
        self.rate > 0 && self.kinds.contains(&Kind::Retention)
    }
}

impl<V: Vault> World<V> {
    pub(crate) fn trouble_step(&mut self) -> Verdicts {
        let kind = *self.chance.pick(&self.trouble.kinds);
        self.tell(kind);
        match kind {
            Kind::CrashForwarder => self.crash_forwarder(),
            Kind::CrashAgent => {
                let n = self.chance.index(self.agents.len());
                return self.crash_agent(n);
            }
            Kind::CutLink if self.links.is_empty() => {}
            Kind::CutLink => {
                let link = self.chance.index(self.links.len());
                self.seen.note(Point::LinkCut);
                self.cut_link(link);
            }
            Kind::BendFrames => self.bend_frames(),
            Kind::ChangeEndpoint => self.change_endpoint(),
            Kind::SetClock => self.set_clock(),
            Kind::Sleep => self.sleep(),
            Kind::Replay => self.replay(),
            Kind::Discard => self.discard(),
            Kind::Retention => self.sweep(),
            Kind::Reconfigure => self.reconfigure(),
            Kind::Stop => self.ask_to_stop(),
            Kind::PutBack => return self.back_up_or_put_back(),
        }
        Ok(())
    }

    /// Nothing passes any more. Half of the time both ends know at once, else by their silence.
    pub(crate) fn cut_link(&mut self, link: usize) {
        let wait = if self.chance.permille(500) {
            0
        } else {
            self.chance.below(SILENCE)
        };
        let link = &mut self.links[link];
        link.up.clear();
        link.down.clear();
        link.cut.get_or_insert(self.time + wait);
    }

    /// Frames lost, doubled or swapped: no TCP does that, so the link is cut soon after, but until
    /// then nothing wrong may come of it.
    fn bend_frames(&mut self) {
        let busy = |link: &super::node::Link| !link.up.is_empty() || !link.down.is_empty();
        let busy: Vec<_> = (0..self.links.len())
            .filter(|n| busy(&self.links[*n]))
            .collect();
        if busy.is_empty() {
            return;
        }
        let (n, how) = (*self.chance.pick(&busy), self.chance.below(3));
        let link = &mut self.links[n];
        let queue = if link.down.is_empty() {
            &mut link.up
        } else {
            &mut link.down
        };
        match how {
            0 => {
                self.seen.note(Point::FrameLost);
                queue.pop_front();
            }
            1 => {
                self.seen.note(Point::FrameDoubled);
                queue.extend(queue.front().cloned());
            }
            _ => {
                self.seen.note(Point::FramesSwapped);
                queue.rotate_left(1);
            }
        }
        let wait = self.chance.below(SILENCE);
        self.links[n].cut.get_or_insert(self.time + wait);
    }

    fn change_endpoint(&mut self) {
        let n = self.chance.index(self.endpoints.len());
        let retry_after = *self.chance.pick(&[1, 20, 600, 7200, 200_000]);
        let moods = [
            Mood::Fine,
            Mood::Refuses,
            Mood::Refuses,
            Mood::Hangs,
            Mood::Cuts,
            Mood::Closes,
            Mood::Answers(500, None),
            Mood::Answers(503, Some(retry_after)),
            Mood::Answers(429, Some(retry_after)),
            Mood::Answers(404, None),
            Mood::Answers(410, None),
        ];
        let bad = *self.chance.pick(&[1000, 1000, 500, 200]);
        self.endpoints[n] = Endpoint {
            mood: *self.chance.pick(&moods),
            bad,
        };
    }

    fn set_clock(&mut self) {
        let n = self.chance.index(self.agents.len() + 1);
        let by = *self.chance.pick(&[1, 30, 3600, 86_400, 30 * 86_400]) * SECOND;
        let forward = self.chance.permille(500);
        self.seen.note(if forward {
            Point::ClockForward
        } else {
            Point::ClockBack
        });
        let machine = match self.agents.get_mut(n) {
            Some(node) => &mut node.machine,
            None => &mut self.forwarder.machine,
        };
        machine.wall_ahead += if forward { by } else { -by };
        self.notice_jump(n);
    }

    /// A laptop sleeps: its monotonic clock stands still, everybody else's goes on.
    fn sleep(&mut self) {
        let n = self.chance.index(self.agents.len());
        let time = *self.chance.pick(&[20, 600, 8 * 3600]) * SECOND as Time;
        self.seen.note(Point::Slept);
        self.time += time;
        self.agents[n].machine.slept += time;
        self.notice_jump(n);
    }

    /// Within a second every wait is over and reads the clocks again; a jump costs the link.
    fn notice_jump(&mut self, n: usize) {
        if let Some(process) = self
            .agents
            .get_mut(n)
            .and_then(|node| node.process.as_mut())
        {
            process.shell.is_woken = true;
        }
        for link in 0..self.links.len() {
            if self.links[link].agent == n {
                self.cut_link(link);
            }
        }
    }

    fn replay(&mut self) {
        let n = self.chance.index(self.agents.len());
        let now = self.now_at(n);
        let random = u128::from(self.chance.bits());
        let drawn = self.chance.bits();
        let later = *self.chance.pick(&[0, 0, 1, 60, 7200]);
        let elsewhere = self.chance.permille(200);
        let due_at = now.now.after(std::time::Duration::from_secs(later));
        let node = &mut self.agents[n];
        // A dead node's disk is nobody's to read.
        let Some(process) = &mut node.process else {
            return;
        };
        let last = node.vault.last_seq(node.bucket.id).0;
        if last == 0 {
            return;
        }
        let seq = whrelay_core::bucket::Seq(1 + drawn % last);
        let rows = node.vault.deliveries_of(node.bucket.id, seq);
        let Some(first) = rows.first() else { return };
        let mut other = node.targets.iter().map(|(id, _)| *id);
        let other = other.find(|id| elsewhere && *id != first.destination);
        // One target takes both kinds: an engine does not know which is a one-off.
        let one_off = other.is_some() && self.chance.permille(500);
        if one_off {
            self.seen.note(Point::OneOff);
        }
        self.seen.note(match later {
            0 => Point::ReplayBegun,
            _ => Point::ReplayHeld,
        });
        let new = NewDelivery {
            id: DeliveryId::from_parts(now.now, random),
            destination: other.unwrap_or(first.destination),
            created_at: now.now,
            due_at,
            deadline_at: self.policy.deadline_of(due_at),
            replay: true,
            passed_over: false,
            one_off,
        };
        let write = Write::Again(Again {
            bucket: node.bucket.id,
            seq,
            event: first.event,
            new,
        });
        process
            .desk
            .asked
            .push_back((write, Purpose::Replay { rows }));
    }

    /// A person gives up a delivery, whether or not it still waits.
    fn discard(&mut self) {
        let n = self.chance.index(self.agents.len());
        let now = self.now_at(n);
        let drawn = self.chance.bits();
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return;
        };
        let last = node.vault.last_seq(node.bucket.id).0;
        if last == 0 {
            return;
        }
        let seq = whrelay_core::bucket::Seq(1 + drawn % last);
        let rows = node.vault.deliveries_of(node.bucket.id, seq);
        let Some(row) = rows.last() else { return };
        let (reason, why) = (DeadReason::Discarded, "");
        let attempt = Attempt::given_up(row, Asked::default(), now.now, reason, why);
        let write = Write::GiveUp(Box::new(attempt));
        let row = Box::new(row.clone());
        process
            .desk
            .asked
            .push_back((write, Purpose::Discard { row }));
    }

    /// A request reaches its endpoint, or finds none.
    pub(crate) fn reach(&mut self, n: usize, f: usize) -> Verdicts {
        let loses = !self.is_calm() && self.chance.permille(20);
        let planted = self.planted;
        let node = &mut self.agents[n];
        let Some(process) = &mut node.process else {
            return Ok(());
        };
        let flight = &mut process.shell.flights[f];
        let endpoint = node
            .targets
            .iter()
            .find(|(id, _)| *id == flight.delivery.destination);
        let endpoint = endpoint.map(|(_, endpoint)| self.endpoints[*endpoint]);
        let Endpoint { mood, bad } = endpoint.unwrap_or_default();
        let is_always = matches!(mood, Mood::Refuses | Mood::Closes);
        let meets_mood = is_always || self.chance.permille(bad);
        let mood = if meets_mood { mood } else { Mood::Fine };
        let (answered, outcome, wait) = match mood {
            Mood::Fine if loses => (true, Outcome::Broken, 0),
            Mood::Fine => (true, answer(200, None), 0),
            Mood::Answers(status, retry_after) => (false, answer(status, retry_after), 0),
            Mood::Refuses => (false, Outcome::Unreachable, 0),
            Mood::Hangs => (false, Outcome::TimedOut, TIMEOUT),
            Mood::Cuts | Mood::Closes => (false, Outcome::Broken, 0),
        };
        match outcome {
            Outcome::Broken if answered => self.seen.note(Point::AnswerLost),
            Outcome::TimedOut => self.seen.note(Point::TimedOut),
            Outcome::Unreachable => self.seen.note(Point::Unreachable),
            Outcome::Broken | Outcome::Answered { .. } | Outcome::Unsendable => {}
        }
        let at = self.time + wait;
        flight.stage = Stage::Answered { at };
        let is_hit = outcome != Outcome::Unreachable && mood != Mood::Closes;
        flight.outcome = Some(outcome);
        if !is_hit {
            return Ok(());
        }
        let mut request = flight.event.request.clone();
        match planted {
            Some(Bug::BodyTrimmed) => {
                let trimmed = request.body.trim_ascii_end().len();
                request.body.truncate(trimmed);
            }
            Some(Bug::RepeatedHeadersMerged) => request.headers.dedup_by(|a, b| a.name == b.name),
            Some(_) | None => {}
        }
        self.ledger
            .hit(&flight.delivery, node.tenant, &request, answered)
    }
}

fn answer(status: u16, retry_after: Option<u64>) -> Outcome {
    Outcome::Answered {
        status,
        retry_after: retry_after.map(|s| RetryAfter::Delay(std::time::Duration::from_secs(s))),
    }
}
