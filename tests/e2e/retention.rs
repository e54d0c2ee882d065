//! What is kept, and what happens at the bound.

use std::collections::HashSet;

use serde_json::Value;
use whrelay_tests::eventually;
use whrelay_tests::process::Home;
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::{client, id_of, send};

use crate::{home, json_lines, text};

fn status(home: &Home) -> Value {
    json_lines(&home.run(&["status", "--json"]).stdout).remove(0)
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
