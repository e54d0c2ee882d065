//! The attack on the durable line, in rings: `whrelay-faults sim|planted`.

#![expect(clippy::print_stdout, reason = "an attack's output is its findings")]
#![expect(clippy::unwrap_used, reason = "an attack that cannot run has failed")]

mod chance;
mod sim;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let held = match args[..] {
        ["sim"] => sim::run(1_000_000, 1),
        ["sim", "--lifetimes", n] => sim::run(n.parse().unwrap(), 1),
        ["sim", "--seed", seed] => sim::one(seed.parse().unwrap(), 200),
        ["planted"] => sim::planted(),
        _ => {
            println!("usage: whrelay-faults sim [--lifetimes N | --seed N] | planted");
            return ExitCode::from(2);
        }
    };
    if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
