//! What a test puts into a world: destinations and deliveries.

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::queue::{Offset, QueueKind, WaitReason, Waiting};
use whrelay_core::retry::Phase;
use whrelay_engine::{Input, Settings};

use super::{Started, World};
use crate::endpoints::Behaviour;
use crate::view::Record;

impl World {
    pub(crate) fn destination(&mut self, id: u32, settings: Settings, endpoint: Behaviour) {
        let id = DestinationId(id);
        self.settings.insert(id, settings.clone());
        self.endpoints.insert(id, endpoint);
        self.input(Input::Destination {
            id,
            settings: Some(settings),
        });
    }

    pub(crate) fn change(&mut self, id: u32, change: impl FnOnce(&mut Settings)) {
        let id = DestinationId(id);
        let settings = self.settings.get_mut(&id).unwrap();
        change(settings);
        let settings = Some(settings.clone());
        self.input(Input::Destination { id, settings });
    }

    pub(crate) fn event(&mut self, id: u32) -> DeliveryKey {
        self.delivery(id, BucketId(id), QueueKind::Normal, WaitReason::Turn)
    }

    pub(crate) fn delivery(
        &mut self,
        id: u32,
        bucket: BucketId,
        kind: QueueKind,
        reason: WaitReason,
    ) -> DeliveryKey {
        let destination = DestinationId(id);
        let seq = self.next_seq.entry(bucket).or_insert(0);
        *seq += 1;
        let key = DeliveryKey {
            bucket,
            seq: Seq(*seq),
            ordinal: 0,
        };
        let created_at = match reason {
            WaitReason::NotBefore(at) => at,
            WaitReason::Turn | WaitReason::Backoff { .. } | WaitReason::Offline { .. } => {
                self.wall()
            }
        };
        let waiting = Waiting {
            key,
            kind,
            created_at,
            deadline_at: self.settings[&destination].policy.deadline_of(created_at),
            reason,
            attempts: 0,
            first_failed_at: None,
            phase: Phase::Fast,
            bytes: 1000,
        };
        self.receive(destination, waiting);
        key
    }

    pub(crate) fn receive(&mut self, destination: DestinationId, waiting: Waiting) {
        self.truth.insert((destination, waiting.key), waiting);
        self.journal.push(Record {
            destination,
            key: waiting.key,
            next: Some(waiting),
        });
        let at = Offset(self.journal.len() as u64);
        let due_at = waiting.due_at(None, self.wall());
        self.answer(match waiting.reason {
            WaitReason::Turn => Input::Added {
                destination,
                delivery: waiting,
                at,
            },
            WaitReason::NotBefore(_) | WaitReason::Backoff { .. } | WaitReason::Offline { .. } => {
                Input::Due {
                    destination,
                    at: due_at,
                }
            }
        });
        self.apply();
    }

    /// Starts of one destination so far, as events and attempt numbers.
    pub(crate) fn started(&self, id: u32) -> Vec<(u64, u32)> {
        let of = |start: &&Started| start.destination == DestinationId(id);
        let starts = self.starts.iter().filter(of);
        starts
            .map(|start| (start.key.seq.0, start.number))
            .collect()
    }
}
