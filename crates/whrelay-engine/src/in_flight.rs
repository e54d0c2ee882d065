//! Deliveries between their start and the view's knowledge of how they ended. A slot is taken
//! until the record is on disk; the key is remembered until the view has applied the record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use whrelay_core::bucket::BucketId;
use whrelay_core::delivery::{DeliveryKey, DestinationId};
use whrelay_core::queue::{Offset, Waiting};
use whrelay_core::time::Timestamp;

use crate::Token;
use crate::action::Append;

/// Whether an exchange runs or its record is being written.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Running,
    Appending(Append),
}

/// The slot that an attempt takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Whether its destination was healthy when it started.
    pub(crate) is_healthy: bool,
    /// The endpoint that it went to.
    pub(crate) endpoint_id: u64,
}

/// One delivery that was started or is given up.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) delivery: Waiting,
    pub(crate) destination: DestinationId,
    /// `None` if it is given up at its deadline.
    pub(crate) slot: Option<Slot>,
    pub(crate) stage: Stage,
    /// When it is overdue.
    overdue_at: Option<Instant>,
}

/// A delivery whose record is on disk and not in the view.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remembered {
    pub(crate) destination: DestinationId,
    pub(crate) key: DeliveryKey,
    /// When it is due again, and its deadline.
    pub(crate) next: Option<(Timestamp, Timestamp)>,
    /// The bucket whose order waits for it.
    pub(crate) blocks: Option<BucketId>,
}

/// Everything that was started, given up or remembered.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight {
    tokens: u64,
    flights: BTreeMap<Token, Flight>,
    overdue: BTreeSet<(Instant, Token)>,
    remembered: BTreeMap<(Offset, DeliveryKey), Remembered>,
    /// How many reasons there are to ignore a row of the view with this key.
    known: BTreeMap<DeliveryKey, u32>,
}

impl InFlight {
    /// A token that no other has.
    pub(crate) fn token(&mut self) -> Token {
        self.tokens = self.tokens.wrapping_add(1);
        Token(self.tokens)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    pub(crate) fn remembered(&self) -> usize {
        self.remembered.len()
    }

    /// Whether a row of the view with this key is out of date.
    pub(crate) fn knows(&self, key: DeliveryKey) -> bool {
        self.known.contains_key(&key)
    }

    pub(crate) fn forget(&mut self, key: DeliveryKey) {
        if let Some(reasons) = self.known.get_mut(&key) {
            *reasons = reasons.saturating_sub(1);
            if *reasons == 0 {
                self.known.remove(&key);
            }
        }
    }

    fn know(&mut self, key: DeliveryKey) {
        *self.known.entry(key).or_default() += 1;
    }

    pub(crate) fn insert(
        &mut self,
        token: Token,
        (delivery, destination): (Waiting, DestinationId),
        slot: Option<Slot>,
    ) {
        self.know(delivery.key);
        let flight = Flight {
            delivery,
            destination,
            slot,
            stage: Stage::Running,
            overdue_at: None,
        };
        self.flights.insert(token, flight);
    }

    pub(crate) fn get(&self, token: Token) -> Option<&Flight> {
        self.flights.get(&token)
    }

    /// Moves on to writing `append`.
    pub(crate) fn append(&mut self, token: Token, append: Append) {
        if let Some(flight) = self.flights.get_mut(&token) {
            flight.stage = Stage::Appending(append);
        }
    }

    /// Ends a flight. Its key stays known.
    pub(crate) fn remove(&mut self, token: Token) -> Option<Flight> {
        let flight = self.flights.remove(&token)?;
        if let Some(at) = flight.overdue_at {
            self.overdue.remove(&(at, token));
        }
        Some(flight)
    }

    /// Sets or clears when a flight is overdue.
    pub(crate) fn set_overdue(&mut self, token: Token, at: Option<Instant>) {
        let Some(flight) = self.flights.get_mut(&token) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut flight.overdue_at, at) {
            self.overdue.remove(&(old, token));
        }
        self.overdue.extend(at.map(|at| (at, token)));
    }

    pub(crate) fn first_overdue(&self, now: Instant) -> Option<Token> {
        let (at, token) = self.overdue.first()?;
        (*at <= now).then_some(*token)
    }

    pub(crate) fn next_overdue_at(&self) -> Option<Instant> {
        self.overdue.first().map(|(at, _)| *at)
    }

    /// Remembers a delivery until the view has applied `at`. Its key is known already.
    pub(crate) fn remember(&mut self, at: Offset, remembered: Remembered) {
        let key = remembered.key;
        if self.remembered.insert((at, key), remembered).is_some() {
            self.forget(key);
        }
    }

    /// Remembers a delivery that somebody else ended.
    pub(crate) fn withdraw(&mut self, at: Offset, remembered: Remembered) {
        self.know(remembered.key);
        self.remember(at, remembered);
    }

    /// The next delivery that the view has applied, where it has applied all up to `upto`. Its
    /// key stays known.
    pub(crate) fn pop_applied(&mut self, upto: Offset) -> Option<Remembered> {
        let first = self.remembered.first_entry()?;
        (first.key().0 <= upto).then(|| first.remove())
    }
}
