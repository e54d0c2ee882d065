//! Destinations as people read them.

use std::time::Duration;

use whrelay_agent::lines::{DestinationLine, DestinationRemovedLine, OptionsLine, TargetStatus};
use whrelay_core::duration;

use super::{Writer, deliveries, shown};

/// A destination in one line.
pub(crate) fn short(line: &DestinationLine) -> String {
    let state = match (&line.paused_at, line.served) {
        (Some(_), _) => "paused",
        (None, true) => "delivering",
        (None, false) => "no `listen` delivers to it",
    };
    let waiting = line.queued + line.stalled;
    let url = shown(&line.target);
    format!(
        "{}  {url}  bucket {} as {}  {state}, {waiting} waiting",
        line.name, line.bucket, line.subscription
    )
}

/// A destination with all that is known of it.
pub(super) fn full(line: &DestinationLine, writer: &Writer) -> String {
    let mut text = short(line);
    let mut add = |name: &str, value: String| text += &format!("\n  {name:<14} {value}");
    if let Some(at) = &line.paused_at {
        let name = &line.name;
        let since = writer.local(at);
        add(
            "paused",
            format!("since {since}; `whrelay destination resume {name}` resumes it"),
        );
    }
    add("endpoint", line.endpoint.to_string());
    if !line.paths.is_empty() {
        add("paths", shown(&line.paths.join(" ")));
    }
    let DestinationLine {
        queued,
        stalled,
        sent,
        dead,
        ..
    } = line;
    add(
        "deliveries",
        format!("{queued} queued, {stalled} stalled, {sent} sent, {dead} dead"),
    );
    if let Some(at) = &line.next_attempt_at {
        add("next", writer.local(at));
    }
    for (key, value) in options(&line.options) {
        let default = match line.set.iter().any(|set| set == key) {
            true => "",
            false => " (default)",
        };
        add(key, format!("{value}{default}"));
    }
    text
}

fn options(line: &OptionsLine) -> [(&'static str, String); 9] {
    let ms = |ms| duration::shown(Duration::from_millis(ms));
    let OptionsLine {
        schedule,
        deadline_ms,
        handoff_after_ms,
        max_attempts,
        retry_on,
        timeout_ms,
        max_in_flight,
        rate,
        order,
    } = line;
    let or = |is_zero: bool, word: &str, text: String| if is_zero { word.to_owned() } else { text };
    [
        ("schedule", schedule.clone()),
        (
            "deadline",
            or(*deadline_ms == 0, "the schedule's own", ms(*deadline_ms)),
        ),
        ("handoff-after", ms(*handoff_after_ms)),
        (
            "max-attempts",
            or(*max_attempts == 0, "no bound", max_attempts.to_string()),
        ),
        ("retry-on", retry_on.clone()),
        ("timeout", or(*timeout_ms == 0, "no bound", ms(*timeout_ms))),
        ("max-in-flight", max_in_flight.to_string()),
        (
            "rate",
            rate.clone().unwrap_or_else(|| "no bound".to_owned()),
        ),
        ("order", order.clone()),
    ]
}

/// What became of a destination that was removed.
pub(super) fn removed(line: &DestinationRemovedLine) -> String {
    let mut text = format!("removed {}", line.name);
    if line.moved > 0 {
        text += &format!(", moved {}", deliveries(line.moved));
    }
    if line.discarded > 0 {
        let why = match line.moved_to {
            Some(ref to) => format!(" whose events {to} has anyway"),
            None => String::new(),
        };
        text += &format!(", discarded {}{why}", deliveries(line.discarded));
    }
    text
}

/// A destination in an agent's status.
pub(super) fn of_status(target: &TargetStatus, writer: &Writer) -> String {
    let (url, waiting) = (shown(&target.target), target.waiting);
    if target.one_off {
        return format!("replay to  {url}  {}, {waiting} waiting", target.endpoint);
    }
    let name = shown(&target.destination);
    let mut text = format!(
        "target     {name}  {url}  {}, {waiting} waiting",
        target.endpoint
    );
    if let Some(at) = &target.paused_at {
        let since = writer.local(at);
        text += &format!(
            "\n    paused   since {since}; `whrelay destination resume {name}` resumes it"
        );
    }
    if !target.served && waiting > 0 {
        text += &format!(
            "\n    queued   a start of `listen` with `--to {name}`, too, delivers the queue; `whrelay destination rm {name}` \
             moves it (--move-to NAME) or drops it (--discard)"
        );
    }
    text
}
