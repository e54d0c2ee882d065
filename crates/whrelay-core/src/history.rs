//! Two copies of one history, and the newest place on which they agree.
//!
//! A directory can be put back to an earlier copy; then numbers are given a second time, to other events. Ids
//! are never given twice, so only a number together with its event's id says that both sides speak of the same
//! event. It must not know how either side keeps its history.

use crate::bucket::Seq;
use crate::id::EventId;
use crate::limits;

/// Events of one history by number, dense near its end and ever sparser before it: enough for another copy to
/// find the place where both part, little enough to travel with every hello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locator(Vec<(Seq, EventId)>);

impl Locator {
    /// From what was stored or received. Numbers that do not ascend are left out.
    pub fn from_entries(entries: impl IntoIterator<Item = (Seq, EventId)>) -> Self {
        let mut kept: Vec<(Seq, EventId)> = Vec::new();
        for entry in entries {
            if kept.last().is_none_or(|last| last.0 < entry.0) {
                kept.push(entry);
            }
        }
        kept.drain(..kept.len().saturating_sub(limits::LOCATOR_ENTRIES));
        Self(kept)
    }

    /// Its entries, oldest first.
    pub fn entries(&self) -> &[(Seq, EventId)] {
        &self.0
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The history goes on with this event. Entries at its number and behind it belong to a history that is
    /// over.
    pub fn note(&mut self, seq: Seq, id: EventId) {
        self.end_at(Seq(seq.0.saturating_sub(1)));
        self.0.push((seq, id));
        self.thin();
    }

    /// Entries behind a number belong to a history that is over.
    pub fn end_at(&mut self, seq: Seq) {
        let kept = self.0.partition_point(|entry| entry.0 <= seq);
        self.0.truncate(kept);
    }

    /// Leaves out the entry that is missed least: whose neighbours are nearest to each other, measured by how old
    /// they are. The newest and the oldest stay.
    fn thin(&mut self) {
        if self.0.len() <= limits::LOCATOR_ENTRIES {
            return;
        }
        let newest = self.0[self.0.len() - 1].0.0;
        let age = |at: usize| u128::from(newest - self.0[at].0.0) + 1;
        let nearer = |a: &usize, b: &usize| {
            let (of_a, of_b) = (age(a - 1) * age(b + 1), age(b - 1) * age(a + 1));
            of_a.cmp(&of_b)
        };
        if let Some(least) = (1..self.0.len() - 1).min_by(nearer) {
            self.0.remove(least);
        }
    }

    /// Compares it with another history, which says what it has at a number.
    ///
    /// # Errors
    /// When the other history cannot be read.
    pub fn compare<E>(&self, mut at: impl FnMut(Seq) -> Result<Known, E>) -> Result<Comparison, E> {
        let mut common = Comparison::default();
        for (seq, id) in self.0.iter().rev() {
            let there = at(*seq)?;
            if there == Known::Event(*id) {
                common.agreed = Some(*seq);
                return Ok(common);
            }
            common.differs |= there.differs_from(*id);
        }
        Ok(common)
    }
}

/// What a history has at a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// This event.
    Event(EventId),
    /// An event that nobody can name any more: it was removed, or is damaged.
    Gone,
    /// Nothing: the number was never given.
    Never,
}

impl Known {
    /// Whether the history of someone who has this event there is another one. An event that nobody can name any
    /// more says nothing.
    pub fn differs_from(self, id: EventId) -> bool {
        match self {
            Self::Event(there) => there != id,
            Self::Never => true,
            Self::Gone => false,
        }
    }
}

/// What two histories have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The newest number at which both have the same event.
    pub agreed: Option<Seq>,
    /// Whether one has an event behind it that the other does not have.
    pub differs: bool,
}

impl Comparison {
    /// How far a claim is about this history. Events that nobody can name any more do not belie it.
    pub fn of(self, claim: &Claim) -> Seq {
        match self.differs {
            true => self.agreed.unwrap_or(Seq(0)),
            false => claim.seq,
        }
    }
}

/// What an agent says it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The last number on its disk.
    pub seq: Seq,
    /// Events up to there; empty where its version does not send any.
    pub locator: Locator,
    /// Behind this number it was sent all of them. Others of its subscription were sent those before.
    pub whole_after: Seq,
}

/// What a forwarder knows of a subscription and its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Up to here the subscription has acknowledged; nothing where it is unknown here.
    pub acked: Option<Seq>,
    /// What this same agent said that it has; nothing where it never had the subscription.
    pub own: Option<Own>,
    /// Where a subscription starts that is unknown and claims nothing.
    pub first_start: Seq,
    /// Up to here nothing can be sent any more.
    pub pruned_through: Seq,
}

/// Which events an agent said that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// It began behind this number.
    pub since: Seq,
    /// Behind this number it had all of them.
    pub whole_after: Seq,
    /// Up to here.
    pub acked: Seq,
}

/// Where a session starts, and what was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Events follow after this number; everything up to it is acknowledged.
    pub after: Seq,
    /// Which directory went back to an earlier copy, if one did.
    pub went_back: Option<WentBack>,
}

/// A directory that went back to an earlier copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WentBack {
    /// The agent has events that the forwarder does not have.
    Forwarder {
        /// The last number that the agent has.
        from: Seq,
    },
    /// The agent acknowledged events that it no longer has.
    Agent {
        /// The last number that it acknowledged.
        from: Seq,
    },
}

impl Standing {
    /// Decides where a session starts. A claim counts as an acknowledgement only as far as both histories
    /// agree; what they do not agree on is sent, and the agent knows by its id what it has.
    pub fn start(&self, claim: Option<&Claim>, common: Comparison) -> Start {
        let Some(claim) = claim else {
            let after = self.acked.unwrap_or(self.first_start);
            return self.at(after, None);
        };
        let agreed = common.agreed.unwrap_or(Seq(0));
        let has = common.of(claim);
        let is_earlier = |own: &Own| has < own.acked || own.whole_after < claim.whole_after;
        let lost = self.own.filter(is_earlier);
        let after = match self.acked {
            // Its store was salvaged: what it had is found out by sending it.
            _ if claim.seq == Seq(0) => Seq(0),
            // What others acknowledged before it came is not known here: it may lie nowhere else.
            Some(acked) if lost.is_none() && acked < claim.whole_after => acked,
            // What others acknowledged since is theirs, unless this one lost what it had itself.
            Some(acked) if lost.is_none() => agreed.max(acked),
            // Without events to compare, its word counts where it asks for more, never where it asks for less.
            Some(acked) if claim.locator.is_empty() => claim.seq.min(acked),
            // The copy may be of a time before it was sent what others have of it.
            Some(_) => match lost {
                Some(own) if own.since < claim.whole_after => agreed.min(own.since),
                _ => agreed,
            },
            None => agreed,
        };
        let went_back = match lost {
            _ if common.differs => Some(WentBack::Forwarder { from: claim.seq }),
            lost => lost.map(|own| WentBack::Agent { from: own.acked }),
        };
        self.at(after, went_back)
    }

    fn at(&self, after: Seq, went_back: Option<WentBack>) -> Start {
        Start {
            after: after.max(self.pruned_through),
            went_back,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::Timestamp;

    fn id(history: u64, seq: u64) -> EventId {
        let random = u128::from(history) << 64 | u128::from(seq);
        EventId::from_parts(Timestamp::EPOCH, random & ((1 << 80) - 1))
    }

    /// A history that is `old` up to a fork and `new` behind it.
    fn forked(fork: u64) -> impl Fn(u64) -> EventId {
        move |seq| id(if seq <= fork { 1 } else { 2 }, seq)
    }

    fn noted(seqs: impl Iterator<Item = u64>, id: impl Fn(u64) -> EventId) -> Locator {
        let mut locator = Locator::default();
        seqs.for_each(|seq| locator.note(Seq(seq), id(seq)));
        locator
    }

    fn own(acked: u64) -> Option<Own> {
        Some(Own {
            since: Seq(0),
            whole_after: Seq(14),
            acked: Seq(acked),
        })
    }

    fn standing(acked: u64) -> Standing {
        Standing {
            acked: Some(Seq(acked)),
            own: own(acked),
            first_start: Seq(0),
            pruned_through: Seq(0),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_locator_stays_small_and_near_every_place(
            last in 1u64..20_000, step in 1usize..9, back in 0u64..20_000,
        ) {
            let locator = noted((1..=last).step_by(step), |seq| id(1, seq));
            prop_assert!(locator.entries().len() <= limits::LOCATOR_ENTRIES);
            let newest = locator.entries().last().expect("some").0.0;
            // The next entry at or before any place is at most four times as far from the end.
            let wanted = newest.saturating_sub(back);
            let found = locator.entries().iter().rev().find(|entry| entry.0.0 <= wanted);
            let found = found.map_or(0, |entry| entry.0.0);
            prop_assert!(newest - found <= 4 * (newest - wanted) + 4 * step as u64 + 4);
        }

        #[test]
        fn both_agree_on_a_place_before_the_fork_and_miss_nothing_behind_it(
            fork in 0u64..900, ours in 0u64..900, theirs in 0u64..900, acked in 0u64..900,
        ) {
            let (agent_last, last) = (fork + ours, fork + theirs);
            let claim = Claim {
                seq: Seq(agent_last),
                locator: noted(1..=agent_last, |seq| id(1, seq)),
                whole_after: Seq(0),
            };
            let here = forked(fork);
            let at = |seq: Seq| Ok::<_, ()>(match seq.0 <= last {
                true => Known::Event(here(seq.0)),
                false => Known::Never,
            });
            let common = claim.locator.compare(at).expect("readable");
            let start = standing(acked.min(last)).start(Some(&claim), common);
            prop_assert!(start.after.0 <= fork, "what lies behind the fork is sent");
            prop_assert_eq!(common.differs, ours > 0);
        }
    }

    #[test]
    fn a_short_history_is_told_whole() {
        let all = noted(1..=limits::LOCATOR_ENTRIES as u64, |seq| id(1, seq));
        assert_eq!(all.entries().len(), limits::LOCATOR_ENTRIES);
    }

    #[test]
    fn a_history_that_starts_anew_drops_what_it_replaces() {
        let mut locator = noted(1..=20, |seq| id(1, seq));
        locator.note(Seq(6), id(2, 6));
        assert!(locator.entries().iter().all(|(seq, _)| seq.0 <= 6));
        assert_eq!(locator.entries().last(), Some(&(Seq(6), id(2, 6))));
    }

    #[test]
    fn a_number_alone_is_no_acknowledgement() {
        let claim = |seq| Claim {
            seq: Seq(seq),
            locator: Locator::default(),
            whole_after: Seq(0),
        };
        let start = |seq| standing(10).start(Some(&claim(seq)), Comparison::default());
        assert_eq!(start(1 << 60).after, Seq(10));
        assert_eq!(start(10).after, Seq(10));
        let back = start(4);
        assert_eq!(back.after, Seq(4));
        assert_eq!(back.went_back, Some(WentBack::Agent { from: Seq(10) }));
    }

    #[test]
    fn another_agents_place_moves_a_subscription_only_forward() {
        let others = Standing {
            own: own(20),
            ..standing(40)
        };
        let claim = Claim {
            seq: Seq(20),
            locator: noted(1..=20, |seq| id(1, seq)),
            whole_after: Seq(0),
        };
        let agreed = |seq| Comparison {
            agreed: Some(Seq(seq)),
            differs: false,
        };
        let start = others.start(Some(&claim), agreed(20));
        assert_eq!((start.after, start.went_back), (Seq(40), None));
        assert_eq!(others.start(Some(&claim), agreed(50)).after, Seq(50));
        // It says the same again before it receives anything.
        let start = others.start(Some(&claim), agreed(20));
        assert_eq!((start.after, start.went_back), (Seq(40), None));
        // One that lost what it had acknowledged itself is sent that again.
        let lost = Standing {
            own: own(25),
            ..others
        };
        let start = lost.start(Some(&claim), agreed(20));
        assert_eq!(start.after, Seq(20));
        assert_eq!(start.went_back, Some(WentBack::Agent { from: Seq(25) }));
    }

    #[test]
    fn what_others_were_sent_before_an_agent_came_is_sent_again_where_nobody_knows_of_it() {
        let claim = Claim {
            seq: Seq(20),
            locator: noted(15..=20, |seq| id(1, seq)),
            whole_after: Seq(14),
        };
        let common = Comparison {
            agreed: Some(Seq(20)),
            differs: false,
        };
        let start = |acked| standing(acked).start(Some(&claim), common).after;
        assert_eq!([start(3), start(14), start(18)], [Seq(3), Seq(20), Seq(20)]);
        // An agent that had more of it once, and is a copy of a time before that.
        let more = Own {
            since: Seq(4),
            whole_after: Seq(16),
            acked: Seq(25),
        };
        // Or that was sent the rest once more, and had not come as far again.
        let again = Own {
            whole_after: Seq(4),
            acked: Seq(18),
            ..more
        };
        for own in [more, again] {
            let went_back = Standing {
                own: Some(own),
                ..standing(25)
            };
            assert_eq!(went_back.start(Some(&claim), common).after, Seq(4));
        }
    }

    #[test]
    fn what_is_pruned_cannot_be_sent_and_a_claim_at_its_edge_is_no_step_back() {
        let pruned = Standing {
            pruned_through: Seq(20),
            ..standing(20)
        };
        let claim = Claim {
            seq: Seq(20),
            locator: noted(1..=20, |seq| id(1, seq)),
            whole_after: Seq(0),
        };
        let common = claim.locator.compare(|_| Ok::<_, ()>(Known::Gone));
        let start = pruned.start(Some(&claim), common.expect("readable"));
        assert_eq!((start.after, start.went_back), (Seq(20), None));
    }

    #[test]
    fn a_claim_of_nothing_is_sent_everything() {
        let nothing = Claim {
            seq: Seq(0),
            locator: Locator::default(),
            whole_after: Seq(0),
        };
        let others = Standing {
            own: None,
            ..standing(10)
        };
        for standing in [standing(10), others] {
            let start = standing.start(Some(&nothing), Comparison::default());
            assert_eq!(start.after, Seq(0));
        }
    }

    #[test]
    fn an_unknown_subscription_starts_where_it_is_told_and_a_forgotten_one_where_it_was() {
        let unknown = Standing {
            acked: None,
            own: None,
            first_start: Seq(7),
            ..standing(0)
        };
        assert_eq!(unknown.start(None, Comparison::default()).after, Seq(7));
        let claim = Claim {
            seq: Seq(9),
            locator: noted(1..=9, |seq| id(1, seq)),
            whole_after: Seq(0),
        };
        let common = Comparison {
            agreed: Some(Seq(5)),
            differs: true,
        };
        let start = unknown.start(Some(&claim), common);
        assert_eq!(start.after, Seq(5));
        assert_eq!(start.went_back, Some(WentBack::Forwarder { from: Seq(9) }));
    }
}
