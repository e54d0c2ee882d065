//! What waits and what is dead when targets change, and in which order replays are made.

use serde_json::Value;
use whrelay_tests::eventually;
use whrelay_tests::receiver::{Received, Receiver, Reply};
use whrelay_tests::sender::send;

use crate::{home, json_lines, told};

/// What is dead at a target that was put right goes to the right one, once, and is dead no more.
#[tokio::test(flavor = "multi_thread")]
async fn the_dead_of_a_target_that_was_mended_are_replayed_where_they_belong() {
    let wrong = |r: &Received| match r.path.starts_with("/wrong") {
        true => Reply::Status(404),
        false => Reply::Status(200),
    };
    let (home, receiver) = (home(), Receiver::scripted(wrong).await);
    let (bad, good) = (
        format!("{}/wrong", receiver.target()),
        format!("{}/right", receiver.target()),
    );
    let (mut listen, url) = home.listen(&["--to", &bad]).await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(send(&url, n.to_string()).await);
        listen.wait_state(&ids[n], "dead").await;
    }
    // One was tried again before the target was mended, and one waits to be while nobody runs.
    let (one, [two, three, four]) = (ids[0].clone(), [&ids[1], &ids[2], &ids[3]]);
    assert_eq!(told(&home, &["replay", three, "--wait"]).0, Some(1));
    assert_eq!(listen.terminate().await, Some(0));
    assert_eq!(told(&home, &["replay", four]).0, Some(0));
    let (mut listen, _) = home.listen(&["--to", &good]).await;
    listen.wait_state(four, "sent").await;
    assert_eq!(told(&home, &["replay", two, "--wait"]).0, Some(0));
    let dead = ["replay", "--status", "dead", "--wait"];
    let (done, said) = told(&home, &dead);
    assert_eq!(done, Some(0), "{said}");
    let (none, said) = told(&home, &dead);
    assert_eq!(none, Some(3), "{said}");
    let right = |r: &Received| r.path.starts_with("/right");
    assert_eq!(receiver.seen().iter().filter(|r| right(r)).count(), 4);
    let events = json_lines(&home.run(&["events", "--json"]).stdout);
    assert!(
        events.iter().all(|event| event["state"] == "sent"),
        "{events:?}"
    );

    // A one-off that was refused is no word on the event, and nothing goes there again.
    let elsewhere = Receiver::scripted(|_| Reply::Status(410)).await;
    let typo = elsewhere.target();
    assert_eq!(
        told(&home, &["replay", &one, "--to", &typo, "--wait"]).0,
        Some(1)
    );
    let before = receiver.count();
    for again in [
        &["--status", "dead"][..],
        &["--reason", "rejected", "--target", &typo],
    ] {
        let (none, said) = told(&home, &[&["replay"], again].concat());
        assert_eq!(none, Some(3), "{said}");
    }
    assert_eq!((elsewhere.count(), receiver.count()), (1, before));
    let shown = json_lines(&home.run(&["events", "--event", &one, "--json"]).stdout).remove(0);
    assert_eq!(shown["state"], "sent", "{shown}");
    let last = shown["deliveries"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["one_off"], &last["state"]),
        (&true.into(), &"dead".into())
    );
    let status = json_lines(&home.run(&["status", "--json"]).stdout).remove(0);
    assert_eq!(status["targets"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(listen.terminate().await, Some(0));
}

/// A start with fewer targets is no word on what waits for the others.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_target_that_is_left_out_waits_until_it_is_back() {
    let (home, one, mut two) = (home(), Receiver::start().await, Receiver::start().await);
    two.stop();
    let (to_one, to_two) = (one.target(), two.target());
    let (mut listen, url) = home.listen(&["--to", &to_one, "--to", &to_two]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", &to_one]).await;
    let names = |line: &Value| line["message"].as_str().unwrap().contains(&to_two);
    listen.wait("warning", names).await;
    assert_eq!(listen.terminate().await, Some(0));
    two.open_again().await;
    let (mut listen, _) = home.listen(&["--to", &to_one, "--to", &to_two]).await;
    eventually("it arrives", || (two.count() == 1).then_some(())).await;
    assert_eq!(one.count(), 1);
    assert_eq!(listen.terminate().await, Some(0));
}

/// What is dead at one target can be found and sent there again while another's turn has not come.
#[tokio::test(flavor = "multi_thread")]
async fn filters_of_replays_are_about_deliveries() {
    let (home, mut away) = (home(), Receiver::start().await);
    let refuses = Receiver::scripted(|_| Reply::Status(422)).await;
    away.stop();
    let (to_away, to_refuses) = (away.target(), refuses.target());
    let (mut listen, url) = home.listen(&["--to", &to_away, "--to", &to_refuses]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "dead").await;
    listen.wait_state(&id, "stalled").await;
    let dead = ["--status", "dead"];
    assert_eq!(
        told(&home, &[&["events"], &dead[..]].concat()).0,
        Some(3),
        "it waits"
    );
    let (found, said) = told(
        &home,
        &[&["events", "--target", &to_refuses], &dead[..]].concat(),
    );
    assert!(found == Some(0) && said.contains(&id), "{said}");
    let (found, said) = told(&home, &[&["events", "--group"], &dead[..]].concat());
    assert!(found == Some(0) && said.contains("422"), "{said}");
    let (none, said) = told(&home, &["discard", "--status", "dead"]);
    assert_eq!(none, Some(3), "{said}");
    assert_eq!(told(&home, &[&["replay"], &dead[..]].concat()).0, Some(0));
    eventually("it is tried there again", || {
        (refuses.count() == 2).then_some(())
    })
    .await;
    away.open_again().await;
    eventually("and where it waited", || (away.count() == 1).then_some(())).await;
    assert_eq!(listen.terminate().await, Some(0));
    assert_eq!((away.count(), refuses.count()), (1, 2), "each once");
}

/// A target that was left out gets nothing again unless it is named.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dead_at_a_target_that_is_left_out_goes_there_by_its_url_only() {
    let (home, one) = (home(), Receiver::start().await);
    let two = Receiver::scripted(|_| Reply::Status(422)).await;
    let (to_one, to_two) = (one.target(), two.target());
    let (mut listen, url) = home.listen(&["--to", &to_one, "--to", &to_two]).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "dead").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", &to_one]).await;
    for more in [&[][..], &["--dry-run"]] {
        let (none, said) = told(&home, &[&["replay", "--status", "dead"], more].concat());
        assert!(none == Some(3) && said.contains("--to"), "{said}");
    }
    let dry = ["replay", "--status", "dead", "--to", &to_one, "--dry-run"];
    assert_eq!(told(&home, &dry).0, Some(0));
    let there = ["replay", "--status", "dead", "--target", &to_two];
    let (none, said) = told(&home, &there);
    assert!(none == Some(3) && said.contains("not configured"), "{said}");
    let sent = [&there[..], &["--to", &to_two, "--wait"]].concat();
    assert_eq!(told(&home, &sent).0, Some(1));
    assert_eq!((one.count(), two.count()), (1, 2));
    assert_eq!(listen.terminate().await, Some(0));
}

/// Deadlines pass, whoever is a target now.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_target_that_is_left_out_has_its_deadline() {
    let (home, one, mut two) = (home(), Receiver::start().await, Receiver::start().await);
    two.stop();
    let (to_one, to_two) = (one.target(), two.target());
    let both = ["--to", &to_one, "--to", &to_two, "--deadline", "3s"];
    let (mut listen, url) = home.listen(&both).await;
    let id = send(&url, "x").await;
    listen.wait_state(&id, "sent").await;
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", &to_one]).await;
    let over = || {
        let logs = home.run(&["logs", "--event", &id, "--status", "dead", "--json"]);
        json_lines(&logs.stdout).pop()
    };
    let line = eventually("its deadline passes", over).await;
    assert_eq!(line["reason"], "deadline");
    assert!(line["target"].as_str().unwrap().contains(&to_two), "{line}");
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn named_replays_are_made_in_the_order_they_are_named() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let flags = ["--to", &to, "--max-in-flight", "1"];
    let (mut listen, url) = home.listen(&flags).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(send(&url, n.to_string()).await);
    }
    listen.wait_state(&ids[9], "sent").await;
    ids.reverse();
    let names: Vec<_> = ids.iter().map(String::as_str).collect();
    let (done, said) = told(&home, &[&["replay", "--wait"], &names[..]].concat());
    assert_eq!(done, Some(0), "{said}");
    assert_eq!(receiver.events()[10..], ids);
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_keep_to_their_rate() {
    let (home, receiver) = (home(), Receiver::start().await);
    let (mut listen, url) = home.listen(&["--to", &receiver.target()]).await;
    let mut last = String::new();
    for n in 0..6 {
        last = send(&url, n.to_string()).await;
    }
    listen.wait_state(&last, "sent").await;
    let (done, said) = told(&home, &["replay", "--all", "--rate", "20/s", "--wait"]);
    assert_eq!(done, Some(0), "{said}");
    let seen = receiver.seen();
    let took = seen[11].at - seen[6].at;
    // Five pauses of 50 ms, less what the first request may have been late.
    assert!(took >= std::time::Duration::from_millis(200), "{took:?}");
    let (slow, said) = told(&home, &["replay", "--all", "--rate", "1/h", "--times", "9"]);
    assert_eq!(slow, Some(1), "{said}");
    assert!(said.contains("at most 24 h"), "{said}");
    assert_eq!(listen.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_no_request_would_get_is_refused() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    let event = send(&url, "x").await;
    listen.wait_state(&event, "sent").await;
    let with_field = ["replay", &event, "-H", "X-Test: yes"];
    assert_eq!(told(&home, &with_field).0, Some(2), "it runs");
    assert_eq!(listen.terminate().await, Some(0));
    let (code, said) = told(&home, &with_field);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--to"), "{said}");
    let elsewhere = [&with_field[..], &["--to", &to]].concat();
    assert_eq!(told(&home, &elsewhere).0, Some(0));
    assert_eq!(receiver.count(), 2, "nothing was queued by a refusal");
    assert_eq!(receiver.seen()[1].header("x-test"), "yes");
}
