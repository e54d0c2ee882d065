//! Many worlds: seeds shared out over threads, coverage added up, and the first failure told so that
//! one number brings it back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use strum::IntoEnumIterator;

use super::model::Model;
use super::planted::Bug;
use super::seen::{Point, Seen};
use super::world::{self, Ending, Plan, bugs};

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
        audits: true,
        tells: false,
    }
}

/// Runs worlds until so many events have lived. Says whether all held.
pub(crate) fn run(lifetimes: u64, first_seed: u64) -> bool {
    let began = Instant::now();
    let (next, total) = (AtomicU64::new(first_seed), Mutex::new(Seen::default()));
    let failed = Mutex::new(None::<(u64, String)>);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let enough = total.lock().unwrap().lifetimes >= lifetimes;
                    if enough || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    match live(seed) {
                        Ok(ending) => *total.lock().unwrap() += &ending.seen,
                        Err(why) => *failed.lock().unwrap() = Some((seed, why)),
                    }
                }
            });
        }
    });
    let seen = total.into_inner().unwrap();
    if let Some((seed, why)) = failed.into_inner().unwrap() {
        println!("seed {seed}: {why}\n  again: whrelay-faults sim --seed {seed}");
        return false;
    }
    let missed: Vec<_> = Point::iter()
        .filter(|point| seen.times(*point) == 0)
        .collect();
    println!(
        "simulation: {} event lifetimes, {} crashes, {} steps, {} seeds, {:.0} s, 0 violations",
        seen.lifetimes,
        seen.crashes,
        seen.steps,
        next.into_inner() - first_seed,
        began.elapsed().as_secs_f64(),
    );
    let reached = Point::iter().map(|point| format!("{point:?} {}", seen.times(point)));
    println!("reached: {}", reached.collect::<Vec<_>>().join(", "));
    if !missed.is_empty() {
        println!("never reached: {missed:?}");
    }
    missed.is_empty()
}

fn live(seed: u64) -> Result<Ending, String> {
    let ending = world::run::<Model>(plan(seed, None));
    if let Err(violation) = &ending.verdict {
        return Err(format!("{} {}", violation.invariant, violation.what));
    }
    if seed.is_multiple_of(TWICE_EVERY) {
        let again = world::run::<Model>(plan(seed, None));
        if again.trace != ending.trace {
            return Err("the second run of this seed took other steps".to_owned());
        }
    }
    Ok(ending)
}

/// Runs one world and tells its last steps. Says whether all held.
pub(crate) fn one(seed: u64, told: usize) -> bool {
    let ending = world::run::<Model>(Plan {
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

/// Plants each bug and runs worlds until one finds it. Says whether all were found.
pub(crate) fn planted() -> bool {
    println!("| planted bug | found at seed | by | lifetimes until then |");
    println!("|---|---|---|---|");
    let mut all = true;
    for bug in bugs() {
        let mut lifetimes = 0;
        let found = (1..=MOST_SEEDS).find_map(|seed| {
            let ending = world::run::<Model>(plan(seed, Some(bug)));
            lifetimes += ending.seen.lifetimes;
            Some((seed, ending.verdict.err()?))
        });
        match found {
            Some((seed, violation)) => {
                println!(
                    "| {bug:?} | {seed} | {} | {lifetimes} |",
                    violation.invariant
                );
            }
            None => {
                println!("| {bug:?} | not found in {MOST_SEEDS} | | {lifetimes} |");
                all = false;
            }
        }
    }
    all
}
