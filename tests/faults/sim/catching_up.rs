//! What an agent passes over of what came before it began, and the rule that judges it.

use whrelay_core::backlog::{Backlog, Cut};
use whrelay_core::bucket::Seq;
use whrelay_core::delivery::{Asked, Attempt, DeadReason, State};
use whrelay_core::event::Event;
use whrelay_core::time::Timestamp;
use whrelay_proto::frame::Welcome;
use whrelay_store::{Begin, Search};

use super::ledger::{Ledger, Verdicts, hold};
use super::node::Purpose;
use super::planted::Bug;
use super::seen::Point;
use super::vault::{Vault, Write};
use super::world::World;
use crate::chance::Chance;

/// How a process began: what it wants, and the forwarder's last place when it was welcomed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    wanted: Backlog,
    last: u64,
    /// The forwarder's last place when it went back behind that.
    kept: Option<u64>,
}

impl Begun {
    /// The forwarder's directory went back to a copy with this last place.
    pub(crate) fn went_back_to(&mut self, last: Seq) {
        let last = last.0;
        if last < self.kept.unwrap_or(self.last) {
            self.kept = Some(last);
        }
    }
}

/// How much somebody wants of what came before.
pub(crate) fn draw(chance: &mut Chance, now: Timestamp) -> Backlog {
    let newest = *chance.pick(&[None, Some(0), Some(1), Some(5)]);
    let since = *chance.pick(&[None, None, Some(1), Some(3600)]);
    Backlog {
        newest,
        since: since.map(|back| now.before(std::time::Duration::from_secs(back))),
    }
}

/// What the real append asks.
pub(crate) fn passes_over(
    cut: Option<&mut Cut>,
    (forwarder, place, received_at): (&str, u64, Timestamp),
    planted: Option<Bug>,
) -> bool {
    let Some(cut) = cut else { return false };
    let passes_over = cut.passes_over(forwarder, place, received_at);
    match planted {
        Some(Bug::BacklogIgnored) => false,
        Some(Bug::BacklogTakesWhatIsNew) => passes_over || cut.wanted().newest == Some(0),
        Some(_) | None => passes_over,
    }
}

impl<V: Vault> World<V> {
    /// The first welcome of a process says what came before; what waits on its own disk and is not wanted
    /// is given up.
    pub(crate) fn catch_up(&mut self, n: usize, welcome: &Welcome, there: Seq) {
        let now = self.now_at(n).now;
        let node = &mut self.agents[n];
        let Some(process) = node
            .process
            .as_mut()
            .filter(|process| process.cut.is_none())
        else {
            return;
        };
        let wanted = process.wanted;
        let cut = welcome.cut(wanted);
        let last = there.0;
        let kept = None;
        self.ledger.begun.insert(n, Begun { wanted, last, kept });
        let search = Search {
            bucket: node.bucket.id,
            states: vec![State::Queued, State::Stalled],
            since: None,
            until: None,
        };
        let waiting = node.vault.search(&search, Begin::Newest, None, usize::MAX);
        for (at, (id, seq)) in (0..).zip(waiting) {
            let old = wanted.since.is_some_and(|since| id.minted_at() < since);
            if at < cut.wanted_here() && !old {
                continue;
            }
            let rows = node.vault.deliveries_of(node.bucket.id, seq);
            for row in rows.into_iter().filter(|row| !row.state.is_finished()) {
                self.seen.note(Point::PassedOverHere);
                let (asked, reason) = (Asked::default(), DeadReason::Discarded);
                let attempt = Attempt::given_up(&row, asked, now, reason, "");
                let row = Box::new(row);
                let write = Write::GiveUp(Box::new(attempt));
                process
                    .desk
                    .asked
                    .push_back((write, Purpose::Discard { row }));
            }
        }
        process.cut = Some(cut);
    }
}

impl Ledger {
    /// A later session of an agent that had come to `reached`. Events that are sent again are delivered.
    pub(crate) fn resumes(&mut self, n: usize, reached: u64, start: u64) {
        let begun = self.begun.get_mut(&n).filter(|_| start < reached);
        begun
            .into_iter()
            .for_each(|begun| begun.went_back_to(Seq(start)));
    }

    /// C2: what comes after an agent began is never passed over, and of what came before exactly what was not
    /// wanted. Once the forwarder went back behind that, its numbers may be given to other events, of which
    /// none is passed over; `is_there` says that it has this one.
    pub(crate) fn caught_up(
        &self,
        n: usize,
        (place, is_there): (u64, bool),
        event: &Event,
        passed: bool,
    ) -> Verdicts {
        let kept = self.begun.get(&n).and_then(|begun| begun.kept);
        if let Some(kept) = kept {
            let is_new = place > kept && is_there;
            return hold(!(is_new && passed), "C2", || {
                format!(
                    "{} has a number that was given again, and is passed over",
                    event.id
                )
            });
        }
        let unwanted = self.begun.get(&n).is_some_and(|begun| {
            let Backlog { newest, since } = begun.wanted;
            let newer = begun.last.checked_sub(place);
            let beyond = |newer| newest.is_some_and(|newest| newer >= newest);
            let old = since.is_some_and(|since| event.received_at < since);
            newer.is_some_and(|newer| old || beyond(newer))
        });
        hold(passed == unwanted, "C2", || {
            let id = event.id;
            format!("{id} is passed over: {passed}, and not wanted: {unwanted}")
        })
    }
}
