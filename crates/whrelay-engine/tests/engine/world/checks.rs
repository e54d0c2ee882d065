//! What every start has to observe, probes, and the death of the process between two actions.

use std::time::Duration;

use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::order::Order;
use whrelay_core::queue::{Offset, QueueKind, WaitReason, Waiting};
use whrelay_core::time::{Timestamp, TwoClocks};
use whrelay_engine::{Engine, Input, Now, ProbeResult};

use crate::endpoints::Behaviour;
use crate::view::Record;

use super::{Exchange, MS, Pending, World};

impl World {
    /// What every start has to observe, whatever went wrong before it.
    pub(super) fn check_start(&self, id: DestinationId, delivery: &Waiting, number: u32) {
        let key = delivery.key;
        let now = Now {
            moment: self.moment,
            ..self.now()
        };
        let settings = &self.settings[&id];
        assert!(!self.paused && !settings.paused, "a start in a pause");
        let truth = self.truth.get(&(id, key));
        let truth = truth.unwrap_or_else(|| panic!("{key:?} has ended"));
        assert_eq!(
            number,
            truth.attempts + 1,
            "the number of an attempt of {key:?}"
        );
        let same = |exchange: &&Exchange| exchange.destination == id;
        let running: Vec<_> = self.exchanges.values().filter(same).collect();
        assert!(running.iter().all(|x| x.key != key), "{key:?} runs twice");
        assert!(
            running.len() < settings.max_in_flight,
            "slots of a destination"
        );
        assert!(
            self.unwritten.len() < self.caps.attempts,
            "slots of the node"
        );
        assert!(
            now.moment.certain <= truth.deadline_at,
            "a start after the deadline"
        );
        let latest = self.latest_of(&(id, key));
        let reason = truth.reason.counted_from(self.process_began.1, latest);
        let due_at = reason.due_at(truth.created_at, settings.back_since, now.moment.now);
        assert!(
            due_at <= now.moment.now,
            "{truth:?} starts at {}",
            now.moment.now
        );
        if let WaitReason::NotBefore(at) = truth.reason {
            let settled = |at| now.instant - at >= Duration::from_secs(120);
            let is_settled = self.jumped_at.is_none_or(settled);
            assert!(
                at <= now.moment.certain || is_settled,
                "a job trusts a new clock"
            );
        }
        if settings.order == Order::Fifo && delivery.kind == QueueKind::Normal {
            let bucket = self
                .truth
                .range((id, DeliveryKey { seq: Seq(0), ..key })..(id, key));
            let is_job =
                |row: &Waiting| row.attempts == 0 && matches!(row.reason, WaitReason::NotBefore(_));
            let mut earlier =
                bucket.filter(|(_, row)| row.kind == QueueKind::Normal && !is_job(row));
            assert!(earlier.next().is_none(), "{key:?} overtakes");
        }
    }

    /// The latest time that a process may have written into a row: failures after that were
    /// written by a wrong clock, and count from the start of this process.
    fn latest_of(&self, row: &(DestinationId, DeliveryKey)) -> Timestamp {
        match self.inherited.contains(row) {
            true => self.process_began.1,
            false => self.moment.now,
        }
    }

    /// A person discards a delivery.
    pub(crate) fn withdraw(&mut self, destination: DestinationId, key: DeliveryKey) {
        self.truth.remove(&(destination, key));
        self.withdrawn.insert((destination, key));
        let next = None;
        self.journal.push(Record {
            destination,
            key,
            next,
        });
        let at = Offset(self.journal.len() as u64);
        self.answer(Input::Withdrawn {
            destination,
            key,
            at,
        });
        self.apply();
    }

    /// The process dies; another begins with what is on disk.
    pub(crate) fn crash(&mut self) {
        self.pending.clear();
        self.exchanges.clear();
        self.unwritten.clear();
        self.jumped_at = None;
        self.inherited = self.truth.keys().copied().collect();
        self.process_began = (self.at, self.wall_clock());
        self.clocks = TwoClocks::new(self.wall_clock());
        self.go_to(self.at);
        let now = self.now();
        let upto = self.journal.len();
        while self.view.applied < upto {
            let record = self.journal[self.view.applied].clone();
            self.view.apply(&record);
        }
        self.engine = Engine::new(self.caps, now);
        for (id, settings) in self.settings.clone() {
            self.input(Input::Destination {
                id,
                settings: Some(settings),
            });
        }
        self.input(Input::Applied {
            upto: Offset(upto as u64),
        });
        self.input(Input::Pause(self.paused));
    }

    pub(super) fn probe(&mut self, destination: DestinationId) {
        self.probes += 1;
        let (result, after) = match self.endpoints[&destination] {
            Behaviour::Refuses => (ProbeResult::Refused, MS),
            Behaviour::Closes => (ProbeResult::Closed, 2 * MS),
            Behaviour::Answers(..)
            | Behaviour::Breaks
            | Behaviour::Hangs(_)
            | Behaviour::HangsAtFirst(_)
            | Behaviour::Single { .. }
            | Behaviour::Random(_)
            | Behaviour::Flaky(_) => (ProbeResult::Open, 50 * MS),
        };
        self.plan(
            after,
            Pending::Input(Input::Probed {
                destination,
                result,
            }),
        );
    }
}
