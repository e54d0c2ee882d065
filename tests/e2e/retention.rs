//! What is kept, and what happens at the bound.

use std::collections::HashSet;

use serde_json::Value;
use whrelay_tests::process::{Cloud, Home};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::{client, id_of, send};
use whrelay_tests::{PATIENCE, eventually};

use crate::{home, json_lines, text};

fn status(home: &Home) -> Value {
    json_lines(&home.run(&["status", "--json"]).stdout).remove(0)
}

/// Ended events must not keep out one that is larger than a tenth of the bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_makes_room_for_large_events_where_nothing_waits() {
    let (mut there, here, receiver) = (home(), home(), Receiver::start().await);
    there.set("WHRELAY_MAX_DISK", "20MB");
    there.set("WHRELAY_MAX_BODY", "4MiB");
    let cloud = Cloud::start(&there).await;
    let to = receiver.target();
    let (_listen, url) = here
        .listen(&[&cloud.flags()[..], &["--to", &to]].concat())
        .await;
    for n in 1..=10 {
        let delivered = || (receiver.count() == n).then_some(());
        let began = std::time::Instant::now();
        loop {
            let post = client().post(&url).body(vec![7; 4 << 20]).send().await;
            if post.unwrap().status() == 200 {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "there is no room for the {n}th");
        }
        eventually("it is delivered", delivered).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_bound_it_answers_503_says_why_loses_nothing_and_goes_on() {
    let (home, mut receiver) = (home(), Receiver::start().await);
    receiver.stop();
    let flags = ["--to", &receiver.target(), "--max-disk", "1MB"];
    let (mut listen, url) = home.listen(&flags).await;
    let mut accepted = HashSet::new();
    let refused = loop {
        let post = client().post(&url).body(vec![7u8; 10_000]);
        let answer = post.send().await.unwrap();
        match answer.status().as_u16() {
            200 => accepted.insert(id_of(&answer.text().await.unwrap())),
            _ => break answer,
        };
        assert!(accepted.len() < 1000, "2 MB are full of less");
    };
    assert_eq!(refused.status().as_u16(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let problem = refused.text().await.unwrap();
    assert!(problem.contains("--max-disk"), "{problem}");
    let why = |line: &Value| line["message"].as_str().unwrap().contains("--max-disk");
    listen.wait("warning", why).await;
    let line = status(&home);
    assert!(
        line["refuses"].as_str().unwrap().contains("--max-disk"),
        "{line}"
    );
    assert_eq!(line["max_disk"], 1_000_000);
    assert!(text(&home.run(&["status"]).stdout).contains("nothing new"));
    let logs = home.run(&["logs"]);
    assert!(text(&logs.stderr).contains("--max-disk"), "{logs:?}");
    let follow = home.start(&["logs", "--follow", "--json"]);
    follow.wait("warning", why).await;

    receiver.open_again().await;
    let arrived = || {
        let arrived: HashSet<_> = receiver.events().into_iter().collect();
        accepted.is_subset(&arrived).then_some(())
    };
    eventually("everything accepted arrives", arrived).await;
    let removed = listen.wait("retention", |_| true).await;
    assert_eq!(removed["reason"], "max-disk");
    let taken = || (status(&home)["refuses"] == Value::Null).then_some(());
    eventually("new events are taken in", taken).await;
    let again = |line: &Value| line["message"].as_str().unwrap().contains("again");
    follow.wait("warning", again).await;
    // The forwarder finds room by itself, too.
    let new = loop {
        let answer = client().post(&url).body("again").send().await.unwrap();
        if answer.status().is_success() {
            break id_of(&answer.text().await.unwrap());
        }
    };
    listen.wait_state(&new, "sent").await;

    let events = json_lines(&home.run(&["events", "-n", "999", "--json"]).stdout);
    let bare = events.iter().find(|event| event["body_removed"] == true);
    let id = bare.unwrap()["event"].as_str().unwrap();
    for command in [&["events", "show", id, "--body"][..], &["replay", id]] {
        let out = home.run(command);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out.stdout));
        assert!(text(&out.stderr).contains("retention has removed"));
    }
    let newest = home.run(&["replay", &new]);
    assert_eq!(newest.status.code(), Some(0), "{}", text(&newest.stderr));
    assert_eq!(listen.terminate().await, Some(0));
}

/// Less is free than a running store would move for, and all of it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_gives_free_space_back_to_the_disk() {
    const LARGE: usize = 500_000;
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    for n in 0..40 {
        let id = send(&url, vec![n; LARGE]).await;
        listen.wait_state(&id, "sent").await;
    }
    let full = status(&home)["disk_bytes"].as_u64().unwrap();
    assert!(full > 40 * LARGE as u64, "{full}");
    let in_use = home.run(&["doctor", "--compact"]);
    assert_eq!(in_use.status.code(), Some(1), "{}", text(&in_use.stdout));
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", &to, "--retain", "1ms"]).await;
    listen.wait("retention", |line| line["events"] == 40).await;
    assert_eq!(listen.terminate().await, Some(0));
    let compacted = home.run(&["doctor", "--compact"]);
    let said = text(&compacted.stdout);
    assert_eq!(compacted.status.code(), Some(0), "{said}");
    assert!(said.contains("given back to the disk"), "{said}");
    let left = status(&home)["disk_bytes"].as_u64().unwrap();
    assert!(left < 4 << 20, "{left} of {full}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_goes_when_its_time_is_over_and_is_counted() {
    let (home, receiver) = (home(), Receiver::start().await);
    let to = receiver.target();
    let (mut listen, url) = home.listen(&["--to", &to]).await;
    let mut last = String::new();
    for n in 0..3 {
        last = send(&url, format!("{n}")).await;
        listen.wait_state(&last, "sent").await;
    }
    assert_eq!(listen.terminate().await, Some(0));
    let (mut listen, _) = home.listen(&["--to", &to, "--retain", "1ms"]).await;
    let removed = listen.wait("retention", |_| true).await;
    assert_eq!(
        (removed["events"].as_u64(), &removed["reason"]),
        (Some(3), &"retain".into())
    );
    let line = status(&home);
    assert_eq!(
        (line["sent"].as_u64(), line["removed"]["sent"].as_u64()),
        (Some(0), Some(3))
    );
    assert_eq!(home.run(&["events", "show", &last]).status.code(), Some(3));
    assert_eq!(listen.terminate().await, Some(0));
    let doctor = home.run(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(0), "{}", text(&doctor.stdout));
}

/// A forwarder that is full of bodies still says what it received, and who has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_gives_bodies_up_first_and_still_tells_who_has_the_event() {
    let (mut there, here, receiver) = (home(), home(), Receiver::start().await);
    there.set("WHRELAY_MAX_DISK", "1MB");
    let cloud = Cloud::start(&there).await;
    let to = receiver.target();
    let flags = [&cloud.flags()[..], &["--to", &to, "--name", "laptop"]].concat();
    let (mut listen, url) = here.listen(&flags).await;
    let token = std::fs::read_to_string(&cloud.token_file).unwrap();
    let ask = async |id: &str, token: &str| {
        let event = client().get(format!("{}/v1/events/{id}", cloud.url));
        let answer = event.bearer_auth(token.trim()).send().await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.text().await.unwrap();
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let first = send(&format!("{url}/orders?x=1"), vec![7u8; 10_000]).await;
    listen.wait_state(&first, "sent").await;
    let kept = async || ask(&first, &token).await.1["body"].as_bool();
    let mut sent = 1;
    while kept().await == Some(true) {
        let id = send(&url, vec![7u8; 10_000]).await;
        listen.wait_state(&id, "sent").await;
        sent += 1;
        assert!(sent < 500, "{sent} events of 10 kB are kept in 1 MB");
    }
    let (status, event) = ask(&first, &token).await;
    assert_eq!((status, &event["event"]), (200, &first.as_str().into()));
    assert_eq!(event["bytes"], 10_000);
    assert_eq!(event["path"], "/orders?x=1");
    let received = serde_json::json!({
        "name": "laptop", "receipted": true, "state": "received", "reason": null,
    });
    let receipts = Value::from(vec![received.clone()]);
    assert_eq!(event["subscriptions"], receipts);
    let unknown = format!("evt_{}", "0".repeat(26));
    assert_eq!(ask(&unknown, &token).await.0, 404);
    assert_eq!(ask("evt_x", &token).await.0, 400);
    assert_eq!(ask(&first, "whr_adm_x").await.0, 401);

    // Another subscription gets what can still be sent, byte for byte, and nothing bare.
    let another = Receiver::start().await;
    let (to, home) = (another.target(), crate::home());
    let flags = [
        &cloud.flags()[..],
        &["--to", &to, "--name", "other", "--backlog", "all"],
    ]
    .concat();
    let (mut other, _) = home.listen(&flags).await;
    let last = send(&url, vec![7u8; 10_000]).await;
    other.wait_state(&last, "sent").await;
    let late = serde_json::json!([
        received,
        { "name": "other", "receipted": false, "state": null, "reason": null },
    ]);
    let known = async {
        while ask(&first, &token).await.1["subscriptions"] == receipts {
            tokio::task::yield_now().await;
        }
    };
    let known = tokio::time::timeout(whrelay_tests::PATIENCE, known).await;
    known.expect("the other's receipt");
    assert_eq!(ask(&first, &token).await.1["subscriptions"], late);
    let seen = another.seen();
    assert!(
        seen.len() > 1 && seen.len() < sent,
        "{} of {sent}",
        seen.len()
    );
    assert!(seen.iter().all(|request| request.body == vec![7u8; 10_000]));
    assert_eq!(other.terminate().await, Some(0));
    assert_eq!(listen.terminate().await, Some(0));
}
