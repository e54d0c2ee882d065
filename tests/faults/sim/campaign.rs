//! Many worlds: seeds shared out over threads, coverage added up, and the first failure told so that
//! one number brings it back.

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use strum::IntoEnumIterator;

use super::model::Model;
use super::planted::Bug;
use super::seen::{Point, Seen};
use super::vault::Vault;
use super::world::{self, Ending, Plan};
use crate::report::{self, Row};

/// Events posted in one world.
const EVENTS: u32 = 40;
/// Every so many seeds one runs twice, and both runs must take the same steps.
const TWICE_EVERY: u64 = 1000;
/// Seeds after which a planted bug counts as not found.
const MOST_SEEDS: u64 = 20_000;

fn plan(seed: u64, planted: Option<Bug>) -> Plan {
    Plan {
        seed,
        events: EVENTS,
        planted,
        tells: false,
    }
}

/// A campaign: worlds over one kind of store, until so many events have lived.
#[derive(Clone, Copy)]
pub(crate) struct Campaign {
    pub(crate) name: &'static str,
    pub(crate) lifetimes: u64,
    /// Whether every point has to be reached.
    pub(crate) must_cover: bool,
    pub(crate) ring: u8,
    pub(crate) fault: &'static str,
    /// What else was counted.
    pub(crate) also: fn() -> String,
}

impl Campaign {
    /// Runs it on all cores. Says whether all held.
    pub(crate) fn run<V: Vault>(self) -> bool {
        let began = Instant::now();
        let (next, total) = (AtomicU64::new(1), Mutex::new(Seen::default()));
        let failed = Mutex::new(None::<(u64, String)>);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let enough = total.lock().unwrap().lifetimes >= self.lifetimes;
                        if enough || failed.lock().unwrap().is_some() {
                            return;
                        }
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        match live::<V>(seed) {
                            Ok(ending) => *total.lock().unwrap() += &ending.seen,
                            Err(why) => *failed.lock().unwrap() = Some((seed, why)),
                        }
                    }
                });
            }
        });
        let (seen, failed) = (total.into_inner().unwrap(), failed.into_inner().unwrap());
        if let Some((seed, why)) = &failed {
            let Self { name, .. } = self;
            println!("{name}: seed {seed}: {why}\n  again: whrelay-faults {name} --seed {seed}");
        }
        let seeds = next.into_inner() - 1;
        let held = report::tell(&Row {
            ring: self.ring,
            fault: self.fault.to_owned(),
            tried: format!("{} event lifetimes", seen.lifetimes),
            failures: u64::from(failed.is_some()),
            counted: format!(
                "{} crashes, {} steps, {seeds} seeds{}",
                seen.crashes,
                seen.steps,
                (self.also)()
            ),
            seconds: began.elapsed().as_secs_f64(),
        });
        self.covers(&seen) && held
    }

    fn covers(&self, seen: &Seen) -> bool {
        let reached = Point::iter().map(|point| format!("{point:?} {}", seen.times(point)));
        println!("reached: {}", reached.collect::<Vec<_>>().join(", "));
        let missed: Vec<_> = Point::iter()
            .filter(|point| seen.times(*point) == 0)
            .collect();
        if !missed.is_empty() {
            println!("never reached: {missed:?}");
        }
        missed.is_empty() || !self.must_cover
    }
}

/// A panic is a finding like any other, with its seed.
fn live<V: Vault>(seed: u64) -> Result<Ending, String> {
    let ending = caught::<V>(plan(seed, None))?;
    if let Err(violation) = &ending.verdict {
        return Err(format!("{} {}", violation.invariant, violation.what));
    }
    if seed.is_multiple_of(TWICE_EVERY) {
        let again = caught::<V>(plan(seed, None))?;
        if again.trace != ending.trace {
            return Err("the second run of this seed took other steps".to_owned());
        }
    }
    Ok(ending)
}

fn caught<V: Vault>(plan: Plan) -> Result<Ending, String> {
    catch_unwind(|| world::run::<V>(plan)).map_err(|_| "a panic, told above".to_owned())
}

/// Runs one world and tells its last steps. Says whether all held.
pub(crate) fn one<V: Vault>(seed: u64, told: usize) -> bool {
    let ending = world::run::<V>(Plan {
        tells: true,
        ..plan(seed, None)
    });
    let from = ending.story.len().saturating_sub(told);
    for step in &ending.story[from..] {
        println!("{step}");
    }
    println!(
        "seed {seed}: trace {:016x}, {:?}",
        ending.trace, ending.verdict
    );
    ending.verdict.is_ok()
}

/// Plants each bug and runs worlds until one finds it: `R` is the real store, on which the disk's
/// own bug is planted. Says whether all were found.
pub(crate) fn planted<R: Vault>() -> bool {
    let began = Instant::now();
    println!("| planted bug | found at seed | by | lifetimes until then |");
    println!("|---|---|---|---|");
    let missed = Bug::iter()
        .map(|bug| {
            if bug == Bug::SyncForgotten {
                find::<R>(bug)
            } else {
                find::<Model>(bug)
            }
        })
        .filter(|found| !found)
        .count();
    report::tell(&Row {
        ring: 1,
        fault: "bugs planted one at a time, to be found".to_owned(),
        tried: format!("{} bugs", Bug::iter().count()),
        failures: missed as u64,
        counted: "each found by an invariant".to_owned(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

fn find<V: Vault>(bug: Bug) -> bool {
    let mut lifetimes = 0;
    for seed in 1..=MOST_SEEDS {
        let found = match caught::<V>(plan(seed, Some(bug))) {
            Ok(ending) => {
                lifetimes += ending.seen.lifetimes;
                ending.verdict.err().map(|violation| violation.invariant)
            }
            Err(_) => Some("the model"),
        };
        if let Some(by) = found {
            println!("| {bug:?} | {seed} | {by} | {lifetimes} |");
            return true;
        }
    }
    println!("| {bug:?} | not found in {MOST_SEEDS} | | {lifetimes} |");
    false
}
