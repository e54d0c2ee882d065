//! The shells of both ends, as plain data: what a process has in memory, and loses when it dies. They
//! call the same pure parts as the real shells, and nothing else decides.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use whrelay_core::backlog::{Backlog, Cut};
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Delivery, DestinationId};
use whrelay_core::event::Event;
use whrelay_core::id::EventId;
use whrelay_core::outcome::Outcome;
use whrelay_core::route::{self, Prefix};
use whrelay_core::time::{Moment, Timestamp, TwoClocks};
use whrelay_engine::{Now, Settings, Token};
use whrelay_proto::frame::{Who, WireEvent};
use whrelay_proto::{AgentSession, ForwarderSession};

use super::ledger::Recorded;
use super::shell::Shell;
use super::vault::{Done, Vault, Write};

/// Microseconds of the world's own time: nobody inside can read it.
pub(crate) type Time = u64;

/// The wall clock's reading when the world begins.
const BEGIN: i64 = 1_795_000_000_000_000;

/// A machine's clocks. The wall clock may be set; the other one stands still in sleep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) wall_ahead: i64,
    pub(crate) slept: Time,
}

impl Machine {
    pub(crate) fn wall(&self, time: Time) -> Timestamp {
        Timestamp::from_micros(BEGIN + time as i64 + self.wall_ahead)
    }

    fn awake(&self, time: Time) -> Time {
        time - self.slept
    }
}

/// A process's view of its machine's clocks.
#[derive(Clone, Debug)]
pub(crate) struct ProcessClock {
    clocks: TwoClocks,
    started: Time,
    /// When the wall clock last jumped, since the start.
    jumped_at: Option<Duration>,
}

impl ProcessClock {
    pub(crate) fn start(machine: &Machine, time: Time) -> Self {
        Self {
            clocks: TwoClocks::new(machine.wall(time)),
            started: machine.awake(time),
            jumped_at: None,
        }
    }

    pub(crate) fn read(&mut self, machine: &Machine, time: Time) -> Moment {
        let elapsed = Duration::from_micros(machine.awake(time) - self.started);
        let jumps = self.clocks.jumps();
        let moment = self.clocks.read(machine.wall(time), elapsed);
        if self.clocks.jumps() > jumps {
            self.jumped_at = Some(elapsed);
        }
        moment
    }

    /// The present with the monotonic clock, whose beginning means nothing.
    pub(crate) fn now(&mut self, origin: Instant, machine: &Machine, time: Time) -> Now {
        Now {
            moment: self.read(machine, time),
            instant: origin + Duration::from_micros(machine.awake(time) - self.started),
            jumped_at: self.jumped_at.map(|at| origin + at),
        }
    }
}

/// Why a write was asked for: what goes on once it is on disk.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    /// A sender waits for its answer.
    Post { bucket: usize, event: Box<Event> },
    /// The forwarder notes how far a subscription has come.
    Ack,
    /// An agent on this link waits for its welcome.
    Join { link: u64 },
    /// The session on this link may be acknowledged up to here.
    Append { link: u64, reached: u64 },
    /// More of what came on this link is to be stored before it is acknowledged.
    Part { link: u64 },
    /// A slot is held until the attempt is on disk. Its position is known after the commit.
    Verdict {
        token: Token,
        verdict: Box<Recorded>,
        at: u64,
    },
    /// An endpoint was lost or came back.
    Endpoint,
    /// A person wants deliveries tried now.
    Hurry,
    /// An attempt was not made, since its event could not be read.
    Postpone { token: Token },
    /// A person asked for an event again: the rows it must not change.
    Replay { rows: Vec<Delivery> },
    /// A person gave a delivery up: what it was.
    Discard { row: Box<Delivery> },
    /// What has ended is removed.
    Retention,
}

/// A process: what it asked its store for, and what the store has answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Desk {
    pub(crate) asked: VecDeque<(Write, Purpose)>,
    pub(crate) answered: VecDeque<(Done, Purpose)>,
}

/// The forwarder while it runs.
#[derive(Clone, Debug)]
pub(crate) struct ForwarderProcess {
    pub(crate) clock: ProcessClock,
    pub(crate) desk: Desk,
    /// The newest link of each subscription.
    pub(crate) leases: Vec<(usize, String, u64)>,
}

/// An agent while it runs.
#[derive(Clone, Debug)]
pub(crate) struct AgentProcess {
    pub(crate) clock: ProcessClock,
    pub(crate) desk: Desk,
    /// How much of what came before is wanted, and from the first welcome on what is passed over.
    pub(crate) wanted: Backlog,
    pub(crate) cut: Option<Cut>,
    pub(crate) shell: Shell,
    /// Whether a person has looked for deliveries that a wrong clock put off.
    pub(crate) is_hurried: bool,
    pub(crate) link: Option<u64>,
    pub(crate) failures: u32,
    pub(crate) redial_at: Time,
    /// Received and not yet asked to be stored.
    pub(crate) waiting: VecDeque<(Vec<WireEvent>, u64)>,
    pub(crate) appending: bool,
}

impl AgentProcess {
    /// Whether what a link brought is still being stored: before that is done, no other is opened.
    pub(crate) fn is_storing(&self) -> bool {
        let asked = self.desk.asked.iter().map(|(_, purpose)| purpose);
        let answered = self.desk.answered.iter().map(|(_, purpose)| purpose);
        let stores =
            |purpose: &Purpose| matches!(purpose, Purpose::Append { .. } | Purpose::Part { .. });
        asked.chain(answered).any(stores)
    }
}

/// An attempt on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) token: Token,
    /// As it was on disk when the attempt started.
    pub(crate) delivery: Delivery,
    pub(crate) event: Event,
    pub(crate) at: Timestamp,
    pub(crate) stage: Stage,
    /// What came of it.
    pub(crate) outcome: Option<Outcome>,
    /// When the engine heard that, as it was told the time, and as it was.
    pub(crate) decided: Option<(Timestamp, Moment)>,
    /// Whether its record was asked to be written.
    pub(crate) is_asked: bool,
}

/// How far an attempt has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    Going,
    Answered { at: Time },
    Recording,
}

/// A destination as its user wants it.
#[derive(Clone, Debug)]
pub(crate) struct Configured {
    pub(crate) settings: Settings,
    pub(crate) is_removed: bool,
}

/// An agent's machine and disk, which outlast its processes.
pub(crate) struct AgentNode<V> {
    pub(crate) machine: Machine,
    pub(crate) vault: V,
    pub(crate) bucket: Bucket,
    /// Which of the forwarder's buckets.
    pub(crate) tenant: usize,
    pub(crate) subscription: String,
    /// Each target's number on this disk, and the endpoint behind it.
    pub(crate) targets: Vec<(DestinationId, usize)>,
    /// How each target is configured.
    pub(crate) configured: Vec<Configured>,
    /// Whether nothing new is to start.
    pub(crate) is_paused: bool,
    /// Which events each target gets.
    pub(crate) routes: Vec<(Prefix, DestinationId)>,
    pub(crate) process: Option<AgentProcess>,
    /// A second machine with the subscription of an earlier agent.
    pub(crate) twin: bool,
    /// Which opening of its store its process runs on.
    pub(crate) instance: u64,
    /// It goes on as that opening: its machine was restored with its memory.
    pub(crate) goes_on: bool,
    /// The opening before it.
    pub(crate) follows: Option<u64>,
    /// Whoever starts it again after it ended waits until then.
    pub(crate) rests_until: Time,
    /// An earlier copy of its directory.
    pub(crate) backup: Option<(V, u64)>,
    /// Its directory was put back, and the forwarder has not heard from it since.
    pub(crate) went_back: bool,
}

impl<V> AgentNode<V> {
    /// Where an event goes that has this tail.
    pub(crate) fn taking(&self, tail: &str) -> Vec<DestinationId> {
        let found = route::taking(&self.routes, |(prefix, _)| prefix, tail);
        found.map(|(_, id)| *id).collect()
    }
}

/// The forwarder's machine and disk.
pub(crate) struct ForwarderNode<V> {
    pub(crate) machine: Machine,
    pub(crate) vault: V,
    pub(crate) buckets: Vec<Bucket>,
    pub(crate) process: Option<ForwarderProcess>,
    pub(crate) instance: u64,
    /// An earlier copy of its directory, and of its memory.
    pub(crate) backup: Option<(V, Option<ForwarderProcess>)>,
}

impl<V: Vault> ForwarderNode<V> {
    /// Whether it runs and has an event.
    pub(crate) fn has(&self, event: EventId) -> bool {
        self.process.is_some() && self.vault.find(event).is_some()
    }
}

/// A connection between an agent and the forwarder, both ends of it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) agent: usize,
    /// The agent's end, until it is closed there.
    pub(crate) near: Option<NearEnd>,
    pub(crate) far: Option<FarEnd>,
    pub(crate) up: VecDeque<Bytes>,
    pub(crate) down: VecDeque<Bytes>,
    /// The forwarder's last place when it welcomed the agent.
    pub(crate) there: Seq,
    /// Nothing passes any more; each end finds out by itself, at latest at this time.
    pub(crate) cut: Option<Time>,
}

#[derive(Debug)]
pub(crate) struct NearEnd {
    pub(crate) session: AgentSession,
    /// The forwarder's store, once it has welcomed this agent.
    pub(crate) forwarder: Option<String>,
    /// Where the session started.
    pub(crate) start: Seq,
    /// Events received on this link, and where they stand.
    pub(crate) received: Vec<(u64, whrelay_core::id::EventId)>,
}

#[derive(Debug, Default)]
pub(crate) struct FarEnd {
    pub(crate) session: ForwarderSession,
    /// Which bucket and subscription, once it has said so.
    pub(crate) place: Option<(usize, String)>,
    pub(crate) who: Option<Who>,
    pub(crate) window: usize,
    pub(crate) sent: VecDeque<u64>,
    pub(crate) wake: bool,
}
