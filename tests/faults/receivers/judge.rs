//! Whether what the product says of its attempts is what the ledger and the contract demand. It must
//! not know how an event came to meet its mode.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use whrelay_core::time::Timestamp;

use super::hostile::Asked;
use super::modes::{Asks, Mode, PAUSE, Seen, TIMEOUT};

/// What a busy machine may add to a time.
const SLACK: Duration = Duration::from_secs(3);
/// What rounding may take from one.
const ROUNDING: Duration = Duration::from_millis(5);

/// Which answers are tried again, in the words of `--retry-on`.
#[derive(Clone, Copy, Debug, strum::Display)]
pub(crate) enum Policy {
    #[strum(serialize = "transient")]
    Transient,
    #[strum(serialize = "non-2xx")]
    NonSuccess,
}

impl Policy {
    /// The contract's rules, written a second time: the state an answer leaves its delivery in.
    pub(crate) fn state_after(self, status: Option<u16>) -> &'static str {
        match (status, self) {
            (Some(200..=299), _) => "sent",
            (Some(410), _) => "dead",
            (None, _) | (Some(_), Self::NonSuccess) => "stalled",
            (Some(408 | 425 | 429 | 500..=599), Self::Transient) => "stalled",
            (Some(_), Self::Transient) => "dead",
        }
    }
}

/// What one agent said of its attempts at the hostile target.
pub(crate) struct Told {
    by_event: HashMap<String, Vec<Value>>,
    /// When attempts began that got no answer, by destination.
    unanswered: HashMap<String, Vec<Timestamp>>,
}

impl Told {
    pub(crate) fn new(lines: &[Value], target: &str) -> Self {
        let mut by_event: HashMap<String, Vec<Value>> = HashMap::new();
        let mut unanswered: HashMap<String, Vec<Timestamp>> = HashMap::new();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for line in lines.iter().filter(|line| line["target"] == target) {
            let all = by_event.entry(word(&line["event"])).or_default();
            all.push(line.clone());
            if line["status"].is_null() {
                let times = unanswered.entry(word(&line["destination"])).or_default();
                times.extend(time(line, "at"));
            }
        }
        for lines in by_event.values_mut() {
            lines.sort_by_key(|line| (line["replay"].as_bool(), line["attempt"].as_u64()));
        }
        Self {
            by_event,
            unanswered,
        }
    }

    pub(crate) fn attempts(&self) -> usize {
        self.by_event.values().map(Vec::len).sum()
    }

    /// Whether the endpoint of a destination may have returned just before: attempts without an
    /// answer show that one is away.
    fn may_have_returned(&self, line: &Value, before: Timestamp) -> bool {
        let destination = line["destination"].as_str().unwrap_or_default();
        let times = self.unanswered.get(destination);
        times.is_some_and(|times| {
            let is_recent = |at: &Timestamp| *at < before && before.since(*at) < SLACK;
            times.iter().any(is_recent)
        })
    }

    /// The next attempt starts when it was promised, or when the endpoint returns unless it asked
    /// for that time itself.
    fn follows(&self, mode: &Mode, line: &Value, next: &Value) -> Result<(), String> {
        let (promised, at) = (time(line, "next_attempt_at")?, time(next, "at")?);
        let is_early = at.after(ROUNDING) < promised;
        if is_early && (mode.asks.is_some() || !self.may_have_returned(line, at)) {
            return Err("tried before its time".to_owned());
        }
        match at.since(promised) {
            late if late > SLACK => Err(format!("tried {late:?} late")),
            _ => Ok(()),
        }
    }

    /// Judges one event.
    pub(crate) fn judge(
        &self,
        policy: Policy,
        mode: &Mode,
        event: &str,
        asked: &[Asked],
    ) -> Result<(), String> {
        let empty = Vec::new();
        let lines = self.by_event.get(event).unwrap_or(&empty);
        let (replays, lines): (Vec<_>, Vec<_>) =
            lines.iter().partition(|line| line["replay"] == true);
        for (n, line) in lines.iter().enumerate() {
            let number = line["attempt"].as_u64().unwrap_or_default();
            if number != n as u64 + 1 {
                return Err(format!("attempt {number} where {} should be", n + 1));
            }
            let fits = |asked: &&Asked| asked.attempt == number && !asked.replay;
            let found: Vec<_> = asked.iter().filter(fits).collect();
            attempt(policy, mode, line, &found).map_err(|why| format!("{why}: {line}"))?;
            if let Some(next) = lines.get(n + 1) {
                let follows = self.follows(mode, line, next);
                follows.map_err(|why| format!("{why}: {line} {next}"))?;
            }
        }
        let mut told = asked.iter().filter(|asked| !asked.replay);
        if told.clone().any(|asked| asked.attempt > lines.len() as u64) {
            return Err("a request that is no attempt".to_owned());
        }
        let last = lines.last().ok_or("no attempt")?;
        let right = match told.next_back() {
            Some(asked) => policy.state_after(asked.seen.status()),
            None => "sent",
        };
        match last["state"].as_str() {
            Some(state) if state != right => Err(format!("{state} at last, and not {right}")),
            Some("stalled") if !mode.puts_off() => Err("stalled for ever".to_owned()),
            Some("stalled") => put_off_arrives(&replays),
            Some(_) | None => Ok(()),
        }
    }
}

/// What was put off for a day arrives when a person asks for it.
fn put_off_arrives(replays: &[&Value]) -> Result<(), String> {
    match replays.last() {
        Some(line) if line["state"] == "sent" => Ok(()),
        Some(_) | None => Err("its replay was not sent".to_owned()),
    }
}

/// One line beside the requests that came under its number.
fn attempt(policy: Policy, mode: &Mode, line: &Value, asked: &[&Asked]) -> Result<(), String> {
    let status = line["status"].as_u64();
    let error = line["error"].as_str();
    let seen = match asked {
        // The connection it was to go over had been closed: that may cost it, and no more.
        [] => Seen::Broken,
        [asked] => asked.seen,
        // A 400 on a connection that was used before is asked once more over a new one.
        [first, second] if first.seen == Seen::Status(400) => second.seen,
        more => return Err(format!("{} requests for one attempt", more.len())),
    };
    let timed_out = error.is_some_and(|error| error.contains("no answer within"));
    let right = match seen {
        Seen::Status(right) => status == Some(u64::from(right)) && error.is_none(),
        Seen::Broken => status.is_none() && error.is_some() && !timed_out,
        Seen::TimedOut => status.is_none() && timed_out,
    };
    if !right {
        return Err(format!("not {seen:?}"));
    }
    let state = policy.state_after(seen.status());
    let reason = (state == "dead").then_some("rejected");
    if line["state"] != state || line["reason"].as_str() != reason {
        return Err(format!("not {state}, {reason:?}"));
    }
    if duration(line) > TIMEOUT + SLACK {
        return Err("longer than its time".to_owned());
    }
    let own = asked.first().is_some_and(|asked| asked.own);
    match state {
        "stalled" => waits(line, mode.asks.filter(|_| own)),
        _ if line["next_attempt_at"].is_null() => Ok(()),
        _ => Err("a next attempt of what has ended".to_owned()),
    }
}

fn duration(line: &Value) -> Duration {
    Duration::from_secs_f64(line["duration_ms"].as_f64().unwrap_or_default() / 1000.0)
}

fn time(line: &Value, key: &str) -> Result<Timestamp, String> {
    let text = line[key].as_str().unwrap_or_default();
    text.parse().map_err(|_| format!("no time in {key}"))
}

/// The wait is what the schedule says and the answer asks for.
fn waits(line: &Value, asks: Option<Asks>) -> Result<(), String> {
    let ends = time(line, "at")?.after(duration(line));
    let wait = time(line, "next_attempt_at")?.since(ends);
    let (least, most) = match asks {
        Some(Asks { least, most }) => (least, most),
        None => (PAUSE, PAUSE.mul_f64(1.3)),
    };
    if wait + ROUNDING < least || wait > most + SLACK {
        return Err(format!(
            "a wait of {wait:?} and not from {least:?} to {most:?}"
        ));
    }
    Ok(())
}
