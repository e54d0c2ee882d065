//! What the model removes. It must not know who asks, nor when.

use whrelay_core::bucket::{BucketId, Seq};
use whrelay_core::delivery::Delivery;
use whrelay_core::event::Event;
use whrelay_core::retention::Part;
use whrelay_core::time::Timestamp;
use whrelay_store::Found;

use super::super::planted::Bug;
use super::super::vault::{Done, Vault};
use super::Model;

impl Model {
    pub(super) fn remove(
        &mut self,
        bucket: BucketId,
        found: &[Found],
        by: Timestamp,
        part: Part,
    ) -> Done {
        let mut removed = 0;
        for (_, seq) in found {
            let all = self.deliveries_of(bucket, *seq);
            let waits = self.planted != Some(Bug::RetentionTakesWhatWaits);
            let early = self.planted != Some(Bug::RetentionIsTooEarly);
            let kept = all.iter().any(|delivery| match delivery.ended_at {
                None => waits,
                Some(at) => at > by && early,
            });
            let Some(event) = self.events.get_mut(&(bucket, *seq)).filter(|_| !kept) else {
                continue;
            };
            if part == Part::Body {
                removed += u64::from(remove_body(event));
                continue;
            }
            removed += 1;
            // Its id stays: the event is known, should it come again.
            self.events.remove(&(bucket, *seq));
            for delivery in all {
                self.deliveries.remove(&delivery.key);
                let place = (delivery.destination, delivery.state);
                if let Some(count) = self.counts.get_mut(&place) {
                    *count -= 1;
                }
                self.list(&Delivery {
                    wait: None,
                    ..delivery
                });
            }
        }
        Done::Removed(removed)
    }

    pub(super) fn remove_receipted(
        &mut self,
        bucket: BucketId,
        by: Timestamp,
        part: Part,
        max: usize,
    ) -> Done {
        let mine = self.subscriptions.iter();
        let mine = mine.filter(|((of, _), _)| *of == bucket);
        let places = mine.map(|(_, known)| known.acked);
        let receipted = match (self.planted, part) {
            (Some(Bug::RetentionForgetsASubscription), Part::Whole)
            | (Some(Bug::BodiesForgetASubscription), Part::Body) => places.max(),
            _ => places.min(),
        };
        let upto = (bucket, receipted.unwrap_or_default());
        let from = match part {
            Part::Body => self.bare_upto(bucket),
            Part::Whole => Seq(0),
        };
        if from >= upto.1 {
            return Done::Removed(0);
        }
        let old = self.events.range((bucket, Seq(from.0 + 1))..=upto);
        let old = old.take_while(|(_, event)| event.received_at <= by);
        let old: Vec<_> = old.take(max).map(|(key, event)| (*key, event.id)).collect();
        let mut removed = 0;
        for (key, id) in &old {
            removed += u64::from(match part {
                Part::Body => {
                    self.bare.insert(bucket, key.1);
                    self.events.get_mut(key).is_some_and(remove_body)
                }
                Part::Whole => {
                    self.places.remove(id);
                    self.events.remove(key).is_some()
                }
            });
        }
        Done::Removed(removed)
    }
}

/// Removes a body. What has none is left as it is.
fn remove_body(event: &mut Event) -> bool {
    let had = event.request.body.len() as u64;
    if had > 0 {
        event.removed_body = Some(had);
        event.request.body.clear();
    }
    had > 0
}
