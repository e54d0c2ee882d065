//! What stands on the screen, row by row.

use jiff::tz::TimeZone;
use whrelay_agent::lines::{AttemptLine, ReceivedLine, TargetStatus};
use whrelay_core::delivery::DeadReason;

use super::*;

fn ready() -> Line {
    Line::Ready(ReadyLine {
        url: "http://127.0.0.1:4141/in/default-abc".into(),
        bucket: "default".into(),
        forwarder: "http://127.0.0.1:4141".into(),
        targets: vec!["http://localhost:3000".into()],
        queued: 0,
        oldest: None,
        pid: 7,
    })
}

fn received(n: u32) -> Line {
    Line::Received(ReceivedLine {
        event: format!("evt_{n}"),
        bucket: "default".into(),
        method: "POST".into(),
        path: format!("/{n}"),
        bytes: 12,
        kind: None,
        at: "2026-11-22T10:15:03Z".into(),
    })
}

fn attempt(n: u32, state: State) -> Line {
    Line::Attempt(AttemptLine {
        event: format!("evt_{n}"),
        bucket: "default".into(),
        delivery: format!("dlv_{n}"),
        target: "http://localhost:3000".into(),
        url: format!("http://localhost:3000/{n}"),
        method: "POST".into(),
        attempt: 1,
        status: Some(if state == State::Sent { 200 } else { 422 }),
        error: None,
        duration_ms: 3.0,
        state,
        reason: (state == State::Dead).then_some(DeadReason::Rejected),
        next_attempt_at: None,
        phase: "fast".into(),
        handoff: false,
        answer: None,
        answer_base64: None,
        answer_headers: Vec::new(),
        cause: None,
        signature: None,
        replay: false,
        at: "2026-11-22T10:15:04Z".into(),
    })
}

fn status(endpoint: EndpointState, paused: bool) -> Line {
    Line::Status(StatusLine {
        bucket: "default".into(),
        name: "default".into(),
        forwarder: "http://127.0.0.1:4141".into(),
        url: None,
        pid: Some(7),
        link: LinkState::Connected,
        link_error: None,
        targets: vec![TargetStatus {
            target: "http://localhost:3000".into(),
            endpoint,
            waiting: 3,
            head: None,
        }],
        queued: 2,
        stalled: 1,
        sent: 5,
        dead: 0,
        quarantined: 0,
        oldest_waiting_at: None,
        next_attempt_at: None,
        paused,
        disk_bytes: 9,
        stored_bytes: 2000,
        max_disk: None,
        incidents: Vec::new(),
        refuses: None,
        removed: whrelay_agent::lines::RemovedStatus::default(),
    })
}

fn view(lines: &[Line]) -> View {
    let mut view = View::new(Writer::in_zone(TimeZone::UTC));
    lines.iter().for_each(|line| view.take(line));
    view
}

/// The screen as text, what is chosen marked.
fn screen(view: &mut View, width: usize, height: usize) -> String {
    let rows = view.rows(width, height);
    assert_eq!(rows.len(), height, "every row is drawn anew");
    let mark = |(tone, text): &Row| match tone {
        Tone::Chosen => format!("> {text}\n"),
        Tone::Plain | Tone::Dim | Tone::Good | Tone::Warn | Tone::Bad => format!("  {text}\n"),
    };
    rows.iter().map(mark).collect()
}

#[test]
fn a_head_the_log_and_the_keys() {
    let lines = [
        ready(),
        status(EndpointState::Online, false),
        received(1),
        attempt(1, State::Sent),
    ];
    let mut view = view(&lines);
    assert_eq!(
        screen(&mut view, 90, 8),
        "  Send webhooks to  http://127.0.0.1:4141/in/default-abc
  They go to        http://localhost:3000
  2 queued, 1 stalled, 5 sent, 0 dead  2.0 kB
  
  2026-11-22 10:15:03  --> POST /in/…/1  evt_1  12 B
  2026-11-22 10:15:04  <-- [200] POST http://localhost:3000/1  3.0 ms  evt_1
  
  j/k select  r replay  d details  o curl  p pause  q quit
"
    );
}

#[test]
fn on_a_narrow_screen_the_url_is_whole_and_a_line_ends_with_what_became_of_it() {
    let mut view = view(&[ready(), received(1), attempt(1, State::Stalled)]);
    let text = screen(&mut view, 44, 9);
    assert!(
        text.contains("to\n  http://127.0.0.1:4141/in/default-abc\n"),
        "{text}"
    );
    let last = text.lines().find(|row| row.contains("<--"));
    let last = last.unwrap_or_default();
    assert!(last.contains('…') && last.ends_with("stalled"), "{text}");
}

#[test]
fn what_is_wrong_stands_in_the_head() {
    let mut view = view(&[ready(), status(EndpointState::Offline, true)]);
    let text = screen(&mut view, 90, 8);
    assert!(
        text.contains("http://localhost:3000  offline, 3 waiting"),
        "{text}"
    );
    assert!(text.contains("2.0 kB  paused"), "{text}");
    assert_eq!(view.press(Key::Pause), Some(Wish::Pause(false)));
}

#[test]
fn keys_choose_an_event_and_ask_for_what_is_done_to_it() {
    let mut view = view(&[]);
    assert_eq!(view.press(Key::Replay), None);
    assert!(screen(&mut view, 60, 5).contains("there is no event yet"));
    for n in 1..=9 {
        view.take(&received(n));
    }
    view.take(&Line::warning("the clock jumped"));
    assert_eq!(
        view.press(Key::Details),
        Some(Wish::Details("evt_9".into()))
    );
    view.press(Key::Up);
    view.press(Key::Up);
    assert_eq!(view.press(Key::Replay), Some(Wish::Replay("evt_8".into())));
    let text = screen(&mut view, 60, 5);
    assert!(
        text.contains("> 2026-11-22 10:15:03  --> POST /in/…/8"),
        "{text}"
    );
    // What comes does not move what is chosen.
    view.take(&received(10));
    assert_eq!(view.press(Key::Curl), Some(Wish::Curl("evt_8".into())));
    view.press(Key::First);
    assert_eq!(view.press(Key::Replay), Some(Wish::Replay("evt_1".into())));
    view.press(Key::Last);
    let text = screen(&mut view, 60, 5);
    assert!(!text.contains("\n> "), "the newest are followed: {text}");
    assert_eq!(view.press(Key::Leave), Some(Wish::Quit));
}

#[test]
fn what_covers_the_log_is_scrolled_and_left() {
    let mut view = view(&[ready(), received(1)]);
    view.cover((0..9).map(|n| format!("line {n}\u{1b}[2J")).collect());
    screen(&mut view, 40, 4);
    view.press(Key::Down);
    let text = screen(&mut view, 40, 4);
    assert!(text.starts_with("  line 1\\u{1b}[2J\n"), "{text}");
    assert!(text.contains("q back"), "{text}");
    assert_eq!(view.press(Key::Leave), None);
    assert!(screen(&mut view, 60, 4).contains("evt_1"));
}

#[test]
fn no_row_is_wider_than_the_screen_and_none_is_missing() {
    let mut view = view(&[
        ready(),
        status(EndpointState::Offline, true),
        received(1),
        attempt(1, State::Dead),
    ]);
    view.take(&Line::warning("日本語 ".repeat(40)));
    view.press(Key::Up);
    for (width, height) in [(1, 1), (7, 3), (20, 6), (79, 24), (300, 2)] {
        let rows = view.rows(width, height);
        assert_eq!(rows.len(), height);
        for (_, text) in rows {
            let wide: usize = text.chars().filter_map(UnicodeWidthChar::width).sum();
            assert!(wide <= width, "{wide} of {width}: {text}");
        }
    }
}

#[test]
fn a_long_day_takes_no_more_memory_and_the_choice_stays_in_it() {
    let mut view = view(&[received(0)]);
    view.press(Key::First);
    for n in 0..3 * KEPT as u32 {
        view.take(&received(n));
    }
    assert_eq!(view.entries.len(), KEPT);
    let oldest = format!("evt_{}", 2 * KEPT);
    assert_eq!(view.press(Key::Replay), Some(Wish::Replay(oldest)));
}
