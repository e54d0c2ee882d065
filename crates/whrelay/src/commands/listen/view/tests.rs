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
        destination: "default".into(),
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
        forwarder_store: None,
        forwarder: "http://127.0.0.1:4141".into(),
        url: None,
        pid: Some(7),
        link: LinkState::Connected,
        link_error: None,
        targets: vec![TargetStatus {
            destination: "default".into(),
            one_off: false,
            paused_at: None,
            target: "http://localhost:3000".into(),
            served: true,
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
  
  2026-11-22 10:15:03 --> POST /1 12 B evt_1
  2026-11-22 10:15:04 <-- [200] POST :3000/1 3.0 ms evt_1
  
  j/k select  r again  d details  o curl  p pause  ? keys  q quit
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
    assert!(last.contains("[422]") && last.contains(":3000/1"), "{text}");
}

#[test]
fn what_is_wrong_stands_in_the_head() {
    let mut view = view(&[ready(), status(EndpointState::Offline, true)]);
    let text = screen(&mut view, 90, 8);
    assert!(
        text.contains("http://localhost:3000  offline, 3 waiting"),
        "{text}"
    );
    assert!(text.contains("\n  PAUSED: nothing is delivered"), "{text}");
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
    assert!(text.contains("> 2026-11-22 10:15:03 --> POST /8"), "{text}");
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
    let lines = (0..9).map(|n| format!("line {n}\u{1b}[2J"));
    view.cover(Some("evt_1".into()), lines.collect());
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

#[test]
fn a_row_keeps_path_code_and_reason_and_drops_the_date_of_today() {
    let line = |width| {
        let Line::Attempt(mut line) = attempt(1, State::Dead) else {
            unreachable!("an attempt")
        };
        line.event = "evt_01ARYZ6S41TSV4RRFFQ69G5FAV".into();
        line.url = "http://localhost:3000/api/v1/webhooks/stripe/connect".into();
        line.cause = Some("signature expired".into());
        let writer = Writer::in_zone(TimeZone::UTC);
        let line = Line::Attempt(line);
        row::text(&line, &writer, "2026-11-22", width).expect("a row")
    };
    assert_eq!(
        line(140),
        "10:15:04 <-- [422] POST :3000/api/v1/webhooks/stripe/connect 3.0 ms dead (rejected) signature expired …9G5FAV"
    );
    for width in [60, 80, 100] {
        let row = line(width);
        assert!(row.starts_with("10:15:04 <-- [422] "), "{row}");
        assert!(
            row.contains(":3000/api/v1") && row.contains("signature expired"),
            "{row}"
        );
    }
}

#[test]
fn an_old_choice_leaves_no_blank_rows_above_the_newest() {
    let mut view = view(&[ready()]);
    for n in 1..=20 {
        view.take(&received(n));
    }
    view.press(Key::First);
    for n in 21..=30 {
        view.take(&received(n));
    }
    let text = screen(&mut view, 80, 45);
    assert!(text.contains("/1 ") && text.contains("/30 "), "{text}");
}

#[test]
fn esc_never_quits_and_q_asks_while_deliveries_wait() {
    let mut view = view(&[ready(), status(EndpointState::Offline, false), received(1)]);
    assert_eq!(view.press(Key::Back), None);
    assert_eq!(view.press(Key::Leave), None);
    assert!(screen(&mut view, 90, 9).contains("3 deliveries not finished"));
    // Another key takes it back.
    assert_eq!(view.press(Key::Up), None);
    assert_eq!(view.press(Key::Leave), None);
    assert_eq!(view.press(Key::Leave), Some(Wish::Quit));
    assert_eq!(view.press(Key::Help), None);
    assert!(screen(&mut view, 90, 20).contains("never quits"));
    assert_eq!(view.press(Key::Back), None);
    assert!(screen(&mut view, 90, 9).contains("j/k select"));
    let url = "http://127.0.0.1:4141/in/default-abc".to_owned();
    assert_eq!(view.press(Key::CopyUrl), Some(Wish::Copy(url)));
    assert_eq!(view.press(Key::Suspend), Some(Wish::Suspend));
}

#[test]
fn details_that_are_shown_are_asked_for_again_when_they_change() {
    let mut view = view(&[ready(), received(1), received(2)]);
    view.cover(Some("evt_1".into()), vec!["one".into()]);
    view.take(&attempt(2, State::Sent));
    assert_eq!(view.take_stale(), None);
    view.take(&attempt(1, State::Sent));
    assert_eq!(view.take_stale(), Some("evt_1".into()));
    assert_eq!(view.take_stale(), None);
}

#[test]
fn attempts_of_before_stand_above_those_that_come_once() {
    let mut view = view(&[ready(), attempt(3, State::Sent)]);
    view.history(vec![
        attempt(1, State::Dead),
        attempt(2, State::Sent),
        attempt(3, State::Sent),
    ]);
    let text = screen(&mut view, 90, 12);
    let places: Vec<_> = [":3000/1", ":3000/2", ":3000/3"]
        .map(|path| text.find(path))
        .to_vec();
    assert!(places.is_sorted() && places[0].is_some(), "{text}");
    assert_eq!(text.matches(":3000/3").count(), 1, "{text}");
}
