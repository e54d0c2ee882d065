//! Queues answer what a model of them answers, whatever was done to their deliveries before.

#[path = "../../../whrelay-engine/tests/engine/view.rs"]
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use whrelay_core::bucket::{Bucket, Seq};
use whrelay_core::delivery::{Attempt, DeadReason, Delivery, DestinationId};
use whrelay_core::order::Order;
use whrelay_core::queue::{DueBy, QueuePage, QueueQuery, Waiting, Wanted};
use whrelay_core::retry::{Pause, Phase, Verdict};
use whrelay_core::time::Timestamp;
use whrelay_store::{Again, NewDelivery, NewEvent, RedbStore, Role};

use crate::setup::*;
use view::{Record, View};

const DESTINATIONS: u32 = 2;
const BUCKETS: [&str; 2] = ["default", "other"];

/// What may happen to a queue.
#[derive(Clone, Copy, Debug)]
enum Step {
    Append {
        from: usize,
        to: u32,
        later: u64,
        lives: u64,
    },
    Replay {
        of: usize,
        later: u64,
        lives: u64,
    },
    Fail {
        of: usize,
        after: u64,
        wait: u64,
        pause: u8,
    },
    End {
        of: usize,
    },
    RetryNow {
        of: usize,
    },
    Postpone {
        of: usize,
        by: u64,
    },
    Return {
        of: u32,
        at: u64,
    },
    Move {
        from: u32,
    },
}

/// A query that is made once all steps are done.
#[derive(Clone, Copy, Debug)]
struct Asked {
    is_fifo: bool,
    wanted: Wanted,
    now: u64,
    behind: u64,
    expired_by: u64,
    max: usize,
}

fn steps() -> impl Strategy<Value = Step> {
    let (seconds, of) = (0..1000u64, 0..40usize);
    let later = prop_oneof![3 => Just(0), 1 => 1..1000u64];
    let to = 0..DESTINATIONS;
    prop_oneof![
        4 => (0..BUCKETS.len(), to.clone(), later.clone(), 500..9000u64)
            .prop_map(|(from, to, later, lives)| Step::Append { from, to, later, lives }),
        2 => (of.clone(), later, 500..9000u64)
            .prop_map(|(of, later, lives)| Step::Replay { of, later, lives }),
        4 => (of.clone(), seconds.clone(), seconds.clone(), 0..3u8)
            .prop_map(|(of, after, wait, pause)| Step::Fail { of, after, wait, pause }),
        1 => of.clone().prop_map(|of| Step::End { of }),
        1 => of.clone().prop_map(|of| Step::RetryNow { of }),
        1 => (of, seconds.clone()).prop_map(|(of, by)| Step::Postpone { of, by }),
        1 => (to.clone(), seconds).prop_map(|(of, at)| Step::Return { of, at }),
        1 => to.prop_map(|from| Step::Move { from }),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let wanted = prop_oneof![
        8 => any::<bool>().prop_map(|is_fifo| (is_fifo, Wanted::All)),
        1 => any::<bool>().prop_map(|is_fifo| (is_fifo, Wanted::Expired)),
        2 => Just((false, Wanted::New)),
    ];
    let times = (0..2500u64, 0..500u64, 0..9000u64);
    (wanted, times, 4..30usize).prop_map(|((is_fifo, wanted), (now, behind, by), max)| Asked {
        is_fifo,
        wanted,
        now,
        behind,
        expired_by: by,
        max,
    })
}

fn at(seconds: u64) -> Timestamp {
    NOW.after(Duration::from_secs(seconds))
}

struct World {
    store: RedbStore,
    buckets: Vec<Bucket>,
    ids: Vec<DestinationId>,
    /// Raised by a millisecond with each delivery.
    created: u64,
}

fn failed(delivery: &Delivery, after: u64, wait: u64, pause: u8) -> Attempt {
    let pauses = [Pause::Backoff, Pause::Offline, Pause::Asked];
    let verdict = Verdict::RetryAt {
        at: at(after + wait),
        phase: Phase::Fast,
        pause: pauses[pause as usize],
    };
    Attempt {
        at: at(after),
        duration: Duration::ZERO,
        ..attempt(delivery, verdict)
    }
}

impl World {
    async fn new() -> Self {
        let store = memory(Role::Agent);
        let mut buckets = Vec::new();
        for name in BUCKETS {
            buckets.push(bucket_named(&store, name).await);
        }
        let mut ids = Vec::new();
        for n in 0..DESTINATIONS {
            let target = format!("http://localhost:{}", 3000 + n);
            ids.push(
                store
                    .ensure_destination(buckets[0].id, &target)
                    .await
                    .expect("stored"),
            );
        }
        Self {
            store,
            buckets,
            ids,
            created: 0,
        }
    }

    fn deliveries(&self) -> Vec<Delivery> {
        let of_bucket = |bucket: &Bucket| {
            let last = self.store.last_seq(bucket.id).expect("read").0;
            let of = |seq| self.store.deliveries_of(bucket.id, Seq(seq));
            (1..=last)
                .flat_map(|seq| of(seq).expect("read"))
                .collect::<Vec<_>>()
        };
        self.buckets.iter().flat_map(of_bucket).collect()
    }

    fn new_delivery(&mut self, to: DestinationId, later: u64, lives: u64) -> NewDelivery {
        self.created += 1;
        let created_at = NOW.after(Duration::from_millis(self.created));
        let deadline = Duration::from_secs(lives) + Duration::from_micros(self.created);
        NewDelivery {
            created_at,
            due_at: created_at.after(Duration::from_secs(later)),
            deadline_at: created_at.after(deadline),
            ..new_delivery(self.created, to)
        }
    }

    async fn append(&mut self, from: usize, to: u32, later: u64, lives: u64) {
        let from = self.buckets[from].id;
        let to = self.ids[to as usize];
        let new = self.new_delivery(to, later, lives);
        let new = NewEvent {
            event: event(self.created),
            deliveries: vec![new],
        };
        let stored = self.store.append(from, vec![new], None).await;
        stored.expect("stored");
    }

    async fn step(&mut self, step: Step) {
        let all = self.deliveries();
        let pick = |of: usize| all.get(of % all.len().max(1)).cloned();
        let waits = |of: usize| pick(of).filter(|delivery| delivery.wait.is_some());
        match step {
            Step::Append {
                from,
                to,
                later,
                lives,
            } => self.append(from, to, later, lives).await,
            Step::Replay { of, later, lives } => {
                let Some(old) = pick(of) else { return };
                let new = NewDelivery {
                    replay: true,
                    ..self.new_delivery(old.destination, later, lives)
                };
                let again = Again {
                    bucket: old.key.bucket,
                    seq: old.key.seq,
                    event: old.event,
                    new,
                };
                self.store.deliver_again(vec![again]).await.expect("stored");
            }
            Step::Fail {
                of,
                after,
                wait,
                pause,
            } => {
                let Some(delivery) = waits(of) else { return };
                let failed = failed(&delivery, after, wait, pause);
                self.store.record(failed).await.expect("stored");
            }
            Step::End { of } => {
                let Some(delivery) = waits(of) else { return };
                let dead = Verdict::Dead(DeadReason::Rejected);
                self.store
                    .record(attempt(&delivery, dead))
                    .await
                    .expect("stored");
            }
            Step::RetryNow { of } => {
                let keys = waits(of).map(|delivery| delivery.key).into_iter().collect();
                self.store.retry_now(keys).await.expect("stored");
            }
            Step::Postpone { of, by } => {
                let Some(delivery) = waits(of) else { return };
                let delay = Duration::from_secs(by);
                self.store
                    .postpone(delivery.key, NOW, delay)
                    .await
                    .expect("stored");
            }
            Step::Return { of, at: then } => {
                returned(&self.store, self.ids[of as usize], at(then)).await
            }
            Step::Move { from } => {
                let (from, to) = (self.ids[from as usize], self.ids[1 - from as usize]);
                self.store
                    .move_deliveries(from, to, NOW)
                    .await
                    .expect("stored");
            }
        }
    }

    fn view(&self) -> View {
        let mut view = View::default();
        for delivery in self.deliveries() {
            view.apply(&Record {
                destination: delivery.destination,
                key: delivery.key,
                next: delivery.waiting(),
            });
        }
        for destination in self.store.destinations().expect("read") {
            let back = destination.back_since.map(|back| (destination.id, back));
            view.back_since.extend(back);
        }
        view
    }

    fn agrees(&self, asked: Asked) {
        let mut view = self.view();
        let now = at(asked.now);
        for id in &self.ids {
            let query = QueueQuery {
                order: if asked.is_fifo {
                    Order::Fifo
                } else {
                    Order::Arrival
                },
                due: DueBy {
                    now,
                    not_before: now.before(Duration::from_secs(asked.behind)),
                    back_since: view.back_since.get(id).copied(),
                },
                expired_by: at(asked.expired_by),
                wanted: asked.wanted,
                max: asked.max,
            };
            let read = self.store.queue(*id, &query).expect("read");
            assert_eq!(read.strays, []);
            let expected = view.page(*id, &query);
            let (mut found, mut expected) = (told(read.page, now), told(expected, now));
            if asked.wanted != Wanted::All {
                for page in [&mut expected, &mut found] {
                    (page.next_at, page.has_more) = (None, false);
                }
            }
            if asked.is_fifo && expected.waiting.len() == asked.max {
                // A full page may ask for a further read that finds nothing.
                let at = |page: &QueuePage| page.next_at.unwrap_or(Timestamp::LAST);
                assert!(at(&found) <= at(&expected), "{query:?}");
                for page in [&mut expected, &mut found] {
                    page.next_at = None;
                }
            }
            let brief = |page: &QueuePage| (keys(page), page.next_at, page.has_more);
            assert_eq!(brief(&found), brief(&expected), "{query:?}");
            assert_eq!(found, expected, "{query:?}");
        }
        self.lists_the_same(&view, now);
    }

    /// All pages of due destinations.
    fn lists_the_same(&self, view: &View, now: Timestamp) {
        let (mut found, mut after) = (BTreeMap::new(), None);
        loop {
            let page = self
                .store
                .due_destinations(now, after, 1, now)
                .expect("read");
            for (id, at) in page.rows {
                let earliest = found.entry(id).or_insert(at);
                *earliest = at.min(*earliest);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let expected = view.due_destinations(now, None, 99, now).rows;
        // Whether something is due already or since when makes no difference.
        let told = |(id, at): (DestinationId, Timestamp)| (id, at.max(now));
        // A return in the future was written by a wrong clock: that one may be read for nothing.
        let is_odd = |id: &DestinationId| view.back_since.get(id).is_some_and(|back| *back > now);
        found.retain(|id, _| !is_odd(id));
        let expected = expected.into_iter().filter(|(id, _)| !is_odd(id));
        let found: Vec<_> = found.into_iter().map(told).collect();
        let mut expected: Vec<_> = expected.map(told).collect();
        expected.sort();
        assert_eq!(found, expected);
    }
}

fn keys(page: &QueuePage) -> Vec<(u32, u64, u32)> {
    let key = |waiting: &Waiting| (waiting.key.bucket.0, waiting.key.seq.0, waiting.key.ordinal);
    page.waiting.iter().map(key).collect()
}

/// A page; whether the next row is due already or since when makes no difference.
fn told(page: QueuePage, now: Timestamp) -> QueuePage {
    QueuePage {
        next_at: page.next_at.map(|at| at.max(now)),
        ..page
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn queues_answer_what_a_model_answers(
        steps in prop::collection::vec(steps(), 1..60),
        asked in prop::collection::vec(asked(), 1..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.step(step).await;
            }
            asked.into_iter().for_each(|asked| world.agrees(asked));
            prop_assert!(indexes_are_whole(&world.store));
            Ok(())
        })?;
    }
}
