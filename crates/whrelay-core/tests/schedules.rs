//! `docs/retries.md` shows the attempts of each schedule, as the code makes them.

use std::fmt::Write as _;
use std::time::Duration;

use whrelay_core::delivery::DeadReason;
use whrelay_core::outcome::Outcome;
use whrelay_core::retry::{DeliveryHistory, Jitter, Phase, RetryPolicy, Schedule, Verdict, decide};
use whrelay_core::time::{Moment, Timestamp};

const BEGIN: &str = "<!-- the code's own table; a test compares it -->\n";
const END: &str = "<!-- end -->\n";
/// An example of a list.
const LISTED: [u64; 8] = [30, 60, 300, 1800, 7200, 21_600, 43_200, 86_400];

/// When each attempt starts, and why there is no other, where every answer is a 503 at once.
fn walk(schedule: Schedule) -> (Vec<Duration>, DeadReason) {
    let policy = RetryPolicy {
        schedule,
        ..RetryPolicy::default()
    };
    let unavailable = Outcome::Answered {
        status: 503,
        retry_after: None,
    };
    let created_at = Timestamp::EPOCH;
    let deadline_at = policy.deadline_of(created_at);
    let (mut now, mut starts, mut phase) = (created_at, Vec::new(), Phase::Fast);
    loop {
        starts.push(now.since(created_at));
        let history = DeliveryHistory {
            attempts: starts.len() as u32,
            first_failed_at: Some(created_at),
            phase,
            deadline_at,
        };
        let moment = Moment { now, certain: now };
        match decide(&policy, history, &unavailable, moment, Jitter(0)) {
            Verdict::RetryAt {
                at, phase: next, ..
            } => (now, phase) = (at, next),
            Verdict::Dead(reason) => return (starts, reason),
            Verdict::Sent => unreachable!("a 503 is no success"),
        }
    }
}

fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        if left >= size {
            parts.push(format!("{} {unit}", left / size));
            left %= size;
        }
    }
    if parts.is_empty() {
        "0 s".into()
    } else {
        parts.join(" ")
    }
}

/// Attempts after equal pauses share a row.
fn table(name: &str, schedule: Schedule) -> String {
    let (starts, reason) = walk(schedule);
    let pause = |n: usize| match n {
        0 => Duration::ZERO,
        _ => starts[n] - starts[n - 1],
    };
    let mut text =
        format!("\n### {name}\n\n| attempt | pause before it | starts after |\n|---|---|---|\n");
    let mut n = 0;
    while n < starts.len() {
        let same = (n..starts.len())
            .take_while(|m| pause(*m) == pause(n))
            .count();
        let last = n + same - 1;
        let (number, starts_after) = match same {
            1 => (format!("{}", n + 1), shown(starts[n])),
            _ => (
                format!("{} to {}", n + 1, last + 1),
                format!("{} to {}", shown(starts[n]), shown(starts[last])),
            ),
        };
        let pause = if n == 0 {
            String::new()
        } else {
            shown(pause(n))
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {number} | {pause} | {starts_after} |");
        n += same;
    }
    let ends = starts.last().copied().unwrap_or_default();
    let _ = writeln!(
        text,
        "\nThen `dead`, reason `{}`: {} attempts, {} after the first.",
        reason.as_str(),
        starts.len(),
        shown(ends)
    );
    text
}

#[test]
fn the_documented_attempts_are_the_codes() {
    let listed = LISTED.map(Duration::from_secs).to_vec();
    let tables: String = [
        table("seconds", Schedule::Seconds),
        table("medium, the default", Schedule::Medium),
        table("long", Schedule::Long),
        table("30s,1m,5m,30m,2h,6h,12h,24h", Schedule::Listed(listed)),
    ]
    .concat();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/retries.md");
    let document = std::fs::read_to_string(path).expect("docs/retries.md");
    let (_, rest) = document.split_once(BEGIN).expect("where the table begins");
    let (documented, _) = rest.split_once(END).expect("where it ends");
    assert!(
        documented.trim() == tables.trim(),
        "docs/retries.md: put in\n{tables}"
    );
}
