//! The attack on the durable line, in rings: `whrelay-faults sim|planted|disk|flips`.

#![expect(clippy::print_stdout, reason = "an attack's output is its findings")]
#![expect(clippy::unwrap_used, reason = "an attack that cannot run has failed")]

mod chance;
mod disk;
mod sim;

use std::process::ExitCode;

use sim::Campaign;
use sim::model::Model;

/// Steps of a single world that are told.
const TOLD: usize = 200;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let held = match args[..] {
        ["sim", "--lifetimes", n] => campaign("sim", n).run::<Model>(),
        ["sim", "--seed", seed] => sim::one::<Model>(seed.parse().unwrap(), TOLD),
        ["planted"] => sim::planted::<disk::Real>(),
        ["flips", "--tries", n] => disk::flip_bits(n.parse().unwrap()),
        ["flip", from, count] => disk::flip_some(from.parse().unwrap(), count.parse().unwrap()),
        ["disk", "--lifetimes", n] => {
            let held = campaign("disk", n).run::<disk::Real>();
            disk::tell();
            held
        }
        ["disk", "--seed", seed] => sim::one::<disk::Real>(seed.parse().unwrap(), TOLD),
        _ => {
            println!(
                "usage: whrelay-faults sim|disk --lifetimes N | sim|disk --seed N | planted | flips --tries N"
            );
            return ExitCode::from(2);
        }
    };
    if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn campaign(name: &'static str, lifetimes: &str) -> Campaign {
    Campaign {
        name,
        lifetimes: lifetimes.parse().unwrap(),
        first_seed: 1,
        covers: name == "sim",
    }
}
