//! Destinations as their users want them, and how that changes while an agent runs: other settings,
//! pauses, removal, and the stop of a process.

use std::time::Duration;

use whrelay_core::destination::EndpointState;
use whrelay_core::order::Order;
use whrelay_core::outcome::RetryOn;
use whrelay_core::pace::Rate;
use whrelay_core::queue::WaitReason;
use whrelay_core::retry::{RetryPolicy, Schedule};
use whrelay_engine::{Caps, Input, Probing, Settings};

use super::agent::TIMEOUT;
use super::node::{AgentNode, Purpose};
use super::seen::Point;
use super::shell::{News, Told};
use super::vault::{Vault, Write};
use super::world::World;
use crate::chance::Chance;

/// Nobody waits longer for a time that a target asked for: a person does not either.
const LONGEST: Duration = Duration::from_secs(25 * 3600);

/// What all destinations of a world begin with.
pub(crate) fn settings(chance: &mut Chance, policy: RetryPolicy) -> Settings {
    let probing = [
        Probing::Loopback,
        Probing::Loopback,
        Probing::Private,
        Probing::Public,
    ];
    Settings {
        policy,
        order: match chance.permille(250) {
            true => Order::Fifo,
            false => Order::Arrival,
        },
        max_in_flight: 1 + chance.index(4),
        rate: rate(chance),
        timeout: Duration::from_micros(TIMEOUT),
        paused: false,
        endpoint_id: 0,
        probing: *chance.pick(&probing),
        endpoint: EndpointState::Online,
        back_since: None,
    }
}

/// What a node may have in flight and in memory: sometimes so little that destinations wait for
/// each other.
pub(crate) fn caps(chance: &mut Chance) -> Caps {
    let all = Caps::default();
    match chance.permille(700) {
        true => all,
        false => Caps {
            attempts: 1 + chance.index(4),
            bytes: *chance.pick(&[1, 100, all.bytes]),
            loaded: 2 + chance.index(8),
            remembered: 1 + chance.index(4),
        },
    }
}

/// How deliveries are retried.
pub(crate) fn policy(chance: &mut Chance) -> RetryPolicy {
    let listed = vec![
        Duration::from_secs(1),
        Duration::from_secs(30),
        Duration::from_secs(600),
    ];
    let schedules = [
        Schedule::Seconds,
        Schedule::Medium,
        Schedule::Medium,
        Schedule::Long,
        Schedule::Listed(listed),
    ];
    let handoffs = [0, 5, 60, 900];
    let budgets = [0, 0, 0, 3];
    RetryPolicy {
        schedule: chance.pick(&schedules).clone(),
        deadline: Duration::ZERO,
        handoff_after: Duration::from_secs(*chance.pick(&handoffs)),
        max_attempts: *chance.pick(&budgets),
        retry_on: if chance.permille(300) {
            RetryOn::NonSuccess
        } else {
            RetryOn::Transient
        },
    }
}

fn rate(chance: &mut Chance) -> Option<Rate> {
    let rates = ["500/s", "10/s", "1/s", "30/m"];
    let rate = chance.permille(250).then(|| *chance.pick(&rates));
    rate.map(|rate| rate.parse().expect("a rate"))
}

impl<V> AgentNode<V> {
    /// Whether everything may be delivered.
    fn is_held_up(&self) -> bool {
        let mut all = self.configured.iter();
        self.is_paused || all.any(|one| one.is_removed || one.settings.paused)
    }
}

impl<V: Vault> World<V> {
    /// Somebody changes a destination, pauses it or the node, or removes it for a while.
    pub(crate) fn reconfigure(&mut self) {
        let n = self.chance.index(self.agents.len());
        let target = self.chance.index(self.agents[n].targets.len());
        let (what, rate) = (self.chance.below(6), rate(&mut self.chance));
        let (slots, at) = (1 + self.chance.index(4), self.heard_at());
        let node = &mut self.agents[n];
        let configured = &mut node.configured[target];
        let settings = &mut configured.settings;
        let mut news = News::Configured(target);
        match what {
            0 => settings.paused = !settings.paused,
            1 => settings.max_in_flight = slots,
            2 => settings.rate = rate,
            3 => {
                settings.order = match settings.order {
                    Order::Arrival => Order::Fifo,
                    Order::Fifo => Order::Arrival,
                };
            }
            4 => configured.is_removed = !configured.is_removed,
            _ => {
                node.is_paused = !node.is_paused;
                news = News::Paused;
            }
        }
        self.seen.note(match what {
            0 => Point::Paused,
            4 => Point::Removed,
            5 => Point::NodePaused,
            _ => Point::Reconfigured,
        });
        if let Some(process) = &mut node.process {
            process.shell.told.push(Told { news, at });
        }
    }

    /// Nothing holds deliveries up any more.
    pub(crate) fn configure_calm(&mut self) {
        let time = self.time;
        for node in self.agents.iter_mut().filter(|node| node.is_held_up()) {
            node.is_paused = false;
            let all = 0..node.configured.len();
            for configured in &mut node.configured {
                (configured.is_removed, configured.settings.paused) = (false, false);
            }
            if let Some(process) = &mut node.process {
                let news = all.map(News::Configured).chain([News::Paused]);
                let told = news.map(|news| Told { news, at: time });
                process.shell.told.extend(told);
            }
        }
    }

    /// A process is asked to end: what runs is finished and recorded, and nothing new starts.
    pub(crate) fn ask_to_stop(&mut self) {
        let n = self.chance.index(self.agents.len());
        let at = self.heard_at();
        if let Some(process) = &mut self.agents[n].process {
            process.shell.tell(Input::Stop, at);
        }
    }

    /// A clock that was wrong has left deliveries to times that nobody wanted: a person has them
    /// tried now. Says whether there were any.
    pub(crate) fn hurry(&mut self) -> bool {
        let mut is_any = false;
        for n in 0..self.agents.len() {
            let beyond = self.now_at(n).now.after(LONGEST);
            let node = &mut self.agents[n];
            let Some(process) = node.process.as_mut().filter(|p| !p.is_hurried) else {
                continue;
            };
            process.is_hurried = true;
            let last = node.vault.last_seq(node.bucket.id).0;
            let places = (1..=last).map(whrelay_core::bucket::Seq);
            let all = places.flat_map(|seq| node.vault.deliveries_of(node.bucket.id, seq));
            let late = all.filter(|delivery| match delivery.wait {
                Some(WaitReason::NotBefore(at)) => at > beyond,
                Some(_) | None => false,
            });
            let keys: Vec<_> = late.map(|delivery| delivery.key).collect();
            if !keys.is_empty() {
                is_any = true;
                self.seen.note(Point::HurriedByAPerson);
                let write = Write::RetryNow(keys);
                process.desk.asked.push_back((write, Purpose::Hurry));
            }
        }
        is_any
    }
}
