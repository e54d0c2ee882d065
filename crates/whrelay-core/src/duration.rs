//! Durations as people type them: `500ms`, `30s`, `1h 30m`, `7d`.

use std::time::Duration;

/// The longest time that anything can be told to take: more is a slip of the finger.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Reads a duration.
///
/// # Errors
/// What to write instead.
pub fn parse(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text.trim()).ok();
    parsed
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| "write a number and a unit, such as 500ms, 30s, 5m, 2h or 7d".to_owned())
}

/// Reads a duration that is not nothing.
///
/// # Errors
/// What to write instead.
pub fn parse_some(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("it has to be more than 0".into()),
        some => Ok(some),
    }
}

/// As it would be typed, in one word.
pub fn shown(duration: Duration) -> String {
    match duration.subsec_nanos() {
        _ if duration.is_zero() => "0s".to_owned(),
        0 => humantime::format_duration(duration)
            .to_string()
            .replace(' ', ""),
        _ => format!("{}ms", duration.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for (typed, read) in [
            ("0s", "0s"),
            ("90s", "1m30s"),
            ("1500ms", "1500ms"),
            ("7d", "7days"),
        ] {
            let duration = parse(typed).expect("a duration");
            assert_eq!(shown(duration), read);
            assert_eq!(parse(read), Ok(duration));
        }
        for bad in ["", "soon", "30", "99999999d", "-1s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse_some("0s").is_err());
    }
}
