//! The seeded world: it alone has time and chance, and it chooses which of the steps that are
//! possible comes next. It must not know what a step does.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use whrelay_core::bucket::BucketId;
use whrelay_core::id::EventId;
use whrelay_core::order::Order;
use whrelay_core::queue::Waiting;
use whrelay_core::retry::RetryPolicy;
use whrelay_core::route::Route;
use whrelay_engine::{Caps, Settings};

use super::audit::everything;
use super::configured;
use super::ledger::{Ledger, Verdicts, Violation, hold};
use super::node::{AgentNode, Configured, ForwarderNode, Link, Machine, Stage, Time};
use super::planted::Bug;
use super::seen::Seen;
use super::trouble::{Endpoint, Trouble};
use super::vault::Vault;
use crate::chance::Chance;

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Post(usize),
    CommitForwarder,
    SettleForwarder,
    StartForwarder,
    /// A frame arrives at the forwarder.
    Up(usize),
    Push(usize),
    FarNotices(usize),
    CommitAgent(usize),
    SettleAgent(usize),
    StartAgent(usize),
    Dial(usize),
    /// A frame arrives at an agent.
    Down(usize),
    Append(usize),
    NearNotices(usize),
    /// An engine is asked what comes next.
    Poll(usize),
    Read(usize, usize),
    Probe(usize, usize),
    /// An engine hears something.
    Hear(usize, usize),
    Reach(usize, usize),
    Answer(usize, usize),
}

impl Action {
    /// Whether it may end what an event waits for.
    fn settles(self) -> bool {
        match self {
            Self::Poll(_) | Self::Read(..) | Self::Probe(..) | Self::Hear(..) => false,
            Self::Reach(..) | Self::Answer(..) | Self::Append(_) | Self::Push(_) => false,
            Self::Post(_) | Self::Up(_) | Self::Down(_) | Self::Dial(_) => true,
            Self::FarNotices(_) | Self::NearNotices(_) => true,
            Self::CommitForwarder | Self::SettleForwarder | Self::StartForwarder => true,
            Self::CommitAgent(_) | Self::SettleAgent(_) | Self::StartAgent(_) => true,
        }
    }
}

/// The steps after which a world that still has not ended is taken to run in circles. An endpoint
/// may be probed every 750 ms for as long as [`PATIENCE`].
const MOST_STEPS: u64 = 2_000_000;
/// Everything must have ended this long after the last fault: the longest pauses are a Retry-After
/// of 24 h and a durable pause of under 8 h.
const PATIENCE: Time = 34 * 3600 * 1_000_000;

/// Once nothing is in the way, a delivery is tried so soon after it is due: the slowest rate, lost
/// changes, and pauses between trials.
const OVERDUE: Time = 300 * 1_000_000;

/// One world.
pub(crate) struct World<V> {
    pub(crate) chance: Chance,
    pub(crate) time: Time,
    pub(crate) origin: Instant,
    pub(crate) forwarder: ForwarderNode<V>,
    pub(crate) agents: Vec<AgentNode<V>>,
    pub(crate) links: Vec<Link>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) trouble: Trouble,
    pub(crate) policy: RetryPolicy,
    /// What each destination begins with.
    settings: Settings,
    pub(crate) caps: Caps,
    /// Whether people pass over some of what comes.
    pub(crate) passes_over: bool,
    /// How long what has ended is kept.
    pub(crate) retain: Duration,
    /// Subscriptions that the forwarder has on its disk.
    pub(crate) subscribed: HashSet<(BucketId, String)>,
    pub(crate) ledger: Ledger,
    pub(crate) seen: Seen,
    pub(crate) planted: Option<Bug>,
    pub(crate) last_link: u64,
    pub(crate) posts_left: u32,
    calm_since: Option<Time>,
    /// Whether an event is known to wait still.
    waits: bool,
    /// When deliveries are looked through for those that are overdue.
    judged_at: Time,
    trace: u64,
    story: Option<Vec<String>>,
}

/// How a world ended.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) verdict: Verdicts,
    pub(crate) seen: Seen,
    /// A hash over every step: two runs of a seed agree in it.
    pub(crate) trace: u64,
    /// The last steps, if they were asked for.
    pub(crate) story: Vec<String>,
}

/// What a run is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) events: u32,
    pub(crate) planted: Option<Bug>,
    pub(crate) tells: bool,
}

/// Runs one world to its end.
pub(crate) fn run<V: Vault>(plan: Plan) -> Ending {
    let mut world = World::<V>::new(plan);
    let verdict = world.live();
    world.seen.lifetimes = world.ledger.accepted.len() as u64;
    Ending {
        verdict,
        seen: world.seen,
        trace: world.trace,
        story: world.story.unwrap_or_default(),
    }
}

impl<V: Vault> World<V> {
    fn new(plan: Plan) -> Self {
        let mut chance = Chance::new(plan.seed);
        let trouble = Trouble::draw(&mut chance);
        let mut forwarder = ForwarderNode {
            machine: Machine::default(),
            vault: V::birth(u128::from(plan.seed) << 8),
            buckets: Vec::new(),
            process: None,
            instance: 0,
            backup: None,
        };
        forwarder.vault.plant(plan.planted);
        for name in ["shop", "mail"] {
            let name = name.parse().expect("a name");
            forwarder.buckets.push(forwarder.vault.ensure_bucket(&name));
        }
        let policy = configured::policy(&mut chance);
        let mut world = Self {
            time: 0,
            origin: Instant::now(),
            agents: Vec::new(),
            links: Vec::new(),
            endpoints: Vec::new(),
            settings: configured::settings(&mut chance, policy.clone()),
            caps: configured::caps(&mut chance),
            policy,
            passes_over: chance.permille(100),
            retain: Duration::from_secs(*chance.pick(&[0, 1, 60, 3600])),
            subscribed: HashSet::new(),
            ledger: Ledger::default(),
            seen: Seen::default(),
            planted: plan.planted,
            last_link: 0,
            posts_left: plan.events,
            calm_since: None,
            waits: false,
            judged_at: 0,
            trace: plan.seed,
            story: plan.tells.then(Vec::new),
            chance,
            forwarder,
            trouble,
        };
        world.settle_agents(plan.seed);
        world
    }

    /// One agent always; others by chance: another tenant's, a second subscription, and a second
    /// machine that takes the first one's subscription.
    fn settle_agents(&mut self, seed: u64) {
        let mut places = vec![(0, "default", false)];
        for (share, place) in [
            (500, (1, "default", false)),
            (250, (0, "other", false)),
            (250, (0, "default", true)),
        ] {
            if self.chance.permille(share) {
                places.push(place);
            }
        }
        for (n, (tenant, subscription, twin)) in places.into_iter().enumerate() {
            let mut vault = V::birth((u128::from(seed) << 8) + 1 + n as u128);
            vault.plant(self.planted);
            let bucket = vault.ensure_bucket(&self.forwarder.buckets[tenant].name);
            let (mut targets, mut routes) = (Vec::new(), Vec::new());
            for target in 0..=u64::from(self.chance.permille(250)) {
                let name = format!("http://localhost:{}", 3000 + target);
                let id = vault.ensure_destination(bucket.id, &name);
                targets.push((id, self.endpoints.len()));
                let apart = target > 0 && self.chance.permille(500);
                let path = if apart { "/4=1" } else { "/=1" };
                routes.push((path.parse::<Route>().expect("a route").prefix, id));
                self.endpoints.push(Endpoint::default());
            }
            let configured = Configured {
                settings: self.settings.clone(),
                is_removed: false,
            };
            self.agents.push(AgentNode {
                configured: vec![configured; targets.len()],
                is_paused: false,
                machine: Machine::default(),
                vault,
                bucket,
                tenant,
                subscription: subscription.to_owned(),
                targets,
                routes,
                process: None,
                twin,
                instance: 0,
                follows: None,
                goes_on: false,
                rests_until: 0,
                backup: None,
                went_back: false,
            });
        }
    }

    fn live(&mut self) -> Verdicts {
        let trouble_ends = self.trouble.steps;
        let mut possible = Vec::new();
        loop {
            self.seen.steps += 1;
            // What neither end has any more is no link.
            self.links
                .retain(|link| link.near.is_some() || link.far.is_some());
            let steps = self.seen.steps;
            if steps == trouble_ends && self.calm_since.is_none() {
                self.calm_down()?;
            }
            hold(steps < MOST_STEPS, "I4", || {
                format!("still going after {MOST_STEPS} steps")
            })?;
            if self.calm_since.is_none() && self.chance.permille(self.trouble.rate) {
                self.trouble_step()?;
                continue;
            }
            possible.clear();
            self.possible(&mut possible);
            let hurry = self.calm_since.is_none() && self.chance.permille(30);
            if possible.is_empty() || hurry {
                if possible.is_empty() && self.calm_since.is_some() {
                    self.waits = self.waits || self.unsettled()?.is_some();
                    if !self.waits {
                        return self.final_audit();
                    }
                    if self.hurry() {
                        continue;
                    }
                }
                self.advance(hurry)?;
                continue;
            }
            let action = *self.chance.pick(&possible);
            self.tell(action);
            self.time += self.chance.below(2000);
            self.waits &= !action.settles();
            self.act(action)?;
        }
    }

    pub(crate) fn tell(&mut self, step: impl std::fmt::Debug) {
        let mixed = format_hash(&step) ^ self.time;
        self.trace = (self.trace.rotate_left(5) ^ mixed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        if let Some(story) = &mut self.story {
            story.push(format!("{:>14} {step:?}", self.time));
        }
    }

    /// Adds to the story of a world that is told, and to nothing else.
    pub(crate) fn detail(&mut self, what: &dyn std::fmt::Debug) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>14}     {what:?}", self.time));
        }
    }

    /// The last fault is over: what was down comes up, and now everything has to end well.
    fn calm_down(&mut self) -> Verdicts {
        self.tell("calm");
        self.calm_since = Some(self.time);
        // Some still come: they find everything at rest.
        self.posts_left = match self.chance.permille(300) {
            true => 1 + self.chance.below(3) as u32,
            false => 0,
        };
        for endpoint in &mut self.endpoints {
            *endpoint = Endpoint::default();
        }
        self.configure_calm();
        (self.waits, self.judged_at) = (false, self.time + OVERDUE);
        for link in 0..self.links.len() {
            self.cut_link(link);
        }
        Ok(())
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm_since.is_some()
    }

    fn possible(&self, all: &mut Vec<Action>) {
        self.possible_at_forwarder(all);
        for (n, link) in self.links.iter().enumerate() {
            let notices = link.cut.is_some_and(|at| at <= self.time);
            if let Some(far) = &link.far {
                match notices {
                    true => all.push(Action::FarNotices(n)),
                    false if !link.up.is_empty() => all.push(Action::Up(n)),
                    false if far.place.is_some() && far.wake => all.push(Action::Push(n)),
                    false => {}
                }
            }
            if link.near.is_some() {
                match notices {
                    true => all.push(Action::NearNotices(n)),
                    false if !link.down.is_empty() => all.push(Action::Down(n)),
                    false => {}
                }
            }
        }
        for n in 0..self.agents.len() {
            self.possible_at_agent(n, all);
        }
    }

    fn possible_at_forwarder(&self, all: &mut Vec<Action>) {
        let Some(process) = &self.forwarder.process else {
            all.push(Action::StartForwarder);
            return;
        };
        if self.posts_left > 0 {
            let bucket = usize::from(self.posts_left.is_multiple_of(4));
            all.push(Action::Post(bucket));
        }
        if !process.desk.asked.is_empty() {
            all.push(Action::CommitForwarder);
        }
        if !process.desk.answered.is_empty() {
            all.push(Action::SettleForwarder);
        }
    }

    fn possible_at_agent(&self, n: usize, all: &mut Vec<Action>) {
        let Some(process) = &self.agents[n].process else {
            if self.agents[n].rests_until <= self.time {
                all.push(Action::StartAgent(n));
            }
            return;
        };
        if !process.desk.asked.is_empty() {
            all.push(Action::CommitAgent(n));
        }
        if !process.desk.answered.is_empty() {
            all.push(Action::SettleAgent(n));
        }
        // Where nothing is removed an agent may be hasty: the store knows what comes again.
        let waits = process.is_storing() && self.trouble.sweeps();
        let redials = process.link.is_none() && !waits;
        if redials && process.redial_at <= self.time && self.may_dial(n) {
            all.push(Action::Dial(n));
        }
        if !process.waiting.is_empty() && !process.appending {
            all.push(Action::Append(n));
        }
        let shell = &process.shell;
        if shell.is_woken || shell.wake_at <= self.time {
            all.push(Action::Poll(n));
        }
        all.extend((0..shell.reads.len()).map(|read| Action::Read(n, read)));
        all.extend((0..shell.probes.len()).map(|probe| Action::Probe(n, probe)));
        for (t, told) in shell.told.iter().enumerate() {
            if told.at <= self.time {
                all.push(Action::Hear(n, t));
            }
        }
        for (f, flight) in shell.flights.iter().enumerate() {
            match flight.stage {
                Stage::Going => all.push(Action::Reach(n, f)),
                Stage::Answered { at } if at <= self.time => all.push(Action::Answer(n, f)),
                Stage::Answered { .. } | Stage::Recording => {}
            }
        }
    }

    /// A twin keeps out of the way once it is calm: two that want one subscription take it from
    /// each other for ever. One that went back comes once more: only it knows that it lost events.
    fn may_dial(&self, n: usize) -> bool {
        let node = &self.agents[n];
        !(self.is_calm() && node.twin) || node.went_back
    }

    fn act(&mut self, action: Action) -> Verdicts {
        match action {
            Action::Post(bucket) => self.post(bucket),
            Action::CommitForwarder => self.commit_forwarder(),
            Action::SettleForwarder => self.settle_forwarder(),
            Action::StartForwarder => self.start_forwarder(),
            Action::Up(link) => self.frame_up(link),
            Action::Push(link) => self.push(link),
            Action::FarNotices(link) => self.far_notices(link),
            Action::CommitAgent(n) => self.commit_agent(n),
            Action::SettleAgent(n) => self.settle_agent(n),
            Action::StartAgent(n) => self.start_agent(n),
            Action::Dial(n) => self.dial(n),
            Action::Down(link) => self.frame_down(link),
            Action::Append(n) => self.append(n),
            Action::NearNotices(link) => self.near_notices(link),
            Action::Poll(n) => self.poll(n),
            Action::Read(n, read) => self.read(n, read),
            Action::Probe(n, probe) => self.probe(n, probe),
            Action::Hear(n, told) => self.hear(n, told),
            Action::Reach(n, flight) => self.reach(n, flight),
            Action::Answer(n, flight) => self.answer(n, flight),
        }
    }

    /// Lets time pass: until something is due, or in a hurry a little, so that timers meet what is
    /// on its way.
    fn advance(&mut self, hurry: bool) -> Verdicts {
        if hurry {
            self.time += self.chance.below(2_000_000);
            self.tell("a while");
            // A process wakes for many reasons.
            let n = self.chance.index(self.agents.len());
            if let Some(process) = &mut self.agents[n].process {
                process.shell.is_woken = true;
            }
            return Ok(());
        }
        let Some(next) = self.next_timer() else {
            let ends = self.calm_since.is_none();
            hold(ends, "I4", || {
                let event = self.unsettled().ok().flatten();
                format!("an event waits for nothing: {event:?}")
            })?;
            return self.calm_down();
        };
        let end = self.calm_since.map_or(Time::MAX, |since| since + PATIENCE);
        self.time = next.max(self.time + 1);
        self.tell("until");
        hold(self.time < end, "I4", || {
            let event = self.unsettled().ok().flatten();
            format!("an event has not ended, though nothing is in its way: {event:?}")
        })?;
        if self.calm_since.is_none() || self.time < self.judged_at {
            return Ok(());
        }
        self.judged_at = self.time + OVERDUE;
        (0..self.agents.len()).try_for_each(|n| self.nothing_is_overdue(n))
    }

    /// C2: once nothing is in the way, everything is tried soon after it is due, or something
    /// before it is.
    fn nothing_is_overdue(&mut self, n: usize) -> Verdicts {
        let now = self.now_at(n).now;
        let node = &self.agents[n];
        let Some(process) = &node.process else {
            return Ok(());
        };
        for (id, _) in &node.targets {
            let last = self.ledger.moved_at((n, *id));
            if last.is_some_and(|last| last + OVERDUE > self.time) {
                continue;
            }
            let back_since = node.vault.endpoint(*id).1;
            let order = process.shell.known.get(id).map(|known| known.order);
            let query = everything(order.unwrap_or_default());
            let mut rows = node.vault.queue(*id, &query).waiting;
            if query.order == Order::Fifo {
                // Those behind the first wait for it.
                rows.truncate(1);
            }
            let is_overdue = |row: &&Waiting| {
                let due_at = row.due_at(back_since, now);
                due_at.after(Duration::from_micros(OVERDUE)) <= now
            };
            let overdue = rows.iter().find(is_overdue);
            hold(overdue.is_none(), "C2", || {
                format!(
                    "{overdue:?} is due at destination {}, and is not tried",
                    id.0
                )
            })?;
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<Time> {
        let links = self.links.iter().filter_map(|link| link.cut);
        let agents = (0..self.agents.len()).filter_map(|n| self.next_agent_timer(n));
        links.chain(agents).min()
    }

    fn next_agent_timer(&self, n: usize) -> Option<Time> {
        let Some(process) = self.agents[n].process.as_ref() else {
            return Some(self.agents[n].rests_until);
        };
        let redial = (process.link.is_none() && self.may_dial(n)).then_some(process.redial_at);
        process.shell.next_timer().into_iter().chain(redial).min()
    }

    /// I4: the first agent, and event that is for it, which has not ended there.
    fn unsettled(&self) -> Result<Option<(usize, EventId)>, Violation> {
        for (n, node) in self.agents.iter().enumerate() {
            let group: Vec<_> = (0..self.agents.len())
                .filter(|m| *m == n || self.shares(n, *m))
                .map(|m| (m, &self.agents[m]))
                .collect();
            let settled = self
                .ledger
                .settled(&group, node.tenant, &self.forwarder.vault);
            if let Some(event) = settled? {
                return Ok(Some((n, event)));
            }
        }
        Ok(None)
    }

    fn shares(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.agents[a], &self.agents[b]);
        (a.tenant, &a.subscription) == (b.tenant, &b.subscription)
    }

    fn final_audit(&self) -> Verdicts {
        for (id, accepted) in &self.ledger.accepted {
            let there = self.forwarder.vault.find(*id).is_some();
            let kept = there || self.ledger.dropped.contains(id);
            let bucket = accepted.bucket;
            hold(kept, "I1", || format!("{id} of bucket {bucket} is gone"))?;
        }
        for node in &self.agents {
            Ledger::audit(node)?;
        }
        Ok(())
    }
}

/// The text of a step, hashed.
fn format_hash(step: &impl std::fmt::Debug) -> u64 {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    let mut sink = Sink(&mut hasher);
    // A hasher takes everything.
    let _ = std::fmt::write(&mut sink, format_args!("{step:?}"));
    hasher.finish()
}

struct Sink<'a>(&'a mut std::hash::DefaultHasher);

impl std::fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        std::hash::Hasher::write(self.0, text.as_bytes());
        Ok(())
    }
}
