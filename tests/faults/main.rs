//! The attack on the durable line, ring by ring. `tests/faults.sh` runs them all.

#![expect(clippy::print_stdout, reason = "an attack's output is its findings")]
#![expect(clippy::unwrap_used, reason = "an attack that cannot run has failed")]

mod arrivals;
mod chance;
mod clocks;
mod copies;
mod disk;
mod ground;
mod hangups;
mod injection;
mod neighbours;
mod network;
mod peers;
mod receivers;
mod report;
mod restart;
mod rollback;
mod script;
mod senders;
mod sim;
mod soak;
mod starvation;
mod storm;
mod wire;

use std::process::ExitCode;

use sim::Campaign;
use sim::model::Model;

const USAGE: &str = "usage: whrelay-faults sim|disk --lifetimes N | sim|disk --seed N | planted
       whrelay-faults flips --tries N | wire --seeds N
       whrelay-faults storm --binary FILE --kills|--cuts N | inject --binary FILE --upto N --step N
       whrelay-faults full|rollback|copies|neighbours|hangups|clocks|network|receivers|senders --binary FILE | peers --binary FILE [--agents N]
       whrelay-faults soak --binary FILE --minutes N | restart --binary FILE --gigabytes N";

/// Steps of a single world that are told.
const TOLD: usize = 200;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let held = match args[..] {
        ["sim", "--lifetimes", n] => campaign("sim", n).run::<Model>(),
        ["sim", "--seed", seed] => sim::one::<Model>(seed.parse().unwrap(), TOLD),
        ["disk", "--lifetimes", n] => campaign("disk", n).run::<disk::Real>(),
        ["disk", "--seed", seed] => sim::one::<disk::Real>(seed.parse().unwrap(), TOLD),
        ["planted"] => sim::planted::<disk::Real>(),
        ["flips", "--tries", n] => disk::flip_bits(n.parse().unwrap()),
        ["storm", "--binary", binary, "--kills", n] => storm::kill(binary, n.parse().unwrap()),
        ["storm", "--binary", binary, "--cuts", n] => storm::cut_power(binary, n.parse().unwrap()),
        ["inject", "--binary", binary, "--upto", upto, "--step", step] => {
            injection::run(binary, upto.parse().unwrap(), step.parse().unwrap())
        }
        ["wire", "--seeds", n] => wire::run(n.parse().unwrap()),
        ["clocks", "--binary", binary] => clocks::run(binary),
        ["soak", "--binary", binary, "--minutes", n] => soak::run(binary, n.parse().unwrap()),
        ["restart", "--binary", binary, "--gigabytes", n] => {
            restart::run(binary, n.parse().unwrap())
        }
        ["network", "--binary", binary] => network::run(binary),
        ["scene", "--binary", binary, "--name", name] => network::scene(binary, name),
        ["proxy", bind] => network::proxy(bind),
        ["terminate", bind, server] => network::terminate(bind, server),
        ["receivers", "--binary", binary] => receivers::run(binary),
        ["peers", "--binary", binary] => peers::run(binary, peers::AGENTS),
        ["peers", "--binary", binary, "--agents", n] => peers::run(binary, n.parse().unwrap()),
        ["senders", "--binary", binary] => senders::run(binary),
        ["full", "--binary", binary] => starvation::run(binary),
        ["neighbours", "--binary", binary] => neighbours::run(binary),
        ["copies", "--binary", binary] => copies::run(binary),
        ["hangups", "--binary", binary] => hangups::run(binary),
        ["rollback", "--binary", binary] => rollback::run(binary),
        [
            "fuzzed",
            "--input",
            input,
            "--log",
            log,
            "--crashed",
            crashed,
            "--seconds",
            seconds,
        ] => report::fuzzed(
            input,
            log.as_ref(),
            crashed == "1",
            seconds.parse().unwrap(),
        ),
        ["publish", report, document] => report::publish(report.as_ref(), document.as_ref()),
        ["flip", from, count] => disk::flip_some(from.parse().unwrap(), count.parse().unwrap()),
        _ => {
            println!("{USAGE}");
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
    let lifetimes = lifetimes.parse().unwrap();
    match name {
        "sim" => Campaign {
            name,
            lifetimes,
            must_cover: true,
            ring: 1,
            fault: "crashes, bent and cut links, endpoints, clocks, sleep, replays in a simulated world",
            also: String::new,
        },
        _ => Campaign {
            name,
            lifetimes,
            must_cover: false,
            ring: 2,
            fault: "the same on the real store, on a disk that forgets, tears, fails and fills up (D1-D5, K22)",
            also: disk::counted,
        },
    }
}
