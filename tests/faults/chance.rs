//! Chance from one seed: the same seed draws the same numbers for ever.

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

/// A seeded source of chance.
#[derive(Clone, Debug)]
pub(crate) struct Chance(SmallRng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound)
    }

    /// True in `share` of a thousand cases.
    pub(crate) fn permille(&mut self, share: u32) -> bool {
        self.below(1000) < u64::from(share)
    }

    /// An index into something that has `len` elements, more than none.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// One of them.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.index(all.len())]
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
}
